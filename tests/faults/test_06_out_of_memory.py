"""A Redis at its maxmemory takes no new data: runs in progress keep their leases, replays go on."""

import asyncio

import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.record import State
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from idem_grpc.stores._redis import RedisStore
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.server.ledger import order, run
from tests.support.redis_server import calls_of
from tests.support.wait import until

kind = kinds(Kind.UNARY, Kind.SERVER_STREAM)
AT_WORK = "at work"
SHORT = Policy(lease=0.6, retention=600, wait=0)


def fill(admin):
    """Use more memory than maxmemory; the default policy is noeviction."""
    admin.config_set("maxmemory", 1)


def relieve(admin):
    admin.config_set("maxmemory", 0)


def renewals(admin):
    return calls_of(admin)["pexpire"]


class Blocking:
    """The swaps of an asyncio store, one by one."""

    def __init__(self, url):
        self._runner = asyncio.Runner()
        self._store = open_async_store(url)

    def swap(self, swap):
        return self._runner.run(self._store.swap(swap))

    def swap_many(self, swaps):
        return self._runner.run(self._store.swap_many(swaps))

    def read(self, key):
        return self._runner.run(self._store.read(key))

    def close(self):
        self._runner.run(self._store.aclose())
        self._runner.close()


@pytest.fixture
def store(face, redis):
    store = open_store(redis.url) if face == "sync" else Blocking(redis.url)
    yield store
    store.close()


@pytest.mark.parametrize("has_script", [True, False], ids=["script there", "script lost"])
def test_commands_that_need_no_memory_work_at_maxmemory(store, admin, has_script):
    mine, theirs = Swap(b"mine", None, b"one", TTL), Swap(b"theirs", None, b"two", TTL)
    store.swap_many([mine, theirs])
    fill(admin)
    if not has_script:
        admin.script_flush()
    assert isinstance(store.swap(Swap(b"mine", b"one", b"one", TTL * 3)), Swapped), "a renewal"
    assert store.read(b"mine").ttl_left > TTL
    assert isinstance(store.swap(Swap(b"mine", None, b"one", TTL)), Swapped), "a claim that is sent again"
    assert isinstance(store.swap(Swap(b"mine", None, b"other", TTL)), Held), "a claim that comes too late"
    assert store.swap(Swap(b"gone", b"one", b"one", TTL)) == Held(None, 0.0), "a renewal that comes too late"
    if not has_script:
        admin.script_flush()
    renewed, resent, held, absent = store.swap_many(
        [
            Swap(b"mine", b"one", b"one", TTL * 3),
            theirs,
            Swap(b"theirs", None, b"one", TTL),
            look_at_nothing(),
        ]
    )
    assert (type(renewed), type(resent), type(held)) == (Swapped, Swapped, Held)
    assert absent == Held(None, 0.0)
    assert store.read(b"mine").ttl_left > TTL
    assert isinstance(store.swap(Swap(b"theirs", b"two", None, TTL)), Swapped), "a deletion"
    assert store.read(b"theirs").value is None


def look_at_nothing():
    return Swap(b"nothing", b"expected", b"expected", TTL)


def test_new_keys_are_refused_at_maxmemory(store, admin):
    store.swap(Swap(b"mine", None, b"one", TTL))
    fill(admin)
    for send in (
        lambda: store.swap(Swap(b"new", None, b"one", TTL)),
        lambda: store.swap(Swap(b"mine", b"one", b"two", TTL)),
        lambda: store.swap_many([Swap(b"mine", b"one", b"one", TTL), Swap(b"new", None, b"one", TTL)]),
    ):
        with pytest.raises(StoreUnavailable, match="maxmemory") as caught:
            send()
        assert caught.value.answered
    assert store.read(b"mine").value == b"one"
    relieve(admin)
    assert isinstance(store.swap(Swap(b"mine", b"one", b"two", TTL)), Swapped)


def test_a_store_is_listed_at_maxmemory(redis, admin):
    with RedisStore(redis.url) as store:
        store.swap(Swap(b"mine", None, b"one", TTL))
        fill(admin)
        assert [(key, held.value) for key, held in store.scan()] == [(b"mine", b"one")]


def test_a_running_call_keeps_its_lease_at_maxmemory(redis, admin, start, kind, key):
    server, other = start(redis.url, default=SHORT), start(redis.url, default=SHORT)
    done, request = order(), order(run(gate=AT_WORK))
    answered = server.client.call(kind, done, "done")
    assert answered.ok
    first = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    fill(admin)
    before = renewals(admin)
    until(lambda: renewals(admin) >= before + 8)  # three a lease: more than two leases have gone by
    assert other.client.call(kind, request, key).reason is Reason.IN_PROGRESS
    assert other.client.call(kind, done, "done").essence == answered.essence, "replays work"
    assert other.client.call(kind, order(), "new").reason is Reason.STORE_UNAVAILABLE
    (only,) = server.ledger.runs(request)
    assert not only.execution.lease_lost
    relieve(admin)
    server.ledger.gate(AT_WORK).open()
    assert first.answer().ok
    assert other.client.call(kind, request, key).essence == first.answer().essence
    assert not other.ledger.all_runs


def test_an_outcome_waits_for_memory_under_its_lease(redis, admin, start, kind, key):
    server, other = start(redis.url, default=SHORT), start(redis.url, default=SHORT)
    request = order(run(gate=AT_WORK))
    first = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    fill(admin)
    server.ledger.gate(AT_WORK).open()
    assert first.answer().reason is Reason.OUTCOME_PENDING
    relieve(admin)
    until(lambda: server.record(key, kind).state is State.DONE)
    assert other.client.call(kind, request, key).replayed
    assert not other.ledger.all_runs
