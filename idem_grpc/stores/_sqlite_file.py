"""A SQLite file that several processes share: its schema, its connections, its errors and its sweeper."""

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
    # `expiry` is on the clock of the boot in `boot`, `wall_expiry` on the wall clock. `ttl` is the original
    # life of the record. The index serves the sweeper.
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
"""The exceptions that functions of sqlite3 raise; MemoryError stands for SQLITE_NOMEM."""


def is_busy(error: BaseException) -> bool:
    """Return whether the error is a lock of another connection, which is temporary."""
    return _code(error) in _BUSY


def harms_connection(error: BaseException) -> bool:
    """Return whether the connection that raised ``error`` should be replaced by a new one."""
    return not is_busy(error) and not isinstance(error, MemoryError) and _code(error) != sqlite3.SQLITE_FULL


class SharedConnection:
    """A connection with a lock; only the thread that holds the lock may use the connection."""

    __slots__ = ("connection", "generation", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.generation = 0

    def drop(self) -> None:
        """Close the connection, if any, which rolls back its transaction."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class SqliteFile:
    """The file of one store, at ``path``.

    Until the first write succeeds, a file that cannot be used is a configuration mistake (StoreError).
    After that it is an outage (StoreUnavailable): an operator may repair the file while outcomes wait
    to be written.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self.path = path
        self._synchronous = synchronous
        self._identity: tuple[int, int] | None = None
        self.has_worked = False
        self.generation = 0

    def connect(self, wait: float = 0.0) -> sqlite3.Connection:
        """Open a connection, and create the file and its tables if they do not exist.

        Statements wait ``wait`` seconds for locks of other connections. Raises the exceptions of
        sqlite3, and StoreError for a file that is not a store or cannot become one.
        """
        try:
            connection = _connect(self.path, self._synchronous, wait)
        except StoreError as error:
            if self.has_worked:
                raise StoreUnavailable(*error.args) from error
            raise
        self.check_identity()
        return connection

    def check_identity(self) -> None:
        """Increment ``generation`` if the file at the path was replaced or removed.

        Connections of older generations still use the old file.
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
        """Return the StoreError to raise for one of FAILURES. ``wrote``: whether a write raised it."""
        code = _code(error)
        if code == sqlite3.SQLITE_TOOBIG:
            return StoreError(f"{self.path}: the value is larger than SQLite allows")
        if not self.has_worked:
            if code in _CANNOT_OPEN and (mistake := _mistake(self.path)):
                return StoreError(f"{mistake} ({error})")
            if code in _DAMAGED:
                return StoreError(
                    f"{self.path} is not a SQLite file, or is damaged ({error}): give the store its own file"
                )
        can_read = wrote and code in (*_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
        return StoreUnavailable(f"{self.path}: {str(error) or type(error).__name__}", answered=can_read)


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the primary code; the other bits of an extended code add details


def _mistake(path: str) -> str | None:
    """Describe what prevents this process from using a store at ``path``; None if nothing is found.

    It does not open the file: closing it would drop the locks that SQLite has on it.
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
        f"{path} cannot be opened for writing: allow this process to write the file and to create files in"
        " its folder"
    )


def _missing_folder(path: str) -> str | None:
    """Return an error message if the folder of ``path`` does not exist, else None."""
    folder = os.path.dirname(path)
    if os.path.isdir(folder):
        return None
    return f"there is no folder {folder} for the store {os.path.basename(path)}: create it first"


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=_WITH_EFFECTIVE_IDS)


