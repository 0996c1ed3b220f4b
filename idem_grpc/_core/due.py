"""A queue of items by the time at which they are due."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


class DueQueue(Generic[T]):
    """Items that are due at some time, the first one first. Items due at the same time keep their order.

    An item that is no longer needed stays in the queue for a while. ``is_stale(due, item)`` recognises it
    when it is due, and ``note_stale`` counts it: the queue is rebuilt once more than half of it is stale, and
    more than ``stale_allowed`` items are. Not thread-safe.
    """

    __slots__ = ("_heap", "_is_stale", "_order", "_stale", "_stale_allowed", "next_due")

    def __init__(self, is_stale: Callable[[float, T], bool], *, stale_allowed: int = 64) -> None:
        self._is_stale = is_stale
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()
        self._stale = 0
        self._stale_allowed = stale_allowed
        self.next_due = inf
        """When the first item is due; infinity if there is none."""

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, due: float, item: T) -> None:
        """Add an item."""
        heappush(self._heap, (due, next(self._order), item))
        if due < self.next_due:
            self.next_due = due

    def pop(self, now: float) -> T | None:
        """Remove and return the first item that is due by ``now``; None if there is none."""
        found = None
        while found is None and self._heap and self._heap[0][0] <= now:
            due, _, item = heappop(self._heap)
            if self._is_stale(due, item):
                self._stale = max(self._stale - 1, 0)
            else:
                found = item
        self._set_next_due()
        return found

    def note_stale(self) -> None:
        """Note that one more item is stale."""
        self._stale += 1
        if self._stale > self._stale_allowed and 2 * self._stale > len(self._heap):
            self._heap = [entry for entry in self._heap if not self._is_stale(entry[0], entry[2])]
            heapify(self._heap)
            self._stale = 0
            self._set_next_due()

    def clear(self) -> None:
        """Remove all items."""
        self._heap.clear()
        self._stale = 0
        self._set_next_due()

    def _set_next_due(self) -> None:
        self.next_due = self._heap[0][0] if self._heap else inf
