"""The store on a Redis server that loses its scripts, dies, falls silent or refuses commands."""

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
    """The URL of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


async def checked(store):
    async with store:
        await store.check()


def test_a_swap_is_one_script(server):
    with open_store(server.url) as store:
        store.check()
        before = server.calls()
        for number in range(10):
            store.swap(Swap(b"%d" % number, None, b"one", TTL))
            store.swap(Swap(b"%d" % number, None, b"two", TTL))
            store.swap(Swap(b"%d" % number, b"one", None, TTL))
        ran = server.calls() - before
    assert ran == {
        "evalsha": 30,
        "get": 30,
        "pttl": 30,
        "set": 10,
        "del": 10,
        **{name: count for name, count in ran.items() if name in ("info", "client|setinfo")},
    }


def test_an_async_swap_is_one_script(server):
    async def swaps(store):
        async with store:
            await store.check()
            before = server.calls()
            await asyncio.gather(
                *[store.swap(Swap(b"%d" % number, None, b"one", TTL)) for number in range(30)]
            )
            return server.calls() - before

    ran = asyncio.run(swaps(open_async_store(server.url)))
    assert ran["evalsha"] == 30
    assert "script|load" not in ran


def test_the_script_is_loaded_again_if_the_server_lost_it(server):
    with open_store(server.url) as store, server.client() as client:
        store.swap(Swap(b"key", None, b"one", TTL))
        client.script_flush()
        assert isinstance(store.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)
        assert store.read(b"key").value == b"two"


def test_the_script_is_loaded_again_in_an_async_store(server):
    async def swaps(store):
        async with store:
            await store.swap(Swap(b"key", None, b"one", TTL))
            with server.client() as client:
                client.script_flush()
            return await store.swap(Swap(b"key", b"one", b"two", TTL))

    assert isinstance(asyncio.run(swaps(open_async_store(server.url))), Swapped)


def test_a_store_works_again_when_its_server_has_restarted(server):
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


def test_an_async_store_works_again_when_its_server_has_restarted(server):
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


def test_a_restart_between_two_swaps_fails_no_swap(server):
    with open_store(server.url) as store:
        store.swap(Swap(b"key", None, b"one", TTL))
        server.restart()
        assert store.swap(Swap(b"key", None, b"one", TTL)) == Swapped(0)


def test_a_silent_server_is_unavailable(silent):
    with open_store(f"{silent}?socket_timeout=0.2") as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=ADDRESS):
            store.swap(Swap(b"key", None, b"one", TTL))
        assert time.monotonic() - started < 20, "by default redis-py would try for a minute"


def test_a_silent_server_is_unavailable_in_an_async_store(silent):
    async def swap(store):
        async with store:
            async with asyncio.timeout(20):
                await store.swap(Swap(b"key", None, b"one", TTL))

    with pytest.raises(StoreUnavailable, match=ADDRESS):
        asyncio.run(swap(open_async_store(f"{silent}?socket_timeout=0.2")))


def test_late_answers_of_a_silent_server_go_to_no_other_swap(server):
    """The swaps that they answer have timed out."""

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


def test_the_answer_to_a_cancelled_swap_goes_to_no_other_swap(server):
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


def test_more_tasks_than_connections_are_all_served(redis_server):
    async def swaps(store):
        async with store:
            return await asyncio.gather(*[store.swap(Swap(b"key", None, b"same", TTL)) for _ in range(300)])

    url = f"{redis_server.url}?max_connections=3&timeout=30"
    answers = asyncio.run(swaps(open_async_store(url, namespace="queue")))
    assert all(isinstance(answer, Swapped) for answer in answers)


def test_a_swap_that_gets_no_connection_in_time_is_unavailable(server):
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
def test_check_refuses_a_server_that_evicts(policy):
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


def test_check_passes_if_the_user_may_not_read_the_settings(server):
    with server.client() as client:
        client.execute_command("ACL SETUSER shy on >pw ~* +@all -info -config -cluster")
    with open_store(server.url.replace("://", "://shy:pw@")) as store:
        store.check()


@pytest.mark.parametrize("credentials", ["", f":wrong-{SECRET}@", f"nobody:{SECRET}@"])
def test_a_wrong_password_is_refused_with_the_reason(credentials):
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


def test_a_replica_refuses_swaps(server):
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


def test_a_key_of_another_type_is_left_alone(server):
    with server.client() as client, open_store(server.url) as store:
        client.rpush("idem:key", "a list")
        with pytest.raises(StoreError, match="idem:key has a Redis type that is not") as caught:
            store.swap(Swap(b"key", None, b"one", TTL))
        assert type(caught.value) is StoreError
        assert client.lrange("idem:key", 0, -1) == [b"a list"]


def test_the_url_may_name_a_database(server):
    with open_store(f"{server.url}/3") as store, redis.Redis(port=server.port, db=3, protocol=2) as client:
        store.swap(Swap(b"key", None, b"one", TTL))
        assert client.get("idem:key") == b"one"
        assert 0 < client.pttl("idem:key") <= TTL * 1000
