"""An oracle for ``changed`` and ``apply``, which works on messages as plain trees.

A tree has a message's fields by name, its extensions and unknown fields under numbers. It is made
from the bytes of the message as far as unknown fields go, and compared as Python compares.
"""

import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

VALUES = ("google.protobuf.", "google.type.")
Tree = dict[Any, Any]


def plain(message: Message) -> Tree:
    """A message as a tree that can be compared by ``==``. Unset fields are not in it."""
    found: Tree = {}
    for field, value in message.ListFields():
        if field.is_repeated and not list(value):
            continue  # an extension that somebody has looked at
        found[f"[{field.full_name}]" if field.is_extension else field.name] = _value(field, value)
    unknown = _unknown(message)
    if unknown:
        found["?"] = unknown
    return found


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _single(inner, value[key]) for key in list(value)}
    if field.is_repeated:
        return [_single(field, each) for each in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, float):
        return "nan" if value != value else struct.pack("<d", value)
    return value


def _unknown(message: Message) -> Tree:
    """Unknown fields by number, from the bytes that are left without the known fields."""
    rest = type(message)()
    rest.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.is_extension:
            rest.ClearExtension(field)  # type: ignore[arg-type]  # which the stubs take for a class of its own
        else:
            rest.ClearField(field.name)
    found: Tree = {}
    for number, chunk in _chunks(rest.SerializePartialToString()):
        found.setdefault(number, []).append(chunk)
    return found


def _chunks(data: bytes) -> list[tuple[int, bytes]]:
    """The top-level fields of a serialized message, each with its bytes."""
    found, at = [], 0
    while at < len(data):
        begin = at
        number, at = _field(data, at)
        found.append((number, data[begin:at]))
    return found


def _field(data: bytes, at: int) -> tuple[int, int]:
    tag, at = _varint(data, at)
    match tag & 7:
        case 0:
            _, at = _varint(data, at)
        case 1:
            at += 8
        case 2:
            size, at = _varint(data, at)
            at += size
        case 3:
            end = tag + 1
            while True:
                inner, after = _varint(data, at)
                if inner == end:
                    at = after
                    break
                _, at = _field(data, at)
        case 5:
            at += 4
    return tag >> 3, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def differing(old: Message, new: Message, mask: list[str], ignore: tuple[str, ...] = ()) -> list[str]:
    """The paths that differ, found by comparing every path."""
    found = _differing(old.DESCRIPTOR, plain(old), plain(new), "", mask, ignore)
    return sorted(found)


def _differing(
    kind: Any, old: Tree, new: Tree, at: str, mask: list[str], ignore: tuple[str, ...]
) -> list[str]:
    def named(path: str) -> bool:
        return not mask or any(path == each or path.startswith(each + ".") for each in mask)

    def led_through(path: str) -> bool:
        return any(each.startswith(path + ".") for each in mask)

    if (named(at) if at else not mask) and _unnamed(old) != _unnamed(new):
        return [at or "*"]
    found = []
    for field in kind.fields:
        path = f"{at}.{field.name}" if at else field.name
        if path in ignore:
            continue
        one, other = old.get(field.name), new.get(field.name)
        inner = field.message_type
        if named(path):
            in_both = one is not None and other is not None
            whole = inner is None or field.is_repeated or inner.full_name.startswith(VALUES)
            if in_both and not whole:
                found += _differing(inner, one or {}, other or {}, path, [], ignore)
            elif one != other:
                found.append(path)
        elif led_through(path):
            found += _differing(inner, one or {}, other or {}, path, mask, ignore)
    return found


def _unnamed(tree: Tree) -> Tree:
    return {key: value for key, value in tree.items() if key == "?" or key.startswith("[")}


def merged(kind: Any, stored: Tree, patch: Tree, paths: list[str]) -> Tree:
    """The tree with these paths copied; ``*`` is everything."""
    if "*" in paths:
        return dict(patch)
    result = dict(stored)
    for path in sorted(paths):
        _copy(kind, result, patch, path.split("."))
    return result


def _copy(kind: Any, target: Tree, source: Tree, names: list[str]) -> None:
    """``target`` is a copy made by the caller, which is changed; the values in it must not be."""
    name, *rest = names
    if rest:
        inner = dict(target.get(name, {}))
        _copy(kind.fields_by_name[name].message_type, inner, source.get(name, {}), rest)
        if not inner and name not in target:
            return
        value: Any = inner
    elif name in source:
        value = source[name]
    else:
        target.pop(name, None)
        return
    if name not in target and (oneof := kind.fields_by_name[name].containing_oneof):
        for field in oneof.fields:
            target.pop(field.name, None)
    target[name] = value


def populated(kind: Any, stored: Tree, patch: Tree) -> Tree:
    """The tree with all populated fields copied, as for an absent mask."""
    result = dict(stored)
    for name, value in patch.items():
        if name == "?" or name.startswith("["):
            continue
        field = kind.fields_by_name[name]
        inner = field.message_type
        if inner is not None and not field.is_repeated and not inner.full_name.startswith(VALUES):
            value = populated(inner, result.get(name, {}), value)
        if name not in result and field.containing_oneof:
            for other in field.containing_oneof.fields:
                result.pop(other.name, None)
        result[name] = value
    return result
