"""Expired records leave a SQLite file in the background, a few at a time.

The records of earlier boots are brought over to the clock of this one on the
way. Until then they are judged by the wall clock, which may be set.
"""

import logging
import math
import sqlite3
import threading
from collections.abc import Callable
from time import monotonic

from idem_grpc.stores.boot_clock import Clock
from idem_grpc.stores.protocol import StoreError

_BATCH = 100  # so that the write lock is never held for long
_PAUSE = 0.02  # seconds between batches, for those who wait for it
_WAIT = 1.0  # seconds for the write lock: what is expired can stay
_BRING_OVER_EVERY = 3600.0  # seconds

# Each side of the condition goes by the index.
_OTHER_BOOTS = "(boot < :boot OR boot > :boot)"

_log = logging.getLogger(__name__)


class Sweeper:
    """A daemon thread with a connection of its own, which sweeps every ``every`` seconds."""

    def __init__(self, connect: Callable[[float], sqlite3.Connection], clock: Clock, every: float) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(connect, clock, every, self._stopped), name="idem-sqlite-sweeper", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._stopped.set()

    def join(self) -> None:
        """Stop it, and wait for the batch at hand."""
        self._stopped.set()
        self._thread.join()


def _run(
    connect: Callable[[float], sqlite3.Connection], clock: Clock, every: float, stopped: threading.Event
) -> None:
    brought_over = -math.inf
    while True:
        try:
            connection = connect(_WAIT)
            try:
                if monotonic() - brought_over > _BRING_OVER_EVERY:
                    bring_over(connection, clock, stopped)
                    brought_over = monotonic()
                while sweep(connection, clock) and not stopped.wait(_PAUSE):
                    pass
            finally:
                connection.close()
        except (sqlite3.Error, MemoryError, StoreError) as error:  # the next round may fare better
            _log.warning("sweeping expired records failed: %s", error)
        if stopped.wait(every):
            return


def bring_over(connection: sqlite3.Connection, clock: Clock, stopped: threading.Event) -> None:
    """Put the records of other boots on the clock of this one, as many as there are at first.

    Containers that live on one host may have boots of different names, and would do this to
    one another's records for ever: hence the bound, and the long time from one to the next.
    """
    boot = clock.now().boot
    if not boot:
        return
    count = f"SELECT count(*) FROM records WHERE {_OTHER_BOOTS}"
    (left,) = connection.execute(count, {"boot": boot}).fetchone()
    while left > 0 and not stopped.is_set():
        boot, elapsed, wall = clock.now()
        connection.execute(
            "UPDATE records SET boot = :boot, expiry = :elapsed + min(wall_expiry - :wall, ttl)"
            f" WHERE rowid IN (SELECT rowid FROM records WHERE {_OTHER_BOOTS} LIMIT :batch)",
            {"boot": boot, "elapsed": elapsed, "wall": wall, "batch": _BATCH},
        )
        left -= _BATCH
        stopped.wait(_PAUSE)


def sweep(connection: sqlite3.Connection, clock: Clock) -> bool:
    """Remove at most a batch; tell whether there may be more."""
    boot, elapsed, _ = clock.now()
    swept = connection.execute(
        "DELETE FROM records WHERE rowid IN"
        " (SELECT rowid FROM records WHERE boot = ? AND expiry <= ? LIMIT ?)",
        (boot, elapsed, _BATCH),
    ).rowcount
    return swept > 0
