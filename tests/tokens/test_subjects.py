"""A token belongs to one caller and one operation."""

import grpc
import pytest

import idem_grpc
from idem_grpc import Reason
from tests.server.client import Kind
from tests.server.ledger import order, run
from tests.tokens.servers import (
    CHARGE,
    REFUND,
    TENANT,
    ask,
    get,
    issue,
    revoke,
    shown,
    state,
    tenant,
    wanted,
)

ALICE, BOB = tenant("alice"), tenant("bob")
MISMATCH = (grpc.StatusCode.PERMISSION_DENIED, Reason.TOKEN_MISMATCH)
SCOPE_UNKNOWN = (grpc.StatusCode.UNAUTHENTICATED, Reason.SCOPE_UNKNOWN)


def verdict(answer):
    return answer.code, answer.reason


@pytest.fixture
def server(start, url):
    return start(url, scope=idem_grpc.metadata(TENANT))


def test_two_callers_cannot_use_each_others_tokens(server):
    tokens = {caller: issue(server.client, metadata=caller) for caller in (ALICE, BOB)}
    for mine, other in ((ALICE, BOB), (BOB, ALICE)):
        assert verdict(server.client.call(Kind.UNARY, order(), tokens[other], metadata=mine)) == MISMATCH
        assert verdict(get(server.client, tokens[other], mine)) == MISMATCH
        assert verdict(revoke(server.client, tokens[other], mine)) == MISMATCH
    assert not server.ledger.all_runs
    for caller, token in tokens.items():
        assert server.client.call(Kind.UNARY, order(), token, metadata=caller).ok, "they did no harm"


def test_an_answer_is_not_replayed_to_another_caller(server):
    request, token = order(), issue(server.client, metadata=ALICE)
    first = server.client.call(Kind.UNARY, request, token, metadata=ALICE)
    stolen = server.client.call(Kind.UNARY, request, token, metadata=BOB)
    assert verdict(stolen) == MISMATCH
    assert not stolen.messages
    assert server.client.call(Kind.UNARY, request, token, metadata=ALICE).essence == first.essence
    assert len(server.ledger.runs(request)) == 1


def test_a_call_in_progress_is_not_shown_to_another_caller(server):
    request, token = order(run(gate="at work")), issue(server.client, metadata=ALICE)
    call = server.client.begin(Kind.UNARY, request, token, metadata=ALICE)
    server.ledger.gate("at work").await_arrival()
    assert verdict(server.client.call(Kind.UNARY, request, token, metadata=BOB)) == MISMATCH
    server.ledger.gate("at work").open()
    assert call.answer().ok


def test_a_token_is_refused_for_another_operation(server):
    charge, refund = (issue(server.client, name, metadata=ALICE) for name in (CHARGE, REFUND))
    assert verdict(server.client.call(Kind.SERVER_STREAM, order(), charge, metadata=ALICE)) == MISMATCH
    assert verdict(server.client.call(Kind.UNARY, order(), refund, metadata=ALICE)) == MISMATCH
    assert not server.ledger.all_runs
    assert server.client.call(Kind.SERVER_STREAM, order(), refund, metadata=ALICE).ok
    assert server.client.call(Kind.UNARY, order(), charge, metadata=ALICE).ok


def test_methods_of_one_operation_share_a_token_but_not_a_request(server):
    request, token = order(), issue(server.client, metadata=ALICE)
    assert server.client.call(Kind.UNARY, request, token, metadata=ALICE).ok
    elsewhere = server.client.call(Kind.CLIENT_STREAM, request, token, metadata=ALICE)
    assert elsewhere.reason is Reason.KEY_REUSED
    assert len(server.ledger.runs(request)) == 1


def test_get_token_never_shows_the_response(server):
    request, token = order(run(filler_bytes=2000)), issue(server.client, metadata=ALICE)
    first = server.client.call(Kind.UNARY, request, token, metadata=ALICE)
    answer = get(server.client, token, ALICE)
    assert first.messages[0] not in answer.messages[0]
    assert first.entry.encode() not in answer.messages[0]
    assert len(answer.messages[0]) < 200
    assert {field.name for field, _ in shown(server.client, token, ALICE).ListFields()} == {
        "token",
        "operation",
        "state",
        "attempt",
        "expire_time",
        "ttl",
    }


def test_a_caller_without_a_scope_is_refused(server):
    token = issue(server.client, metadata=ALICE)
    assert verdict(ask(server.client, "IssueTokens", wanted())) == SCOPE_UNKNOWN
    assert verdict(get(server.client, token)) == SCOPE_UNKNOWN
    assert verdict(revoke(server.client, token)) == SCOPE_UNKNOWN
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == SCOPE_UNKNOWN
    assert shown(server.client, token, ALICE).token == token


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_a_scope_function_that_raises_refuses_the_call(start, url):
    def scope(call):
        raise RuntimeError("the directory of tenants is away")

    server = start(url, scope=scope)
    assert verdict(ask(server.client, "IssueTokens", wanted())) == SCOPE_UNKNOWN


def test_a_scope_that_depends_on_the_method_makes_different_callers(start):
    asked = []

    def scope(call):
        asked.append(call.method)
        return call.method

    server = start(scope=scope)
    token = issue(server.client)
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == MISMATCH
    assert asked == ["/idem.v1.TokenService/*", Kind.UNARY.path]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_removed_operation_is_not_shown(start, url):
    one, other = start(url), start(url, operations={REFUND: idem_grpc.Operation()})
    token = issue(one.client)
    assert shown(one.client, token).operation == CHARGE
    assert shown(other.client, token).operation == ""
    assert state(other.client, token) == "OPEN"
