"""What a store holds under one key: the whole state of a keyed call."""

from dataclasses import dataclass
from enum import Enum
from typing import Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import record_pb2

from idem_grpc.digest import digest
from idem_grpc.fingerprint import Fingerprint
from idem_grpc.outcome import Outcome


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
        if self.binding is not None:
            message.binding.operation = self.binding.operation
            message.binding.scope = self.binding.scope
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, value: bytes | None) -> Self:
        """Read what a store returned; what no version of ours wrote is UNREADABLE."""
        if value is None:
            return cls(state=State.ABSENT)
        try:
            return cls._from_message(record_pb2.Record.FromString(value))
        except (DecodeError, ValueError):
            return cls(state=State.UNREADABLE)

    @classmethod
    def _from_message(cls, message: record_pb2.Record) -> Self:
        state = State(message.state)
        if state is State.DONE and not message.HasField("outcome"):
            raise ValueError("DONE without an outcome")
        return cls(
            state=state,
            attempt=message.attempt,
            owner=message.owner,
            fingerprint=Fingerprint.from_message(message.fingerprint)
            if message.HasField("fingerprint")
            else None,
            lease=message.lease.ToMilliseconds() / 1000,
            ttl=message.ttl.ToMilliseconds() / 1000,
            on_unclear=OnUnclear(message.on_unclear or record_pb2.ON_UNCLEAR_RERUN),
            outcome=Outcome.from_message(message.outcome) if state is State.DONE else None,
            binding=Binding(message.binding.operation, message.binding.scope)
            if message.HasField("binding")
            else None,
        )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
