"""The background threads of an interceptor: one renews leases, one finishes flows that have replied.

The first renews the leases of running handlers. It has its own store connection if the store has
several, so neither a busy pool nor a blocked event loop delays it. The second finishes flows that
replied while the store was away.

While the store is away, each thread probes it with one swap at a time and growing pauses. Once the
store answers, everything that failed meanwhile is sent again.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from math import inf
from typing import Protocol

from idem_grpc._core.clock import elapsed
from idem_grpc._core.due import DueQueue
from idem_grpc._core.execution import PROBES_PER_RENEWAL, RENEWALS_PER_LEASE, Lease
from idem_grpc._core.policy import Rules
from idem_grpc._core.steps import Outage, Pause, Step, Steps
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc._server.availability import Availability, should_log
from idem_grpc.stores._protocol import Store, StoreUnavailable

logger = logging.getLogger("idem_grpc")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
BATCH = 256  # of renewals, in one round trip
MOST_MISTAKES = 10
"""How often the store may reject a swap before a flow gives up: about half a minute in all."""

SCAN_INTERVAL = 1.0
"""Seconds between two scans of the new leases, while there are any."""

MAX_IDLE_SCANS = 10
"""How many scans in a row find no new lease before scanning stops."""

MAX_GIVE_BACKS = 10_000
MAX_OUTCOMES = 1000
MAX_OUTCOME_BYTES = 64 * 1024 * 1024

Seen = Swapped | Held | Outage


class NotStarted(Exception):
    """The handler must not start: another process may be running the call by now, or soon."""


class Keeper:
    """Renews leases and finishes flows in the background, for as long as the process lives."""

    def __init__(self, store: Store, availability: Availability | None = None) -> None:
        # If a store sends the swaps of a batch one by one, each waits for the answer to the last.
        has_batches = type(store).swap_many is not Store.swap_many
        self._availability = availability or Availability()
        self._leases = _Worker("idem_grpc leases", store, self._availability, BATCH if has_batches else 1)
        self._flows = _Worker("idem_grpc flows", store, self._availability, 1)  # records can be large
        self._availability.on_return += [self._leases.probe_soon, self._flows.probe_soon]
        self.keep_renewing = self._leases.keep_renewing
        self.stop_renewing = self._leases.stop_renewing
        self._lock = threading.Lock()
        self.is_full = False
        """Whether too many outcomes wait to be stored for another run to begin."""
        self._give_backs = self._outcomes = self._outcome_bytes = self._dropped = 0

    def call_later(self, seconds: float, stop: Callable[[], object]) -> "Timer":
        """Call ``stop`` after ``seconds`` seconds, unless ``cancel_call`` is called before."""
        timer = Timer(stop)
        self._leases.start(seconds, timer)
        return timer

    def cancel_call(self, timer: "Timer") -> None:
        self._leases.cancel(timer)

    def finish(
        self, steps: Steps, step: Step, then: Callable[[], None], lease: Lease | None, rules: Rules
    ) -> None:
        """Finish a flow that has replied and whose next step is ``step``; then call ``then``.

        ``lease`` is that of its run, and is renewed until the flow has ended. None if nothing was run: the
        flow then gives a claim back. An outcome that is not stored within the retention is dropped.

        At most MAX_GIVE_BACKS claims wait to be given back; further claims end when their leases run out.
        Outcomes of protected runs are never dropped for lack of room: while ``is_full``, no further run
        may begin.
        """
        if lease is None:
            is_dropped = self._give_backs >= MAX_GIVE_BACKS
        else:
            is_dropped = self.is_full and not lease.acknowledged
        if is_dropped:
            self._dropped += 1
            if should_log(self._dropped):
                logger.error(
                    "too much waits for the store, which is away: %d claims and unprotected outcomes are"
                    " given up by now; the claims end with their leases",
                    self._dropped,
                )
            steps.close()
            then()
            return
        is_run, size = lease is not None, 0 if lease is None else lease.outcome_bytes
        self._count(is_run, 1, size)
        renewed: Lease | None = None
        if lease is not None and lease.acknowledged:
            renewed = copy(lease)  # the run's own lease has ended with the run
            renewed.is_over = False
            self._leases.start(0, renewed)

        def end() -> None:
            self._count(is_run, -1, size)
            if renewed is not None:
                self._leases.cancel(renewed)
            then()

        pause = step.seconds if isinstance(step, Pause) else 0.0
        self._flows.start(pause, _FlowCompletion(steps, step, end, rules))

    def _count(self, is_run: bool, number: int, size: int) -> None:
        with self._lock:
            if is_run:
                self._outcomes += number
                self._outcome_bytes += number * size
                self.is_full = self._outcomes >= MAX_OUTCOMES or self._outcome_bytes >= MAX_OUTCOME_BYTES
            else:
                self._give_backs += number


class Job(Protocol):
    """A task that a worker runs when it is due, until it is over."""

    is_over: bool

    @property
    def interval(self) -> float:
        """The longest pause between two probes of the store while it is away, in seconds."""

    def swap(self) -> Swap | None:
        """Return the swap to send before ``run``, if any."""

    def end(self) -> None:
        """Mark the job as over. It may stay in the heap for a while."""

    def run(self, seen: Seen | None, /) -> float | None:
        """Run the job with the store's answer. Returns the seconds until it is due again, or None."""

    def stalled(self) -> None:
        """Note that the store is away, so that the job was not run."""


