"""What a flow asks of its driver, a Step, and what came of it, an Event.

Swap is a step too, and Swapped and Held are events.
"""

from collections.abc import Generator, Set
from dataclasses import dataclass
from enum import Enum

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.problem import Problem, is_refusal
from idem_grpc._core.record import Record
from idem_grpc._core.swap import Held, Swap, Swapped


class Ending(Enum):
    """The class of a handler's end."""

    DECIDED = "decided: every duplicate gets this answer"
    MENDABLE = "nothing happened, the request was wrong: the caller may mend it under the same key"
    NOT_NOW = "nothing happened: a retry runs again"
    UNCLEAR = "nobody knows what happened: on_unclear decides"


ENDINGS = {
    Code.OK: Ending.DECIDED,
    Code.INVALID_ARGUMENT: Ending.MENDABLE,
    Code.OUT_OF_RANGE: Ending.MENDABLE,
    Code.UNIMPLEMENTED: Ending.MENDABLE,
    Code.PERMISSION_DENIED: Ending.MENDABLE,
    Code.UNAUTHENTICATED: Ending.MENDABLE,
    Code.RESOURCE_EXHAUSTED: Ending.NOT_NOW,
    Code.ABORTED: Ending.NOT_NOW,
}
"""Codes that are not here are unclear, unless the policy's ``replay_errors`` has them.

UNAVAILABLE is unclear because it is often passed on from a call that did commit.
"""


def ending_of(outcome: Outcome, replay_errors: Set[Code]) -> Ending:
    """The class of an answer by its status, where the handler said nothing else.

    A refusal passed on from downstream says nothing of this call, so it is not kept.
    """
    if outcome.code in replay_errors and not is_refusal(outcome):
        return Ending.DECIDED
    return ENDINGS.get(outcome.code, Ending.UNCLEAR)


@dataclass(slots=True, unsafe_hash=True)
class Wait:
    """Wait for the run of ``owner``: until it replies if it is in this process, else
    about ``seconds``, and never longer than the call may wait. The event is Waited."""

    owner: bytes
    seconds: float


@dataclass(slots=True, unsafe_hash=True)
class TakeOver:
    """Find out whether the run of ``owner``, whose lease of ``lease`` seconds has run out, may be taken
    for dead. The event is Waited, with ``hold`` if it is too early to say."""

    owner: bytes
    lease: float


@dataclass(slots=True, unsafe_hash=True)
class Execute:
    """Run the handler under ``record``, renewing it. The event is Ended, or TooLate.

    ``acknowledged`` is False for a run that starts although the store did not confirm its claim:
    it has no lease to start under.
    """

    record: Record
    swap: Swap
    acknowledged: bool = True


@dataclass(slots=True, unsafe_hash=True)
class Compare:
    """Read the call's request stream as far as ``requests`` goes, and see that it is the same.

    Each response of ``outcome`` whose turn comes may be sent meanwhile, to a client that
    takes turns; they tell of ``run``, if any. The event is Compared.
    """

    outcome: Outcome
    requests: Fingerprint
    run: bytes


@dataclass(slots=True, unsafe_hash=True)
class Reply:
    """Answer the call, once. ``owner`` names the run that the answer tells of, if any.

    ``replayed`` tells that another call's run made the answer, and ``requests``, for a
    request stream, what it answers. ``is_shared`` is False for an answer that is of no use
    to those who wait for the same. ``protected`` is False for that of a run that began without its
    claim. There is no event.
    """

    answer: Outcome | Problem
    owner: bytes = b""
    replayed: bool = False
    requests: Fingerprint | None = None
    is_shared: bool = True
    protected: bool = True

    @property
    def run(self) -> bytes:
        """The owner of the run whose id the caller gets, if any."""
        return self.owner if self.protected else b""


@dataclass(slots=True, unsafe_hash=True)
class Pause:
    """Wait ``seconds`` before the store is asked again. There is no event."""

    seconds: float


Step = Swap | Wait | TakeOver | Execute | Compare | Reply | Pause


@dataclass(slots=True, unsafe_hash=True)
class Outage:
    """The store did not answer, and whether the swap took effect is not known.

    ``misused``: it will not answer later either, since it was set up wrongly. ``sent`` is False
    if the swap never left this process, and so had no effect.
    """

    misused: bool = False
    sent: bool = True


@dataclass(slots=True, unsafe_hash=True)
class Full:
    """Nothing was sent: the call would be claimed, and too many runs are under way for another to begin."""


@dataclass(slots=True, unsafe_hash=True)
class Waited:
    """``reply`` is the run's, if it made one here. ``more``: the call may wait on.

    ``hold``: seconds for which no run may be taken for dead, because the store was away.
    """

    reply: Reply | None = None
    more: bool = True
    hold: float = 0.0


@dataclass(slots=True, unsafe_hash=True)
class TooLate:
    """The handler was not started: the lease of its claim has run out, or nearly so."""


@dataclass(slots=True, unsafe_hash=True)
class Ended:
    """The handler came to an end, which is of the class ``ending``.

    ``requests`` is what it has read of a request stream. ``caller_left``: it ended as it did
    because its own caller went away, or sent what is no request.
    """

    outcome: Outcome
    ending: Ending
    requests: Fingerprint | None = None
    caller_left: bool = False


@dataclass(slots=True, unsafe_hash=True)
class Compared:
    """Whether the request stream was the same."""

    same: bool


Event = Swapped | Held | Outage | Full | Waited | TooLate | Ended | Compared | None

Steps = Generator[Step, Event, None]
