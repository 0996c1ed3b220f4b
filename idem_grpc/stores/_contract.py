"""The tests that every store must pass. They are public as idem_grpc.testing."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import Store, StoreError

TTL = 600.0  # seconds; longer than any test takes, so that no value expires by accident
DEADLINE = 30.0  # seconds to wait for an expected change


class StoreChecks:
    """The tests of a blocking store; idem_grpc.testing explains how to run them."""

    def _open(self) -> Store:
        raise NotImplementedError

    def make_immortal(self, key: bytes, value: bytes) -> bool:
        """Write ``value`` under ``key`` so that it never expires, as another program may.

        Override it if the store's own tools can do that, and return True. By default it does nothing
        and returns False, and such values are not tested.
        """
        return False

    def test_an_absent_key_is_claimed(self) -> None:
        with self._open() as store:
            assert store.swap(Swap(b"key", None, b"mine", TTL)) == Swapped(0.0)
            held = store.read(b"key")
            assert held.value == b"mine"
            assert 0 < held.ttl_left <= TTL

    def test_a_held_key_is_not_claimed(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"mine", TTL))
            held = store.swap(Swap(b"key", None, b"yours", TTL * 2))
            assert isinstance(held, Held)
            assert held.value == b"mine"
            assert held.ttl_left <= TTL
            assert store.read(b"key").value == b"mine"

    def test_many_swaps_are_answered_one_by_one(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"held", None, b"theirs", TTL))
            swaps = [Swap(key, None, b"mine", TTL) for key in (b"one", b"held", b"two")]
            one, held, two = store.swap_many(swaps)
            assert (one, two) == (Swapped(0.0), Swapped(0.0))
            assert isinstance(held, Held)
            assert held.value == b"theirs"
            assert store.read(b"two").value == b"mine"
            assert store.swap_many([]) == []

    def test_read_returns_what_a_key_holds_and_changes_nothing(self) -> None:
        with self._open() as store:
            assert store.read(b"key") == Held(None, 0.0)
            store.swap(Swap(b"key", None, b"one", TTL))
            held = store.read(b"key")
            assert held.value == b"one"
            assert 0 < held.ttl_left <= TTL
            refused = store.swap(Swap(b"key", b"other", b"two", TTL))
            assert isinstance(refused, Held)
            assert (refused.value, refused.ttl_left <= held.ttl_left) == (b"one", True)
            assert store.read(b"other") == Held(None, 0.0)
            store.swap(Swap(b"key", b"one", None, TTL))
            assert store.read(b"key") == Held(None, 0.0)

    def test_what_is_expected_is_replaced(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            swapped = store.swap(Swap(b"key", b"one", b"two", TTL * 3))
            assert isinstance(swapped, Swapped)
            assert 0 < swapped.ttl_left <= TTL, "ttl_left must be the time left before the write"
            held = store.read(b"key")
            assert held.value == b"two"
            assert TTL < held.ttl_left <= TTL * 3

    def test_what_is_not_expected_is_left_alone(self) -> None:
        with self._open() as store:
            assert store.swap(Swap(b"key", b"one", b"two", TTL)) == Held(None, 0.0)
            store.swap(Swap(b"key", None, b"three", TTL))
            held = store.swap(Swap(b"key", b"one", b"two", TTL))
            assert isinstance(held, Held)
            assert held.value == b"three"

    def test_a_swap_may_be_sent_again(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            assert isinstance(store.swap(Swap(b"key", None, b"one", TTL * 3)), Swapped)
            assert store.read(b"key").ttl_left > TTL, "a repeated swap must set the ttl again"
            store.swap(Swap(b"key", b"one", b"two", TTL))
            assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)
            assert store.read(b"key").value == b"two"

    def test_a_swap_for_itself_renews(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            swapped = store.swap(Swap(b"key", b"one", b"one", TTL * 3))
            assert isinstance(swapped, Swapped)
            assert swapped.ttl_left <= TTL
            assert store.read(b"key").ttl_left > TTL

    def test_none_deletes(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            assert isinstance(store.swap(Swap(b"key", b"other", None, TTL)), Held)
            swapped = store.swap(Swap(b"key", b"one", None, TTL))
            assert isinstance(swapped, Swapped)
            assert 0 < swapped.ttl_left <= TTL
            assert store.read(b"key") == Held(None, 0.0)
            assert store.swap(Swap(b"key", b"one", None, 0)) == Swapped(0.0), "deleting twice must succeed"
            assert store.swap(Swap(b"key", None, b"two", TTL)) == Swapped(0.0)

    def test_max_left_bounds_what_may_be_replaced(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            held = store.swap(Swap(b"key", b"one", b"two", TTL, max_left=TTL / 2))
            assert isinstance(held, Held)
            assert held.value == b"one"
            assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL, max_left=TTL)), Swapped)
            assert store.read(b"key").value == b"two"

    def test_max_left_bounds_a_deletion(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            assert isinstance(store.swap(Swap(b"key", b"one", None, TTL, max_left=TTL / 2)), Held)
            assert isinstance(store.swap(Swap(b"key", b"one", None, TTL, max_left=TTL)), Swapped)

    def test_an_absent_key_has_nothing_left(self) -> None:
        with self._open() as store:
            assert store.swap(Swap(b"key", None, b"one", TTL, max_left=0.0)) == Swapped(0.0)

    def test_max_left_does_not_hinder_a_swap_sent_again(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            assert isinstance(store.swap(Swap(b"key", b"zero", b"one", TTL, max_left=1.0)), Swapped)

    def test_what_never_expires_has_infinity_left(self) -> None:
        with self._open() as store:
            if self.make_immortal(b"key", b"one"):
                assert store.read(b"key") == Held(b"one", math.inf)
                held = store.swap(Swap(b"key", b"one", b"two", TTL, max_left=TTL * 1000))
                assert held == Held(b"one", math.inf)
                assert store.swap(Swap(b"key", b"one", b"two", TTL)) == Swapped(math.inf)
                assert store.read(b"key").ttl_left <= TTL

    def test_a_record_expires(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", 0.05))
            _until(lambda: store.read(b"key") == Held(None, 0.0))
            assert store.swap(Swap(b"key", b"one", b"two", TTL)) == Held(None, 0.0)
            assert store.swap(Swap(b"key", None, b"two", TTL)) == Swapped(0.0)

    def test_time_passes_for_what_is_held(self) -> None:
        with self._open() as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            first = store.read(b"key").ttl_left
            _until(lambda: store.read(b"key").ttl_left < first)
            taken = store.swap(Swap(b"key", b"one", b"two", TTL, max_left=first))
            assert isinstance(taken, Swapped), "ttl_left must go down as time passes"

    def test_bytes_are_kept_as_they_are(self) -> None:
        every = bytes(range(256))
        with self._open() as store:
            for value in (every, b"\0", b"\r\n", b"nil", b"-1", b"\xff" * 3_000_000):
                key = every + value[:10]
                assert store.swap(Swap(key, None, value, TTL)) == Swapped(0.0)
                assert store.read(key).value == value
                assert isinstance(store.swap(Swap(key, value, every[::-1], TTL)), Swapped)

    def test_keys_do_not_meet(self) -> None:
        with self._open() as store:
            keys = (b"", b"a", b"a\0", b"a:b", b"a*", b"A")
            for key in keys:
                assert store.swap(Swap(key, None, b"for " + key, TTL)) == Swapped(0.0)
            for key in keys:
                assert store.read(key).value == b"for " + key

    def test_what_no_store_can_hold_is_refused(self) -> None:
        with self._open() as store:
            for expected, new, ttl in (
                *((None, b"", TTL), (b"", b"new", TTL), (None, b"new", 0.0)),
                *((None, b"new", -1.0), (None, b"new", math.inf), (None, b"new", math.nan)),
            ):
                raises(ValueError, partial(store.swap, Swap(b"key", expected, new, ttl)))
            assert store.read(b"key").value is None

    def test_threads_lose_no_swap(self) -> None:
        threads, rounds = 6, 15
        with self._open() as store, ThreadPoolExecutor(threads) as pool:
            for added in [pool.submit(_count_up, store, rounds) for _ in range(threads)]:
                added.result()
            assert _count(store.read(b"count").value) == threads * rounds

    def test_one_of_many_claims_is_granted(self) -> None:
        threads = 6
        with self._open() as store, ThreadPoolExecutor(threads) as pool:
            start = threading.Barrier(threads)

            def claim(name: bytes) -> bool:
                start.wait(DEADLINE)
                return isinstance(store.swap(Swap(b"key", None, name, TTL)), Swapped)

            granted = list(pool.map(claim, [b"%d" % number for number in range(threads)]))
            assert granted.count(True) == 1

    def test_check_passes(self) -> None:
        with self._open() as store:
            store.check()

    def test_a_store_is_closed_once_and_for_all(self) -> None:
        store = self._open()
        store.swap(Swap(b"key", None, b"one", TTL))
        store.close()
        store.close()
        raises(StoreError, lambda: store.swap(Swap(b"key", None, b"one", TTL)))
        raises(StoreError, lambda: store.read(b"key"))


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, f"the expected change did not happen within {DEADLINE} seconds"
        time.sleep(0.005)


def raises(kind: type[Exception], act: Callable[[], object]) -> None:
    try:
        act()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def _count(value: bytes | None) -> int:
    return int(value.split()[0]) if value is not None else 0


def _count_up(store: Store, rounds: int) -> None:
    """Increment a counter ``rounds`` times.

    Each write has bytes of its own: equal bytes would count as a repetition of the same swap.
    """
    current = store.read(b"count").value
    for _ in range(rounds):
        while True:
            mine = b"%d %s" % (_count(current) + 1, uuid4().hex.encode())
            answer = store.swap(Swap(b"count", current, mine, TTL))
            if isinstance(answer, Swapped):
                break
            current = answer.value
        current = mine
