"""What only a server can be asked: to lose its scripts, to die, to fall silent, to say no."""

import asyncio
import socket
import time

import pytest
import redis

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError, StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from tests.support.redis_server import RedisServer
from tests.support.wait import until

SECRET = "s3cr3t"
ADDRESS = r"127\.0\.0\.1"


@pytest.fixture
def server(own_redis_server):
    return own_redis_server


@pytest.fixture
def silent():
    """The URL of a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def calls(server):
    """How often each command ran; what a script runs counts too."""
    with server.client() as client:
        return {name: stats["calls"] for name, stats in client.info("commandstats").items()}


async def checked(store):
    async with store:
        await store.check()


def added(before, after):
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def test_a_swap_is_one_script(server):
    with open_store(server.url) as store:
        store.check()
        before = calls(server)
        for number in range(10):
            store.swap(Swap(b"%d" % number, None, b"one", TTL))
            store.swap(Swap(b"%d" % number, None, b"two", TTL))
            store.swap(Swap(b"%d" % number, b"one", None, TTL))
        ran = added(before, calls(server))
    assert ran == {
        "cmdstat_evalsha": 30,
        "cmdstat_get": 30,
        "cmdstat_pttl": 30,
        "cmdstat_set": 10,
        "cmdstat_del": 10,
        **{name: count for name, count in ran.items() if name in ("cmdstat_info", "cmdstat_client|setinfo")},
    }


def test_an_async_swap_is_one_script(server):
    async def swaps(store):
        async with store:
            await store.check()
            before = calls(server)
            await asyncio.gather(
                *[store.swap(Swap(b"%d" % number, None, b"one", TTL)) for number in range(30)]
            )
            return added(before, calls(server))

    ran = asyncio.run(swaps(open_async_store(server.url)))
    assert ran["cmdstat_evalsha"] == 30
    assert "cmdstat_script|load" not in ran


def test_a_server_that_lost_its_scripts_is_told_again(server):
    with open_store(server.url) as store, server.client() as client:
        store.swap(Swap(b"key", None, b"one", TTL))
        client.script_flush()
        assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)
        assert store.read(b"key").value == b"two"


def test_an_async_store_tells_it_again_too(server):
    async def swaps(store):
        async with store:
            await store.swap(Swap(b"key", None, b"one", TTL))
            with server.client() as client:
                client.script_flush()
            return await store.swap(Swap(b"key", b"one", b"two", TTL))

    assert isinstance(asyncio.run(swaps(open_async_store(server.url))), Swapped)


def test_a_server_that_died_is_back_when_it_is_back(server):
    with open_store(server.url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        server.kill()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=ADDRESS):
                store.swap(Swap(b"key", None, b"one", TTL))
        with pytest.raises(StoreUnavailable):
            store.check()
        server.restart()
        assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)


def test_an_async_store_lives_through_it_too(server):
    async def swaps(store):
        async with store:
            await store.swap(Swap(b"key", None, b"one", TTL))
            server.kill()
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=ADDRESS):
                    await store.swap(Swap(b"key", None, b"one", TTL))
            server.restart()
            return await store.swap(Swap(b"key", None, b"one", TTL))

    assert asyncio.run(swaps(open_async_store(server.url))) == Swapped(0)


def test_a_restart_between_two_swaps_is_not_noticed(server):
    with open_store(server.url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        server.restart()
        assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)


def test_a_silent_server_is_given_up(silent):
    with open_store(f"{silent}?socket_timeout=0.2") as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=ADDRESS):
            store.swap(Swap(b"key", None, b"one", TTL))
        assert time.monotonic() - started < 20, "by default redis-py would try for a minute"


def test_an_async_store_gives_it_up_too(silent):
    async def swap(store):
        async with store:
            async with asyncio.timeout(20):
                await store.swap(Swap(b"key", None, b"one", TTL))

    with pytest.raises(StoreUnavailable, match=ADDRESS):
        asyncio.run(swap(open_async_store(f"{silent}?socket_timeout=0.2")))


def test_a_server_that_falls_silent_mixes_no_answers_up(server):
    """The answers that come late are nobody's: whoever asked has given up."""

    def answer(value):
        try:
            return store.swap(Swap(b"one", None, value, TTL))
        except StoreUnavailable:  # a slow machine is silent for half a second, too
            return None

    with open_store(f"{server.url}?socket_timeout=0.5&max_connections=1") as store:
        assert until(lambda: answer(b"first"))
        server.pause()
        with pytest.raises(StoreUnavailable, match="Timeout"):
            store.swap(Swap(b"one", None, b"first", TTL))
        server.resume()
        held = until(lambda: answer(b"second"))
        assert isinstance(held, Held), "and not Swapped, which is the answer to the one that was given up"
        assert held.value == b"first"


