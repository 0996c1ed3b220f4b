"""check() verifies the answers to its own swaps, on every store, and refuses nodes of a Redis cluster."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from idem_grpc.stores._memory import AsyncMemoryStore, MemoryStore
from idem_grpc.stores._redis import AsyncRedisStore, RedisStore
from idem_grpc.stores._sqlite import AsyncSqliteStore, SqliteStore
from tests.faults.redis_servers import SLOTS, at, cluster, scripted

TIMES = 10


async def check(store):
    async with store:
        await store.check()


@pytest.fixture(scope="module")
def nodes():
    """A cluster of three, with a user who may run nothing but swaps."""
    with cluster(range(5461), range(5461, 10923), range(10923, SLOTS)) as nodes:
        for node in nodes:
            with node.client() as client:
                client.execute_command("ACL SETUSER shy on >pw ~* +@all -info -cluster")
        yield nodes


@pytest.mark.parametrize("user", ["", "shy:pw@"])
def test_every_node_of_a_cluster_is_refused_each_time(nodes, user):
    for node in nodes:
        for _ in range(TIMES):
            with open_store(at(node, user)) as store, pytest.raises(StoreError, match="cluster") as caught:
                store.check()
            assert type(caught.value) is StoreError
            with pytest.raises(StoreError, match="a node of a Redis cluster"):
                asyncio.run(check(open_async_store(at(node, user))))


def test_a_node_that_lacks_a_single_slot_is_refused():
    with cluster(range(SLOTS - 1), range(SLOTS - 1, SLOTS)) as (node, _):
        with open_store(node.url) as store, pytest.raises(StoreError, match="a node of a Redis cluster"):
            store.check()
        with pytest.raises(StoreError, match="a node of a Redis cluster"):
            asyncio.run(check(open_async_store(node.url)))


def test_a_cluster_of_one_node_is_accepted():
    with cluster(range(SLOTS)) as (node,):
        with open_store(node.url) as store:
            store.check()
        asyncio.run(check(open_async_store(node.url)))


# Stores that are none. Each answers a kind of swap wrongly, and the rest as it should.


def never_refuses(swap, swapped):
    seen = swapped(swap)
    return Swapped(0.0) if isinstance(seen, Held) else seen


def always_refuses(swap, swapped):
    return Held(b"another's", 1.0)


def forgets(swap, swapped):
    swapped(swap)
    swapped(Swap(swap.key, swap.new, None, TTL))
    return Swapped(0.0)


def never_expires(swap, swapped):
    seen = swapped(swap)
    return Held(seen.value, float("inf")) if isinstance(seen, Held) and seen.value else seen


def does_not_renew(swap, swapped):
    if swap.expected is not None and swap.expected == swap.new:
        return Swapped(30.0)
    return swapped(swap)


def refuses_renewals(swap, swapped):
    if swap.expected is not None and swap.expected == swap.new:
        return Held(swap.new, 30.0)
    return swapped(swap)


def takes_over_at_once(swap, swapped):
    return swapped(Swap(swap.key, swap.expected, swap.new, swap.ttl))


def refuses_what_is_sent_again(swap, swapped):
    seen = swapped(swap)
    return Held(swap.new, 30.0) if swap.expected is None and seen != Swapped(0.0) else seen


def does_not_delete(swap, swapped):
    return Swapped(30.0) if swap.new is None else swapped(swap)


WRONG = [
    *(never_refuses, always_refuses, forgets, never_expires, does_not_renew, refuses_renewals),
    *(takes_over_at_once, refuses_what_is_sent_again, does_not_delete),
]


def going_wrong(kind, wrong):
    def swap(self, swap):
        return wrong(swap, partial(kind.swap, self))

    return type("Wrong", (kind,), {"swap": swap})


def going_wrong_async(kind, wrong):
    async def swap(self, swap):
        return wrong(swap, self.blocking.swap)  # the same data

    return type("Wrong", (kind,), {"swap": swap})


@pytest.fixture
def place(url, tmp_path):
    """The stores, sync and asyncio, and the arguments that they are opened with."""
    if url == "memory:":
        return MemoryStore, AsyncMemoryStore, ()
    if url.startswith("sqlite"):
        return SqliteStore, AsyncSqliteStore, (f"{tmp_path}/store.db",)
    return RedisStore, AsyncRedisStore, (url,)


@pytest.mark.parametrize("wrong", WRONG)
def test_check_fails_on_wrong_answers_to_its_swaps(place, wrong):
    kind, async_kind, where = place
    with going_wrong(kind, wrong)(*where) as store, pytest.raises(StoreError, match="contract") as caught:
        store.check()
    assert type(caught.value) is StoreError
    with pytest.raises(StoreError, match="contract"):
        asyncio.run(check(going_wrong_async(async_kind, wrong)(*where)))


def test_check_passes_on_a_store_that_meets_its_contract(place):
    kind, async_kind, where = place
    with kind(*where) as store:
        store.check()
    asyncio.run(check(async_kind(*where)))


@pytest.mark.parametrize("reply", [b"*1\r\n:-2\r\n", b"*2\r\n:-2\r\n$0\r\n\r\n"], ids=["swapped", "held"])
def test_a_server_that_always_gives_the_same_reply_is_refused(reply):
    with (
        scripted(reply) as url,
        open_store(url) as store,
        pytest.raises(StoreError, match="contract"),
    ):
        store.check()


def test_a_user_needs_no_more_than_the_documentation_says(own_redis_server):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    commands = [line.split("#")[0].strip() for line in page.splitlines() if "ACL SETUSER payments" in line]
    with own_redis_server.client() as client:
        for command in commands:
            client.execute_command(command)
    with RedisStore(at(own_redis_server, "payments:secret@", "/3")) as store:
        store.check()
        swaps = [Swap(b"one", None, b"value", TTL), Swap(b"two", None, b"value", TTL)]
        assert store.swap_many(swaps) == [Swapped(0.0)] * 2
        assert isinstance(store.swap(Swap(b"two", b"value", None, TTL)), Swapped)
        assert [key for key, _ in store.scan()] == [b"one"]
