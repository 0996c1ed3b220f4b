"""The store on a SQLite file: several processes, kills, clocks that jump, reboots, other files."""

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError, StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._boot_clock import BootClock, host_clock
from idem_grpc.stores._contract import TTL
from idem_grpc.stores._sqlite import SqliteStore
from tests.stores.sqlite_writer import count
from tests.support.sqlite_file import path, url
from tests.support.threads import restless
from tests.support.wait import until

__all__ = ["path", "restless", "url"]  # fixtures are found by name


class Host:
    """A host whose clocks a test can set, and which it can reboot."""

    def __init__(self):
        self.up, self.wall = 5000.0, 1_700_000_000.0
        self.boot = "first"

    def clock(self):
        return BootClock(self.boot, lambda: self.up, lambda: self.wall)

    def reboot(self, took):
        self.boot, self.up, self.wall = self.boot + "+", 0.0, self.wall + took


def rows(path):
    connection = sqlite3.connect(path)
    try:
        return dict(connection.execute("SELECT key, boot FROM records"))
    finally:
        connection.close()


def writer(url, key, rounds):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stores.sqlite_writer", url, key, str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_no_swap_of_several_processes_is_lost(url):
    processes = [writer(url, "shared", 40) for _ in range(4)]
    said = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert sorted(said) == list(range(1, 161))
    with open_store(url) as store:
        assert count(store, b"shared") == 160


def test_a_writer_that_is_killed_leaves_the_file_consistent(url, path):
    for _ in range(3):
        doomed, other = writer(url, "doomed", 1_000_000), writer(url, "other", 100)
        assert doomed.stdout is not None
        acknowledged = [doomed.stdout.readline() for _ in range(50)]
        doomed.kill()
        acknowledged += doomed.communicate()[0].splitlines()
        assert len(other.communicate()[0].split()) == 100, "no other process is held up"
        with open_store(url) as store:
            assert count(store, b"doomed") - int(acknowledged[-1]) in (0, 1), (
                "at most its last word is missing"
            )
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_is_created_once_by_many_processes(tmp_path):
    """None of them is refused a swap meanwhile."""
    makers = 8

    def make(path, barrier):
        with SqliteStore(path, sweep_every=None) as store:
            barrier.wait(60)
            return store.swap(Swap(b"key", None, b"one", TTL))

    for number in range(20):
        barrier = threading.Barrier(makers)
        with ThreadPoolExecutor(makers) as pool:
            made = [pool.submit(make, f"{tmp_path}/{number}.db", barrier) for _ in range(makers)]
            assert all(isinstance(swap.result(), Swapped) for swap in made)


def test_a_wall_clock_that_jumps_changes_nothing(path):
    host = Host()
    with SqliteStore(path, clock=host.clock()) as store:
        store.swap(Swap(b"key", None, b"one", 100))
        for jump in (-1_000_000, 500, 10_000_000):
            host.wall += jump
            host.up += 10
            left = store.read(b"key").ttl_left
            assert store.swap(Swap(b"key", b"one", b"two", 100, max_left=left - 1)) == Held(b"one", left)
        assert left == 70
        host.up += 70
        assert store.read(b"key") == Held(None, 0)


def test_after_a_reboot_the_wall_clock_decides(path):
    host = Host()
    with SqliteStore(path, clock=host.clock(), sweep_every=None) as store:
        store.swap(Swap(b"long", None, b"one", 1000))
        store.swap(Swap(b"short", None, b"one", 100))
    host.reboot(took=300)
    with SqliteStore(path, clock=host.clock(), sweep_every=None) as store:
        assert store.read(b"long") == Held(b"one", 700)
        assert store.read(b"short") == Held(None, 0)
        assert store.swap(Swap(b"long", b"one", b"two", 1000)) == Swapped(700)
        host.wall += 5000
        assert store.read(b"long").ttl_left == 1000, "it is this boot's now"


def test_a_wall_clock_set_back_by_a_reboot_extends_no_record(path):
    host = Host()
    with SqliteStore(path, clock=host.clock()) as store:
        store.swap(Swap(b"key", None, b"one", 1000))
    host.reboot(took=-1_000_000_000)
    with SqliteStore(path, clock=host.clock()) as store:
        assert store.read(b"key") == Held(b"one", 1000)
        until(lambda: set(rows(path).values()) == {host.boot})  # the sweeper brings it over to this boot
        host.up += 400
        assert store.read(b"key") == Held(b"one", 600)


