"""The styles in which a handler of an asyncio server may be written, and how each is called."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from idem_grpc.server.admission import Method
from idem_grpc.server.aio_threads import Threads
from idem_grpc.server.arities import close
from idem_grpc.server.contexts import AioContext, ThreadContext
from idem_grpc.server.recording import Recording

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
    """Call the handler of a method with its one request, or with the stream that ``receive`` reads.

    A plain function runs on one of ``threads``. ``start`` is called right before it, on its thread.
    ``receive`` is given what to return at the end. Returns the one response; a stream of them goes
    to ``send``.
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
            recording.handed_out(ThreadContext(recording)),
            start,
            lambda response: wait_for(send(response)),
        )
        try:
            thread = threads.run(serving)
        except RuntimeError as error:
            recording.not_run(str(error))
            return None
        try:
            return await _to_its_end(thread)
        finally:
            del thread  # it has its exception, and that has this frame
    reader = partial(receive, grpc.aio.EOF) if is_stream else None
    context = AioContext(recording, reader, send if method.streams_responses else None)
    recording.handed_out(context)
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
    """Call a plain function, whose streams are plain iterators."""
    start()
    try:
        response = method.behavior(request, context)
    except StopIteration as error:  # as of next(requests); no future takes it, nor does a generator
        raise RuntimeError("handler raised StopIteration") from error
    if not method.streams_responses:
        return response
    try:
        for each in response:
            send(each)
    finally:
        close(response)
    return None


async def _to_its_end(thread: asyncio.Future[Any]) -> Any:
    """Await what runs on a thread: no cancel stops that, so none may have us think it ended."""
    try:
        while True:
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                if thread.done():
                    raise
    finally:
        del thread  # it has its exception, and that has this frame
