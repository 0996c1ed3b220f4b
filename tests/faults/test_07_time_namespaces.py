"""Processes in different time namespaces, where CLOCK_BOOTTIME differs, share a SQLite file."""

import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from idem_grpc import Reason
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import open_store
from idem_grpc.stores._boot_clock import BootClock
from idem_grpc.stores._sqlite import SqliteStore
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order, run
from tests.server.processes import ENVIRONMENT, starting_processes
from tests.support.namespaces import time_shifted, unshared
from tests.support.remote_store import RemoteStore
from tests.support.sqlite_file import path, url
from tests.support.wait import until

__all__ = ["path", "url"]  # fixtures are found by name

AT_WORK = "at-work"
AHEAD = 10_000  # seconds; longer than anything here lives
BEHIND = -50
TTL = 600.0

kind = kinds(*FIRST_AND_LAST)


@pytest.fixture
def processes(face, url):
    """Start a server for each offset, all on one store."""
    with starting_processes(face, url) as start:
        yield lambda *offsets, **settings: start(
            [time_shifted(offset) if offset else () for offset in offsets], **settings
        )


@pytest.mark.parametrize("offsets", [(0, AHEAD), (AHEAD, 0), (AHEAD, BEHIND)])
def test_a_call_runs_once_across_time_namespaces(processes, offsets, kind, key):
    one, other = processes(*offsets, default={"retention": TTL, "wait": 0})
    request = order(run(gate=AT_WORK))
    first = one.client.begin(kind, request, key)
    one.await_gate(AT_WORK)
    assert other.client.call(kind, request, key).reason is Reason.IN_PROGRESS
    one.open(AT_WORK)
    answer = other.client.persist(kind, request, key)
    assert answer.essence == first.answer().essence
    assert one.client.call(kind, request, key).essence == answer.essence
    assert (one.attempts(request), other.attempts(request)) == ([1], [])


@pytest.mark.parametrize("offsets", [(0, AHEAD), (AHEAD, 0)])
def test_a_dead_owner_is_taken_over_after_its_lease(processes, offsets, kind, key):
    one, other = processes(*offsets, default={"lease": 0.5, "retention": TTL, "wait": 5})
    request = order(run(gate=AT_WORK), run())
    one.client.begin(kind, request, key)
    one.await_gate(AT_WORK)
    one.kill()
    assert other.client.persist(kind, request, key).ok
    assert (one.attempts(request), other.attempts(request)) == ([1], [2])


@pytest.fixture(params=[AHEAD, BEHIND])
def elsewhere(request, url):
    """The same store, opened by a process in a time namespace of its own."""
    with RemoteStore(url, within=time_shifted(request.param)) as store:
        yield store


@pytest.fixture
def here(url):
    with open_store(url) as store:
        yield store


def test_the_ttl_is_the_same_in_both_namespaces(here, elsewhere):
    written = time.monotonic()
    assert elsewhere.swap(Swap(b"theirs", None, b"one", TTL)) == Swapped(0)
    assert here.swap(Swap(b"ours", None, b"one", TTL)) == Swapped(0)
    for key in (b"theirs", b"ours"):
        for held in (here.read(key), elsewhere.read(key), here.read(key)):
            assert held.value == b"one"
            assert TTL - (time.monotonic() - written) - 0.01 <= held.ttl_left <= TTL
        first, second, third = here.read(key), elsewhere.read(key), here.read(key)
        assert first.ttl_left > second.ttl_left > third.ttl_left


def test_a_renewal_in_the_other_namespace_prevents_a_takeover_here(here, elsewhere):
    here.swap(Swap(b"key", None, b"one", TTL))
    run_out = TTL - 1
    until(lambda: here.read(b"key").ttl_left < run_out)
    assert isinstance(elsewhere.swap(Swap(b"key", b"one", b"one", 2 * TTL)), Swapped)
    assert isinstance(here.swap(Swap(b"key", b"one", b"two", TTL, run_out)), Held)
    left = here.read(b"key").ttl_left
    assert isinstance(elsewhere.swap(Swap(b"key", b"one", b"two", TTL, left)), Swapped)


def test_sweepers_in_both_namespaces_change_no_ttl(path, url, elsewhere):
    with open_store(url) as here:
        here.swap(Swap(b"ours", None, b"one", TTL))
        elsewhere.swap(Swap(b"theirs", None, b"one", TTL))
        lives = written_lives(path)
        elsewhere.swap(Swap(b"brief", None, b"one", 0.01))  # once it is gone, they have swept
        until(lambda: b"idem:brief" not in written_lives(path))
    for key in lives:
        assert written_lives(path)[key] == lives[key]


def written_lives(path):
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT key, boot, expiry, wall_expiry FROM records")
        return {key: life for key, *life in rows}
    finally:
        connection.close()


