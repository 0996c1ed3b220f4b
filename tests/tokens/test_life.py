"""The life of a token: issued, used, replayed, expired; given back, revoked, lost."""

import grpc
import pytest
from idem_grpc_pb.v1 import record_pb2, token_pb2

from idem_grpc import KeyRule, OnUnclear, Policy, Reason
from idem_grpc._core.digest import token_key
from idem_grpc._core.swap import Swap, Swapped
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order, run
from tests.support.wait import until
from tests.tokens.servers import CHARGE, RETENTION, TTL, get, issue, revoke, shown, state

GONE = (grpc.StatusCode.FAILED_PRECONDITION, Reason.TOKEN_UNKNOWN)
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def verdict(answer):
    return answer.code, answer.reason


def test_issue_use_replay(start, url):
    server, request = start(url), order(run(trailing=[("fee", "12")]))
    token = issue(server.client)
    assert (state(server.client, token), shown(server.client, token).attempt) == ("OPEN", 0)
    first = server.client.call(Kind.UNARY, request, token)
    assert first.ok
    assert not first.replayed
    again = server.client.call(Kind.UNARY, request, token)
    assert again.essence == first.essence
    assert again.replayed
    assert (state(server.client, token), shown(server.client, token).attempt) == ("DONE", 1)
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI])
def test_streams_take_tokens_too(start, kind):
    server, request = start(), order()
    token = issue(server.client)
    first = server.client.call(kind, request, token)
    assert first.ok
    assert server.client.call(kind, request, token).essence == first.essence
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("token", ["idt_never-issued", "a-key-of-my-own", "x" * 255])
def test_a_token_that_was_never_issued_is_refused_and_not_run(start, url, token):
    server = start(url)
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == GONE
    assert get(server.client, token).code is NOT_FOUND
    assert not server.ledger.all_runs


def test_a_call_without_a_token_is_refused(start):
    server = start()
    answer = server.client.call(Kind.UNARY, order())
    assert verdict(answer) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REQUIRED)
    assert not server.ledger.all_runs


def test_a_token_stands_for_one_request(start):
    server = start()
    token = issue(server.client)
    assert server.client.call(Kind.UNARY, order(), token).ok
    again = server.client.call(Kind.UNARY, order(), token)
    assert verdict(again) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REUSED)
    assert len(server.ledger.all_runs) == 1


def test_a_token_in_use_is_shown_as_running(start, url):
    server, request = start(url), order(run(gate="at work"))
    token = issue(server.client)
    call = server.client.begin(Kind.UNARY, request, token)
    server.ledger.gate("at work").await_arrival()
    assert state(server.client, token) == "RUNNING"
    server.ledger.gate("at work").open()
    assert call.answer().ok


def test_an_unused_token_expires_by_the_clock_of_the_store(start, clocked, clock):
    server = start(store=clocked)
    token = issue(server.client)
    clock.now += TTL - 1
    assert shown(server.client, token).ttl.ToMilliseconds() == 1000
    clock.now += 1
    assert get(server.client, token).code is NOT_FOUND
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == GONE
    assert not server.ledger.all_runs


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_an_unused_token_expires_on_every_store(start, url):
    server = start(url)
    token = issue(server.client, ttl=0.1)
    until(lambda: get(server.client, token).code is NOT_FOUND)
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == GONE
    assert not server.ledger.all_runs


def test_a_used_token_lives_as_long_as_its_answer(start, clocked, clock):
    server, request = start(store=clocked), order()
    token = issue(server.client)
    clock.now += TTL - 1
    first = server.client.call(Kind.UNARY, request, token)
    clock.now += RETENTION - 1
    assert server.client.call(Kind.UNARY, request, token).essence == first.essence
    clock.now += 1
    assert verdict(server.client.call(Kind.UNARY, request, token)) == GONE, "it is not run again"
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("used", [False, True])
def test_tokens_are_unknown_after_the_store_lost_its_data(start, own_redis_server, used):
    server, request = start(own_redis_server.url, cache_bytes=0), order()
    token = issue(server.client)
    if used:
        assert server.client.call(Kind.UNARY, request, token).ok
    with own_redis_server.client() as client:
        client.flushall()
    assert verdict(server.client.call(Kind.UNARY, request, token)) == GONE
    assert len(server.ledger.all_runs) == used


def test_after_an_invalid_argument_the_token_takes_a_corrected_request(start, clocked, clock):
    server = start(store=clocked)
    token = issue(server.client)
    clock.now += 100
    refused = server.client.call(Kind.UNARY, order(run(code=grpc.StatusCode.INVALID_ARGUMENT)), token)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    given_back = shown(server.client, token)
    assert given_back.state == token_pb2.TOKEN_STATE_OPEN
    assert given_back.ttl.ToSeconds() == TTL - 100, "it has the life that it had left"
    assert server.client.call(Kind.UNARY, order(), token).ok, "and takes a corrected request"


