"""The course of one logical call: its attempts, and what its caller may know of it meanwhile.

A task of its own makes the attempts, so that cancelling has one place to go, whatever is
being waited for. Of a response stream it reads one message, and the next one once that was
taken: all that was read when an attempt fails has been handed over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc

from idem_grpc._client.aio_requests import Pulse, Requests
from idem_grpc._client.aio_status import Status
from idem_grpc._client.common import (
    ANOTHER_RUN,
    NO_RUN,
    NO_TOKEN,
    TOO_LARGE,
    Handed,
    Pairs,
    Trial,
    snapshot,
    with_another_key,
)
from idem_grpc._client.grpc_calls import code_of, metadata_of
from idem_grpc._client.keying import end_left, leave
from idem_grpc._client.retry import Backoff, Renewal
from idem_grpc._core.keys import SingleUse

Continuation = Callable[[Any, Any], Awaitable[Any]]

_GRACE = 0.1  # seconds

_running: set[asyncio.Task[Any]] = set()  # the event loop itself holds its tasks weakly


class Course:
    """One logical call. ``end`` is called when it is over; only its first call may have an effect.

    ``details`` is what grpc gave, ``metadata`` what is sent, with the key; ``request`` is
    one message or a Requests. ``streams`` tells that the responses are a stream.
    """

    def __init__(
        self,
        trial: Trial,
        continuation: Continuation,
        details: Any,
        metadata: Pairs | None,
        request: Any,
        streams: bool,
        timeout: float | None,
        end: Callable[[], None],
        source: SingleUse | None,
    ) -> None:
        self._trial = trial
        self.continuation = continuation
        self._details = details
        self._metadata = metadata
        self.requests = request if isinstance(request, Requests) else None
        self._request = request if self.requests is not None else snapshot(request)
        self._streams = streams
        self._deadline = None if timeout is None else monotonic() + timeout
        self._end = end
        self._source = source
        self._handed = Handed()
        self._broken_by: grpc.RpcError | None = None
        self._attempt: Any = None
        self._status: Status | None = None
        self._opening: Any = None
        self._changed = Pulse()
        self._given: list[Any] = []
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self.is_over = False
        self.on_over: Callable[[], None] = lambda: None
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.create_task(self._run())
        _running.add(self.task)
        self.task.add_done_callback(self._over)

    def cancel(self) -> bool:
        """End the call, whatever it is doing. Returns False if it is over."""
        if self.loop.is_closed() or self.task.done():
            return False
        if not self._is_here():
            self.loop.call_soon_threadsafe(self.cancel)
            return True
        if not self.task.cancel():
            return False
        # The caller may make the next call at once, and it is not concurrent with this one. Not from
        # here, since grpc cancels calls as garbage is collected, where no lock may be taken.
        leave(self._end)
        self.loop.call_soon(end_left)
        return True

    def _is_here(self) -> bool:
        """Whether this is the loop's own thread: garbage is collected on any."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def time_remaining(self) -> float | None:
        """Seconds until the call's own deadline."""
        return None if self._deadline is None else max(self._deadline - monotonic(), 0.0)

    @property
    def error(self) -> BaseException | None:
        """How the call failed, once it is over; None if it did not, or was cancelled."""
        return None if not self.is_over or self.task.cancelled() else self.task.exception()

    async def take(self) -> Any:
        """The next response, or grpc.aio.EOF. Raises what the call failed with."""
        await self._ready.wait()
        if self.is_over:
            self.task.result()
            return grpc.aio.EOF
        self._ready.clear()
        response = self._given.pop()
        self._taken.set()
        return response

    async def ended(self) -> Any:
        """Wait for the end of the call. Returns the attempt that succeeded, or None."""
        while not self.is_over:
            await self._changed.after(self._changed.count)
        return None if self.task.cancelled() or self.error is not None else self._attempt

    async def connected(self) -> None:
        """Wait until an attempt has reached the server. Raises what the call failed with."""
        while not self.is_over:
            attempt, count = self._attempt, self._changed.count
            try:
                if attempt is not None:
                    await attempt.wait_for_connection()
                    return
            except grpc.aio.AioRpcError:
                pass
            await self._changed.after(count)
        self.task.result()

    async def opening(self) -> Any:
        """The initial metadata of the first attempt that does not end with it, or of the last one."""
        while not self.is_over and self._opening is None:
            attempt, count = self._attempt, self._changed.count
            if attempt is not None:
                metadata = await attempt.initial_metadata()
                if not metadata:
                    # It may be but the head of a status that says no more, and follows at once.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.after(count), _GRACE)
                if attempt is self._attempt and not attempt.done():
                    return metadata
            await self._changed.after(count)
        if self._opening is not None or self.task.cancelled():
            return self._opening
        if isinstance(error := self.task.exception(), grpc.aio.AioRpcError):
            return error.initial_metadata()
        self.task.result()
        return await self._attempt.initial_metadata()

    def _over(self, task: asyncio.Task[Any]) -> None:
        _running.discard(task)
        if not task.cancelled():
            task.exception()  # by this it is no "exception was never retrieved": not all calls are awaited
        self.is_over = True
        end_left()
        if self.requests is not None:
            self.requests.close()
        self._changed.beat()
        self._ready.set()
        self.on_over()

    async def _run(self) -> Any:
        """Make the attempts. Returns the response, if it is one."""
        try:
            return await self._insist()
        finally:
            leave(self._end)  # who awaits the task now may make the next call before ``_over``

    async def _insist(self) -> Any:
        while True:
            try:
                response = await self._send(self._trial.attempt())
                self._trial.succeeded()
                return response
            except grpc.RpcError as failed:
                error, code = failed, code_of(failed)
                if self._status is not None and isinstance(failed, grpc.aio.AioRpcError):
                    error, code = await self._status.settled(failed)
            except _AnotherRun:
                assert self._broken_by is not None
                self._trial.note(self._broken_by, ANOTHER_RUN)
                raise self._broken_by from None
            is_whole = self.requests is None or self.requests.is_whole
            can_resend = is_whole and self._handed.can_resend
            step = self._trial.failed(code, metadata_of(error), can_resend=can_resend)
            if step is None:
                held_back = [NO_RUN if is_whole else TOO_LARGE] if self._trial.was_held_back else []
                self._trial.note(error, *held_back)
                raise error
            if isinstance(step, Backoff):
                await asyncio.sleep(step.seconds)
            else:
                await self._renew(step, error)

    async def _renew(self, step: Renewal, refused: grpc.RpcError) -> None:
        """Get another key. Raises the refusal of the one before if there is none."""
        assert self._source is not None
        try:
            async with asyncio.timeout(step.timeout):
                key = await self._source.another()
        except Exception as error:
            self._trial.note(refused, f"{NO_TOKEN}{error!r}")
            raise refused from None
        self._metadata = with_another_key(self._metadata, key)
        self._trial.renewed(key)

    async def _send(self, timeout: float | None) -> Any:
        details = sending(self._details, self._metadata, timeout)
        request = self._request if self.requests is None else self.requests.again()
        attempt: Any = None
        self._status = None
        try:
            attempt = await self.continuation(details, request)
            if self._streams and _is_unsent(attempt, self):
                attempt = _Unsent(attempt)
            self._attempt = attempt
            self._status = None if self.requests is None else Status(attempt)
            self._changed.beat()
            if self._streams:
                return await self._hand_over(attempt)
            return await attempt
        finally:
            if attempt is not None:
                attempt.cancel()  # nothing comes of it where it is over
            if self.requests is not None:
                request.close()

    async def _hand_over(self, attempt: Any) -> None:
        """Hand over the responses of an attempt, from where the one before it broke off."""
        seen, before = 0, self._handed.count
        opening = None
        try:
            async for response in attempt:
                if not seen:
                    opening = await attempt.initial_metadata()
                    if self._handed.to_skip(opening) is None:
                        break
                seen += 1
                if seen > before:
                    await self._give(response, opening)
        except grpc.RpcError as error:
            if self._handed.count > before:
                self._broken_by = error
            raise
        if seen < before:
            raise _AnotherRun

    async def _give(self, response: Any, opening: Any) -> None:
        self._handed.add(lambda: opening)
        self._given.append(response)
        if self._opening is None:
            self._opening = opening if opening is not None else grpc.aio.Metadata()
            self._changed.beat()
        self._taken.clear()
        self._ready.set()
        await self._taken.wait()


