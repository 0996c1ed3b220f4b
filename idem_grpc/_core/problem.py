"""Reasons for which calls are refused, and the form of a refusal on the wire.

Every refusal is a google.rpc.Status with an ErrorInfo in the domain "idem_grpc". It allows clients in
any language to distinguish a refusal from a failure of the service itself.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from idem_grpc._core.outcome import Code, Metadata, Outcome

DOMAIN = "idem_grpc"
STATUS_DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"


class Reason(StrEnum):
    """Why a call was refused: the ``reason`` of the ErrorInfo in the refusal."""

    KEY_REQUIRED = "KEY_REQUIRED"
    KEY_INVALID = "KEY_INVALID"
    KEY_REUSED = "KEY_REUSED"
    SCOPE_UNKNOWN = "SCOPE_UNKNOWN"
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN"
    TOKEN_MISMATCH = "TOKEN_MISMATCH"
    IN_PROGRESS = "IN_PROGRESS"
    OUTCOME_PENDING = "OUTCOME_PENDING"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    RESPONSE_NOT_KEPT = "RESPONSE_NOT_KEPT"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    OVERLOADED = "OVERLOADED"
    LEASE_LOST = "LEASE_LOST"
    MISCONFIGURED = "MISCONFIGURED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    MASK_INVALID = "MASK_INVALID"

    @property
    def code(self) -> Code:
        """The status code of a refusal for this reason."""
        return _MEANING[self][0]

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code is Code.UNAVAILABLE


_MEANING = {
    Reason.KEY_REQUIRED: (Code.INVALID_ARGUMENT, "this method needs an idempotency-key"),
    Reason.KEY_INVALID: (Code.INVALID_ARGUMENT, "the idempotency-key is not valid"),
    Reason.KEY_REUSED: (Code.INVALID_ARGUMENT, "this idempotency-key was used with another request before"),
    Reason.SCOPE_UNKNOWN: (
        Code.UNAUTHENTICATED,
        "the call does not identify the owner of this idempotency-key",
    ),
    Reason.TOKEN_UNKNOWN: (
        Code.FAILED_PRECONDITION,
        "this token was never issued, has expired or was revoked: this call was not run; get a new token",
    ),
    Reason.TOKEN_MISMATCH: (
        Code.PERMISSION_DENIED,
        "this token was issued for another operation or to another caller",
    ),
    Reason.IN_PROGRESS: (Code.UNAVAILABLE, "a call with this idempotency-key is in progress: send it again"),
    Reason.OUTCOME_PENDING: (
        Code.UNAVAILABLE,
        "the call was run and its outcome is not stored yet: send it again for the answer",
    ),
    Reason.OUTCOME_UNKNOWN: (
        Code.FAILED_PRECONDITION,
        "an attempt with this idempotency-key ended unclear: it is not run again until an operator has"
        " settled it",
    ),
    Reason.RESPONSE_NOT_KEPT: (
        Code.FAILED_PRECONDITION,
        "the call was done before, and its answer was not kept",
    ),
    Reason.STORE_UNAVAILABLE: (
        Code.UNAVAILABLE,
        "the idempotency store cannot be reached: nothing was run; send it again",
    ),
    Reason.OVERLOADED: (
        Code.UNAVAILABLE,
        "too many runs whose callers have left are in progress: nothing was run; send it again",
    ),
    Reason.LEASE_LOST: (
        Code.ABORTED,
        "another run took this call over while its responses were being sent: send it again for the answer",
    ),
    Reason.MISCONFIGURED: (Code.INTERNAL, "this method's idempotency is misconfigured: nothing was run"),
    Reason.ETAG_MISMATCH: (
        Code.ABORTED,
        "the etag is not the current one: read the resource again, and update that",
    ),
    Reason.MASK_INVALID: (Code.INVALID_ARGUMENT, "the field mask is not valid"),
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of when a refused call is worth sending again, in seconds.

    time_left: the time until the caller's deadline.
    elapsed: how long the run in progress has lasted, as far as this process knows.
    lease, wait, max_run: as in the policy.
    """

    time_left: float = math.inf
    elapsed: float = 0.0
    lease: float = 0.0
    wait: float = 0.0
    max_run: float = math.inf


