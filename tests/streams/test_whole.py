"""A duplicate gets the complete answer, and the handler runs once: every style, kind and store."""

import grpc
import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import RUN, Kind
from tests.server.ledger import STATUS_DETAILS, order, run
from tests.support.wait import until

BINARY = bytes(range(256))
METADATA: list[tuple[str, str | bytes]] = [
    ("fee", "12"),
    ("fee", "13"),
    ("seal-bin", BINARY),
    ("nil-bin", b""),
]

STORES = ("memory", "sqlite", "redis")
# The styles of aio differ in how they read and write, and not in what becomes of that in which store.
COMBINATIONS = [
    *((style, store) for style in ("sync", "aio") for store in STORES),
    *((style, "memory") for style in ("aio-read-write", "aio-thread")),
]

pytestmark = pytest.mark.parametrize(("style", "url"), COMBINATIONS, indirect=True)


@pytest.fixture
def server(start, url):
    return start(url, max_waiters=8, default=Policy(max_response_bytes=1000))


def own(metadata):
    return [pair for pair in metadata if pair[0] not in (RUN, STATUS_DETAILS)]


def attempts(server, request):
    return [run.execution.attempt for run in server.ledger.runs(request)]


def half_way(kind, **gate):
    """A run that waits at a gate once its request has arrived completely and a part of its answer is sent."""
    sent = {Kind.SERVER_STREAM: 1, Kind.BIDI: 3}.get(kind, 0)
    return {"gate": "half-way", "responses_before_gate": sent}


def test_a_duplicate_gets_all_of_the_first_answer(server, kind, key):
    request = order(run(initial=METADATA, trailing=METADATA))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.ok
    assert len(first.messages) == (3 if kind.has_response_stream else 1)
    assert own(first.initial) == own(first.trailing) == METADATA
    assert ((RUN, first.run) in first.initial) is kind.has_response_stream
    assert second.essence == first.essence
    assert (first.replayed, second.replayed) == (False, True)
    assert attempts(server, request) == [1]


def test_duplicates_wait_for_the_running_call_and_get_its_answer(server, kind, key):
    request = order(run(**half_way(kind), trailing=METADATA))
    first = server.client.begin(kind, request, key)
    server.ledger.gate("half-way").await_arrival()
    duplicates = [server.client.begin(kind, request, key) for _ in range(3)]
    server.ledger.gate("half-way").open()
    answer = first.answer()
    assert answer.ok
    assert not answer.replayed
    for duplicate in duplicates:
        replay = duplicate.answer()
        assert replay.essence == answer.essence
        assert replay.replayed
    assert attempts(server, request) == [1]


def test_another_payload_is_refused(server, kind, key):
    first, other = server.client.call(kind, order(), key), order(amount=2999)
    answer = server.client.call(kind, other, key)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REUSED)
    assert answer.run == first.run
    assert not answer.messages
    assert RUN not in dict(answer.initial)
    assert not server.ledger.runs(other)


def test_a_decided_error_is_replayed_with_the_responses_before_it(server, kind, key):
    declined = run(
        "ABORT_WITH_STATUS",
        grpc.StatusCode.FAILED_PRECONDITION,
        details="declined: zu wenig Geld für 1 €",
        initial=METADATA,
        trailing=METADATA,
    )
    request = order(declined, run())
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert (first.code, first.details) == (grpc.StatusCode.FAILED_PRECONDITION, declined.details)
    assert len(first.messages) == (3 if kind.has_response_stream else 0)
    assert first.error_info is not None
    assert first.error_info.domain == "ledger"
    assert own(first.initial) == own(first.trailing) == METADATA
    assert second.essence == first.essence
    assert second.replayed
    assert attempts(server, request) == [1]


def test_an_error_without_effect_is_not_replayed(server, kind, key):
    request = order(run(code=grpc.StatusCode.ABORTED, details="later"), run())
    first, second, third = (server.client.call(kind, request, key) for _ in range(3))
    assert (first.code, first.replayed) == (grpc.StatusCode.ABORTED, False)
    assert second.ok
    assert not second.replayed
    assert second.run != first.run
    assert third.essence == second.essence
    assert attempts(server, request) == [1, 2]


def test_an_answer_over_the_limit_is_given_to_the_first_caller_only(server, kind, key):
    request = order(run(filler_bytes=1001, trailing=METADATA), run())
    first = server.client.call(kind, request, key)
    assert first.ok
    assert [len(response.filler) for response in first.responses] == [1001] * len(first.messages)
    assert list(first.trailing) == METADATA
    for _ in range(2):
        answer = server.client.call(kind, request, key)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.RESPONSE_NOT_KEPT,
        )
        assert answer.run == first.run
        assert not answer.messages
    assert attempts(server, request) == [1]


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
def test_the_work_goes_on_when_the_caller_leaves_and_the_retry_gets_it(server, kind, key, leave):
    request = order(run(**half_way(kind), initial=METADATA, trailing=METADATA))
    gate, deadline = server.ledger.gate("half-way"), 0.15
    if leave == "cancel":
        call = server.client.begin(kind, request, key, timeout=None)
        gate.await_arrival()
        call.cancel()
        assert call.answer().code is grpc.StatusCode.CANCELLED
    else:
        while not gate.reached.is_set():  # the deadline may pass before the request has arrived whole
            left = server.client.call(kind, request, key, timeout=deadline)
            assert not left.ok
            deadline *= 2
    gate.open()
    until(lambda: server.record(key, kind).state is State.DONE)
    answer = server.client.call(kind, request, key)
    assert answer.ok
    assert answer.replayed
    assert len(answer.messages) == (3 if kind.has_response_stream else 1)
    assert own(answer.initial) == list(answer.trailing) == METADATA
    assert len([run for run in server.ledger.runs(request) if run.is_over]) == 1
