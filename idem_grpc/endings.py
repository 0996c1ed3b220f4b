"""How a handler's end is classed, and so what becomes of its key."""

from collections.abc import Set
from enum import Enum

from idem_grpc.outcome import Code, Outcome
from idem_grpc.problem import is_refusal


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
