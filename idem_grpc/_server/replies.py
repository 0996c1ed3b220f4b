"""What is sent for a reply of the flow: a status, a body and our trailing metadata."""

from contextvars import Context
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.problem import PUSHBACK
from idem_grpc._core.steps import Reply
from idem_grpc.updates import UpdateRefused

RUN = "idempotency-run"
REPLAYED = "idempotency-replayed"
_REPLAYED = ((REPLAYED, "true"),)
_RETRY_MEETS_THE_SAME = (Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION)

GRPC_CODES = {code: grpc.StatusCode[code.name] for code in Code}


class Part(NamedTuple):
    """A response of a stream on its way. ``opening`` goes out ahead of it if it is the first;
    one that is ``plain`` is not compressed; ``variables`` are those of its handler by then."""

    message: bytes
    opening: Metadata
    plain: bool = False
    variables: Context | None = None


def opening(initial_metadata: Metadata, run: bytes) -> Metadata:
    """The initial metadata of a stream of responses, with the id of ``run``, if any.

    It goes out with the first response and never earlier: on a failing attempt it would stop gRPC's
    own retries.
    """
    own = _without(initial_metadata, RUN, REPLAYED)
    return (*own, (RUN, run.hex())) if run else own


def _without(metadata: Metadata, *names: str) -> Metadata:
    """What a handler says, but for what is ours to say: it may pass on all that another call told it."""
    return tuple(pair for pair in metadata if pair[0] not in names)


def as_sent(reply: Reply, outcome: Outcome) -> Outcome:
    """A reply as it goes over the wire. ``outcome`` is its answer, or what its refusal looks like."""
    trailing, initial = outcome.trailing_metadata, outcome.initial_metadata
    if trailing and outcome is reply.answer:
        trailing = _without(trailing, RUN, REPLAYED)
        if outcome.code in _RETRY_MEETS_THE_SAME:
            trailing = _without(trailing, PUSHBACK)
    if reply.protected:
        if reply.owner:
            trailing += ((RUN, reply.owner.hex()),)
        if reply.replayed:
            trailing += _REPLAYED
    if initial:
        initial = _without(initial, RUN, REPLAYED)
    return Outcome(outcome.code, outcome.details, initial, trailing, outcome.messages)


@dataclass(frozen=True, slots=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def status(outcome: Outcome) -> grpc.Status:
    """An answer without messages as the status for ``abort_with_status``."""
    return _Status(GRPC_CODES[outcome.code], outcome.details, outcome.trailing_metadata)


def status_of(refused: UpdateRefused) -> grpc.Status:
    """A refused update as the status for ``context.abort_with_status``, which grpc.aio wants awaited."""
    return _Status(grpc.StatusCode[refused.code.name], refused.details, refused.trailing_metadata)
