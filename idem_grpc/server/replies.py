"""What is sent for a reply of the flow: a status, a body and our trailing metadata."""

from dataclasses import dataclass

import grpc

from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.problem import Problem
from idem_grpc.reporter import Replied
from idem_grpc.server.admission import Caller
from idem_grpc.steps import Reply

RUN = "idempotency-run"
REPLAYED = "idempotency-replayed"


@dataclass(frozen=True, slots=True)
class Answer(grpc.Status):
    """All that is sent at the end of a call. Serves as the status of ``abort_with_status``."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata
    initial_metadata: Metadata
    body: bytes


def answer(reply: Reply, caller: Caller) -> tuple[Answer, Replied]:
    """A reply as it is sent to ``caller``, and as it is reported."""
    given = reply.answer
    outcome = given if isinstance(given, Outcome) else given.outcome(caller.previous_attempts)
    trailing = outcome.trailing_metadata
    if reply.owner:
        trailing += ((RUN, reply.owner.hex()),)
    if reply.replayed:
        trailing += ((REPLAYED, "true"),)
    sent = Answer(
        code=grpc.StatusCode[outcome.code.name],
        details=outcome.details,
        trailing_metadata=trailing,
        initial_metadata=outcome.initial_metadata,
        body=outcome.messages[0] if outcome.code is Code.OK else b"",
    )
    reason = given.reason if isinstance(given, Problem) else None
    return sent, Replied(caller.method, outcome.code, reply.replayed, reason, reply.owner.hex())
