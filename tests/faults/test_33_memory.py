"""A call leaves nothing in memory once it is over, even without garbage collection.

Objects that grpc itself leaves are not counted: in asyncio a closure for each call that an
interceptor sees, and in clients the traceback of each error.
"""

import asyncio
import gc
import logging
import threading
import tracemalloc
from collections import Counter
from contextlib import suppress
from functools import partial
from uuid import uuid4

import grpc
import pytest

from idem_grpc import KeyRule, OnCancel, Policy, Reason, StoreUnavailable
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, Ledger, order, run
from tests.server.stores import watched
from tests.streams.stores import barred
from tests.support.wait import until

pytestmark = pytest.mark.parametrize(
    ("face", "plain"), [("sync", False), ("aio", False), ("aio", True)], indirect=["face"]
)

CALLS = 5
LARGE = 3 << 20
PATIENT = Policy(wait=600)

COUNTED = {
    "tests_pb.v1.ledger_pb2.LedgerRequest",
    "tests_pb.v1.ledger_pb2.LedgerResponse",
    "grpc._server._RPCState",
    "grpc._server._Context",
    "grpc._cython.cygrpc.RPCState",
    "grpc._cython.cygrpc._ServicerContext",
}
LASTING = (
    "idem_grpc.stores.",
    "idem_grpc._core.policy.",
    "idem_grpc._core.methods.",
    # The keeper forgets the renewals of runs that are over by the hundred.
    "idem_grpc._server.keeper.",
    "idem_grpc._core.swap.Swap",
    "idem_grpc._core.execution.Lease",
    # A request stream's fingerprint, which is counted, has two of them.
    "idem_grpc._core.digest.Digest",
)


class Forgetful(Ledger):
    """A ledger that does not keep its runs."""

    def start(self, request, context):
        started = super().start(request, context)
        self.all_runs.clear()
        return started


def held():
    """The number of objects of each class that belongs to a call in a server."""
    names = Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects())
    ours = {name for name in names if name.startswith("idem_grpc.") and not name.startswith(LASTING)}
    return {name: names[name] for name in ours | COUNTED}


def more(now, before):
    """The classes with more objects than before. An asyncio server holds its last call until the next."""
    more = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in more.items() if count > 1}


@pytest.fixture(autouse=True)
def uncollected():
    logging.disable()  # the records that pytest keeps have exceptions, and those have frames
    gc.collect()
    gc.freeze()  # what is there already is not looked at
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    logging.disable(logging.NOTSET)


@pytest.fixture
def serve(start, plain):
    return partial(start, plain=plain, ledger=Forgetful())


def assert_nothing_stays(server, **calls):
    """Make each of ``calls`` a few times. Raises AssertionError if that leaves more objects than before."""
    for call in calls.values():
        call()  # what is made once stays
    before = settled(server)
    for name, call in calls.items():
        for _ in range(CALLS):
            call()

        with suppress(AssertionError):
            until(lambda: not more(settled(server), before), step=0.05)
        assert more(settled(server), before) == {}, name


def settled(server):
    assert server.drain(DEADLINE) == 0
    server.client._sent.clear()
    return held()


def send(server, kind, *runs, key=None, **options):
    """Begin a call. The client deals in bytes, so that all messages are those of the server."""
    request = order(*runs).SerializeToString()
    return server.client.begin(kind, request, key or uuid4().hex, **options)


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_nothing_stays_of_a_run(serve, kind, on_cancel):
    server = serve(default=Policy(on_cancel=on_cancel))

    def ends(*args, **settings):
        return lambda: send(server, kind, run(*args, **settings)).answer()

    assert_nothing_stays(
        server,
        answer=ends(),
        abort=ends(code=grpc.StatusCode.NOT_FOUND),
        rich_status=ends("ABORT_WITH_STATUS", grpc.StatusCode.ABORTED),
        exception=ends("RAISE"),
        code=ends("SET_CODE", grpc.StatusCode.INTERNAL),
        no_response=ends("NONE"),
    )


def test_nothing_stays_of_a_duplicate(serve, kind, key):
    server, request, other = serve(), order().SerializeToString(), order().SerializeToString()
    declined = order(run(code=grpc.StatusCode.NOT_FOUND)).SerializeToString()
    server.client.call(kind, request, key)
    assert_nothing_stays(
        server,
        replay=lambda: server.client.call(kind, request, key),
        replayed_error=lambda: server.client.call(kind, declined, key + "-declined"),
        another_request=lambda: server.client.call(kind, other, key),
        malformed=lambda: server.client.call(kind, b"\xff\xff\xff", uuid4().hex),
    )


def test_nothing_stays_of_a_refusal(serve, kind):
    def fail(call):
        raise LookupError(call.method)

    server = serve(scope=fail, default=Policy(key=KeyRule.REQUIRED))
    assert_nothing_stays(
        server,
        no_key=lambda: server.client.call(kind, b"", None),
        two_keys=lambda: server.client.call(kind, b"", ["one", "two"]),
        no_scope=lambda: server.client.call(kind, b"", "key"),
    )


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_nothing_stays_of_a_call_whose_caller_left(serve, kind, on_cancel):
    server = serve(default=Policy(on_cancel=on_cancel))

    def leave():
        gate = uuid4().hex
        call = send(server, kind, run(gate=gate))
        server.ledger.gate(gate).await_arrival()
        call.cancel()
        call.answer()
        server.ledger.gate(gate).open()
        server.ledger._gates.clear()

    assert_nothing_stays(server, leave=leave)


