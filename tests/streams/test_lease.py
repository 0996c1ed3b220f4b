"""A run that is taken for dead, rightly or not: another server runs the call again, one answer is kept."""

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.digest import store_key
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.record import State
from idem_grpc._core.swap import Swap
from idem_grpc.stores._protocol import StoreUnavailable
from tests.server.client import Kind
from tests.server.ledger import Gate, order, run
from tests.server.processes import ServerProcess
from tests.streams.scripts import Cross
from tests.streams.stores import barred
from tests.support.wait import until

KINDS = (Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI)
SHORT: dict[str, Any] = {"lease": 1.0, "retention": 600, "wait": 10}
OTHER = b"another!"

streams = pytest.mark.parametrize(
    "kind", [Kind.SERVER_STREAM, Kind.BIDI], indirect=True, ids=lambda kind: kind.value
)
on_disk = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
two_faces = pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)


def half_way(kind, sent=1):
    """A first run that waits once it has sent a number of responses, and a second that does not."""
    return run(gate="half-way", responses_before_gate=sent if kind.has_response_stream else 0), run()


def taken_over(server, kind, key, **fields):
    """Give the record another owner, which is alive."""
    name = store_key(server.store.namespace, kind.path, b"", key)
    held = server.store.read(name)
    theirs = replace(server.record(key, kind), owner=OTHER, attempt=2, lease=60.0, ttl=600.0, **fields)
    server.store.swap(Swap(name, held.value, theirs.to_bytes(), 600))


def is_lost(answer):
    return (answer.code, answer.reason) == (grpc.StatusCode.ABORTED, Reason.LEASE_LOST)


@on_disk
@two_faces
def test_a_run_that_cannot_renew_is_taken_over_and_never_ends_half_a_stream_ok(
    start, open_one, url, kind, key
):
    def renewals_fail(swap):
        if swap.expected == swap.new:
            raise StoreUnavailable("renewals are withheld")

    silent = start(store=barred(open_one(url), renewals_fail), default=Policy(**SHORT))
    other = start(url, default=Policy(**SHORT))
    request = order(*half_way(kind))
    call = silent.client.begin(kind, request, key)
    silent.ledger.gate("half-way").await_arrival()
    answer = other.client.persist(kind, request, key)
    assert answer.ok
    assert not answer.replayed
    (first,), (second,) = silent.ledger.runs(request), other.ledger.runs(request)
    assert (first.execution.attempt, second.execution.attempt) == (1, 2)
    until(lambda: first.execution.lease_lost)
    silent.ledger.gate("half-way").open()
    late = call.answer()
    if kind.has_response_stream:
        assert is_lost(late)
        assert late.messages
    else:  # nothing was sent yet, so that the answer that stands is the answer
        assert late.essence == answer.essence
        assert late.replayed
    for server in (silent, other):
        assert server.client.call(kind, request, key).essence == answer.essence


@streams
@two_faces
@pytest.mark.parametrize("state", [State.RUNNING, State.DONE, State.UNKNOWN], ids=lambda state: state.name)
def test_a_stream_in_part_sent_does_not_end_with_the_status_of_another_run(start, kind, key, state):
    server = start(default=Policy(lease=0.3, retention=600))
    request = order(*half_way(kind))
    call = server.client.begin(kind, request, key)
    server.ledger.gate("half-way").await_arrival()
    taken_over(server, kind, key, state=state, outcome=Outcome() if state is State.DONE else None)
    (only,) = server.ledger.runs(request)
    until(lambda: only.execution.lease_lost)
    server.ledger.gate("half-way").open()
    answer = call.answer()
    taken_over(server, kind, key, state=State.DONE, outcome=Outcome())  # for which the late run may wait
    assert is_lost(answer)
    assert answer.messages


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM], indirect=True, ids=lambda kind: kind.value)
def test_a_run_that_has_sent_nothing_may_replay(start, kind, key):
    gate = Gate()

    def script(context):
        yield Cross(gate)

    server = start(scripts={kind: script}, default=Policy(lease=0.3, retention=600))
    call = server.client.begin(kind, b"", key)
    gate.await_arrival()
    theirs = Outcome(messages=(b"one", b"two"), trailing_metadata=(("fee", "12"),))
    taken_over(server, kind, key, state=State.DONE, outcome=theirs)
    gate.open()
    for answer in (call.answer(), server.client.call(kind, b"", key)):
        assert answer.ok
        assert answer.replayed
        assert (answer.messages, answer.trailing) == (theirs.messages, theirs.trailing_metadata)


@on_disk
@two_faces
def test_a_server_cut_off_from_its_store_is_taken_over(start, open_one, url, kind, key):
    claimed, is_back = threading.Event(), threading.Event()

    def only_the_claim(swap):
        if claimed.is_set() and not is_back.is_set():
            raise StoreUnavailable("it is gone")
        claimed.set()

    dead = start(store=barred(open_one(url), only_the_claim), default=Policy(**SHORT))
    alive = start(url, default=Policy(**SHORT))
    request = order(*half_way(kind))
    call = dead.client.begin(kind, request, key)
    dead.ledger.gate("half-way").await_arrival()
    answer = alive.client.persist(kind, request, key)
    assert answer.ok
    assert [run.execution.attempt for run in alive.ledger.runs(request)] == [2]
    dead.ledger.gate("half-way").open()
    assert call.answer().reason in (Reason.OUTCOME_PENDING, Reason.LEASE_LOST)
    assert alive.client.call(kind, request, key).essence == answer.essence
    is_back.set()


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
@two_faces
def test_another_server_runs_the_calls_of_a_killed_server_again(start, namespace, style, url):
    dying = ServerProcess(style, url, namespace, default=SHORT)
    try:
        requests = {kind: order(*half_way(kind)) for kind in KINDS}
        calls = {}
        for kind, request in requests.items():
            calls[kind] = dying.client.begin(kind, request, kind.value)
            until(partial(dying.attempts, request))
        dying.kill()
        for call in calls.values():
            assert call.answer().code is grpc.StatusCode.UNAVAILABLE
        alive = start(url, default=Policy(**SHORT), max_waiters=8)
        retries = {kind: alive.client.begin(kind, requests[kind], kind.value) for kind in KINDS}
        for kind, retry in retries.items():
            answer = retry.answer()
            assert answer.ok
            assert not answer.replayed
            assert [run.execution.attempt for run in alive.ledger.runs(requests[kind])] == [2]
            again = alive.client.call(kind, requests[kind], kind.value)
            assert again.essence == answer.essence
            assert again.replayed
    finally:
        dying.close()
