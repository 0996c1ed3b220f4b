"""A setting for a method that its service does not have fails as soon as the service is known."""

from typing import Any

import grpc
import pytest
from tests_pb.v1 import contract_pb2, ledger_pb2

import idem_grpc
import idem_grpc.aio
from idem_grpc import SHARED, KeyRule, Operation, Policy, keys, service_config
from idem_grpc._tokens.service import TokenServicer
from tests.server.client import Kind
from tests.server.ledger import DEADLINE, SERVICE, order
from tests.support.late_module import LateModule

CONTRACT = contract_pb2.DESCRIPTOR.services_by_name["ContractService"].full_name
DID_YOU_MEAN = r"there is no method '/tests\.v1\.LedgerService/Unray': .* has Unary, .*\(did you mean 'Unary'"


@pytest.fixture
def build(face):
    """Return a function that makes an interceptor of this face on a store in memory."""
    its = {"sync": idem_grpc, "aio": idem_grpc.aio}[face]

    def build(**settings):
        return its.ServerInterceptor(its.open_store("memory:"), **{"scope": SHARED, **settings})

    return build


def test_a_policy_for_a_misspelt_method_fails_at_construction(build):
    with pytest.raises(ValueError, match=f"policies: {DID_YOU_MEAN}"):
        build(policies={f"/{SERVICE}/Unray": Policy()})
    with pytest.raises(ValueError, match=f"policies: {DID_YOU_MEAN}"):
        build(
            policies={f"/{SERVICE}/*": Policy(), f"/{SERVICE}/Unary": Policy(), f"/{SERVICE}/Unray": Policy()}
        )
    with pytest.raises(
        ValueError, match=r"there is no method '/tests\.v1\.LedgerService/Zzz': .* has Unary, "
    ):
        build(policies={f"/{SERVICE}/Zzz": Policy()})
    with pytest.raises(ValueError, match=r"there is no method .*unary': .*\(did you mean 'Unary'\?\)"):
        build(policies={f"/{SERVICE}/unary": Policy()})


@pytest.mark.parametrize(
    "services",
    [[SERVICE], [ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]], [CONTRACT, SERVICE]],
    ids=["a name", "a descriptor", "two names"],
)
def test_a_misspelt_method_is_also_found_with_services(build, services):
    with pytest.raises(
        ValueError, match=r"Unray'\] match no method of services=.*did you mean '/tests.*Unary'"
    ):
        build(services=services, policies={f"/{SERVICE}/Unray": Policy()}, default=Policy())


def test_policies_for_existing_methods_and_unknown_services_are_valid(build):
    build(policies={f"/{SERVICE}/{kind.value}": Policy() for kind in Kind})
    build(policies={f"/{CONTRACT}/*": Policy(), "/pkg.Unknown/Charge": Policy(), "/pkg.Unknown/*": Policy()})
    build(policies={"/grpc.health.v1.Health/Check": Policy()})


@pytest.fixture
def late():
    """A service whose module is imported while the server runs."""
    return LateModule()


@pytest.fixture
def serve_late(start, late, face):
    """Generic handlers of the late service: ``serve_late(**settings)`` gives ``call(name)`` and its runs."""

    def serve_late(**settings):
        calls = []

        def do(request, context):
            calls.append(request)
            return b""

        async def async_do(request, context):
            return do(request, context)

        handler: Any = grpc.unary_unary_rpc_method_handler(do if face == "sync" else async_do)
        methods: dict[str, Any] = {"Pay": handler, "Look": handler}
        generic = grpc.method_handlers_generic_handler(f"{late.package}.Late", methods)
        server = start(handlers=[generic], **settings)

        def call(name):
            rpc: Any = server.client.channel.unary_unary(late.method(name))
            sent = rpc.future(b"", metadata=[("idempotency-key", "key")], timeout=DEADLINE)
            sent.exception()
            return sent

        return call, calls

    return serve_late


def test_a_service_known_later_without_the_method_refuses_its_calls(serve_late, late, caplog):
    call, calls = serve_late(policies={late.method("Pya"): Policy(key=KeyRule.REQUIRED)})
    assert call("Pay").code() is grpc.StatusCode.OK, "a generic handler may have any methods"
    late.load()
    refused = call("Pay")
    assert (refused.code(), len(calls)) == (grpc.StatusCode.INTERNAL, 1)
    assert "idempotency is misconfigured" in refused.details()
    assert (
        f"there is no method '{late.method('Pya')}': {late.package}.Late has Pay, Look (did you"
        in caplog.text
    )
    assert call("Look").code() is grpc.StatusCode.OK, "what has no side effects needs no policy"


