"""Convert a reply of the flow to what is sent: status, messages and idempotency metadata."""

from contextvars import Context
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from idem_grpc._core.metadata import REPLAYED, RUN_ID
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.problem import PUSHBACK
from idem_grpc._core.steps import Reply
from idem_grpc.updates import UpdateRefused

_REPLAYED = ((REPLAYED, "true"),)
# A retry gets the same answer, so that a handler's pushback is not sent.
_FINAL_CODES = (Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION)

GRPC_CODES = {code: grpc.StatusCode[code.name] for code in Code}


class Part(NamedTuple):
    """A response of a stream, ready to be sent.

    initial_metadata: the initial metadata to send before the first response.
    uncompressed: whether to send it without compression.
    variables: the context variables of the handler at that point.
    """

    message: bytes
    initial_metadata: Metadata
    uncompressed: bool = False
    variables: Context | None = None


def stream_initial_metadata(initial_metadata: Metadata, run: bytes) -> Metadata:
    """Return the initial metadata of a response stream, with the id of ``run``, if any.

    Send it with the first response, never earlier: gRPC's own retries stop once initial metadata arrived.
    """
    own = _without(initial_metadata, RUN_ID, REPLAYED)
    return (*own, (RUN_ID, run.hex())) if run else own


def _without(metadata: Metadata, *names: str) -> Metadata:
    """Drop ``names`` from a handler's metadata. It may have copied them from a downstream call."""
    return tuple(pair for pair in metadata if pair[0] not in names)


def as_sent(reply: Reply, outcome: Outcome) -> Outcome:
    """Return a reply as it is sent. ``outcome`` is its answer, or the outcome made from its Problem."""
    trailing, initial = outcome.trailing_metadata, outcome.initial_metadata
    if trailing and outcome is reply.answer:
        trailing = _without(trailing, RUN_ID, REPLAYED)
        if outcome.code in _FINAL_CODES:
            trailing = _without(trailing, PUSHBACK)
    if reply.protected:
        if reply.owner:
            trailing += ((RUN_ID, reply.owner.hex()),)
        if reply.replayed:
            trailing += _REPLAYED
    if initial:
        initial = _without(initial, RUN_ID, REPLAYED)
    return Outcome(outcome.code, outcome.details, initial, trailing, outcome.messages)


@dataclass(frozen=True, slots=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def status(outcome: Outcome) -> grpc.Status:
    """Convert an outcome without messages to a status for ``context.abort_with_status``."""
    return _Status(GRPC_CODES[outcome.code], outcome.details, outcome.trailing_metadata)


def status_of(refused: UpdateRefused) -> grpc.Status:
    """Convert an UpdateRefused to a status for ``context.abort_with_status``, awaited in grpc.aio."""
    return _Status(grpc.StatusCode[refused.code.name], refused.details, refused.trailing_metadata)
