"""The message types that updates are tested on, and a strategy for random messages of each."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2  # noqa: F401 -- modern.proto imports it from the pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from tests_pb.v1 import updates_pb2, updates_proto2_pb2


def _modern() -> Any:
    """A message of an edition, compiled here, since the generator of the type stubs lacks editions."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "modern.pb"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I",
            here,
            "-o",
            out,
            here / "modern.proto",
        ]
        subprocess.run(command, check=True)
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.updates.v1.Modern"))


Resource = updates_pb2.Resource
Legacy = updates_proto2_pb2.Legacy
Modern = _modern()
KINDS: list[Any] = [Resource, Legacy, Modern]

F = FieldDescriptor
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
UINT32, UINT64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FLOATS = st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf")])
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    F.TYPE_DOUBLE: FLOATS | st.floats(),
    F.TYPE_FLOAT: FLOATS | st.floats(width=32),
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_STRING: st.sampled_from(["", "a", "b"]) | st.text(st.characters(codec="utf-8"), max_size=3),
    F.TYPE_BYTES: st.sampled_from([b"", b"a"]) | st.binary(max_size=3),
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), st.sampled_from([0, 1, -1]) | INT32),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), st.sampled_from([0, 1, -1]) | INT64),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), st.sampled_from([0, 1]) | UINT32),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), st.sampled_from([0, 1]) | UINT64),
}
# Fields that none of the messages has: a varint, the same again, bytes, a group with a varint, a fixed32.
UNKNOWN = [
    b"\xc0\x3e\x01",
    b"\xc0\x3e\x02",
    b"\xca\x3e\x01a",
    b"\xd3\x3e\x08\x01\xd4\x3e",
    b"\xdd\x3e\0\0\0\0",
]


def messages(kind: Any, depth: int = 2) -> st.SearchStrategy[Any]:
    """Random messages of a class, with any of its fields, extensions and unknown fields."""
    return _messages(kind.DESCRIPTOR, depth)


@st.composite
def _messages(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Any:
    if descriptor.full_name == "google.protobuf.Struct":
        inner = draw(st.dictionaries(st.sampled_from("ab"), FLOATS | st.none() | st.booleans(), max_size=2))
        struct = struct_pb2.Struct()
        struct.update(inner)
        return struct
    if descriptor.full_name == "google.protobuf.Any":
        packed = any_pb2.Any()
        if draw(st.booleans()):
            packed.Pack(draw(_messages(updates_pb2.Node.DESCRIPTOR, 0)))
        return packed
    message = message_factory.GetMessageClass(descriptor)()
    extensions = descriptor.file.pool.FindAllExtensions(descriptor)
    fields = [*descriptor.fields, *extensions]
    few = st.lists(st.sampled_from(fields), max_size=6 if depth else 3, unique_by=lambda field: field.number)
    for field in draw(few):
        if field.message_type is None or depth > 0:
            _set(draw, message, field, depth - 1)
    if not descriptor.file.package.startswith("google.") and draw(st.integers(0, 9)) == 0:
        message.MergeFromString(b"".join(draw(st.lists(st.sampled_from(UNKNOWN), max_size=3))))
    return message


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    holder: Any = message
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        into = getattr(message, field.name)
        key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
        for name in draw(st.lists(_values(key, depth), max_size=2)):
            if value.message_type is None:
                into[name] = draw(_values(value, depth))
            else:
                into[name].CopyFrom(draw(_values(value, depth)))
    elif field.is_repeated:
        values = draw(st.lists(_values(field, depth), max_size=3))
        (holder.Extensions[field] if field.is_extension else getattr(message, field.name)).extend(values)
    elif inner is not None:
        value = draw(_values(field, depth))
        (holder.Extensions[field] if field.is_extension else getattr(message, field.name)).CopyFrom(value)
    elif field.is_extension:
        holder.Extensions[field] = draw(_values(field, depth))
    else:
        setattr(message, field.name, draw(_values(field, depth)))


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _messages(field.message_type, depth)
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        return st.sampled_from(numbers if field.enum_type.is_closed else [*numbers, 99])
    return SCALARS[field.type]


@st.composite
def masks_of(draw: st.DrawFn, kind: Any) -> list[str]:
    """Valid paths of a class, up to three deep."""
    paths = []
    for _ in range(draw(st.integers(1, 4))):
        at, names = kind.DESCRIPTOR, []
        for _ in range(draw(st.integers(1, 3))):
            field = draw(st.sampled_from(list(at.fields)))
            names.append(field.name)
            at = field.message_type
            if at is None or field.is_repeated:
                break
        paths.append(".".join(names))
    return paths
