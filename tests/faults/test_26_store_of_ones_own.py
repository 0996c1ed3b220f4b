"""Stores written by users as the README describes work, on both faces."""

import asyncio
import math
import threading
import time
from typing import Any

import pytest

import idem_grpc
import idem_grpc.aio
from idem_grpc import Held, Policy, Reason, StoreError, StoreUnavailable, Swapped
from idem_grpc._core.swap import Swap
from idem_grpc.stores import open_async_store
from idem_grpc.stores._protocol import OnLoop
from idem_grpc.testing import AsyncStoreContract, StoreContract
from tests.server.harness import FACES
from tests.server.ledger import order, run
from tests.support.pages import blocks
from tests.support.wait import until
from tests.tokens.servers import FACES as WITH_TOKENS
from tests.tokens.servers import issue


def from_the_readme() -> dict[str, Any]:
    names: dict[str, Any] = {"asyncio": asyncio, "idem_grpc": idem_grpc}
    for block in blocks("README.md"):
        if any(name in block for name in ("class MyStore(", "class MyAsyncStore(")):
            exec(compile(block, "README.md", "exec"), names)
    return names


README = from_the_readme()


class Bare(idem_grpc.Store):
    """Only ``swap``, ``check`` and ``close``: not even a constructor that sets a namespace."""

    def __init__(self) -> None:
        self._inner = README["MyStore"]()

    def swap(self, swap):
        return self._inner.swap(swap)

    def check(self):
        self._inner.check()

    def close(self):
        self._inner.close()


class Native(idem_grpc.aio.Store):
    """The same for asyncio, on the event loop alone."""

    def __init__(self) -> None:
        self.records: dict[bytes, tuple[bytes, float]] = {}
        self.renewed = 0
        self.is_open = True

    async def swap(self, swap):
        if b"" in (swap.expected, swap.new) or (swap.new is not None and not 0 < swap.ttl < math.inf):
            raise ValueError("a value is never empty, and a ttl is positive and finite")
        await asyncio.sleep(0)
        await self.check()
        now = time.monotonic()
        value, ends = self.records.get(swap.key, (None, now))
        if ends <= now:
            value, ends = None, now
        is_expected = value == swap.expected and (swap.max_left is None or ends - now <= swap.max_left)
        if not is_expected and value != swap.new:
            return Held(value, ends - now)
        self.renewed += value is not None and value == swap.new == swap.expected
        if swap.new is None:
            self.records.pop(swap.key, None)
        else:
            self.records[swap.key] = (swap.new, now + swap.ttl)
        return Swapped(ends - now)

    async def check(self):
        if not self.is_open:
            raise StoreError("this store is closed")

    async def aclose(self):
        self.is_open = False


STORES = {
    "sync": {"as in the README": README["MyStore"], "bare": Bare},
    "aio": {"as in the README": README["MyAsyncStore"], "bare": Native},
}


class TestReadmeStore(StoreContract):
    def make_store(self):
        return README["MyStore"]()


class TestReadmeAsyncStore(AsyncStoreContract):
    def make_store(self):
        return README["MyAsyncStore"]()


class TestBareStore(StoreContract):
    def make_store(self):
        return Bare()


class TestNativeStore(AsyncStoreContract):
    def make_store(self):
        return Native()


@pytest.fixture(params=["as in the README", "bare"])
def store(request, face):
    return STORES[face][request.param]()


@pytest.fixture
def serve(face, store):
    """A server on the store: ``serve(**settings)``."""
    servers = []

    def serve(faces=FACES, **settings):
        servers.append(faces[face](store, **settings))
        return servers[-1]

    yield serve
    for server in servers:
        server.ledger.open_all()
        server.close()


def test_duplicates_get_the_first_answer(serve, kind, key):
    server, request = serve(), order(run(gate="held"))
    first, second = (server.client.begin(kind, request, key) for _ in range(2))
    server.ledger.gate("held").await_arrival()
    server.ledger.gate("held").open()
    answers = [call.answer() for call in (first, second)] + [server.client.call(kind, request, key)]
    assert answers[0].ok
    assert {answer.run for answer in answers} == {answers[0].run}
    assert len(server.ledger.runs(request)) == 1
    assert server.client.call(kind, order(), key).reason is Reason.KEY_REUSED
    assert server.drain(10) == 0


def test_leases_are_renewed(serve, store, key, kind):
    renewals = counted(store)
    server, request = serve(default=Policy(lease=0.5, retention=60)), order(run(gate="held"))
    call = server.client.begin(kind, request, key)
    server.ledger.gate("held").await_arrival()
    until(lambda: renewals() >= 4)
    (entry,) = server.ledger.runs(request)
    assert not entry.execution.lease_lost
    server.ledger.gate("held").open()
    assert call.answer().ok


def counted(store):
    """Count how often a record was replaced by itself."""
    if isinstance(store, Native):
        return lambda: store.renewed
    blocking = getattr(store, "blocking", store)
    swap, count = blocking.swap, []

    def counting(asked):
        if asked.expected == asked.new:
            count.append(asked)
        return swap(asked)

    blocking.swap = counting
    return lambda: len(count)


def test_tokens_are_issued(serve, key, kind):
    server, request = serve(WITH_TOKENS), order()
    operation = "tests.refund" if kind.value == "ServerStream" else "tests.charge"
    token = issue(server.client, operation)
    first = server.client.call(kind, request, token)
    assert first.ok, first
    assert server.client.call(kind, request, token).essence == first.essence


def test_a_namespace_is_idem_unless_it_is_set():
    assert Bare().namespace == Native().namespace == "idem"
    assert Native().blocking.namespace == "idem"
    assert README["MyStore"]().namespace == README["MyAsyncStore"]().namespace == "payments"


def on_loop_of(store) -> OnLoop:
    assert isinstance(store.blocking, OnLoop)
    return store.blocking


def test_a_store_on_its_loop_is_unavailable_to_threads_where_no_loop_runs():
    store = Native()
    with pytest.raises(StoreUnavailable, match="is not running"):
        store.blocking.swap(Swap(b"key", None, b"one", 1))

    async def first():
        loop = asyncio.get_running_loop()
        on_loop_of(store).use_running_loop()
        with pytest.raises(StoreError, match="would deadlock"):
            store.blocking.check()
        await loop.run_in_executor(None, store.blocking.check)

    asyncio.run(first())
    for work in store.blocking.check, lambda: store.blocking.swap_many([]):
        with pytest.raises(StoreUnavailable, match="is not running"):
            work()


def test_a_thread_that_waits_for_a_loop_fails_when_the_loop_stops():
    entered = threading.Event()

    class Stuck(Native):
        async def swap(self, swap):
            entered.set()
            await asyncio.Event().wait()

    store, caught = Stuck(), []

    def wait():
        try:
            store.blocking.swap(Swap(b"key", None, b"one", 1))
        except StoreUnavailable as error:
            caught.append(error)

    async def leave():
        on_loop_of(store).use_running_loop()
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, entered.wait)

    thread = threading.Thread(target=wait)
    asyncio.run(leave())
    thread.join()
    assert len(caught) == 1


@pytest.mark.parametrize("url", ["memory", "sqlite", "redis"], indirect=True)
def test_the_librarys_own_stores_refuse_a_second_event_loop(url):
    store = open_async_store(url)

    async def swap():
        return await store.swap(Swap(b"key", None, b"one", 1))

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert isinstance(first.run(swap()), Swapped | Held)
        with pytest.raises(StoreError, match="second event loop"):
            second.run(swap())
        first.run(store.aclose())
