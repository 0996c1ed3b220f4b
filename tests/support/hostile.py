"""Records that no server of this release writes: made by mistake, by later releases or by attackers."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from idem_grpc_pb.v1 import outcome_pb2, record_pb2

Change = Callable[[record_pb2.Record], Any]

UNSENDABLE = [
    ("grpc-timeout", b"1S"),
    ("grpclb_client_stats", b"0"),
    ("-bin", b"seal"),
    ("", b"12"),
    ("Fee", b"12"),
    ("a fee", b"12"),
    (":path", b"/"),
    ("gebühr", b"12"),
    ("fee\n", b"12"),
    ("fee", b"1\n2"),
    ("fee", b"1\0"),
    ("fee", "12 €".encode()),
    ("fee", b"\xff"),
]
"""Metadata that grpc refuses to send, or aborts the process on, or sends as something else."""


def _metadata(name: str, value: bytes) -> Iterator[tuple[str, Change]]:
    pair = outcome_pb2.Metadatum(key=name, value=value)
    yield f"initial {name!r} {value!r}", lambda record: record.outcome.initial_metadata.append(pair)
    yield f"trailing {name!r} {value!r}", lambda record: record.outcome.trailing_metadata.append(pair)


def _running(change: Change) -> Change:
    """Make the record RUNNING, then change it."""

    def changed(record: record_pb2.Record) -> None:
        record.state = record_pb2.STATE_RUNNING
        record.ClearField("outcome")
        record.lease.seconds, record.ttl.seconds = 30, 3600
        change(record)

    return changed


def _in_state(state: int, change: Change) -> Change:
    def changed(record: record_pb2.Record) -> None:
        record.state = state  # type: ignore[assignment]  # the stubs want one that is named
        change(record)

    return changed


def setting(path: str, value: Any) -> Change:
    """Sets the field at a dotted path."""
    *above, name = path.split(".")

    def change(record: record_pb2.Record) -> None:
        at: Any = record
        for part in above:
            at = getattr(at, part)
        setattr(at, name, value)

    return change


def clearing(name: str) -> Change:
    return lambda record: record.ClearField(name)  # type: ignore[arg-type]  # the stubs want a name of theirs


def _turns(*counts: int) -> Change:
    def change(record: record_pb2.Record) -> None:
        del record.outcome.turns[:]
        for count in counts:
            record.outcome.turns.add(responses=count).requests.CopyFrom(record.fingerprint)

    return change


def _binding(operation: bytes, scope: bytes) -> Change:
    return lambda record: record.binding.CopyFrom(record_pb2.Binding(operation=operation, scope=scope))


CHANGES: dict[str, Change] = {
    "no state": clearing("state"),
    "a state of a later release": setting("state", 99),
    "an attempt after which none can be counted": setting("attempt", 2**32 - 1),
    "a long owner": setting("owner", b"o" * 65),
    "no outcome": clearing("outcome"),
    "a code of a later release": setting("outcome.code", 17),
    "a negative code": setting("outcome.code", -1),
    "dropped messages that are there": setting("outcome.messages_dropped", True),
    "more turns than messages": _turns(1, 1, 1, 1),
    "fewer turns than messages": _turns(0),
    "a turn without an end": _turns(2**32 - 1),
    "no digest": setting("fingerprint.raw", b""),
    "a long digest": setting("fingerprint.raw", b"d" * 65),
    "a long canonical digest": setting("fingerprint.canonical", b"d" * 65),
    "no digest of the operation": _binding(b"", b"s" * 16),
    "a long digest of the scope": _binding(b"o" * 16, b"s" * 65),
    "running without a lease": _running(clearing("lease")),
    "running without an owner": _running(clearing("owner")),
    "running without an attempt": _running(clearing("attempt")),
    "running in the last attempt": _running(setting("attempt", 2**32 - 1)),
    "a lease of nothing": _running(setting("lease.seconds", 0)),
    "a negative lease": _running(setting("lease.seconds", -30)),
    "a lease longer than the ttl": _running(setting("lease.seconds", 3601)),
    "a lease without end": _running(setting("lease.seconds", 2**63 - 1)),
    "negative nanoseconds": _running(setting("lease.nanos", -1)),
    "a second of nanoseconds": _running(setting("lease.nanos", 10**9)),
    "a negative ttl": _running(setting("ttl.seconds", -(2**63))),
    "a ttl of ten thousand years": _running(setting("ttl.seconds", 315_576_000_000)),
    "a ttl without end": _running(setting("ttl.seconds", 2**63 - 1)),
    "an on_unclear of a later release": _running(setting("on_unclear", 9)),
    "open after the last attempt": _in_state(record_pb2.STATE_OPEN, setting("attempt", 2**32 - 1)),
    "open with a long owner": _in_state(record_pb2.STATE_OPEN, setting("owner", b"o" * 65)),
    **dict(change for pair in UNSENDABLE for change in _metadata(*pair)),
}
"""Each turns the DONE record of a real call into an invalid one."""


def _responses(*messages: bytes, in_turns: bool = False) -> Change:
    def change(record: record_pb2.Record) -> None:
        record.outcome.messages[:] = messages
        _turns(*[len(messages)] * in_turns)(record)

    return change


UNARY_CHANGES: dict[str, Change] = {
    "no response": _responses(),
    "two responses": _responses(b"", b""),
    "two responses in turns": _responses(b"", b"", in_turns=True),
    "a response to a failure": setting("outcome.code", 5),
}
"""The same for methods that have one response."""

JUNK = [b"\xff", b"an operator's note", bytes(100), b"\x0a", b"\x08\x03", b"\x42\xff\xff\xff\xff\x07"]
"""Bytes that are no record."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_names = st.sampled_from([name for name, _ in UNSENDABLE] + ["fee", "fee-bin", "idempotency-run"])


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([0, 1, 2, 3, 4, 99, -1])
    if field.cpp_type in _INTEGERS:
        least, most = _INTEGERS[field.cpp_type]
        return st.integers(max(least, -2), 20) | st.sampled_from([least, most, most - 1, 10**9])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.name == "key":
        return _names | st.text(max_size=8)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20) | st.sampled_from([b"d" * 16, b"x" * 70])
    return st.text(max_size=12)


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type with any values, though of no great size."""
    kind = GetMessageClass(descriptor)
    fields = {}
    for field in descriptor.fields:
        value = _values(field)
        is_single = isinstance(getattr(kind(), field.name), (str, bytes, bool, int, float, Message))
        fields[field.name] = st.none() | (value if is_single else st.lists(value, max_size=3))
    return st.fixed_dictionaries(fields).map(lambda given: kind(**given))


records = messages(record_pb2.Record.DESCRIPTOR).map(lambda record: record.SerializeToString())
"""Records with any values, serialized."""
