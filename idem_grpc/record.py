"""What a store holds under one key: the whole state of a keyed call."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import record_pb2

from idem_grpc.digest import LONGEST as LONGEST_DIGEST
from idem_grpc.digest import digest
from idem_grpc.fingerprint import Fingerprint
from idem_grpc.outcome import Outcome

LONGEST = timedelta(days=3653).total_seconds()
"""Of any duration that a policy may have, in seconds."""

_LAST_ATTEMPT = 2**32 - 2  # after which there is room for one claim
_LONGEST_OWNER = 64  # bytes


class State(Enum):
    """Where a key stands. ABSENT and UNREADABLE are found in a store, never written."""

    ABSENT = "absent"
    UNREADABLE = "unreadable"
    OPEN = record_pb2.STATE_OPEN
    RUNNING = record_pb2.STATE_RUNNING
    DONE = record_pb2.STATE_DONE
    UNKNOWN = record_pb2.STATE_UNKNOWN


class OnUnclear(Enum):
    """What becomes of an attempt whose end is unclear, such as a crash.

    RERUN: the next duplicate runs the handler again. FAIL: nobody runs it again
    until somebody has looked; duplicates are told OUTCOME_UNKNOWN.
    """

    RERUN = record_pb2.ON_UNCLEAR_RERUN
    FAIL = record_pb2.ON_UNCLEAR_FAIL


@dataclass(frozen=True, slots=True)
class Binding:
    """What an issued token is good for: digests of an operation and a scope."""

    operation: bytes
    scope: bytes

    @classmethod
    def of(cls, operation: str, scope: str) -> Self:
        """The binding of a token that is issued for ``operation`` to ``scope``."""
        return cls(digest("operation", operation.encode()), digest("scope", scope.encode()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The value under one key; record.proto says what each field means."""

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

    def to_bytes(self) -> bytes:
        message = record_pb2.Record(state=self.state.value, attempt=self.attempt, owner=self.owner)
        if self.fingerprint is not None:
            message.fingerprint.CopyFrom(self.fingerprint.to_message())
        if self.state is State.RUNNING:
            message.lease.CopyFrom(_duration(self.lease))
            message.ttl.CopyFrom(_duration(self.ttl))
            message.on_unclear = self.on_unclear.value
        if self.outcome is not None:
            message.outcome.CopyFrom(self.outcome.to_message())
        if self.by_hand:
            message.by_hand = True
        if self.binding is not None:
            message.binding.operation = self.binding.operation
            message.binding.scope = self.binding.scope
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, value: bytes | None) -> Self:
        """Read what a store returned; what this release cannot act upon is UNREADABLE."""
        if value is None:
            return cls(state=State.ABSENT)
        found: object = value
        if not isinstance(found, bytes):  # what a person put into a database may be text
            return cls(state=State.UNREADABLE)
        try:
            return cls._from_message(record_pb2.Record.FromString(value))
        except (DecodeError, ValueError):
            return cls(state=State.UNREADABLE)

    @classmethod
    def _from_message(cls, message: record_pb2.Record) -> Self:
        """Raises ValueError for a record that no release writes, or that only a later one knows.

        Fields that belong to another state, and those of a later release, are ignored.
        """
        state = State(message.state)
        attempt, owner = message.attempt, message.owner
        if attempt > _LAST_ATTEMPT or len(owner) > _LONGEST_OWNER:
            raise ValueError("an attempt or an owner that no claim has")
        fingerprint, outcome, binding = None, None, None
        lease, ttl, on_unclear = 0.0, 0.0, OnUnclear.RERUN
        if message.HasField("fingerprint"):
            fingerprint = Fingerprint.from_message(message.fingerprint)
        if message.HasField("binding"):
            binding = Binding(message.binding.operation, message.binding.scope)
            if not all(1 <= len(part) <= LONGEST_DIGEST for part in (binding.operation, binding.scope)):
                raise ValueError("no digests of an operation and a scope")
        if state is State.RUNNING:
            if not (attempt and owner):
                raise ValueError("RUNNING without an attempt or an owner")
            lease = _seconds(message.lease)
            if message.ttl.seconds or message.ttl.nanos:  # a record that does not say it is never taken over
                ttl = _seconds(message.ttl)
                if lease > ttl:
                    raise ValueError("a lease that outlives its record")
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


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def _seconds(duration: Duration) -> float:
    """Raises ValueError for a time that no policy has."""
    seconds = (duration.seconds * 1000 + duration.nanos // 1_000_000) / 1000
    if not (0 <= duration.nanos < 1_000_000_000 and 0.001 <= seconds <= LONGEST):
        raise ValueError(f"{duration} is no lease, nor a time to live")
    return seconds