def test_without_a_boot_id_the_wall_clock_decides(path):
    host = Host()
    clock = BootClock("", lambda: host.wall, lambda: host.wall)
    with SqliteStore(path, clock=clock) as store:
        store.swap(Swap(b"key", None, b"one", 1000))
        host.wall += 400
        assert store.read(b"key") == Held(b"one", 600)
        host.wall -= 100_000
        assert store.read(b"key") == Held(b"one", 1000)
    with SqliteStore(path, clock=replace(host.clock(), boot="known")) as store:
        assert store.read(b"key").value == b"one"


def test_the_clock_of_the_host_is_the_same_for_all_processes():
    script = "from idem_grpc.stores._boot_clock import *; c = host_clock(); print(c.boot, c.elapsed())"
    before = host_clock().elapsed()
    boot, elapsed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    ).stdout.split()
    assert boot == host_clock().boot
    assert before < float(elapsed) < host_clock().elapsed()


def test_only_expired_records_are_swept(path):
    host = Host()
    with SqliteStore(path, clock=host.clock(), sweep_every=0.01) as store:
        for number in range(350):
            store.swap(Swap(b"brief %d" % number, None, b"one", 10))
        store.swap(Swap(b"long", None, b"one", 1000))
        store.swap(Swap(b"renewed", None, b"one", 10))
        store.swap(Swap(b"renewed", b"one", b"one", 1000))
        assert len(rows(path)) == 352
        host.up += 10
        until(lambda: len(rows(path)) == 2)
    host.reboot(took=100)
    with SqliteStore(path, clock=host.clock(), sweep_every=0.01) as store:
        until(lambda: store.read(b"long").ttl_left <= 900 and rows(path).get(b"idem:long") == host.boot)
        host.wall += 1_000_000
        store.swap(Swap(b"done", None, b"one", 10))
        host.up += 10
        until(lambda: b"idem:done" not in rows(path))
        assert store.read(b"long") == Held(b"one", 890)


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # from Python 3.13 on
def test_sweeping_ends_with_the_store(url):
    before = threading.enumerate()

    def sweepers():
        new = [thread for thread in threading.enumerate() if thread not in before]
        return [thread for thread in new if thread.name == "idem-sqlite-sweeper"]

    with open_store(url) as store:
        assert not sweepers()
        store.check()
        assert len(sweepers()) == 1
    assert not sweepers()
    dropped = open_store(url)
    dropped.check()
    del dropped
    gc.collect()
    # The next round would be half a minute away: it ends at once.
    until(lambda: not sweepers(), deadline=20)


def test_a_replay_takes_no_lock(url, path):
    with open_store(url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        assert isinstance(store.swap(Swap(b"key", None, b"two", TTL)), Held)
        with pytest.raises(StoreUnavailable, match="locked"):
            store.swap(Swap(b"key", b"one", b"two", TTL))
        connection.execute("ROLLBACK")
        connection.close()
        assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)


def test_changes_by_another_store_are_seen(url):
    """A store caches what it wrote, and only uses it as a guess."""
    changes = {
        b"renewed": Swap(b"renewed", b"one", b"one", 2 * TTL),
        b"replaced": Swap(b"replaced", b"one", b"theirs", TTL),
        b"deleted": Swap(b"deleted", b"one", None, TTL),
    }
    with open_store(url) as store, open_store(url) as other:
        for key, change in changes.items():
            store.swap(Swap(key, None, b"one", TTL))
            other.swap(change)
        assert isinstance(store.swap(Swap(b"renewed", b"one", b"two", TTL, max_left=TTL)), Held)
        renewed, replaced, deleted = store.swap_many([Swap(key, b"one", b"two", TTL) for key in changes])
        assert isinstance(renewed, Swapped)
        assert TTL < renewed.ttl_left <= 2 * TTL
        assert isinstance(replaced, Held)
        assert replaced.value == b"theirs"
        assert deleted == store.swap(Swap(b"deleted", b"one", b"two", TTL)) == Held(None, 0)
        assert other.swap(Swap(b"deleted", None, b"theirs", TTL)) == Swapped(0)
        held = store.swap(Swap(b"deleted", None, b"two", TTL))
        assert isinstance(held, Held)
        assert held.value == b"theirs"


