"""The flows of this process that are not over yet, by the nonce of their owner.

Duplicates find a run here to wait for its reply, and a server that stops waits here for all.
"""

import logging
import threading
from concurrent.futures import Future

from idem_grpc.elapsed import elapsed
from idem_grpc.execution import Run
from idem_grpc.server.availability import is_worth_a_line

logger = logging.getLogger("idem_grpc")


class Runs:
    """Of use to threads and to an event loop. A call that nobody waits for takes no lock.

    ``detached`` is how many runs go on whose callers have left: ``max_detached`` of them, beyond which no run
    should begin. A run is counted from the moment at which its caller leaves.
    """

    def __init__(self, max_detached: int) -> None:
        self._max_detached = max_detached
        self.detached = self._times_full = 0
        self.is_full = False
        """Whether so many runs go on whose callers have left that no further one should begin."""
        self._runs: dict[bytes, Run] = {}
        self._changed = threading.Condition()
        self._awaiting: set[Future[None]] = set()
        self._draining = 0

    def start(self, run: Run) -> None:
        """Register the flow of a call."""
        run.began = elapsed()
        self._runs[run.owner] = run

    def detach(self, run: Run) -> None:
        """The caller of a run has left. Does nothing if the run is over."""
        if run.is_over or run.is_detached:
            return
        with self._changed:
            self._count(run)
        self.attach(run)  # it may be over since before it was counted

    def _count(self, run: Run) -> None:
        if run.is_detached:
            return
        run.is_detached = True
        self.detached += 1
        self.is_full = self.detached >= self._max_detached
        if self.detached == self._max_detached:
            self._times_full += 1
            if is_worth_a_line(self._times_full):
                logger.warning(
                    "%d runs go on whose callers have left, as many as max_detached allows (%d times by"
                    " now): calls that would run are refused until one ends",
                    self.detached,
                    self._times_full,
                )

    def attach(self, run: Run) -> None:
        """Count a run no longer, if it is over."""
        with self._changed:
            if run.is_over and run.is_detached:
                run.is_detached = False
                self.detached -= 1
                self.is_full = self.detached >= self._max_detached

    def find(self, owner: bytes) -> Run | None:
        """The flow of ``owner``, if it is one of this process, not over, and within its time."""
        run = self._runs.get(owner)
        return None if run is None or run.is_disowned else run

    def end(self, run: Run) -> None:
        """The store knows all that the flow had to tell it."""
        self._runs.pop(run.owner, None)
        if not self._draining:
            return
        with self._changed:
            self._changed.notify_all()
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
        with self._changed:
            self._draining += 1
            over.add_done_callback(self._drained)
            if self._runs:
                self._awaiting.add(over)
                return over
        over.set_result(None)
        return over

    def _drained(self, over: Future[None]) -> None:
        with self._changed:
            self._draining -= 1
            self._awaiting.discard(over)

    def left(self) -> int:
        """How many flows are not over."""
        return len(self._runs)

    def drain(self, timeout: float | None) -> int:
        """Wait until all flows are over, ``timeout`` seconds at the most. Returns how many are not."""
        with self._changed:
            self._draining += 1
            try:
                self._changed.wait_for(lambda: not self._runs, timeout)
            finally:
                self._draining -= 1
            return len(self._runs)
