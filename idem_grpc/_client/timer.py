"""What is to be done later, for all calls of a process, by one thread that waits for nothing else.

Whoever wants something done puts it into a SimpleQueue, which may be done anywhere: from
grpc's own thread, and while garbage is collected.
"""

import logging
import threading
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic

_LONGEST = 3600.0  # seconds; what a queue can wait has a limit, and a pushback has none
_log = logging.getLogger(__name__)


class Entry:
    """Something to be done, until ``cancel``."""

    __slots__ = ("_function", "_inbox")

    def __init__(self, function: Callable[[], object], inbox: "SimpleQueue[_Item]") -> None:
        self._function: Callable[[], object] | None = function
        self._inbox = inbox

    def cancel(self) -> None:
        """Let go of it, if it is not under way."""
        if self._function is not None:
            self._function = None
            self._inbox.put(None)

    @property
    def is_cancelled(self) -> bool:
        return self._function is None

    def run(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()


_Item = tuple[float, int, Entry] | None  # None tells that an entry was cancelled


class Timer:
    """Calls functions when they are due. They must not wait for anything."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._numbers = count()  # of two that are due at once, the first goes first

    def start(self) -> None:
        """Have the thread run: what comes after ``start`` needs no lock. A fork leaves it behind."""
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="idem_grpc retries", daemon=True)
                    self._thread.start()

    def after(self, seconds: float, function: Callable[[], object]) -> Entry:
        """Call ``function`` in ``seconds``. ``start`` was called before."""
        entry = Entry(function, self._inbox)
        self._inbox.put((monotonic() + seconds, next(self._numbers), entry))
        return entry

    def _run(self) -> None:
        waiting: list[tuple[float, int, Entry]] = []
        cancelled = 0
        while True:
            try:
                item = self._inbox.get(timeout=_until(waiting))
            except Empty:
                pass
            else:
                if item is not None:
                    heappush(waiting, item)
                    del item
                else:
                    cancelled += 1
                    if 2 * cancelled > len(waiting):
                        waiting = [item for item in waiting if not item[2].is_cancelled]
                        heapify(waiting)
                        cancelled = 0
            while waiting and waiting[0][0] <= monotonic():
                _call(heappop(waiting)[2])


def _until(waiting: list[tuple[float, int, Entry]]) -> float | None:
    return min(max(waiting[0][0] - monotonic(), 0.0), _LONGEST) if waiting else None


def _call(entry: Entry) -> None:
    try:
        entry.run()
    except Exception:
        _log.exception("a retry could not be made")


timer = Timer()
