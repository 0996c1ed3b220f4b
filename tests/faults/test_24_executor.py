"""Plain handlers of asyncio servers run on a pool of their own, or on a given pool."""

import asyncio
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar

import grpc
import pytest

import idem_grpc.aio
from idem_grpc import SHARED, Policy, current
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, Ledger, order, run
from tests.server.stores import watched
from tests.support.wait import until

pytestmark = pytest.mark.parametrize("face", ["aio"], indirect=True)

CALLS = 16


class Noting(Ledger):
    """A ledger that records the threads of its runs."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def start(self, request, context):
        self.threads.append(threading.current_thread())
        return super().start(request, context)

    @property
    def threads_alive(self):
        return [thread for thread in self.threads if thread.is_alive()]


@pytest.fixture
def ledger():
    return Noting()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(CALLS, "of the user") as pool:
        yield pool


@pytest.fixture
def serve(start, ledger):
    def serve(*url, **settings):
        return start(*url, plain=True, ledger=ledger, **settings)

    return serve


def begin(server, kind, count, gate="at work"):
    requests = [order(run(gate=gate, responses_before_gate=0)) for _ in range(count)]
    return [server.client.begin(kind, request, request.order) for request in requests]


def all_ok(calls):
    return all(call.answer().ok for call in calls)


def test_plain_handlers_run_at_once_on_a_given_pool(serve, ledger, pool, kind):
    server = serve(executor=pool)
    calls = begin(server, kind, CALLS)
    until(lambda: len(ledger.threads) == CALLS)
    assert len(set(ledger.threads)) == CALLS
    assert all(thread.name.startswith("of the user") for thread in ledger.threads)
    ledger.gate("at work").open()
    assert all_ok(calls)


def test_plain_handlers_run_at_once_on_their_own_pool(serve, ledger, kind):
    server = serve()
    calls = begin(server, kind, CALLS)
    until(lambda: len(ledger.threads) == CALLS)
    ledger.gate("at work").open()
    assert all_ok(calls)


def test_no_more_plain_handlers_run_than_the_pool_has_threads(serve, ledger, kind):
    store = watched(open_store("aio", "memory:", "executor"))
    with ThreadPoolExecutor(2) as pool:
        server = serve(store=store, executor=pool)
        calls = begin(server, kind, 5)
        until(lambda: len(store.swaps) == 5)  # all have their claim
        until(lambda: len(ledger.threads) == 2)
        ledger.gate("at work").open()
        assert all_ok(calls)
    assert len(set(ledger.threads)) == 2


def test_plain_handlers_do_not_use_the_default_executor(serve, ledger, kind):
    """Host names are resolved there, which connections to a store need."""
    server = serve()
    calls = begin(server, kind, 32)
    until(lambda: len(ledger.threads) == 32)

    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 1)

    assert server.run(look_up())
    ledger.gate("at work").open()
    assert all_ok(calls)


def test_plain_handlers_do_not_wait_for_the_default_executor(serve, ledger, kind):
    server, go = serve(), threading.Event()

    async def fill():
        loop = asyncio.get_running_loop()
        return [loop.run_in_executor(None, go.wait, DEADLINE) for _ in range(64)]

    server.run(fill())
    try:
        assert server.client.call(kind, order(), "key").ok
    finally:
        go.set()


def test_a_store_reconnects_while_plain_handlers_hold_all_threads(serve, ledger, own_redis_server):
    server = serve(own_redis_server.url.replace("127.0.0.1", "localhost"))
    calls = begin(server, Kind.UNARY, 31)
    until(lambda: len(ledger.threads) == 31)
    own_redis_server.kill()
    own_redis_server.restart()  # so that each connection is made again, by its name
    assert server.client.persist(Kind.UNARY, order(), "key").ok
    ledger.gate("at work").open()
    for call in calls:
        call.answer()


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class SetsTenant(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, handler_call_details):
        tenant.set("alice")
        return await continuation(handler_call_details)


def test_context_variables_are_passed_on(serve, ledger, pool, kind):
    seen = []
    started = ledger.start

    def start(request, context):
        seen.append((tenant.get(), current() is not None))
        return started(request, context)

    ledger.start = start
    for settings in ({}, {"executor": pool}):
        server = serve(before=[SetsTenant()], **settings)
        request = order()
        assert server.client.call(kind, request, request.order).ok
    assert seen == [("alice", True)] * 2


def test_the_own_pool_ends_with_drain_and_is_made_again(serve, ledger, kind):
    server = serve()
    for number in range(3):
        assert server.client.call(kind, order(), f"key-{number}").ok
        assert [thread.name for thread in ledger.threads_alive] == ["idem_grpc handler_0"]
        assert server.drain(DEADLINE) == 0
        until(lambda: not ledger.threads_alive)


def test_the_own_pool_ends_with_the_interceptor(serve, ledger):
    server = serve()
    assert server.client.call(Kind.UNARY, order(), "key").ok
    assert ledger.threads_alive
    threads = server.interceptor._threads
    threads._own = None  # as if the interceptor was dropped without drain
    until(lambda: not ledger.threads_alive)


def test_a_given_pool_is_not_shut_down(serve, ledger, pool):
    server = serve(executor=pool)
    assert server.client.call(Kind.UNARY, order(), "key").ok
    assert server.drain(DEADLINE) == 0
    assert pool.submit(int).result() == 0


def test_after_the_pool_was_shut_down_nothing_runs_and_the_key_stays_free(serve, ledger, pool, kind):
    server, request = serve(executor=pool, default=Policy(on_unclear=idem_grpc.OnUnclear.FAIL)), order()
    pool.shutdown()
    answer = server.client.call(kind, request, "key")
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert "was not run" in answer.details
    assert server.drain(DEADLINE) == 0
    assert server.record("key", kind).state is State.OPEN
    assert not ledger.all_runs


def test_a_handler_that_raises_stop_iteration_ends(serve, ledger, kind):
    """As next() raises it on an empty request stream; a future cannot hold it."""

    def start(request, context):
        raise StopIteration

    ledger.start = start
    server = serve()
    answer = server.client.call(kind, order(), "key", timeout=DEADLINE)
    assert answer.code is grpc.StatusCode.UNKNOWN
    assert server.drain(DEADLINE) == 0


@pytest.mark.parametrize("wrong", [8, "threads", ThreadPoolExecutor, ProcessPoolExecutor(1)])
def test_an_executor_that_is_no_thread_pool_is_refused(face, wrong):
    async def construct():
        async with idem_grpc.aio.open_store("memory:") as store:
            with pytest.raises(TypeError, match="ThreadPoolExecutor, such as"):
                idem_grpc.aio.ServerInterceptor(store, scope=SHARED, executor=wrong)

    asyncio.run(construct())