def test_a_cancelled_swap_leaves_its_answer_to_nobody(server):
    async def swaps(store):
        async with store:
            await store.swap(Swap(b"one", None, b"first", TTL))
            for _ in range(5):
                server.pause()
                cancelled = [
                    asyncio.ensure_future(store.swap(Swap(b"one", None, b"x", TTL))) for _ in range(4)
                ]
                for _ in range(20):  # steps of the loop: two of them are sent, two wait for a connection
                    await asyncio.sleep(0)
                for task in cancelled:
                    task.cancel()
                ended = await asyncio.gather(*cancelled, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError) for end in ended)
                server.resume()
                answers = await asyncio.gather(*[store.swap(Swap(b"two", None, b"y", TTL)) for _ in range(4)])
                assert all(isinstance(answer, Swapped) for answer in answers)

    asyncio.run(swaps(open_async_store(f"{server.url}?max_connections=2&timeout=20")))


def test_more_tasks_than_connections_wait_their_turn(redis_server):
    async def swaps(store):
        async with store:
            return await asyncio.gather(*[store.swap(Swap(b"key", None, b"same", TTL)) for _ in range(300)])

    url = f"{redis_server.url}?max_connections=3&timeout=30"
    answers = asyncio.run(swaps(open_async_store(url, namespace="queue")))
    assert all(isinstance(answer, Swapped) for answer in answers)


def test_no_connection_in_time_is_unavailable(server):
    async def swaps(store):
        async with store:
            await store.swap(Swap(b"key", None, b"one", TTL))
            server.pause()
            hogging = asyncio.ensure_future(store.swap(Swap(b"key", None, b"two", TTL)))
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable, match="No connection available"):
                await store.swap(Swap(b"key", None, b"three", TTL))
            server.resume()
            assert isinstance(await hogging, Held)

    asyncio.run(swaps(open_async_store(f"{server.url}?max_connections=1&timeout=0.05&socket_timeout=30")))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(policy):
    server = RedisServer("--maxmemory-policy", policy)
    try:
        with (
            open_store(server.url) as store,
            pytest.raises(StoreError, match="set it to noeviction") as caught,
        ):
            store.check()
        assert type(caught.value) is StoreError
        with pytest.raises(StoreError, match="set it to noeviction"):
            asyncio.run(checked(open_async_store(server.url)))
    finally:
        server.stop()


def test_a_server_that_keeps_its_settings_to_itself_passes(server):
    with server.client() as client:
        client.execute_command("ACL SETUSER shy on >pw ~* +@all -info -config -cluster")
    with open_store(server.url.replace("://", "://shy:pw@")) as store:
        store.check()


@pytest.mark.parametrize("credentials", ["", f":wrong-{SECRET}@", f"nobody:{SECRET}@"])
def test_a_server_that_refuses_the_password_says_so(credentials):
    server = RedisServer(password=SECRET)
    url = server.url.replace("://", f"://{credentials}")
    try:
        with open_store(url) as store, pytest.raises(StoreError, match="password") as caught:
            store.check()
        assert type(caught.value) is StoreError
        assert SECRET not in str(caught.value)
        with open_store(server.url.replace("://", f"://:{SECRET}@")) as store:
            store.check()
    finally:
        server.stop()


def test_a_full_server_is_unavailable(server):
    with server.client() as client, open_store(server.url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.swap(Swap(b"key", b"one", b"two", TTL))
        assert store.read(b"key").value == b"one", "what is there can be replayed"


def test_a_replica_takes_no_swap(server):
    with server.client() as client, open_store(server.url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        client.replicaof("127.0.0.1", "1")
        connections = client.info("stats")["total_connections_received"]
        with pytest.raises(StoreUnavailable, match="read only replica"):
            store.swap(Swap(b"key", b"one", b"two", TTL))
        reconnected = client.info("stats")["total_connections_received"] - connections
        assert reconnected == 1, "after a failover, the same address may lead to the new primary"
        client.replicaof("NO", "ONE")
        assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)


def test_a_key_of_another_kind_is_not_touched(server):
    with server.client() as client, open_store(server.url) as store:
        client.rpush("idem:key", "a list")
        with pytest.raises(StoreError, match="idem:key has a Redis type that is not") as caught:
            store.swap(Swap(b"key", None, b"one", TTL))
        assert type(caught.value) is StoreError
        assert client.lrange("idem:key", 0, -1) == [b"a list"]


def test_a_database_of_its_own(server):
    with open_store(f"{server.url}/3") as store, redis.Redis(port=server.port, db=3, protocol=2) as client:
        store.swap(Swap(b"key", None, b"one", TTL))
        assert client.get("idem:key") == b"one"
        assert 0 < client.pttl("idem:key") <= TTL * 1000
