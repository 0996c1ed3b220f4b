"""Streams of requests are sent again whole, as long as they can be kept."""

import threading

import grpc
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Retry
from tests.client.faces import notes
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import UNAVAILABLE, answer, fail, turns

kind = kinds(Kind.CLIENT_STREAM, Kind.BIDI)

LARGE = [pb.LedgerRequest(filler=b"x" * 600, part=part) for part in range(4)]
SIZE = sum(request.ByteSize() for request in LARGE)


def test_one_message_may_serve_for_all_requests(face, script, kind):
    def requests():
        request = pb.LedgerRequest()
        for part in range(4):
            request.part = part
            yield request

    server = script(fail(reads=4), answer())
    face.client(server).send(kind, stream=requests())
    assert [seen.parts for seen in server.seen] == [[0, 1, 2, 3]] * 2


def test_up_to_the_limit_it_is_sent_again(face, script, kind):
    server = script(fail(reads=4), answer(), fail(reads=4), answer())
    face.client(server, retry=Retry(initial_backoff=0.001, max_request_bytes=SIZE)).send(kind, *LARGE)
    assert len(server.seen) == 2
    client = face.client(server, retry=Retry(initial_backoff=0.001, max_request_bytes=SIZE - 1))
    error = client.error_of(kind, *LARGE)
    assert error.code() is UNAVAILABLE
    assert notes(error) == [
        "idem_grpc: it was not sent again, since its request stream is larger than Retry(max_request_bytes=…)"
    ]
    assert len(server.seen) == 3
    client.send(kind, *LARGE)
    assert [seen.parts for seen in server.seen] == [[0, 1, 2, 3]] * 4


def test_it_may_be_sent_again_before_it_is_too_large(face, script, kind):
    def requests():
        yield LARGE[0]
        server.await_calls(2)
        yield from LARGE[1:]

    server = script(fail(reads=1), answer())
    retry = Retry(initial_backoff=0.001, max_request_bytes=1000)
    face.client(server, retry=retry).send(kind, stream=requests())
    assert server.seen[-1].parts == [0, 1, 2, 3], "the limit is passed in the second attempt, and all is sent"


def test_a_server_that_ends_the_call_in_the_middle_of_an_upload_is_heard(face, script, kind):
    requests = [pb.LedgerRequest(part=part, filler=b"x" * 1000) for part in range(200)]
    server = script(fail(reads=1), fail(reads=2), fail(grpc.StatusCode.NOT_FOUND, reads=3, details="gone"))
    error = face.client(server).error_of(kind, *requests)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert len(server.seen) == 3


def test_turns_are_taken_across_a_retry(face, script):
    """Each request is made of the response before it; the server breaks off twice."""
    server = script(turns("r", breaks_off_after=2), turns("r", breaks_off_after=3), turns("r"))
    answered = threading.Semaphore(0)
    last = 0

    def requests():
        for _ in range(5):
            yield pb.LedgerRequest(part=last + 1)
            assert answered.acquire(timeout=DEADLINE)

    call = face.client(server).begin(Kind.BIDI, stream=requests())
    found = []
    while (response := call.next()) is not None:
        found.append((response.entry, response.part))
        last = response.part
        answered.release()
    assert found == [("0", 1), ("0", 2), ("1", 3), ("2", 4), ("2", 5)]
    assert call.code() is grpc.StatusCode.OK
    assert server.seen[-1].parts == [1, 2, 3, 4, 5]
    assert len(server.seen) == 3
