"""Many swaps on few connections: each gets its own answer, also if connections break."""

import asyncio
import gc
import signal
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Any

import pytest

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from tests.faults.redis_proxy import RedisProxy
from tests.faults.redis_servers import at, running, scripted
from tests.server.ledger import DEADLINE
from tests.support.eager import eager_task_factory
from tests.support.wait import until

MANY = 100
LARGE = 3_000_000


class Threads:
    """A store, and threads to begin swaps on it."""

    def __init__(self, url):
        self.store = open_store(url)
        self._executor = ThreadPoolExecutor(MANY)

    def begin(self, swap):
        return self._executor.submit(self.store.swap, swap)

    def close(self):
        self._executor.shutdown()
        self.store.close()


class Tasks:
    """The same for asyncio, on a loop with a thread of its own."""

    def __init__(self, url, factory=None):
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(factory)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.store = open_async_store(url)

    def begin(self, swap):
        return asyncio.run_coroutine_threadsafe(self.store.swap(swap), self.loop)

    def close(self):
        asyncio.run_coroutine_threadsafe(self.store.aclose(), self.loop).result(DEADLINE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()


def eager_tasks(url):
    return Tasks(url, eager_task_factory)


FACES: dict[str, Any] = {"sync": Threads, "aio": Tasks, "async-eager": eager_tasks}


@pytest.fixture(params=list(FACES))
def use(request):
    """Open a store of each kind, by its URL."""
    users = []

    def use(url):
        users.append(FACES[request.param](url))
        return users[-1]

    yield use
    for user in users:
        user.close()


@pytest.fixture
def server(own_redis_server):
    return own_redis_server


@pytest.fixture
def proxy(server):
    with RedisProxy(server.port) as proxy:
        yield proxy


def key(number):
    return b"key %d" % number


def claims(value, numbers=range(MANY)):
    return [Swap(key(number), None, value(number), TTL) for number in numbers]


def own(number):
    """The value of a key, which no other key has."""
    return b"value of %d" % number


def other(number):
    return b"another of %d" % number


def own_or_large(number):
    return own(number) * (LARGE // 10 if number % 10 == 0 else 1)


def results(begun):
    return [future.result(DEADLINE) for future in begun]


def written(server):
    return server.calls()["set"]


def received(server):
    with server.client() as client:
        return client.info("stats")["total_connections_received"]


def answered(user, swaps):
    """The answers; None if the server did not answer in time, as on a slow machine."""
    try:
        return results([user.begin(swap) for swap in swaps])
    except StoreUnavailable:
        return None


@pytest.mark.parametrize("connections", [2, MANY])
def test_swaps_on_a_connection_that_breaks_are_answered_and_take_effect_once(use, server, proxy, connections):
    user = use(f"{proxy.url}?max_connections={connections}&socket_timeout=20")
    assert results([user.begin(swap) for swap in claims(own)]) == [Swapped(0)] * MANY
    before = written(server)
    proxy.allow(0)
    begun = [user.begin(Swap(key(number), own(number), other(number), TTL)) for number in range(MANY)]
    until(lambda: proxy.held)
    proxy.allow(None)
    proxy.cut()
    assert all(isinstance(answer, Swapped) for answer in results(begun))
    assert written(server) - before == MANY
    held = results([user.begin(swap) for swap in claims(own)])
    assert [answer.value for answer in held] == [other(number) for number in range(MANY)]


def test_swaps_are_sent_again_once(use, proxy):
    user = use(f"{proxy.url}?socket_timeout=20")
    proxy.allow(0)
    begun = [user.begin(swap) for swap in claims(own)]
    while not all(future.done() for future in begun):
        until(lambda: proxy.held or all(future.done() for future in begun))
        proxy.cut()
    assert {type(future.exception()) for future in begun} == {StoreUnavailable}
    proxy.allow(None)
    assert all(isinstance(answer, Swapped) for answer in results([user.begin(swap) for swap in claims(own)]))


def test_swaps_get_their_own_answers_among_large_values(use, server):
    user = use(server.url)
    numbers = range(40)
    assert results([user.begin(swap) for swap in claims(own_or_large, numbers)]) == [Swapped(0)] * 40
    held = results([user.begin(swap) for swap in claims(other, numbers)])
    assert [answer.value for answer in held] == [own_or_large(number) for number in numbers]


def test_all_swaps_on_a_silent_server_are_unavailable(use, server):
    user = use(f"{server.url}?socket_timeout=0.5")
    until(lambda: answered(user, [Swap(b"first", None, b"value", TTL)]))
    server.pause()
    started = time.monotonic()
    errors = [future.exception(DEADLINE) for future in [user.begin(swap) for swap in claims(own)]]
    assert time.monotonic() - started < 20
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert not any(error.answered for error in errors)
    server.resume()
    for number, answer in enumerate(until(lambda: answered(user, claims(other)))):
        assert isinstance(answer, Swapped) or answer.value == own(number), "what was given up had an effect"


def test_no_more_connections_are_opened_than_allowed(use, server):
    before = received(server)
    user = use(f"{server.url}?max_connections=3")
    for _ in range(3):
        results([user.begin(swap) for swap in claims(own)])
    assert received(server) - before <= 1 + 3, "one is the test's own"


def test_a_swap_that_waits_too_long_for_a_connection_is_unavailable(use, server):
    user = use(f"{server.url}?max_connections=1&timeout=0.05&socket_timeout=20")
    results([user.begin(Swap(b"first", None, b"value", TTL))])
    server.pause()
    begun = [user.begin(swap) for swap in claims(own)]
    until(lambda: sum(future.done() for future in begun) >= MANY - 1)
    errors = [future.exception() for future in begun if future.done()]
    assert all("No connection available" in str(error) for error in errors)
    server.resume()
    assert sum(future.exception(DEADLINE) is None for future in begun) == 1
    assert results([user.begin(Swap(b"last", None, b"value", TTL))]) == [Swapped(0)]


def test_an_unrequested_reply_is_not_taken_for_the_next(use):
    with scripted(b"*1\r\n:-2\r\n*2\r\n:5\r\n$5\r\nstray\r\n") as url:
        user = use(url)
        for number in range(5):
            assert results([user.begin(Swap(key(number), None, b"value", TTL))]) == [Swapped(0)]


def test_the_password_is_sent(use):
    with running(password="s3cr3t") as server:
        user = use(at(server, ":s3cr3t@"))
        assert results([user.begin(swap) for swap in claims(own)]) == [Swapped(0)] * MANY
        server.restart()
        assert results([user.begin(swap) for swap in claims(own)]) == [Swapped(0)] * MANY


def test_all_swaps_fail_with_a_wrong_password(use):
    with running(password="s3cr3t") as server:
        user = use(at(server, ":wrong@"))
        errors = [future.exception(DEADLINE) for future in [user.begin(swap) for swap in claims(own)]]
        assert all("rejects the user name or password" in str(error) for error in errors)


@pytest.mark.parametrize("connections", [1, 4])
def test_the_reply_to_an_interrupted_thread_goes_to_no_other_swap(server, proxy, connections):
    """Other threads whose swaps it has sent, or would have sent, get their answers."""

    def interrupt():
        until(lambda: proxy.held)
        begun.extend(executor.submit(store.swap, swap) for swap in claims(own))
        signal.pthread_kill(main, signal.SIGINT)

    begun: list[Any] = []
    main = threading.get_ident()
    with (
        open_store(f"{proxy.url}?max_connections={connections}&socket_timeout=20") as store,
        ThreadPoolExecutor(MANY) as executor,
    ):
        store.swap(Swap(b"mine", None, b"first", TTL))
        for _ in range(3):
            begun.clear()
            proxy.allow(0)
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                store.swap(Swap(b"mine", None, b"second", TTL))
            interrupting.join()
            proxy.allow(None)
            wait(begun)
            assert all(isinstance(answer, Swapped) for answer in results(begun))
            assert isinstance(store.swap(Swap(b"yours", None, b"value", TTL)), Swapped)


def test_cancelled_swaps_do_not_shift_the_answers_of_others(server):
    async def main():
        async with open_async_store(server.url) as store:
            await asyncio.gather(*[store.swap(swap) for swap in claims(own)])
            for steps in range(20):
                tasks = [asyncio.ensure_future(store.swap(swap)) for swap in claims(other)]
                for _ in range(steps):
                    await asyncio.sleep(0)
                for task in tasks[:: 2 + steps % 3]:
                    task.cancel()
                await asyncio.wait(tasks)
                for number, task in enumerate(tasks):
                    if not task.cancelled():
                        held = task.result()
                        assert isinstance(held, Held)
                        assert held.value == own(number)

    asyncio.run(main())


def test_a_cancelled_swap_keeps_its_connection(server):
    async def main():
        async with open_async_store(server.url) as store:
            await store.swap(Swap(b"first", None, b"value", TTL))
            before = received(server)
            server.pause()
            task = asyncio.ensure_future(store.swap(Swap(b"second", None, b"value", TTL)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            server.resume()
            await store.swap(Swap(b"third", None, b"value", TTL))
            assert received(server) - before == 1, "the test's own"

    asyncio.run(main())


def test_the_loop_goes_on_while_large_values_are_sent_and_received(server):
    async def steps_of(work):
        task, steps = asyncio.ensure_future(work), 0
        while not task.done():
            await asyncio.sleep(0)
            steps += 1
        return steps, task.result()

    async def main():
        async with open_async_store(f"{server.url}?socket_timeout=20") as store:
            value = b"x" * LARGE
            swaps = claims(lambda number: value, range(20))
            steps, answers = await steps_of(store.swap_many(swaps))
            assert answers == [Swapped(0)] * 20
            assert steps > 50
            steps, held = await steps_of(store.swap_many(claims(own, range(20))))
            assert held[-1].value == value
            assert steps > 50

    asyncio.run(main())


def test_closing_a_store_fails_its_swaps_and_leaves_no_task(server):
    async def main():
        store = open_async_store(f"{server.url}?max_connections=10")
        await store.swap(Swap(b"first", None, b"value", TTL))
        server.pause()
        tasks = [asyncio.ensure_future(store.swap(swap)) for swap in claims(own)]
        for _ in range(5):
            await asyncio.sleep(0)
        await store.aclose()
        await store.aclose()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ended} == {StoreUnavailable}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    server.resume()


def test_the_context_of_a_cancelled_task_is_not_kept_by_the_swaps_of_others(server):
    variable: ContextVar[Any] = ContextVar("variable")

    async def first(store):
        variable.set(OrderedDict())
        kept.append(weakref.ref(variable.get()))
        await store.swap(Swap(b"first", None, b"value", TTL))

    async def main():
        async with open_async_store(f"{server.url}?socket_timeout=20") as store:
            await store.swap(Swap(b"zeroth", None, b"value", TTL))
            server.pause()
            task = asyncio.ensure_future(first(store))
            await asyncio.sleep(0)
            others = [asyncio.ensure_future(store.swap(swap)) for swap in claims(own)]
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            del task
            gc.collect()
            assert kept[0]() is None
            server.resume()
            assert await asyncio.gather(*others) == [Swapped(0)] * MANY

    kept: list[Any] = []
    asyncio.run(main())


@pytest.mark.parametrize("factory", [None, eager_task_factory], ids=["plain", "eager"])
def test_an_idle_store_has_no_task(server, factory):
    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        async with open_async_store(server.url) as store:
            for _ in range(3):
                await asyncio.gather(*[store.swap(swap) for swap in claims(own)])
                assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_loop_that_ends_during_a_swap_leaves_no_task(server, caplog):
    async def main():
        store = open_async_store(server.url)
        await store.swap(Swap(b"first", None, b"value", TTL))
        server.pause()
        for swap in claims(own):
            asyncio.ensure_future(store.swap(swap))  # noqa: RUF006 -- nobody waits for it
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    server.resume()
    gc.collect()
    assert not caplog.records


def test_a_swap_in_a_task_that_is_being_cancelled_is_answered(server):
    """A key is given back like this while the loop ends."""
    answers = []

    async def give_back(store):
        try:
            await asyncio.Event().wait()
        finally:
            answers.append(await store.swap(Swap(b"second", None, b"value", TTL)))
            await store.aclose()

    async def main():
        store = open_async_store(server.url)
        await store.swap(Swap(b"first", None, b"value", TTL))
        task = asyncio.ensure_future(give_back(store))
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    assert answers == [Swapped(0)]
