"""Stores in a SQLite file, for the processes of one host.

A swap that changes nothing takes no lock: it reads, and that was all. Others
read again under the write lock before they write.
"""

import asyncio
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from idem_grpc.stores.boot_clock import Clock, host_clock
from idem_grpc.stores.checking import check_swaps, check_swaps_async
from idem_grpc.stores.protocol import (
    AsyncStore,
    OpeningProcess,
    Store,
    UsingLoop,
    checked_swap,
    key_prefix,
)
from idem_grpc.stores.sqlite_file import connect, errors_of
from idem_grpc.stores.sqlite_sweep import Sweeper
from idem_grpc.swap import Held, Swap, Swapped, may_swap

_COLUMNS = "value, ttl, boot, expiry, wall_expiry"
_PAGE = 100  # records read under one lock
_TOLERANCE = 0.001  # seconds; what rounding may add


class SqliteStore(Store):
    """A store in the file at ``path``, in WAL mode; made when first used.

    ``synchronous`` is ``normal``, which outlives the death of any process, or
    ``full``, which outlives a loss of power too, at the price of an fsync per swap.
    A write waits up to 5 seconds for other writers. Expired records are removed
    every ``sweep_every`` seconds; None leaves that to other stores on the file.
    ``clock`` tells the time; it is the host's unless a test brings its own.
    """

    def __init__(
        self,
        path: str,
        *,
        namespace: str = "idem",
        synchronous: str = "normal",
        sweep_every: float | None = 30.0,
        clock: Clock | None = None,
    ) -> None:
        if synchronous not in ("normal", "full"):
            raise ValueError(f"synchronous is {synchronous!r}, and must be 'normal' or 'full'")
        self.namespace = namespace
        self._prefix = key_prefix(namespace)
        self.path = os.path.abspath(path)  # connections made later must not depend on the working folder
        self._connect = partial(connect, self.path, synchronous)
        self._sweep_every = sweep_every
        self._clock = clock or host_clock()
        self._opener = OpeningProcess()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._sweeper: Sweeper | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, namespace={self.namespace!r})"

    def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        self._opener.require()  # before the lock: after a fork, its holder may not be there
        swap = checked_swap(self._prefix + key, expected, new, ttl, max_left)
        with self._lock, errors_of(self.path):
            connection = self._open()
            held = self._read(connection, swap.key)
            if not may_swap(swap, held):
                return held
            connection.execute("BEGIN IMMEDIATE")
            try:
                held = self._read(connection, swap.key)
                swaps = may_swap(swap, held)
                if swaps:
                    self._write(connection, swap)
                connection.execute("COMMIT")
            except BaseException:
                self._connection = None  # closing it rolls back, whatever state it is in
                connection.close()
                raise
        return Swapped(held.ttl_left) if swaps else held

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        Read a page at a time, so that writers are not kept waiting. What is written
        meanwhile may be missing. Raises as ``swap`` does.
        """
        first, end = self._prefix, self._prefix[:-1] + b";"  # which comes right after the colon
        while True:
            self._opener.require()
            with self._lock, errors_of(self.path):
                rows = self._open().execute(
                    f"SELECT key, {_COLUMNS} FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
                    (first, end, _PAGE),
                )
                page = [(key, self._held(row)) for key, *row in rows]
            if not page:
                return
            first = page[-1][0] + b"\0"  # the least key above it
            yield from ((key[len(self._prefix) :], held) for key, held in page if held.value is not None)

    def check(self) -> None:
        check_swaps(self)

    def close(self) -> None:
        self._opener.closed = True
        if not self._opener.is_here():
            return  # a forked process would break its parent's locks
        with self._lock:
            connection, self._connection = self._connection, None
            sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.join()
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        self._opener.require()  # again, as it may have been closed while this thread waited for the lock
        if self._connection is None:
            self._connection = self._connect()
            if self._sweeper is None and self._sweep_every is not None:
                self._sweeper = Sweeper(self._connect, self._clock, self._sweep_every)
                # For a store that is dropped without being closed; not at exit, which ends a daemon anyway.
                weakref.finalize(self, self._sweeper.stop).atexit = False
        return self._connection

    def _read(self, connection: sqlite3.Connection, key: bytes) -> Held:
        row = connection.execute(f"SELECT {_COLUMNS} FROM records WHERE key = ?", (key,)).fetchone()
        return Held(None, 0.0) if row is None else self._held(row)

    def _held(self, row: Sequence[Any]) -> Held:
        value, ttl, boot, expiry, wall_expiry = row
        now = self._clock.now()
        left = expiry - now.elapsed
        # On some machines a reboot keeps the boot's id: then the record seems to be written in the future.
        if boot != now.boot or left > ttl + _TOLERANCE:
            left = wall_expiry - now.wall
        # A wall clock that was set back must not make a record live longer than it was written for.
        return Held(value, min(left, ttl)) if left > 0 else Held(None, 0.0)

    def _write(self, connection: sqlite3.Connection, swap: Swap) -> None:
        if swap.new is None:
            connection.execute("DELETE FROM records WHERE key = ?", (swap.key,))
            return
        now = self._clock.now()
        connection.execute(
            "INSERT INTO records (key, value, ttl, boot, expiry, wall_expiry) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, ttl = excluded.ttl,"
            " boot = excluded.boot, expiry = excluded.expiry, wall_expiry = excluded.wall_expiry",
            (swap.key, swap.new, swap.ttl, now.boot, now.elapsed + swap.ttl, now.wall + swap.ttl),
        )


class AsyncSqliteStore(AsyncStore):
    """A SqliteStore for asyncio: its swaps run on a thread of its own, one at a time.

    ``blocking`` is another store on the same file. A swap that is cancelled after
    it began takes effect all the same.
    """

    def __init__(
        self,
        path: str,
        *,
        namespace: str = "idem",
        synchronous: str = "normal",
        sweep_every: float | None = 30.0,
        clock: Clock | None = None,
    ) -> None:
        open_store = partial(SqliteStore, path, namespace=namespace, synchronous=synchronous, clock=clock)
        self.namespace = namespace
        self.blocking = open_store(sweep_every=None)
        self._store = open_store(sweep_every=sweep_every)
        self._opener = OpeningProcess()
        self._loop = UsingLoop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idem-sqlite")

    def __repr__(self) -> str:
        return f"Async{self._store!r}"

    async def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        self._opener.require()
        self._loop.require()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._store.swap, key, expected, new, ttl, max_left
        )

    async def check(self) -> None:
        await check_swaps_async(self)

    async def aclose(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        self._store.close()
        self.blocking.close()
