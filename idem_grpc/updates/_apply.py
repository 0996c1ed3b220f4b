"""An update merged into what is stored, as AIP-134 has it."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from idem_grpc._core.digest import digest
from idem_grpc.updates._compare import changed, copied, merge, merge_populated
from idem_grpc.updates._masks import etag_mismatch, same_type, tree_of

_TOUCH = "update_time"
_ETAG = "etag"
_TIMESTAMP = "google.protobuf.Timestamp"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update changed. False if that is nothing, where a FieldMask would be true.

    mask: the changed fields, as ``changed`` tells them.
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
    """What came of an update.

    message: the resource as it is to be stored and answered; a new message.
    changed: in what it differs from what was stored. ``update_time`` and ``etag`` are not told.
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
    """Merge an update into what is stored. Neither message is changed.

    mask: the fields to copy from ``patch`` (AIP-134, AIP-161). What is unset there becomes unset;
        messages, repeated fields and maps are replaced whole. ``*`` replaces everything. None or
        an empty mask, the default, stands for the fields that ``patch`` has populated: messages
        are then merged field by field, and nothing is unset (except the other side of a oneof).
        Extensions and unknown fields move only with the message that holds them, when that is
        replaced.
    touch: the google.protobuf.Timestamp that becomes ``now`` if anything changed.
    etag: the string that becomes another if anything changed. If ``patch`` bears one, it must be
        that of ``stored``, whatever the mask (AIP-154).
    now: an aware datetime; default: the host's clock.

    Neither of the two is ever copied from ``patch``, even if the mask names it (as AIP-203 has it
    for output only fields). None switches it off: then it is a field like others. The defaults are
    left out where a message has no such field.

    The new etag is a digest of the one before and of all other fields except ``touch``, in quotes
    as AIP-154 wants it. So it never comes back, and two servers that apply the same update to the
    same message make the same. To make the first one, apply what was created to an empty message.

    Raises UpdateRefused: INVALID_ARGUMENT for a mask with a path that leads nowhere, with a
    BadRequest that names it; ABORTED for an etag that does not match. TypeError for messages of two
    types; ValueError for ``touch`` or ``etag`` of another type or of no field, and for a naive ``now``.
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
        message.ClearField(field.name)  # what came with the patch
    if version is not None:
        setattr(message, version.name, _next_etag(getattr(stored, version.name), message))
    if clock is not None:
        getattr(message, clock.name).FromDatetime(now or datetime.now(UTC))
    return Update(message, changes)


def _next_etag(before: str, message: Message) -> str:
    # The one before makes it unguessable for those who see only a part of the resource, and know
    # what the rest may be, once the first one is.
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
    """The field that the server sets itself, if the message has it."""
    field = None if name is None else descriptor.fields_by_name.get(name)
    if field is None:
        if name in {None, default}:
            return None
        raise ValueError(f"apply({setting}={name!r}): {descriptor.full_name} has no such field")
    if not fits(field):
        kind = _TIMESTAMP if setting == "touch" else "string"
        raise ValueError(f"apply({setting}={name!r}): {field.full_name} is no {kind}; None switches it off")
    return field


def _is_timestamp(field: FieldDescriptor) -> bool:
    inner = field.message_type
    return not field.is_repeated and inner is not None and inner.full_name == _TIMESTAMP


def _is_string(field: FieldDescriptor) -> bool:
    return not field.is_repeated and field.type == FieldDescriptor.TYPE_STRING