def sending(details: Any, metadata: Pairs | None, timeout: float | None) -> grpc.aio.ClientCallDetails:
    """The details of a call as grpc gave them, but for its metadata and timeout."""
    return grpc.aio.ClientCallDetails(
        details.method,
        timeout,
        None if metadata is None else grpc.aio.Metadata(*metadata),
        details.credentials,
        details.wait_for_ready,
    )


def _is_unsent(attempt: Any, course: Course) -> bool:
    """Whether another interceptor gave an iterator that makes its call only when it is read.

    grpc pairs such an iterator with the call that was returned last: with none, or with that of this course.
    """
    paired = getattr(attempt, "_call", attempt)
    return paired is None or getattr(paired, "_course", None) is course


class _Unsent:
    """Such an iterator, as a call. It ends with what reading it raises."""

    def __init__(self, responses: Any) -> None:
        self._responses = responses

    def __aiter__(self) -> Any:
        return aiter(self._responses)

    def cancel(self) -> bool:
        return False

    def done(self) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """It does not know when it is over."""

    async def wait_for_connection(self) -> None:
        """It does not know when it is connected."""

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        return grpc.aio.Metadata()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    async def debug_error_string(self) -> str:
        return ""


class _AnotherRun(Exception):
    """What came is not the answer of which a part was handed over."""
