"""Record a call's streams, so that duplicates can be compared and replayed. Does no I/O."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from idem_grpc._core.fingerprint import Fingerprint, StreamFingerprint
from idem_grpc._core.outcome import Outcome, Turn
from idem_grpc._core.steps import Compare
from idem_grpc._server.admission import Method, Refused, parsed

EOF_HOLD = (0.005,) * 10
"""Seconds to wait at the end of a request stream, in steps, to tell a complete stream from a cut one.

In grpc.aio a cut stream ends in the same way as a complete one, and in grpc one in five does. Only the
cancellation of the call shows the difference, a millisecond or two later. In a process whose threads are
busy the cancellation comes later, but so do the steps."""

_MIN_RESPONSE_BYTES = 16
_TURN_BYTES = 64
"""The least number of bytes that a response counts for, and the bytes of each further turn: their
storage overhead."""

_SLACK_BYTES = 64 * 1024
"""Bytes that a request stream may have in addition to twice the size of the one it is compared with.
Another version of the client may serialize the same messages differently."""


class Incoming:
    """Parses a request stream and takes its fingerprint, as far as it is read.

    whole: whether its end was reached.
    cut: whether it broke off before its end.
    malformed: whether a message could not be parsed. Nothing is read after that, and the call fails
        whatever its handler does.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._fingerprint = StreamFingerprint(method.path, method.rules.ignore)
        self.messages = 0
        self.size = 0
        self.whole = False
        self.cut = False
        self.malformed = False

    def take(self, raw: bytes) -> Any:
        """Parse and count the next message. Raises Refused if it cannot be parsed."""
        try:
            parse = self._method.parse
            request = raw if parse is None else parsed(raw, parse)
            read = self._method.readable(raw, request)
        except Refused:
            self.malformed = True
            raise
        self._fingerprint.add(raw, read)
        self.messages += 1
        self.size += len(raw)
        return request

    def so_far(self) -> Fingerprint:
        """Return the fingerprint of what was read so far."""
        return self._fingerprint.so_far(whole=self.whole)


class StreamedResponses:
    """Records the responses of a stream, up to ``limit`` bytes, and the turns in which they were sent."""

    def __init__(self, limit: int, incoming: Incoming | None) -> None:
        self._limit = limit
        self._incoming = incoming
        self._size = 0
        self._messages: list[bytes] = []
        self._turns: list[Turn] = []

    def add(self, message: bytes) -> None:
        """Record a response that is about to be sent."""
        self._size += max(len(message), _MIN_RESPONSE_BYTES)
        if self._incoming is not None and self._size <= self._limit:
            self._add_to_turn(self._incoming.so_far())
        if self._size <= self._limit:
            self._messages.append(message)
        else:
            self._messages.clear()
            self._turns.clear()

    def _add_to_turn(self, requests: Fingerprint) -> None:
        if self._turns and self._turns[-1].requests == requests:
            self._turns[-1] = replace(self._turns[-1], responses=self._turns[-1].responses + 1)
        else:
            self._size += _TURN_BYTES if self._turns else 0
            self._turns.append(Turn(requests, 1))

    def outcome(self, outcome: Outcome) -> Outcome:
        """Return ``outcome`` with the recorded responses, or as a tombstone if they were too large."""
        if self._size > self._limit:
            return replace(outcome, messages_dropped=True)
        return replace(outcome, messages=tuple(self._messages), turns=tuple(self._turns))


def compare(
    incoming: Incoming, wanted: Compare, *, has_turns: bool
) -> Generator[bytes | None, bytes | None, bool]:
    """Compare a duplicate's request stream with the one that was answered. A generator without I/O.

    Yields None to ask for the next message, and expects it to be sent, or None at the end of the stream.
    If ``has_turns``, which is set for methods that stream both ways, it also yields each response whose
    turn has come, to be sent to a client that waits for it. Returns whether the streams are the same;
    False, too, as soon as the duplicate's stream is much larger.
    """
    responses = iter(wanted.outcome.messages)
    for turn in wanted.outcome.turns if has_turns else ():
        if not (yield from _matches(incoming, turn.requests)):
            return False
        for _ in range(turn.responses):
            yield next(responses)
    return (yield from _matches(incoming, wanted.requests))


def _matches(incoming: Incoming, wanted: Fingerprint) -> Generator[bytes | None, bytes | None, bool]:
    while incoming.messages < wanted.messages:
        raw = yield None
        if raw is None:
            return False
        incoming.take(raw)
        if incoming.size > 2 * wanted.size + _SLACK_BYTES:
            return False
    if wanted.whole and not incoming.whole and (yield None) is not None:
        return False
    return incoming.so_far().matches(wanted)
