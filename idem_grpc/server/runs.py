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
        self._ended = threading.Condition()

    def start(self, owner: bytes) -> Run:
        """Register a flow before its first swap, so that none who finds its record misses it."""
        run = Run()
        run.set_running_or_notify_cancel()  # from here on, no waiter can cancel it
        with self._ended:
            self._runs[owner] = run
        return run

    def find(self, owner: bytes) -> Run | None:
        """The flow of ``owner``, if it is one of this process and not over."""
        return self._runs.get(owner)

    def end(self, owner: bytes) -> None:
        """The store knows all that the flow had to tell it."""
        with self._ended:
            self._runs.pop(owner, None)
            self._ended.notify_all()

    def drain(self, timeout: float | None) -> int:
        """Wait until all flows are over, ``timeout`` seconds at the most. Returns how many are not."""
        with self._ended:
            self._ended.wait_for(lambda: not self._runs, timeout)
            return len(self._runs)