def test_a_service_known_later_with_the_method_is_served(serve_late, late):
    call, calls = serve_late(policies={late.method("Pay"): Policy(key=KeyRule.REQUIRED)})
    late.load()
    assert [call("Pay").code() for _ in range(2)] == [grpc.StatusCode.OK] * 2
    assert len(calls) == 1


def test_services_without_descriptors_keep_their_policies(start, key, face):
    """Their methods are unknown."""
    server = start(policies={"/tests.v1.Nowhere/Do": Policy(key=KeyRule.REQUIRED)})
    assert server.client.call(Kind.UNARY, order(), key).ok


# The client.


@pytest.fixture
def interceptors(face):
    return {"sync": idem_grpc.client_interceptors, "aio": idem_grpc.aio.client_interceptors}[face]


def test_a_key_source_for_a_misspelt_method_fails_at_construction(interceptors):
    with pytest.raises(ValueError, match=f"keys: {DID_YOU_MEAN}"):
        interceptors(keys={f"/{SERVICE}/Unray": keys.unique})
    interceptors(keys={f"/{SERVICE}/Unary": keys.unique, "/pkg.Unknown/Charge": keys.unique})


def test_a_key_source_for_a_method_of_a_service_known_later_fails_at_its_first_call(start, late):
    server = start()
    source = {late.method("Pya"): keys.unique, "/pkg.Unknown/Charge": keys.unique}
    ours = idem_grpc.client_interceptors(keys=source, retry=None)
    with grpc.insecure_channel(server.address) as plain:
        channel = grpc.intercept_channel(plain, *ours)
        late.load()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"there is no method .*Pya': .*\(did you mean 'Pay'"):
                rpc_of(channel, late.method("Pay"))(b"", timeout=DEADLINE)
        with pytest.raises(grpc.RpcError) as unserved:  # and others have nothing to do with it
            rpc_of(channel, "/pkg.Unknown/Charge")(b"", timeout=DEADLINE)
        assert unserved.value.code() is grpc.StatusCode.UNIMPLEMENTED


def rpc_of(channel: Any, method: str) -> Any:
    return channel.unary_unary(method)


@pytest.mark.parametrize("name", ["tests.v1.LedgerService/Unray", "/tests.v1.LedgerService/Unray"])
def test_a_service_config_for_a_misspelt_method_fails(name):
    with pytest.raises(ValueError, match=f"service_config: {DID_YOU_MEAN}"):
        service_config([name])
    assert "Unary" in service_config(["tests.v1.LedgerService/Unary"])
    assert "Charge" in service_config(["pkg.Unknown/Charge"])


# Tokens.


@pytest.mark.parametrize(
    ("settings", "wrong", "sentence"),
    [
        ({}, f"/{SERVICE}/Unray", f"operations: {DID_YOU_MEAN}"),
        (
            {"default": Policy(operation="pay.charge")},
            "pay.chrage",
            r"'pay.chrage' \(did you mean 'pay.charge'",
        ),
        (
            {"policies": {f"/{SERVICE}/*": Policy(operation="pay.charge")}},
            "pay.charg",
            r"'pay.charg' \(did you mean 'pay.charge'",
        ),
        ({"services": [CONTRACT]}, "tests.ful", r"'tests.ful' \(did you mean 'tests.full'"),
    ],
)
def test_tokens_for_a_misspelt_operation_fail_at_construction(build, face, settings, wrong, sentence):
    servicer: Any = {"sync": TokenServicer, "aio": idem_grpc.aio.TokenServicer}[face]
    with pytest.raises(ValueError, match=sentence):
        servicer(build(**settings), {wrong: Operation()})


def test_tokens_may_be_for_operations_of_unknown_services(build, face):
    servicer: Any = {"sync": TokenServicer, "aio": idem_grpc.aio.TokenServicer}[face]
    charge = build(default=Policy(operation="pay.charge"))
    servicer(charge, {"pay.charge": Operation(), "pay.charges": Operation()})
    servicer(charge, {"orders.create": Operation()})
    servicer(build(), {"pay.chrage": Operation(), f"/{SERVICE}/Unary": Operation()})
