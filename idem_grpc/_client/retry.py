"""The retry settings of a client, and the budget of a channel, after gRPC's retry design (proposal A6)."""

import math
import random
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from idem_grpc._core.checks import StatusCode, codes_of, number, seconds_of, whole_number
from idem_grpc._core.durations import Duration, in_seconds
from idem_grpc._core.outcome import Code

JITTER = (0.8, 1.2)
"""Each backoff is multiplied by a random number between these, as in A6."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit on the retries of a channel: the token bucket of A6, shared by its calls.

    Every attempt that fails with a code to retry takes a token, and every call that
    succeeds puts back ``ratio`` of one, also those that are never sent again; there is no
    retry while no more than half of ``max_tokens`` are left. The defaults let a channel
    make 50 retries in a row, and in the long run one for each ten calls that succeed.
    """

    max_tokens: float = 100
    ratio: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_tokens", "ratio"):
            number("Budget", name, getattr(self, name))
        if not (self.max_tokens > 0 and self.ratio > 0):
            raise ValueError(f"{self}: both must be positive; Retry(budget=None) sets no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How calls are sent again that have a key or are marked idempotent.

    max_attempts: how often a call is sent at most; default 10. Attempts that are refused with
        IN_PROGRESS or OUTCOME_PENDING do not count.
    initial_backoff, max_backoff, multiplier: the nth retry is made after
        initial_backoff x multiplier^(n-1), at most max_backoff, ±20 %;
        default 100 ms, 5 s and 2. A longer pushback of the server is used instead, and resets n.
    codes: the status codes after which a call is sent again; default UNAVAILABLE only.
        RESOURCE_EXHAUSTED is always one if the server sends a pushback.
    attempt_timeout: the deadline of a single attempt, as the server sees it, so that a lost reply
        is noticed early; None (the default) for the call's own. Not used for calls without a key
        that are not marked idempotent.
    budget: limits the retries of the channel; None for no limit.
    max_request_bytes: a request stream is kept up to this size to be sent again; a call
        whose stream is larger is not retried. Default 1 MiB.

    Durations are timedeltas or seconds. The call's own deadline always wins. Raises
    ValueError or TypeError for settings that make no sense.
    """

    max_attempts: int = 10
    initial_backoff: Duration = 0.1
    max_backoff: Duration = 5.0
    multiplier: float = 2.0
    codes: Collection[StatusCode | str] = (Code.UNAVAILABLE,)
    attempt_timeout: Duration | None = None
    budget: Budget | None = field(default_factory=Budget)
    max_request_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        whole_number("Retry", "max_attempts", self.max_attempts, smallest=1)
        whole_number("Retry", "max_request_bytes", self.max_request_bytes, smallest=0)
        initial, longest = (
            seconds_of("Retry", name, getattr(self, name)) for name in ("initial_backoff", "max_backoff")
        )
        if initial > longest:
            raise ValueError(
                f"Retry(initial_backoff={self.initial_backoff!r}, max_backoff={self.max_backoff!r}):"
                " the first must not be above the second"
            )
        number("Retry", "multiplier", self.multiplier)
        if not self.multiplier >= 1:
            raise ValueError(f"Retry(multiplier={self.multiplier}): give 1 or more")
        if self.attempt_timeout is not None:
            seconds_of("Retry", "attempt_timeout", self.attempt_timeout)
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise TypeError(f"Retry(budget={self.budget!r}): give a Budget, or None for no limit")
        codes_of("Retry(codes=…)", self.codes)

    def backoff(self, retry: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Return the seconds to wait before the nth retry in a row, counted from 1."""
        try:
            factor = float(self.multiplier) ** (retry - 1)
        except OverflowError:
            factor = math.inf
        longest = in_seconds(self.max_backoff)
        return min(in_seconds(self.initial_backoff) * factor, longest) * uniform(*JITTER)


class Bucket:
    """The token bucket of a channel: what is left of its budget. Thread-safe."""

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget
        self._left = budget.max_tokens if budget is not None else 0.0
        self._lock = threading.Lock()

    def put_back(self) -> None:
        """Count a call that succeeded."""
        if self._budget is not None:
            with self._lock:
                self._left = min(self._left + self._budget.ratio, self._budget.max_tokens)

    def take(self) -> bool:
        """Count an attempt that failed. Returns whether another one may be made."""
        if self._budget is None:
            return True
        with self._lock:
            self._left = max(self._left - 1, 0.0)
            return self._left > self._budget.max_tokens / 2
