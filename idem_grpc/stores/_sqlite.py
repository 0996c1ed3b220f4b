"""Stores in a SQLite file, for the processes of one host.

There are two connections, so that reads wait for no writer. A thread that finds the connection that
writes unused does its swap at once. Otherwise swaps wait in a queue as jobs, and the thread that has the
connection does those of many in one transaction. Nobody waits inside SQLite, nor longer than its own time.
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
    Line,
    Row,
    SqliteFile,
    Sweeper,
    harms_connection,
    is_busy,
    look,
    read,
    write,
)

_PAGE = 100  # records read under one lock
_BATCH = 64  # jobs in one transaction, so that others on the file get their turn
_PATIENCE = 5.0  # seconds that a swap may take in all while others have the file
_FIRST_POLL = 0.001  # seconds
_LONGEST_POLL = 0.025
_GRACE = 0.01  # seconds that the thread that writes may take before others read for themselves
_TURN = 0.05  # seconds between two looks at whether waiting for a turn to write is of use
_LOOK_EVERY = 1.0  # seconds between looks at whether the file is still where it was
_MOST_KNOWN = 4096  # rows
_MOST_KNOWN_BYTES = 512  # of the value of one


class _Job:
    """Swaps in the queue. ``bell`` wakes the thread that waits for their end, or does them.

    ``rows``: what their keys hold, as far as is known. None: they have to be read. One that
    ``is_patient`` waits for its turn also while another has waited in vain.
    """

    __slots__ = ("bell", "deadline", "future", "is_patient", "keys", "result", "rows", "swaps")

    def __init__(
        self,
        swaps: Sequence[Swap],
        keys: Sequence[bytes],
        rows: list[Row | None] | None,
        bell: threading.Lock,
        future: "asyncio.Future[list[Swapped | Held]] | None",
    ) -> None:
        self.swaps = swaps
        self.keys = keys
        self.rows = rows
        self.bell = bell
        self.future = future
        self.deadline = monotonic() + _PATIENCE
        # A future keeps no thread of a server waiting, and runs depend on renewals.
        self.is_patient = future is not None or all(swap.expected == swap.new for swap in swaps)
        self.result: list[Swapped | Held] | Exception | None = None

    def is_done(self) -> bool:
        return self.result is not None


def _bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


def _ring(bell: threading.Lock) -> None:
    """Wake one of the threads that wait to acquire it; the next that will, if none does."""
    if bell.locked():
        try:  # noqa: SIM105 -- on the path of every call
            bell.release()
        except RuntimeError:  # another thread was first
            pass


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
        self._reading, self._writing = Line(), Line()
        self._waiting: deque[_Job] = deque()  # whoever takes a job out of it does it, or puts it back
        self._known: dict[bytes, Row] = {}  # rows that were written of late; others may have changed them
        self._is_stuck = self._was_stuck = False
        self._looked = 0.0
        self._starting = threading.Lock()
        self._sweeper: Sweeper | None = None

    def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()  # before a lock: after a fork, its holder may not be there
        check_swap(swap)
        key = self._prefix + swap.key
        row = self._known.get(key)
        if swap.expected is None and row is not None:  # a duplicate, as a rule, which waits for no writer
            row = self._read(key)
            answer = _unchanged(swap, row, self._clock.now())
            if answer is not None:
                return answer
        elif row is None and (swap.expected is not None or swap.new is None):
            row = UNREAD
        if not (self._waiting or self._is_stuck) and self._writing.lock.acquire(blocking=False):
            try:
                connection = self._connected(self._writing)
                return self._swap(connection, swap, key, row, self._clock.now())
            except FAILURES as error:  # which is reported if it fails again, in the queue
                if harms_connection(error):
                    self._writing.drop()
            finally:
                self._lead()
        return self._do([swap])[0]

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """As Store.swap_many, in one transaction."""
        self._opener.require()
        return self._do(swaps) if swaps else []

    def read(self, key: bytes) -> Held:
        self._opener.require()
        return Held(*look(self._read(self._prefix + key), self._clock.now()))

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        Read a page at a time, so that writers are not kept waiting. What is written
        meanwhile may be missing. Raises as ``swap`` does.
        """
        query = f"{SELECT} key >= ? AND key < ? ORDER BY key LIMIT {_PAGE}"
        first, end = self._prefix, self._prefix[:-1] + b";"  # which comes right after the colon
        while True:
            self._opener.require()
            page = self._fetch(query, first, end)
            if not page:
                return
            first = page[-1][-1] + b"\0"  # the least key above it
            for row in page:
                held = Held(*look(row, self._clock.now()))
                if held.value is not None:
                    yield row[-1][len(self._prefix) :], held

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

    def _put(
        self,
        swaps: Sequence[Swap],
        bell: threading.Lock,
        future: "asyncio.Future[list[Swapped | Held]] | None" = None,
    ) -> _Job:
        """Put a job into the queue."""
        rows = list[Row | None]()
        keys = list[bytes]()
        for swap in swaps:
            check_swap(swap)
            keys.append(key := self._prefix + swap.key)
            row = self._known.get(key)
            if row and row[0] == swap.expected:
                rows.append(row)
        job = _Job(swaps, keys, rows if len(rows) == len(keys) else None, bell, future)
        self._waiting.append(job)
        return job

    def _do(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Have swaps done by this thread, or by another that does those of many."""
        job = self._put(swaps, _bell())
        pause = _GRACE
        while not job.is_done():
            if self._writing.lock.acquire(blocking=False):
                self._lead(job)
            left = max(0.0, job.deadline - monotonic())
            if not job.is_done() and not job.bell.acquire(timeout=min(pause, left)):
                self._read_for_all()
                if not job.is_done() and (left <= pause or (self._is_stuck and not job.is_patient)):
                    locked = f"{self.path} is locked: others are writing"
                    job.result = StoreUnavailable(locked, answered=job.rows is not None)
                pause = _TURN
        if isinstance(job.result, list):
            return job.result
        assert job.result is not None
        raise job.result

    def _lead(self, own: _Job | None = None, *, stays: bool = False) -> None:
        """Do the jobs that wait: ``own``, which is one of them, and a batch more; all, if it ``stays``.

        The caller has the lock of ``_writing``, which is released.
        """
        self._was_stuck, self._is_stuck = self._is_stuck, False  # until this turn has found out
        pause, rounds = _FIRST_POLL, 1
        batch = list[_Job]()
        try:
            while stays or rounds > 0:
                batch = self._take()
                if not batch:
                    break
                is_mine = stays or (own is not None and not own.is_done())
                if self._serve(self._writing, batch):
                    pause = _FIRST_POLL
                    rounds -= not is_mine
                    continue
                self._put_back(batch)
                batch = []
                if not is_mine:
                    break
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_POLL)
        finally:
            self._put_back(batch)
            self._release(self._writing)

    def _release(self, line: Line) -> None:
        """Release a lock, and wake a thread for the jobs that still wait, or wait again."""
        line.lock.release()
        try:  # noqa: SIM105 -- on the path of every call
            _ring(self._waiting[0].bell)
        except IndexError:
            pass

    def _take(self) -> list[_Job]:
        """Take a batch of those who have waited longest out of the queue."""
        batch = list[_Job]()
        try:
            while len(batch) < _BATCH:
                job = self._waiting.popleft()
                if job.result is None:
                    batch.append(job)
        except IndexError:
            pass
        return batch

    def _put_back(self, batch: Sequence[_Job]) -> None:
        self._waiting.extendleft(job for job in reversed(batch) if job.result is None)

    def _read_for_all(self) -> None:
        """Answer the jobs that change nothing, since the thread that writes takes long, or is stuck."""
        line, batch = self._reading, list[_Job]()
        if any(job.rows is None for job in self._waiting.copy()) and line.lock.acquire(blocking=False):
            try:
                batch = self._take()
                self._serve(line, batch)
            finally:
                self._put_back(batch)
                self._release(line)

    def _serve(self, line: Line, batch: Sequence[_Job]) -> bool:
        """Do those jobs of a batch that ``line`` can do. Returns False if the rest has to wait."""
        wrote = False
        try:
            connection = self._connected(line)
            self._read_for(connection, batch)
            left = [job for job in batch if job.result is None]
            if left and line is self._writing:
                wrote = True
                self._write(connection, left)
        except Exception as error:
            if harms_connection(error):
                line.drop()
            left = [
                job for job in batch if job.result is None and (line is self._writing or job.rows is None)
            ]
            if is_busy(error) or line is self._reading:
                late = [job for job in left if job.deadline <= monotonic()]
                self._fail(late, error, wrote=wrote)
                self._is_stuck = self._was_stuck = self._was_stuck or (wrote and bool(late))
                return False
            if len(left) > 1:
                return all(self._serve(line, [job]) for job in left)
            self._fail(left, error, wrote=wrote)
        finally:
            self._deliver(batch)
        return True

    def _read_for(self, connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
        """Read for the jobs that need it, and answer those that change nothing."""
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
        """Do the swaps of these jobs in one transaction."""
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
        """A swap on a key that has ``row``, unless others have changed it."""
        is_read = False
        while True:
            if row is not UNREAD:
                value, left = look(row, now)
                if may_swap(swap, value, left):
                    written = write(connection, key, row, swap, now)
                    if written is not None:
                        self._has_written()
                        self._remember(key, written)
                        return Swapped(left)
                elif is_read:
                    self._remember(key, UNREAD)
                    return Held(value, left)
            row, now, is_read = read(connection, (key,)).get(key), self._clock.now(), True

    def _remember(self, key: bytes, row: Row) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = row if row and len(row[0]) <= _MOST_KNOWN_BYTES else UNREAD

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
                    _ring(job.bell)
                else:
                    loop = job.future.get_loop()  # which is that of all
        if loop is not None:
            try:  # noqa: SIM105 -- on the path of every call
                loop.call_soon_threadsafe(_resolve, batch)
            except RuntimeError:  # the loop is closed, and nobody waits
                pass

    def _has_written(self) -> None:
        self._is_stuck = self._was_stuck = False
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
        """Read rows, again and again while others have the file locked."""
        deadline, pause = monotonic() + _PATIENCE, _FIRST_POLL
        line = self._writing  # while nobody writes, since it has in its cache what was written
        if self._is_stuck or not line.lock.acquire(blocking=False):
            line = self._reading
            if not line.lock.acquire(timeout=_PATIENCE):
                raise StoreUnavailable(f"{self.path}: no turn to read it in {_PATIENCE:g} s")
        try:
            while True:
                try:
                    return self._connected(line).execute(query, arguments).fetchall()
                except FAILURES as error:
                    if harms_connection(error):
                        line.drop()
                    left = deadline - monotonic()
                    if not is_busy(error) or left <= 0:
                        raise self._file.failure(error, wrote=False) from error
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, _LONGEST_POLL)
        finally:
            self._release(line)

    def _connected(self, line: Line) -> sqlite3.Connection:
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

    def _open(self, line: Line) -> None:
        line.drop()
        line.connection = self._file.connect()
        line.generation = self._file.generation

    def _start_sweeper(self) -> None:
        with self._starting:
            if self._sweeper is None and self._sweep_every is not None:
                self._sweeper = Sweeper(self._file.connect, self._clock, self._sweep_every)
                # For a store that is dropped without being closed; not at exit, which ends a daemon anyway.
                weakref.finalize(self, self._sweeper.stop).atexit = False


def _unchanged(swap: Swap, row: Row | None, now: Moment) -> Swapped | Held | None:
    """The answer to a swap on a key that has ``row``; None if it has to be written."""
    value, left = look(row, now)
    if not may_swap(swap, value, left):
        return Held(value, left)
    return Swapped(left) if swap.new is value is None else None


class AsyncSqliteStore(AsyncStore):
    """A SqliteStore for asyncio: a thread does its swaps, and another one reads while that takes long.

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
        self._bells = (_bell(), _bell())
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    async def swap(self, swap: Swap) -> Swapped | Held:
        return (await self._ask([swap]))[0]

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return await self._ask(swaps) if swaps else []

    async def check(self) -> None:
        await check_swaps_async(self)

    async def aclose(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():
            await asyncio.to_thread(self._close)

    async def _ask(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        if not self._threads:
            self._start()
        future = asyncio.get_running_loop().create_future()
        self._store._put(swaps, self._bells[0], future)
        # Whoever has the lock looks for jobs, or rings, after releasing it.
        _ring(self._bells[self._store._writing.lock.locked()])
        answers: list[Swapped | Held] = await future
        return answers

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=target, args=(self._store, bell, self._ended), name=name, daemon=True)
            for target, bell, name in zip(
                (_work, _help), self._bells, ("idem-sqlite", "idem-sqlite-reader"), strict=True
            )
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._bells, self._ended).atexit = False  # dropped without being closed

    def _close(self) -> None:
        _end(self._bells, self._ended)
        for thread in self._threads:
            thread.join()
        self._store.close()


def _end(bells: Sequence[threading.Lock], ended: threading.Event) -> None:
    ended.set()
    for bell in bells:
        _ring(bell)


def _work(store: SqliteStore, bell: threading.Lock, ended: threading.Event) -> None:
    """The thread that does the jobs."""
    while not ended.is_set():
        bell.acquire()
        while store._waiting:
            store._writing.lock.acquire()
            store._lead(stays=True)


def _help(store: SqliteStore, bell: threading.Lock, ended: threading.Event) -> None:
    """The thread that reads while the other one takes long."""
    while not ended.wait(_GRACE):
        store._read_for_all()
        if not store._waiting:
            bell.acquire()


def _resolve(batch: Sequence[_Job]) -> None:
    for job in batch:
        if job.result is None or job.future is None or job.future.done():
            continue
        if isinstance(job.result, Exception):
            job.future.set_exception(job.result)
        else:
            job.future.set_result(job.result)
