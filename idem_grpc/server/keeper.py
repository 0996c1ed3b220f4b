"""The thread of an interceptor that renews the leases of running handlers.

It has a store connection of its own where the store has several, so neither a busy pool
nor a blocked event loop stops it. Flows whose reply has gone out while the store was away
are brought to their end by a second thread, since each of them may have to wait for it.
"""

import heapq
import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from idem_grpc.execution import Lease
from idem_grpc.steps import Outage, Pause, Step, Steps
from idem_grpc.stores.protocol import Store, StoreError, StoreUnavailable
from idem_grpc.swap import Held, Swap, Swapped

logger = logging.getLogger("idem_grpc")

RENEWALS_PER_LEASE = 3
BATCH = 256  # of renewals, in one round trip
MAX_TAILS = 1000


def attempt(store: Store, swap: Swap) -> Swapped | Held | Outage:
    """Send a swap to a store, and take its failure for what it may be."""
    try:
        return store.swap(swap.key, swap.expected, swap.new, swap.ttl, swap.max_left)
    except Exception as error:
        return failed(error)


def attempt_all(store: Store, swaps: Sequence[Swap]) -> list[Swapped | Held | Outage]:
    """Send swaps in one batch. Where one of them is at fault, they are sent again one by one."""
    if len(swaps) > 1:
        try:
            return [seen for _, seen in zip(swaps, store.swap_many(swaps), strict=True)]
        except StoreUnavailable as error:
            return [failed(error)] * len(swaps)
        except Exception:
            logger.warning("a batch of swaps failed, and is sent one by one", exc_info=True)
    return [attempt(store, swap) for swap in swaps]


def failed(error: Exception) -> Outage:
    """What a flow is told of a swap that raised."""
    if isinstance(error, StoreUnavailable):
        logger.warning("the idempotency store did not answer: %s", error)
        return Outage()
    logger.error("the idempotency store cannot be used", exc_info=error)
    return Outage(misused=isinstance(error, StoreError))


