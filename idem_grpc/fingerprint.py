"""Telling whether two requests under one key are the same request."""

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from idem_grpc.digest import digest
from idem_grpc.record import Fingerprint


def fingerprint(method: str, raw: bytes, request: object, ignore: Sequence[str] = ()) -> Fingerprint:
    """The two digests of a request to ``method``, "/pkg.Service/Method".

    ``raw`` are its bytes as received, ``request`` what they were parsed into. The
    canonical digest leaves out the fields named by ``ignore`` (dotted paths); it is
    taken only of protobuf messages. Deterministic serialization differs between
    schema versions and languages, hence two digests of which either may match.
    """
    name = method.encode()
    if not isinstance(request, Message):
        return Fingerprint(digest("raw", name, raw))
    if ignore:
        request = _without(request, ignore)
    canonical = request.SerializeToString(deterministic=True)
    return Fingerprint(digest("raw", name, raw), digest("canonical", name, canonical))


def check_ignored(descriptor: Descriptor, ignore: Sequence[str]) -> None:
    """Raise ValueError if a path of ``ignore`` names no field of the message type."""
    for path in ignore:
        at: Descriptor | None = descriptor
        for name in path.split("."):
            field = at.fields_by_name.get(name) if at is not None else None
            if field is None:
                raise ValueError(f"Policy(ignore=…): {descriptor.full_name} has no field {path!r}")
            at = field.message_type
            if at is not None and at.GetOptions().map_entry:
                at = at.fields_by_name["value"].message_type


def _without(request: Message, paths: Sequence[str]) -> Message:
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
