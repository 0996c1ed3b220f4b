"""Makes the attempts at a call of the asyncio client, and the calls that grpc.aio gets in place of its own.

A task of its own makes the attempts, so that there is one place to cancel, whatever is being waited for. It
reads one message of a response stream, and the next one only after that was taken. So everything that was
read when an attempt fails has been handed over.

Each kind of method has its own class of call. What these report is what grpc's own calls would, but of the
logical call as a whole.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc

from idem_grpc._client.answers import failure
from idem_grpc._client.channel import Pairs, with_another_key
from idem_grpc._client.engine import Action, Backoff, Delivery, Engine, Finish, Renew, Send
from idem_grpc._client.foreign_calls import LOCALLY_CANCELLED, code_of, metadata_of
from idem_grpc._client.requests import AioRequests, Pulse
from idem_grpc._core.keys import SingleUse
from idem_grpc._core.messages import snapshot

Continuation = Callable[[Any, Any], Awaitable[Any]]

_UNSENT = "Internal error from Core"  # what grpc.aio says of a request that was being sent as the call ended
_GRACE = 0.1  # seconds; an answer that has neither metadata nor responses shows its status at once
_STATUS_GRACE = 1.0  # seconds; a status is on its way from one thread of this process to another

_running: set[asyncio.Task[Any]] = set()  # the event loop itself holds its tasks weakly


class AioDriver:
    """Carries out what the engine of a call decides.

    ``details`` is what grpc gave, ``metadata`` what is sent, with the key; ``request`` is one message or an
    AioRequests; ``source`` is that of the key, if it is for a single use.
    """

    def __init__(
        self,
        engine: Engine,
        continuation: Continuation,
        details: Any,
        metadata: Pairs | None,
        request: Any,
        timeout: float | None,
        *,
        gives_stream: bool,
        source: SingleUse | None,
    ) -> None:
        self._engine = engine
        self.continuation = continuation
        self._details = details
        self._metadata = metadata
        self.requests = request if isinstance(request, AioRequests) else None
        self._request = request if self.requests is not None else snapshot(request)
        self._gives_stream = gives_stream
        self._deadline = None if timeout is None else monotonic() + timeout
        self._source = source
        self._call: Any = None  # the latest attempt that was sent
        self._status: _Status | None = None
        self._response: Any = None
        self._error: BaseException | None = None  # how the latest attempt failed
        self._interrupted: BaseException | None = None  # how the one failed that was last handed over from
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
        self._engine.abandon()
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
        """How the call failed, once it is over. None if it did not, or was cancelled."""
        return None if not self.is_over or self.task.cancelled() else self.task.exception()

    async def read(self) -> Any:
        """The next response, or grpc.aio.EOF. Raises what the call failed with."""
        await self._ready.wait()
        if self.is_over:
            self.task.result()
            return grpc.aio.EOF
        self._ready.clear()
        response = self._given.pop()
        self._taken.set()
        return response

    async def wait(self) -> Any:
        """Wait until the call is over. Returns the attempt that succeeded, or None."""
        while not self.is_over:
            await self._changed.after(self._changed.count)
        return None if self.task.cancelled() or self.error is not None else self._call

    async def connected(self) -> None:
        """Wait until an attempt has reached the server. Raises what the call failed with."""
        while not self.is_over:
            call, count = self._call, self._changed.count
            try:
                if call is not None:
                    await call.wait_for_connection()
                    return
            except grpc.aio.AioRpcError:
                pass
            await self._changed.after(count)
        self.task.result()

    async def opening(self) -> Any:
        """The initial metadata of the first attempt that does not end with it, or of the last one."""
        while not self.is_over and self._opening is None:
            call, count = self._call, self._changed.count
            if call is not None:
                metadata = await call.initial_metadata()
                if not metadata:
                    # It may be but the head of a status that says no more, and follows at once.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.after(count), _GRACE)
                if call is self._call and not call.done():
                    return metadata
            await self._changed.after(count)
        if self._opening is not None or self.task.cancelled():
            return self._opening
        if isinstance(error := self.task.exception(), grpc.aio.AioRpcError):
            return error.initial_metadata()
        self.task.result()
        return await self._call.initial_metadata()

    def _over(self, task: asyncio.Task[Any]) -> None:
        _running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, since not every call is awaited
        self.is_over = True
        if self.requests is not None:
            self.requests.close()
        self._changed.beat()
        self._ready.set()
        self.on_over()

    async def _run(self) -> Any:
        """Make the attempts. Returns the response of a call that has one."""
        try:
            action: Action | None = self._engine.begin()
            while not isinstance(action, Finish):
                if isinstance(action, Send):
                    action = await self._send(action)
                elif isinstance(action, Backoff):
                    await asyncio.sleep(action.seconds)
                    action = self._engine.timer()
                else:
                    assert isinstance(action, Renew)
                    action = await self._renew(action)
        finally:
            self._engine.cancelled()  # if that, or an exception, has ended it
        error = self._error if action is Finish.AS_ENDED else self._interrupted
        if error is None:
            return self._response
        self._engine.annotate(error)
        self._error = self._interrupted = None
        try:
            raise error
        finally:
            del error  # its traceback has this frame

    async def _renew(self, renew: Renew) -> Action | None:
        assert self._source is not None
        try:
            async with asyncio.timeout(renew.timeout):
                key = await self._source.another()
        except Exception as error:
            return self._engine.not_renewed(error)
        self._metadata = with_another_key(self._metadata, key)
        return self._engine.renewed(key)

    async def _send(self, send: Send) -> Action | None:
        """Make an attempt. Returns what follows its end."""
        self._error = None
        try:
            lost = await self._attempt(send)
            return lost or self._engine.ended(send.attempt, None)
        except grpc.RpcError as failed:
            error, code = failed, code_of(failed)
            if self._status is not None and isinstance(failed, grpc.aio.AioRpcError):
                error, code = await self._status.settled(failed)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # grpc.aio drops a CancelledError that meets the end of a call with a request stream, and reports
            # how the call ended instead.
            raise asyncio.CancelledError
        self._error = error
        if self._engine.handed_from == send.attempt:
            self._interrupted = error
        is_whole = self.requests is None or self.requests.is_whole
        return self._engine.ended(send.attempt, failure(code, metadata_of(error)), is_whole=is_whole)

    async def _attempt(self, send: Send) -> Action | None:
        """Make an attempt, to its end. Returns Finish if its stream cannot be resumed."""
        details = sent_details(self._details, self._metadata, send.timeout)
        request = self._request if self.requests is None else self.requests.feed()
        call: Any = None
        self._status = None
        try:
            call = await self.continuation(details, request)
            if self._gives_stream and _is_lazy(call, self):
                call = _LazyCall(call)
            self._call = call
            self._status = None if self.requests is None else _Status(call)
            self._changed.beat()
            if self._gives_stream:
                return await self._read(call, send.attempt)
            self._response = await call
            return None
        finally:
            if call is not None:
                call.cancel()  # which has no effect if it is over
            if self.requests is not None:
                request.close()

    async def _read(self, call: Any, attempt: int) -> Action | None:
        """Read the responses of an attempt, and hand over those that the caller does not have yet."""
        opening, is_first = None, True
        async for response in call:
            if is_first:
                opening, is_first = await call.initial_metadata(), False
            action = self._engine.delivered(attempt, opening)
            if action is Delivery.HAND_OVER:
                await self._hand_over(response, opening)
            elif action is not Delivery.SKIP:
                return action
        return None

    async def _hand_over(self, response: Any, opening: Any) -> None:
        self._given.append(response)
        if self._opening is None:
            self._opening = opening if opening is not None else grpc.aio.Metadata()
            self._changed.beat()
        self._taken.clear()
        self._ready.set()
        await self._taken.wait()


def sent_details(details: Any, metadata: Pairs | None, timeout: float | None) -> grpc.aio.ClientCallDetails:
    """The details of a call as grpc gave them, with other metadata and timeout."""
    return grpc.aio.ClientCallDetails(
        details.method,
        timeout,
        None if metadata is None else grpc.aio.Metadata(*metadata),
        details.credentials,
        details.wait_for_ready,
    )


def _is_lazy(call: Any, driver: AioDriver) -> bool:
    """Whether another interceptor gave an iterator that makes its call only when it is read.

    grpc pairs such an iterator with the call that was returned last: with none, or with that of this driver.
    """
    paired = getattr(call, "_call", call)
    return paired is None or getattr(paired, "_driver", None) is driver


class _LazyCall:
    """An iterator that makes its call when it is read, as a call. It ends with what reading it raises."""

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


class _Status:
    """Records the true status of an attempt that has a request stream.

    If a request is being sent as the call ends, grpc.aio reports INTERNAL instead of the status that the
    server gave, and drops or overwrites that one, depending on which came first. So each status is recorded
    as it is set.
    """

    def __init__(self, attempt: Any) -> None:
        self._true: grpc.aio.AioRpcError | None = None
        self._came = asyncio.Event()
        attempt.add_done_callback(self._take_down)  # called each time that a status is set

    async def settled(self, error: grpc.aio.AioRpcError) -> tuple[grpc.aio.AioRpcError, grpc.StatusCode]:
        """Return an error of the attempt, and the code that decides whether to send the call again."""
        if not is_unsent(error.code(), error.details()):
            return error, error.code()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), _STATUS_GRACE)
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


class _Call:
    """What calls of all kinds have in common."""

    def __init__(self, driver: AioDriver) -> None:
        self._driver = driver
        self._answers = _Answers(driver)
        self._callbacks: list[Callable[[Any], None]] = []
        self._watch()

    def _watch(self) -> None:
        self._driver.on_over = self._fire

    def _fire(self) -> None:
        for callback in self._callbacks:
            self._driver.loop.call_soon(callback, self)
        self._callbacks.clear()

    def cancel(self) -> bool:
        return self._driver.cancel()

    def cancelled(self) -> bool:
        error = self._driver.error
        return (self.done() and self._driver.task.cancelled()) or (
            isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED
        )

    def done(self) -> bool:
        return self._driver.is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    def time_remaining(self) -> float | None:
        return self._driver.time_remaining()

    def wait_for_connection(self) -> Coroutine[Any, Any, None]:
        return self._driver.connected()

    def initial_metadata(self) -> Coroutine[Any, Any, Any]:
        return self._answers.initial_metadata()

    def trailing_metadata(self) -> Coroutine[Any, Any, Any]:
        return self._answers.trailing_metadata()

    def code(self) -> Coroutine[Any, Any, Any]:
        return self._answers.code()

    def details(self) -> Coroutine[Any, Any, str]:
        return self._answers.details()

    def debug_error_string(self) -> Coroutine[Any, Any, str]:
        return self._answers.debug_error_string()


class _Answers:
    """The coroutines of a call by which its caller asks about it.

    Apart from the call: an older grpc.aio (1.73) that closes a channel looks at the coroutine
    of each task, and stumbles over those of call objects that are not its own.
    """

    def __init__(self, driver: AioDriver) -> None:
        self._driver = driver

    async def initial_metadata(self) -> Any:
        return await self._driver.opening() or grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        attempt = await self._driver.wait()
        if attempt is not None:
            return await attempt.trailing_metadata()
        error = self._error()
        return grpc.aio.Metadata() if error is None else error.trailing_metadata()

    async def code(self) -> Any:
        attempt = await self._driver.wait()
        if attempt is not None:
            return await attempt.code()
        error = self._error()
        return grpc.StatusCode.CANCELLED if error is None else error.code()

    async def details(self) -> str:
        attempt = await self._driver.wait()
        if attempt is not None:
            return str(await attempt.details())
        error = self._error()
        return LOCALLY_CANCELLED if error is None else error.details() or ""

    async def debug_error_string(self) -> str:
        attempt = await self._driver.wait()
        if attempt is not None:
            return str(await attempt.debug_error_string())
        error = self._error()
        return "" if error is None else error.debug_error_string() or ""

    def _error(self) -> grpc.aio.AioRpcError | None:
        """The status that the call failed with; None if it was cancelled. Raises what is no status."""
        error = self._driver.error
        if error is None or isinstance(error, grpc.aio.AioRpcError):
            return error
        raise error


class _OneResponse(_Call):
    """The call goes on without anybody holding it, as grpc's own does."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._driver.task.__await__()


