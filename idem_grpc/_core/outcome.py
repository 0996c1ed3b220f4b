"""The answer to a call, kept as the bytes in which it was first sent."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

from idem_grpc_pb.v1 import outcome_pb2

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.metadata import is_sendable
from idem_grpc._core.wire import field

Metadata = tuple[tuple[str, str | bytes], ...]


class Code(IntEnum):
    """The status codes of gRPC, with the names and numbers of google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(slots=True, unsafe_hash=True)
class Turn:
    """How many responses were sent after ``requests`` had been read, and before more were."""

    requests: Fingerprint
    responses: int


@dataclass(slots=True, unsafe_hash=True)
class Outcome:
    """A status with its metadata, and the serialized responses that were sent before it.

    ``messages_dropped``: the responses were too large to be kept.
    """

    code: Code = Code.OK
    details: str = ""
    initial_metadata: Metadata = ()
    trailing_metadata: Metadata = ()
    messages: tuple[bytes, ...] = ()
    messages_dropped: bool = False
    turns: tuple[Turn, ...] = ()

    @property
    def size(self) -> int:
        """The total size of its messages in bytes."""
        return sum(map(len, self.messages))

    def limited_to(self, max_bytes: int) -> Self:
        """Return this outcome, or a copy without messages if these are larger than ``max_bytes``."""
        if self.size <= max_bytes:
            return self
        return replace(self, messages=(), turns=(), messages_dropped=True)

    def trailer(self, key: str) -> str | bytes | None:
        """Return the last value of ``key`` in the trailing metadata; None if there is none."""
        return dict(self.trailing_metadata).get(key)

    def to_bytes(self) -> bytes:
        """Serialize as protobuf does. The common outcome of one message is encoded by hand, for speed."""
        if len(self.messages) == 1 and not (
            self.code or self.details or self.initial_metadata or self.trailing_metadata or self.turns
        ):
            return field(5, self.messages[0])
        return self.to_message().SerializeToString(deterministic=True)

    def to_message(self) -> outcome_pb2.Outcome:
        return outcome_pb2.Outcome(
            code=self.code,
            details=self.details,
            initial_metadata=map(_metadatum, self.initial_metadata),
            trailing_metadata=map(_metadatum, self.trailing_metadata),
            messages=self.messages,
            messages_dropped=self.messages_dropped,
            turns=[
                outcome_pb2.Turn(requests=turn.requests.to_message(), responses=turn.responses)
                for turn in self.turns
            ],
        )

    @classmethod
    def from_message(cls, message: outcome_pb2.Outcome) -> Self:
        """Read a stored outcome. Raises ValueError if no server could send it as it stands."""
        messages = tuple(message.messages)
        turns = tuple(
            [Turn(Fingerprint.from_message(turn.requests), turn.responses) for turn in message.turns]
        )
        if turns and sum([turn.responses for turn in turns]) != len(messages):
            raise ValueError("the turns do not match the messages")
        if message.messages_dropped and messages:
            raise ValueError("there are messages although they were dropped")
        return cls(
            code=Code(message.code),
            details=message.details,
            initial_metadata=_pairs(message.initial_metadata),
            trailing_metadata=_pairs(message.trailing_metadata),
            messages=messages,
            messages_dropped=message.messages_dropped,
            turns=turns,
        )


def _metadatum(pair: tuple[str, str | bytes]) -> outcome_pb2.Metadatum:
    key, value = pair
    return outcome_pb2.Metadatum(key=key, value=value.encode() if isinstance(value, str) else value)


def _pairs(metadata: Iterable[outcome_pb2.Metadatum]) -> Metadata:
    """Read stored metadata. Raises ValueError for entries that gRPC cannot send: some abort the process."""
    return tuple([_pair(each.key, each.value) for each in metadata])


def _pair(key: str, value: bytes) -> tuple[str, str | bytes]:
    if not is_sendable(key, value):
        raise ValueError("gRPC cannot send the metadata")
    return key, value if key.endswith("-bin") else value.decode()
