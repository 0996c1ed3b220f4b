"""One thread per interceptor that keeps promises to the store.

It renews the leases of running handlers, and brings flows to their end whose reply has
gone out: the store must come to know even if it is away for now. It has a store
connection of its own, so neither a busy pool nor a blocked event loop stops it.
"""

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from idem_grpc.policy import Rules
from idem_grpc.steps import Outage, Pause, Step, Steps
from idem_grpc.stores.protocol import Store, StoreError, StoreUnavailable
from idem_grpc.swap import Held, Swap, Swapped

logger = logging.getLogger("idem_grpc")

_RENEWALS_PER_LEASE = 3


def attempt(store: Store, swap: Swap) -> Swapped | Held | Outage:
    """Send a swap to a store, and take its failure for what it may be."""
    try:
        return store.swap(swap.key, swap.expected, swap.new, swap.ttl, swap.max_left)
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> Outage:
    """What a flow is told of a swap that raised."""
    if isinstance(error, StoreUnavailable):
        logger.warning("the idempotency store did not answer: %s", error)
        return Outage()
    logger.error("the idempotency store cannot be used", exc_info=error)
    return Outage(misused=isinstance(error, StoreError))


class Keeper:
    """Runs jobs when they are due. A job returns after how many seconds it is due again, or None."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._due: list[tuple[float, int, Callable[[], float | None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def renewing(self, swap: Swap, rules: Rules, lose: Callable[[], None], sent: float) -> Iterator[None]:
        """Renew the record that ``swap`` wrote, three times a lease, until the block ends.

        ``lose`` is called once the record is another's, could not be renewed for a lease, or
        ``max_run`` is over. ``sent`` is the monotonic time at which ``swap`` was sent.
        """
        lease = _Lease(self._store, swap, rules, lose, sent)
        self._schedule(lease.interval, lease)
        try:
            yield
        finally:
            lease.over.set()

    @contextmanager
    def limiting(self, seconds: float, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` if the block takes longer than ``seconds``."""
        is_over = False

        def job() -> None:
            if not is_over:
                stop()

        self._schedule(seconds, job)
        try:
            yield
        finally:
            is_over = True

    def finish(self, steps: Steps, step: Step, then: Callable[[], None]) -> None:
        """Bring a flow to its end that has replied and now asks for ``step``."""
        self._schedule(0, _Tail(self._store, steps, step, then))

    def _schedule(self, delay: float, job: Callable[[], float | None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (monotonic() + delay, next(self._order), job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="idem_grpc keeper", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            job = self._next()
            delay = job()
            if delay is not None:
                self._schedule(delay, job)

    def _next(self) -> Callable[[], float | None]:
        with self._changed:
            while True:
                wait = self._due[0][0] - monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)


@dataclass(slots=True)
class _Lease:
    store: Store
    swap: Swap
    rules: Rules
    lose: Callable[[], None]
    acknowledged: float
    over: threading.Event = field(default_factory=threading.Event)
    interval: float = field(init=False)
    ends: float = field(init=False)

    def __post_init__(self) -> None:
        self.interval = self.rules.lease / _RENEWALS_PER_LEASE
        self.ends = self.acknowledged + self.rules.max_run

    def __call__(self) -> float | None:
        if self.over.is_set():
            return None
        sent = monotonic()
        if sent >= self.ends:
            self.lose()
            return None
        swap = self.swap
        seen = attempt(self.store, Swap(swap.key, swap.new, swap.new, swap.ttl))
        if self.over.is_set():  # and what the run wrote at its end has overtaken this renewal
            return None
        if isinstance(seen, Held):
            self.lose()
            return None
        if isinstance(seen, Swapped):
            self.acknowledged = sent
        elif sent - self.acknowledged >= self.rules.lease:
            self.lose()
        return min(self.interval, self.ends - sent)


@dataclass(slots=True)
class _Tail:
    store: Store
    steps: Steps
    step: Step
    then: Callable[[], None]

    def __call__(self) -> float | None:
        try:
            while True:
                if isinstance(self.step, Pause):
                    pause = self.step.seconds
                    self.step = self.steps.send(None)
                    return pause
                assert isinstance(self.step, Swap), self.step
                self.step = self.steps.send(attempt(self.store, self.step))
        except StopIteration:
            pass
        except Exception:
            logger.exception("an idempotency record could not be brought up to date")
        self.then()
        return None
