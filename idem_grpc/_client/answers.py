"""Reads an answer: why the call was refused, whether it was replayed, and when to send it again."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from idem_grpc._core.metadata import REPLAYED, RUN_ID
from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import PUSHBACK, STATUS_DETAILS, Reason, reason_in


def reason(error: BaseException) -> Reason | None:
    """Return why the server's interceptor refused a call, or None for any other error."""
    trailing = getattr(error, "trailing_metadata", None)
    return None if trailing is None else _reason(_entries(trailing()))


def replayed_in(trailing_metadata: Iterable[Any] | None) -> bool | None:
    """Return whether an answer is that of an earlier run; None if the method is not protected."""
    entries = _entries(trailing_metadata)
    return REPLAYED in entries if RUN_ID in entries else None


def run_in(metadata: Iterable[Any] | None) -> str:
    """Return the id of the run that an answer is of, or an empty string if it names none."""
    return str(_entries(metadata).get(RUN_ID, ""))


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed.

    pushback: when the server allows another attempt, in seconds. Negative if it forbids one, None if it said
        nothing.
    of_run: the answer is that of a run, so a refusal in it was passed on from another call.
    """

    code: Code
    reason: Reason | None = None
    pushback: float | None = None
    of_run: bool = False

    @property
    def refuses_token(self) -> bool:
        """Whether the call was not run because its key is not a token that the server accepts."""
        return self.reason in (Reason.TOKEN_UNKNOWN, Reason.TOKEN_MISMATCH) and not self.of_run


def failure(code: grpc.StatusCode, trailing_metadata: Iterable[Any] | None) -> Failure | None:
    """Return how an attempt failed, from its status and trailing metadata, or None if it succeeded."""
    if code is grpc.StatusCode.OK:
        return None
    entries = _entries(trailing_metadata)
    return Failure(Code[code.name], _reason(entries), _pushback(entries), of_run=RUN_ID in entries)


def _entries(metadata: Iterable[Any] | None) -> dict[str, str | bytes]:
    return dict(
        tuple(metadata or ())
    )  # tuple(), because the keys() of grpc.aio's Metadata differ between releases


def _reason(entries: dict[str, str | bytes]) -> Reason | None:
    details = entries.get(STATUS_DETAILS)
    return reason_in(details) if isinstance(details, bytes) else None


def _pushback(entries: dict[str, str | bytes]) -> float | None:
    """Return the pushback in seconds, from ``grpc-retry-pushback-ms`` or RetryInfo.

    A6: a pushback that is not a number forbids retries.
    """
    text = entries.get(PUSHBACK)
    if text is not None:
        try:
            return int(text) / 1000
        except (ValueError, OverflowError):
            return -1.0
    details = entries.get(STATUS_DETAILS)
    return _retry_info(details) if isinstance(details, bytes) else None


def _retry_info(details: bytes) -> float | None:
    info = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Unpack(info):
                return max(info.retry_delay.ToMilliseconds() / 1000, 0.0)
    except DecodeError:
        pass
    return None
