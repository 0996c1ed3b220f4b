"""The keeper sends the swaps that are due while the store is busy in one batch."""

import math
import threading
from collections import defaultdict

import pytest

from idem_grpc._core.clock import elapsed
from idem_grpc._core.execution import Lease
from idem_grpc._core.swap import Swap
from idem_grpc._server.keeper import BATCH, Keeper
from idem_grpc.stores._memory import MemoryStore
from idem_grpc.stores._protocol import StoreError, StoreUnavailable
from tests.server.ledger import DEADLINE
from tests.support.wait import until


class SlowStore(MemoryStore):
    """Answers nothing before the gate is open, and records the size of each batch."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.batches = []
        self.fault = None
        self.lost = 0

    def swap(self, swap):
        return self.swap_many([swap])[0]

    def swap_many(self, swaps):
        self.batches.append([swap.key for swap in swaps])
        assert self.gate.wait(DEADLINE)
        is_meant = any(swap.key == b"faulty" for swap in swaps) or isinstance(self.fault, StoreUnavailable)
        if self.fault is not None and is_meant:
            raise self.fault
        seen = [MemoryStore.swap(self, swap) for swap in swaps]
        return seen if len(seen) == 1 else seen[self.lost :]


class OneByOne(MemoryStore):
    """A store without batches, which answers for a key once its gate is open."""

    def __init__(self):
        super().__init__()
        self.asked = set()
        self.gates = defaultdict(threading.Event)

    def swap(self, swap):
        self.asked.add(swap.key)
        assert self.gates[swap.key].wait(DEADLINE)
        return super().swap(swap)


class Running:
    """A run whose lease is due for renewal, and lost until it is renewed."""

    def __init__(self, keeper, store, key):
        claim = Swap(key, None, b"mine", 60.0)
        MemoryStore.swap(store, claim)
        self._keeper = keeper
        self.lease = Lease(claim, 60.0, 3600.0, claimed=elapsed() - 61.0)  # lost, but for a renewal
        keeper.keep_renewing(self.lease)

    def end(self):
        self._keeper.stop_renewing(self.lease)


@pytest.fixture
def store():
    return SlowStore()


@pytest.fixture
def begin(store):
    keeper, runs = Keeper(store), []

    def begin(*keys):
        begun = [Running(keeper, store, key) for key in keys]
        runs.extend(begun)
        return begun

    yield begin
    store.gate.set()
    for run in runs:
        run.end()


def keys(number):
    return [b"%d" % each for each in range(number)]


def test_leases_that_are_due_together_are_renewed_together(store, begin):
    begin(b"first")
    until(lambda: store.batches)
    others = begin(*keys(BATCH // 2))
    store.gate.set()
    until(lambda: not any(run.lease.is_lost for run in others))
    assert set(store.batches[1]) >= set(keys(BATCH // 2))


def test_batches_are_bounded(store, begin):
    begin(b"first")
    until(lambda: store.batches)
    others = begin(*keys(BATCH + 10))
    store.gate.set()
    until(lambda: not any(run.lease.is_lost for run in others))
    assert len(store.batches[1]) == BATCH


def test_a_lease_that_cannot_be_renewed_fails_no_other(store, begin):
    store.fault = StoreError("too large")
    begin(b"first")
    until(lambda: store.batches)
    *others, faulty = begin(*keys(10), b"faulty")
    store.gate.set()
    until(lambda: not any(run.lease.is_lost for run in others))
    assert set(store.batches[1]) >= {b"faulty", *keys(10)}
    assert faulty.lease.is_lost


def test_a_store_that_answers_too_few_of_a_batch_is_asked_one_by_one(store, begin):
    store.lost = 1
    begin(b"first")
    until(lambda: store.batches)
    others = begin(*keys(10))
    store.gate.set()
    until(lambda: not any(run.lease.is_lost for run in others))
    assert set(store.batches[1]) >= set(keys(10))


def test_a_store_that_does_not_answer_is_asked_for_one_lease_at_a_time(store, begin):
    store.fault = StoreUnavailable("away")
    begin(b"first")
    until(lambda: store.batches)
    *others, _ = begin(*keys(10), b"faulty")
    store.gate.set()
    until(lambda: len(store.batches) > 5)
    assert all(len(batch) == 1 for batch in store.batches)
    assert all(run.lease.is_lost for run in others)


def test_failed_swaps_are_sent_again_in_one_batch_once_the_store_is_back(store, begin):
    store.fault = StoreUnavailable("away")
    begin(b"first")
    until(lambda: store.batches)
    *others, _ = begin(*keys(10), b"faulty")
    store.gate.set()
    until(lambda: len(store.batches) > 2)
    store.fault = None
    until(lambda: not any(run.lease.is_lost for run in others))
    assert any(len(batch) >= 10 for batch in store.batches[2:])


def test_without_batches_each_lease_is_renewed_when_its_answer_comes():
    store = OneByOne()
    keeper = Keeper(store)
    runs = [Running(keeper, store, b"first")]
    until(lambda: store.asked)
    runs += [Running(keeper, store, key) for key in (b"quick", b"slow")]
    store.gates[b"first"].set()
    store.gates[b"quick"].set()
    until(lambda: b"slow" in store.asked)
    assert [run.lease.is_lost for run in runs] == [False, False, True]
    store.gates[b"slow"].set()
    until(lambda: not runs[-1].lease.is_lost)
    for run in runs:
        run.end()


def test_short_runs_do_not_wake_the_keeper(monkeypatch):
    """The thread looks at the leases once a second, and most runs are over by then."""
    keeper, woken = Keeper(MemoryStore()), []

    def run():
        lease = Lease(Swap(b"key", None, b"mine", 60.0), 60.0, 60.0, elapsed())
        keeper.keep_renewing(lease)
        keeper.stop_renewing(lease)

    run()
    until(lambda: keeper._leases._next_scan_at < math.inf)  # it was woken, and has found nothing to renew
    notify = keeper._leases._changed.notify

    def counted():
        woken.append(elapsed())
        notify()

    monkeypatch.setattr(keeper._leases._changed, "notify", counted)
    for _ in range(100):
        run()
    assert woken == []
