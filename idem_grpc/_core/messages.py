"""The protobuf messages of requests, which can be wrapped in classes of other libraries."""

from copy import deepcopy
from typing import Any, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


def message_of(request: Any) -> Message | None:
    """The protobuf message that a request is or wraps; None if it is neither.

    A wrapper gives its message by ``pb``: proto-plus by ``type(m).pb(m)``, which is a public
    method there, others by a method or a property of that name.
    """
    if isinstance(request, Message):
        return request
    pb = getattr(type(request), "pb", None)
    try:
        found = pb(request) if callable(pb) else getattr(request, "pb", None)
    except Exception:  # whatever else it may be
        return None
    return found if isinstance(found, Message) else None


def no_message(request: Any) -> str:
    """Why a request has no fields that can be read by their names."""
    return (
        f"requests are of {type(request)}, which is neither a protobuf message nor wraps one as those of"
        " proto-plus do"
    )


def snapshot(request: T) -> T:
    """A copy of a request, which keeps its content when the caller changes the original."""
    if not isinstance(request, Message):
        return request if message_of(request) is None else deepcopy(request)
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def size_of(request: Any) -> int | None:
    """The bytes that a request takes on the wire; None if it is neither protobuf nor bytes."""
    message = message_of(request)
    if message is not None:
        return message.ByteSize()
    return len(request) if isinstance(request, (bytes, bytearray, memoryview)) else None
