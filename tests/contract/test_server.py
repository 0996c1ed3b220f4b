"""What a contract declares, as its callers meet it: no key, a key of the request's fields, contradictions."""

import asyncio

import grpc
import pytest
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc
from tests_pb.v1 import contract_pb2 as pb
from tests_pb.v1 import contract_pb2_grpc as pb_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import KeyRule, Policy, Reason, reason, replayed
from tests.contract.servers import CONTRACT, CONTRADICTION
from tests.server.ledger import DEADLINE

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def send(method, request, key=None):
    metadata = [] if key is None else [("idempotency-key", key)]
    return method.with_call(request, metadata=metadata, timeout=DEADLINE)


def refused(method, request, key=None):
    """The code and the reason of a call that is refused."""
    with pytest.raises(grpc.RpcError) as error:
        send(method, request, key)
    return error.value.code(), reason(error.value)


def test_the_default_of_the_service_asks_for_a_key(server):
    plain = server.stub().Plain
    assert refused(plain, pb.PlainRequest()) == (INVALID, Reason.KEY_REQUIRED)
    assert not server.runs.requests
    send(plain, pb.PlainRequest(), "k")
    _, again = send(plain, pb.PlainRequest(), "k")
    assert replayed(again)
    assert len(server.runs.requests) == 1


def test_the_option_of_a_method_asks_for_a_token(server):
    full = server.stub().Full
    assert refused(full, pb.FullRequest()) == (INVALID, Reason.KEY_REQUIRED)
    assert refused(full, pb.FullRequest(), "k") == (
        grpc.StatusCode.FAILED_PRECONDITION,
        Reason.TOKEN_UNKNOWN,
    )
    tokens = token_pb2_grpc.TokenServiceStub(server.channel)
    (token,) = tokens.IssueTokens(token_pb2.IssueTokensRequest(operation="tests.full")).tokens
    send(full, pb.FullRequest(), token.token)
    _, again = send(full, pb.FullRequest(), token.token)
    assert idem_grpc.reason(again) is None
    assert len(server.runs.requests) == 1


def test_a_method_without_side_effects_needs_none(server):
    read = server.stub().Read
    for _ in range(2):
        send(read, pb.ReadRequest(), "k")
    assert server.runs.keys == [None, None]


def test_a_key_is_made_of_the_request(server):
    from_fields = server.stub().FromFields
    first, _ = send(from_fields, pb.FromFieldsRequest(request_id="r 1", amount=3))
    again, call = send(from_fields, pb.FromFieldsRequest(request_id="r 1", amount=3))
    assert again == first
    assert replayed(call)
    assert server.runs.keys == ["r%201"]
    send(from_fields, pb.FromFieldsRequest(request_id="r 2", amount=3))
    assert len(server.runs.requests) == 2


def test_the_same_key_either_way(server):
    """Made by the client, by the server, or sent by hand."""
    request = pb.FromFieldsRequest(request_id="order:7/é", amount=3)
    with_ours = server.stub(*idem_grpc.client_interceptors())
    first, _ = send(with_ours.FromFields, request)
    again, call = send(server.stub().FromFields, request)
    assert (again, replayed(call)) == (first, True)
    again, call = send(server.stub().FromFields, request, server.runs.keys[0])
    assert (again, replayed(call)) == (first, True)
    assert len(server.runs.requests) == 1


def test_the_same_key_by_a_client_in_asyncio(server):
    request = pb.FromFieldsRequest(request_id="order:8/é", amount=3)

    async def call():
        interceptors = idem_grpc.aio.client_interceptors()
        async with grpc.aio.insecure_channel(server.address, interceptors=interceptors) as channel:
            return await pb_grpc.ContractServiceStub(channel).FromFields(request, timeout=DEADLINE)

    first = asyncio.run(call())
    again, call_again = send(server.stub().FromFields, request)
    assert (again, replayed(call_again)) == (first, True)
    assert len(server.runs.requests) == 1


@pytest.mark.parametrize("request_id", ["", "x" * 300])
def test_a_request_that_has_nothing_to_make_a_key_of(server, request_id):
    from_fields = server.stub().FromFields
    code, why = refused(from_fields, pb.FromFieldsRequest(request_id=request_id))
    assert (code, why) == (INVALID, Reason.KEY_INVALID if request_id else Reason.KEY_REQUIRED)
    assert not server.runs.requests
    send(from_fields, pb.FromFieldsRequest(request_id=request_id), "a-key-of-its-own")


