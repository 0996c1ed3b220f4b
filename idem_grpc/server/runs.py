"""The flows of this process that are not over yet, by the nonce of their owner.

Duplicates wait here for the reply of a run, and a server that stops waits here for all.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from idem_grpc.elapsed import elapsed
from idem_grpc.server.availability import is_worth_a_line
from idem_grpc.steps import Reply

logger = logging.getLogger("idem_grpc")

Wake = Callable[[], object]


class Run:
    """The flow of one keyed call, which ``began`` at a time of the clock ``elapsed``.

    ``reply`` is None until it has replied, and if it broke.
    """

    __slots__ = ("_is_attached", "_is_detached", "_is_over", "_runs", "_waiters", "began", "reply")

    def __init__(self, runs: "Runs") -> None:
        self.began = elapsed()
        self.reply: Reply | None = None
        self._is_attached = True
        self._is_over = self._is_detached = False
        self._runs = runs
        self._waiters: list[Wake] | None = None  # made for the first duplicate that waits

    def join(self, wake: Wake) -> None:
        """Have ``wake`` called once the run is over; at once if it is. To be followed by ``leave``."""
        with self._runs.lock:
            if not self._is_over:
                self._waiters = self._waiters or []
                self._waiters.append(wake)
                return
        wake()

    def leave(self, wake: Wake) -> None:
        """Forget a waiter, and so all that it holds."""
        with self._runs.lock:
            if self._waiters and wake in self._waiters:
                self._waiters.remove(wake)

    def detach(self) -> None:
        """The caller has left. Does nothing if the run is over."""
        if self._is_attached:  # without the lock: most runs are over by then
            with self._runs.lock:
                if self._is_attached:
                    self._is_attached, self._is_detached = False, True
                    self._runs.add_detached()

    def end(self, reply: Reply | None) -> None:
        """The run has replied; with None, it broke."""
        with self._runs.lock:
            self.reply, self._is_over, self._is_attached = reply, True, False
            waiters, self._waiters = self._waiters, None
            if self._is_detached:
                self._runs.detached -= 1
        for wake in waiters or ():
            try:
                wake()
            except Exception:  # the event loop of a waiter is closed: its call is over
                logger.debug("a duplicate could not be woken", exc_info=True)


class Runs:
    """Of use to threads and to an event loop.

    ``detached`` is how many runs go on whose callers have left: ``max_detached`` of them, beyond
    which no run should begin. A run is counted from the moment at which its caller leaves.
    """

    def __init__(self, max_detached: int) -> None:
        self.detached = 0
        self._max_detached = max_detached
        self._times_full = 0
        self._runs: dict[bytes, Run] = {}
        self._disowned: set[bytes] = set()
        self.lock = threading.RLock()
        self._ended = threading.Condition(self.lock)
        self._awaiting: set[Future[None]] = set()

    def start(self, owner: bytes) -> Run:
        """Register a flow before its first swap, so that none who finds its record misses it."""
        run = Run(self)
        with self.lock:
            self._runs[owner] = run
        return run

    @property
    def is_full(self) -> bool:
        """Whether so many runs go on without their callers that no further one should begin."""
        return self.detached >= self._max_detached

    def add_detached(self) -> None:
        """Count a run whose caller leaves. The caller of this holds ``lock``."""
        self.detached += 1
        if self.detached == self._max_detached:
            self._times_full += 1
            if is_worth_a_line(self._times_full):
                logger.warning(
                    "%d runs go on whose callers have left, as many as max_detached allows (%d times by now):"
                    " calls that would run are refused until one ends",
                    self.detached,
                    self._times_full,
                )

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
