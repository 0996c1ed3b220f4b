"""Calls functions later, for all calls of a process, on one thread.

They are handed to the thread in a SimpleQueue, which is safe anywhere: on grpc's own thread, and during
garbage collection.
"""

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic

from idem_grpc._core.due import DueQueue

_LONGEST_WAIT = 3600.0  # seconds
_log = logging.getLogger(__name__)


class Entry:
    """A function to be called, until it is cancelled."""

    __slots__ = ("_function", "_inbox")

    def __init__(self, function: Callable[[], object], inbox: "SimpleQueue[_Item]") -> None:
        self._function: Callable[[], object] | None = function
        self._inbox = inbox

    def cancel(self) -> None:
        """Do not call the function, unless it is being called already."""
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


_Item = tuple[float, Entry] | None  # None says that an entry was cancelled


class Timer:
    """Calls functions when they are due. They must not wait for anything."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run: after a fork, the new process has none."""
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="idem_grpc retries", daemon=True)
                    self._thread.start()

    def after(self, seconds: float, function: Callable[[], object]) -> Entry:
        """Call ``function`` in ``seconds``. Takes no lock, and needs ``start`` to be called before."""
        entry = Entry(function, self._inbox)
        self._inbox.put((monotonic() + seconds, entry))
        return entry

    def _run(self) -> None:
        waiting = DueQueue[Entry](lambda _, entry: entry.is_cancelled, stale_allowed=0)
        while True:
            try:
                # What a queue can wait has a limit, and a pushback has none.
                left = min(max(waiting.next_due - monotonic(), 0.0), _LONGEST_WAIT)
                item = self._inbox.get(timeout=left if waiting else None)
            except Empty:
                pass
            else:
                if item is not None:
                    waiting.push(*item)
                    del item
                else:
                    waiting.note_stale()
            while (entry := waiting.pop(monotonic())) is not None:
                _call(entry)


def _call(entry: Entry) -> None:
    try:
        entry.run()
    except Exception:
        _log.exception("a retry could not be made")


timer = Timer()
