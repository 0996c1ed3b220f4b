"""A SQLite file that other processes have locked, or that cannot be written or opened for a while."""

import asyncio
import os
import resource
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.digest import store_key
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError, StoreUnavailable, _sqlite, open_async_store, open_store
from idem_grpc.stores._sqlite import SqliteStore
from tests.server.client import Kind
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order, run
from tests.server.processes import ServerProcess
from tests.support.namespaces import SmallDisk
from tests.support.remote_store import Failed, RemoteStore
from tests.support.sqlite_file import path, url
from tests.support.sqlite_lock import locked
from tests.support.wait import until

__all__ = ["path", "url"]  # fixtures are found by name

AT_WORK = "at-work"
TTL = 600.0
CALLS = 20

kind = kinds(*FIRST_AND_LAST)


class SyncStore:
    """A store, and a thread for each swap that waits."""

    def __init__(self, url):
        self.blocking = open_store(url)
        self._pool = ThreadPoolExecutor(4 * CALLS)

    def swap(self, swap) -> "Future[Swapped | Held]":
        return self._pool.submit(self.blocking.swap, swap)

    def swap_many(self, swaps) -> "Future[list[Swapped | Held]]":
        return self._pool.submit(self.blocking.swap_many, swaps)

    def close(self):
        self._pool.shutdown()
        self.blocking.close()


class AsyncStore:
    """The same, on an event loop."""

    def __init__(self, url):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._store = open_async_store(url)
        self.blocking = self._store.blocking

    def swap(self, swap) -> "Future[Swapped | Held]":
        return asyncio.run_coroutine_threadsafe(self._store.swap(swap), self._loop)

    def swap_many(self, swaps) -> "Future[list[Swapped | Held]]":
        return asyncio.run_coroutine_threadsafe(self._store.swap_many(swaps), self._loop)

    def close(self):
        asyncio.run_coroutine_threadsafe(self._store.aclose(), self._loop).result()
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def opened(face, url):
    store = SyncStore(url) if face == "sync" else AsyncStore(url)
    yield store
    store.close()


def claims(opened, name, count=CALLS):
    return [opened.swap(Swap(b"%s %d" % (name, number), None, b"one", TTL)) for number in range(count)]


def is_locked_out(future):
    error = future.exception()
    return isinstance(error, StoreUnavailable) and error.answered and "locked" in str(error)


