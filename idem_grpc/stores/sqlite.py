"""Stores in a SQLite file, for the processes of one host.

There are two connections, so that reads wait for no writer. A swap reads first, and only one that
changes something goes on to write; those of several threads that wait for the connection that
writes are written in one transaction. Nobody waits inside SQLite, nor longer than its own time.
"""

import asyncio
import math
import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from idem_grpc.stores.boot_clock import Clock, host_clock
from idem_grpc.stores.checking import check_swaps, check_swaps_async
from idem_grpc.stores.protocol import (
    AsyncStore,
    Store,
    StoreUnavailable,
    check_swap,
)
from idem_grpc.stores.sqlite_file import FAILURES, SqliteFile, harms_connection, is_busy
from idem_grpc.stores.sqlite_sweep import Sweeper
from idem_grpc.swap import Held, Swap, Swapped, may_swap

T = TypeVar("T")

_COLUMNS = "value, ttl, boot, expiry, wall_expiry"
_VALUE = "CAST(value AS BLOB)"  # which is text where a person wrote it
_READ = f"{_VALUE}, ttl, boot, expiry, wall_expiry"
_SAME = f"key = ? AND {_VALUE} = ? AND boot = ? AND expiry = ?"
_SELECT = f"SELECT {_READ} FROM records WHERE key = ?"
_INSERT = f"INSERT INTO records ({_COLUMNS}, key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_UPDATE = f"UPDATE records SET ({_COLUMNS}) = (?, ?, ?, ?, ?) WHERE {_SAME}"
_DELETE = f"DELETE FROM records WHERE {_SAME}"
_PAGE = 100  # records read under one lock
_BATCH = 64  # swaps of several threads in one transaction, so that others on the file get their turn
_TOLERANCE = 0.001  # seconds; what rounding may add
_PATIENCE = 5.0  # seconds that a swap may take in all while others have the file
_FIRST_POLL = 0.001  # seconds
_LONGEST_POLL = 0.025
_TURN = 0.05  # seconds between two looks at whether waiting for a turn to write is of use
_LOOK_EVERY = 1.0  # seconds between looks at whether the file is still where it was

_FOREIGN = b"\xff"  # no record, in place of a row that no store wrote: without a value, or with times of text

_Row = Sequence[Any]  # of _COLUMNS


class _Line:
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


class _Write:
    """Swaps that change something, on their way through the connection that writes.

    ``row`` is what the key of a single swap had when it was read. One that ``is_patient`` waits for
    its turn also while another has waited in vain. ``is_alone``: it failed together with others, and
    is tried by itself. Whoever writes it sets ``answers``.
    """

    __slots__ = ("answers", "deadline", "is_alone", "is_patient", "row", "swaps")

    def __init__(self, swaps: Sequence[Swap], row: _Row | None, deadline: float) -> None:
        self.swaps = swaps
        self.row = row
        self.deadline = deadline
        self.is_patient = all(swap.expected == swap.new for swap in swaps)  # renewals: runs depend on them
        self.is_alone = False
        self.answers: list[Swapped | Held] | None = None


