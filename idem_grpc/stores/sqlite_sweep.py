"""Expired records leave a SQLite file in the background, a few at a time.

The records of earlier boots are brought over to the clock of this one on the
way. Until then they are judged by the wall clock, which may be set.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable

from idem_grpc.stores.boot_clock import BootClock
from idem_grpc.stores.protocol import StoreError

_BATCH = 100  # so that the write lock is never held for long
_PAUSE = 0.02  # seconds between batches, for those who wait for it

_log = logging.getLogger(__name__)


class Sweeper:
    """A daemon thread with a connection of its own, which sweeps every ``every`` seconds."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], clock: BootClock, every: float) -> None:
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
    connect: Callable[[], sqlite3.Connection], clock: BootClock, every: float, stopped: threading.Event
) -> None:
    while True:
        try:
            connection = connect()
            try:
                while sweep(connection, clock) and not stopped.wait(_PAUSE):
                    pass
            finally:
                connection.close()
        except (sqlite3.Error, StoreError) as error:  # the next round may fare better
            _log.warning("sweeping expired records failed: %s", error)
        if stopped.wait(every):
            return


def sweep(connection: sqlite3.Connection, clock: BootClock) -> bool:
    """Bring over and remove at most a batch each; tell whether there may be more."""
    swept = 0
    if clock.boot:
        swept += connection.execute(
            "UPDATE records SET boot = :boot, expiry = :elapsed + min(wall_expiry - :wall, ttl)"
            " WHERE rowid IN (SELECT rowid FROM records WHERE boot < :boot OR boot > :boot LIMIT :batch)",
            {"boot": clock.boot, "elapsed": clock.elapsed(), "wall": clock.wall(), "batch": _BATCH},
        ).rowcount
    swept += connection.execute(
        "DELETE FROM records WHERE rowid IN"
        " (SELECT rowid FROM records WHERE boot = ? AND expiry <= ? LIMIT ?)",
        (clock.boot, clock.elapsed(), _BATCH),
    ).rowcount
    return swept > 0
