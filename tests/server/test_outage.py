"""The store goes away: before a call, during its run, or in the middle of a reply."""

from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2

from idem_grpc import OnOutage, Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.kinds import kinds
from tests.server.ledger import order, run
from tests.server.stores import watched
from tests.support.wait import until

SOON = "?socket_timeout=1&socket_connect_timeout=1"  # and asked twice: no slow machine is silent for as long
AT_WORK = "at work"


kind = kinds(Kind.UNARY)  # the flow is the same for all, and an outage is slow


@pytest.fixture
def redis(own_redis_server):
    return own_redis_server


@pytest.fixture
def serve(redis, start):
    """Start a server on that Redis, with short timeouts."""
    return partial(start, redis.url + SOON)


def refused(answer, reason):
    """Whether an answer is a refusal that says when to retry."""
    retry_info = answer.detail(error_details_pb2.RetryInfo)
    return (
        (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, reason)
        and retry_info.retry_delay.ToMilliseconds() == round(answer.pushback * 1000)
        and not answer.messages
    )


def begun(server, kind, request, key):
    """Begin a call, and wait until its handler is at its gate."""
    call = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    return call


def state(server, kind, key):
    """The state of the record, once the store answers."""
    return server.record(key, kind).state


def test_calls_are_refused_while_the_store_is_away(redis, serve, kind, key):
    server, request = serve(), order()
    redis.kill()
    for _ in range(2):
        assert refused(server.client.call(kind, request, key), Reason.STORE_UNAVAILABLE)
    assert not server.ledger.all_runs
    redis.restart()
    answer = server.client.persist(kind, request, key)
    assert answer.ok
    assert len(server.ledger.runs(request)) == 1
    assert server.client.call(kind, request, key).essence == answer.essence


def test_a_claim_whose_reply_was_lost_is_given_back(redis, serve, kind, key):
    """The swap took effect, and its reply was lost."""
    server, request = serve(), order()
    assert server.client.call(kind, order(), "warm-up").ok
    redis.pause()
    assert refused(server.client.call(kind, request, key), Reason.STORE_UNAVAILABLE)
    redis.resume()
    until(lambda: state(server, kind, key) is State.OPEN)
    assert server.drain(30) == 0
    assert state(server, kind, key) is State.OPEN, "nothing says that it runs"
    assert not server.ledger.runs(request)
    assert server.client.call(kind, request, key).ok
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], indirect=True)
def test_an_outcome_that_cannot_be_stored_yet_is_pending(redis, serve, kind, key):
    server, request = serve(), order(run(gate=AT_WORK))
    first = begun(server, kind, request, key)
    redis.pause()
    server.ledger.gate(AT_WORK).open()
    pending = first.answer()
    assert (pending.code, pending.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.OUTCOME_PENDING)
    assert pending.run
    redis.resume()
    answer = server.client.persist(kind, request, key)
    assert answer.ok
    assert answer.replayed
    assert answer.run == pending.run
    assert [run.entry for run in server.ledger.runs(request)] == [answer.entry]


def test_an_outcome_is_stored_in_a_redis_that_lost_its_claim(redis, serve, kind, key):
    server, request = serve(), order(run(gate=AT_WORK))
    first = begun(server, kind, request, key)
    redis.kill()
    server.ledger.gate(AT_WORK).open()
    assert first.answer().reason is Reason.OUTCOME_PENDING
    redis.restart()
    until(lambda: state(server, kind, key) is State.DONE)
    answer = server.client.call(kind, request, key)
    assert answer.replayed
    assert [run.entry for run in server.ledger.runs(request)] == [answer.entry]


def test_duplicates_that_wait_do_not_get_an_outcome_that_is_not_stored(redis, serve, kind, key):
    server, request = serve(), order(run(gate=AT_WORK))
    first = begun(server, kind, request, key)
    duplicate = server.client.begin(kind, request, key)
    redis.kill()
    server.ledger.gate(AT_WORK).open()
    reasons = {call.answer().reason for call in (first, duplicate)}
    assert reasons <= {Reason.OUTCOME_PENDING, Reason.STORE_UNAVAILABLE}
    redis.restart()
    until(lambda: state(server, kind, key) is State.DONE)
    assert len(server.ledger.runs(request)) == 1


def test_a_failure_is_returned_before_its_key_is_given_back(redis, serve, kind, key):
    request = order(run(code=grpc.StatusCode.ABORTED, details="busy", gate=AT_WORK), run())
    server = serve()
    first = begun(server, kind, request, key)
    redis.pause()
    server.ledger.gate(AT_WORK).open()
    answer = first.answer()
    assert (answer.code, answer.details) == (grpc.StatusCode.ABORTED, "busy")
    redis.resume()
    until(lambda: state(server, kind, key) is State.OPEN)
    assert server.client.call(kind, request, key).ok
    assert len(server.ledger.runs(request)) == 2


def test_a_policy_may_run_calls_while_the_store_is_away(redis, serve, kind, key):
    server, request = serve(default=Policy(on_outage=OnOutage.RUN)), order()
    redis.kill()
    first = server.client.call(kind, request, key)
    assert first.ok
    assert server.client.call(kind, order(run(code=grpc.StatusCode.NOT_FOUND)), "other").code is (
        grpc.StatusCode.NOT_FOUND
    )
    redis.restart()
    until(lambda: state(server, kind, key) is State.DONE)
    replay = server.client.call(kind, request, key)
    assert replay.messages == first.messages
    assert replay.run
    assert len(server.ledger.runs(request)) == 1


def test_a_run_whose_lease_cannot_be_renewed_has_lost_it(redis, serve, kind, key):
    server = serve(default=Policy(lease=0.3, retention=600))
    request = order(run(gate=AT_WORK))
    first = begun(server, kind, request, key)
    redis.kill()
    (only,) = server.ledger.runs(request)
    until(lambda: only.execution.lease_lost)
    redis.restart()
    server.ledger.gate(AT_WORK).open()
    assert first.answer().reason in (None, Reason.OUTCOME_PENDING)
    until(lambda: state(server, kind, key) is State.DONE)


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_a_handler_that_blocks_its_event_loop_keeps_its_lease(face, start, url, kind, key):
    short = Policy(lease=1.5, retention=600, wait=0)  # and longer than a slow machine stands still
    other = start(url, default=short)
    store = watched(open_store(face, url, other.store.namespace))
    blocked = start(store=store, default=short)
    request = order(run(blocking=True, gate=AT_WORK), run())
    first = begun(blocked, kind, request, key)

    def renewals():
        return sum(swap.expected == swap.new for swap in list(store.swaps))

    until(lambda: renewals() >= 4)  # three a lease: more than a lease has gone by
    assert other.client.call(kind, request, key).reason is Reason.IN_PROGRESS
    until(lambda: renewals() >= 7)
    assert other.client.call(kind, request, key).reason is Reason.IN_PROGRESS
    blocked.ledger.gate(AT_WORK).open()
    assert other.client.persist(kind, request, key).essence == first.answer().essence
    assert not other.ledger.all_runs