@pytest.mark.usefixtures("restless")
def test_threads_and_tasks_of_one_store_are_all_served(url):
    """The interpreter switches threads at nearly every step, so that a wake-up could be missed."""
    callers, rounds = 8, 40

    async def work(store, name):
        for number in range(rounds):
            key = b"%s %d" % (name, number)
            assert await store.swap(Swap(key, None, b"one", TTL)) == Swapped(0)
            assert isinstance(await store.swap(Swap(key, b"one", b"two", TTL)), Swapped)
            assert isinstance(await store.swap(Swap(key, None, b"one", TTL)), Held)

    def in_a_thread(store, name):
        for number in range(rounds):
            key = b"%s %d" % (name, number)
            assert store.swap(Swap(key, None, b"one", TTL)) == Swapped(0)
            assert isinstance(store.swap_many([Swap(key, b"one", b"two", TTL)])[0], Swapped)
            assert isinstance(store.swap(Swap(key, None, b"one", TTL)), Held)

    async def main():
        async with open_async_store(url) as store, asyncio.timeout(120):
            await asyncio.gather(
                *[work(store, b"task %d" % number) for number in range(callers)],
                *[
                    asyncio.to_thread(in_a_thread, store.blocking, b"%d" % number)
                    for number in range(callers)
                ],
            )

    asyncio.run(main())


def test_a_swap_of_the_wrong_types_fails_alone(url):
    async def main():
        async with open_async_store(url) as store:
            swaps = [Swap(b"%d" % number, None, b"one", TTL) for number in range(5)]
            await store.swap_many(swaps)
            wrong: Any = "soon"
            again = [Swap(swap.key, b"one", b"two", TTL) for swap in swaps]
            again[2].max_left = wrong
            return await asyncio.gather(*[store.swap(swap) for swap in again], return_exceptions=True)

    answers = asyncio.run(main())
    assert [type(answer) for answer in answers] == [Swapped, Swapped, TypeError, Swapped, Swapped]


def test_namespaces_share_a_file(url):
    with open_store(url, namespace="a") as one, open_store(url, namespace="a.b") as two:
        assert one.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)
        assert two.swap(Swap(b"key", None, b"two", TTL)) == Swapped(0)
        assert one.read(b"key").value == b"one"


@pytest.mark.parametrize(
    "act", [lambda store: store.check(), lambda store: store.swap(Swap(b"k", None, b"v", 1))]
)
class TestAFileThatCannotBeUsed:
    def refuse(self, url, act, sentence):
        with open_store(url) as store, pytest.raises(StoreError, match=sentence) as caught:
            act(store)
        assert type(caught.value) is StoreError

    def test_in_a_folder_that_is_missing(self, act, tmp_path):
        self.refuse(f"sqlite:///{tmp_path}/missing/store.db", act, "no folder .*missing")

    def test_that_is_a_folder(self, act, tmp_path):
        self.refuse(f"sqlite:///{tmp_path}", act, "cannot be opened for writing")

    def test_of_another_program(self, act, url, path):
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE theirs (a)")
        connection.close()
        self.refuse(url, act, "another program's data")
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",), "it is left as it was"
        connection.close()

    def test_of_another_schema(self, act, url, path):
        with open_store(url) as store:
            store.check()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 7")
        connection.close()
        self.refuse(url, act, "version 7 of the store's schema")

    def test_that_is_no_database(self, act, url, path):
        with open(path, "w") as file:
            file.write("some prose " * 1000)
        self.refuse(url, act, "is not a SQLite file")


READ_ONLY = """
import os, sys
from idem_grpc.stores import StoreError, StoreUnavailable, open_store
from idem_grpc._core.swap import Swap
store = open_store(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
for act in (store.check, lambda: store.swap(Swap(b"key", None, b"one", 60))):
    try:
        act()
    except StoreError as error:
        assert type(error) is StoreError and "allow this process to write" in str(error), error
    else:
        sys.exit("it was written")
"""


@pytest.fixture
def public_folder():
    """A folder that other users can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_file_is_refused(public_folder, exists):
    url = f"sqlite:///{public_folder}/store.db"
    if exists:
        with open_store(url) as store:
            store.check()
    os.chmod(public_folder, 0o555)
    subprocess.run([sys.executable, "-c", READ_ONLY, url], check=True)


def test_a_relative_path_is_resolved_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///store.db") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.check()
        assert (tmp_path / "store.db").exists()
