"""The cache: a process answers duplicates itself for a few seconds after the answer."""

import grpc
import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.clock import elapsed
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc._server import cache
from idem_grpc._server.cache import Cache
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.kinds import kinds
from tests.server.ledger import order, run
from tests.server.stores import watched
from tests.support.wait import until

kind = kinds(Kind.UNARY, Kind.SERVER_STREAM)


@pytest.fixture
def store(face):
    """A store that records its swaps, and is not known to be in this process."""
    return watched(open_store(face, "memory:", "cache"))


def test_a_duplicate_that_comes_soon_does_not_use_the_store(start, store, kind, key):
    server, request = start(store=store), order()
    first = server.client.call(kind, request, key)
    swaps = len(store.swaps)
    for _ in range(3):
        assert server.client.call(kind, request, key).essence == first.essence
    assert len(store.swaps) == swaps == 2
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_duplicate_of_a_decided_error_does_not_use_the_store(start, store, kind, key, code):
    server, request = start(store=store), order(run(code=code))
    first = server.client.call(kind, request, key)
    swaps = len(store.swaps)
    again = server.client.call(kind, request, key)
    assert (again.essence, again.replayed) == (first.essence, True)
    assert len(store.swaps) == swaps


def test_a_failure_is_not_cached(start, store, kind, key):
    server, request = start(store=store), order(run(code=grpc.StatusCode.ABORTED), run())
    assert server.client.call(kind, request, key).code is grpc.StatusCode.ABORTED
    assert server.client.call(kind, request, key).ok


def test_another_request_under_the_key_is_refused(start, store, kind, key):
    server = start(store=store)
    assert server.client.call(kind, order(), key).ok
    assert server.client.call(kind, order(), key).reason is Reason.KEY_REUSED


def test_cache_bytes_0_turns_it_off(start, store, kind, key):
    server, request = start(store=store, cache_bytes=0), order()
    server.client.call(kind, request, key)
    swaps = len(store.swaps)
    assert server.client.call(kind, request, key).replayed
    assert len(store.swaps) == swaps + 1


def test_a_record_that_another_process_deleted_is_not_replayed(start, store, kind, key, monkeypatch):
    monkeypatch.setattr(cache, "LONGEST", 0.2)
    server, request = start(store=store), order(run(), run())
    assert server.client.call(kind, request, key).ok
    name = store.swaps[0].key
    server.store.swap(Swap(name, server.store.read(name).value, None, 1.0))
    until(lambda: not server.client.call(kind, request, key).replayed)
    assert len(server.ledger.runs(request)) == 2


def test_no_answer_is_cached_longer_than_its_retention(start, store, kind, key):
    policy = Policy(retention=0.4, lease=0.1, max_run=60)
    server, request = start(store=store, default=policy), order(run(), run())
    assert server.client.call(kind, request, key).ok
    until(lambda: not server.client.call(kind, request, key).replayed)


def record_of(size: int) -> bytes:
    shown = Fingerprint(b"r" * 16, b"c" * 16)
    outcome = Outcome(messages=(bytes(size),))
    done = Record(state=State.DONE, attempt=1, owner=b"8 bytes.", fingerprint=shown, outcome=outcome)
    return done.to_bytes()


def test_the_cache_is_bounded_in_bytes_and_drops_the_oldest_first():
    kept, now = Cache(100_000), elapsed()
    for number in range(100):
        swap = Swap(b"%d" % number, None, record_of(9_000), 60.0)
        kept.update(swap, Swapped(0.0), now)
    there = [number for number in range(100) if kept.get(b"%d" % number) is not None]
    assert there == list(range(100 - len(there), 100))
    assert 5 <= len(there) <= 11


def test_an_answer_larger_than_the_bound_is_not_cached_and_drops_no_other():
    kept, now = Cache(100_000), elapsed()
    kept.update(Swap(b"small", None, record_of(10), 60.0), Swapped(0.0), now)
    kept.update(Swap(b"large", None, record_of(100_000), 60.0), Swapped(0.0), now)
    assert kept.get(b"large") is None
    assert kept.get(b"small") is not None


def test_only_answers_are_cached():
    kept, now = Cache(100_000), elapsed()
    running = Record(state=State.RUNNING, attempt=1, owner=b"me", lease=1.0, ttl=60.0).to_bytes()
    kept.update(Swap(b"running", None, running, 60.0), Swapped(0.0), now)
    kept.update(Swap(b"absent", None, running, 60.0), Held(None, 0.0), now)
    kept.update(Swap(b"foreign", None, running, 60.0), Held(b"\x08\x03 and no record", 60.0), now)
    assert [kept.get(key) for key in (b"running", b"absent", b"foreign")] == [None] * 3


def test_a_swap_that_began_10_seconds_ago_is_not_cached():
    kept, now = Cache(100_000), elapsed()
    kept.update(Swap(b"old", None, record_of(10), 60.0), Swapped(0.0), now - cache.LONGEST)
    kept.update(Swap(b"short", None, b"-", 60.0), Held(record_of(10), 0.0), now)
    assert kept.get(b"old") is kept.get(b"short") is None
