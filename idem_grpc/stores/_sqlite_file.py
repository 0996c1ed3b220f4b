"""A SQLite file that several processes share: opening it, and what its errors mean."""

import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from idem_grpc._core.swap import Swap
from idem_grpc.stores._boot_clock import Clock, Moment
from idem_grpc.stores._protocol import StoreError, StoreUnavailable

_APPLICATION_ID = int.from_bytes(b"idem")
_SCHEMA_VERSION = 1

_SCHEMA = (
    # `expiry` is on the clock of the boot that is named beside it, `wall_expiry` on the wall clock; `ttl`
    # is what was written. The index is the order in which expired records are swept.
    "CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL, ttl REAL NOT NULL,"
    " boot TEXT NOT NULL, expiry REAL NOT NULL, wall_expiry REAL NOT NULL)",
    "CREATE INDEX records_by_expiry ON records (boot, expiry)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CANNOT_OPEN = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_WITH_EFFECTIVE_IDS = os.access in os.supports_effective_ids

FAILURES = (sqlite3.Error, MemoryError)
"""What the functions of sqlite3 raise. Of SQLITE_NOMEM they make a MemoryError."""


def is_busy(error: BaseException) -> bool:
    """Tell whether another connection is in the way, for as long as it is."""
    return _code(error) in _BUSY


def harms_connection(error: BaseException) -> bool:
    """Tell whether the connection that raised ``error`` had better be closed, and another opened."""
    return not is_busy(error) and not isinstance(error, MemoryError) and _code(error) != sqlite3.SQLITE_FULL


class Line:
    """A connection, which one thread at a time may use: the one that has the lock."""

    __slots__ = ("connection", "generation", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.generation = 0

    def drop(self) -> None:
        """Close the connection, which rolls back, whatever state it is in."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class SqliteFile:
    """The file of one store, at ``path``.

    Before a store has worked, a file that cannot be used is a mistake. Once it has, whatever
    happens to the file is an outage: it may be put right while outcomes wait to be written.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self.path = path
        self._synchronous = synchronous
        self._identity: tuple[int, int] | None = None
        self.has_worked = False
        self.generation = 0

    def connect(self, wait: float = 0.0) -> sqlite3.Connection:
        """A connection to the store, which is made if it is not there.

        Its statements wait ``wait`` seconds for the locks of others. Raises what sqlite3
        does, and StoreError for a file that holds no store or can hold none.
        """
        try:
            connection = _connect(self.path, self._synchronous, wait)
        except StoreError as error:
            if self.has_worked:
                raise StoreUnavailable(*error.args) from error
            raise
        self.look()
        return connection

    def look(self) -> None:
        """Begin a new ``generation`` if another file is at the path, or none.

        Connections of older generations still have the file that was there.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            identity = None
        else:
            identity = status.st_dev, status.st_ino
        if identity != self._identity:
            self._identity = identity
            self.generation += 1

    def failure(self, error: BaseException, *, wrote: bool) -> StoreError:
        """What a store raises for one of FAILURES, which came of writing or of reading only."""
        code = _code(error)
        if code == sqlite3.SQLITE_TOOBIG:
            return StoreError(f"{self.path}: the value is larger than SQLite takes")
        if not self.has_worked:
            if code in _CANNOT_OPEN and (mistake := _mistake(self.path)):
                return StoreError(f"{mistake} ({error})")
            if code in _DAMAGED:
                return StoreError(
                    f"{self.path} is not a SQLite file, or a damaged one ({error}):"
                    " give the store a file of its own"
                )
        can_read = wrote and code in (*_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
        return StoreUnavailable(f"{self.path}: {str(error) or type(error).__name__}", answered=can_read)


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the rest of an extended code says where


def _mistake(path: str) -> str | None:
    """What keeps this process from using a store at ``path``, in a sentence; None if nothing does.

    It opens nothing: closing the file would drop the locks that SQLite has on it.
    """
    if missing := _missing_folder(path):
        return missing
    folder = os.path.dirname(path)
    others = [other for other in (path, f"{path}-wal", f"{path}-shm") if os.path.exists(other)]
    if (
        _may(folder, os.W_OK | os.X_OK)
        and all(_may(other, os.R_OK | os.W_OK) for other in others)
        and not os.path.isdir(path)
    ):
        return None
    return (
        f"{path} cannot be opened for writing: this process needs to write that file, and to make others"
        " beside it in its folder"
    )


def _missing_folder(path: str) -> str | None:
    """A sentence about the folder of ``path``, if there is none."""
    folder = os.path.dirname(path)
    if os.path.isdir(folder):
        return None
    return f"there is no folder {folder} for the store {os.path.basename(path)}: make it first"


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=_WITH_EFFECTIVE_IDS)


def _connect(path: str, synchronous: str, wait: float) -> sqlite3.Connection:
    if missing := _missing_folder(path):
        raise StoreError(missing)
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")  # one view of a file that another process may be making
        ours = _is_ours(connection, path)
        connection.execute("COMMIT")
        if not ours:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise StoreError(f"{path} cannot be shared by processes: put it on a disk of this host")
            _create(connection, path)
        connection.execute(f"PRAGMA synchronous={synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Tell a store from an empty file; StoreError if the file is anything else."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if application != _APPLICATION_ID:
        raise StoreError(f"{path} holds another program's data: give the store a file of its own")
    if version != _SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written with version {version} of the store's schema, and this release reads"
            f" version {_SCHEMA_VERSION}: use the release that wrote it, or another file"
        )
    return True


def _create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not _is_ours(connection, path):  # unless another process was first
        for statement in _SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


Row = tuple[Any, ...]
"""Value, ttl, boot, expiry, wall expiry; and the key, where it was read."""

UNREAD: Final[Row] = ()
"""In place of a row that has to be read."""

FOREIGN = b"\xff"
"""No record, in place of a row that no store wrote: without a value, or with times of text."""

_COLUMNS = "value, ttl, boot, expiry, wall_expiry"
_VALUE = "CAST(value AS BLOB)"  # which is text where a person wrote it
SELECT = f"SELECT {_VALUE}, ttl, boot, expiry, wall_expiry, key FROM records WHERE"
_SAME = f"key = ? AND {_VALUE} = ? AND boot = ? AND expiry = ?"
_INSERT = f"INSERT INTO records ({_COLUMNS}, key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_UPDATE = f"UPDATE records SET ({_COLUMNS}) = (?, ?, ?, ?, ?) WHERE {_SAME}"
_DELETE = f"DELETE FROM records WHERE {_SAME}"
_READ_AT_ONCE = 64  # keys
_TOLERANCE = 0.001  # seconds; what rounding may add


def read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Row]:
    """The rows of those keys that have one."""
    rows = dict[bytes, Row]()
    for first in range(0, len(keys), _READ_AT_ONCE):
        some = keys[first : first + _READ_AT_ONCE]
        query = f"{SELECT} key IN ({', '.join('?' * len(some))})"
        for row in connection.execute(query, some).fetchall():
            rows[row[5]] = row
    return rows


def look(row: Row | None, now: Moment) -> tuple[bytes | None, float]:
    """The value in a row, and how many seconds it has left; None and 0 if it has expired."""
    if row is None:
        return None, 0.0
    value, ttl, boot, expiry, wall_expiry = row[:5]
    if not (value and type(ttl) is type(expiry) is type(wall_expiry) is float):
        return FOREIGN, math.inf
    left = expiry - now.elapsed
    # On some machines a reboot keeps the boot's id: then the record seems to be written in the future.
    if boot != now.boot or left > ttl + _TOLERANCE:
        left = wall_expiry - now.wall
    # A wall clock that was set back must not make a record live longer than it was written for.
    return (value, min(left, ttl)) if left > 0 else (None, 0.0)


def write(connection: sqlite3.Connection, key: bytes, row: Row | None, swap: Swap, now: Moment) -> Row | None:
    """Replace ``row`` by what ``swap`` writes, in one statement.

    Returns the new row, UNREAD if there is none; None if the key has another row than ``row``.
    """
    if swap.new is None:
        is_gone = row is None or connection.execute(_DELETE, (key, row[0], row[2], row[3])).rowcount == 1
        return UNREAD if is_gone else None
    new = swap.new, swap.ttl, now.boot, now.elapsed + swap.ttl, now.wall + swap.ttl
    if row is None:
        written = connection.execute(_INSERT, (*new, key))
    else:
        written = connection.execute(_UPDATE, (*new, key, row[0], row[2], row[3]))
    return new if written.rowcount == 1 else None


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
