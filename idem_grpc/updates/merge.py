"""Copying fields from one message to another of its type."""

from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from idem_grpc.updates.masks import Tree, is_value

M = TypeVar("M", bound=Message)


def copied(message: M) -> M:
    """A copy of a message, unknown fields included."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def merge(source: Message, target: Message, tree: Tree, *, is_there: bool = True) -> None:
    """Make the fields that ``tree`` names in ``target`` what they are in ``source``.

    is_there: whether ``target`` is part of a message yet. To unset a field would make it so.
    """
    populated = {field.name: field for field, _ in source.ListFields() if not field.is_extension}
    for name, inside in tree.items():
        if inside:
            # Reading what is absent gives an empty message, which becomes part of the other when written to.
            part = getattr(target, name)
            merge(getattr(source, name), part, inside, is_there=is_there and target.HasField(name))
        elif name in populated:
            take(populated[name], source, target)
        elif is_there:
            target.ClearField(name)


def merge_populated(source: Message, target: Message) -> None:
    """Copy what is populated in ``source``, messages field by field."""
    for field, value in source.ListFields():
        inner = field.message_type
        if field.is_extension:
            continue  # no path names it, so an absent mask does not imply it
        if inner is None or field.is_repeated or is_value(inner):
            take(field, source, target)
        else:
            part = getattr(target, field.name)
            part.SetInParent()
            merge_populated(value, part)


def take(field: FieldDescriptor, source: Message, target: Message) -> None:
    """Make one field, which is set in ``source``, what it is there."""
    name = field.name
    if field.is_repeated:
        target.ClearField(name)
        getattr(target, name).MergeFrom(getattr(source, name))
    elif field.message_type is not None:
        getattr(target, name).CopyFrom(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))
