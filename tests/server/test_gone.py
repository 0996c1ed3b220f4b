"""Callers that leave, by deadline or by cancel: their retries get the answer."""

import grpc
import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.kinds import ALL, FIRST_AND_LAST, kinds
from tests.server.ledger import order, run
from tests.support.wait import until

kind = kinds(*FIRST_AND_LAST)
NO_DEADLINE = 1e9  # seconds; what grpc says in its place is far more


@pytest.fixture
def server(start):
    return start()


@pytest.fixture(params=["deadline", "cancel"])
def leave(request, kind, key):
    """Send a call, and return once its caller has left and its handler is at its gate."""

    def leave_by_cancel(server, message):
        call = server.client.begin(kind, message, key, timeout=None)
        server.ledger.gate("at work").await_arrival()
        call.cancel()
        assert call.answer().code is grpc.StatusCode.CANCELLED

    def leave_by_deadline(server, message):
        # A request stream that is cut is a run of its own, so here the deadline must not pass too early.
        deadline = 2.0 if kind.has_request_stream else 0.1
        while not server.ledger.gate("at work").reached.is_set():  # unless it passed before the handler ran
            answer = server.client.call(kind, message, key, timeout=deadline)
            # A call that comes while the one before is still on its way to the handler waits for that.
            assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED or answer.reason is Reason.IN_PROGRESS
            deadline *= 2

    return leave_by_cancel if request.param == "cancel" else leave_by_deadline


def at_work(kind):
    """A run that waits at its gate once its request has arrived completely, so that it can finish."""
    return {"gate": "at work", "responses_before_gate": 3 if kind is Kind.BIDI else 0}


def sees_no_caller(run):
    run.look_around()
    return run.time_remaining is None or run.time_remaining > NO_DEADLINE


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_the_retry_gets_the_answer(start, url, kind, key, leave):
    server = start(url)
    request = order(run(**at_work(kind), trailing=[("fee", "12")]))
    leave(server, request)
    server.ledger.gate("at work").open()
    answer = server.client.call(kind, request, key)
    assert answer.ok
    assert answer.replayed
    assert answer.trailing == (("fee", "12"),)
    assert [run.entry for run in server.ledger.runs(request)] == [answer.entry]


def test_a_retry_before_the_answer_waits_for_it(server, kind, key, leave):
    request = order(run(**at_work(kind)))
    leave(server, request)
    retry = server.client.begin(kind, request, key)
    server.ledger.gate("at work").open()
    answer = retry.answer()
    assert answer.ok
    assert answer.replayed
    assert len(server.ledger.runs(request)) == 1


def test_the_handler_sees_a_live_call_without_a_deadline(server, kind, key, leave):
    request = order(run(**at_work(kind), initial=[("a", "b")]))
    leave(server, request)
    (only,) = server.ledger.runs(request)
    until(lambda: sees_no_caller(only))
    assert only.is_active
    server.ledger.gate("at work").open()
    until(lambda: only.is_over)
    assert only.is_active
    assert sees_no_caller(only)


def test_a_business_error_is_kept_too(server, kind, key, leave):
    failing = run(
        "ABORT_WITH_STATUS", grpc.StatusCode.FAILED_PRECONDITION, details="declined", **at_work(kind)
    )
    request = order(failing)
    leave(server, request)
    server.ledger.gate("at work").open()
    answer = server.client.call(kind, request, key)
    assert (answer.code, answer.details) == (grpc.StatusCode.FAILED_PRECONDITION, "declined")
    assert answer.error_info is not None
    assert answer.error_info.domain == "ledger"
    assert len(server.ledger.runs(request)) == 1


def test_a_failure_gives_the_key_back(server, kind, key, leave):
    request = order(run(code=grpc.StatusCode.ABORTED, **at_work(kind)), run())
    leave(server, request)
    server.ledger.gate("at work").open()
    until(lambda: server.record(key, kind).state is State.OPEN)
    assert server.client.call(kind, request, key).ok
    assert [run.execution.attempt for run in server.ledger.runs(request)] == [1, 2]


def test_the_handler_sees_the_deadline_of_a_caller_that_stays(server, kind, key):
    request = order(run())
    assert server.client.call(kind, request, key, timeout=50).ok
    (only,) = server.ledger.runs(request)
    assert 0 < only.time_remaining < NO_DEADLINE


def test_a_duplicate_that_waits_ends_at_its_deadline(start, kind, key):
    server, request = start(default=Policy(wait=600)), order(run(**at_work(kind)))
    first = server.client.begin(kind, request, key, timeout=None)
    server.ledger.gate("at work").await_arrival()
    waiter = server.client.call(kind, request, key, timeout=0.2)
    assert waiter.code is grpc.StatusCode.DEADLINE_EXCEEDED or waiter.reason is Reason.IN_PROGRESS
    gone = server.client.begin(kind, request, key, timeout=None)
    gone.cancel()
    assert gone.answer().code is grpc.StatusCode.CANCELLED
    server.ledger.gate("at work").open()
    assert first.answer().ok
    assert server.drain(30) == 0
    assert len(server.ledger.runs(request)) == 1