def test_after_a_retryable_failure_the_token_takes_the_same_request(start, clocked, clock):
    server = start(store=clocked)
    request = order(run(code=grpc.StatusCode.RESOURCE_EXHAUSTED), run())
    token = issue(server.client)
    clock.now += 100
    assert server.client.call(Kind.UNARY, request, token).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert shown(server.client, token).ttl.ToSeconds() == TTL - 100
    assert server.client.call(Kind.UNARY, order(), token).reason is Reason.KEY_REUSED
    assert server.client.call(Kind.UNARY, request, token).ok
    assert shown(server.client, token).attempt == 2


def test_a_token_that_is_given_back_expires_when_it_would_have_expired(start, clocked, clock):
    server = start(store=clocked)
    token = issue(server.client)
    server.client.call(Kind.UNARY, order(run(code=grpc.StatusCode.INVALID_ARGUMENT)), token)
    clock.now += TTL
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == GONE


def test_an_unclear_end_is_kept_for_the_retention(start, clocked, clock):
    server, request = start(store=clocked), order(run("RAISE"), run())
    token = issue(server.client)
    assert server.client.call(Kind.UNARY, request, token).code is grpc.StatusCode.UNKNOWN
    assert (state(server.client, token), shown(server.client, token).ttl.ToSeconds()) == ("OPEN", RETENTION)
    clock.now += RETENTION - 1
    assert server.client.call(Kind.UNARY, request, token).ok
    assert len(server.ledger.runs(request)) == 2


def test_an_unclear_end_under_fail_is_not_run_again(start):
    strict = Policy(operation=CHARGE, key=KeyRule.TOKEN, on_unclear=OnUnclear.FAIL)
    server, request = start(default=strict), order(run("RAISE"), run())
    token = issue(server.client)
    server.client.call(Kind.UNARY, request, token)
    assert state(server.client, token) == "UNKNOWN"
    assert server.client.call(Kind.UNARY, request, token).reason is Reason.OUTCOME_UNKNOWN
    assert revoke(server.client, token).code is grpc.StatusCode.FAILED_PRECONDITION
    assert len(server.ledger.runs(request)) == 1


def test_a_revoked_token_is_refused(start, url):
    server = start(url)
    token = issue(server.client)
    assert revoke(server.client, token).ok
    assert get(server.client, token).code is NOT_FOUND
    assert verdict(server.client.call(Kind.UNARY, order(), token)) == GONE
    assert revoke(server.client, token).ok, "what is not there is useless already"
    assert not server.ledger.all_runs


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_a_record_of_a_later_release_is_left_alone(start, url):
    """This release cannot read it, so it cannot say that the token is unknown or can be revoked."""
    server = start(url)
    token, namespace = issue(server.client), server.store.namespace
    with open_store("sync", url, namespace) as store:
        key = token_key(namespace, token)
        unused = store.read(key).value
        assert unused is not None
        later = record_pb2.Record.FromString(unused)
        later.state = 99  # type: ignore[assignment]  # which is the point
        written = later.SerializeToString()
        assert isinstance(store.swap(Swap(key, unused, written, TTL)), Swapped)
        unclear = (grpc.StatusCode.FAILED_PRECONDITION, Reason.OUTCOME_UNKNOWN)
        assert verdict(server.client.call(Kind.UNARY, order(), token)) == unclear
        for ask in (get, revoke):
            answer = ask(server.client, token)
            assert verdict(answer) == unclear
            assert "cannot read" in answer.details
        assert store.read(key).value == written
    assert not server.ledger.all_runs


def test_a_token_that_runs_or_is_done_is_not_revoked(start, url):
    server, request = start(url), order(run(gate="at work"))
    token = issue(server.client)
    call = server.client.begin(Kind.UNARY, request, token)
    server.ledger.gate("at work").await_arrival()
    assert revoke(server.client, token).code is grpc.StatusCode.FAILED_PRECONDITION
    server.ledger.gate("at work").open()
    first = call.answer()
    assert first.ok
    for _ in range(2):
        assert revoke(server.client, token).code is grpc.StatusCode.FAILED_PRECONDITION
    assert server.client.call(Kind.UNARY, request, token).essence == first.essence
    assert len(server.ledger.runs(request)) == 1


def test_a_token_that_was_given_back_can_be_revoked_unless_it_has_a_request(start):
    server = start()
    fixable, not_now = issue(server.client), issue(server.client)
    server.client.call(Kind.UNARY, order(run(code=grpc.StatusCode.INVALID_ARGUMENT)), fixable)
    server.client.call(Kind.UNARY, order(run(code=grpc.StatusCode.ABORTED)), not_now)
    assert revoke(server.client, fixable).ok
    assert revoke(server.client, not_now).code is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED])
def test_giving_a_token_back_repeatedly_does_not_extend_it(start, clocked, clock, code):
    server, request = start(store=clocked), order(run(code=code))
    token = issue(server.client)
    for left in (800, 700, 600):
        clock.now += 100
        server.client.call(Kind.UNARY, request, token)
        assert shown(server.client, token).ttl.ToSeconds() == left
