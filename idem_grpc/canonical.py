"""Serializes a message so that the same content gives the same bytes.

Deterministic serialization sorts maps, but an Any holds its content as bytes, in which
the sender's order of a map is left. So each Any whose type is known is parsed and
serialized again, those inside it too.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

ANY = "google.protobuf.Any"
_MOST_LEVELS = 100
"""How deep messages and Anys are followed, as in protobuf's own parsers, which begin to count
anew in each Any. What is deeper stays as it was sent."""

_FREE, _MOST_TIMES = 1 << 20, 8
"""An Any in an Any is parsed once for each level. So much may be parsed in all: this many bytes,
and so many times the size of the message. A message that needs more keeps its Anys as sent."""

_REMEMBERED = 4096


def canonical(message: Message) -> bytes:
    """The canonical bytes of ``message``, which stays as it is."""
    plain = message.SerializePartialToString(deterministic=True)
    if not _may_hold_any(message.DESCRIPTOR):
        return plain
    copy = type(message)()
    copy.CopyFrom(message)
    try:
        _Unpacking(_FREE + _MOST_TIMES * len(plain)).settle(copy, 1)
    except _TooMuch:
        return plain
    return copy.SerializePartialToString(deterministic=True)


class _TooMuch(Exception):
    pass


class _Unpacking:
    """Serializes Anys again. ``left``: how many bytes may be parsed for that."""

    def __init__(self, left: int) -> None:
        self._left = left

    def settle(self, message: Message, level: int) -> None:
        """Make the content of all Anys in ``message`` canonical."""
        if level > _MOST_LEVELS:
            return
        if message.DESCRIPTOR.full_name == ANY:
            self._settle_any(message, level)
            return
        for child in _children(message):
            self.settle(child, level + 1)

    def _settle_any(self, message: Message, level: int) -> None:
        name: str = message.type_url.rpartition("/")[2]  # type: ignore[attr-defined]  # an Any of any pool
        value: bytes = message.value  # type: ignore[attr-defined]  # an Any of any pool
        try:
            kind = message.DESCRIPTOR.file.pool.FindMessageTypeByName(name)
        except KeyError:
            return
        self._left -= len(value)
        if self._left < 0:
            raise _TooMuch
        try:
            content: Message = GetMessageClass(kind).FromString(value)  # type: ignore[arg-type]  # of either runtime
        except DecodeError:
            return
        if _may_hold_any(kind):
            self.settle(content, level + 1)
        message.value = content.SerializePartialToString(deterministic=True)  # type: ignore[attr-defined]  # an Any of any pool


def _children(message: Message) -> Iterator[Message]:
    """The messages right inside ``message`` that may hold an Any."""
    for field in _fields_to_any(message.DESCRIPTOR):
        yield from _messages(message, field, getattr(message, field.name))
    if message.DESCRIPTOR.is_extendable:
        for field, value in message.ListFields():
            if field.is_extension and field.message_type is not None and _may_hold_any(field.message_type):
                yield from _messages(message, field, value)


def _messages(message: Message, field: FieldDescriptor, value: Any) -> Iterator[Message]:
    if isinstance(value, Message):
        if field.is_extension or message.HasField(field.name):
            yield value
    else:
        yield from value.values() if isinstance(value, Mapping) else value


@lru_cache(_REMEMBERED)
def _fields_to_any(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields of a message type whose values may hold an Any."""
    inside = ((field, _type_in(field)) for field in descriptor.fields)
    return tuple(field for field, kind in inside if kind is not None and _may_hold_any(kind))


@lru_cache(_REMEMBERED)
def _may_hold_any(root: Descriptor) -> bool:
    """Whether an Any may stand in a message of this type, or in an extension of one inside."""
    seen: set[str] = set()
    left = [root]
    while left:
        descriptor = left.pop()
        if descriptor.full_name == ANY or descriptor.is_extendable:
            return True
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            left += [kind for kind in map(_type_in, descriptor.fields) if kind is not None]
    return False


def _type_in(field: FieldDescriptor) -> Descriptor | None:
    """The message type of a field, or of the values of a map."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return kind.fields_by_name["value"].message_type
    return kind
