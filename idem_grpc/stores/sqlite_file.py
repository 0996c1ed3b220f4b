"""Opening a SQLite file that several processes share, and saying what is wrong with one."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from idem_grpc.stores.protocol import StoreError, StoreUnavailable

_APPLICATION_ID = int.from_bytes(b"idem")
_SCHEMA_VERSION = 1
_BUSY_TIMEOUT = 5.0  # seconds

_SCHEMA = (
    # `expiry` is on the clock of the boot that is named beside it, `wall_expiry` on the wall clock; `ttl`
    # is what was written. The index is the order in which expired records are swept.
    "CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL, ttl REAL NOT NULL,"
    " boot TEXT NOT NULL, expiry REAL NOT NULL, wall_expiry REAL NOT NULL)",
    "CREATE INDEX records_by_expiry ON records (boot, expiry)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """A connection to the store in the file at ``path``, which is made if it is not there.

    Raises StoreError if that cannot be: no folder, no permission, another's file.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise StoreError(f"there is no folder {folder} for the store {os.path.basename(path)}: make it first")
    with errors_of(path):
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("BEGIN")  # one view of a file that another process may be making
            ours = _is_ours(connection, path)
            connection.execute("COMMIT")
            if not ours:
                _use_wal(connection, path)
                _create(connection, path)
            connection.execute(f"PRAGMA synchronous={synchronous}")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Make a StoreError or a StoreUnavailable of what SQLite says of the file at ``path``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of an extended code says where
        match code:
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                raise StoreError(
                    f"{path} cannot be opened for writing ({error}): this process needs to write that file,"
                    " to make others beside it in its folder, and to find it where it was"
                ) from error
            case sqlite3.SQLITE_NOTADB:
                raise StoreError(f"{path} is not a SQLite file: give the store a file of its own") from error
            case _:
                raise StoreUnavailable(f"{path}: {error}") from error


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


def _use_wal(connection: sqlite3.Connection, path: str) -> None:
    # Two processes that do this at once are told "locked" without the wait that every other lock has.
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise StoreError(f"{path} cannot be shared by processes: put it on a disk of this host")
        return


def _create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not _is_ours(connection, path):  # unless another process was first
        for statement in _SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")
