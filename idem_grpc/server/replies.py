"""What is sent for a reply of the flow: a status, a body and our trailing metadata."""

from contextvars import Context
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.problem import NOTHING_KNOWN, PUSHBACK, Outlook, Problem
from idem_grpc.reporter import Replied
from idem_grpc.server.admission import Caller
from idem_grpc.steps import Reply

RUN = "idempotency-run"
REPLAYED = "idempotency-replayed"
_RETRY_MEETS_THE_SAME = (Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class Answer(grpc.Status):
    """All that is sent for a reply. Serves as the status of ``abort_with_status``.

    ``opening`` is the initial metadata of a stream of responses, which goes out with the
    first of them and never earlier: on a failing attempt it would stop gRPC's own retries.
    """

    code: grpc.StatusCode
    details: str
    initial_metadata: Metadata
    opening: Metadata
    messages: tuple[bytes, ...]
    trailing_metadata: Metadata


class Part(NamedTuple):
    """A response of a stream on its way. ``opening`` goes out ahead of it if it is the first;
    one that is ``plain`` is not compressed; ``variables`` are those of its handler by then."""

    message: bytes
    opening: Metadata
    plain: bool = False
    variables: Context | None = None


def opening(initial_metadata: Metadata, run: bytes) -> Metadata:
    """The initial metadata of a stream of responses, with the id of ``run``, if any."""
    own = _without(initial_metadata, RUN, REPLAYED)
    return (*own, (RUN, run.hex())) if run else own


def _without(metadata: Metadata, *names: str) -> Metadata:
    """What a handler says, but for what is ours to say: it may pass on all that another call told it."""
    return tuple(pair for pair in metadata if pair[0] not in names)


def answer(reply: Reply, caller: Caller, outlook: Outlook = NOTHING_KNOWN) -> tuple[Answer, Replied]:
    """A reply as it is sent to ``caller``, and as it is reported. ``outlook`` is that of a refusal."""
    given = reply.answer
    if isinstance(given, Outcome):
        outcome = given
    else:
        outcome = given.outcome(caller.previous_attempts, outlook=outlook)
    run = reply.owner.hex()
    trailing = outcome.trailing_metadata
    if isinstance(given, Outcome):
        trailing = _without(trailing, RUN, REPLAYED)
        if given.code in _RETRY_MEETS_THE_SAME:
            trailing = _without(trailing, PUSHBACK)
    if reply.run:
        trailing += ((RUN, run),)
    if reply.replayed and reply.protected:
        trailing += ((REPLAYED, "true"),)
    sent = Answer(
        code=grpc.StatusCode[outcome.code.name],
        details=outcome.details,
        initial_metadata=_without(outcome.initial_metadata, RUN, REPLAYED),
        opening=opening(outcome.initial_metadata, reply.run),
        messages=outcome.messages,
        trailing_metadata=trailing,
    )
    reason = given.reason if isinstance(given, Problem) else None
    return sent, Replied(caller.method, outcome.code, reply.replayed, reason, run, reply.protected)
