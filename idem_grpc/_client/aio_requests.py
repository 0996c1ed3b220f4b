"""A request stream that can be sent again.

One task reads the caller's stream, as far as the attempt that is under way asks for it and
never further, and keeps what it read; each attempt has an iterator of its own, which
begins at the first request. A request stream that breaks off must not look complete to the
server, so an iterator that is of no more use raises: grpc half-closes after StopIteration.
"""

import asyncio
from collections.abc import AsyncIterable
from typing import Any

from idem_grpc._client.common import Sent


class Pulse:
    """Wakes all who wait for something to change, each time that it does: no beat is missed."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def beat(self) -> None:
        self.count += 1
        self._event.set()
        self._event.clear()

    async def after(self, count: int) -> None:
        """Wait for the beat that follows the one of this count."""
        while self.count == count:
            await self._event.wait()


class AttemptOver(Exception):
    """Requests are asked for on behalf of an attempt that is over."""


class Requests:
    """What the caller sends, from an async or a plain iterable. ``limit`` is in bytes."""

    def __init__(self, source: Any, limit: int) -> None:
        self._source = source
        self._sent = Sent(limit)
        self._asked = Pulse()
        self._changed = Pulse()
        self._wanted = 0
        self._reading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.is_ended = False
        """The caller has no more requests."""

    @property
    def is_whole(self) -> bool:
        """Whether it can still be sent again."""
        return self._sent.is_whole

    def again(self) -> "Replay":
        """The requests from the first one on, for one attempt."""
        return Replay(self)

    def close(self) -> None:
        """The call is over: read no more, and let go of what was kept."""
        if self._reading is not None:
            self._reading.cancel()
        self._sent.clear()

    async def at(self, position: int, replay: "Replay") -> Any:
        while not replay.is_closed:
            if position < self._sent.count:
                return self._sent.at(position)
            if self._failure is not None:
                raise self._failure
            if self.is_ended:
                raise StopAsyncIteration
            self._wanted = position + 1
            seen = self._changed.count  # before the task is created, since an eager one reads at once
            if self._reading is None:
                # One task for all of it: the caller's generator may hold what belongs to a task or
                # a context, such as asyncio.timeout.
                self._reading = asyncio.create_task(self._read())
            self._asked.beat()
            await self._changed.after(seen)
        raise AttemptOver

    async def _read(self) -> None:
        try:
            if isinstance(self._source, AsyncIterable):
                async for request in self._source:
                    await self._keep(request)
            else:
                for request in self._source:
                    await self._keep(request)
            self.is_ended = True
        except asyncio.CancelledError as cancelled:
            self._failure = cancelled
            raise
        except Exception as error:
            # Each attempt that comes so far raises it, upon which grpc logs it and cancels the call.
            self._failure = error
        finally:
            self._changed.beat()

    async def _keep(self, request: Any) -> None:
        self._sent.add(request)
        self._changed.beat()
        while self._wanted <= self._sent.count:
            await self._asked.after(self._asked.count)

    def changed(self) -> None:
        self._changed.beat()


class Replay:
    """The request iterator of one attempt."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._position = 0
        self.is_closed = False

    def close(self) -> None:
        """The attempt is over; grpc may still wait here for a request of it."""
        self.is_closed = True
        self._requests.changed()

    def __aiter__(self) -> "Replay":
        return self

    async def __anext__(self) -> Any:
        if not self._position:
            await asyncio.sleep(0)  # under eager tasks, grpc asks while its call is still being constructed
        request = await self._requests.at(self._position, self)
        self._position += 1
        return request
