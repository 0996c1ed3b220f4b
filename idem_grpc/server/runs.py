"""The flows of this process that are not over yet, by the nonce of their owner.

Duplicates wait here for the reply of a run, and a server that stops waits here for all.
"""

import threading
from concurrent.futures import Future

from idem_grpc.steps import Reply

Run = Future[Reply]


class Runs:
    """Of use to threads and to an event loop: its futures are of concurrent.futures."""

    def __init__(self) -> None:
        self._runs: dict[bytes, Run] = {}
        self._disowned: set[bytes] = set()
        self._ended = threading.Condition()
        self._awaiting: set[Future[None]] = set()

    def start(self, owner: bytes) -> Run:
        """Register a flow before its first swap, so that none who finds its record misses it."""
        run = Run()
        run.set_running_or_notify_cancel()  # from here on, no waiter can cancel it
        with self._ended:
            self._runs[owner] = run
        return run

    def find(self, owner: bytes) -> Run | None:
        """The flow of ``owner``, if it is one of this process, not over, and within its time."""
        return None if owner in self._disowned else self._runs.get(owner)

    def disown(self, owner: bytes) -> None:
        """A run is past its time: others may take its call over, here as elsewhere."""
        with self._ended:
            if owner in self._runs:
                self._disowned.add(owner)

    def end(self, owner: bytes) -> None:
        """The store knows all that the flow had to tell it."""
        with self._ended:
            self._runs.pop(owner, None)
            self._disowned.discard(owner)
            self._ended.notify_all()
            if self._runs:
                return
            awaiting = tuple(self._awaiting)
            self._awaiting.clear()
        for over in awaiting:
            if over.set_running_or_notify_cancel():
                over.set_result(None)

    def over(self) -> Future[None]:
        """Done once there is a moment without flows. Holds no thread; cancel it to wait no more."""
        over = Future[None]()
        with self._ended:
            if self._runs:
                self._awaiting.add(over)
                over.add_done_callback(self._awaiting.discard)
            else:
                over.set_result(None)
        return over

    def left(self) -> int:
        """How many flows are not over."""
        return len(self._runs)

    def drain(self, timeout: float | None) -> int:
        """Wait until all flows are over, ``timeout`` seconds at the most. Returns how many are not."""
        with self._ended:
            self._ended.wait_for(lambda: not self._runs, timeout)
            return len(self._runs)
