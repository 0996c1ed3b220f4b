"""Telling whether two requests under one key are the same request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Self

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from idem_grpc_pb.v1 import fingerprint_pb2

from idem_grpc.canonical import ANY, canonical
from idem_grpc.digest import LONGEST, Digest
from idem_grpc.messages import message_of, no_message


@dataclass(slots=True, unsafe_hash=True)
class Fingerprint:
    """Two digests of one request; fingerprint.proto says what each field means."""

    raw: bytes
    canonical: bytes = b""
    messages: int = 0
    size: int = 0
    whole: bool = False

    def matches(self, other: "Fingerprint") -> bool:
        """Whether both stand for the same request: either digest may show it."""
        return self.raw == other.raw or (self.canonical != b"" and self.canonical == other.canonical)

    @property
    def is_plain(self) -> bool:
        """Whether it is that of a single message, as this release makes it."""
        return len(self.raw) == len(self.canonical) == 16 and not (self.messages or self.size or self.whole)

    def to_bytes(self) -> bytes:
        """Serialized as protobuf does."""
        return self.to_message().SerializeToString(deterministic=True)

    def to_message(self) -> fingerprint_pb2.Fingerprint:
        return fingerprint_pb2.Fingerprint(
            raw=self.raw, canonical=self.canonical, messages=self.messages, bytes=self.size, whole=self.whole
        )

    @classmethod
    def from_message(cls, message: fingerprint_pb2.Fingerprint) -> Self:
        """Raises ValueError for what is no digest."""
        raw, canonical = message.raw, message.canonical
        if not raw or len(raw) > LONGEST or len(canonical) > LONGEST:
            raise ValueError("no digest of a request")
        return cls(raw, canonical, message.messages, message.bytes, message.whole)


class Fingerprinting:
    """Makes the fingerprints of single requests to ``method``, "/pkg.Service/Method".

    The canonical digest leaves out the fields named by ``ignore`` (dotted paths); it is taken only of
    protobuf messages and of what wraps them. Deterministic serialization differs between schema versions
    and languages, hence two digests of which either may match.
    """

    __slots__ = ("_canonical", "_ignore", "_raw")

    def __init__(self, method: str, ignore: Sequence[str] = ()) -> None:
        self._raw = Digest("raw", method.encode())
        self._canonical = Digest("canonical", method.encode())
        self._ignore = ignore

    def raw(self, raw: bytes) -> bytes:
        """The digest of a request's bytes as received."""
        return self._raw.over(raw)

    def of(self, raw: bytes, request: object) -> Fingerprint:
        """Both digests of a request: of its bytes as received, and of what they were parsed into.

        Raises ValueError if there are fields to ignore, and none can be read.
        """
        canonical = _canonical(request, self._ignore)
        return Fingerprint(self._raw.over(raw), b"" if canonical is None else self._canonical.over(canonical))


def fingerprint(method: str, raw: bytes, request: object, ignore: Sequence[str] = ()) -> Fingerprint:
    """The two digests of one request; see Fingerprinting."""
    return Fingerprinting(method, ignore).of(raw, request)


class StreamFingerprint:
    """The same for a request stream, rolled on with each message that is read.

    A handler may read on one thread and answer on another, and each answer asks how far the
    other has read.
    """

    def __init__(self, method: str, ignore: Sequence[str] = ()) -> None:
        self._lock = Lock()
        self._ignore = ignore
        self._raw = Digest("raw stream", method.encode())
        self._canonical: Digest | None = Digest("canonical stream", method.encode())
        self._messages = 0
        self._size = 0

    def add(self, raw: bytes, request: object) -> None:
        """Take in the next message: its bytes and what they were parsed into."""
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
        """The fingerprint of the messages taken in; ``whole`` if there are no more."""
        with self._lock:
            canonical = b"" if self._canonical is None else self._canonical.so_far()
            return Fingerprint(self._raw.so_far(), canonical, self._messages, self._size, whole)


def check_ignored(descriptor: Descriptor, ignore: Sequence[str]) -> None:
    """Raise ValueError if a path of ``ignore`` names no field of the message type."""
    for path in ignore:
        at: Descriptor | None = descriptor
        for name in path.split("."):
            field = at.fields_by_name.get(name) if at is not None else None
            if field is None and at is not None and at.full_name == ANY:
                raise ValueError(
                    f"Policy(ignore=…): {path!r} leads into a {ANY}, whose type is known only when a"
                    " request comes: ignore all of it, or nothing"
                )
            if field is None:
                raise ValueError(f"Policy(ignore=…): {descriptor.full_name} has no field {path!r}")
            at = field.message_type
            if at is not None and at.GetOptions().map_entry:
                at = at.fields_by_name["value"].message_type


_check_once = lru_cache(check_ignored)  # for methods of which nothing is known before their first call


def _canonical(request: object, ignore: Sequence[str]) -> bytes | None:
    message = request if isinstance(request, Message) else message_of(request)
    if message is None:
        if ignore:
            raise ValueError(
                f"Policy(ignore={list(ignore)}): {no_message(request)}: ignore nothing, or import the"
                " generated module of the service"
            )
        return None
    return canonical(_without(message, ignore) if ignore else message)


def _without(request: Message, paths: Sequence[str]) -> Message:
    _check_once(request.DESCRIPTOR, tuple(paths))
    copy = type(request)()
    copy.CopyFrom(request)
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
