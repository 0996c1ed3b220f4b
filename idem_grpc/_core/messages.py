"""Access to the protobuf messages of requests, which classes of other libraries may wrap."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")


def message_of(request: Any) -> Message | None:
    """Return the protobuf message that a request is or wraps; None if it is neither.

    A wrapper provides its message as ``pb``. In proto-plus that is a public method of the class,
    ``type(m).pb(m)``; elsewhere it is a method or a property.
    """
    if isinstance(request, Message):
        return request
    pb = getattr(type(request), "pb", None)
    try:
        found = pb(request) if callable(pb) else getattr(request, "pb", None)
    except Exception:  # an unrelated attribute of that name
        return None
    return found if isinstance(found, Message) else None


def why_no_message(request: Any) -> str:
    """Return why the fields of a request cannot be read by their names."""
    return (
        f"requests are of {type(request)}, which is neither a protobuf message nor wraps one as those of"
        " proto-plus do"
    )


def copied(message: M) -> M:
    """Copy a message, including unknown fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def message_type(field: FieldDescriptor) -> Descriptor | None:
    """Return the message type of a field, or of the values of a map."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return kind.fields_by_name["value"].message_type
    return kind


def fields_along(
    path: str, descriptor: Descriptor
) -> Iterator[tuple[Descriptor | None, FieldDescriptor | None]]:
    """For each name in a dotted path, yield the message type that should have the field, and the field.

    The type is None below a field that holds no message, and the field is None where there is none.
    """
    holder: Descriptor | None = descriptor
    for name in path.split("."):
        field = holder.fields_by_name.get(name) if holder is not None else None
        yield holder, field
        holder = message_type(field) if field is not None else None


def snapshot(request: T) -> T:
    """Return a copy of a request, which keeps its content when the caller changes the original.

    A request that neither is nor wraps a protobuf message is returned as it is.
    """
    if not isinstance(request, Message):
        return request if message_of(request) is None else deepcopy(request)
    return copied(request)


def size_of(request: Any) -> int | None:
    """Return the size of a request on the wire in bytes; None if it is neither protobuf nor bytes."""
    message = message_of(request)
    if message is not None:
        return message.ByteSize()
    return len(request) if isinstance(request, (bytes, bytearray, memoryview)) else None
