"""Request streams that can be sent again.

The caller's iterator is read once, whatever the number of attempts. Each attempt has its own iterator over
what was read, which begins at the first request.

In the sync client, grpc reads the requests of every attempt on its own thread. The thread of an attempt that
is over may still wait for the caller's iterator; the request that it then gets is used by the next attempt.

In the asyncio client one task reads the caller's stream, no further than the attempt under way asks for. A
request stream that breaks off must not look complete to the server, and grpc half-closes the stream after
StopAsyncIteration, so the iterator of an attempt that is over raises another exception.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable
from typing import Any

from idem_grpc._core.messages import size_of, snapshot


class KeptRequests:
    """The requests that were read from a stream, kept up to ``limit`` bytes to be sent again.

    ``count`` is the number of requests; ``is_whole`` is whether all of them are still kept.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: deque[Any] = deque()
        self.count = 0
        self.is_whole = True

    def add(self, request: Any) -> None:
        """Keep a copy of another request. The request that exceeds the limit can still be sent once."""
        size = size_of(request)
        self._left -= self._left + 1 if size is None else size
        if self._left < 0:
            self.is_whole = False
        self._kept.append(snapshot(request) if self.is_whole else request)
        self.count += 1

    def at(self, position: int) -> Any:
        """Return the request at ``position``, from 0. Drops earlier ones once the limit is exceeded."""
        request = self._kept[position - self.count]
        if not self.is_whole:
            while len(self._kept) > self.count - position - 1:
                self._kept.popleft()
        return request

    def clear(self) -> None:
        """Drop everything, since the call is over."""
        self.is_whole = False
        self._kept.clear()


class SyncRequests:
    """The requests of one call, kept up to ``limit`` bytes."""

    def __init__(self, source: Iterable[Any], limit: int) -> None:
        self._source = iter(source)
        self._sent = KeptRequests(limit)
        self._changed = threading.Condition()
        self._live: SyncFeed | None = None
        self._is_read = False
        self._end: BaseException | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything that was sent can be sent again."""
        return self._sent.is_whole

    def feed(self) -> "SyncFeed":
        """Return the requests for a new attempt, from the first one. Ends the feed of the previous one."""
        with self._changed:
            self._live = SyncFeed(self)
            self._changed.notify_all()
            return self._live

    def close(self) -> None:
        """End all feeds, since the call is over."""
        with self._changed:
            self._live = None
            self._sent.clear()
            self._changed.notify_all()

    def next(self, feed: "SyncFeed", position: int) -> Any:
        """Return the request at ``position``, read if necessary. Raises what the caller's iterator raised."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._live is not feed or position < self._sent.count or not self._is_read
                )
                if self._live is not feed:
                    raise StopIteration
                if position < self._sent.count:
                    return self._sent.at(position)
                if self._end is not None:
                    raise self._end
                self._is_read = True
            self._read()

    def _read(self) -> None:
        request, end = None, None
        try:
            request = next(self._source)
        except BaseException as error:  # of the caller's iterator; grpc handles it
            end = error
        with self._changed:
            self._is_read, self._end = False, end
            if end is None and self._live is not None:
                self._sent.add(request)
            self._changed.notify_all()


class SyncFeed:
    """The requests of one attempt."""

    def __init__(self, requests: SyncRequests) -> None:
        self._requests = requests
        self._position = 0

    def __iter__(self) -> "SyncFeed":
        return self

    def __next__(self) -> Any:
        request = self._requests.next(self, self._position)
        self._position += 1
        return request


class Pulse:
    """Wakes all tasks that wait for a change, each time that there is one. No beat is missed."""

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


class _StreamClosed(Exception):
    """Raised to grpc when it asks for requests of an attempt that is over."""


class AioRequests:
    """The requests of one call, from an async or a plain iterable, kept up to ``limit`` bytes."""

    def __init__(self, source: Any, limit: int) -> None:
        self._source = source
        self._sent = KeptRequests(limit)
        self._asked = Pulse()
        self._changed = Pulse()
        self._wanted = 0
        self._reading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.is_ended = False
        """Whether the caller's iterable is exhausted."""

    @property
    def is_whole(self) -> bool:
        """Whether everything that was sent can be sent again."""
        return self._sent.is_whole

    def feed(self) -> "AioFeed":
        """Return the requests for a new attempt, from the first one."""
        return AioFeed(self)

    def close(self) -> None:
        """Stop reading, and drop what was kept, since the call is over."""
        if self._reading is not None:
            self._reading.cancel()
        self._sent.clear()

    async def at(self, position: int, feed: "AioFeed") -> Any:
        while not feed.is_closed:
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
        raise _StreamClosed

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


class AioFeed:
    """The request iterator of one attempt."""

    def __init__(self, requests: AioRequests) -> None:
        self._requests = requests
        self._position = 0
        self.is_closed = False

    def close(self) -> None:
        """End the feed, since the attempt is over. grpc may still be waiting for a request of it."""
        self.is_closed = True
        self._requests.changed()

    def __aiter__(self) -> "AioFeed":
        return self

    async def __anext__(self) -> Any:
        if not self._position:
            await asyncio.sleep(0)  # under eager tasks, grpc asks while its call is still being constructed
        request = await self._requests.at(self._position, self)
        self._position += 1
        return request