class _Worker:
    """A thread that runs jobs when they are due. Started by the first job.

    The swaps of up to ``batch`` jobs that are due at the same time are sent together.
    """

    def __init__(self, name: str, store: Store, availability: Availability, batch: int) -> None:
        self._name = name
        self._store = store
        self._availability = availability
        self._batch = batch
        self._due = DueQueue[Job](lambda _, job: job.is_over)
        self._new_leases: set[Lease] = set()
        self._next_scan_at = inf
        self._has_new_leases = False
        self._idle_scans = 0
        self._stalled: deque[Job] = deque()  # wait until the store answers again
        self._pause = FIRST_PAUSE
        self._failed_at = self._probe_at = 0.0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def keep_renewing(self, lease: Lease) -> None:
        """Renew a lease once it is due. Most runs end before, and do not wake the thread."""
        self._new_leases.add(lease)
        self._has_new_leases = True
        if lease.due < self._next_scan_at:
            with self._changed:
                self._run_thread()
                self._changed.notify()

    def stop_renewing(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        if lease in self._new_leases:
            self._new_leases.discard(lease)
            lease.end()
        else:
            self.cancel(lease)

    def _run_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # not alive: this process was forked
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def _schedule_new_leases(self, now: float) -> None:
        """Move new leases that are due before the next scan to the heap."""
        if not self._has_new_leases:
            self._idle_scans += 1
        else:
            self._has_new_leases, self._idle_scans = False, 0
        self._next_scan_at = inf if self._idle_scans > MAX_IDLE_SCANS else now + SCAN_INTERVAL
        for lease in tuple(self._new_leases):  # copied after _next_scan_at is set, so that no lease is missed
            self._next_scan_at = min(self._next_scan_at, now + SCAN_INTERVAL)
            if lease.due < self._next_scan_at:
                self._new_leases.discard(lease)
                self._due.push(lease.due, lease)

    def start(self, delay: float, job: Job) -> None:
        """Run a job after ``delay`` seconds."""
        with self._changed:
            self._run_thread()
            due = elapsed() + delay
            self._due.push(due, job)
            if due <= self._due.next_due:
                self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a job."""
        with self._changed:
            job.end()
            self._due.note_stale()

    def probe_soon(self) -> None:
        """Probe the store soon, since another thread has seen it answer."""
        if self._stalled:
            with self._changed:
                self._probe_at = min(self._probe_at, self._failed_at + FIRST_PAUSE)
                self._changed.notify()

    def _work(self) -> None:
        while True:
            jobs, is_probe = self._next()
            asking = []
            for job in jobs:
                if job.is_over:
                    continue
                swap = job.swap()
                if swap is None:
                    self._run(job, None)
                elif self._stalled and not is_probe:
                    self._stall(job)
                else:
                    asking.append((job, swap))
            if not asking:
                continue
            answers = attempt_all(self._store, [swap for _, swap in asking], self._availability)
            is_away = any(isinstance(seen, Outage) and not seen.misused for seen in answers)
            for (job, _), seen in zip(asking, answers, strict=True):
                if isinstance(seen, Outage) and not seen.misused:
                    self._stall(job)
                else:
                    self._run(job, seen)
            if is_away:
                self._probe_later()
            elif self._stalled:
                self._resume()

    def _run(self, job: Job, seen: Seen | None) -> None:
        try:
            delay = job.run(seen)
        except Exception:
            logger.exception("%s: a job failed", self._name)
            return
        if delay is not None:
            self.start(delay, job)

    def _stall(self, job: Job) -> None:
        with self._changed:
            self._stalled.append(job)

    def _probe_later(self) -> None:
        """Schedule the next probe of the store, which is away, and notify the stalled jobs."""
        with self._changed:
            waiting = [job for job in self._stalled if not job.is_over]
        for job in waiting:
            try:
                job.stalled()
            except Exception:
                logger.exception("%s: a job failed", self._name)
        with self._changed:
            self._stalled = deque(job for job in self._stalled if not job.is_over)
            shortest = min((job.interval for job in self._stalled), default=inf)
            self._failed_at = elapsed()
            self._probe_at = self._failed_at + min(self._pause, shortest)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _resume(self) -> None:
        """Make all stalled jobs due, since the store answers again."""
        with self._changed:
            now = elapsed()
            for job in self._stalled:
                self._due.push(now, job)
            self._stalled.clear()
            self._pause = FIRST_PAUSE

    def _next(self) -> tuple[list[Job], bool]:
        """Wait for jobs that are due. Returns them, or one job as a probe of the store with True."""
        with self._changed:
            while True:
                now = elapsed()
                if self._next_scan_at <= now or self._has_new_leases:
                    self._schedule_new_leases(now)
                if due := self._pop(now):
                    return due, False
                if self._stalled and self._probe_at <= now:
                    return [self._stalled.popleft()], True
                next_at = min(self._next_scan_at, self._due.next_due)
                if self._stalled:
                    next_at = min(next_at, self._probe_at)
                self._changed.wait(None if next_at == inf else next_at - now)

    def _pop(self, now: float) -> list[Job]:
        due = list[Job]()
        while len(due) < self._batch and (job := self._due.pop(now)) is not None:
            due.append(job)
        return due


def attempt_all(store: Store, swaps: Sequence[Swap], availability: Availability) -> list[Seen]:
    """Send swaps in one batch. If the batch fails, they are sent again one by one."""
    began = elapsed()
    if len(swaps) > 1:
        try:
            seen = store.swap_many(swaps)
            answers = [each for _, each in zip(swaps, seen, strict=True)]
        except StoreUnavailable as error:
            return [availability.failed(error, began)] * len(swaps)
        except Exception:
            logger.warning("a batch of swaps failed; they are sent again one by one", exc_info=True)
        else:
            availability.answered(began, *answers)
            return list[Seen](answers)
    # Bypass the breaker: the keeper's threads probe the store with one swap at a time anyway.
    return [availability.attempt(store, swap, elapsed(), bypass_breaker=True) for swap in swaps]


class Timer:
    """A job that calls ``stop`` once it is due."""

    interval = inf

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop: Callable[[], object] | None = stop
        self.is_over = False

    def end(self) -> None:
        self.is_over, self._stop = True, None

    def swap(self) -> None:
        return None

    def run(self, seen: object) -> None:
        if (stop := self._stop) is not None:
            stop()

    def stalled(self) -> None:
        raise AssertionError("a job without a swap cannot stall")


class _FlowCompletion:
    """A job that finishes a flow that has replied."""

    def __init__(self, steps: Steps, step: Step, then: Callable[[], None], rules: Rules) -> None:
        self._steps = steps
        self._step = step
        self._then = then
        self._ends = elapsed() + rules.retention
        self.interval = rules.lease / (RENEWALS_PER_LEASE * PROBES_PER_RENEWAL)  # before a takeover
        self._mistakes = 0
        self.is_over = False

    def end(self) -> None:
        self.is_over = True

    def swap(self) -> Swap | None:
        return self._step if isinstance(self._step, Swap) else None

    def run(self, seen: Seen | None) -> float | None:
        if isinstance(seen, Outage):  # rejected, e.g. because the password is being changed
            self._mistakes += 1
            if self._mistakes < MOST_MISTAKES:
                return min(FIRST_PAUSE * (1 << self._mistakes), LONGEST_PAUSE)
            logger.error("an idempotency record is given up: the store rejected it %d times", MOST_MISTAKES)
        try:
            self._step = self._steps.send(seen)
        except StopIteration:
            pass
        except Exception:
            logger.exception("an idempotency record could not be updated")
        else:
            return self._step.seconds if isinstance(self._step, Pause) else 0.0
        self._then()
        return None

    def stalled(self) -> None:
        if elapsed() >= self._ends:
            logger.error("an outcome is given up: the store was away for longer than the retention")
            self.is_over = True
            self._steps.close()
            self._then()
