"""Call the handlers of an asyncio server: coroutines, async generators and plain functions."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import grpc

from idem_grpc._server.admission import Method
from idem_grpc._server.contexts import AioContext, ThreadContext
from idem_grpc._server.handlers import close
from idem_grpc._server.recording import CallerGone, Recording
from idem_grpc._server.replies import Part
from idem_grpc._server.streams import EOF_HOLD, Incoming

T = TypeVar("T")

MAX_THREADS = 128
"""Size of the thread pool of an interceptor without an ``executor``. Threads are started when needed."""


class Threads:
    """Runs functions on ``executor``, or on a thread pool of its own.

    The event loop's default executor is not used: handlers could block the name lookups that run there,
    which stores need to connect.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._own: ThreadPoolExecutor | None = None

    def run(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Run a function in a copy of the current context. Raises RuntimeError if the executor is shut down.

        Returns a future, not a task, so that the end of the event loop does not cancel it.
        """
        executor = self._executor
        if executor is None:
            executor = self._own = self._own or ThreadPoolExecutor(MAX_THREADS, "idem_grpc handler")
        return asyncio.get_running_loop().run_in_executor(executor, partial(copy_context().run, function))

    def close(self) -> None:
        """Shut down its own thread pool without waiting. The next ``run`` creates a new one."""
        own, self._own = self._own, None
        if own is not None:
            own.shutdown(wait=False)


Send = Callable[[Any], Coroutine[Any, Any, None]]
Receive = Callable[[object], Coroutine[Any, Any, Any]]

_END = object()


async def serve(
    method: Method,
    request: Any,
    recording: Recording,
    threads: Threads,
    start: Callable[[], None],
    send: Send,
    receive: Receive,
) -> Any:
    """Call the handler of a method with ``request``, or with the request stream that ``receive`` reads.

    A plain function runs on one of ``threads``. ``start`` is called right before the handler, on the same
    thread. ``receive`` takes the value to return at the end of the stream. Returns the response of a
    unary method; streamed responses are passed to ``send``.
    """
    is_stream = recording.incoming is not None
    behavior = method.behavior
    if not method.is_async:
        loop = asyncio.get_running_loop()

        def wait_for(step: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(step, loop).result()

        if is_stream:
            request = iter(lambda: wait_for(receive(_END)), _END)
        serving = partial(
            _serve_on_thread,
            method,
            request,
            recording.track_context(ThreadContext(recording)),
            start,
            lambda response: wait_for(send(response)),
        )
        try:
            thread = threads.run(serving)
        except RuntimeError as error:
            recording.not_run(str(error))
            return None
        try:
            return await _await_uncancelled(thread)
        finally:
            del thread  # a reference cycle: the future holds its exception, whose traceback holds this frame
    reader = partial(receive, grpc.aio.EOF) if is_stream else None
    context = AioContext(recording, reader, send if method.streams_responses else None)
    recording.track_context(context)
    if is_stream:
        request = _stream(receive)
    start()
    if not inspect.isasyncgenfunction(behavior):
        return await behavior(request, context)
    async with aclosing(behavior(request, context)) as responses:
        async for response in responses:
            await send(response)
    return None


async def _stream(receive: Receive) -> AsyncIterator[Any]:
    while (request := await receive(_END)) is not _END:
        yield request


def _serve_on_thread(
    method: Method,
    request: Any,
    context: ThreadContext,
    start: Callable[[], None],
    send: Callable[[Any], Any],
) -> Any:
    """Call a handler that is a plain function, whose streams are plain iterators."""
    start()
    try:
        response = method.behavior(request, context)
    except StopIteration as error:  # e.g. from next(requests); a future cannot hold it
        raise RuntimeError("handler raised StopIteration") from error
    if not method.streams_responses:
        return response
    try:
        for each in response:
            send(each)
    finally:
        close(response)
    return None


async def _await_uncancelled(thread: asyncio.Future[Any]) -> Any:
    """Await a function on a thread until it has ended. Cancellation is ignored: it cannot stop a thread."""
    try:
        while True:
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                if thread.done():
                    raise
    finally:
        del thread  # a reference cycle, as above


_CUT = object()


class Pipe:
    """Passes messages between the RPC's coroutine and the flow's task. ``is_gone``: the RPC has ended."""

    def __init__(self) -> None:
        self.is_gone = False
        self._read_permits = asyncio.Semaphore(0)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses: asyncio.Queue[tuple[Part, asyncio.Future[None]] | None] = asyncio.Queue()
        self._unwritten: set[asyncio.Future[None]] = set()

    # Called by the flow.

    async def read(self, incoming: Incoming) -> Any:
        """Return the next request, as outer interceptors passed it on; None at the end of the stream.

        Raises CallerGone if the stream is cut.
        """
        if incoming.whole or incoming.malformed:
            return None
        self._read_permits.release()
        message = await self._requests.get()
        if message is _CUT:
            self._requests.put_nowait(_CUT)
            incoming.cut = True
            raise CallerGone("the request stream was cut")
        incoming.whole = message is None
        return message

    async def write(self, part: Part) -> None:
        """Queue a response and wait until it was written. Returns at once if the RPC has ended."""
        if self.is_gone:
            await asyncio.sleep(0)  # let other tasks run, even if the handler only sends
            return
        written = asyncio.get_running_loop().create_future()
        self._unwritten.add(written)
        self._responses.put_nowait((part, written))
        await written

    def close(self) -> None:
        """Mark the end of the responses."""
        self._responses.put_nowait(None)

    # Called by the RPC's coroutine.

    async def pump(self, context: Any) -> None:
        """Read the request stream of ``context``: one message for each call of ``read``."""
        try:
            while True:
                await self._read_permits.acquire()
                message = await context.read()
                if message is grpc.aio.EOF:
                    for step in EOF_HOLD:
                        await asyncio.sleep(step)
                    self._requests.put_nowait(None)
                    return
                self._requests.put_nowait(message)
        except Exception:
            self._requests.put_nowait(_CUT)

    async def take(self) -> tuple[Part, asyncio.Future[None]] | None:
        """Return the next response and the future for ``written``; None after the last response."""
        return await self._responses.get()

    def written(self, written: asyncio.Future[None]) -> None:
        """Resolve the future of a response that was written, so that the flow goes on."""
        self._unwritten.discard(written)
        if not written.done():
            written.set_result(None)

    def leave(self) -> None:
        """Cut the streams, since the RPC has ended. Wakes all waiting reads and writes."""
        self.is_gone = True
        while not self._responses.empty():  # no longer read
            self._responses.get_nowait()
        self._requests.put_nowait(_CUT)
        for written in tuple(self._unwritten):
            self.written(written)
