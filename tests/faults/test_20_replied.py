"""Every keyed call is reported once, also if its caller has left."""

import asyncio
import threading
from collections import Counter
from contextlib import suppress

import grpc
import pytest

from idem_grpc import KeyRule, Policy, Reason, Reporter
from idem_grpc._core.outcome import Code
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, order, run
from tests.server.stores import watched
from tests.support.wait import until

pytestmark = pytest.mark.parametrize(
    ("face", "plain"), [("sync", False), ("aio", False), ("aio", True)], indirect=["face"]
)

PATIENT = Policy(wait=600)


class Events(Reporter):
    """Records the reported replies."""

    def __init__(self):
        self.replies = []

    def replied(self, event):
        self.replies.append(event)

    def count(self):
        return Counter((event.code, event.reason, event.replayed) for event in self.replies)


@pytest.fixture
def events():
    return Events()


def at_work(kind):
    """A run that waits at its gate once its request has arrived completely."""
    return {"gate": "at work", "responses_before_gate": 3 if kind is Kind.BIDI else 0}


def cancel(call):
    call.cancel()
    assert call.answer().code is grpc.StatusCode.CANCELLED


def test_a_run_whose_caller_left_is_reported(start, plain, events, kind, key):
    server, request = start(plain=plain, reporter=events), order(run(**at_work(kind)))
    call = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    cancel(call)
    server.ledger.gate("at work").open()
    assert server.drain(DEADLINE) == 0
    (event,) = until(lambda: events.replies)
    retry = server.client.call(kind, request, key)
    assert (event.code, event.reason, event.replayed, event.run) == (Code.OK, None, False, retry.run)
    assert events.count() == {(Code.OK, None, False): 1, (Code.OK, None, True): 1}


def test_an_error_whose_caller_left_is_reported(start, plain, events, kind, key):
    server = start(plain=plain, reporter=events)
    request = order(run(code=grpc.StatusCode.NOT_FOUND, **at_work(kind)))
    call = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    cancel(call)
    server.ledger.gate("at work").open()
    assert server.drain(DEADLINE) == 0
    until(lambda: events.replies)
    assert events.count() == {(Code.NOT_FOUND, None, False): 1}


def test_a_request_stream_that_was_cut_is_reported(start, plain, events, kind, key):
    if not kind.has_request_stream:
        kind = Kind.CLIENT_STREAM
    server, request = start(plain=plain, reporter=events), order(run())
    more = threading.Event()

    def requests():
        yield request.SerializeToString()
        more.wait(DEADLINE)

    method = getattr(server.client.channel, kind.arity)(kind.path)
    send = method if kind.has_response_stream else method.future
    call = send(requests(), metadata=(("idempotency-key", key),), timeout=DEADLINE)
    until(lambda: server.ledger.all_runs)
    call.cancel()
    more.set()
    until(lambda: events.replies)
    assert server.drain(DEADLINE) == 0
    assert len(events.replies) == 1


def test_waiting_duplicates_whose_callers_left_are_reported(face, start, plain, events, kind, key):
    store = watched(open_store(face, "memory:", "replied"))
    server = start(store=store, plain=plain, reporter=events, max_waiters=10, default=PATIENT)
    request = order(run(**at_work(kind)))
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    leaving = [server.client.begin(kind, request, key) for _ in range(3)]
    until(lambda: len(store.swaps) == 4)
    for call in leaving:
        cancel(call)
    until(lambda: len(events.replies) == 3)
    staying = server.client.begin(kind, request, key)
    until(lambda: len(store.swaps) == 5)
    server.ledger.gate("at work").open()
    assert first.answer().ok
    assert staying.answer().replayed
    assert server.drain(DEADLINE) == 0
    assert events.count() == {
        (Code.UNAVAILABLE, Reason.IN_PROGRESS, False): 3,
        (Code.OK, None, False): 1,
        (Code.OK, None, True): 1,
    }


class Late(grpc.ServerInterceptor):
    """An interceptor outside, which passes a call on once its caller has left."""

    def __init__(self):
        self.arrived = threading.Event()

    def intercept_service(self, continuation, handler_call_details):
        handler = continuation(handler_call_details)
        assert handler is not None
        arity = ARITIES[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, arity)

        def late(request, context):
            gone = threading.Event()
            assert context.add_callback(gone.set)
            self.arrived.set()
            assert gone.wait(DEADLINE)
            return behavior(request, context)

        return getattr(grpc, f"{arity}_rpc_method_handler")(late)


class AsyncLate(grpc.aio.ServerInterceptor):
    """The same for asyncio, where a caller who leaves cancels the call."""

    def __init__(self):
        self.arrived = threading.Event()

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        assert handler is not None
        arity = ARITIES[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, arity)

        async def gone():
            self.arrived.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        async def late(request, context):
            await gone()
            return await behavior(request, context)

        async def late_stream(request, context):
            await gone()
            async for response in behavior(request, context):
                yield response

        streams = handler.response_streaming
        return getattr(grpc, f"{arity}_rpc_method_handler")(late_stream if streams else late)


ARITIES = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [(None, Reason.KEY_REQUIRED), (["one", "two"], Reason.KEY_INVALID)],
    ids=["by its method", "by its key"],
)
def test_a_refusal_whose_caller_left_is_reported(face, start, plain, events, kind, keys, reason):
    late = Late() if face == "sync" else AsyncLate()
    required = Policy(key=KeyRule.REQUIRED)
    server = start(plain=plain, reporter=events, before=[late], default=required)
    call = server.client.begin(kind, order(), keys)
    assert late.arrived.wait(DEADLINE)
    cancel(call)
    until(lambda: events.replies)
    assert server.drain(DEADLINE) == 0
    assert events.count() == {(Code.INVALID_ARGUMENT, reason, False): 1}
    assert not server.ledger.all_runs


def test_a_call_that_arrives_after_its_caller_left_is_reported(face, start, plain, events, kind, key):
    late = Late() if face == "sync" else AsyncLate()
    server = start(plain=plain, reporter=events, before=[late])
    call = server.client.begin(kind, order(), key)
    assert late.arrived.wait(DEADLINE)
    cancel(call)
    until(lambda: events.replies)
    assert server.drain(DEADLINE) == 0
    assert len(events.replies) == 1


def test_calls_that_were_answered_are_reported_once(start, plain, events, kind, key):
    server, request = start(plain=plain, reporter=events), order()
    assert server.client.call(kind, request, key).ok
    assert server.client.call(kind, request, key).replayed
    assert server.client.call(kind, order(), key).reason is Reason.KEY_REUSED
    assert server.drain(DEADLINE) == 0
    assert events.count() == {
        (Code.OK, None, False): 1,
        (Code.OK, None, True): 1,
        (Code.INVALID_ARGUMENT, Reason.KEY_REUSED, False): 1,
    }
