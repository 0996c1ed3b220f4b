"""Stores in a SQLite file, for the processes of one host.

There are two connections, so that reads do not wait for a writer. A thread that finds the writing
connection unused executes its swap at once. Otherwise swaps are queued as jobs, and the thread that has
the connection executes many of them in one transaction. No thread waits inside SQLite, or longer than
its own timeout.
"""

import asyncio
import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from time import monotonic

from idem_grpc._core.swap import Held, Swap, Swapped, may_swap
from idem_grpc.stores._boot_clock import Clock, Moment, host_clock
from idem_grpc.stores._protocol import (
    AsyncStore,
    Store,
    StoreUnavailable,
    check_swap,
    check_swaps,
    check_swaps_async,
)
from idem_grpc.stores._sqlite_file import (
    FAILURES,
    SELECT,
    UNREAD,
    Row,
    SharedConnection,
    SqliteFile,
    Sweeper,
    harms_connection,
    is_busy,
    read,
    value_of,
    write,
)

_PAGE = 100  # records read under one lock
_BATCH = 64  # jobs in one transaction; the limit lets other processes write in between
_TIMEOUT = 5.0  # seconds that a swap may take in all while other processes lock the file
_FIRST_POLL = 0.001  # seconds
_LONGEST_POLL = 0.025
_READ_AFTER = 0.01  # seconds to wait for the writing thread before queued jobs are read separately
_RECHECK_EVERY = 0.05  # seconds between checks whether a queued job should keep waiting
_CHECK_FILE_EVERY = 1.0  # seconds between checks whether the file was replaced or removed
_CACHE_SIZE = 4096  # rows
_LARGEST_CACHED = 512  # bytes of a value


class _Job:
    """Queued swaps of one caller.

    wakeup: a lock whose release wakes the thread that waits for the result, or executes the job.
    rows: the rows of the keys as last seen; None if they must be read.
    keeps_waiting: whether the job stays queued even after another one has timed out.
    """

    __slots__ = ("deadline", "future", "keeps_waiting", "keys", "result", "rows", "swaps", "wakeup")

    def __init__(
        self,
        swaps: Sequence[Swap],
        keys: Sequence[bytes],
        rows: list[Row | None] | None,
        wakeup: threading.Lock,
        future: "asyncio.Future[list[Swapped | Held]] | None",
    ) -> None:
        self.swaps = swaps
        self.keys = keys
        self.rows = rows
        self.wakeup = wakeup
        self.future = future
        self.deadline = monotonic() + _TIMEOUT
        # A future blocks no thread of the server, and a failed renewal would cost a run its lease.
        self.keeps_waiting = future is not None or all(swap.expected == swap.new for swap in swaps)
        self.result: list[Swapped | Held] | Exception | None = None

    def is_done(self) -> bool:
        return self.result is not None


def _new_wakeup() -> threading.Lock:
    wakeup = threading.Lock()
    wakeup.acquire()
    return wakeup


def _wake(wakeup: threading.Lock) -> None:
    """Release ``wakeup``: one waiting thread, or else the next one to wait, continues."""
    if wakeup.locked():
        try:  # noqa: SIM105 -- on the path of every call
            wakeup.release()
        except RuntimeError:  # another thread has just released it
            pass


