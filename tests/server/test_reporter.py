"""Reporters get every keyed call and every lost lease, and cannot fail a call."""

import threading

import grpc
import pytest

from idem_grpc import Policy, Reason, Replied, Reporter
from idem_grpc._core.outcome import Code
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import DEADLINE, order, run
from tests.streams.stores import barred
from tests.support.wait import until

kind = kinds(*FIRST_AND_LAST)

SHORT = Policy(lease=0.3, retention=600)


class Notes(Reporter):
    """Records all events, in order."""

    def __init__(self):
        self.replies = []
        self.lost = []

    def replied(self, event):
        self.replies.append(event)

    def lease_lost(self, method, run):
        self.lost.append((method, run))


class Broken(Reporter):
    """Counts its events, and raises."""

    events = 0

    def replied(self, event):
        self.events += 1
        raise RuntimeError("no room left on the dashboard")

    def lease_lost(self, method, run):
        self.events += 1
        raise RuntimeError("no room left on the dashboard")


@pytest.fixture
def notes():
    return Notes()


def test_every_keyed_call_is_reported(start, notes, kind, key):
    server, request = start(reporter=notes), order()
    first = server.client.call(kind, request, key)
    assert server.client.call(kind, request, key).replayed
    assert server.client.call(kind, order(), key).reason is Reason.KEY_REUSED
    assert server.client.call(kind, request, " ").reason is Reason.KEY_INVALID
    assert server.client.call(kind, request).ok  # has no key, and is not reported
    failed = server.client.call(kind, order(run(code=grpc.StatusCode.NOT_FOUND)), "other")
    assert notes.replies == [
        Replied(kind.path, Code.OK, replayed=False, reason=None, run=first.run),
        Replied(kind.path, Code.OK, replayed=True, reason=None, run=first.run),
        Replied(kind.path, Code.INVALID_ARGUMENT, replayed=False, reason=Reason.KEY_REUSED, run=first.run),
        Replied(kind.path, Code.INVALID_ARGUMENT, replayed=False, reason=Reason.KEY_INVALID, run=""),
        Replied(kind.path, Code.NOT_FOUND, replayed=False, reason=None, run=failed.run),
    ]
    assert notes.lost == []


def test_a_lost_lease_is_reported_once(start, notes, kind, key):
    server = start(reporter=notes, default=Policy(lease=0.1, max_run=1, retention=600))
    call = server.client.begin(kind, order(run(gate="slow")), key)
    until(lambda: notes.lost)
    (slow,) = server.ledger.all_runs
    assert slow.execution.lease_lost
    server.ledger.gate("slow").open()
    answer = call.answer()
    assert answer.ok
    assert notes.lost == [(kind.path, answer.run)]


def test_a_renewal_after_the_end_of_its_run_is_no_lost_lease(face, start, notes, kind, key):
    """The renewal finds the answer in place of its claim, which the run itself wrote."""
    held_back, may_go = threading.Event(), threading.Event()
    renewals = []

    def hold_back_the_first_renewal(swap):
        if swap.expected == swap.new:
            renewals.append(swap)
            if len(renewals) == 1:
                held_back.set()
                assert may_go.wait(DEADLINE)

    store = barred(open_store(face, "memory:", "reporter"), hold_back_the_first_renewal)
    server = start(store=store, reporter=notes, default=SHORT)
    first, second = order(run(gate="one")), order(run(gate="two"))
    call = server.client.begin(kind, first, key)
    assert held_back.wait(DEADLINE)
    server.ledger.gate("one").open()
    assert call.answer().ok
    may_go.set()
    server.client.begin(kind, second, "second")
    until(lambda: len(renewals) >= 2)  # the one thread that renews is done with the first
    assert notes.lost == []


@pytest.mark.parametrize("kind", list(Kind)[:4], indirect=True, ids=lambda kind: kind.value)
def test_a_reporter_that_raises_changes_no_answer(start, kind, key):
    broken = Broken()
    server = start(reporter=broken, default=Policy(lease=0.1, max_run=1, retention=600))
    request = order(run(gate="slow"))
    call = server.client.begin(kind, request, key)
    until(lambda: broken.events)
    server.ledger.gate("slow").open()
    first = call.answer()
    assert first.ok
    assert server.client.call(kind, request, key).essence == first.essence
    assert broken.events == 3