class TestLockedByAnotherProcess:
    def test_each_call_has_its_own_timeout(self, opened, path, url):
        opened.swap(Swap(b"key", None, b"one", TTL)).result()
        waited = []

        def waiting(future):
            started = time.monotonic()
            future.add_done_callback(lambda _: waited.append(time.monotonic() - started))
            return future

        with open_store(url) as other, ThreadPoolExecutor(1) as thread, locked(path):
            alone = waiting(thread.submit(other.swap, Swap(b"alone", None, b"one", TTL)))
            together = [waiting(future) for future in claims(opened, b"together")]
            assert all(is_locked_out(future) for future in [alone, *together])
        until(lambda: len(waited) == CALLS + 1)
        assert max(waited) < 2 * waited[0], "they do not add up"
        assert all(isinstance(again.result(), Swapped) for again in claims(opened, b"together"))

    def test_swaps_that_change_nothing_do_not_wait(self, opened, path, url):
        opened.swap(Swap(b"key", None, b"one", TTL)).result()
        with open_store(url) as other:
            theirs = [Swap(b"theirs %d" % number, None, b"theirs", TTL) for number in range(CALLS)]
            other.swap_many(theirs)
        with locked(path):
            waiting = claims(opened, b"claim")
            for one in theirs:
                for key, value in (b"key", b"one"), (one.key, b"theirs"):
                    held = opened.swap(Swap(key, None, b"two", TTL)).result()
                    assert isinstance(held, Held)
                    assert held.value == value
                assert opened.swap(Swap(b"nothing", b"there", b"two", TTL)).result() == Held(None, 0)
                assert opened.swap(Swap(b"nothing", b"there", None, TTL)).result() == Swapped(0)
                both = [Swap(key, b"there", b"two", TTL) for key in (b"key", b"nothing")]
                assert [held.value for held in opened.swap_many(both).result()] == [b"one", None]
                assert opened.blocking.read(b"key").value == b"one"
            assert not any(claim.done() for claim in waiting)
        assert all(isinstance(claim.result(), Swapped) for claim in waiting)

    def test_renewals_outcomes_and_claims_are_all_written_once_the_lock_is_free(self, opened, path):
        runs = [Swap(b"run %d" % number, None, b"one", TTL) for number in range(50)]
        opened.swap_many(runs).result()
        with locked(path):
            waiting = claims(opened, b"claim")
            renewed = opened.swap_many([Swap(one.key, one.new, one.new, 2 * TTL) for one in runs[:40]])
            waiting += [opened.swap(Swap(one.key, one.new, b"done", TTL)) for one in runs[40:]]
            waiting += claims(opened, b"other")
            assert not renewed.done()
        assert all(isinstance(one, Swapped) for one in renewed.result())
        assert all(isinstance(one.result(), Swapped) for one in waiting)
        assert all(opened.blocking.read(one.key).ttl_left > TTL for one in runs[:40])
        assert all(opened.blocking.read(one.key).value == b"done" for one in runs[40:])

    def test_one_thread_at_a_time_waits_for_a_lock_that_is_stuck(self, url, path, monkeypatch):
        store = SyncStore(url)
        store.swap(Swap(b"key", None, b"one", TTL)).result()
        with locked(path):
            assert is_locked_out(store.swap(Swap(b"first", None, b"one", TTL)))
            monkeypatch.setattr(_sqlite, "_TIMEOUT", 60.0)  # so that the lock is released in time
            tries = claims(store, b"try")
            until(lambda: sum(one.done() for one in tries) == CALLS - 1)
            assert all(is_locked_out(one) for one in tries if one.done())
            renewal = store.swap(Swap(b"key", b"one", b"one", TTL))
            (last,) = (one for one in tries if not one.done())
        assert isinstance(last.result(), Swapped)
        assert isinstance(renewal.result(), Swapped), "runs depend on it, so it waits too"
        assert all(isinstance(one.result(), Swapped | Held) for one in claims(store, b"try"))
        store.close()

    def test_no_swap_is_refused_while_the_first_one_after_a_lock_is_written(self, url, path):
        store = SyncStore(url)
        store.swap(Swap(b"key", None, b"one", TTL)).result()
        with locked(path):
            assert is_locked_out(store.swap(Swap(b"first", None, b"one", TTL)))
        sqlite = store.blocking
        assert isinstance(sqlite, SqliteStore)
        large = store.swap(Swap(b"large", None, bytes(50_000_000), TTL))
        until(lambda: sqlite._writing.lock.locked() or large.done(), step=0.0001)
        assert all(isinstance(one.result(), Swapped) for one in claims(store, b"later"))
        assert isinstance(large.result(), Swapped)
        store.close()

    def test_a_store_is_closed_while_a_call_waits(self, path):
        store = SqliteStore(path)
        store.swap(Swap(b"key", None, b"one", TTL))
        with ThreadPoolExecutor(1) as thread, locked(path):
            waiting = thread.submit(store.swap, Swap(b"other", None, b"one", TTL))
            until(store._writing.lock.locked)
            store.close()
            error = waiting.exception()
            assert type(error) is StoreError
            assert "closed" in str(error)


def test_replays_and_calls_without_a_key_are_answered_while_a_writer_is_stuck(start, url, path, kind, key):
    server, request = start(url, default=Policy(wait=0)), order(run())
    first = server.client.call(kind, request, key)
    with locked(path):
        waiting = [server.client.begin(kind, order(run()), uuid4().hex) for _ in range(CALLS)]
        for _ in range(5):
            answer = server.client.call(kind, request, key)
            assert answer.essence == first.essence
            assert answer.replayed
            assert server.client.call(kind, order(run())).ok
        assert server.client.call(kind, order(run()), key).reason is Reason.KEY_REUSED
        assert not any(call.done() for call in waiting)
    assert all(call.answer().ok for call in waiting)


def test_runs_keep_their_leases_while_claims_wait(start, url, path, key):
    lease = 8.0
    server = start(url, default=Policy(lease=lease, retention=TTL))
    requests = [order(run(gate=AT_WORK)) for _ in range(4)]
    keys = [f"{key}-{number}" for number in range(4)]
    names = [store_key(server.store.namespace, Kind.UNARY.path, b"", name) for name in keys]
    runs = [
        server.client.begin(Kind.UNARY, request, key) for request, key in zip(requests, keys, strict=True)
    ]
    until(lambda: sum(len(server.ledger.runs(request)) for request in requests) == 4)

    def lease_left():
        return min(server.store.read(name).ttl_left for name in names) - (TTL - lease)

    with locked(path):
        waiting = [server.client.begin(Kind.UNARY, order(run()), uuid4().hex) for _ in range(CALLS)]
        until(lambda: lease_left() < lease / 2)
    until(lambda: lease_left() > lease / 2)
    assert not any(run.execution.lease_lost for request in requests for run in server.ledger.runs(request))
    server.ledger.gate(AT_WORK).open()
    assert all(call.answer().ok for call in [*runs, *waiting])