class SqliteStore(Store):
    """A store in the file at ``path``, in WAL mode; made when first used.

    ``synchronous`` is ``normal``, which outlives the death of any process, or
    ``full``, which outlives a loss of power too, at the price of an fsync per swap.
    A write waits up to 5 seconds for those of other processes; once one has waited in vain,
    one at a time goes on waiting, and others are refused at once. Reads wait for no writer.
    Expired records are removed every ``sweep_every`` seconds; None leaves that to other stores
    on the file. ``clock`` tells the time; it is the host's unless a test brings its own.
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
        super().__init__(namespace)
        # Absolute, so that connections made later do not depend on the working folder.
        self.path = self._place = os.path.abspath(path)
        self._file = SqliteFile(self.path, synchronous)
        self._sweep_every = sweep_every
        self._clock = clock or host_clock()
        self._reading, self._writing = _Line(), _Line()
        self._waiting: deque[_Write] = deque()  # emptied by whoever has the lock of `_writing`
        self._is_stuck = False
        self._looked = 0.0
        self._starting = threading.Lock()
        self._sweeper: Sweeper | None = None

    def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()  # before a lock: after a fork, its holder may not be there
        begun = self._begin(self._prefixed([swap]), monotonic() + _PATIENCE)
        return (self._finish(begun) if isinstance(begun, _Write) else begun)[0]

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """As Store.swap_many, in one transaction."""
        self._opener.require()
        begun = self._begin(self._prefixed(swaps), monotonic() + _PATIENCE)
        return self._finish(begun) if isinstance(begun, _Write) else begun

    def read(self, key: bytes) -> Held:
        self._opener.require()
        return self._held_now(self._prefix + key, monotonic() + _PATIENCE)[1]

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        Read a page at a time, so that writers are not kept waiting. What is written
        meanwhile may be missing. Raises as ``swap`` does.
        """
        query = f"SELECT {_READ}, key FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT {_PAGE}"
        first, end = self._prefix, self._prefix[:-1] + b";"  # which comes right after the colon
        while True:
            self._opener.require()
            page = self._read(query, (first, end), monotonic() + _PATIENCE)
            if not page:
                return
            first = page[-1][-1] + b"\0"  # the least key above it
            for *row, key in page:
                held = self._held(row)
                if held.value is not None:
                    yield key[len(self._prefix) :], held

    def check(self) -> None:
        check_swaps(self)

    def close(self) -> None:
        self._opener.closed = True
        if not self._opener.is_here():
            return  # a forked process would break its parent's locks
        with self._reading.lock:
            self._reading.drop()
        with self._writing.lock:
            self._writing.drop()
        if self._sweeper is not None:
            self._sweeper.join()

    def _prefixed(self, swaps: Sequence[Swap]) -> list[Swap]:
        """The swaps of the keys in the file. Each is checked."""
        for swap in swaps:
            check_swap(swap)
        return [
            Swap(self._prefix + swap.key, swap.expected, swap.new, swap.ttl, swap.max_left) for swap in swaps
        ]

    def _begin(self, swaps: Sequence[Swap], deadline: float) -> list[Swapped | Held] | _Write:
        """Read what is there. Returns the answers if nothing has to be written, and else what to finish."""
        answers = list[Swapped | Held]()
        for swap in swaps:
            row, held = self._held_now(swap.key, deadline)
            if not may_swap(swap, held.value, held.ttl_left):
                answers.append(held)
            elif swap.new is None and held.value is None:
                answers.append(Swapped(held.ttl_left))
            else:
                return _Write(swaps, row, deadline)
        return answers

    def _held_now(self, key: bytes, deadline: float) -> tuple[_Row | None, Held]:
        rows = self._read(_SELECT, (key,), deadline)
        row = rows[0] if rows else None
        return row, self._held(row)

    def _finish(self, write: _Write) -> list[Swapped | Held]:
        self._waiting.append(write)
        return self._write(write)

    def _write(self, write: _Write) -> list[Swapped | Held]:
        """Write those who wait, until ``write``, one of them, is done."""
        lock = self._writing.lock
        try:
            if not lock.acquire(blocking=False):
                self._await_turn(write)
            was_stuck, self._is_stuck = self._is_stuck, False  # until this turn has found out
            try:
                while write.answers is None:
                    act = partial(self._write_batch, write, was_stuck)
                    self._poll(self._writing, act, write.deadline)
            except FAILURES as error:
                self._is_stuck = is_busy(error)
                raise self._file.failure(error, wrote=True) from error
            finally:
                lock.release()
        except BaseException:
            with suppress(ValueError):  # as it may have been taken out
                self._waiting.remove(write)
            raise
        return write.answers

    def _await_turn(self, write: _Write) -> None:
        """Acquire the lock of ``_writing``, unless its holder finds that the file is still locked."""
        while not self._writing.lock.acquire(timeout=max(0.0, min(_TURN, write.deadline - monotonic()))):
            if monotonic() >= write.deadline or (self._is_stuck and not write.is_patient):
                raise StoreUnavailable(f"{self.path} is locked: others are writing", answered=True)

    def _write_batch(self, write: _Write, was_stuck: bool, connection: sqlite3.Connection) -> None:
        """Write ``write``, or those who have waited longest. If they fail, each is to be tried by itself."""
        try:
            self._write_waiting(write, connection)
        except FAILURES as error:
            self._is_stuck = was_stuck and is_busy(error)
            raise

    def _write_waiting(self, write: _Write, connection: sqlite3.Connection) -> None:
        if len(write.swaps) == 1 and (write.is_alone or len(self._waiting) == 1):
            answer = self._swap(connection, write.swaps[0], write.row)
            self._has_written()
            write.answers = [answer]
            if not write.is_alone:
                self._waiting.popleft()
            return
        connection.execute("BEGIN IMMEDIATE")
        self._has_written()
        batch = [write] if write.is_alone else self._next_batch()
        try:
            answers = [[self._swap_now(connection, swap) for swap in one.swaps] for one in batch]
            connection.execute("COMMIT")
        except BaseException as error:
            for one in batch:
                one.is_alone = True
            self._roll_back(connection)
            if len(batch) == 1 or not isinstance(error, FAILURES):
                raise
        else:
            for one, its_answers in zip(batch, answers, strict=True):
                one.answers = its_answers

    def _next_batch(self) -> list[_Write]:
        batch = list[_Write]()
        with suppress(IndexError):  # those whose time is up take themselves out
            while len(batch) < _BATCH:
                batch.append(self._waiting.popleft())
        return batch

    def _has_written(self) -> None:
        self._is_stuck = False
        self._file.has_worked = True

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except FAILURES:
            self._writing.drop()

    def _read(self, query: str, arguments: tuple[bytes, ...], deadline: float) -> list[_Row]:
        line = self._writing  # while nobody writes, since it has in its cache what was written
        if self._is_stuck or not line.lock.acquire(blocking=False):
            line = self._reading
            if not line.lock.acquire(timeout=max(0.0, deadline - monotonic())):
                raise StoreUnavailable(f"{self.path}: no turn to read it in {_PATIENCE:g} s")
        try:
            return self._poll(
                line, lambda connection: connection.execute(query, arguments).fetchall(), deadline
            )
        except FAILURES as error:
            raise self._file.failure(error, wrote=False) from error
        finally:
            line.lock.release()

    def _poll(self, line: _Line, act: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        """Call ``act`` with the connection, again and again while others have the file locked."""
        pause = _FIRST_POLL
        while True:
            try:
                return act(self._connected(line))
            except FAILURES as error:
                if harms_connection(error):
                    line.drop()
                left = deadline - monotonic()
                if not is_busy(error) or left <= 0:
                    raise
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, _LONGEST_POLL)

    def _connected(self, line: _Line) -> sqlite3.Connection:
        self._opener.require()  # again, as it may have been closed while this thread waited
        now = monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            self._file.look()
        if line.connection is None or line.generation != self._file.generation:
            self._open(line)
            self._start_sweeper()
            if line is self._writing and self._reading.lock.acquire(blocking=False):
                try:  # now, as there may be no descriptor left when it is needed
                    self._open(self._reading)
                finally:
                    self._reading.lock.release()
        assert line.connection is not None
        return line.connection

    def _open(self, line: _Line) -> None:
        line.drop()
        line.connection = self._file.connect()
        line.generation = self._file.generation

    def _start_sweeper(self) -> None:
        with self._starting:
            if self._sweeper is None and self._sweep_every is not None:
                self._sweeper = Sweeper(self._file.connect, self._clock, self._sweep_every)
                # For a store that is dropped without being closed; not at exit, which ends a daemon anyway.
                weakref.finalize(self, self._sweeper.stop).atexit = False

    def _held(self, row: _Row | None) -> Held:
        if row is None:
            return Held(None, 0.0)
        value, ttl, boot, expiry, wall_expiry = row
        if not (value and type(ttl) is type(expiry) is type(wall_expiry) is float):
            return Held(_FOREIGN, math.inf)
        now = self._clock.now()
        left = expiry - now.elapsed
        # On some machines a reboot keeps the boot's id: then the record seems to be written in the future.
        if boot != now.boot or left > ttl + _TOLERANCE:
            left = wall_expiry - now.wall
        # A wall clock that was set back must not make a record live longer than it was written for.
        return Held(value, min(left, ttl)) if left > 0 else Held(None, 0.0)

    def _swap_now(self, connection: sqlite3.Connection, swap: Swap) -> Swapped | Held:
        return self._swap(connection, swap, connection.execute(_SELECT, (swap.key,)).fetchone())

    def _swap(self, connection: sqlite3.Connection, swap: Swap, row: _Row | None) -> Swapped | Held:
        """A swap on a key that had ``row`` when it was read."""
        while True:
            held = self._held(row)
            if not may_swap(swap, held.value, held.ttl_left):
                return held
            if self._replace(connection, swap, row):
                return Swapped(held.ttl_left)
            row = connection.execute(_SELECT, (swap.key,)).fetchone()

    def _replace(self, connection: sqlite3.Connection, swap: Swap, row: _Row | None) -> bool:
        """Write in one statement, unless the key has another row by now."""
        same: tuple[Any, ...] = ()
        if row is not None:
            value, _, boot, expiry, _ = row
            same = swap.key, value, boot, expiry
        if swap.new is None:
            return row is None or connection.execute(_DELETE, same).rowcount == 1
        now = self._clock.now()
        new = swap.new, swap.ttl, now.boot, now.elapsed + swap.ttl, now.wall + swap.ttl
        if row is None:
            return connection.execute(_INSERT, (*new, swap.key)).rowcount == 1
        return connection.execute(_UPDATE, (*new, *same)).rowcount == 1


