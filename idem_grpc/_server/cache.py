"""A short-lived cache of answers, for duplicates that arrive within seconds."""

from collections import OrderedDict
from threading import Lock

from idem_grpc._core.clock import elapsed
from idem_grpc._core.record import Record, State, is_done
from idem_grpc._core.swap import Held, Swap, Swapped

LONGEST = 10.0
"""Seconds an entry lives. Limits how long the corrections and deletions of an operator go unnoticed."""

_ENTRY_BYTES = 512  # rough overhead of an entry, in addition to its key and value


class _Entry:
    """A cached value. ``record`` is parsed on first use: most records are never replayed."""

    __slots__ = ("record", "size", "until", "value")

    def __init__(self, value: bytes, size: int, until: float) -> None:
        self.value = value
        self.size = size
        self.until = until
        self.record: Record | None = None


class Cache:
    """DONE records of this process's calls, as the store held them up to LONGEST seconds ago.

    ``max_bytes`` limits the total size; the oldest entries are dropped first. Records in other states are
    not cached, since other processes may change them at any time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the oldest first

    def get(self, key: bytes) -> Record | None:
        """Return the cached record of a key, or None."""
        entry = self._entries.get(key)
        if entry is None or elapsed() >= entry.until:
            return None
        if entry.record is None:
            entry.record = Record.from_bytes(entry.value)
        is_final = not entry.record.by_hand  # an operator may still correct a record written by hand
        return entry.record if is_final and entry.record.state is State.DONE else None

    def update(self, swap: Swap, seen: Swapped | Held, began: float) -> None:
        """Cache the value that a swap, sent at ``began``, wrote or found."""
        if isinstance(seen, Swapped):
            value, left = swap.new, swap.ttl
        else:
            value, left = seen.value, seen.ttl_left
        if value is None or not is_done(value):
            return
        size = len(swap.key) + len(value) + _ENTRY_BYTES
        if size > self._max_bytes:
            return
        entry, entries = _Entry(value, size, began + min(left, LONGEST)), self._entries
        with self._lock:
            if (replaced := entries.pop(swap.key, None)) is not None:
                self._bytes -= replaced.size
            entries[swap.key] = entry
            self._bytes += size
            while entries:
                oldest = next(iter(entries.values()))
                if self._bytes <= self._max_bytes and oldest.until > began:
                    break
                entries.popitem(last=False)
                self._bytes -= oldest.size
