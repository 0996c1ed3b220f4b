"""Field masks as trees: which fields of a message they name, and which paths name none."""

from collections.abc import Iterable, Sequence
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import DOMAIN, STATUS_DETAILS, Problem, Reason

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


Tree = dict[str, "Tree"]
"""The fields that a mask names, with what it names inside each. Empty: the whole."""

ALL = "*"


def tree_of(mask: FieldMask | None, descriptor: Descriptor) -> Tree | None:
    """What a mask names: empty for ``*``, None for no mask, which an empty one counts as.

    An unset mask of a request cannot be told from an empty one by reading it. Raises
    UpdateRefused, naming every path that leads nowhere.
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
    """The same for fields to ignore. Those that the message lacks are left out.

    Raises ValueError for a path into a repeated field or a scalar, which cannot be ignored in part.
    """
    if isinstance(paths, str):
        raise TypeError(f"ignore={paths!r}: give a collection of paths, not one string")
    try:
        return _tree(FieldMask(paths=[path for path in paths if _field_at(path, descriptor)]))
    except ValueError as error:
        raise ValueError(f"changed(ignore=…): {error}") from None


def is_value(descriptor: Descriptor) -> bool:
    """Whether messages of this type are values: a Timestamp without its seconds is no Timestamp."""
    return descriptor.file.package in {"google.protobuf", "google.type"}


def same_type(one: Message, other: Message) -> Descriptor:
    """The type of both. TypeError if they differ, or are no protobuf messages."""
    given: tuple[object, ...] = (one, other)
    for each in given:
        if not isinstance(each, Message):
            raise TypeError(
                f"{type(each)} is no protobuf message: give the message (of proto-plus: type(m).pb(m))"
            )
    if type(one) is not type(other):
        raise TypeError(f"{type(one).__name__} and {type(other).__name__}: give two messages of one type")
    return cast(Descriptor, one.DESCRIPTOR)  # the stubs tell its C twin apart


def _field_at(path: str, descriptor: Descriptor) -> FieldDescriptor | None:
    """The field that a path leads to, if any. ValueError if it leads into what has no such parts."""
    *above, last = path.split(".")
    at = descriptor
    for name in above:
        field = at.fields_by_name.get(name)
        if field is None:
            return None
        if field.is_repeated or field.message_type is None:
            kind = "repeated" if field.is_repeated else "no message"
            raise ValueError(f"{path!r}: {at.full_name}.{name} is {kind}, so it has no parts to name")
        at = field.message_type
    return at.fields_by_name.get(last)


def _tree(mask: FieldMask) -> Tree:
    canonical = FieldMask()
    canonical.CanonicalFormFromMask(mask)  # no path in it leads into what another names whole
    root: Tree = {}
    for path in canonical.paths:
        at = root
        for name in path.split("."):
            at = at.setdefault(name, {})
    return root