def test_a_file_of_the_first_release_is_read_by_the_wall_clock(path, here):
    """It wrote the time since boot including the offset of its container, under the bare id of the boot."""
    here.swap(Swap(b"key", None, b"one", TTL))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    connection = sqlite3.connect(path)
    for offset in (AHEAD, -AHEAD, 0):
        connection.execute(
            "UPDATE records SET boot = ?, expiry = ?, wall_expiry = ?",
            (boot_id, time.clock_gettime(time.CLOCK_BOOTTIME) + offset + TTL / 2, time.time() + TTL / 2),
        )
        connection.commit()
        held = here.read(b"key")
        assert held.value == b"one"
        assert 0 < TTL / 2 - held.ttl_left < TTL / 4
    connection.close()


def test_the_wall_clock_decides_if_the_namespace_is_unknown(url, here):
    """/proc may be hidden, or a container may have a boot id of its own (LXC, systemd-nspawn)."""
    here.swap(Swap(b"ours", None, b"one", TTL))
    for hidden in ("mount -t tmpfs none /proc", "mount --bind /etc/hostname /proc/sys/kernel/random/boot_id"):
        within = unshared(
            "--mount", "--time", f"--boottime={AHEAD}", "sh", "-c", f'{hidden} && exec "$@"', "sh"
        )
        with RemoteStore(url, within=within) as elsewhere:
            elsewhere.swap(Swap(b"theirs", None, b"one", TTL))
            for key in (b"ours", b"theirs"):
                held = elsewhere.read(key)
                assert held.value == b"one"
                assert abs(held.ttl_left - here.read(key).ttl_left) < TTL / 4
        here.swap(Swap(b"theirs", b"one", None, 1.0))


RESTORED = """
import ctypes, os, sys, time
from idem_grpc.stores import open_store
from idem_grpc._core.swap import Swap

from idem_grpc.stores._sqlite import SqliteStore

TTL, CLONE_NEWTIME = 600.0, 0x80
libc = ctypes.CDLL(None, use_errno=True)
with open_store(sys.argv[1]) as store:
    store._sweep_every = None  # only a process of one thread can move
    store.swap(Swap(b"key", None, b"one", TTL))
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    if libc.unshare(CLONE_NEWTIME):
        sys.exit(os.strerror(ctypes.get_errno()))
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write("boottime 10000 0")
    assert 0 < TTL - store.read(b"key").ttl_left < TTL / 4, "it has not moved yet"
    with open("/proc/self/ns/time_for_children") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWTIME):
            sys.exit(os.strerror(ctypes.get_errno()))
    assert time.clock_gettime(time.CLOCK_BOOTTIME) > before + 9_000
    assert store.read(b"key").value == b"one"
    assert 0 < TTL - store.read(b"key").ttl_left < TTL / 4
    store.swap(Swap(b"moved", None, b"one", TTL))
"""


def test_a_process_that_is_moved_to_another_namespace_uses_its_clock(url, here):
    """A process restored from a checkpoint is moved like this."""
    command = [*unshared("--mount"), sys.executable, "-c", textwrap.dedent(RESTORED), url]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    for key in (b"key", b"moved"):
        assert 0 < TTL - here.read(key).ttl_left < TTL / 4


def test_a_record_from_the_future_of_this_boot_is_judged_by_the_wall_clock(path, here):
    """On some machines a reboot keeps the boot id, and the time since boot starts again."""
    here.swap(Swap(b"key", None, b"one", TTL))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET expiry = expiry + 1e6, wall_expiry = wall_expiry - ?", (TTL / 2,))
    connection.commit()
    assert TTL / 4 < here.read(b"key").ttl_left <= TTL / 2
    connection.execute("UPDATE records SET wall_expiry = wall_expiry - ?", (TTL,))
    connection.commit()
    connection.close()
    assert here.read(b"key") == Held(None, 0)


def test_containers_with_different_boot_ids_do_not_expire_each_others_records(path):
    now = 1_700_000_000.0
    clocks = (
        BootClock("one", lambda: now, lambda: now),
        BootClock("other", lambda: now + AHEAD, lambda: now),
    )
    stores = [SqliteStore(path, clock=clock, sweep_every=0.01) for clock in clocks]

    def all_sweep():
        nonlocal now
        for number, store in enumerate(stores):
            store.swap(Swap(b"brief %d" % number, None, b"one", 1))
        now += 1
        until(lambda: not any(b"brief" in key for key in written_lives(path)))

    with stores[0], stores[1]:
        all_sweep()
        for number, store in enumerate(stores):
            store.swap(Swap(b"key %d" % number, None, b"one", TTL))
        lives = written_lives(path)
        for _ in range(3):
            all_sweep()
        assert written_lives(path) == lives
        for store in stores:
            assert {store.read(b"key %d" % number).ttl_left for number in range(2)} == {TTL - 3}
