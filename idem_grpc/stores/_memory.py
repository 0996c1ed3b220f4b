"""Stores that live in this process: for tests, and for a server that is alone.

A dict and a lock. Expired entries are dropped a few at a time by the swaps that
come after, so that memory stays bounded with nothing running in the background.
"""

import threading
import time
from collections.abc import Callable

from idem_grpc._core.due import DueQueue
from idem_grpc._core.swap import Held, Swap, Swapped, may_swap
from idem_grpc.stores._protocol import AsyncStore, Store, check_swap, check_swaps, check_swaps_async

_PURGED_PER_SWAP = 4  # more than one, so that a backlog shrinks while swaps keep adding
_ABSENT = (None, 0.0)


class MemoryStore(Store):
    """A dict in this process; it forgets everything when the process ends.

    ``clock`` returns seconds from any start, and never goes back. Every store
    object is a world of its own, whatever its ``namespace``.
    """

    is_in_process = True

    def __init__(self, *, namespace: str = "idem", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(namespace)
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[bytes, tuple[bytes, float]] = {}  # values, and when they expire
        self._expiries = DueQueue[bytes](self._is_stale)

    def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()
        check_swap(swap)
        key, new, entries, expiries = swap.key, swap.new, self._entries, self._expiries
        with self._lock:
            now = self._clock()
            if expiries.next_due <= now:
                self._purge(now)
            value, left = self._look(key, now)
            if not may_swap(swap, value, left):
                return Held(value, left)
            was_there = key in entries
            if new is None:
                entries.pop(key, None)
            else:
                expiry = now + swap.ttl
                entries[key] = new, expiry
                expiries.push(expiry, key)
            if was_there:
                expiries.note_stale()
            return Swapped(left)

    def read(self, key: bytes) -> Held:
        self._opener.require()
        with self._lock:
            return Held(*self._look(key, self._clock()))

    def check(self) -> None:
        check_swaps(self)

    def close(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():  # in a forked process, a thread that is not there may hold the lock
            with self._lock:
                self._entries.clear()
                self._expiries.clear()

    def _look(self, key: bytes, now: float) -> tuple[bytes | None, float]:
        """The value of a key, and the seconds that it has left."""
        value, expiry = self._entries.get(key, _ABSENT)
        return (value, expiry - now) if value is not None and expiry > now else _ABSENT

    def _is_stale(self, expiry: float, key: bytes) -> bool:
        """Whether a key was written again, or deleted, since this expiry was noted."""
        entry = self._entries.get(key)
        return entry is None or entry[1] != expiry

    def _purge(self, now: float) -> None:
        for _ in range(_PURGED_PER_SWAP):
            if (key := self._expiries.pop(now)) is None:
                return
            del self._entries[key]


class AsyncMemoryStore(AsyncStore):
    """A MemoryStore for asyncio: ``blocking`` is the very same store."""

    def __init__(self, *, namespace: str = "idem", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(namespace)
        self.blocking = MemoryStore(namespace=namespace, clock=clock)

    async def swap(self, swap: Swap) -> Swapped | Held:
        self._loop.require()
        return self.blocking.swap(swap)

    async def read(self, key: bytes) -> Held:
        self._loop.require()
        return self.blocking.read(key)

    async def check(self) -> None:
        await check_swaps_async(self)

    async def aclose(self) -> None:
        self.blocking.close()
