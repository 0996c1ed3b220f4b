"""The state machine of a client's call: when it is sent, and what its caller gets. Does no I/O.

A driver reports events to the engine and carries out the action that each one returns:

| event | when | actions |
| --- | --- | --- |
| ``begin`` | once, at first | Send |
| ``ended`` | an attempt is over | Backoff, Renew, Finish |
| ``delivered`` | a response of a stream arrived | Delivery, Finish |
| ``timer`` | the time of a Backoff is over | Send |
| ``renewed``, ``not_renewed`` | a Renew got another key, or failed | Send, Finish |
| ``not_sent`` | a Send failed on this side | Finish |
| ``cancelled`` | the caller cancelled the call | Finish |

An event that comes too late returns None: one of an earlier attempt, or any after Finish. So no call is sent
while an attempt is under way, and each call has exactly one Finish. An engine is not thread-safe; its driver
reports one event at a time.

The retry rules are those of gRPC's proposal A6, with these differences: there is no cap of five attempts,
IN_PROGRESS and OUTCOME_PENDING cost neither an attempt nor budget, and an attempt can have its own deadline.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any

from idem_grpc._client.answers import Failure, run_in
from idem_grpc._client.retry import Bucket, Retry
from idem_grpc._core.checks import codes_of
from idem_grpc._core.durations import in_seconds
from idem_grpc._core.execution import DerivedCall
from idem_grpc._core.keys import SingleUse
from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import Reason

NO_TOKEN = "it was not sent again, since no new token could be had: "
TOO_LARGE = "it was not sent again, since its request stream is larger than Retry(max_request_bytes=…)"
NO_RUN = "it was not sent again, since the answer that was begun does not tell which run it is of"
ANOTHER_RUN = "its stream could not be resumed, since the new answer is not of the same run"
COULD_NOT_SEND = "the last of them could not be sent: "

_NOTHING_RAN = (Reason.STORE_UNAVAILABLE, Reason.OVERLOADED)
_FREE = (Reason.IN_PROGRESS, Reason.OUTCOME_PENDING)
"""The answer is on its way, so the refusal costs neither an attempt nor budget."""


@dataclass(slots=True)
class Send:
    """Make attempt number ``attempt``, with a deadline in ``timeout`` seconds, if any."""

    attempt: int
    timeout: float | None


@dataclass(slots=True)
class Backoff:
    """Wait before the next attempt."""

    seconds: float


@dataclass(slots=True)
class Renew:
    """Get another key, within ``timeout`` seconds, if any."""

    timeout: float | None


class Delivery(Enum):
    """What to do with a response of a stream: give it to the caller, who may have it already."""

    HAND_OVER = "hand over"
    SKIP = "skip"


class Finish(Enum):
    """How the call ends.

    AS_ENDED: as the latest attempt that was made. AS_INTERRUPTED: as the attempt from which the last response
    was handed over, since its stream cannot be resumed; the one under way is to be cancelled.
    CANCELLED: by its caller.
    """

    AS_ENDED = "as ended"
    AS_INTERRUPTED = "as interrupted"
    CANCELLED = "cancelled"


Action = Send | Backoff | Renew | Delivery | Finish


class _Phase(Enum):
    SENT = "an attempt is under way"
    WAITING = "the next attempt is due later"
    RENEWING = "the next attempt needs another key"
    OVER = "the call is over"


class Engine:
    """One logical call.

    timeout: the call's own, in seconds.
    may_retry: whether it has a key or is marked idempotent. Other calls only count in the budget.
    source: where ``key`` came from, if it is for a single use. The key may be replaced once, if the server
        does not know it and no attempt with it can have been run.
    derived: ends with the call.
    """

    def __init__(
        self,
        retry: Retry,
        bucket: Bucket,
        *,
        timeout: float | None,
        may_retry: bool,
        source: SingleUse | None = None,
        key: str | None = None,
        derived: DerivedCall | None = None,
        clock: Callable[[], float] = monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retry = retry
        self._bucket = bucket
        self._clock = clock
        self._uniform = uniform
        self._ends = None if timeout is None else clock() + timeout
        self._attempt_timeout: float | None = None
        if may_retry and retry.attempt_timeout is not None:
            self._attempt_timeout = in_seconds(retry.attempt_timeout)
        self._may_retry = may_retry
        self._may_renew = source is not None
        self._source = source
        self._key = key
        self._derived = derived
        self._phase = _Phase.WAITING
        self._is_cut_short = False  # the deadline of this attempt comes before that of the call
        self._counted = self._in_a_row = 0
        self._run = ""
        self._seen = self._handed_over = 0  # responses, of this attempt and of the call
        self._notes: list[str] = []
        self.attempts = 0
        """How many attempts were made."""
        self.handed_from = 0
        """The attempt from which a response was last handed over."""

    @property
    def is_over(self) -> bool:
        return self._phase is _Phase.OVER

    @property
    def is_sent(self) -> bool:
        """Whether an attempt is under way."""
        return self._phase is _Phase.SENT

    @property
    def is_behind(self) -> bool:
        """Whether the attempt under way has yet to repeat responses that were handed over before."""
        return self._phase is _Phase.SENT and self._seen < self._handed_over

    def begin(self) -> Send:
        return self._send()

    def ended(self, attempt: int, failure: Failure | None, *, is_whole: bool = True) -> Action | None:
        """An attempt is over. ``failure`` is None if it succeeded; ``is_whole`` is False if its requests
        can no longer be sent again."""
        if self._phase is not _Phase.SENT or attempt != self.attempts:
            return None
        if failure is None:
            self._bucket.put_back()
            return self._finish(Finish.AS_ENDED) if self._seen >= self._handed_over else self._lose()
        if self._source is not None and self._key is not None and failure.refuses_token:
            self._source.drop(self._key)
        following = self._following(failure)
        if following is None:
            return self._finish(Finish.AS_ENDED)
        if not is_whole or (self._handed_over and not self._run):
            self._notes.append(NO_RUN if is_whole else TOO_LARGE)
            return self._finish(Finish.AS_ENDED)
        self._phase = _Phase.WAITING if isinstance(following, Backoff) else _Phase.RENEWING
        return following

    def delivered(self, attempt: int, initial_metadata: Iterable[Any] | None) -> Action | None:
        """A response of a stream arrived, in an attempt that began with this initial metadata."""
        if self._phase is not _Phase.SENT or attempt != self.attempts:
            return None
        if not self._seen:
            run = run_in(initial_metadata)
            if self._handed_over and run != self._run:
                return self._lose()
            self._run = run
        self._seen += 1
        if self._seen <= self._handed_over:
            return Delivery.SKIP
        self._handed_over += 1
        self.handed_from = attempt
        return Delivery.HAND_OVER

    def timer(self) -> Action | None:
        """The time of a Backoff is over."""
        return self._send() if self._phase is _Phase.WAITING else None

    def renewed(self, key: str) -> Action | None:
        """The next attempt has another key."""
        if self._phase is not _Phase.RENEWING:
            return None
        self._key = key
        return self._send()

    def not_renewed(self, error: BaseException) -> Action | None:
        """There is no other key."""
        if self._phase is not _Phase.RENEWING:
            return None
        self._notes.append(f"{NO_TOKEN}{error!r}")
        return self._finish(Finish.AS_ENDED)

    def not_sent(self, error: BaseException | None) -> Action | None:
        """An attempt could not be sent: the channel is closed, or another interceptor failed."""
        if self._phase is not _Phase.SENT:
            return None
        self._notes.append(f"{COULD_NOT_SEND}{error!r}")
        return self._finish(Finish.AS_ENDED)

    def cancelled(self) -> Action | None:
        """The caller cancelled the call."""
        return None if self.is_over else self._finish(Finish.CANCELLED)

    def abandon(self) -> None:
        """Let the caller make its next call, although this one is not over yet. Takes no lock."""
        if self._derived is not None:
            self._derived.end()

    def annotate(self, error: BaseException) -> None:
        """Add notes to an error (PEP 678): the number of attempts, if several, and why there are no more."""
        if self.attempts > 1:
            add_note(error, f"{self.attempts} attempts were made")
        for note in self._notes:
            add_note(error, note)

    def _send(self) -> Send:
        left = None if self._ends is None else max(self._ends - self._clock(), 0.0)
        own = self._attempt_timeout
        self._is_cut_short = own is not None and (left is None or own < left)
        self._phase = _Phase.SENT
        self._seen = 0
        self.attempts += 1
        return Send(self.attempts, own if self._is_cut_short else left)

    def _finish(self, how: Finish) -> Finish:
        self._phase = _Phase.OVER
        self.abandon()
        return how

    def _lose(self) -> Finish:
        self._notes.append(ANOTHER_RUN)
        return self._finish(Finish.AS_INTERRUPTED)

    def _following(self, failure: Failure) -> Backoff | Renew | None:
        """What comes before the next attempt; None if there is none."""
        is_renewed = self._may_renew and failure.reason is Reason.TOKEN_UNKNOWN and not failure.of_run
        self._may_renew = self._may_renew and failure.reason in _NOTHING_RAN
        if not (is_renewed or self._is_worth_it(failure)):
            return None
        if failure.reason not in _FREE:
            self._counted += 1
            if not self._bucket.take() or self._counted >= self._retry.max_attempts:
                return None
        if not self._may_retry or (failure.pushback is not None and failure.pushback < 0):
            return None
        if is_renewed:
            left = None if self._ends is None else self._ends - self._clock()
            return Renew(left) if left is None or left > 0 else None
        self._in_a_row += 1
        seconds = max(self._retry.backoff(self._in_a_row, self._uniform), failure.pushback or 0.0)
        if failure.pushback is not None and failure.reason not in _FREE:
            self._in_a_row = 0
        if self._ends is not None and self._clock() + seconds >= self._ends:
            return None
        return Backoff(seconds)

    def _is_worth_it(self, failure: Failure) -> bool:
        if failure.reason is not None:
            return failure.reason.retryable
        if failure.code is Code.DEADLINE_EXCEEDED and self._is_cut_short:
            return True
        if failure.code is Code.RESOURCE_EXHAUSTED and failure.pushback is not None:
            return True
        return failure.code in codes_of("Retry(codes=…)", self._retry.codes)


def add_note(error: BaseException, sentence: str) -> None:
    """Add a note to an error, once."""
    text = f"idem_grpc: {sentence}"
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)
