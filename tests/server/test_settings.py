"""Wrong settings fail at construction and say how to fix them; those found later refuse their calls."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2, ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import SHARED, KeyRule, OnOutage, OnUnclear, Policy, Reason, Reporter
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import SERVICE, order

kind = kinds(*FIRST_AND_LAST)

UNARY = f"/{SERVICE}/Unary"
SHORT_RETENTION = Policy(retention=timedelta(minutes=1))


@pytest.fixture
def build(face):
    """Return a function that makes an interceptor of this face on a store in memory."""
    its = {"sync": idem_grpc, "aio": idem_grpc.aio}[face]

    def build(**settings):
        return its.ServerInterceptor(**{"store": its.open_store("memory:"), "scope": SHARED, **settings})

    return build


WRONG = {
    "a service unknown": ({"services": ["tests.v1.LegerService"]}, r"no service 'tests\.v1\.LegerService'"),
    "a method unknown": (
        {"services": [SERVICE], "policies": {f"/{SERVICE}/Unry": Policy()}},
        r"Unry.* match no method",
    ),
    "a pattern of nothing": ({"policies": {SERVICE: Policy()}}, r"neither '/pkg\.Service/Method' nor"),
    "a pattern with a star too many": (
        {"policies": {"/*/*": Policy()}},
        r"neither '/pkg\.Service/Method' nor",
    ),
    "not a policy": ({"policies": {UNARY: {"lease": 3}}}, r"give a Policy"),
    "retention of few leases": (
        {"services": [SERVICE], "default": SHORT_RETENTION},
        r"at least four leases",
    ),
    "a contradiction between layers": (
        {
            "services": [SERVICE],
            "default": Policy(on_outage=OnOutage.RUN),
            "policies": {UNARY: Policy(on_unclear=OnUnclear.FAIL)},
        },
        r"use OnOutage\.REFUSE",
    ),
    "a token that runs in an outage": (
        {"services": [SERVICE], "default": Policy(on_outage=OnOutage.RUN, key=KeyRule.TOKEN)},
        r"use OnOutage\.REFUSE",
    ),
    "a policy at odds with itself": (
        {"policies": {UNARY: Policy(on_outage=OnOutage.RUN, on_unclear=OnUnclear.FAIL)}},
        rf"{UNARY}.*use OnOutage\.REFUSE",
    ),
    "a default at odds with itself": (
        {"default": Policy(retention=timedelta(minutes=1), lease=20)},
        r"default: .*at least four leases",
    ),
    "a short run": ({"policies": {f"/{SERVICE}/*": Policy(max_run=1, lease=2)}}, r"at least one lease"),
    "a pattern of another kind": ({"policies": {1: Policy()}}, r"1 is not a string: give a name"),
    "a field unknown": (
        {"services": [SERVICE], "policies": {UNARY: Policy(ignore=["amonut"])}},
        r"no field 'amonut'",
    ),
    "waiters below none": ({"max_waiters": -1}, r"give 0 or more"),
    "waiters in halves": ({"max_waiters": 1.5}, r"max_waiters=1\.5\): give a whole number"),
    "waiters in words": ({"max_waiters": "8"}, r"max_waiters='8'\): give a whole number"),
    "the class of a reporter": ({"reporter": Reporter}, r"give an instance of a subclass"),
    "a reporter of another kind": ({"reporter": print}, r"give an instance of a subclass"),
    "no default": ({"default": None}, r"give a Policy, or leave it out"),
    "a default by its fields": ({"default": {}}, r"give a Policy, or leave it out"),
    "policies without names": ({"policies": [Policy()]}, r"give a mapping, such as"),
    "one service": ({"services": SERVICE}, r"give a list of names, such as"),
    "a service by its module": ({"services": [ledger_pb2_grpc]}, r"give a name, such as .* or a descriptor"),
    "no scope": ({"scope": None}, r"give SHARED, PEER, metadata"),
    "a scope by name": ({"scope": "x-tenant-id"}, r"give SHARED, PEER, metadata"),
}


@pytest.mark.parametrize(("settings", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_settings_say_what_is_wrong(build, settings, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build(**settings)


def test_a_scope_has_no_default(face):
    its = {"sync": idem_grpc, "aio": idem_grpc.aio}[face]
    with pytest.raises(TypeError, match="scope"):
        its.ServerInterceptor(its.open_store("memory:"))


def test_the_store_of_the_other_face_is_refused(build, face):
    other = {"sync": idem_grpc.aio, "aio": idem_grpc}[face].open_store("memory:")
    with pytest.raises(TypeError, match="open_store"):
        build(store=other)
    with pytest.raises(TypeError, match="open_store"):
        build(store="redis://localhost")


def test_services_may_be_descriptors(build):
    service = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]
    build(services=[service], policies={f"/{SERVICE}/*": Policy(lease=1), UNARY: Policy(ignore=["amount"])})
    with pytest.raises(ValueError, match="Unry"):
        build(services=[service], policies={f"/{SERVICE}/Unry": Policy()})


FAULTS = {
    "contradiction": Policy(retention=timedelta(minutes=1)),
    "field": Policy(ignore=["amonut"]),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_setting_found_at_the_first_call_refuses_it(start, kind, key, fault):
    server = start(policies={kind.path: fault})
    for keys in (key, key, None):
        answer = server.client.call(kind, order(), keys)
        assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, Reason.MISCONFIGURED)
    assert not server.ledger.all_runs


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("10", TypeError)], ids=repr)
def test_a_drain_takes_a_duration(build, face, timeout, error):
    def drain():
        drained = build().drain(timeout)
        if face == "aio":
            asyncio.run(drained)

    with pytest.raises(error, match="is not a duration: give"):
        drain()


def test_the_refusal_of_a_call_without_a_token_says_what_it_needs(start, kind):
    server = start(policies={kind.path: Policy(key=KeyRule.TOKEN)})
    answer = server.client.call(kind, order(), None)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REQUIRED)
    assert "needs a token of the TokenService" in answer.details


def test_a_method_without_a_descriptor_has_the_default_policy(start, key):
    calls = []

    def pay(request, context):
        calls.append(request)
        return b"%d" % len(calls)

    service: dict[str, Any] = {"Pay": grpc.unary_unary_rpc_method_handler(pay)}
    server = start(handlers=[grpc.method_handlers_generic_handler("tests.v1.Unknown", service)])
    pay_it = server.client.channel.unary_unary("/tests.v1.Unknown/Pay")
    assert {pay_it(b"12 EUR", metadata=[("idempotency-key", key)]) for _ in range(3)} == {b"1"}
    assert calls == [b"12 EUR"]
    with pytest.raises(grpc.RpcError) as refused:
        pay_it(b"13 EUR", metadata=[("idempotency-key", key)])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_wrong_field_of_a_method_without_a_descriptor_refuses_its_calls(start, key):
    def pay(request, context):
        raise AssertionError("a method whose policy is at fault runs")

    service: dict[str, Any] = {
        "Pay": grpc.unary_unary_rpc_method_handler(pay, ledger_pb2.LedgerRequest.FromString)
    }
    handler = grpc.method_handlers_generic_handler("tests.v1.Unknown", service)
    server = start(handlers=[handler], default=Policy(ignore=["amount.currency"]))
    with pytest.raises(grpc.RpcError) as refused:
        server.client.channel.unary_unary("/tests.v1.Unknown/Pay")(
            order().SerializeToString(), metadata=[("idempotency-key", key)]
        )
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert "idempotency is misconfigured" in (refused.value.details() or "")


def test_requests_that_differ_in_ignored_fields_are_the_same(start, kind, key):
    server = start(policies={kind.path: Policy(ignore=["amount"])})
    request = order(amount=1)
    first = server.client.call(kind, request, key)
    second = server.client.call(kind, order(name=request.order, amount=2), key)
    assert first.ok
    assert second.essence == first.essence
    assert server.client.call(kind, order(amount=2), key).reason is Reason.KEY_REUSED