def test_a_key_that_is_sent_goes_before_the_fields(server):
    from_fields = server.stub().FromFields
    send(from_fields, pb.FromFieldsRequest(request_id="r", amount=3), "k1")
    send(from_fields, pb.FromFieldsRequest(request_id="r", amount=3), "k2")
    assert server.runs.keys == ["k1", "k2"]


def test_ignored_fields_do_not_tell_requests_apart(server):
    from_fields = server.stub().FromFields
    first, _ = send(
        from_fields,
        pb.FromFieldsRequest(
            request_id="r",
            amount=3,
            trace="first",
            part=pb.Part(name="a", seen_by="first"),
            parts={"x": pb.Part(name="b", seen_by="first")},
        ),
    )
    again, call = send(
        from_fields,
        pb.FromFieldsRequest(
            request_id="r",
            amount=3,
            trace="second",
            part=pb.Part(name="a", seen_by="second"),
            parts={"x": pb.Part(name="b", seen_by="second")},
        ),
    )
    assert (again, replayed(call)) == (first, True)


@pytest.mark.parametrize(
    "other",
    [
        pb.FromFieldsRequest(request_id="r", amount=4),
        pb.FromFieldsRequest(request_id="r", amount=3, part=pb.Part(name="other")),
        pb.FromFieldsRequest(request_id="r", amount=3, parts={"y": pb.Part()}),
        pb.FromFieldsRequest(request_id="r", amount=3, nested=[pb.FromFieldsRequest()]),
    ],
    ids=["amount", "part", "parts", "nested"],
)
def test_all_other_fields_do(server, other):
    from_fields = server.stub().FromFields
    send(from_fields, pb.FromFieldsRequest(request_id="r", amount=3))
    assert refused(from_fields, other) == (INVALID, Reason.KEY_REUSED)
    assert len(server.runs.requests) == 1


def interceptor(face, **settings):
    package = idem_grpc if face == "sync" else idem_grpc.aio
    return package.ServerInterceptor(package.open_store("memory:"), scope=idem_grpc.SHARED, **settings)


def test_a_contradictory_service_that_is_listed_is_refused_at_construction(face):
    with pytest.raises(ValueError, match=r"contract\.proto: .*ContradictionService") as error:
        interceptor(face, services=[CONTRADICTION])
    assert any(method in str(error.value) for method in ("Stream", "Short", "Code"))


@pytest.mark.parametrize("weaker", [KeyRule.OPTIONAL, KeyRule.REQUIRED])
def test_so_is_code_that_weakens_the_contract(face, weaker):
    with pytest.raises(ValueError, match=rf"contract\.proto: /{CONTRACT}/Full .*weaken"):
        interceptor(face, services=[CONTRACT], policies={f"/{CONTRACT}/Full": Policy(key=weaker)})


@pytest.mark.parametrize("key", [None, "k"])
def test_one_that_is_not_listed_is_refused_at_its_calls_and_never_run(start, key, caplog):
    server = start()
    stub = pb_grpc.ContradictionServiceStub(server.channel)
    misconfigured = (grpc.StatusCode.INTERNAL, Reason.MISCONFIGURED)
    for _ in range(2):
        assert refused(stub.Stream, iter([pb.StreamRequest(request_id="r")]), key) == misconfigured
        assert refused(stub.Short, pb.ShortRequest(), key) == misconfigured
        assert refused(stub.Code, pb.CodeRequest(), key) == misconfigured
    assert not server.runs.requests
    for method in ("Stream", "Short", "Code"):
        assert f"{CONTRADICTION}/{method} is refused" in caplog.text
    send(server.stub().Plain, pb.PlainRequest(), "k")


@pytest.mark.parametrize("method", ["Stream", "Short", "Code"])
def test_what_is_said_of_it_names_file_and_method(start, method, caplog):
    stub = pb_grpc.ContradictionServiceStub(start().channel)
    request = {"Stream": iter([pb.StreamRequest()]), "Short": pb.ShortRequest(), "Code": pb.CodeRequest()}
    refused(getattr(stub, method), request[method], "k")
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert any("tests_pb/v1/contract.proto" in line and method in line for line in said), said