@contextmanager
def limits(pid, **soft):
    """Set soft limits of a process, such as ``FSIZE=0``, until the block ends."""
    kinds = {getattr(resource, f"RLIMIT_{name}"): value for name, value in soft.items()}
    before = {kind: resource.prlimit(pid, kind) for kind in kinds}
    for kind, value in kinds.items():
        resource.prlimit(pid, kind, (value, before[kind][1]))
    try:
        yield
    finally:
        for kind, both in before.items():
            resource.prlimit(pid, kind, both)


TROUBLES = {
    "nothing can be written": {"FSIZE": 0},
    "nothing can be written or opened": {"FSIZE": 0, "NOFILE": 3},
}


@pytest.fixture(params=[*TROUBLES, "the disk is full"])
def troubled(request, face, tmp_path):
    """A server process on SQLite, and a context manager that makes its file fail."""
    disk = SmallDisk(tmp_path / "disk", 2_000_000)
    is_full = request.param not in TROUBLES
    url = f"sqlite:///{tmp_path}/disk/store.db"
    within = disk.within if is_full else []
    server = ServerProcess(face, url, "idem", within=within, default={"retention": TTL})

    @contextmanager
    def full():
        disk.fill(server.pid)
        yield
        disk.make_room(server.pid)

    yield server, full if is_full else lambda: limits(server.pid, **TROUBLES[request.param])
    server.close()


def test_no_outcome_is_lost_to_a_file_that_cannot_be_written(troubled, kind, key):
    server, trouble = troubled
    assert server.client.call(kind, order(run()), "warm-up").ok
    request = order(run(gate=AT_WORK, filler_bytes=100_000))
    first = server.client.begin(kind, request, key)
    server.await_gate(AT_WORK)
    with trouble():
        server.open(AT_WORK)
        assert first.answer().reason is Reason.OUTCOME_PENDING
        other = server.client.call(kind, order(run(), filler=bytes(100_000)), "other")
        assert other.reason in (Reason.STORE_UNAVAILABLE, None), "it is no mistake"
    answer = server.client.persist(kind, request, key)
    assert answer.ok
    assert answer.replayed
    assert server.attempts(request) == [1]
    assert server.client.persist(kind, order(run()), "after-it").ok


