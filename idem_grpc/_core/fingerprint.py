"""Fingerprints, by which two requests under one key are recognised as the same request."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Self

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from idem_grpc_pb.v1 import fingerprint_pb2

from idem_grpc._core.digest import LONGEST, Digest
from idem_grpc._core.messages import copied, fields_along, message_of, message_type, why_no_message

ANY = "google.protobuf.Any"
_MAX_LEVELS = 100
"""Levels of messages and Anys that are followed. protobuf's own parsers have the same limit, but start
counting again in each Any. Content below that stays as it was sent.
"""

_BASE_BUDGET, _BUDGET_FACTOR = 1 << 20, 8
"""An Any inside an Any is parsed once for each level, so the bytes that may be parsed are limited to
``_BASE_BUDGET`` plus ``_BUDGET_FACTOR`` times the size of the message. A message that needs more
keeps its Anys as they were sent.
"""

_CACHE_SIZE = 4096


def canonical(message: Message) -> bytes:
    """Return the canonical bytes of ``message``, which is not changed."""
    plain = message.SerializePartialToString(deterministic=True)
    if not _may_hold_any(message.DESCRIPTOR):
        return plain
    copy = copied(message)
    try:
        _AnyNormalizer(_BASE_BUDGET + _BUDGET_FACTOR * len(plain)).normalize(copy, 1)
    except _OverBudget:
        return plain
    return copy.SerializePartialToString(deterministic=True)


class _OverBudget(Exception):
    pass


class _AnyNormalizer:
    """Serializes Anys again, deterministically. ``budget``: how many bytes may be parsed for that."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def normalize(self, message: Message, level: int) -> None:
        """Make the content of all Anys in ``message`` canonical."""
        if level > _MAX_LEVELS:
            return
        if message.DESCRIPTOR.full_name == ANY:
            self._normalize_any(message, level)
            return
        for child in _children(message):
            self.normalize(child, level + 1)

    def _normalize_any(self, message: Message, level: int) -> None:
        name: str = message.type_url.rpartition("/")[2]  # type: ignore[attr-defined]  # an Any of any pool
        value: bytes = message.value  # type: ignore[attr-defined]  # an Any of any pool
        try:
            kind = message.DESCRIPTOR.file.pool.FindMessageTypeByName(name)
        except KeyError:
            return
        self._budget -= len(value)
        if self._budget < 0:
            raise _OverBudget
        try:
            content: Message = GetMessageClass(kind).FromString(value)  # type: ignore[arg-type]  # of either runtime
        except DecodeError:
            return
        if _may_hold_any(kind):
            self.normalize(content, level + 1)
        message.value = content.SerializePartialToString(deterministic=True)  # type: ignore[attr-defined]  # an Any of any pool


def _children(message: Message) -> Iterator[Message]:
    """Yield the direct child messages of ``message`` that may hold an Any."""
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


