"""The true status of an attempt, where grpc.aio tells another one.

When a request is just being sent as the call ends, grpc.aio says INTERNAL in place of the
status that the server gave, and forgets that one or overwrites it, by which came first. So
each status is taken down as it is set.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import grpc

_UNSENT = "Internal error from Core"  # grpc.aio's details in that case
_GRACE = 1.0  # seconds; the status is on its way from one thread of this process to another


class Status:
    """Takes down the status of an attempt that has a request stream."""

    def __init__(self, attempt: Any) -> None:
        self._true: grpc.aio.AioRpcError | None = None
        self._came = asyncio.Event()
        attempt.add_done_callback(self._take_down)  # called each time that a status is set

    async def settled(self, error: grpc.aio.AioRpcError) -> tuple[grpc.aio.AioRpcError, grpc.StatusCode]:
        """An error of the attempt, and the code by which to tell whether to send the call again."""
        if not is_unsent(error.code(), error.details()):
            return error, error.code()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), _GRACE)
        if self._true is None or self._true.code() is grpc.StatusCode.OK:
            # Nothing is known of the answer, or it is lost: another attempt can have it.
            return error, grpc.StatusCode.UNAVAILABLE
        return self._true, self._true.code()

    def _take_down(self, attempt: Any) -> None:
        code, details = at_once(attempt.code()), at_once(attempt.details())
        if code is not None and not is_unsent(code, details):
            self._true = grpc.aio.AioRpcError(
                code,
                at_once(attempt.initial_metadata()),
                at_once(attempt.trailing_metadata()),
                details,
                at_once(attempt.debug_error_string()),
            )
            self._came.set()


def is_unsent(code: grpc.StatusCode, details: str | None) -> bool:
    """Whether this is what grpc.aio says of a request that was being sent as the call ended."""
    return code is grpc.StatusCode.INTERNAL and details == _UNSENT


def at_once(answer: Coroutine[Any, Any, Any]) -> Any:
    """What a call says now that it is over, before it says something else; None if that takes waiting."""
    try:
        answer.send(None)
    except StopIteration as end:
        return end.value
    answer.close()
    return None
