"""Between the coroutine of an RPC and the task of its flow, in asyncio.

grpc frees what a context stands on when the RPC's coroutine is over. So that coroutine
alone reads and writes; the flow asks it to, and goes on without it once it is gone.
"""

import asyncio
from typing import Any

import grpc

from idem_grpc.server.recording import CallerGone
from idem_grpc.server.replies import Part
from idem_grpc.server.transcript import EOF_HOLD, Incoming

_CUT = object()


class Pipe:
    """The streams of one RPC. ``is_gone`` once its coroutine is."""

    def __init__(self) -> None:
        self.is_gone = False
        self._wanted = asyncio.Semaphore(0)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses: asyncio.Queue[tuple[Part, asyncio.Future[None]] | None] = asyncio.Queue()
        self._unwritten: set[asyncio.Future[None]] = set()

    # For the flow.

    async def read(self, incoming: Incoming) -> Any:
        """The next request, as interceptors outside passed it on; None at the end of the stream.

        Raises CallerGone where it is cut.
        """
        if incoming.whole or incoming.malformed:
            return None
        self._wanted.release()
        message = await self._requests.get()
        if message is _CUT:
            self._requests.put_nowait(_CUT)
            incoming.cut = True
            raise CallerGone("the request stream was cut")
        incoming.whole = message is None
        return message

    async def write(self, part: Part) -> None:
        """Have a response written, and wait for that, unless nobody is there to read it."""
        if self.is_gone:
            await asyncio.sleep(0)  # a handler that only sends would have the loop to itself
            return
        written = asyncio.get_running_loop().create_future()
        self._unwritten.add(written)
        self._responses.put_nowait((part, written))
        await written

    def close(self) -> None:
        """There are no more responses."""
        self._responses.put_nowait(None)

    # For the coroutine of the RPC.

    async def pump(self, context: Any) -> None:
        """Read the request stream of ``context``, a message whenever one is wanted."""
        try:
            while True:
                await self._wanted.acquire()
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
        """The next response to write, and what to tell of it then; None after the last."""
        return await self._responses.get()

    def written(self, written: asyncio.Future[None]) -> None:
        """Tell the flow that a response was written."""
        self._unwritten.discard(written)
        if not written.done():
            written.set_result(None)

    def leave(self) -> None:
        """The RPC is over: nothing more is read or written."""
        self.is_gone = True
        while not self._responses.empty():  # which nobody takes any more
            self._responses.get_nowait()
        self._requests.put_nowait(_CUT)
        for written in tuple(self._unwritten):
            self.written(written)