class _Responses(_Call):
    """Nobody is left to take the responses of a stream that nobody holds: it is cancelled."""

    def _watch(self) -> None:
        # The driver lasts as long as the call. It must not keep alive what the caller holds, and grpc's
        # continuation knows that.
        held = weakref.ref(self)
        self._continuation = self._driver.continuation

        def continuation(details: Any, request: Any) -> Awaitable[Any]:
            if (this := held()) is None:
                raise asyncio.CancelledError
            return this._continuation(details, request)

        def on_over() -> None:
            if (this := held()) is not None:
                this._fire()

        self._driver.continuation, self._driver.on_over = continuation, on_over

    def __del__(self) -> None:
        if not self.done():
            self._driver.on_over = self._fire  # its callbacks are owed their call
            self._driver.cancel()

    def __aiter__(self) -> AsyncIterator[Any]:
        return _responses(self)

    def read(self) -> Coroutine[Any, Any, Any]:
        return _read_one(self._driver)


async def _responses(call: _Responses) -> AsyncIterator[Any]:
    """Of a call, which is held for as long as it is iterated over."""
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


async def _read_one(driver: AioDriver) -> Any:
    try:
        return await driver.read()
    except asyncio.CancelledError:
        driver.cancel()
        raise


class _RequestStream(_Call):
    """The requests come from an iterator always: that of the caller, or one by which grpc itself
    passes on what the caller writes. So nobody writes here."""

    @property
    def _done_writing_flag(self) -> bool:
        # grpc's write() reads it off the call that an interceptor returned.
        return self._driver.requests is not None and self._driver.requests.is_ended

    async def write(self, request: Any) -> None:
        raise grpc.aio.UsageError("this call takes its requests from an iterator")

    async def done_writing(self) -> None:
        raise grpc.aio.UsageError("this call takes its requests from an iterator")


class UnaryUnaryCall(_OneResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one response."""


class UnaryStreamCall(_Responses, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, a stream of responses."""


class StreamUnaryCall(_RequestStream, _OneResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, one response."""


class StreamStreamCall(_RequestStream, _Responses, grpc.aio.StreamStreamCall[Any, Any]):
    """A stream of requests, a stream of responses."""
