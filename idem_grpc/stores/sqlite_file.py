"""A SQLite file that several processes share: opening it, and what its errors mean."""

import os
import sqlite3

from idem_grpc.stores.protocol import StoreError, StoreUnavailable

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
