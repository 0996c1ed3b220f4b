"""Access to the protobuf messages of requests, which classes of other libraries may wrap."""

from copy import deepcopy
from typing import Any, TypeVar

from google.protobuf.message import Message

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


def snapshot(request: T) -> T:
    """Return a copy of a request, which keeps its content when the caller changes the original.

    A request that neither is nor wraps a protobuf message is returned as it is.
    """
    if not isinstance(request, Message):
        return request if message_of(request) is None else deepcopy(request)
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def size_of(request: Any) -> int | None:
    """Return the size of a request on the wire in bytes; None if it is neither protobuf nor bytes."""
    message = message_of(request)
    if message is not None:
        return message.ByteSize()
    return len(request) if isinstance(request, (bytes, bytearray, memoryview)) else None