def test_nothing_stays_of_a_request_stream_that_was_cut(serve, kind):
    if not kind.has_request_stream:
        kind = Kind.BIDI
    server = serve()

    def cut():
        more, key, begun = threading.Event(), uuid4().hex, uuid4().hex

        def requests():
            yield order(run(responses_before_gate=0, gate=begun)).SerializeToString()
            more.wait(DEADLINE)

        method = getattr(server.client.channel, kind.arity)(kind.path)
        call = (method if kind.has_response_stream else method.future)(
            requests(), metadata=(("idempotency-key", key),), timeout=DEADLINE
        )
        if kind.has_response_stream:
            server.ledger.gate(begun).await_arrival()
            server.ledger.gate(begun).open()
            next(call)
        call.cancel()
        more.set()
        server.ledger.open_all()
        server.ledger._gates.clear()

    assert_nothing_stays(server, cut=cut)


def test_nothing_stays_where_the_store_is_away(face, serve, kind, key):
    away = threading.Event()

    def bar(swap):
        if away.is_set():
            raise StoreUnavailable("away")

    server = serve(store=barred(open_store(face, "memory:", "away"), bar))

    def refused():
        away.set()
        assert send(server, kind).answer().reason is Reason.STORE_UNAVAILABLE
        away.clear()

    def pending():
        gate = uuid4().hex
        call = send(server, kind, run(gate=gate, responses_before_gate=0))
        server.ledger.gate(gate).await_arrival()
        away.set()
        server.ledger.gate(gate).open()
        assert call.answer().reason is Reason.OUTCOME_PENDING
        away.clear()
        server.ledger._gates.clear()

    assert_nothing_stays(server, refused=refused, pending=pending)


def test_duplicates_that_left_are_let_go_while_the_run_lasts(face, serve, kind, key):
    store = watched(open_store(face, "memory:", "leaving"))
    server = serve(store=store, max_waiters=20, default=PATIENT)
    request = order(run(gate="at work", responses_before_gate=0)).SerializeToString()
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    before = held()

    def came(calls):
        return len(store.swaps) == calls

    for number in range(2 * CALLS):
        duplicate = server.client.begin(kind, request, key)
        until(partial(came, 2 + number))
        duplicate.cancel()
        duplicate.answer()
    until(lambda: server.drain(0) == 1)
    server.client._sent.clear()
    with suppress(AssertionError):
        until(lambda: not more(held(), before), deadline=5, step=0.05)
    assert more(held(), before) == {}
    server.ledger.gate("at work").open()
    assert first.answer().ok


def test_large_requests_do_not_wait_for_a_collection(serve, kind):
    server = serve()
    large = order(filler=bytes(LARGE)).SerializeToString()

    def call():
        assert server.client.call(kind, large, uuid4().hex).ok
        assert server.drain(DEADLINE) == 0
        server.client._sent.clear()

    call()
    tracemalloc.start()
    try:
        for _ in range(2 * CALLS):
            call()
        with suppress(AssertionError):
            until(lambda: tracemalloc.get_traced_memory()[0] < 2 * LARGE, deadline=5)
        now, _ = tracemalloc.get_traced_memory()
        assert now < 2 * LARGE
    finally:
        tracemalloc.stop()


class Stepwise(grpc.aio.ServerInterceptor):
    """An interceptor outside, which waits for each response in a task of its own, as wait_for does."""

    async def intercept_service(self, continuation, handler_call_details):
        handler = await asyncio.create_task(continuation(handler_call_details))
        assert handler is not None
        behavior = handler.unary_stream or handler.stream_stream

        async def stepwise(request, context):
            responses = aiter(behavior(request, context))
            while True:
                try:
                    response = await asyncio.create_task(anext(responses))
                except StopAsyncIteration:
                    return
                yield response

        new = grpc.stream_stream_rpc_method_handler
        return (new if handler.request_streaming else grpc.unary_stream_rpc_method_handler)(stepwise)


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_streams_that_are_read_in_other_tasks_are_whole_and_let_go(face, serve, kind, on_cancel):
    if face == "sync" or not kind.has_response_stream:
        kind = Kind.SERVER_STREAM
    outside = [Stepwise()] if face == "aio" else []
    server = serve(before=outside, default=Policy(on_cancel=on_cancel))

    def whole():
        answer = send(server, kind, run(responses=8)).answer()
        assert answer.ok
        assert len(answer.messages) == (8 if kind is Kind.SERVER_STREAM else 1)

    def leave():
        gate = uuid4().hex
        call = send(server, kind, run(gate=gate, responses_before_gate=1, responses=3))
        server.ledger.gate(gate).await_arrival()
        call.cancel()
        call.answer()
        server.ledger.gate(gate).open()
        server.ledger._gates.clear()

    for call in (whole, leave):
        call()
    before = settled(server)
    for _ in range(CALLS):
        whole()
        leave()
    theirs = {"grpc._cython.cygrpc.RPCState", "grpc._cython.cygrpc._ServicerContext"}  # a cycle of its own

    def ours():
        return {name: count for name, count in more(settled(server), before).items() if name not in theirs}

    with suppress(AssertionError):
        until(lambda: not ours(), deadline=5, step=0.05)
    assert ours() == {}
