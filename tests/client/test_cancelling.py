"""A call that is cancelled ends at once, wherever it is."""

import threading

import grpc
import pytest

from tests.client.faces import Cancelled, Watched
from tests.server.client import Kind
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer, fail, hang
from tests.support.wait import until


def check_cancelled(call):
    with pytest.raises(Cancelled):
        call.responses()
    check_status(call)


def check_status(call):
    assert call.cancelled()
    assert call.done()
    assert not call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert call.details() == "Locally cancelled by application!"
    assert call.initial() == call.trailing() == {}


@pytest.mark.parametrize(
    ("step", "backoff"),
    [(fail(), 3600), (fail(pushback=3_600_000), 0.001)],
    ids=["backoff", "pushback"],
)
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
def test_while_it_waits_for_the_next_attempt(face, script, kind, step, backoff, is_read):
    server = script(step, answer())
    retry = Watched(initial_backoff=backoff, max_backoff=backoff)
    call = face.client(server, retry=retry).begin(kind)
    reading = call.reading() if is_read else None
    done = call.when_done()
    until(lambda: retry.waits)
    assert call.cancel()
    assert done.result(DEADLINE) is call.rpc
    if reading is None:
        check_cancelled(call)
    else:
        assert isinstance(reading.exception(DEADLINE), Cancelled)
        check_status(call)
    assert len(server.seen) == 1


def test_in_flight_it_ends_at_the_server(face, script, kind):
    server = script(fail(), hang())
    call = face.client(server).begin(kind)
    done = call.when_done()
    server.await_calls(2)
    assert call.cancel()
    assert done.result(DEADLINE) is call.rpc
    check_cancelled(call)
    assert server.seen[1].is_gone.wait(DEADLINE)
    assert len(server.seen) == 2


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI], ids=lambda kind: kind.value)
def test_a_stream_of_which_part_was_read(face, script, kind):
    server = script(answer(1, reads=0, until=threading.Event()))
    call = face.client(server).begin(kind)
    assert call.next().part == 1
    assert call.cancel()
    check_cancelled(call)
    assert server.seen[0].is_gone.wait(DEADLINE)
    assert len(server.seen) == 1
