"""What the core says of a failure, as the status that grpc takes."""

from dataclasses import dataclass

import grpc

from idem_grpc.outcome import Metadata, Outcome
from idem_grpc.server.replies import GRPC_CODES
from idem_grpc.updates import UpdateRefused


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
