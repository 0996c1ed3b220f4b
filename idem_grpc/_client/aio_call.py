"""The calls that grpc.aio gets to see in place of its own, one class for each kind of method.

What they say of themselves is what grpc's own calls would, of the logical call as a whole.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import grpc

from idem_grpc._client.aio_course import Course

CANCELLED = "Locally cancelled by application!"  # in grpc's own words


class _Call:
    """What calls of all kinds have in common."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._told = _Told(course)
        self._callbacks: list[Callable[[Any], None]] = []
        self._watch()

    def _watch(self) -> None:
        self._course.on_over = self._fire

    def _fire(self) -> None:
        for callback in self._callbacks:
            self._course.loop.call_soon(callback, self)
        self._callbacks.clear()

    def cancel(self) -> bool:
        return self._course.cancel()

    def cancelled(self) -> bool:
        error = self._course.error
        return (self.done() and self._course.task.cancelled()) or (
            isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED
        )

    def done(self) -> bool:
        return self._course.is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    def time_remaining(self) -> float | None:
        return self._course.time_remaining()

    def wait_for_connection(self) -> Coroutine[Any, Any, None]:
        return self._course.connected()

    def initial_metadata(self) -> Coroutine[Any, Any, Any]:
        return self._told.initial_metadata()

    def trailing_metadata(self) -> Coroutine[Any, Any, Any]:
        return self._told.trailing_metadata()

    def code(self) -> Coroutine[Any, Any, Any]:
        return self._told.code()

    def details(self) -> Coroutine[Any, Any, str]:
        return self._told.details()

    def debug_error_string(self) -> Coroutine[Any, Any, str]:
        return self._told.debug_error_string()


class _Told:
    """What a call tells of itself, each time that its caller asks.

    Apart from the call: an older grpc.aio (1.73) that closes a channel looks at the coroutine
    of each task, and stumbles over those of call objects that are not its own.
    """

    def __init__(self, course: Course) -> None:
        self._course = course

    async def initial_metadata(self) -> Any:
        return await self._course.opening() or grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        attempt = await self._course.ended()
        if attempt is not None:
            return await attempt.trailing_metadata()
        error = self._error()
        return grpc.aio.Metadata() if error is None else error.trailing_metadata()

    async def code(self) -> Any:
        attempt = await self._course.ended()
        if attempt is not None:
            return await attempt.code()
        error = self._error()
        return grpc.StatusCode.CANCELLED if error is None else error.code()

    async def details(self) -> str:
        attempt = await self._course.ended()
        if attempt is not None:
            return str(await attempt.details())
        error = self._error()
        return CANCELLED if error is None else error.details() or ""

    async def debug_error_string(self) -> str:
        attempt = await self._course.ended()
        if attempt is not None:
            return str(await attempt.debug_error_string())
        error = self._error()
        return "" if error is None else error.debug_error_string() or ""

    def _error(self) -> grpc.aio.AioRpcError | None:
        """The status that the call failed with; None if it was cancelled. Raises what is no status."""
        error = self._course.error
        if error is None or isinstance(error, grpc.aio.AioRpcError):
            return error
        raise error


class _OneResponse(_Call):
    """The call goes on without anybody holding it, as grpc's own does."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._course.task.__await__()


class _Responses(_Call):
    """Nobody is left to take the responses of a stream that nobody holds: it is cancelled."""

    def _watch(self) -> None:
        # The course lasts as long as the call. It must not keep alive what the caller holds, and grpc's
        # continuation knows that.
        held = weakref.ref(self)
        self._continuation = self._course.continuation

        def continuation(details: Any, request: Any) -> Awaitable[Any]:
            if (this := held()) is None:
                raise asyncio.CancelledError
            return this._continuation(details, request)

        def on_over() -> None:
            if (this := held()) is not None:
                this._fire()

        self._course.continuation, self._course.on_over = continuation, on_over

    def __del__(self) -> None:
        if not self.done():
            self._course.on_over = self._fire  # its callbacks are owed their call
            self._course.cancel()

    def __aiter__(self) -> AsyncIterator[Any]:
        return _responses(self)

    def read(self) -> Coroutine[Any, Any, Any]:
        return _read(self._course)


async def _responses(call: _Responses) -> AsyncIterator[Any]:
    """Of a call, which is held for as long as it is iterated over."""
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


async def _read(course: Course) -> Any:
    try:
        return await course.take()
    except asyncio.CancelledError:
        course.cancel()
        raise


class _Requests(_Call):
    """The requests come from an iterator always: that of the caller, or one by which grpc itself
    passes on what the caller writes. So nobody writes here."""

    @property
    def _done_writing_flag(self) -> bool:
        # grpc's write() reads it off the call that an interceptor returned.
        return self._course.requests is not None and self._course.requests.is_ended

    async def write(self, request: Any) -> None:
        raise grpc.aio.UsageError("this call takes its requests from an iterator")

    async def done_writing(self) -> None:
        raise grpc.aio.UsageError("this call takes its requests from an iterator")


class UnaryUnaryCall(_OneResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one response."""


class UnaryStreamCall(_Responses, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, a stream of responses."""


class StreamUnaryCall(_Requests, _OneResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, one response."""


class StreamStreamCall(_Requests, _Responses, grpc.aio.StreamStreamCall[Any, Any]):
    """A stream of requests, a stream of responses."""
