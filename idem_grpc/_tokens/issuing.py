"""What a TokenService does with its store, as generators that do no I/O.

Each yields batches of swaps, or a key to read; is sent the answers, and returns its own. An issued
token is an OPEN record that follows from its operation and scope alone, so the call that
uses it knows what to expect, and costs no more than one with a key of the client's own.
"""

import logging
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from idem_grpc._core.checks import rate_of, seconds_of
from idem_grpc._core.digest import digest, token_key
from idem_grpc._core.durations import Duration
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.problem import Problem, Reason, status_outcome
from idem_grpc._core.rate import NotCounted, counted
from idem_grpc._core.record import Binding, Record, State
from idem_grpc._core.swap import Held, Swap, Swapped

logger = logging.getLogger("idem_grpc")

PREFIX = "idt_"
"""What a token starts with, so that people and secret scanners recognise one."""

MOST_AT_ONCE = 100
_RANDOM_BYTES = 18

_UNREADABLE = (
    "this server cannot read what is known of the token, which a later release may have written:"
    " it stays as it is until somebody has looked"
)

_COUNT_UNREADABLE = (
    "this server cannot read how many tokens the caller was issued, which a later release may have"
    " written: none are issued until that has expired"
)

Asked = list[Swap] | bytes
"""Swaps to send in one batch, or a key to read."""

Answers = Sequence[Swapped | Held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """How tokens of one business operation are issued.

    ttl: how long an unused token lives; default 15 minutes. A used one lives as long as
        the policy's retention.
    max_ttl: the longest life that a caller may ask for; default 1 hour.
    issue_rate: tokens for one caller in so many seconds; default 600 in 900 s. Together
        with ``max_ttl`` it bounds what a caller can have the store keep.

    Durations are timedeltas or seconds. Raises ValueError or TypeError for settings that
    make no sense.
    """

    ttl: Duration = timedelta(minutes=15)
    max_ttl: Duration = timedelta(hours=1)
    issue_rate: tuple[int, Duration] = (600, timedelta(seconds=900))

    def __post_init__(self) -> None:
        ttl, max_ttl = (seconds_of("Operation", name, getattr(self, name)) for name in ("ttl", "max_ttl"))
        if ttl > max_ttl:
            raise ValueError(f"{self}: ttl must not be above max_ttl")
        rate_of("Operation", "issue_rate", self.issue_rate)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks: ``scope`` as the interceptor tells it, in the store's ``namespace``."""

    namespace: str
    scope: str


class Declined(Exception):
    """The caller gets this answer instead."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.details)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Found:
    """A token's record, and how many seconds it has left to live."""

    record: Record
    held: Held


def issue(
    subject: Subject, name: str, operation: Operation, count: int, ttl: float
) -> Generator[Asked, Answers, list[str]]:
    """Issue ``count`` tokens that live ``ttl`` seconds. Raises Declined over the rate."""
    yield from _count(subject, name, operation, count)
    unused = Record(state=State.OPEN, binding=Binding.of(name, subject.scope)).to_bytes()
    tokens = [PREFIX + secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(count)]
    yield [Swap(token_key(subject.namespace, token), None, unused, ttl) for token in tokens]
    return tokens


def _count(subject: Subject, name: str, operation: Operation, count: int) -> Generator[Asked, Answers, None]:
    """Add to the caller's count in the present window, which ends with the record."""
    most, period = rate = rate_of("Operation", "issue_rate", operation.issue_rate)
    key = digest("rate", subject.namespace.encode(), name.encode(), subject.scope.encode(), size=24)
    counting = counted(key, count, rate)
    try:
        swap = next(counting)
        while True:
            (seen,) = yield [swap]
            swap = counting.send(seen)
    except NotCounted as error:
        logger.warning("no tokens are issued: %s", error)
        raise Declined(Problem(Reason.OUTCOME_UNKNOWN, _COUNT_UNREADABLE).outcome()) from None
    except StopIteration as end:
        left: float = end.value
    if left:
        never = f": {count} at once are never issued" if count > most else ""
        raise Declined(
            status_outcome(
                Code.RESOURCE_EXHAUSTED,
                f"a caller is issued at most {most} tokens for {name} in {period:g} s{never}",
                delay_ms=round(left * 1000),
            )
        )


def look_up(subject: Subject, token: str) -> Generator[Asked, Answers, Found]:
    """Find a token. Raises Declined if it is not there or cannot be read, or is another caller's."""
    (held,) = yield token_key(subject.namespace, token)
    assert isinstance(held, Held), "a read changes nothing"
    record = Record.from_bytes(held.value)
    if record.state is State.UNREADABLE:  # as a call with this token is told
        raise Declined(Problem(Reason.OUTCOME_UNKNOWN, _UNREADABLE).outcome())
    if record.state is State.ABSENT or record.binding is None:
        raise Declined(status_outcome(Code.NOT_FOUND, "there is no such token, or it has expired"))
    if record.binding.scope != Binding.of("", subject.scope).scope:
        raise Declined(Problem(Reason.TOKEN_MISMATCH).outcome())
    return Found(record, held)


def revoke(subject: Subject, token: str) -> Generator[Asked, Answers, None]:
    """Delete an unused token. Raises Declined if it is in use, was used, or is another caller's."""
    while True:
        try:
            found = yield from look_up(subject, token)
        except Declined as declined:
            if declined.outcome.code is Code.NOT_FOUND:
                return
            raise
        if found.record.state is not State.OPEN or found.record.fingerprint is not None:
            raise Declined(
                status_outcome(
                    Code.FAILED_PRECONDITION, "the token is in use, or was used: it stays as it is"
                )
            )
        (seen,) = yield [Swap(token_key(subject.namespace, token), found.held.value, None, 1.0)]
        if isinstance(seen, Swapped):
            return
