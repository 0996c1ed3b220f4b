"""I/O-free operations of the TokenService: issue, look up and revoke.

They are generators that yield batches of swaps, or a key to read, and receive the store's replies. An
unused token is an OPEN record whose bytes follow from its operation and scope. The call that uses it
can therefore swap from these bytes at once, and costs no more than a call with a client's own key.
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
"""The prefix of every token, by which people and secret scanners recognise it."""

MAX_COUNT = 100
_RANDOM_BYTES = 18

_UNREADABLE = (
    "this server cannot read the record of the token, which a later release may have written:"
    " it is kept unchanged until an operator has examined it"
)

_COUNT_UNREADABLE = (
    "this server cannot read the count of the caller's tokens, which a later release may have written:"
    " no tokens are issued until that count has expired"
)

StoreRequest = list[Swap] | bytes
"""Swaps to send in one batch, or a key to read."""

StoreReplies = Sequence[Swapped | Held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Settings for the tokens of one business operation.

    ttl: the life of an unused token; default 15 minutes. A used token is kept for the policy's
        retention.
    max_ttl: the longest life that a caller may request; default 1 hour.
    issue_rate: a number of tokens and a period: the most that one caller is issued per period;
        default 600 in 900 seconds. With ``max_ttl``, it bounds a caller's unused tokens in the store.

    Durations are timedeltas or seconds. Raises ValueError or TypeError for invalid settings.
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
    """A caller: its ``scope``, from the interceptor, and the store's ``namespace``."""

    namespace: str
    scope: str


class Declined(Exception):
    """A request that is refused with ``outcome``."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.details)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class FoundToken:
    """A token's record, and the store's value with the seconds until it expires."""

    record: Record
    held: Held


def issue(
    subject: Subject, name: str, operation: Operation, count: int, ttl: float
) -> Generator[StoreRequest, StoreReplies, list[str]]:
    """Issue ``count`` tokens that live ``ttl`` seconds. Raises Declined if the rate is exceeded."""
    yield from _count(subject, name, operation, count)
    unused = Record(state=State.OPEN, binding=Binding.of(name, subject.scope)).to_bytes()
    tokens = [PREFIX + secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(count)]
    yield [Swap(token_key(subject.namespace, token), None, unused, ttl) for token in tokens]
    return tokens


def _count(
    subject: Subject, name: str, operation: Operation, count: int
) -> Generator[StoreRequest, StoreReplies, None]:
    """Add to the caller's count in the current window, which ends when the count's record expires."""
    most, period = rate = rate_of("Operation", "issue_rate", operation.issue_rate)
    key = digest("rate", subject.namespace.encode(), name.encode(), subject.scope.encode(), size=24)
    counting = counted(key, count, rate)
    try:
        swap = next(counting)
        while True:
            (seen,) = yield [swap]
            swap = counting.send(seen)
    except NotCounted as error:
        logger.warning("tokens cannot be issued: %s", error)
        raise Declined(Problem(Reason.OUTCOME_UNKNOWN, _COUNT_UNREADABLE).outcome()) from None
    except StopIteration as end:
        left: float = end.value
    if left:
        never = f": {count} at once are never issued" if count > most else ""
        raise Declined(
            status_outcome(
                Code.RESOURCE_EXHAUSTED,
                f"a caller may be issued at most {most} tokens for {name} in {period:g} s{never}",
                delay_ms=round(left * 1000),
            )
        )


def look_up(subject: Subject, token: str) -> Generator[StoreRequest, StoreReplies, FoundToken]:
    """Read a token's record. Raises Declined if it is absent, unreadable or another caller's."""
    (held,) = yield token_key(subject.namespace, token)
    assert isinstance(held, Held), "a read changes nothing"
    record = Record.from_bytes(held.value)
    if record.state is State.UNREADABLE:  # the same reason as for a call with this token
        raise Declined(Problem(Reason.OUTCOME_UNKNOWN, _UNREADABLE).outcome())
    if record.state is State.ABSENT or record.binding is None:
        raise Declined(status_outcome(Code.NOT_FOUND, "the token does not exist, or has expired"))
    if record.binding.scope != Binding.of("", subject.scope).scope:
        raise Declined(Problem(Reason.TOKEN_MISMATCH).outcome())
    return FoundToken(record, held)


def revoke(subject: Subject, token: str) -> Generator[StoreRequest, StoreReplies, None]:
    """Delete an unused token; an absent one is no error.

    Raises Declined if it is in use, was used, is unreadable or is another caller's.
    """
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
                    Code.FAILED_PRECONDITION, "the token is in use or was used, and is not revoked"
                )
            )
        (seen,) = yield [Swap(token_key(subject.namespace, token), found.held.value, None, 1.0)]
        if isinstance(seen, Swapped):
            return