class Keeper:
    """Keeps promises to the store, for as long as the process lives."""

    def __init__(self, store: Store) -> None:
        # Where a batch is sent one by one, all of it would wait for the last answer.
        has_batches = type(store).swap_many is not Store.swap_many
        self._leases = _Worker("idem_grpc leases", store, BATCH if has_batches else 1)
        self._tails = _Worker("idem_grpc tails", store, 1)  # their records can be large

    @contextmanager
    def renewing(self, swap: Swap, lease: Lease, seconds: float, lose: Callable[[], None]) -> Iterator[None]:
        """Renew the record that ``swap`` wrote, three times in ``seconds``, until the block ends.

        ``lose`` is called once it is known that ``lease`` is lost.
        """
        job = _Renewal(swap, lease, seconds / RENEWALS_PER_LEASE, lose)
        with self._leases.working(job.interval, job):
            yield

    @contextmanager
    def limiting(self, seconds: float, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` if the block takes longer than ``seconds``."""
        with self._leases.working(seconds, _Limit(stop)):
            yield

    def finish(self, steps: Steps, step: Step, then: Callable[[], None], *, has_run: bool) -> None:
        """Bring a flow to its end that has replied and now asks for ``step``.

        Calls that are refused while the store is away leave one each, to give back a claim
        that may have been made: of those, one too many is left for its lease to run out.
        Flows whose handler has run are never dropped; the server bounds them.
        """
        if has_run or len(self._tails) < MAX_TAILS:
            self._tails.start(0, _Tail(steps, step, then))
        else:
            logger.error("the store is away, and too many claims wait to be given back: one is left")
            steps.close()
            then()


class _Job(ABC):
    """Something to do at its time, until it is over."""

    is_over = False

    def swap(self) -> Swap | None:
        """What the store is to be asked first, if anything."""
        return None

    @abstractmethod
    def run(self, seen: Swapped | Held | Outage | None) -> float | None:
        """Do it, with the store's answer. Returns after how many seconds it is due again, if it is."""


class _Worker:
    """A thread that runs jobs when they are due, started by the first.

    Up to ``batch`` of those that are due at one time send their swaps together.
    """

    def __init__(self, name: str, store: Store, batch: int) -> None:
        self._name = name
        self._store = store
        self._batch = batch
        self._due: list[tuple[float, int, _Job]] = []
        self._order = itertools.count()
        self._stale = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._due)

    @contextmanager
    def working(self, delay: float, job: _Job) -> Iterator[None]:
        """Start a job, which is over when the block ends."""
        self.start(delay, job)
        try:
            yield
        finally:
            self._forget(job)

    def start(self, delay: float, job: _Job) -> None:
        """Run a job in ``delay`` seconds."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():  # as in a process that was forked
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            heapq.heappush(self._due, (monotonic() + delay, next(self._order), job))
            if self._due[0][2] is job:
                self._changed.notify()

    def _forget(self, job: _Job) -> None:
        """Jobs that are over are dropped from the heap when they are the greater part of it."""
        with self._changed:
            job.is_over = True
            self._stale += 1
            if self._stale > 100 and 2 * self._stale > len(self._due):
                self._due = [entry for entry in self._due if not entry[2].is_over]
                heapq.heapify(self._due)
                self._stale = 0

    def _work(self) -> None:
        while True:
            jobs = [(job, job.swap()) for job in self._next() if not job.is_over]
            answers = iter(attempt_all(self._store, [swap for _, swap in jobs if swap is not None]))
            for job, swap in jobs:
                seen = None if swap is None else next(answers)
                try:
                    delay = job.run(seen)
                except Exception:
                    logger.exception("%s: a job failed", self._name)
                    continue
                if delay is not None:
                    self.start(delay, job)

    def _next(self) -> list[_Job]:
        """Those that are due; waits for the first."""
        with self._changed:
            while not (due := self._pop()):
                self._changed.wait(self._due[0][0] - monotonic() if self._due else None)
            return due

    def _pop(self) -> list[_Job]:
        now, due = monotonic(), list[_Job]()
        while self._due and self._due[0][0] <= now and len(due) < self._batch:
            due.append(heapq.heappop(self._due)[2])
        return due


class _Renewal(_Job):
    def __init__(self, swap: Swap, lease: Lease, interval: float, lose: Callable[[], None]) -> None:
        self._renewal = Swap(swap.key, swap.new, swap.new, swap.ttl)
        self._lease = lease
        self._lose = lose
        self._sent = 0.0
        self.interval = interval

    def swap(self) -> Swap | None:
        self._sent = monotonic()
        return self._renewal if self._lease.run_left > 0 else None

    def run(self, seen: Swapped | Held | Outage | None) -> float | None:
        if self.is_over:  # and what the run wrote at its end has overtaken this renewal
            return None
        if isinstance(seen, Swapped):
            self._lease.renewed(self._sent)
        elif isinstance(seen, Held):
            self._lease.taken()
        if self._lease.is_lost:
            self._lose()
        is_done = seen is None or isinstance(seen, Held)
        return None if is_done else max(0.0, min(self.interval, self._lease.run_left))


class _Limit(_Job):
    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop

    def run(self, seen: object) -> None:
        if not self.is_over:
            self._stop()


class _Tail(_Job):
    def __init__(self, steps: Steps, step: Step, then: Callable[[], None]) -> None:
        self._steps = steps
        self._step = step
        self._then = then

    def swap(self) -> Swap | None:
        return self._step if isinstance(self._step, Swap) else None

    def run(self, seen: Swapped | Held | Outage | None) -> float | None:
        pause = self._step.seconds if isinstance(self._step, Pause) else 0.0
        try:
            self._step = self._steps.send(seen)
        except StopIteration:
            pass
        except Exception:
            logger.exception("an idempotency record could not be brought up to date")
        else:
            return pause
        self._then()
        return None
