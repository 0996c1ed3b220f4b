"""Map failed calls to HTTP statuses and problem details (RFC 9457).

The draft (draft-ietf-httpapi-idempotency-key-header) requires 400 if the key is missing, 422 if it was used
with another payload, and 409 while the first request is still being processed. ``Retry-After`` is set if the
same request with the same key is worth sending again.
"""

import math
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

import idem_grpc.aio
from idem_grpc import Reason

MEDIA_TYPE = "application/problem+json"


@dataclass(eq=False)  # not frozen, because raising an exception sets its traceback
class Problem(Exception):
    """An HTTP status and its meaning. ``code`` distinguishes problems with the same status.

    retry_after: seconds until the same request should be sent again, under the same key.
    headers: further headers of the answer.
    """

    status: int
    code: str
    detail: str
    retry_after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, about: str) -> dict[str, str | int]:
        """Return the JSON body. ``about`` is the page on problems, to which the draft asks for a link."""
        title = self.code.replace("_", " ").capitalize()
        return {
            "type": f"{about}#{self.code}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


REFUSALS = {
    Reason.KEY_REQUIRED: 400,
    Reason.KEY_INVALID: 400,
    Reason.KEY_REUSED: 422,
    Reason.IN_PROGRESS: 409,
    Reason.OUTCOME_PENDING: 409,  # the same for the client: it ran, and the answer is not available yet
    Reason.LEASE_LOST: 409,
    Reason.STORE_UNAVAILABLE: 503,
    Reason.OVERLOADED: 503,
    Reason.OUTCOME_UNKNOWN: 500,  # nothing more is known until an operator settles it
    Reason.RESPONSE_NOT_KEPT: 410,
    Reason.SCOPE_UNKNOWN: 401,
    Reason.TOKEN_UNKNOWN: 400,  # a token that was not issued is an invalid key
    Reason.TOKEN_MISMATCH: 403,
    Reason.MISCONFIGURED: 500,
}
"""Statuses for refusals by idem_grpc. Nothing was run, or nothing was run again."""

BUSINESS = {"CARD_DECLINED": 402}
"""Statuses for errors of the payments service, by the reason in the rich status."""

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""Statuses for all other errors, as in google/rpc/code.proto. The default is 500."""

AGAIN = {429, 503, 504}
"""Statuses worth a retry. With a key, a retry is safe even if the outcome is unknown."""


def problem(error: grpc.aio.AioRpcError) -> Problem:
    """Return the problem for a failed call."""
    trailing = dict(error.trailing_metadata())
    reason = idem_grpc.aio.reason(error)
    code = reason or business_reason(trailing.get("grpc-status-details-bin")) or error.code().name
    status = CODES.get(error.code(), 500)
    if reason in REFUSALS:
        status = REFUSALS[reason]
    elif code in BUSINESS:
        status = BUSINESS[code]
    pushback = trailing.get("grpc-retry-pushback-ms")
    retry_after = None
    if pushback is not None and int(pushback) >= 0:
        retry_after = max(1, math.ceil(int(pushback) / 1000))
    elif status in AGAIN or code == "ABORTED" or reason is Reason.LEASE_LOST:
        retry_after = 1
    return Problem(status, code, error.details() or "", retry_after, answer_headers(trailing))


def answer_headers(trailing: dict[str, str | bytes]) -> dict[str, str]:
    """Return the service's metadata on a keyed answer as headers. The draft does not define such headers."""
    names = {"idempotency-replayed": "Idempotency-Replayed", "idempotency-run": "Idempotency-Run"}
    return {names[name]: str(value) for name, value in trailing.items() if name in names}


def business_reason(rich_status: str | bytes | None) -> str:
    """Return the reason in the google.rpc.Status of an error; empty if there is none."""
    if isinstance(rich_status, bytes):
        info = error_details_pb2.ErrorInfo()
        for detail in status_pb2.Status.FromString(rich_status).details:
            if detail.Unpack(info):
                return info.reason
    return ""
