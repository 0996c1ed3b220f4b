"""Streams of requests: read once, in order, and sent again as long as they can be kept."""

import threading

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Retry
from idem_grpc._client.requests import KeptRequests, SyncRequests
from tests.server.client import RUN, Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import UNAVAILABLE, answer, fail, hang

CODE = grpc.StatusCode

kind = kinds(Kind.CLIENT_STREAM, Kind.BIDI)


def requests(number, filler=b""):
    return [pb.LedgerRequest(order="one", part=part, filler=filler) for part in range(number)]


def send(stub, kind, stream, **options):
    response = getattr(stub, kind.value)(stream, **options)
    return list(response) if kind is Kind.BIDI else [response]


def after(number, step):
    """Do ``step`` once so many requests were read."""

    def read_first(stream, context):
        for _ in range(number):
            next(stream)
        yield from step(stream, context)

    return read_first


def test_the_iterator_is_read_once_and_by_one_at_a_time(script, stub_of, kind):
    reading = threading.Lock()
    given = []

    def stream():
        for request in requests(5):
            assert reading.acquire(blocking=False)
            given.append(request.part)
            reading.release()
            yield request

    server = script(fail(), after(2, fail()), after(5, fail()), answer())
    send(stub_of(server), kind, stream())
    assert given == [0, 1, 2, 3, 4]
    assert server.seen[-1].parts == [0, 1, 2, 3, 4]
    for seen in server.seen:
        assert seen.parts == list(range(len(seen.parts)))


def test_the_size_is_not_given_as_the_reason_if_no_attempt_would_help(script, stub_of, kind):
    server = script(after(1, fail(CODE.NOT_FOUND)))
    with pytest.raises(grpc.RpcError) as caught:
        send(stub_of(server, retry=Retry(max_request_bytes=0)), kind, iter(requests(1)))
    assert not hasattr(caught.value, "__notes__")


def test_an_iterator_that_fails_fails_the_call(script, stub_of, kind, caplog):
    def stream():
        yield from requests(2)
        raise LookupError("nothing more")

    server = script(answer())
    with pytest.raises(grpc.RpcError) as caught:
        send(stub_of(server), kind, stream())
    assert caught.value.code() is CODE.UNKNOWN  # as grpc has it
    assert caught.value.details() == "Exception iterating requests!"


def test_what_waits_for_a_request_when_its_attempt_fails_leaves_it_to_the_next(script, stub_of):
    """The thread of the first attempt is in the caller's iterator, and comes back in the second."""

    def stream():
        yield requests(1)[0]
        server.await_calls(2)
        yield from requests(3)[1:]

    server = script(after(1, fail()), answer())
    assert stub_of(server).ClientStream(stream())
    assert server.seen[-1].parts == [0, 1, 2]


def test_taking_turns_goes_on_across_attempts(script, stub_of):
    """Each request is made of the response before it; the server breaks off twice."""

    def turns(until):
        def step(stream, context):
            context.send_initial_metadata(((RUN, "r"),))
            for number, request in enumerate(stream):
                if number == until:
                    context.abort(UNAVAILABLE, "broken off")
                yield pb.LedgerResponse(part=request.part * 2)

        return step

    server = script(turns(1), turns(3), turns(None))
    answered = threading.Semaphore(0)
    last = 1

    def stream():
        for _ in range(6):
            yield pb.LedgerRequest(part=last)
            assert answered.acquire(timeout=DEADLINE)

    call = stub_of(server).Bidi(stream())
    for response in call:
        last = response.part
        answered.release()
    assert last == 2**6
    assert call.code() is CODE.OK
    assert server.seen[-1].parts == [1, 2, 4, 8, 16, 32]
    assert len(server.seen) == 3


def test_the_end_of_a_call_ends_the_reading_of_requests(script, stub_of):
    """grpc's thread takes one request more, as it does without us, and no others."""
    gate = threading.Event()
    given = []

    def stream():
        for request in requests(100):
            given.append(request)
            yield request
            gate.wait(DEADLINE)

    server = script(hang(threading.Event()))
    call = stub_of(server).Bidi(stream())
    server.await_calls(1)
    call.cancel()
    gate.set()
    assert server.seen[0].is_gone.wait(DEADLINE)
    assert len(given) <= 2


class TestFeeds:
    def test_one_that_gave_way_has_ended(self):
        source = SyncRequests(iter("abc"), 0)
        first = source.feed()
        assert next(first) == "a"
        source.feed()
        assert list(first) == []

    def test_what_is_neither_protobuf_nor_bytes_is_not_kept(self):
        source = SyncRequests(iter("abc"), 10**6)
        assert list(source.feed()) == ["a", "b", "c"]
        assert not source.is_whole

    def test_bytes_are(self):
        source = SyncRequests([b"a", b"b"], 2)
        assert list(source.feed()) == [b"a", b"b"]
        assert source.is_whole
        assert list(source.feed()) == [b"a", b"b"]

    def test_nothing_is_given_once_it_is_closed(self):
        source = SyncRequests(iter([b"a"]), 10)
        feed = source.feed()
        source.close()
        assert list(feed) == []


@given(sizes=st.lists(st.integers(0, 20), max_size=12), limit=st.integers(0, 100))
def test_what_is_kept(sizes, limit):
    sent = KeptRequests(limit)
    messages = [b"x" * size for size in sizes]
    for number, message in enumerate(messages):
        sent.add(message)
        assert sent.count == number + 1
        assert sent.is_whole is (sum(sizes[: number + 1]) <= limit)
        assert sent.at(number) == message
    if sent.is_whole:
        assert [sent.at(number) for number in range(sent.count)] == messages