_Future = asyncio.Future["list[Swapped | Held]"]
_Calls = SimpleQueue["tuple[_Future, list[Swap], float] | None"]
_Writes = SimpleQueue["tuple[_Future, _Write] | None"]


class AsyncSqliteStore(AsyncStore):
    """A SqliteStore for asyncio: one thread reads for it, and another one writes.

    ``blocking`` is the same store, with the same two connections. A swap that is cancelled
    after it began takes effect all the same.
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
        super().__init__(namespace)
        self.blocking = self._store = SqliteStore(
            path, namespace=namespace, synchronous=synchronous, sweep_every=sweep_every, clock=clock
        )
        self._place = self._store.path
        self._calls: _Calls = SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def swap(self, swap: Swap) -> Swapped | Held:
        return (await self._ask(self._store._prefixed([swap])))[0]

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return await self._ask(self._store._prefixed(swaps))

    async def check(self) -> None:
        await check_swaps_async(self)

    async def aclose(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():
            await asyncio.to_thread(self._close)

    async def _ask(self, swaps: list[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        if not self._threads:
            self._start()
        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, swaps, monotonic() + _PATIENCE))
        answers: list[Swapped | Held] = await future
        return answers

    def _start(self) -> None:
        writes: _Writes = SimpleQueue()
        self._threads = [
            threading.Thread(target=target, args=(self._store, *queues), name=name, daemon=True)
            for target, queues, name in (
                (_begin_all, (self._calls, writes), "idem-sqlite-reader"),
                (_finish_all, (writes,), "idem-sqlite-writer"),
            )
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, self._calls.put, None).atexit = False  # dropped without being closed

    def _close(self) -> None:
        self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._store.close()


def _begin_all(store: SqliteStore, calls: _Calls, writes: _Writes) -> None:
    """The thread that reads, and hands on what has to be written."""
    while (call := calls.get()) is not None:
        _begin(store, writes, *call)
        del call  # values can be large
    writes.put(None)


def _begin(store: SqliteStore, writes: _Writes, future: _Future, swaps: list[Swap], deadline: float) -> None:
    if future.cancelled():
        return
    try:
        begun = store._begin(swaps, deadline)
    except Exception as error:
        _set(future, error)
        return
    if isinstance(begun, _Write):
        begun.is_patient = True  # it keeps no thread but this store's
        store._waiting.append(begun)
        writes.put((future, begun))
    else:
        _set(future, begun)


def _finish_all(store: SqliteStore, writes: _Writes) -> None:
    """The thread that writes."""
    while (call := writes.get()) is not None:
        _finish(store, *call)
        del call


def _finish(store: SqliteStore, future: _Future, write: _Write) -> None:
    try:
        answers = store._write(write)
    except Exception as error:
        _set(future, error)
    else:
        _set(future, answers)


def _set(future: _Future, result: list[Swapped | Held] | Exception) -> None:
    try:  # noqa: SIM105 -- on the path of every call
        future.get_loop().call_soon_threadsafe(_set_here, future, result)
    except RuntimeError:  # the loop is closed, and nobody waits
        pass


def _set_here(future: _Future, result: list[Swapped | Held] | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