@lru_cache(_CACHE_SIZE)
def _fields_to_any(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Return the fields of a message type whose values may hold an Any."""
    inside = ((field, message_type(field)) for field in descriptor.fields)
    return tuple(field for field, kind in inside if kind is not None and _may_hold_any(kind))


@lru_cache(_CACHE_SIZE)
def _may_hold_any(root: Descriptor) -> bool:
    """Return whether a message of this type may hold an Any, at any depth or in an extension."""
    seen: set[str] = set()
    left = [root]
    while left:
        descriptor = left.pop()
        if descriptor.full_name == ANY or descriptor.is_extendable:
            return True
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            left += [kind for kind in map(message_type, descriptor.fields) if kind is not None]
    return False


@dataclass(slots=True, unsafe_hash=True)
class Fingerprint:
    """Two digests of one request. fingerprint.proto documents each field."""

    raw: bytes
    canonical: bytes = b""
    messages: int = 0
    size: int = 0
    whole: bool = False

    def matches(self, other: "Fingerprint") -> bool:
        """Return whether both stand for the same request: it suffices that one digest matches."""
        return self.raw == other.raw or (self.canonical != b"" and self.canonical == other.canonical)

    @property
    def is_plain(self) -> bool:
        """Whether it is the fingerprint of a single message, as this release makes it."""
        return len(self.raw) == len(self.canonical) == 16 and not (self.messages or self.size or self.whole)

    def to_bytes(self) -> bytes:
        """Serialize as protobuf does."""
        return self.to_message().SerializeToString(deterministic=True)

    def to_message(self) -> fingerprint_pb2.Fingerprint:
        return fingerprint_pb2.Fingerprint(
            raw=self.raw, canonical=self.canonical, messages=self.messages, bytes=self.size, whole=self.whole
        )

    @classmethod
    def from_message(cls, message: fingerprint_pb2.Fingerprint) -> Self:
        """Read a stored fingerprint. Raises ValueError if a digest is missing or too long."""
        raw, canonical = message.raw, message.canonical
        if not raw or len(raw) > LONGEST or len(canonical) > LONGEST:
            raise ValueError("a digest is missing or too long")
        return cls(raw, canonical, message.messages, message.bytes, message.whole)


class Fingerprinting:
    """Makes the fingerprints of single requests to ``method``, "/pkg.Service/Method".

    The canonical digest leaves out the fields named by ``ignore`` (dotted paths). It is made only for
    protobuf messages and for objects that wrap them. Deterministic serialization differs between schema
    versions and languages, so there are two digests, either of which may match.
    """

    __slots__ = ("_canonical", "_ignore", "_raw")

    def __init__(self, method: str, ignore: Sequence[str] = ()) -> None:
        self._raw = Digest("raw", method.encode())
        self._canonical = Digest("canonical", method.encode())
        self._ignore = ignore

    def raw(self, raw: bytes) -> bytes:
        """Return the digest of a request's bytes as received."""
        return self._raw.over(raw)

    def of(self, raw: bytes, request: object) -> Fingerprint:
        """Return both digests of a request: of its bytes as received, and of the object parsed from them.

        Raises ValueError if there are fields to ignore and the request has no readable fields.
        """
        canonical = _canonical(request, self._ignore)
        return Fingerprint(self._raw.over(raw), b"" if canonical is None else self._canonical.over(canonical))


def fingerprint(method: str, raw: bytes, request: object, ignore: Sequence[str] = ()) -> Fingerprint:
    """Return the fingerprint of one request; see Fingerprinting."""
    return Fingerprinting(method, ignore).of(raw, request)


class StreamFingerprint:
    """The fingerprint of a request stream, updated with each message that is read.

    It is thread-safe: a handler may read on one thread and answer on another, and each answer needs the
    fingerprint of what has been read by then.
    """

    def __init__(self, method: str, ignore: Sequence[str] = ()) -> None:
        self._lock = Lock()
        self._ignore = ignore
        self._raw = Digest("raw stream", method.encode())
        self._canonical: Digest | None = Digest("canonical stream", method.encode())
        self._messages = 0
        self._size = 0

    def add(self, raw: bytes, request: object) -> None:
        """Add the next message: its bytes, and the object parsed from them."""
        canonical = _canonical(request, self._ignore)
        with self._lock:
            self._messages += 1
            self._size += len(raw)
            self._raw.add(raw)
            if canonical is None:
                self._canonical = None
            elif self._canonical is not None:
                self._canonical.add(canonical)

    def so_far(self, *, whole: bool = False) -> Fingerprint:
        """Return the fingerprint of the messages added so far; ``whole`` if there are no more."""
        with self._lock:
            canonical = b"" if self._canonical is None else self._canonical.so_far()
            return Fingerprint(self._raw.so_far(), canonical, self._messages, self._size, whole)


def check_ignored(descriptor: Descriptor, ignore: Sequence[str]) -> None:
    """Raise ValueError if a path in ``ignore`` names no field of the message type."""
    for path in ignore:
        for holder, field in fields_along(path, descriptor):
            if field is None and holder is not None and holder.full_name == ANY:
                raise ValueError(
                    f"Policy(ignore=…): {path!r} leads into a {ANY}, whose type is known only when a"
                    " request arrives: ignore the whole field, or nothing"
                )
            if field is None:
                raise ValueError(f"Policy(ignore=…): {descriptor.full_name} has no field {path!r}")


_check_once = lru_cache(check_ignored)  # for methods whose descriptor is unknown until their first call


def _canonical(request: object, ignore: Sequence[str]) -> bytes | None:
    message = request if isinstance(request, Message) else message_of(request)
    if message is None:
        if ignore:
            raise ValueError(
                f"Policy(ignore={list(ignore)}): {why_no_message(request)}: ignore nothing, or import the"
                " generated module of the service"
            )
        return None
    return canonical(_without(message, ignore) if ignore else message)


def _without(request: Message, paths: Sequence[str]) -> Message:
    _check_once(request.DESCRIPTOR, tuple(paths))
    copy = copied(request)
    for path in paths:
        _clear(copy, path.split("."))
    return copy


def _clear(message: Message, path: list[str]) -> None:
    name, *rest = path
    if not rest:
        message.ClearField(name)
        return
    value = getattr(message, name)
    if isinstance(value, Message):
        children: Iterable[Message] = [value] if message.HasField(name) else []
    else:
        children = value.values() if isinstance(value, Mapping) else value
    for child in children:
        _clear(child, rest)