class TestOutages:
    """A failure of a file that could be used is an outage, and the store recovers by itself."""

    def test_a_full_disk(self, tmp_path):
        disk = SmallDisk(tmp_path / "disk", 1_000_000)
        with RemoteStore(f"sqlite:///{tmp_path}/disk/store.db", within=disk.within) as store:
            assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
            disk.fill(store.pid)
            failed = store.swap(Swap(b"large", None, bytes(500_000).hex().encode(), TTL))
            assert isinstance(failed, Failed)
            assert failed[:2] == ("StoreUnavailable", True)
            assert store.read(b"key").value == b"one"
            assert store.read(b"large").value is None
            disk.make_room(store.pid)
            assert store.swap(Swap(b"large", None, bytes(50_000).hex().encode(), TTL)) == Swapped(0)

    def test_a_disk_that_is_full_at_first(self, tmp_path):
        disk = SmallDisk(tmp_path / "disk", 1_000_000)
        with RemoteStore(f"sqlite:///{tmp_path}/disk/store.db", within=disk.within) as store:
            assert store.ask("1") == 1
            disk.fill(store.pid)
            for failed in (store.ask("store.check()"), store.swap(Swap(b"key", None, b"one", TTL))):
                assert isinstance(failed, Failed)
                assert failed.type == "StoreUnavailable"
            disk.make_room(store.pid)
            assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
            assert store.ask("store.check()") is None

    @pytest.mark.parametrize("is_first", [True, False])
    def test_no_file_descriptors(self, url, is_first):
        with RemoteStore(url) as store:
            assert store.ask("1") == 1
            if not is_first:
                assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
            with limits(store.pid, NOFILE=3, FSIZE=0):
                for _ in range(3):
                    failed = store.swap(Swap(b"key", b"one" if not is_first else None, b"two", TTL))
                    assert isinstance(failed, Failed)
                    assert failed.type == "StoreUnavailable"
            assert isinstance(store.swap(Swap(b"other", None, b"one", TTL)), Swapped)
            assert store.read(b"key").value == (None if is_first else b"one")

    def test_file_descriptors_that_run_out_later(self, url):
        with RemoteStore(url) as store:
            assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
            with limits(store.pid, NOFILE=3):
                assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped), "it needs no more"
                assert store.read(b"key").value == b"two"

    def test_no_memory(self, url):
        with RemoteStore(url) as store:
            assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
            limit = "PRAGMA hard_heap_limit=3000000"
            assert store.ask(f"__import__('sqlite3').connect(':memory:').execute({limit!r}).fetchone()")
            failed = store.ask(f"store.swap(Swap(b'large', None, bytes(8_000_000), {TTL}))")
            assert isinstance(failed, Failed)
            assert failed.type == "StoreUnavailable"
            assert store.read(b"key").value == b"one"
            assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)

    def test_a_folder_that_is_missing_for_a_while(self, opened, path):
        opened.swap(Swap(b"key", None, b"one", TTL)).result()
        folder = os.path.dirname(path)
        os.rename(folder, f"{folder}-moved")

        def error():
            return opened.swap(Swap(uuid4().bytes, None, b"one", TTL)).exception()

        assert isinstance(until(error), StoreUnavailable)
        assert isinstance(opened.swap(Swap(b"key", None, b"two", TTL)).exception(), StoreUnavailable)
        os.rename(f"{folder}-moved", folder)
        until(lambda: not error())
        held = opened.swap(Swap(b"key", None, b"two", TTL)).result()
        assert isinstance(held, Held)
        assert held.value == b"one"

    def test_a_file_that_was_replaced(self, opened, path, url):
        opened.swap(Swap(b"key", None, b"one", TTL)).result()
        for end in ("", "-wal", "-shm"):
            os.unlink(path + end)

        def swapped():
            key = uuid4().bytes
            opened.swap(Swap(key, None, b"one", TTL)).result()
            with open_store(url) as other:
                return other.read(key).value

        assert until(swapped) == b"one", "what is written is there for others"

    def test_a_folder_that_never_existed_is_a_mistake(self, face, tmp_path):
        store = SyncStore if face == "sync" else AsyncStore
        opened = store(f"sqlite:///{tmp_path}/missing/store.db")
        error = opened.swap(Swap(b"key", None, b"one", TTL)).exception()
        assert type(error) is StoreError
        os.mkdir(tmp_path / "missing")
        assert opened.swap(Swap(b"key", None, b"one", TTL)).result() == Swapped(0)
        opened.close()

    def test_a_file_that_is_replaced_by_another_kind_of_file(self, opened, path):
        opened.swap(Swap(b"key", None, b"one", TTL)).result()
        for end in ("", "-wal", "-shm"):
            os.unlink(path + end)
        with open(path, "w") as file:
            file.write("some prose " * 1000)
        until(lambda: opened.swap(Swap(uuid4().bytes, None, b"one", TTL)).exception())
        error = opened.swap(Swap(b"other", None, b"one", TTL)).exception()
        assert isinstance(error, StoreUnavailable), "it may be put right while outcomes wait"


def test_a_swap_that_cannot_be_written_does_not_fail_the_others(opened, path):
    opened.swap(Swap(b"key", None, b"one", TTL)).result()
    with limits(os.getpid(), FSIZE=os.path.getsize(f"{path}-wal") + 1_000_000):
        with locked(path):
            before, large, after = (
                opened.swap(Swap(key, None, value, TTL))
                for key, value in ((b"before", b"one"), (b"large", bytes(3_000_000)), (b"after", b"one"))
            )
            until(lambda: len(opened.blocking._waiting) == 3)
        assert isinstance(large.exception(), StoreUnavailable)
        assert before.result() == after.result() == Swapped(0)
    assert opened.swap(Swap(b"large", None, bytes(3_000_000), TTL)).result() == Swapped(0)


def test_each_read_that_is_locked_out_has_its_own_timeout_too(opened, path):
    """They are locked out by a process with an exclusive lock, which no store takes."""
    opened.swap(Swap(b"key", None, b"one", TTL)).result()
    opened.blocking._reading.drop()
    opened.blocking._writing.drop()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM records WHERE key = x'00'")
    connection.execute("COMMIT")
    reads = [opened.swap(Swap(b"key", None, b"two", TTL)) for _ in range(CALLS)]
    errors = [read.exception() for read in reads]
    assert all(isinstance(error, StoreUnavailable) and not error.answered for error in errors)
    connection.close()
    held = opened.swap(Swap(b"key", None, b"two", TTL)).result()
    assert isinstance(held, Held)
    assert held.value == b"one"
