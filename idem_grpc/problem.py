"""Why a call is refused, and how a refusal looks on the wire.

Every refusal is a google.rpc.Status with an ErrorInfo of our domain, so that a
client in any language can tell it from a failure of the service itself.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from idem_grpc.outcome import Code, Metadata, Outcome

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
class Problem:
    """A refusal: its reason, and optionally a sentence in place of the usual one."""

    reason: Reason
    message: str = ""

    def outcome(
        self, previous_attempts: int = 0, uniform: Callable[[float, float], float] = random.uniform
    ) -> Outcome:
        """The refusal as an answer. ``previous_attempts`` is the client's own count of them."""
        code, usual = _MEANING[self.reason]
        delay = pushback_ms(previous_attempts, uniform) if self.reason.retryable else None
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


def pushback_ms(previous_attempts: int, uniform: Callable[[float, float], float] = random.uniform) -> int:
    """How long a client shall wait: min(10 s, 250 ms x 4^n), give or take a fifth.

    gRPC's own retries (A6) make at most five attempts, so the wait grows fast enough
    to outlast a handler; the jitter is that of A6, and keeps duplicates apart.
    """
    wait: int = min(10_000, 250 * 4 ** min(previous_attempts, 8))
    return round(wait * uniform(0.8, 1.2))


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
