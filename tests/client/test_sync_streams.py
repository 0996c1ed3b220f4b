"""What only response streams of ``grpc`` have, such as an error that is raised again."""

import gc
import threading

import grpc
import pytest

from idem_grpc._client.foreign_calls import CancelledCall
from tests.client.faces import FAST, PATIENT, REQUEST
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import UNAVAILABLE, answer, fail, hang
from tests.support.wait import until

CODE = grpc.StatusCode

kind = kinds(Kind.SERVER_STREAM, Kind.BIDI)


@pytest.fixture
def call_of(script, stub_of, kind):
    """Call a server with a script: gives the call, and the server."""

    def call_of(*steps, retry=FAST):
        server = script(*steps)
        method = getattr(stub_of(server, retry=retry), kind.value)
        return method(iter([REQUEST]) if kind.has_request_stream else REQUEST), server

    return call_of


def test_a_stream_that_has_failed_fails_again(call_of):
    call, _ = call_of(answer(0, 1, run="r", then=UNAVAILABLE), answer(0, 1, 2, run="s"))
    assert [next(call).part, next(call).part] == [0, 1]
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is UNAVAILABLE


def test_callbacks_are_called_at_the_end_though_nobody_reads(call_of):
    gate, over = threading.Event(), threading.Event()
    call, server = call_of(fail(), fail(CODE.NOT_FOUND, until=gate))
    assert call.add_callback(over.set)
    gate.set()
    assert over.wait(DEADLINE)
    assert call.code() is CODE.NOT_FOUND
    assert len(server.seen) == 2
    assert not call.is_active()
    assert not call.add_callback(over.set)


@pytest.mark.parametrize("settings", [{}, {"retry": PATIENT}], ids=["in flight", "backoff"])
def test_the_error_of_a_call_that_is_cancelled(call_of, settings):
    call, server = call_of(fail() if settings else hang(), **settings)
    server.await_calls(1)
    if settings:
        assert server.seen[0].is_gone.wait(DEADLINE)
    assert call.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is CODE.CANCELLED
    assert caught.value.details() == "Locally cancelled by application!"
    assert "StatusCode.CANCELLED" in str(caught.value)
    assert "Locally cancelled by application!" in repr(caught.value)


def test_one_that_nobody_holds_is_cancelled(call_of):
    call, server = call_of(hang())
    server.await_calls(1)
    del call
    gc.collect()
    assert server.seen[0].is_gone.wait(DEADLINE)


def test_one_that_is_left_while_it_waits_is_not_sent_again(call_of):
    call, server = call_of(fail(), answer(), retry=PATIENT)
    server.await_calls(1)
    driver = call._driver
    del call
    gc.collect()
    assert until(lambda: driver.is_over)
    assert len(server.seen) == 1


def test_the_error_of_a_call_that_is_cancelled_between_attempts():
    error = CancelledCall()
    assert (
        str(error)
        == repr(error)
        == "<CancelledCall: StatusCode.CANCELLED, Locally cancelled by application!>"
    )
    assert error.debug_error_string() == ""  # which grpc's own errors have, too
