"""How an update is refused: a google.rpc.Status, as an exception that knows no grpc."""

from collections.abc import Sequence

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from idem_grpc.outcome import Code
from idem_grpc.problem import DOMAIN, STATUS_DETAILS, Problem, Reason

_MOST_FAULTS = 8
_LONGEST = 160


class UpdateRefused(Exception):
    """An update that the caller must mend. Nothing was changed.

    In a handler: ``context.abort_with_status(idem_grpc.status_of(refused))``, awaited in asyncio.

    reason: of the ErrorInfo (domain "idem_grpc"), ETAG_MISMATCH or MASK_INVALID; what
        ``idem_grpc.reason(error)`` tells the caller.
    status: the google.rpc.Status, with that ErrorInfo, and a BadRequest for a mask.
    """

    def __init__(self, reason: Reason, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.reason = reason
        self.status = status

    @property
    def code(self) -> Code:
        """By its number, as the core knows no grpc.StatusCode."""
        return Code(self.status.code)

    @property
    def details(self) -> str:
        """A sentence for the caller, as grpc.Status calls it."""
        return self.status.message

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The status in the form in which every gRPC client looks for it."""
        return ((STATUS_DETAILS, self.status.SerializeToString()),)


def etag_mismatch() -> UpdateRefused:
    """Somebody else updated in between: ABORTED, as AIP-154 has it."""
    return _refused(Reason.ETAG_MISMATCH, Problem(Reason.ETAG_MISMATCH).outcome().details)


def mask_invalid(faults: Sequence[tuple[str, str]]) -> UpdateRefused:
    """Paths of a mask with what is wrong about each: INVALID_ARGUMENT, with a violation for each.

    Trailing metadata has a limit (8 KiB in most clients), so neither all of many nor a whole long
    path is told.
    """
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=_short(path), description=_short(fault))
        for path, fault in faults[:_MOST_FAULTS]
    ]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"invalid field mask: {violations[0].description}{more}"
    bad_request = error_details_pb2.BadRequest(field_violations=violations)
    return _refused(Reason.MASK_INVALID, message, bad_request)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _refused(reason: Reason, message: str, *details: Message) -> UpdateRefused:
    status = status_pb2.Status(code=reason.code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN), *details):
        status.details.add().Pack(detail)
    return UpdateRefused(reason, status)
