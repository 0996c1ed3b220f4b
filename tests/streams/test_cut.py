"""A request stream that was cut before its end is never taken for a whole one.

In grpc.aio it looks like one, in grpc one in five does, and the handler would answer, and
keep, half an upload.
"""

import asyncio
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from typing import Any

import grpc
import pytest

from idem_grpc._core.problem import Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.ledger import SERVICE, Gate
from tests.server.processes import ENVIRONMENT, ROOT
from tests.streams.scripts import Cross, Read, Send
from tests.streams.servers import Conversation
from tests.streams.uploader import begin, kind_of
from tests.support.wait import until

BEGUN = 3  # messages of each upload arrive before it is cut
WHOLE = [b"one", b"two", b"three", b"four"]


class Uploads:
    """What the handlers saw of the uploads, by their keys."""

    def __init__(self):
        self.arrived = set()
        self.ends = defaultdict(list)
        self.gate = None  # where handlers wait before they read on, if they do

    def script(self, kind):
        def script(context):
            key = (yield Read()).decode()
            messages = 1
            try:
                while (yield Read()) is not None:
                    messages += 1
                    if messages == BEGUN:
                        gate = self.gate
                        self.arrived.add(key)
                        if gate is not None:
                            yield Cross(gate)
            except BaseException as error:
                self.ends[key].append(type(error))
                raise
            self.ends[key].append("whole")
            if kind is Kind.BIDI:
                yield Send(b"got it")
            return b"got it"

        return script


@pytest.fixture
def uploads():
    return Uploads()


@pytest.fixture
def server(start, uploads):
    kinds = (Kind.CLIENT_STREAM, Kind.BIDI)
    return start(scripts={kind: uploads.script(kind) for kind in kinds}, workers=64)


@pytest.fixture(params=["reading", "busy"])
def gate(request, uploads):
    """Handlers that are busy ask for the next message only once the stream is cut."""
    uploads.gate = gate = Gate()
    if request.param == "reading":
        gate.open()
    return gate


def keys(name, count):
    kinds = cycle((Kind.CLIENT_STREAM, Kind.BIDI))
    return [f"{kind.value}:{name}:{number}" for number, kind in enumerate(islice(kinds, count))]


def check_none_was_taken_for_whole(server, uploads, cut):
    """None is kept, and a whole retry of each runs and is."""
    assert server.drain(60) == 0
    for key in cut:
        assert "whole" not in uploads.ends[key]
        if uploads.ends[key]:
            assert uploads.ends[key] == [uploads.ends[key][0]]
            assert issubclass(uploads.ends[key][0], grpc.RpcError)
        assert server.record(key, kind_of(key)).state in (State.OPEN, State.ABSENT)
    retries = [Conversation(server.client, kind_of(key), key).send(key.encode(), *WHOLE).end() for key in cut]
    for key, retry in zip(cut, retries, strict=True):
        answer = retry.answer()
        assert answer.ok
        assert not answer.replayed
        assert uploads.ends[key][-1] == "whole"
        assert server.record(key, kind_of(key)).state is State.DONE


def cut_by_cancel(server, uploads, gate, cut):
    begun = [begin(server.client, key) for key in cut]
    until(lambda: uploads.arrived >= set(cut))
    for upload in begun:
        upload.cancel()
        assert not upload.answer().ok
    gate.open()


def test_cut_by_cancel(server, uploads, gate):
    cut = keys("cancelled", 40)
    cut_by_cancel(server, uploads, gate, cut)
    check_none_was_taken_for_whole(server, uploads, cut)
    assert all(uploads.ends[key] for key in cut)


def test_cut_by_the_deadline(server, uploads, gate):
    cut, deadline = keys("late", 40), 0.4
    begun = [begin(server.client, key, timeout=deadline) for key in cut]
    for upload in begun:
        assert upload.answer().code is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open()
    check_none_was_taken_for_whole(server, uploads, cut)
    assert len(uploads.arrived) > len(cut) / 2  # else the deadline has tried little


def test_cut_by_the_death_of_the_client(server, uploads):
    cut = keys("killed", 40)
    command = [sys.executable, "-m", "tests.streams.uploader", server.address, *cut]
    client = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)
    try:
        until(lambda: uploads.arrived >= set(cut))
    finally:
        client.kill()
        client.wait()
    check_none_was_taken_for_whole(server, uploads, cut)
    assert all(uploads.ends[key] for key in cut)


