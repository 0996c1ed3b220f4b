"""The store in memory: records expire, and its memory is given back."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._memory import MemoryStore
from tests.support.threads import restless

__all__ = ["restless"]  # fixtures are found by name


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_records_expire_by_the_clock_of_the_store():
    clock = Clock()
    with MemoryStore(clock=clock) as store:
        store.swap(Swap(b"key", None, b"one", 10))
        clock.now += 4
        assert store.swap(Swap(b"key", None, b"two", 10)) == Held(b"one", 6)
        assert store.swap(Swap(b"key", b"one", b"two", 10, max_left=5.9)) == Held(b"one", 6)
        assert store.swap(Swap(b"key", b"one", b"two", 10, max_left=6)) == Swapped(6)
        clock.now += 10
        assert store.swap(Swap(b"key", b"two", b"three", 10)) == Held(None, 0)


def test_the_memory_of_dead_records_is_given_back():
    """Dead are records that have expired, were deleted, or were overwritten."""
    clock = Clock()
    with MemoryStore(clock=clock) as store:
        for number in range(1000):
            store.swap(Swap(b"%d" % number, None, b"brief", 10))
        clock.now += 11
        gc.collect()
        before = sys.getallocatedblocks()
        for number in range(1000):
            store.swap(Swap(b"long", None, b"claimed", 86_400))
            store.swap(Swap(b"long", b"claimed", b"claimed", 86_400))
            store.swap(Swap(b"long", b"claimed", None, 0))
            store.swap(Swap(b"other %d" % number, None, b"brief", 1e-9))
            clock.now += 1e-6
        gc.collect()
        assert sys.getallocatedblocks() < before - 2000, "the thousand are gone, and nothing took their place"
        assert store.swap(Swap(b"0", None, b"again", 10)) == Swapped(0)


def test_live_records_are_not_purged():
    clock = Clock()
    with MemoryStore(clock=clock) as store:
        store.swap(Swap(b"renewed", None, b"one", 10))
        store.swap(Swap(b"renewed", b"one", b"one", 100))
        store.swap(Swap(b"again", None, b"one", 10))
        store.swap(Swap(b"again", b"one", None, 0))
        store.swap(Swap(b"again", None, b"two", 100))
        clock.now += 50
        for number in range(20):
            store.swap(Swap(b"%d" % number, None, b"x", 1))
        assert store.swap(Swap(b"renewed", None, b"mine", 10)) == Held(b"one", 50)
        assert store.swap(Swap(b"again", None, b"mine", 10)) == Held(b"two", 50)


@pytest.mark.usefixtures("restless")
def test_threads_do_not_interleave():
    threads, rounds = 4, 1000
    barrier = threading.Barrier(threads)

    def claims(name):
        barrier.wait(60)
        return sum(
            isinstance(store.swap(Swap(b"%d" % key, None, name, 60)), Swapped) for key in range(rounds)
        )

    with MemoryStore() as store, ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(claims, [b"%d" % number for number in range(threads)])) == rounds
