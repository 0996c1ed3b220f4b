"""The availability of the store as this process has seen it: a circuit breaker and recent outages."""

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
"""Seconds. A failure that took longer opens the circuit breaker, so that other calls do not wait too."""

LONGEST_PROBE = 10.0
"""Seconds after which another probe is sent, although the last one has not reported its result."""

ONE_OUTAGE = 60.0
"""Seconds. Failures that are closer together count as one outage in the log."""

SETTLING = 0.5
"""Fraction of a lease for which no takeover happens after an outage.

Owners probe the store more often than that, and renew as soon as they reach it."""

SHORT = 1 / 3
"""Fraction of a lease that an outage must last, from the last write to the next answer, to delay takeovers.

In a shorter outage no lease runs out: owners renew three times a lease, so more than that is left."""


class Availability:
    """A circuit breaker, shared by the calls of one interceptor and the threads of its keeper.

    While the store times out, one call at a time probes it, and the others are refused at once. The
    breaker stays closed for a store that fails quickly or answers with an error.
    """

    def __init__(self) -> None:
        self.on_return: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._is_away = False
        self._is_open = False
        self._probe = -inf
        self._away_since = 0.0
        self._wrote = self._wrote_before = -inf
        # (how long nothing was written, when the store answered again)
        self._outages: list[tuple[float, float]] = []
        self._failures = 0
        self._failed_at = -inf
        self._is_logged = False
        self._mistakes = 0

    def admits(self) -> float | None:
        """Return the current time if a swap may be sent now; None if it may not.

        A caller that is admitted must report the result. While the breaker is open, its swap is the
        probe.
        """
        now = elapsed()
        return None if self._is_open and self._is_probed(now) else now

    def _is_probed(self, now: float) -> bool:
        """Return whether a probe is under way. If none is, this caller sends the next one."""
        with self._lock:
            if now < self._probe + LONGEST_PROBE:
                return True
            self._probe = now
        return False

    def cancelled(self, began: float) -> None:
        """Note that a swap sent at ``began`` was cancelled: its result is unknown."""
        with self._lock:
            self._reported(began)

    def _reported(self, began: float) -> None:
        """Allow the next probe, if the swap sent at ``began`` was the last one."""
        if began == self._probe:
            self._probe = -inf

    def answered(self, began: float, *seen: Swapped | Held) -> None:
        """Note that the store answered swaps sent at ``began``."""
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
        if was_away:  # else another thread was first
            if is_logged:
                seconds = back - self._away_since
                logger.warning("the idempotency store answers again, after %.1f s", seconds)
            for resume in self.on_return:
                resume()

    def failed(self, error: BaseException, began: float) -> Outage:
        """Note that a swap sent at ``began`` raised ``error``. Returns the event for the flow."""
        seconds = elapsed() - began
        if isinstance(error, StoreError) and not isinstance(error, StoreUnavailable):
            self._mistakes += 1
            if should_log(self._mistakes):
                logger.error(
                    "the idempotency store rejected a request (%d times by now)",
                    self._mistakes,
                    exc_info=error,
                )
            with self._lock:
                self._is_open = False  # the store did answer
                self._reported(began)
            return Outage(misused=True)
        silent = not (isinstance(error, StoreUnavailable) and error.answered)
        with self._lock:
            if not self._is_away:
                self._is_away, self._away_since, self._wrote_before = True, elapsed(), self._wrote
            # A store may accept some requests and fail others in turn: that is one outage.
            self._failures = self._failures + 1 if elapsed() - self._failed_at < ONE_OUTAGE else 1
            self._failed_at = elapsed()
            failures = self._failures
            self._is_logged |= should_log(failures)
            if silent and seconds > SLOW:
                self._is_open = True
            self._reported(began)
        if should_log(failures):
            trace = None if isinstance(error, StoreError) else error  # a bug of the store
            logger.warning(
                "the idempotency store did not answer (%d times by now): %s", failures, error, exc_info=trace
            )
        return Outage()

    def takeover_delay(self, lease: float) -> float:
        """Return for how many seconds no run with a lease of ``lease`` seconds may be taken over.

        After an outage seen by this process, owners first get time to renew. Outages too short to make a
        lease run out are ignored: with many calls, some swap always fails.
        """
        if self._is_away:
            return lease * SETTLING
        ends = (back + lease * SETTLING for length, back in self._outages if length >= lease * SHORT)
        return max(0.0, max(ends, default=0.0) - elapsed())

    def attempt(
        self, store: Store, swap: Swap, began: float, *, bypass_breaker: bool = False
    ) -> Swapped | Held | Outage:
        """Send a swap at ``began``, the current time, unless the breaker is open.

        With ``bypass_breaker``, it is sent even then.
        """
        if self._is_open and not bypass_breaker and self._is_probed(began):
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
        """Send a swap as ``attempt`` does, for asyncio. Raises CancelledError if the task is cancelled."""
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
        """Do other work with the store, if the breaker is closed. Returns its answers, or Outage."""
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
        """Do other work with the store as ``ask`` does, for asyncio."""
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
    """Whether an outage can still delay a takeover: that of the longest lease that it affects."""
    return now - back < length / SHORT * SETTLING


def should_log(count: int) -> bool:
    """Whether to log the ``count``-th failure: only powers of two, so that logs do not flood."""
    return count & (count - 1) == 0
