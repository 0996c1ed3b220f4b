"""Validation of field masks, their conversion to trees, and the errors for updates."""

from collections.abc import Iterable, Sequence
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from idem_grpc._core.messages import fields_along
from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import DOMAIN, STATUS_DETAILS, Problem, Reason

_MAX_VIOLATIONS = 8
_MAX_TEXT = 160  # characters


class UpdateRefused(Exception):
    """An invalid update, which the caller must correct. Nothing was changed.

    In a handler, call ``context.abort_with_status(idem_grpc.status_of(refused))``; await it in asyncio.

    reason: ETAG_MISMATCH or MASK_INVALID, which is also the reason of the ErrorInfo (domain
        "idem_grpc") and what ``idem_grpc.reason(error)`` returns to the caller.
    status: the google.rpc.Status, with that ErrorInfo and, for an invalid mask, a BadRequest.
    """

    def __init__(self, reason: Reason, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.reason = reason
        self.status = status

    @property
    def code(self) -> Code:
        """The status code, as the library's own enum, since this module does not import grpc."""
        return Code(self.status.code)

    @property
    def details(self) -> str:
        """The status message, under the name that grpc.Status gives it."""
        return self.status.message

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The serialized status, as the ``grpc-status-details-bin`` metadata that gRPC clients read."""
        return ((STATUS_DETAILS, self.status.SerializeToString()),)


def etag_mismatch() -> UpdateRefused:
    """Return the ABORTED error for an etag that does not match (AIP-154)."""
    return _refused(Reason.ETAG_MISMATCH, Problem(Reason.ETAG_MISMATCH).outcome().details)


def mask_invalid(faults: Sequence[tuple[str, str]]) -> UpdateRefused:
    """Return the INVALID_ARGUMENT error for pairs of an invalid path and its fault.

    It has a violation for each, at most 8, with paths and descriptions shortened to 160 characters,
    since trailing metadata is limited (to 8 KiB in most clients).
    """
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=_short(path), description=_short(fault))
        for path, fault in faults[:_MAX_VIOLATIONS]
    ]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"invalid field mask: {violations[0].description}{more}"
    bad_request = error_details_pb2.BadRequest(field_violations=violations)
    return _refused(Reason.MASK_INVALID, message, bad_request)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _refused(reason: Reason, message: str, *details: Message) -> UpdateRefused:
    status = status_pb2.Status(code=reason.code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN), *details):
        status.details.add().Pack(detail)
    return UpdateRefused(reason, status)


Tree = dict[str, "Tree"]
"""The fields that a mask names, each with a tree of the fields inside it. Empty: the whole message."""

ALL = "*"


def tree_of(mask: FieldMask | None, descriptor: Descriptor) -> Tree | None:
    """Convert a mask to a tree: empty for ``*``; None for no mask or an empty one.

    Both count as no mask, since reading an unset mask of a request gives an empty one. Raises
    UpdateRefused for invalid paths.
    """
    if mask is None or not mask.paths:
        return None
    faults = []
    for path in mask.paths:
        try:
            if path != ALL and _field_at(path, descriptor) is None:
                faults.append((path, f"{descriptor.full_name} has no field {path!r}"))
        except ValueError as error:
            faults.append((path, str(error)))
    if faults:
        raise mask_invalid(faults)
    return {} if ALL in mask.paths else _tree(mask)


def ignored_tree(paths: Iterable[str], descriptor: Descriptor) -> Tree:
    """Convert paths to ignore to a tree. Paths that the message lacks are left out.

    Raises TypeError for a string, and ValueError for a path into a repeated field or a scalar.
    """
    if isinstance(paths, str):
        raise TypeError(f"ignore={paths!r}: give a collection of paths, not one string")
    try:
        return _tree(FieldMask(paths=[path for path in paths if _field_at(path, descriptor)]))
    except ValueError as error:
        raise ValueError(f"changed(ignore=…): {error}") from None


def is_value(descriptor: Descriptor) -> bool:
    """Return whether messages of this type, such as a Timestamp, are compared and replaced as a whole."""
    return descriptor.file.package in {"google.protobuf", "google.type"}


def same_type(one: Message, other: Message) -> Descriptor:
    """Return the descriptor of both. Raises TypeError unless they are protobuf messages of one type."""
    given: tuple[object, ...] = (one, other)
    for each in given:
        if not isinstance(each, Message):
            raise TypeError(
                f"{type(each)} is not a protobuf message: give one (for proto-plus, type(m).pb(m))"
            )
    if type(one) is not type(other):
        raise TypeError(f"{type(one).__name__} and {type(other).__name__}: give two messages of one type")
    return cast(Descriptor, one.DESCRIPTOR)  # the stubs have a separate type for the C implementation


def _field_at(path: str, descriptor: Descriptor) -> FieldDescriptor | None:
    """Return the field at a path; None if absent. Raises ValueError for a path into a scalar or a list."""
    *above, (_, last) = fields_along(path, descriptor)
    for holder, field in above:
        if holder is None or field is None:
            return None
        if field.is_repeated or field.message_type is None:
            kind = "repeated" if field.is_repeated else "not a message"
            raise ValueError(
                f"{path!r}: {holder.full_name}.{field.name} is {kind}, so a path cannot lead into it"
            )
    return last


def _tree(mask: FieldMask) -> Tree:
    canonical = FieldMask()
    canonical.CanonicalFormFromMask(mask)  # drops paths below another path of the mask
    root: Tree = {}
    for path in canonical.paths:
        at = root
        for name in path.split("."):
            at = at.setdefault(name, {})
    return root
