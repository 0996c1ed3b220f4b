"""Runs whose callers have left are bounded, and calls over the bound are refused."""

import asyncio
from functools import partial
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2

import idem_grpc
import idem_grpc.aio
from idem_grpc import SHARED, OnCancel, OnOutage, OnUnclear, Policy, Reason, Reporter
from idem_grpc._core.record import Record, State
from tests.server.client import Kind, Pending
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, order, run
from tests.streams.stores import barred
from tests.support.wait import until

BOUND, LIMIT, MANY = 5, 10, 60
STYLES = [("sync", False), ("aio", False), ("aio", True)]

styles = pytest.mark.parametrize(("face", "plain"), STYLES, indirect=["face"])
asyncio_styles = pytest.mark.parametrize(("face", "plain"), STYLES[1:], indirect=["face"])


def work(kind):
    """A request whose run waits at a gate of its own once the request has arrived completely."""
    gate = uuid4().hex
    return order(run(gate=gate, responses_before_gate=3 if kind is Kind.BIDI else 0), name=gate)


def begin(server, kind, key=None):
    request = work(kind)
    return server.client.begin(kind, request, key or request.order), server.ledger.gate(request.order)


def decided(call, gate):
    """Whether the run is at its gate, or the call was refused."""
    return gate.reached.is_set() or call.done()


def leave(server, kind, count):
    """Begin calls, and cancel them once their handlers are at work."""
    calls = [begin(server, kind) for _ in range(count)]
    for _, gate in calls:
        gate.await_arrival()
    for call, _ in calls:
        call.cancel()
    until(lambda: detached(server) == count)


def detached(server):
    return server.interceptor._protection.runs.detached


def is_refused(answer):
    return (
        (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.OVERLOADED)
        and answer.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
        == round(answer.pushback * 1000)
        and answer.run is None
    )


@asyncio_styles
def test_handlers_at_work_are_bounded_as_callers_come_and_go(start, plain, kind):
    server = start(plain=plain, max_detached=BOUND, maximum_concurrent_rpcs=LIMIT, workers=64)
    refused = 0
    for _ in range(MANY):
        call, gate = begin(server, kind)
        until(partial(decided, call, gate))
        if call.done():
            refused += is_refused(call.answer())
        call.cancel()
    assert len(server.ledger.all_runs) <= BOUND + LIMIT
    assert refused >= MANY - BOUND - LIMIT
    server.ledger.open_all()


@asyncio_styles
def test_handlers_at_work_are_bounded_as_many_callers_leave_at_once(start, plain, kind):
    server = start(plain=plain, max_detached=BOUND, maximum_concurrent_rpcs=LIMIT, workers=64)
    gates = []
    for _ in range(5):
        calls = [begin(server, kind) for _ in range(MANY)]
        gates += [gate for _, gate in calls]
        for call, _ in calls:
            call.cancel()
        until(lambda: server.client.call(Kind.READ, order()).code is not grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert sum(gate.reached.is_set() for gate in gates) <= BOUND + LIMIT
    server.ledger.open_all()


@styles
def test_one_run_too_many_is_refused_and_nothing_runs(start, plain, url, kind):
    policy = Policy(on_unclear=OnUnclear.FAIL)
    server = start(url, plain=plain, max_detached=2, default=policy)
    leave(server, kind, 2)
    request = order()
    for _ in range(2):
        assert is_refused(server.client.call(kind, request, "key"))
    assert not server.ledger.runs(request)
    assert server.record("key", kind).state is State.ABSENT
    server.ledger.open_all()
    assert server.client.persist(kind, request, "key").ok
    assert server.drain(DEADLINE) == 0
    assert detached(server) == 0


@styles
def test_replays_duplicates_and_calls_without_a_key_are_served(start, plain, kind, key):
    server = start(plain=plain, max_detached=2, max_waiters=8, default=Policy(wait=600))
    done = order()
    first = server.client.call(kind, done, "done")
    request = work(kind)
    gate = server.ledger.gate(request.order)
    running = server.client.begin(kind, request, key)
    gate.await_arrival()
    leave(server, kind, 2)
    duplicate = server.client.begin(kind, request, key)
    assert server.client.call(kind, done, "done").essence == first.essence
    assert server.client.call(kind, order(), "done").reason is Reason.KEY_REUSED
    assert is_refused(server.client.call(kind, order(), "new"))
    if not plain:  # the ledger asks a context more than grpc.aio gives to functions
        assert server.client.call(kind, order()).ok
    gate.open()
    assert running.answer().ok
    assert duplicate.answer().essence == running.answer().essence
    server.ledger.open_all()


@styles
def test_one_run_too_many_does_not_run_unprotected(start, plain, kind):
    server = start(plain=plain, max_detached=1, default=Policy(on_outage=OnOutage.RUN))
    leave(server, kind, 1)
    request = order()
    assert is_refused(server.client.call(kind, request, "key"))
    assert not server.ledger.runs(request)
    server.ledger.open_all()


@styles
def test_a_cancelled_run_counts_until_it_has_ended(start, plain, kind):
    server = start(plain=plain, max_detached=1, default=Policy(on_cancel=OnCancel.CANCEL))
    calls = [begin(server, kind) for _ in range(3)]
    for _, gate in calls:
        gate.await_arrival()
    for call, _ in calls:
        call.cancel()
    server.ledger.open_all()
    until(lambda: detached(server) == 0)
    assert server.client.persist(kind, order(), "key").ok


@styles
def test_the_refusal_is_reported_and_ended_runs_free_their_places(start, plain, kind):
    reasons = []

    class Reasons(Reporter):
        def replied(self, event):
            reasons.append(event.reason)

    server = start(plain=plain, max_detached=3, reporter=Reasons())
    for _ in range(4):
        reasons.clear()
        leave(server, kind, 3)
        assert is_refused(server.client.call(kind, order(), uuid4().hex))
        assert reasons == [Reason.OVERLOADED]
        server.ledger.open_all()
        until(lambda: detached(server) == 0)
        request = order()
        assert server.client.call(kind, request, request.order).ok


@pytest.mark.parametrize("face", ["sync"], indirect=True)
def test_a_call_that_has_its_claim_runs_even_over_the_bound(face, start, kind):
    """Also if its key must still be counted."""
    gone = list[Pending]()

    def bar(swap):
        if is_claim(swap) and gone:
            gone.pop().cancel()
            until(lambda: detached(server) == 1)

    store = barred(open_store(face, "memory:", "late"), bar)
    server = start(store=store, max_detached=1, default=Policy(claim_rate=(100, 60)))
    call, gate = begin(server, kind)
    gate.await_arrival()
    gone.append(call)
    assert server.client.call(kind, order(), "key").ok
    assert is_refused(server.client.call(kind, order(), "another"))
    server.ledger.open_all()


def is_claim(swap):
    return swap.expected is None and Record.from_bytes(swap.new).state is State.RUNNING


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "8", None])
@pytest.mark.parametrize("its", [idem_grpc, idem_grpc.aio], ids=["sync", "aio"])
def test_an_invalid_bound_is_refused(its, wrong):
    async def construct():
        its.ServerInterceptor(its.open_store("memory:"), scope=SHARED, max_detached=wrong)

    with pytest.raises((ValueError, TypeError), match="max_detached"):
        asyncio.run(construct())