NOTHING_KNOWN = Outlook()


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal: its reason, and optionally a message that replaces the reason's own.

    ``is_free``: no run is in progress any more, and the call may be run if it is sent again.
    """

    reason: Reason
    message: str = ""
    is_free: bool = False

    def outcome(
        self,
        previous_attempts: int = 0,
        uniform: Callable[[float, float], float] = random.uniform,
        outlook: Outlook = NOTHING_KNOWN,
    ) -> Outcome:
        """Return the refusal as an outcome. ``previous_attempts`` is the client's own count of them."""
        code, usual = _MEANING[self.reason]
        delay = pushback_ms(previous_attempts, uniform, outlook) if self.reason.retryable else None
        return status_outcome(code, self.message or usual, delay, self.reason)


def status_outcome(
    code: Code, message: str, delay_ms: int | None = None, reason: Reason | None = None
) -> Outcome:
    """Return a failure as a google.rpc.Status. ``delay_ms``: milliseconds to wait before a retry, if any."""
    status = status_pb2.Status(code=code, message=message)
    trailing: Metadata = ()
    if reason is not None:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if delay_ms is not None:
        retry_delay = duration_pb2.Duration()
        retry_delay.FromMilliseconds(delay_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=retry_delay))
        trailing = ((PUSHBACK, str(delay_ms)),)
    return Outcome(code, message, trailing_metadata=(*trailing, (STATUS_DETAILS, status.SerializeToString())))


_FIRST_WAIT = 0.25
_SHORTEST_WAIT = 0.01
_GROWTH = 5
_MOST_PREVIOUS = 3
"""Previous attempts of a client that has one attempt left: gRPC's own retries (A6) make at most five."""


def pushback_ms(
    previous_attempts: int,
    uniform: Callable[[float, float], float] = random.uniform,
    outlook: Outlook = NOTHING_KNOWN,
) -> int:
    """Return how many milliseconds a client must wait before it sends the call again.

    The wait is 250 ms, five times longer with each previous attempt, plus or minus a fifth. This jitter is
    that of A6, and keeps duplicates apart.

    The longer a run has lasted, the longer it may still last: from the second attempt on, the wait is at
    least half of that time. The last wait must cover all that the client may have to wait for: four times
    the time that the run has lasted, a takeover after a whole lease, and the wait of a duplicate on the
    server. No wait goes beyond the end that ``max_run`` sets to a run, or beyond the caller's deadline.
    """
    wait: float = _FIRST_WAIT * _GROWTH ** min(previous_attempts, _MOST_PREVIOUS)
    if previous_attempts >= _MOST_PREVIOUS:
        # Jitter takes up to a fifth off, and must not make these too short.
        wait = max(wait, 4 * outlook.elapsed, 1.25 * outlook.lease, 1.25 * outlook.wait)
    elif previous_attempts:
        wait = max(wait, outlook.elapsed / 2)
    wait = max(min(wait, outlook.max_run + outlook.lease - outlook.elapsed), _FIRST_WAIT)
    wait = max(min(wait, 0.75 * outlook.time_left), _SHORTEST_WAIT)
    jittered: float = wait * uniform(0.8, 1.2)
    return round(1000 * jittered)


def reason_in(status_details: bytes) -> Reason | None:
    """Return the reason in a serialized google.rpc.Status; None if it is not a refusal by this library."""
    info = _error_info(status_details)
    return Reason(info.reason) if info is not None and info.reason in Reason.__members__ else None


def is_refusal(outcome: Outcome) -> bool:
    """Return whether an answer is a refusal by this library, perhaps passed on from downstream."""
    details = outcome.trailer(STATUS_DETAILS)
    return isinstance(details, bytes) and _error_info(details) is not None


def _error_info(status_details: bytes) -> error_details_pb2.ErrorInfo | None:
    try:
        for detail in status_pb2.Status.FromString(status_details).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except DecodeError:
        pass
    return None
