"""Stores in the memory of this process, for tests and for a server with a single process.

A dict and a lock. Each swap drops a few expired entries, so memory stays bounded without a
background thread.
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
    """A store in a dict of this process. Its records are lost when the process ends.

    namespace: default "idem". Store objects never share data, even with the same namespace.
    clock: returns seconds from any start, and must never go back; default ``time.monotonic``.
    """

    is_in_process = True

    def __init__(self, *, namespace: str = "idem", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(namespace)
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[bytes, tuple[bytes, float]] = {}  # values, and the times at which they expire
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
        if self._opener.is_here():  # in a forked process, a thread of the parent may still hold the lock
            with self._lock:
                self._entries.clear()
                self._expiries.clear()

    def _look(self, key: bytes, now: float) -> tuple[bytes | None, float]:
        """Return the value of a key and the seconds until it expires."""
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
    """A MemoryStore for asyncio. ``blocking`` is the MemoryStore that holds the data."""

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
