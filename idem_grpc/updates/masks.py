"""Field masks as trees: which fields of a message they name, and which paths name none."""

from collections.abc import Iterable
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from idem_grpc.updates.refusal import mask_invalid

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
