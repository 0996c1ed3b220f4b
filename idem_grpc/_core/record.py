"""The record that a store holds under one key: the whole state of a keyed call."""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import record_pb2

from idem_grpc._core.digest import LONGEST as LONGEST_DIGEST
from idem_grpc._core.digest import digest
from idem_grpc._core.durations import LONGEST
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.wire import field, read_varint, varint

_LAST_ATTEMPT = 2**32 - 2  # leaves room for one more claim
_LONGEST_OWNER = 64  # bytes


class State(Enum):
    """The state of a key. ABSENT and UNREADABLE are found in a store, and never written."""

    ABSENT = "absent"
    UNREADABLE = "unreadable"
    OPEN = record_pb2.STATE_OPEN
    RUNNING = record_pb2.STATE_RUNNING
    DONE = record_pb2.STATE_DONE
    UNKNOWN = record_pb2.STATE_UNKNOWN


class OnUnclear(Enum):
    """What follows an attempt whose end is unclear, such as a crash.

    RERUN: the next duplicate runs the handler again.
    FAIL: the handler is not run again until an operator has looked at the key; duplicates are refused
        with OUTCOME_UNKNOWN.
    """

    RERUN = record_pb2.ON_UNCLEAR_RERUN
    FAIL = record_pb2.ON_UNCLEAR_FAIL


@dataclass(slots=True, unsafe_hash=True)
class Binding:
    """The operation and the scope that a token was issued for, as digests."""

    operation: bytes
    scope: bytes

    @classmethod
    def of(cls, operation: str, scope: str) -> Self:
        """Return the binding of a token that is issued for ``operation`` to ``scope``."""
        return cls(digest("operation", operation.encode()), digest("scope", scope.encode()))

    def to_bytes(self) -> bytes:
        return field(1, self.operation) + field(2, self.scope)


@dataclass(slots=True, unsafe_hash=True, kw_only=True)
class Record:
    """The value under one key. record.proto documents each field."""

    state: State
    attempt: int = 0
    owner: bytes = b""
    fingerprint: Fingerprint | None = None
    lease: float = 0.0
    ttl: float = 0.0
    on_unclear: OnUnclear = OnUnclear.RERUN
    outcome: Outcome | None = None
    binding: Binding | None = None
    by_hand: bool = False

    @property
    def max_left_of_dead(self) -> float:
        """The most seconds that a RUNNING record may have left to live once its owner's lease has run out.

        A takeover swaps with it as ``max_left``, so that a renewal which came first wins.
        """
        return self.ttl - self.lease

    def lease_left(self, ttl_left: float) -> float:
        """Seconds until the owner of a RUNNING record may be treated as dead, on the store's clock.

        ``ttl_left`` is how long the record has left to live. The record contains the time to live with which
        it was written, so the difference shows how long ago its owner last wrote. A record with more time
        left than it was written with, or without an expiry, counts as alive.
        """
        return ttl_left - self.max_left_of_dead

    def to_bytes(self) -> bytes:
        """Serialize byte for byte as protobuf does."""
        is_running = self.state is State.RUNNING
        known, attempt, owner = self.fingerprint, self.attempt, self.owner
        if known is not None and known.is_plain and len(owner) == 8 and 0 < attempt < 0x80:
            parts = [_PLAIN % (self.state._value_, attempt, owner, known.raw, known.canonical)]
        else:
            parts = [b"\x08%c" % self.state.value]
            if attempt:
                parts += (b"\x10", varint(attempt))
            if owner:
                parts.append(field(3, owner))
            if known is not None:
                parts.append(field(4, known.to_bytes()))
        if is_running:
            strict = self.on_unclear is OnUnclear.FAIL
            parts.append(_running_fields(self.lease, self.ttl, strict))
        if self.outcome is not None:
            parts.append(field(8, self.outcome.to_bytes()))
        if self.binding is not None:
            parts.append(field(9, self.binding.to_bytes()))
        if self.by_hand:
            parts.append(b"\x50\x01")
        return b"".join(parts)

    def done(self, outcome: Outcome, fingerprint: Fingerprint | None) -> "Record":
        """Return the record of an attempt that ended with an outcome to keep."""
        return Record(
            state=State.DONE,
            attempt=self.attempt,
            owner=self.owner,
            fingerprint=fingerprint,
            outcome=outcome,
            binding=self.binding,
        )

    @classmethod
    def from_bytes(cls, value: bytes | None) -> Self:
        """Read what a store returned. A value that this release cannot act upon is UNREADABLE."""
        if value is None:
            return cls(state=State.ABSENT)
        found: object = value
        if not isinstance(found, bytes):  # a value that was edited by hand may be text
            return cls(state=State.UNREADABLE)
        try:
            if plain := _PLAIN_DONE.match(value):
                messages = _only_message(value, plain.end())
                if messages:
                    attempt, owner, raw, canonical = plain.groups()
                    return cls(
                        state=State.DONE,
                        attempt=attempt[0],
                        owner=owner,
                        fingerprint=Fingerprint(raw, canonical),
                        outcome=Outcome(messages=messages),
                    )
            return cls._from_message(record_pb2.Record.FromString(value))
        except (DecodeError, ValueError):
            return cls(state=State.UNREADABLE)

    @classmethod
    def _from_message(cls, message: record_pb2.Record) -> Self:
        """Read a message. Raises ValueError for a record that no release writes, or only a later one.

        Fields that belong to another state, and those of a later release, are ignored.
        """
        state = State(message.state)
        attempt, owner = message.attempt, message.owner
        if attempt > _LAST_ATTEMPT or len(owner) > _LONGEST_OWNER:
            raise ValueError("no claim has such an attempt or owner")
        fingerprint, outcome, binding = None, None, None
        lease, ttl, on_unclear = 0.0, 0.0, OnUnclear.RERUN
        if message.HasField("fingerprint"):
            fingerprint = Fingerprint.from_message(message.fingerprint)
        if message.HasField("binding"):
            binding = Binding(message.binding.operation, message.binding.scope)
            if not all(1 <= len(part) <= LONGEST_DIGEST for part in (binding.operation, binding.scope)):
                raise ValueError("a digest of the binding is missing or too long")
        if state is State.RUNNING:
            if not (attempt and owner):
                raise ValueError("RUNNING without an attempt or an owner")
            lease = _seconds(message.lease)
            if message.ttl.seconds or message.ttl.nanos:  # without a ttl, a record is never taken over
                ttl = _seconds(message.ttl)
                if lease > ttl:
                    raise ValueError("the lease is longer than the ttl")
            on_unclear = OnUnclear(message.on_unclear or record_pb2.ON_UNCLEAR_RERUN)
        elif state is State.DONE:
            if not message.HasField("outcome"):
                raise ValueError("DONE without an outcome")
            outcome = Outcome.from_message(message.outcome)
        return cls(
            state=state,
            attempt=attempt,
            owner=owner,
            fingerprint=fingerprint,
            lease=lease,
            ttl=ttl,
            on_unclear=on_unclear,
            outcome=outcome,
            binding=binding,
            by_hand=message.by_hand and state is State.DONE,
        )