def _connect(path: str, synchronous: str, wait: float) -> sqlite3.Connection:
    if missing := _missing_folder(path):
        raise StoreError(missing)
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")  # a consistent view, as another process may be creating the tables
        is_store = _is_store(connection, path)
        connection.execute("COMMIT")
        if not is_store:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise StoreError(f"{path} cannot be shared by processes: put it on a disk of this host")
            _create(connection, path)
        connection.execute(f"PRAGMA synchronous={synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_store(connection: sqlite3.Connection, path: str) -> bool:
    """Return True for a store, False for an empty file. Raises StoreError for any other file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if application != _APPLICATION_ID:
        raise StoreError(f"{path} holds another program's data: give the store its own file")
    if version != _SCHEMA_VERSION:
        raise StoreError(
            f"{path} has version {version} of the store's schema, and this release reads version"
            f" {_SCHEMA_VERSION}: use the release that wrote it, or another file"
        )
    return True


def _create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not _is_store(connection, path):  # unless another process was first
        for statement in _SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


Row = tuple[Any, ...]
"""Value, ttl, boot, expiry, wall expiry; and, in rows read from the file, the key."""

UNREAD: Final[Row] = ()
"""Stands for a row that must be read."""

FOREIGN = b"\xff"
"""The value reported for a row that no store wrote: it has no value, or times that are not numbers.

It is not a valid record, so such keys count as unreadable.
"""

_COLUMNS = "value, ttl, boot, expiry, wall_expiry"
_VALUE = "CAST(value AS BLOB)"  # a value written by hand may be text
SELECT = f"SELECT {_VALUE}, ttl, boot, expiry, wall_expiry, key FROM records WHERE"
_UNCHANGED = f"key = ? AND {_VALUE} = ? AND boot = ? AND expiry = ?"
_INSERT = f"INSERT INTO records ({_COLUMNS}, key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_UPDATE = f"UPDATE records SET ({_COLUMNS}) = (?, ?, ?, ?, ?) WHERE {_UNCHANGED}"
_DELETE = f"DELETE FROM records WHERE {_UNCHANGED}"
_READ_AT_ONCE = 64  # keys
_TOLERANCE = 0.001  # seconds; more than rounding may add


def read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Row]:
    """Read the rows of ``keys``. Absent keys are left out."""
    rows = dict[bytes, Row]()
    for first in range(0, len(keys), _READ_AT_ONCE):
        some = keys[first : first + _READ_AT_ONCE]
        query = f"{SELECT} key IN ({', '.join('?' * len(some))})"
        for row in connection.execute(query, some).fetchall():
            rows[row[5]] = row
    return rows


def value_of(row: Row | None, now: Moment) -> tuple[bytes | None, float]:
    """Return the value of a row and the seconds until it expires; None and 0.0 if it has expired."""
    if row is None:
        return None, 0.0
    value, ttl, boot, expiry, wall_expiry = row[:5]
    if not (value and type(ttl) is type(expiry) is type(wall_expiry) is float):
        return FOREIGN, math.inf
    left = expiry - now.elapsed
    # Some machines keep the boot's id across a reboot. The record then seems to be written in the future.
    if boot != now.boot or left > ttl + _TOLERANCE:
        left = wall_expiry - now.wall
    # A wall clock that was set back must not extend a record's life beyond its ttl.
    return (value, min(left, ttl)) if left > 0 else (None, 0.0)


def write(connection: sqlite3.Connection, key: bytes, row: Row | None, swap: Swap, now: Moment) -> Row | None:
    """Replace ``row`` by the new value of ``swap``, in one statement.

    Returns the new row, or UNREAD after a deletion; None if the key's row is not ``row`` any more.
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


_BATCH = 100  # records per statement, so that the write lock is held briefly
_PAUSE = 0.02  # seconds between batches, in which others can get the write lock
_WAIT = 1.0  # seconds for the write lock; sweeping is not urgent
_REBASE_EVERY = 3600.0  # seconds

# Not "!=", which cannot use the index.
_OTHER_BOOTS = "(boot < :boot OR boot > :boot)"

_log = logging.getLogger(__name__)


class Sweeper:
    """A daemon thread with its own connection that removes expired records every ``every`` seconds."""

    def __init__(self, connect: Callable[[float], sqlite3.Connection], clock: Clock, every: float) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(connect, clock, every, self._stopped), name="idem-sqlite-sweeper", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, without waiting for its end."""
        self._stopped.set()

    def join(self) -> None:
        """Stop the thread, and wait until its current batch is done."""
        self._stopped.set()
        self._thread.join()


def _run(
    connect: Callable[[float], sqlite3.Connection], clock: Clock, every: float, stopped: threading.Event
) -> None:
    rebased = -math.inf
    while True:
        try:
            connection = connect(_WAIT)
            try:
                if monotonic() - rebased > _REBASE_EVERY:
                    rebase(connection, clock, stopped)
                    rebased = monotonic()
                while sweep(connection, clock) and not stopped.wait(_PAUSE):
                    pass
            finally:
                connection.close()
        except (sqlite3.Error, MemoryError, StoreError) as error:  # the next round tries again
            _log.warning("removing expired records failed, and will be tried again: %s", error)
        if stopped.wait(every):
            return


def rebase(connection: sqlite3.Connection, clock: Clock, stopped: threading.Event) -> None:
    """Convert the expiry of records of other boots to the clock of this boot.

    At most as many records as there are at the start. Containers on one host may have different boot
    ids and convert each other's records; the bound and the hour between two calls keep that cheap.
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
    """Remove at most one batch of expired records. Returns whether there may be more."""
    boot, elapsed, _ = clock.now()
    swept = connection.execute(
        "DELETE FROM records WHERE rowid IN"
        " (SELECT rowid FROM records WHERE boot = ? AND expiry <= ? LIMIT ?)",
        (boot, elapsed, _BATCH),
    ).rowcount
    return swept > 0
