"""Why a call is refused, and how a refusal looks on the wire.

Every refusal is a google.rpc.Status with an ErrorInfo of our domain, so that a
client in any language can tell it from a failure of the service itself.
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
    """The ``reason`` of a refusal's ErrorInfo."""

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
        """The status that a refusal for this reason has."""
        return _MEANING[self][0]

    @property
    def retryable(self) -> bool:
        """Whether the very same call may succeed later."""
        return self.code is Code.UNAVAILABLE


_MEANING = {
    Reason.KEY_REQUIRED: (Code.INVALID_ARGUMENT, "this method needs an idempotency-key"),
    Reason.KEY_INVALID: (Code.INVALID_ARGUMENT, "the idempotency-key is not valid"),
    Reason.KEY_REUSED: (Code.INVALID_ARGUMENT, "this idempotency-key came with another request before"),
    Reason.SCOPE_UNKNOWN: (Code.UNAUTHENTICATED, "the call does not tell whose idempotency-key this is"),
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
        "an attempt with this idempotency-key ended unclear: it will not be run again"
        " until somebody has looked",
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
        "too many runs are under way whose callers have left: nothing was run; send it again",
    ),
    Reason.LEASE_LOST: (
        Code.ABORTED,
        "another run of this call has taken over while its responses were sent: send it again for the answer",
    ),
    Reason.MISCONFIGURED: (Code.INTERNAL, "this method's idempotency policy is at fault: nothing was run"),
    Reason.ETAG_MISMATCH: (
        Code.ABORTED,
        "the etag is not the current one: read the resource again, and update that",
    ),
    Reason.MASK_INVALID: (Code.INVALID_ARGUMENT, "the field mask is not valid"),
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of when a refused call is worth sending again, in seconds.

    ``time_left``: until the caller's deadline. ``elapsed``: how long the run that is in progress has
    lasted, as far as this process knows. ``lease``, ``wait`` and ``max_run`` are the policy's.
    """

    time_left: float = math.inf
    elapsed: float = 0.0
    lease: float = 0.0
    wait: float = 0.0
    max_run: float = math.inf


NOTHING_KNOWN = Outlook()


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal: its reason, and optionally a sentence in place of the usual one.

    ``is_free``: no run is in progress any more, and the call may be run when it comes again.
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
        """The refusal as an answer. ``previous_attempts`` is the client's own count of them."""
        code, usual = _MEANING[self.reason]
        delay = pushback_ms(previous_attempts, uniform, outlook) if self.reason.retryable else None
        return status_outcome(code, self.message or usual, delay, self.reason)


def status_outcome(
    code: Code, message: str, delay_ms: int | None = None, reason: Reason | None = None
) -> Outcome:
    """A failure as a google.rpc.Status. ``delay_ms``: after how many milliseconds to come back, if at all."""
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


_FIRST = 0.25
_SHORTEST = 0.01
_GROWTH = 5
_LAST = 3
"""Previous attempts of a client that has one attempt left: gRPC's own retries (A6) make five at most."""


def pushback_ms(
    previous_attempts: int,
    uniform: Callable[[float, float], float] = random.uniform,
    outlook: Outlook = NOTHING_KNOWN,
) -> int:
    """How long a client shall wait: 250 ms, five times more with each attempt, give or take a fifth.

    The longer a run has lasted, the longer it may still last: from the second attempt on the
    wait is half of that at least. The last wait has to be long enough for all that can be
    waited for: four times what the run has lasted, a takeover after a whole lease, and what a
    duplicate may wait on the server. None goes beyond the end that ``max_run`` sets to a run, or
    beyond the caller's deadline. The jitter is that of A6, and keeps duplicates apart.
    """
    wait: float = _FIRST * _GROWTH ** min(previous_attempts, _LAST)
    if previous_attempts >= _LAST:
        # The shortest of these, by jitter, must not be too short.
        wait = max(wait, 4 * outlook.elapsed, 1.25 * outlook.lease, 1.25 * outlook.wait)
    elif previous_attempts:
        wait = max(wait, outlook.elapsed / 2)
    wait = max(min(wait, outlook.max_run + outlook.lease - outlook.elapsed), _FIRST)
    wait = max(min(wait, 0.75 * outlook.time_left), _SHORTEST)
    jittered: float = wait * uniform(0.8, 1.2)
    return round(1000 * jittered)


def reason_in(status_details: bytes) -> Reason | None:
    """The reason that a serialized google.rpc.Status gives, if it is a refusal of ours."""
    info = _error_info(status_details)
    return Reason(info.reason) if info is not None and info.reason in Reason.__members__ else None


def is_refusal(outcome: Outcome) -> bool:
    """Whether an answer is a refusal of ours, perhaps one passed on from downstream."""
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