class SqliteStore(Store):
    """A store in a SQLite file in WAL mode, for the processes of one host.

    path: of the file, which is created at the first use; its folder must exist.
    synchronous: ``normal``, the default, keeps records when any process dies; ``full`` keeps them on a
        power loss too, and costs an fsync per swap.
    sweep_every: seconds between removals of expired records, default 30; None leaves them to other
        stores on the file.
    clock: the host's clock by default; tests may pass another.

    A write waits up to 5 seconds for writes of other processes. After one has timed out, one write at a
    time keeps waiting, and others fail at once. Reads do not wait for a writer.
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
        # Absolute, so that later connections do not depend on the current directory.
        self.path = self._place = os.path.abspath(path)
        self._file = SqliteFile(self.path, synchronous)
        self._sweep_every = sweep_every
        self._clock = clock or host_clock()
        self._reading, self._writing = SharedConnection(), SharedConnection()
        self._waiting: deque[_Job] = deque()  # a thread that removes a job executes or requeues it
        self._cache: dict[bytes, Row] = {}  # rows written recently, which other processes may have changed
        self._is_blocked = self._was_blocked = False
        self._checked = 0.0
        self._starting = threading.Lock()
        self._sweeper: Sweeper | None = None

    def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()  # before acquiring a lock, whose owner may not exist after a fork
        check_swap(swap)
        key = self._prefix + swap.key
        row = self._cache.get(key)
        if swap.expected is None and row is not None:  # probably a duplicate, which need not wait to write
            row = self._read(key)
            answer = _unchanged(swap, row, self._clock.now())
            if answer is not None:
                return answer
        elif row is None and (swap.expected is not None or swap.new is None):
            row = UNREAD
        if not (self._waiting or self._is_blocked) and self._writing.lock.acquire(blocking=False):
            try:
                connection = self._connected(self._writing)
                return self._swap(connection, swap, key, row, self._clock.now())
            except FAILURES as error:  # tried again in the queue, and reported if it fails there
                if harms_connection(error):
                    self._writing.drop()
            finally:
                self._run_jobs()
        return self._run_queued([swap])[0]

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Send several swaps in one transaction, as Store.swap_many does."""
        self._opener.require()
        return self._run_queued(swaps) if swaps else []

    def read(self, key: bytes) -> Held:
        self._opener.require()
        return Held(*value_of(self._read(self._prefix + key), self._clock.now()))

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Iterate over the keys of this namespace and their values.

        It reads a page at a time, so that writers need not wait. Keys written meanwhile may be
        missing. Raises as ``swap`` does.
        """
        query = f"{SELECT} key >= ? AND key < ? ORDER BY key LIMIT {_PAGE}"
        first, end = self._prefix, self._prefix[:-1] + b";"  # the character after the colon
        while True:
            self._opener.require()
            page = self._fetch(query, first, end)
            if not page:
                return
            first = page[-1][-1] + b"\0"  # the smallest key after the last one
            for row in page:
                held = Held(*value_of(row, self._clock.now()))
                if held.value is not None:
                    yield row[-1][len(self._prefix) :], held

    def check(self) -> None:
        check_swaps(self)

    def close(self) -> None:
        self._opener.closed = True
        if not self._opener.is_here():
            return  # closing the file in a forked process would drop its parent's locks
        with self._reading.lock:
            self._reading.drop()
        with self._writing.lock:
            self._writing.drop()
        if self._sweeper is not None:
            self._sweeper.join()

    def _enqueue(
        self,
        swaps: Sequence[Swap],
        wakeup: threading.Lock,
        future: "asyncio.Future[list[Swapped | Held]] | None" = None,
    ) -> _Job:
        """Add a job to the queue."""
        rows = list[Row | None]()
        keys = list[bytes]()
        for swap in swaps:
            check_swap(swap)
            keys.append(key := self._prefix + swap.key)
            row = self._cache.get(key)
            if row and row[0] == swap.expected:
                rows.append(row)
        job = _Job(swaps, keys, rows if len(rows) == len(keys) else None, wakeup, future)
        self._waiting.append(job)
        return job

    def _run_queued(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Queue swaps, and wait until this thread or another has executed them."""
        job = self._enqueue(swaps, _new_wakeup())
        pause = _READ_AFTER
        while not job.is_done():
            if self._writing.lock.acquire(blocking=False):
                self._run_jobs(job)
            left = max(0.0, job.deadline - monotonic())
            if not job.is_done() and not job.wakeup.acquire(timeout=min(pause, left)):
                self._read_for_all()
                if not job.is_done() and (left <= pause or (self._is_blocked and not job.keeps_waiting)):
                    locked = f"{self.path} is locked by other writers"
                    job.result = StoreUnavailable(locked, answered=job.rows is not None)
                pause = _RECHECK_EVERY
        if isinstance(job.result, list):
            return job.result
        assert job.result is not None
        raise job.result

    def _run_jobs(self, own: _Job | None = None, *, stays: bool = False) -> None:
        """Execute ``own``, which is a queued job, and one batch of others; all jobs if ``stays``.

        The caller holds the lock of ``_writing``, which this releases.
        """
        self._was_blocked, self._is_blocked = self._is_blocked, False  # until this run shows otherwise
        pause, rounds = _FIRST_POLL, 1
        batch = list[_Job]()
        try:
            while stays or rounds > 0:
                batch = self._next_batch()
                if not batch:
                    break
                is_mine = stays or (own is not None and not own.is_done())
                if self._run_batch(self._writing, batch):
                    pause = _FIRST_POLL
                    rounds -= not is_mine
                    continue
                self._requeue(batch)
                batch = []
                if not is_mine:
                    break
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_POLL)
        finally:
            self._requeue(batch)
            self._release(self._writing)

    def _release(self, shared: SharedConnection) -> None:
        """Release a lock, and wake a thread for the jobs that are still queued or were requeued."""
        shared.lock.release()
        try:  # noqa: SIM105 -- on the path of every call
            _wake(self._waiting[0].wakeup)
        except IndexError:
            pass

    def _next_batch(self) -> list[_Job]:
        """Remove the oldest jobs from the queue, at most a batch."""
        batch = list[_Job]()
        try:
            while len(batch) < _BATCH:
                job = self._waiting.popleft()
                if job.result is None:
                    batch.append(job)
        except IndexError:
            pass
        return batch

    def _requeue(self, batch: Sequence[_Job]) -> None:
        self._waiting.extendleft(job for job in reversed(batch) if job.result is None)

    def _read_for_all(self) -> None:
        """Answer the queued jobs that change nothing, while the writing thread is slow or blocked."""
        shared, batch = self._reading, list[_Job]()
        if any(job.rows is None for job in self._waiting.copy()) and shared.lock.acquire(blocking=False):
            try:
                batch = self._next_batch()
                self._run_batch(shared, batch)
            finally:
                self._requeue(batch)
                self._release(shared)

    def _run_batch(self, shared: SharedConnection, batch: Sequence[_Job]) -> bool:
        """Execute the jobs of a batch that ``shared`` can execute. Returns False if the rest must wait."""
        wrote = False
        try:
            connection = self._connected(shared)
            self._read_for(connection, batch)
            left = [job for job in batch if job.result is None]
            if left and shared is self._writing:
                wrote = True
                self._write(connection, left)
        except Exception as error:
            if harms_connection(error):
                shared.drop()
            left = [
                job for job in batch if job.result is None and (shared is self._writing or job.rows is None)
            ]
            if is_busy(error) or shared is self._reading:
                late = [job for job in left if job.deadline <= monotonic()]
                self._fail(late, error, wrote=wrote)
                self._is_blocked = self._was_blocked = self._was_blocked or (wrote and bool(late))
                return False
            if len(left) > 1:
                return all(self._run_batch(shared, [job]) for job in left)
            self._fail(left, error, wrote=wrote)
        finally:
            self._deliver(batch)
        return True

    def _read_for(self, connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
        """Read the rows of jobs that lack them, and answer the jobs that change nothing."""
        unread = [job for job in batch if job.rows is None]
        if not unread:
            return
        rows = read(connection, [key for job in unread for key in job.keys])
        now = self._clock.now()
        for job in unread:
            job.rows = [rows.get(key) for key in job.keys]
            answers = [_unchanged(swap, row, now) for swap, row in zip(job.swaps, job.rows, strict=True)]
            if None not in answers:
                job.result = [answer for answer in answers if answer is not None]

    def _write(self, connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
        """Execute the swaps of these jobs in one transaction."""
        is_one = len(batch) == len(batch[0].swaps) == 1
        try:
            if not is_one:
                connection.execute("BEGIN IMMEDIATE")
                self._has_written()
            now = self._clock.now()
            results = [
                [
                    self._swap(connection, swap, key, row, now)
                    for swap, key, row in zip(job.swaps, job.keys, job.rows or (), strict=True)
                ]
                for job in batch
            ]
            if not is_one:
                connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        for job, result in zip(batch, results, strict=True):
            job.result = result

    def _swap(
        self, connection: sqlite3.Connection, swap: Swap, key: bytes, row: Row | None, now: Moment
    ) -> Swapped | Held:
        """Execute a swap on a key whose row was ``row``; if that has changed, read it and try again."""
        is_read = False
        while True:
            if row is not UNREAD:
                value, left = value_of(row, now)
                if may_swap(swap, value, left):
                    written = write(connection, key, row, swap, now)
                    if written is not None:
                        self._has_written()
                        self._cache_row(key, written)
                        return Swapped(left)
                elif is_read:
                    self._cache_row(key, UNREAD)
                    return Held(value, left)
            row, now, is_read = read(connection, (key,)).get(key), self._clock.now(), True

    def _cache_row(self, key: bytes, row: Row) -> None:
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[key] = row if row and len(row[0]) <= _LARGEST_CACHED else UNREAD

    def _fail(self, batch: Sequence[_Job], error: Exception, *, wrote: bool) -> None:
        for job in batch:
            if isinstance(error, FAILURES):
                job.result = self._file.failure(error, wrote=wrote)
                job.result.__cause__ = error
            else:
                job.result = copy(error)

    def _deliver(self, batch: Sequence[_Job]) -> None:
        """Wake the threads and tasks whose jobs are done."""
        loop = None
        for job in batch:
            if job.result is not None:
                if job.future is None:
                    _wake(job.wakeup)
                else:
                    loop = job.future.get_loop()  # all futures have the same loop
        if loop is not None:
            try:  # noqa: SIM105 -- on the path of every call
                loop.call_soon_threadsafe(_resolve, batch)
            except RuntimeError:  # the loop is closed, so no task waits
                pass

    def _has_written(self) -> None:
        self._is_blocked = self._was_blocked = False
        self._file.has_worked = True

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except FAILURES:
            self._writing.drop()

    def _read(self, key: bytes) -> Row | None:
        rows = self._fetch(f"{SELECT} key = ?", key)
        return rows[0] if rows else None

    def _fetch(self, query: str, *arguments: bytes) -> list[Row]:
        """Read rows, retrying while other processes lock the file."""
        deadline, pause = monotonic() + _TIMEOUT, _FIRST_POLL
        shared = self._writing  # preferred while unused: SQLite's cache of this connection has recent writes
        if self._is_blocked or not shared.lock.acquire(blocking=False):
            shared = self._reading
            if not shared.lock.acquire(timeout=_TIMEOUT):
                raise StoreUnavailable(f"{self.path}: waited {_TIMEOUT:g} s for other reads")
        try:
            while True:
                try:
                    return self._connected(shared).execute(query, arguments).fetchall()
                except FAILURES as error:
                    if harms_connection(error):
                        shared.drop()
                    left = deadline - monotonic()
                    if not is_busy(error) or left <= 0:
                        raise self._file.failure(error, wrote=False) from error
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, _LONGEST_POLL)
        finally:
            self._release(shared)

    def _connected(self, shared: SharedConnection) -> sqlite3.Connection:
        self._opener.require()  # again, as the store may have been closed while this thread waited
        now = monotonic()
        if now - self._checked > _CHECK_FILE_EVERY:
            self._checked = now
            self._file.check_identity()
        if shared.connection is None or shared.generation != self._file.generation:
            self._open(shared)
            self._start_sweeper()
            if shared is self._writing and self._reading.lock.acquire(blocking=False):
                try:  # open it early, as the process may later have no file descriptor left
                    self._open(self._reading)
                finally:
                    self._reading.lock.release()
        assert shared.connection is not None
        return shared.connection

    def _open(self, shared: SharedConnection) -> None:
        shared.drop()
        shared.connection = self._file.connect()
        shared.generation = self._file.generation

    def _start_sweeper(self) -> None:
        with self._starting:
            if self._sweeper is None and self._sweep_every is not None:
                self._sweeper = Sweeper(self._file.connect, self._clock, self._sweep_every)
                # For a store that is dropped without being closed. At exit, daemon threads end anyway.
                weakref.finalize(self, self._sweeper.stop).atexit = False


def _unchanged(swap: Swap, row: Row | None, now: Moment) -> Swapped | Held | None:
    """Return the result of a swap on a key that has ``row``; None if the swap must write."""
    value, left = value_of(row, now)
    if not may_swap(swap, value, left):
        return Held(value, left)
    return Swapped(left) if swap.new is value is None else None


class AsyncSqliteStore(AsyncStore):
    """A SqliteStore for asyncio. One thread executes its swaps, and another reads while that one is slow.

    ``blocking`` is the SqliteStore that holds the two connections. A swap that is cancelled after it
    was queued still takes effect. The parameters are those of SqliteStore.
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
        self._wakeups = (_new_wakeup(), _new_wakeup())
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    async def swap(self, swap: Swap) -> Swapped | Held:
        return (await self._submit([swap]))[0]

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return await self._submit(swaps) if swaps else []

    async def check(self) -> None:
        await check_swaps_async(self)

    async def aclose(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():
            await asyncio.to_thread(self._close)

    async def _submit(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        if not self._threads:
            self._start()
        future = asyncio.get_running_loop().create_future()
        self._store._enqueue(swaps, self._wakeups[0], future)
        # If the lock is held, its holder finds the job or wakes the writer, so only the reader is woken here.
        _wake(self._wakeups[self._store._writing.lock.locked()])
        answers: list[Swapped | Held] = await future
        return answers

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=target, args=(self._store, wakeup, self._ended), name=name, daemon=True)
            for target, wakeup, name in zip(
                (_run_writer, _run_reader), self._wakeups, ("idem-sqlite", "idem-sqlite-reader"), strict=True
            )
        ]
        for thread in self._threads:
            thread.start()
        # For a store that is dropped without being closed.
        weakref.finalize(self, _end, self._wakeups, self._ended).atexit = False

    def _close(self) -> None:
        _end(self._wakeups, self._ended)
        for thread in self._threads:
            thread.join()
        self._store.close()


def _end(wakeups: Sequence[threading.Lock], ended: threading.Event) -> None:
    ended.set()
    for wakeup in wakeups:
        _wake(wakeup)


def _run_writer(store: SqliteStore, wakeup: threading.Lock, ended: threading.Event) -> None:
    """Execute queued jobs until the store is closed. Runs in a thread."""
    while not ended.is_set():
        wakeup.acquire()
        while store._waiting:
            store._writing.lock.acquire()
            store._run_jobs(stays=True)


def _run_reader(store: SqliteStore, wakeup: threading.Lock, ended: threading.Event) -> None:
    """Answer queued reads while the writing thread is slow, until the store is closed. Runs in a thread."""
    while not ended.wait(_READ_AFTER):
        store._read_for_all()
        if not store._waiting:
            wakeup.acquire()


def _resolve(batch: Sequence[_Job]) -> None:
    for job in batch:
        if job.result is None or job.future is None or job.future.done():
            continue
        if isinstance(job.result, Exception):
            job.future.set_exception(job.result)
        else:
            job.future.set_result(job.result)
