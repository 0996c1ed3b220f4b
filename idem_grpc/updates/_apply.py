"""Merging of an update into a stored message, according to AIP-134."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from idem_grpc._core.digest import digest
from idem_grpc._core.messages import copied
from idem_grpc.updates._compare import changed, merge, merge_populated
from idem_grpc.updates._masks import etag_mismatch, same_type, tree_of

_TOUCH = "update_time"
_ETAG = "etag"
_TIMESTAMP = "google.protobuf.Timestamp"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Changes:
    """The fields that an update changed. False if there are none, unlike an empty FieldMask.

    mask: the changed fields, as ``changed`` returns them.
    """

    mask: FieldMask

    @property
    def paths(self) -> list[str]:
        """The paths of the mask, sorted."""
        return list(self.mask.paths)

    def __bool__(self) -> bool:
        return len(self.mask.paths) > 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)


@dataclass(frozen=True, slots=True)
class Update(Generic[M]):
    """The result of an update.

    message: the resource to store and to return; a new message.
    changed: the fields in which it differs from the stored message, except ``update_time`` and ``etag``.
    """

    message: M
    changed: Changes


def apply(
    stored: M,
    patch: M,
    mask: FieldMask | None = None,
    *,
    touch: str | None = _TOUCH,
    etag: str | None = _ETAG,
    now: datetime | None = None,
) -> Update[M]:
    """Merge an update into a stored message, and return the result. Neither argument is modified.

    stored: the resource before the update.
    patch: the update, a message of the same type.
    mask: the fields to copy from ``patch`` (AIP-134, AIP-161). Fields that are unset there become
        unset; messages, repeated fields and maps are replaced as a whole. ``*`` replaces everything.
        None (the default) or an empty mask selects the populated fields of ``patch``: messages are
        merged field by field, and nothing is unset (except the other side of a oneof). Extensions
        and unknown fields are copied only when the message that holds them is replaced.
    touch: the name of a google.protobuf.Timestamp field that is set to ``now`` if anything changed;
        default "update_time".
    etag: the name of a string field that gets a new value if anything changed; default "etag". If it
        is set in ``patch``, it must match ``stored``, whatever the mask (AIP-154).
    now: an aware datetime; default: the host's clock.

    The ``touch`` and ``etag`` fields are never copied from ``patch``, even if the mask names them (as
    AIP-203 requires for output only fields). Pass None to treat such a field as any other. A default
    name is ignored if the message has no such field.

    The new etag is a digest of the previous one and of all other fields except ``touch``, in quotes
    as AIP-154 requires. An etag therefore never recurs, and two servers that apply the same update to
    the same message compute the same one. To compute the first etag of a resource, apply the created
    resource to an empty message.

    Raises UpdateRefused with INVALID_ARGUMENT for invalid paths in the mask, with a BadRequest that
    names them, and with ABORTED for an etag that does not match; TypeError for messages of different
    types; ValueError if ``touch`` or ``etag`` names a field of another type or no field, and for a
    naive ``now``.
    """
    descriptor = same_type(stored, patch)
    clock = _own_field(descriptor, "touch", touch, _TOUCH, _is_timestamp)
    version = _own_field(descriptor, "etag", etag, _ETAG, _is_string)
    if now is not None and now.tzinfo is None:
        raise ValueError(f"apply(now={now!r}): give an aware datetime")
    tree = tree_of(mask, descriptor)
    if version is not None and getattr(patch, version.name) not in {"", getattr(stored, version.name)}:
        raise etag_mismatch()
    message = copied(stored)
    if tree is None:
        merge_populated(patch, message)
    elif tree:
        merge(patch, message, tree)
    else:
        message.CopyFrom(patch)
    own = [field for field in (clock, version) if field is not None]
    changes = Changes(changed(stored, message, ignore=[field.name for field in own]))
    if not changes:
        return Update(copied(stored), changes)
    for field in own:
        message.ClearField(field.name)  # remove the patch's value
    if version is not None:
        setattr(message, version.name, _next_etag(getattr(stored, version.name), message))
    if clock is not None:
        getattr(message, clock.name).FromDatetime(now or datetime.now(UTC))
    return Update(message, changes)


def _next_etag(before: str, message: Message) -> str:
    # The previous etag goes into the digest, so that clients who see only a part of the resource cannot
    # find the rest by guessing, once the first etag is unguessable.
    content = message.SerializePartialToString(deterministic=True)
    text = base64.urlsafe_b64encode(digest("etag", before.encode(), content)).decode().rstrip("=")
    return f'"{text}"'


def _own_field(
    descriptor: Descriptor,
    setting: str,
    name: str | None,
    default: str,
    fits: Callable[[FieldDescriptor], bool],
) -> FieldDescriptor | None:
    """Return the field that the server maintains; None if it is switched off or the default is absent."""
    field = None if name is None else descriptor.fields_by_name.get(name)
    if field is None:
        if name in {None, default}:
            return None
        raise ValueError(f"apply({setting}={name!r}): {descriptor.full_name} has no such field")
    if not fits(field):
        kind = _TIMESTAMP if setting == "touch" else "string"
        raise ValueError(
            f"apply({setting}={name!r}): {field.full_name} is not a {kind}; None switches it off"
        )
    return field


def _is_timestamp(field: FieldDescriptor) -> bool:
    inner = field.message_type
    return not field.is_repeated and inner is not None and inner.full_name == _TIMESTAMP


def _is_string(field: FieldDescriptor) -> bool:
    return not field.is_repeated and field.type == FieldDescriptor.TYPE_STRING
