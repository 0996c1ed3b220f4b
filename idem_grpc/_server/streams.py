"""What goes over the streams of a call, as its duplicates will be told it.

None of this does I/O: a driver reads and sends, and hands over what it has.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from idem_grpc._core.fingerprint import Fingerprint, StreamFingerprint
from idem_grpc._core.outcome import Outcome, Turn
from idem_grpc._core.steps import Compare
from idem_grpc._server.admission import Method, Refused, parsed

EOF_HOLD = (0.005,) * 10
"""Seconds for which the end of a request stream is held back, in steps. In grpc.aio a stream that
was cut looks the same, and in grpc one in five does; only the cancel that comes with it tells, a
millisecond or two later. In a process whose threads keep each other waiting it comes later, and
so do the steps."""

_LEAST = 16
_TURN = 64
"""Bytes that a response, however small, and a further turn count for: so much they take up to keep."""

_SLACK = 64 * 1024
"""Bytes by which a request stream may outgrow twice the one it is compared with: another
version of the client can serialize the same messages otherwise."""


class Incoming:
    """A request stream as far as it was read: parsed, and fingerprinted.

    ``whole``: its end was seen. ``cut``: it broke off before. ``malformed``: a message could not be
    parsed. Nothing is read after that, and the call fails whatever its handler makes of it.
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
        """The next message, parsed. Raises Refused for bytes that are none."""
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
        """The fingerprint of what was read."""
        return self._fingerprint.so_far(whole=self.whole)


class Outgoing:
    """The responses of a stream, kept up to ``limit`` bytes, and the turns they were sent in."""

    def __init__(self, limit: int, incoming: Incoming | None) -> None:
        self._limit = limit
        self._incoming = incoming
        self._size = 0
        self._messages: list[bytes] = []
        self._turns: list[Turn] = []

    def add(self, message: bytes) -> None:
        """Take in a response that is about to be sent."""
        self._size += max(len(message), _LEAST)
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
            self._size += _TURN if self._turns else 0
            self._turns.append(Turn(requests, 1))

    def outcome(self, outcome: Outcome) -> Outcome:
        """``outcome`` with these responses, or as a tombstone if they were too large."""
        if self._size > self._limit:
            return replace(outcome, messages_dropped=True)
        return replace(outcome, messages=tuple(self._messages), turns=tuple(self._turns))


def compare(
    incoming: Incoming, wanted: Compare, *, has_turns: bool
) -> Generator[bytes | None, bytes | None, bool]:
    """Tell whether a duplicate's request stream is the one that was answered.

    Yields None to be sent its next message, or None at its end; and, for a method that ``has_turns``
    since it streams both ways, each response whose turn has come, to be passed on to a client that
    waits for it. Gives up on a stream that is much larger than the one that was answered.
    """
    responses = iter(wanted.outcome.messages)
    for turn in wanted.outcome.turns if has_turns else ():
        if not (yield from _reads_as(incoming, turn.requests)):
            return False
        for _ in range(turn.responses):
            yield next(responses)
    return (yield from _reads_as(incoming, wanted.requests))


def _reads_as(incoming: Incoming, wanted: Fingerprint) -> Generator[bytes | None, bytes | None, bool]:
    while incoming.messages < wanted.messages:
        raw = yield None
        if raw is None:
            return False
        incoming.take(raw)
        if incoming.size > 2 * wanted.size + _SLACK:
            return False
    if wanted.whole and not incoming.whole and (yield None) is not None:
        return False
    return incoming.so_far().matches(wanted)
