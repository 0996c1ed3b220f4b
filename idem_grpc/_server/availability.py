"""What a process has seen of its store: whether it answers, and since when it does again."""

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from math import inf

from idem_grpc._core.clock import elapsed
from idem_grpc._core.steps import Outage
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import AsyncStore, Store, StoreError, StoreUnavailable

logger = logging.getLogger("idem_grpc")

SLOW = 0.1
"""A swap that fails after more seconds than this has kept its caller waiting: others need not wait too."""

LONGEST_PROBE = 10.0
"""Seconds after which a probe that reports nothing no longer keeps others from looking."""

ONE_OUTAGE = 60.0
"""Seconds within which failures are counted together in the log."""

SETTLING = 0.5
"""The part of a lease for which nobody is taken for dead after an outage. Owners renew as soon as they
reach the store again, and look for it more often than that."""

SHORT = 1 / 3
"""The part of a lease that an outage lasts at least, from the last write to the next answer, for that: an
owner who renewed three times a lease before has as much left, and more."""


class Availability:
    """Shared by the calls of one interceptor and the threads of its keeper.

    A circuit breaker: while the store keeps callers waiting in vain, one call at a time finds out
    whether it answers again, and the others are refused at once. It stays closed for a store that
    fails quickly, or that answers with an error.
    """

    def __init__(self) -> None:
        self.on_return: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._is_away = False
        self._is_open = False
        self._probe = -inf
        self._away_since = 0.0
        self._wrote = self._wrote_before = -inf
        # For how long nothing was written, and when it was again.
        self._outages: list[tuple[float, float]] = []
        self._failures = 0
        self._failed_at = -inf
        self._is_logged = False
        self._mistakes = 0

    def admits(self) -> float | None:
        """When a swap begins that may be sent now; None if it may not be.

        A caller that is admitted reports what came of it. While the breaker is open, that is the one
        who finds out.
        """
        now = elapsed()
        return None if self._is_open and self._is_probed(now) else now

    def _is_probed(self, now: float) -> bool:
        """Whether another finds out. If none does, it is this caller who does, from ``now`` on."""
        with self._lock:
            if now < self._probe + LONGEST_PROBE:
                return True
            self._probe = now
        return False

    def cancelled(self, began: float) -> None:
        """The caller whose swap began then has left: what came of it is not known."""
        with self._lock:
            self._reported(began)

    def _reported(self, began: float) -> None:
        """Let another find out, if it was this one who did: not after those who had begun before."""
        if began == self._probe:
            self._probe = -inf

    def answered(self, began: float, *seen: Swapped | Held) -> None:
        """The store did what it was asked by swaps that began then."""
        if any(isinstance(each, Swapped) for each in seen):
            self._wrote = began
        if self._is_away:
            self._returned()

    def _returned(self) -> None:
        with self._lock:
            was_away = self._is_away
            self._is_away = self._is_open = False
            self._probe = -inf
            back = elapsed()
            length = back - self._wrote_before
            longer = [each for each in self._outages if each[0] > length and _holds_any(*each, back)]
            self._outages = [*longer, (length, back)]
            is_logged, self._is_logged = self._is_logged, False
        if was_away:  # and no other thread was first
            if is_logged:
                seconds = back - self._away_since
                logger.warning("the idempotency store answers again, after %.1f s", seconds)
            for resume in self.on_return:
                resume()

    def failed(self, error: BaseException, began: float) -> Outage:
        """The swap that began then raised. Returns what a flow makes of that."""
        seconds = elapsed() - began
        if isinstance(error, StoreError) and not isinstance(error, StoreUnavailable):
            self._mistakes += 1
            if is_worth_a_line(self._mistakes):
                logger.error(
                    "the idempotency store cannot be used (%d times by now)", self._mistakes, exc_info=error
                )
            with self._lock:
                self._is_open = False  # that was an answer, though a useless one
                self._reported(began)
            return Outage(misused=True)
        silent = not (isinstance(error, StoreUnavailable) and error.answered)
        with self._lock:
            if not self._is_away:
                self._is_away, self._away_since, self._wrote_before = True, elapsed(), self._wrote
            # A store may do one thing and refuse another, in turn: then it is the same outage.
            self._failures = self._failures + 1 if elapsed() - self._failed_at < ONE_OUTAGE else 1
            self._failed_at = elapsed()
            failures = self._failures
            self._is_logged |= is_worth_a_line(failures)
            if silent and seconds > SLOW:
                self._is_open = True
            self._reported(began)
        if is_worth_a_line(failures):
            trace = None if isinstance(error, StoreError) else error  # which no store should raise
            logger.warning(
                "the idempotency store did not answer (%d times by now): %s", failures, error, exc_info=trace
            )
        return Outage()

    def hold(self, lease: float) -> float:
        """Seconds for which no run with a lease of ``lease`` seconds may be taken for dead.

        After an outage that this process saw, owners first get the time to renew. One that was so short
        that it kept no owner from renewing in time holds nobody: with many calls, some swap always fails.
        """
        if self._is_away:
            return lease * SETTLING
        ends = (back + lease * SETTLING for length, back in self._outages if length >= lease * SHORT)
        return max(0.0, max(ends, default=0.0) - elapsed())

    def attempt(
        self, store: Store, swap: Swap, began: float, *, insists: bool = False
    ) -> Swapped | Held | Outage:
        """Send a swap now, at ``began``, unless the store is known to keep its callers waiting.

        One that ``insists`` is sent all the same.
        """
        if self._is_open and not insists and self._is_probed(began):
            return NOT_SENT
        try:
            seen = store.swap(swap)
        except Exception as error:
            return self.failed(error, began)
        if isinstance(seen, Swapped):
            self._wrote = began
        if self._is_away:
            self._returned()
        return seen

    async def attempt_async(self, store: AsyncStore, swap: Swap, began: float) -> Swapped | Held | Outage:
        """As ``attempt``, for asyncio. Raises what its caller's task is cancelled by."""
        if self._is_open and self._is_probed(began):
            return NOT_SENT
        try:
            seen = await store.swap(swap)
        except Exception as error:
            return self.failed(error, began)
        except BaseException:
            self.cancelled(began)
            raise
        if isinstance(seen, Swapped):
            self._wrote = began
        if self._is_away:
            self._returned()
        return seen

    def ask(self, work: Callable[[], Sequence[Swapped | Held]]) -> Sequence[Swapped | Held] | Outage:
        """Do any other work with the store, likewise. Returns its answers."""
        began = self.admits()
        if began is None:
            return NOT_SENT
        try:
            seen = work()
        except Exception as error:
            return self.failed(error, began)
        self.answered(began, *seen)
        return seen

    async def ask_async(
        self, work: Callable[[], Awaitable[Sequence[Swapped | Held]]]
    ) -> Sequence[Swapped | Held] | Outage:
        """The same for asyncio."""
        began = self.admits()
        if began is None:
            return NOT_SENT
        try:
            seen = await work()
        except Exception as error:
            return self.failed(error, began)
        except BaseException:
            self.cancelled(began)
            raise
        self.answered(began, *seen)
        return seen


NOT_SENT = Outage(sent=False)


def _holds_any(length: float, back: float, now: float) -> bool:
    """Whether an outage still holds back those who would take over the longest lease that it concerns."""
    return now - back < length / SHORT * SETTLING


def is_worth_a_line(count: int) -> bool:
    """Whether the ``count``-th failure is logged: the first, and then ever fewer."""
    return count & (count - 1) == 0
