"""A call that is cancelled ends at once, wherever it is."""

import threading

import grpc
import pytest

from tests.client.faces import PATIENT, Cancelled
from tests.server.client import Kind
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer, fail, hang


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
    ("step", "settings"),
    [(fail(), {"retry": PATIENT}), (fail(pushback=3_600_000), {})],
    ids=["backoff", "pushback"],
)
def test_while_it_waits_for_the_next_attempt(face, script, kind, step, settings):
    server = script(step, answer())
    call = face.client(server, **settings).begin(kind)
    server.await_calls(1)
    assert server.seen[0].is_gone.wait(DEADLINE)
    done = call.when_done()
    assert call.cancel()
    assert done.result(DEADLINE) is call.rpc
    check_cancelled(call)
    assert len(server.seen) == 1


def test_while_somebody_waits_for_its_responses(face, script, kind):
    server = script(fail(), answer())
    call = face.client(server, retry=PATIENT).begin(kind)
    reading = call.reading()
    server.await_calls(1)
    assert call.cancel()
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