@contextmanager
def burning(threads):
    """Threads of this process that leave the others little time."""
    over = False

    def burn():
        while not over:
            sum(range(1000))

    burners = [threading.Thread(target=burn) for _ in range(threads)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        over = True
        for burner in burners:
            burner.join()


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_cut_while_the_process_is_busy(server, uploads, gate):
    """The sign that tells a cut stream from a whole one comes late then."""
    cut = keys("starved", 20)
    with burning(2):
        cut_by_cancel(server, uploads, gate, cut)
        assert server.drain(60) == 0
    check_none_was_taken_for_whole(server, uploads, cut)


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], indirect=True, ids=lambda kind: kind.value)
def test_a_handler_that_makes_the_best_of_half_a_stream_is_not_kept(start, kind, key):
    """Its answer tells of a cut stream, whatever its status: a whole retry gets one of its own."""
    begun = Gate()

    def script(context):
        messages = []
        try:
            while (message := (yield Read())) is not None:
                messages.append(message)
                begun.reached.set()
        except grpc.RpcError:
            messages.append(b"and no more")
        if kind is Kind.BIDI:
            yield Send(b",".join(messages))
        return b",".join(messages)

    server = start(scripts={kind: script})
    call = Conversation(server.client, kind, key).send(b"one")
    begun.await_arrival()
    call.cancel()
    assert server.drain(30) == 0
    assert server.record(key, kind).state is State.OPEN
    whole = Conversation(server.client, kind, key).send(*WHOLE).end().answer()
    assert whole.messages == (b",".join(WHOLE),)
    assert not whole.replayed


async def echo_in_a_group(requests, context):
    read = asyncio.Queue[bytes | None]()

    async def pass_on():
        async for request in requests:
            read.put_nowait(request)
        read.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        group.create_task(pass_on())
        while (request := await read.get()) is not None:
            await context.write(request)


async def echo_beside(requests, context):
    """Whose reader tells it nothing of a stream that breaks off."""
    read = asyncio.Queue[bytes | None]()

    async def pass_on():
        with suppress(grpc.RpcError):
            async for request in requests:
                read.put_nowait(request)
            read.put_nowait(None)

    reading = asyncio.create_task(pass_on())
    while (request := await read.get()) is not None:
        await context.write(request)
    await reading


@pytest.mark.parametrize("style", ["aio"], indirect=True)
@pytest.mark.parametrize("echo", [echo_in_a_group, echo_beside])
def test_a_handler_that_reads_in_a_task_of_its_own_does_not_outwait_a_cut(start, key, echo):
    methods: dict[str, Any] = {Kind.BIDI.value: grpc.stream_stream_rpc_method_handler(echo)}
    handler = grpc.method_handlers_generic_handler(SERVICE, methods)
    server = start(scripts={}, handlers=[handler])
    call = Conversation(server.client, Kind.BIDI, key).send(b"one")
    assert call.receive() == b"one"
    call.cancel()
    until(lambda: server.record(key, Kind.BIDI).state is State.OPEN)
    assert server.drain(30) == 0
    for _ in range(2):
        again = Conversation(server.client, Kind.BIDI, key).send(*WHOLE).end().answer()
        assert again.messages == tuple(WHOLE)
    assert again.replayed


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_a_stream_cut_after_its_last_message_but_before_its_end_is_cut(server, uploads, gate):
    """All messages of the whole are there: only the end tells that no more were to come."""
    cut = keys("endless", 10)
    begun = [begin(server.client, key).send(*WHOLE[BEGUN - 1 :]) for key in cut]
    until(lambda: uploads.arrived >= set(cut))
    for upload in begun:
        upload.cancel()
    gate.open()
    check_none_was_taken_for_whole(server, uploads, cut)


def test_a_retry_that_waits_for_a_cut_run_is_told_to_come_again(server, uploads):
    """The cut is its first caller's affair; the retry, which is there, must not be told of a cancel."""
    uploads.gate = gate = Gate()
    (key,) = keys("overtaken", 1)
    first = begin(server.client, key)
    until(lambda: key in uploads.arrived)
    first.cancel()
    retry = Conversation(server.client, kind_of(key), key).send(key.encode(), *WHOLE).end()
    until(lambda: server.drain(0) == 2)
    gate.open()
    answer = retry.answer()
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.IN_PROGRESS)
    assert not answer.replayed
    uploads.gate = None
    again = Conversation(server.client, kind_of(key), key).send(key.encode(), *WHOLE).end().answer()
    assert again.ok
