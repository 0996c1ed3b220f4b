"""A request stream that was cut before its end is never taken for a complete one.

In grpc.aio each looks complete, in grpc one in five does, and the handler would answer half an
upload, and the answer would be kept.
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
    """The requests that the handlers got, by key."""

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
    """A gate at which handlers wait before they read on, so that the stream is cut by then."""
    uploads.gate = gate = Gate()
    if request.param == "reading":
        gate.open()
    return gate


def keys(name, count):
    kinds = cycle((Kind.CLIENT_STREAM, Kind.BIDI))
    return [f"{kind.value}:{name}:{number}" for number, kind in enumerate(islice(kinds, count))]


def check_none_was_taken_for_whole(server, uploads, cut):
    """Check that no answer is kept, and that a complete retry of each call runs and is kept."""
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
    """Keep this process busy with threads."""
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
    """The event that distinguishes a cut stream from a complete one comes late then."""
    cut = keys("starved", 20)
    with burning(2):
        cut_by_cancel(server, uploads, gate, cut)
        assert server.drain(60) == 0
    check_none_was_taken_for_whole(server, uploads, cut)


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], indirect=True, ids=lambda kind: kind.value)
def test_the_answer_to_a_cut_stream_is_not_kept(start, kind, key):
    """With any status: a complete retry is run and gets an answer of its own."""
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


async def echo_with_a_reading_task(requests, context):
    """An echo handler whose reading task hides that the stream was cut."""
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
@pytest.mark.parametrize("echo", [echo_in_a_group, echo_with_a_reading_task])
def test_a_handler_that_reads_in_a_task_of_its_own_ends_when_its_stream_is_cut(start, key, echo):
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
    """The run has all messages, but cannot know that there are no more."""
    cut = keys("endless", 10)
    begun = [begin(server.client, key).send(*WHOLE[BEGUN - 1 :]) for key in cut]
    until(lambda: uploads.arrived >= set(cut))
    for upload in begun:
        upload.cancel()
    gate.open()
    check_none_was_taken_for_whole(server, uploads, cut)


def test_a_retry_that_waits_for_a_cut_run_is_in_progress(server, uploads):
    """The first caller has cancelled; the retry must not be CANCELLED too."""
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
