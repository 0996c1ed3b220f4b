"""Callers that leave, and on_cancel, which decides whether their handlers go on."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import grpc
import pytest

from idem_grpc import OnCancel, OnUnclear, Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Do, Read, Send
from tests.streams.servers import Conversation
from tests.streams.stores import held
from tests.support.wait import until

KINDS = [Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM]
MESSAGES = 20

one_way = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
streams = pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI], ids=lambda kind: kind.value)
coroutines = pytest.mark.parametrize("style", ["aio", "aio-read-write"], indirect=True)
threads = pytest.mark.parametrize("style", ["sync", "aio-thread"], indirect=True)


class Work:
    """A handler that waits at a gate once it has its whole request, and records what it sees of its call."""

    def __init__(self, kind):
        self.kind = kind
        self.gate = Gate()
        self.runs = 0
        self.ended = []
        self.called_back = threading.Event()
        self.registered = []
        self.context: Any = None

    def script(self, context):
        self.runs += 1
        self.context = context
        add = getattr(context, "add_callback", None) or context.add_done_callback
        self.registered.append(add(lambda *_: self.called_back.set()))
        try:
            while (yield Read()) is not None:
                pass
            if self.kind.has_response_stream:
                yield Send(b"first")
            yield Cross(self.gate)
            for number in range(MESSAGES) if self.kind.has_response_stream else ():
                yield Send(b"%d" % number)
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("whole")
        return b"done"

    def begin(self, server, key):
        return Conversation(server.client, self.kind, key, timeout=None).send(b"one").end()

    def leave(self, server, key):
        """Begin a call whose caller leaves while the handler is at its gate."""
        call = self.begin(server, key)
        self.gate.await_arrival()
        call.cancel()
        assert call.answer().code is grpc.StatusCode.CANCELLED

    def sees_caller(self):
        context = self.context
        return context.is_active() if hasattr(context, "is_active") else not context.cancelled()


@pytest.fixture
def work(kind):
    return Work(kind)


@pytest.fixture
def finishing(start, work):
    return start(scripts={work.kind: work.script})


@pytest.fixture(params=[OnUnclear.RERUN, OnUnclear.FAIL], ids=lambda rule: rule.name)
def stopping(request, start, work):
    policy = Policy(on_cancel=OnCancel.CANCEL, on_unclear=request.param)
    server = start(scripts={work.kind: work.script}, default=policy)
    server.left = State.OPEN if request.param is OnUnclear.RERUN else State.UNKNOWN
    return server


def check_end(server, work, key):
    """Check that the run ended unclear: a retry runs again, or is refused under FAIL."""
    until(lambda: server.record(key, work.kind).state is not State.RUNNING)
    assert server.record(key, work.kind).state is server.left
    work.gate.open()
    retry = work.begin(server, key).answer()
    if server.left is State.OPEN:
        assert retry.ok
        assert not retry.replayed
        assert work.ended[-1] == "whole"
    else:
        assert retry.reason is Reason.OUTCOME_UNKNOWN
    assert work.runs == (2 if server.left is State.OPEN else 1)


@one_way
def test_finish_is_the_default(finishing, work, key):
    work.leave(finishing, key)
    assert finishing.drain(0) == 1
    assert work.sees_caller()
    assert not work.called_back.is_set()
    work.gate.open()
    until(lambda: finishing.record(key, work.kind).state is State.DONE)
    assert work.called_back.wait(30)
    assert work.ended == ["whole"]
    assert work.begin(finishing, key).answer().replayed


@one_way
@coroutines
def test_cancel_cancels_a_coroutine(stopping, work, key):
    work.leave(stopping, key)
    until(lambda: work.ended)
    assert work.ended == ["CancelledError"]
    check_end(stopping, work, key)


@pytest.mark.parametrize("kind", [*KINDS, Kind.BIDI], ids=lambda kind: kind.value)
@coroutines
def test_a_coroutine_is_cancelled_once(start, kind, key):
    """Its cleanup, such as a rollback, is not cancelled too."""
    at_work, rollback, readers, ends = Gate(), Gate(), [], []

    async def read_on(context):
        with suppress(grpc.RpcError):  # which says that the stream broke off
            await context.read()

    def script(context):
        yield Read()
        if kind is Kind.BIDI:
            yield Do(lambda: readers.append(asyncio.create_task(read_on(context))))
        try:
            yield Cross(at_work)
        finally:
            try:
                yield Cross(rollback)
                ends.append("rolled back")
            except asyncio.CancelledError:
                ends.append("cancelled again")

    server = start(scripts={kind: script}, default=Policy(on_cancel=OnCancel.CANCEL))
    call = Conversation(server.client, kind, key, timeout=None).send(b"one")
    if kind is not Kind.BIDI:
        call.end()
    at_work.await_arrival()
    call.cancel()
    rollback.await_arrival()
    server.stop(0)  # after which all cancels are delivered
    rollback.open()
    assert server.drain(30) == 0
    assert ends == ["rolled back"]


@one_way
@threads
def test_a_thread_can_see_the_cancel(stopping, work, key):
    """A thread cannot be stopped, and its key is not free while it runs."""
    work.leave(stopping, key)
    assert work.called_back.wait(30)
    until(lambda: not work.sees_caller())
    assert work.context.time_remaining() is not None
    assert stopping.record(key, work.kind).state is State.RUNNING
    assert stopping.drain(0) == 1
    work.gate.open()
    until(lambda: stopping.drain(0) == 0)
    if work.kind.has_response_stream:
        assert work.ended != ["whole"]  # it is stopped where it wants to send
        check_end(stopping, work, key)
    else:
        assert work.ended == ["whole"]  # it did not want to stop, and its answer stands
        assert stopping.record(key, work.kind).state is State.DONE
        assert work.begin(stopping, key).answer().replayed


@one_way
@threads
def test_a_thread_that_stops_at_the_cancel_leaves_an_unclear_end(start, key, kind):
    left = threading.Event()
    arrived = Gate()

    def script(context):
        context.add_callback(left.set)
        arrived.reached.set()
        yield Do(lambda: left.wait(30))
        yield Do(lambda: context.abort(grpc.StatusCode.CANCELLED, "the caller went away"))

    server = start(scripts={kind: script}, default=Policy(on_cancel=OnCancel.CANCEL))
    call = Conversation(server.client, kind, key, timeout=None).send(b"one").end()
    arrived.await_arrival()
    call.cancel()
    until(lambda: server.record(key, kind).state is State.OPEN)


@one_way
def test_cancel_before_the_handler_began(start, open_one, work, key):
    """The caller may leave while the key is claimed: a handler that must stop sees the cancel too."""
    claim, policy = Gate(), Policy(on_cancel=OnCancel.CANCEL)
    server = start(store=held(open_one(), claim), scripts={work.kind: work.script}, default=policy)
    call = work.begin(server, key)
    claim.await_arrival()
    call.cancel()
    assert call.answer().code is grpc.StatusCode.CANCELLED
    server.stop(0)  # by the end of which the server knows
    claim.open()
    until(lambda: server.drain(0) == 0 or work.gate.reached.is_set())
    if hasattr(work.context, "add_callback"):
        assert work.called_back.is_set() or work.registered == [False]
        assert not work.sees_caller()
        work.gate.open()
    assert server.drain(30) == 0
    assert work.ended != ["whole"] or not work.kind.has_response_stream


@streams
def test_the_answer_to_a_caller_that_left_is_kept(finishing, work, key):
    call = work.begin(finishing, key)
    assert call.receive() == b"first"
    work.gate.await_arrival()
    call.cancel()
    work.gate.open()
    until(lambda: finishing.record(key, work.kind).state is State.DONE)
    replay = work.begin(finishing, key).answer()
    assert replay.ok
    assert replay.replayed
    assert len(replay.messages) == 1 + MESSAGES
    assert work.runs == 1


@pytest.mark.parametrize("style", ["sync", "aio", "aio-thread"], indirect=True)
def test_a_generator_is_closed_before_its_key_is_free(start, key):
    """Its cleanup, such as a rollback, must not overlap the next run."""
    states, gate, is_gone = [], Gate(), threading.Event()

    def script(context):
        try:
            yield Send(b"first")
            yield Cross(gate)
            with suppress(AttributeError):
                context.add_callback(is_gone.set)
            while True:
                yield Send(b"more")
        finally:
            states.append(server.record(key, Kind.SERVER_STREAM).state)

    policy = Policy(on_cancel=OnCancel.CANCEL)
    server = start(scripts={Kind.SERVER_STREAM: script}, default=policy)
    call = Conversation(server.client, Kind.SERVER_STREAM, key, timeout=None).send(b"one").end()
    assert call.receive() == b"first"
    gate.open()
    call.receive()
    call.cancel()
    until(lambda: server.record(key, Kind.SERVER_STREAM).state is State.OPEN)
    until(lambda: states)
    assert states == [State.RUNNING]
