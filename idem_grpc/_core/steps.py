"""The steps that a flow yields to its driver, and the events that it is sent in return.

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
    """What the end of a handler means for its key."""

    DECIDED = "decided: every duplicate gets this answer"
    FIXABLE = "nothing happened, the request was wrong: the caller may fix it under the same key"
    NOT_NOW = "nothing happened: a retry runs again"
    UNCLEAR = "unknown what happened: on_unclear decides"


ENDINGS = {
    Code.OK: Ending.DECIDED,
    Code.INVALID_ARGUMENT: Ending.FIXABLE,
    Code.OUT_OF_RANGE: Ending.FIXABLE,
    Code.UNIMPLEMENTED: Ending.FIXABLE,
    Code.PERMISSION_DENIED: Ending.FIXABLE,
    Code.UNAUTHENTICATED: Ending.FIXABLE,
    Code.RESOURCE_EXHAUSTED: Ending.NOT_NOW,
    Code.ABORTED: Ending.NOT_NOW,
}
"""Codes that are missing here are unclear, unless they are in the policy's ``replay_errors``.

UNAVAILABLE is unclear because it is often passed on from a call that did commit.
"""


def ending_of(outcome: Outcome, replay_errors: Set[Code]) -> Ending:
    """Classify an answer by its status, if the handler did not classify it itself.

    A refusal passed on from downstream says nothing about this call, so it is not kept.
    """
    if outcome.code in replay_errors and not is_refusal(outcome):
        return Ending.DECIDED
    return ENDINGS.get(outcome.code, Ending.UNCLEAR)


@dataclass(slots=True, unsafe_hash=True)
class Wait:
    """Wait for the run of ``owner``. The event is Waited.

    The driver waits until the run replies if it is in this process, else about ``seconds``, and never
    longer than the call may wait.
    """

    owner: bytes
    seconds: float


@dataclass(slots=True, unsafe_hash=True)
class TakeOver:
    """Find out whether a run whose lease has run out may be treated as dead.

    ``owner`` identifies the run, and ``lease`` is the length of its lease in seconds. The event is Waited,
    with ``hold`` if it is too early to decide.
    """

    owner: bytes
    lease: float


@dataclass(slots=True, unsafe_hash=True)
class Execute:
    """Run the handler under ``record``, and renew its lease meanwhile. The event is Ended, or TooLate.

    ``acknowledged`` is False for a run that starts although the store did not confirm its claim: no lease
    has to be left for it to start.
    """

    record: Record
    swap: Swap
    acknowledged: bool = True


@dataclass(slots=True, unsafe_hash=True)
class Compare:
    """Read the call's request stream as far as ``requests`` goes, and compare the two. The event is Compared.

    Responses of ``outcome`` whose turn comes may be sent meanwhile, to a client that takes turns. They
    are sent with the id of ``run``, if any.
    """

    outcome: Outcome
    requests: Fingerprint
    run: bytes


@dataclass(slots=True, unsafe_hash=True)
class Reply:
    """Answer the call, once. There is no event.

    owner: the run that the answer refers to, if any.
    replayed: whether another call's run made the answer.
    requests: for a request stream, the fingerprint of what is answered.
    is_shared: False for an answer that is of no use to duplicates waiting for this call.
    protected: False for the answer of a run that began without its claim.
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
    """Wait ``seconds`` before the next swap. There is no event."""

    seconds: float


Step = Swap | Wait | TakeOver | Execute | Compare | Reply | Pause


@dataclass(slots=True, unsafe_hash=True)
class Outage:
    """The store did not answer, and whether the swap took effect is not known.

    misused: whether the store will not answer later either, because it is set up wrongly.
    sent: False if the swap never left this process, and so had no effect.
    """

    misused: bool = False
    sent: bool = True


@dataclass(slots=True, unsafe_hash=True)
class Full:
    """Nothing was sent: the swap would claim the call, but too many runs are in progress to begin another."""


@dataclass(slots=True, unsafe_hash=True)
class Waited:
    """The end of a wait.

    reply: that of the run, if it replied in this process.
    more: whether the call may wait on.
    hold: seconds for which no run may be treated as dead, because the store was unavailable.
    """

    reply: Reply | None = None
    more: bool = True
    hold: float = 0.0


@dataclass(slots=True, unsafe_hash=True)
class TooLate:
    """The handler was not started: the lease of its claim has run out, or has almost run out."""


@dataclass(slots=True, unsafe_hash=True)
class Ended:
    """The handler ended, with the class ``ending``.

    ``requests`` is the fingerprint of what it read of a request stream. ``caller_left``: it ended this way
    because its own caller left, or sent an invalid request.
    """

    outcome: Outcome
    ending: Ending
    requests: Fingerprint | None = None
    caller_left: bool = False


@dataclass(slots=True, unsafe_hash=True)
class Compared:
    """The result of Compare: whether the request stream was the same."""

    same: bool


Event = Swapped | Held | Outage | Full | Waited | TooLate | Ended | Compared | None

Steps = Generator[Step, Event, None]