def is_done(value: bytes) -> bool:
    """Return whether a stored value is a DONE record, or at least begins like one."""
    return value.startswith(_DONE)


_DONE = b"\x08%c" % State.DONE.value


@lru_cache
def _running_fields(lease: float, ttl: float, strict: bool) -> bytes:
    """Serialize the fields that only a RUNNING record has, which are adjacent."""
    on_unclear = OnUnclear.FAIL if strict else OnUnclear.RERUN
    message = record_pb2.Record(lease=_duration(lease), ttl=_duration(ttl), on_unclear=on_unclear.value)
    return message.SerializeToString(deterministic=True)


# The first four fields of most records: one of the first attempts at a single request.
_PLAIN = b"\x08%c\x10%c\x1a\x08%b\x22\x24\x0a\x10%b\x12\x10%b"
# Most DONE records, up to the outcome: the same fields, and no binding.
_PLAIN_DONE = re.compile(
    rb"\x08\x03\x10([\x01-\x7f])\x1a\x08(.{8})\x22\x24\x0a\x10(.{16})\x12\x10(.{16})\x42", re.DOTALL
)


def _only_message(value: bytes, start: int) -> tuple[bytes, ...]:
    """Return the message of an outcome with one message and nothing else, if nothing follows it; else ()."""
    try:
        size, start = value[start], start + 1
        if size >= 0x80:
            size, start = read_varint(value, start - 1)
        if start + size != len(value) or value[start] != 0x2A:
            return ()
        size, start = value[start + 1], start + 2
        if size >= 0x80:
            size, start = read_varint(value, start - 1)
    except IndexError:
        return ()
    return (value[start:],) if start + size == len(value) else ()


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def _seconds(duration: Duration) -> float:
    """Convert to seconds. Raises ValueError for a duration that no policy allows."""
    seconds = (duration.seconds * 1000 + duration.nanos // 1_000_000) / 1000
    if not (0 <= duration.nanos < 1_000_000_000 and 0.001 <= seconds <= LONGEST):
        raise ValueError(f"{duration} is not a valid lease or time to live")
    return seconds
