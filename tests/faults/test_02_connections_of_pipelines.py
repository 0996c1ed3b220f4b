"""A batch of swaps always gives its connection back, also if callers leave or connections break."""

import asyncio
from uuid import uuid4

import pytest

from idem_grpc._core.swap import Swap, Swapped
from idem_grpc.stores import StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from tests.faults.redis_proxy import RedisProxy
from tests.server.client import Kind
from tests.server.harness import open_store as open_for
from tests.server.harness import starting
from tests.server.ledger import DEADLINE, order
from tests.support.wait import until
from tests.tokens.servers import FACES, issue, wanted

CONNECTIONS = 2
FEW = f"?max_connections={CONNECTIONS}&timeout=1&socket_timeout=20"


@pytest.fixture
def proxy(own_redis_server):
    with RedisProxy(own_redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def server(face, proxy):
    """A server that issues tokens, with two connections to Redis."""
    with starting(lambda url: open_for(face, url, "idem"), FACES[face]) as start:
        yield start(proxy.url + FEW)


def begin_issuing(server):
    method = server.client.channel.unary_unary("/idem.v1.TokenService/IssueTokens")
    return method.future(wanted(count=3).SerializeToString(), timeout=DEADLINE)


def is_held(proxy, call):
    """Wait until a reply is held back, or the call is over without one."""
    until(lambda: proxy.held or call.done())
    return proxy.held


def caller_leaves(server, proxy, call):
    before = server.tasks()
    call.cancel()
    until(lambda: server.tasks() < before)


def connection_breaks(server, proxy, call):
    """Break the connection as often as the store retries."""
    while not call.done():
        proxy.cut()
        is_held(proxy, call)


@pytest.mark.parametrize(
    ("face", "trouble"),
    [("aio", caller_leaves), ("aio", connection_breaks), ("sync", connection_breaks)],
    indirect=["face"],
)
def test_calls_work_after_token_calls_were_cut_at_every_reply(own_redis_server, proxy, server, trouble):
    cuts = 0
    while True:
        with own_redis_server.client() as client:
            client.script_flush()
        proxy.cut()  # so that the next call connects anew
        proxy.allow(cuts)
        call = begin_issuing(server)
        if not is_held(proxy, call):
            break
        trouble(server, proxy, call)
        proxy.allow(None)
        cuts += 1
    assert call.code().name == "OK"
    assert cuts > CONNECTIONS
    proxy.allow(None)
    for _ in range(2):
        token, request = issue(server.client), order()
        first = server.client.call(Kind.UNARY, request, token)
        assert first.ok
        assert server.client.call(Kind.UNARY, request, token).essence == first.essence


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("has_script", [True, False], ids=["script there", "script lost"])
@pytest.mark.parametrize("size", [1, 3], ids=["swap", "swap_many"])
def test_swaps_cancelled_at_every_step_leave_all_connections(own_redis_server, size, has_script, times):
    """``times``: a task may be cancelled again while it gives its connection back."""

    async def swap(store, name):
        swaps = [Swap(b"%s %d" % (name, number), None, b"value", TTL) for number in range(size)]
        if size == 1:
            return [await store.swap(Swap(swaps[0].key, None, b"value", TTL))]
        return await store.swap_many(swaps)

    async def cancelled_after(steps, store):
        tasks = [asyncio.ensure_future(swap(store, uuid4().bytes)) for _ in range(3 * CONNECTIONS)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(times):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def main():
        async with open_async_store(own_redis_server.url + FEW) as store:
            await store.check()
            with own_redis_server.client() as client:
                for steps in range(100):
                    if not has_script:
                        client.script_flush()
                    await cancelled_after(steps, store)
                    # As many as there are connections, and none waits for another's.
                    answers = await asyncio.gather(*[swap(store, uuid4().bytes) for _ in range(CONNECTIONS)])
                    assert all(answer == Swapped(0) for batch in answers for answer in batch)

    asyncio.run(main())


def test_a_batch_that_fails_in_a_thread_gives_its_connection_back_at_once(own_redis_server):
    swaps = [Swap(b"%d" % number, None, b"value", TTL) for number in range(3)]
    tracebacks: list[StoreUnavailable] = []  # which hold on to whatever the batches held

    def answers():
        try:
            return store.swap_many(swaps)
        except StoreUnavailable as error:  # a slow machine is silent for a fifth of a second, too
            tracebacks.append(error)
            return None

    with open_store(f"{own_redis_server.url}?max_connections=1&timeout=1&socket_timeout=0.2") as store:
        own_redis_server.pause()
        for _ in range(2):
            assert answers() is None
        own_redis_server.resume()
        assert until(answers) == [Swapped(0)] * 3
    assert all("Timeout reading" in str(error) for error in tracebacks)
