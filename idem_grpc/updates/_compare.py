"""Comparison of two messages field by field, and copying of fields."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import copysign
from operator import itemgetter
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from idem_grpc._core.messages import copied
from idem_grpc.updates._masks import ALL, Tree, ignored_tree, is_value, same_type, tree_of

M = TypeVar("M", bound=Message)


def merge(source: Message, target: Message, tree: Tree, *, is_there: bool = True) -> None:
    """Copy the fields that ``tree`` names from ``source`` to ``target``; unset fields become unset.

    is_there: whether ``target`` is present in its parent. If it is not, fields are not unset, since
        that would add ``target`` to its parent.
    """
    populated = {field.name: field for field, _ in source.ListFields() if not field.is_extension}
    for name, inside in tree.items():
        if inside:
            # Reading an absent message gives an empty one, which is added to its parent when written to.
            part = getattr(target, name)
            merge(getattr(source, name), part, inside, is_there=is_there and target.HasField(name))
        elif name in populated:
            take(populated[name], source, target)
        elif is_there:
            target.ClearField(name)


def merge_populated(source: Message, target: Message) -> None:
    """Copy the populated fields of ``source``, and merge messages field by field."""
    for field, value in source.ListFields():
        inner = field.message_type
        if field.is_extension:
            continue  # no path can name it, so an absent mask does not include it
        if inner is None or field.is_repeated or is_value(inner):
            take(field, source, target)
        else:
            part = getattr(target, field.name)
            part.SetInParent()
            merge_populated(value, part)


def take(field: FieldDescriptor, source: Message, target: Message) -> None:
    """Copy one field, which is set in ``source``."""
    name = field.name
    if field.is_repeated:
        target.ClearField(name)
        getattr(target, name).MergeFrom(getattr(source, name))
    elif field.message_type is not None:
        getattr(target, name).CopyFrom(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))


_FLOATS = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
_GROUP = 3  # the wire type

_Fields = Sequence[tuple[FieldDescriptor, Any]]  # as ListFields returns them
_Same = Callable[[Any, Any], bool]


def changed(
    old: Message, new: Message, mask: FieldMask | None = None, ignore: Iterable[str] = ("update_time",)
) -> FieldMask:
    """Return the fields in which two messages of one type differ, as sorted paths (AIP-161).

    Copying these fields from ``new`` to ``old``, as ``apply`` does, makes the messages equal, except
    for ignored fields. Paths go down to the innermost messages that are present in both, but never
    into a repeated field, a map or a value such as a Timestamp. The docstring of ``idem_grpc.updates``
    defines what counts as a difference. The cost is linear in the size of the messages.

    mask: compare only these fields; None (the default), an empty mask or ``*``: compare all. It is
        validated as in ``apply``.
    ignore: paths of fields to ignore; default ``("update_time",)``. Paths that the message lacks are
        allowed.

    A FieldMask is true even if it is empty, so write ``if changed(old, new).paths:``.

    Raises UpdateRefused for invalid paths in the mask; TypeError for messages of different types, and
    if ``ignore`` is a string; ValueError for a path in ``ignore`` that leads into a repeated field or
    a scalar.
    """
    descriptor = same_type(old, new)
    only = tree_of(mask, descriptor)
    ignored = ignored_tree(ignore, descriptor)
    if old is new or _stored_alike(old, new):
        return FieldMask()
    scalars = _if_only_scalars(old, new, ignored)
    if scalars is not None:
        return FieldMask(paths=sorted(scalars & only.keys() if only else scalars))
    return FieldMask(paths=sorted(_differing(old, new, only or {}, ignored)))


def _if_only_scalars(old: Message, new: Message, ignored: Tree) -> set[str] | None:
    """Return the fields that differ if all of them are top-level scalars, else None.

    This is the usual case, and the rest is compared by its serialized bytes, which is fast.
    """
    ones, others = _named(old), _named(new)
    found = set()
    rests = copied(old), copied(new)
    for name in ones.keys() | others.keys():
        field, _ = ones.get(name) or others[name]
        if ignored.get(name) != {}:
            if field.is_repeated or field.message_type is not None:
                continue
            if name in ones and name in others and _same_single(field, ones[name][1], others[name][1]):
                continue
            found.add(name)
        for rest in rests:
            rest.ClearField(name)
    return found if _stored_alike(*rests) else None


def _differing(old: Message, new: Message, only: Tree, ignored: Tree) -> Iterator[str]:
    todo = [("", old, new, only, ignored)]
    while todo:
        path, one, other, only, ignored = todo.pop()
        if not only and not _same_unnamed(one, other):
            yield path or ALL
            continue
        ones, others = _named(one), _named(other)
        for name in only or ones.keys() | others.keys():
            within, without = only.get(name, {}), ignored.get(name)
            field, _ = ones.get(name) or others.get(name) or (None, None)
            if field is None or without == {}:
                continue
            below = f"{path}.{name}" if path else name
            in_both = name in ones and name in others
            # If a mask names fields of a message, the presence of that message does not count.
            if within or (in_both and _has_parts(field, without)):
                todo.append((below, getattr(one, name), getattr(other, name), within, without or {}))
            elif not in_both or not _same_value(field, ones[name][1], others[name][1], _same_message):
                yield below


def _named(message: Message) -> dict[str, tuple[FieldDescriptor, Any]]:
    """Return the populated fields by name, without extensions."""
    return {field.name: (field, value) for field, value in message.ListFields() if not field.is_extension}


def _has_parts(field: FieldDescriptor, ignored: Tree | None) -> bool:
    inner = field.message_type
    return inner is not None and not field.is_repeated and (bool(ignored) or not is_value(inner))


def _stored_alike(one: Message, other: Message) -> bool:
    # Deterministic within one process, which suffices here. "Partial": messages may lack required fields.
    return one.SerializePartialToString(deterministic=True) == other.SerializePartialToString(
        deterministic=True
    )


def _same_message(one: Message, other: Message) -> bool:
    return _stored_alike(one, other) or _same_fields(one, other)


def _same_fields(one: Message, other: Message) -> bool:
    """Compare without serializing, so that parts of a deeply nested message are not serialized repeatedly."""
    return _same_listed(_listed(one), _listed(other), _same_fields) and _unknown(one) == _unknown(other)


def _same_unnamed(one: Message, other: Message) -> bool:
    """Return whether the extensions and unknown fields, which paths cannot name, are the same."""
    ones, others = (
        [(field, value) for field, value in _listed(message) if field.is_extension]
        for message in (one, other)
    )
    return _same_listed(ones, others, _same_message) and _unknown(one) == _unknown(other)


def _listed(message: Message) -> _Fields:
    # ListFields also returns empty repeated extensions that were read before.
    return [(field, value) for field, value in message.ListFields() if not field.is_repeated or len(value)]


def _same_listed(ones: _Fields, others: _Fields, same: _Same) -> bool:
    return [field.number for field, _ in ones] == [field.number for field, _ in others] and all(
        _same_value(field, value, other, same)
        for (field, value), (_, other) in zip(ones, others, strict=True)
    )


def _unknown(holder: Message | UnknownFieldSet) -> list[tuple[int, int, Any]]:
    """Return the unknown fields in the order of their numbers; equal numbers keep their order."""
    fields: Any = UnknownFieldSet(holder) if isinstance(holder, Message) else holder
    found = (
        (each.field_number, each.wire_type, _unknown(each.data) if each.wire_type == _GROUP else each.data)
        for each in fields
    )
    return sorted(found, key=itemgetter(0))


def _same_value(field: FieldDescriptor, one: Any, other: Any, same: _Same) -> bool:
    """Compare two values of a field; ``same`` compares messages."""
    if not field.is_repeated:
        return _same_single(field, one, other, same)
    if len(one) != len(other):
        return False
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        value = inner.fields_by_name["value"]
        # Check "in" first: indexing a map of messages with an absent key would add it.
        return all(key in other and _same_single(value, one[key], other[key], same) for key in one)
    if inner is not None:
        return all(map(same, one, other))
    if field.type in _FLOATS:
        return array("d", one).tobytes() == array("d", other).tobytes() or all(map(_same_float, one, other))
    return bool(one == other)


def _same_single(field: FieldDescriptor, one: Any, other: Any, same: _Same = _same_message) -> bool:
    if field.message_type is not None:
        return same(one, other)
    return _same_float(one, other) if field.type in _FLOATS else bool(one == other)


def _same_float(one: float, other: float) -> bool:
    if one == other:
        return one != 0 or copysign(1, one) == copysign(1, other)
    return one != one and other != other
