"""A call through the interceptors behaves as grpc's own, retried or not."""

import threading
from contextlib import suppress
from typing import Any

import grpc
import pytest

import idem_grpc
from tests.client.faces import Cancelled, notes
from tests.server.certificates import ALICE, server_credentials
from tests.server.client import REPLAYED, RUN, Kind
from tests.server.ledger import DEADLINE
from tests.support.scripted import NOWHERE, answer, fail, hang

CODE = grpc.StatusCode
METADATA: Any = {"trailing": (("fee", "12"),), "initial": (("a", "b"),)}
FINE = answer(**METADATA)
NOT_FOUND = fail(CODE.NOT_FOUND, **METADATA)
ANSWERING = [Kind.SERVER_STREAM, Kind.BIDI]

SETTINGS = {
    "no interceptors": {"interceptors": []},
    "a key only": {"retry": None},
    "retries": {},
}


@pytest.fixture(params=list(SETTINGS))
def settings(request):
    """What holds for grpc's own calls must hold for those that get a key, and that may be retried."""
    return SETTINGS[request.param]


def test_a_call_that_succeeds(face, script, settings, kind):
    gate = threading.Event()
    call = face.client(script(answer(**METADATA, until=gate)), **settings).begin(kind)
    assert not call.done()
    gate.set()
    assert call.initial()["a"] == "b"
    assert [response.part for response in call.responses()] == [0]
    assert call.code() is CODE.OK
    assert call.details() == ""
    assert call.trailing() == {"fee": "12"}
    assert call.done()
    assert not call.cancelled()
    assert not call.cancel()


def test_a_call_that_fails(face, script, settings, kind):
    gate = threading.Event()
    call = face.client(script(fail(CODE.NOT_FOUND, **METADATA, until=gate)), **settings).begin(kind)
    if kind.has_response_stream:  # grpc drops initial metadata that comes along with the status
        assert call.initial()["a"] == "b"
    gate.set()
    error = call.error()
    assert call.code() is error.code() is CODE.NOT_FOUND
    assert call.details() == error.details() == "as the script says"
    assert call.trailing() == dict(tuple(error.trailing_metadata())) == {"fee": "12"}
    assert call.initial()["a"] == dict(tuple(error.initial_metadata()))["a"] == "b"
    assert call.done()
    assert not call.cancelled()


def test_a_call_that_is_cancelled(face, script, settings, kind):
    server = script(hang())
    call = face.client(server, **settings).begin(kind)
    server.await_calls(1)
    assert call.cancel()
    with pytest.raises(Cancelled):
        call.responses()
    assert call.code() is CODE.CANCELLED
    assert call.details() == "Locally cancelled by application!"
    assert call.trailing() == {}
    assert call.cancelled()
    assert call.done()
    assert not call.cancel()


def test_the_status_of_a_call_that_nobody_reads(face, script, settings, kind):
    call = face.client(script(NOT_FOUND), **settings).begin(kind)
    assert call.code() is CODE.NOT_FOUND
    assert call.details() == "as the script says"


@pytest.mark.parametrize("step", [FINE, NOT_FOUND, fail()], ids=["fine", "not found", "retried"])
def test_callbacks_are_called_once_with_the_call(face, script, settings, kind, step):
    called: list[object] = []
    call = face.client(script(step, FINE), **settings).begin(kind)
    call.add_done_callback(called.append)
    with suppress(grpc.RpcError):
        call.responses()
    assert call.when_done().result(DEADLINE) is call.rpc
    call.add_done_callback(called.append)
    assert called == [call.rpc] * 2


def test_callbacks_are_called_when_a_call_is_cancelled(face, script, settings, kind):
    server = script(hang())
    call = face.client(server, **settings).begin(kind)
    done = call.when_done()
    server.await_calls(1)
    call.cancel()
    assert done.result(DEADLINE) is call.rpc


def test_a_call_is_retried_though_nobody_reads_it(face, script, kind):
    server = script(fail(), fail(), fail(CODE.NOT_FOUND))
    call = face.client(server).begin(kind)
    call.when_done().result(DEADLINE)
    assert len(server.seen) == 3
    assert call.code() is CODE.NOT_FOUND


def test_initial_metadata_is_that_of_the_attempt_that_has_any(face, script, kind):
    server = script(fail(), fail(), FINE)
    call = face.client(server).begin(kind)
    assert call.initial() == {"a": "b"}
    assert len(server.seen) == 3
    assert call.responses()
    if kind.has_response_stream:
        assert call.responses() == []


@pytest.mark.parametrize("kind", ANSWERING, ids=lambda kind: kind.value)
def test_initial_metadata_comes_before_any_response(face, script, kind):
    def send_metadata_and_wait(requests, context):
        context.send_initial_metadata((("a", "b"),))
        yield from hang()(requests, context)

    call = face.client(script(send_metadata_and_wait)).begin(kind)
    assert call.initial() == {"a": "b"}
    assert not call.done()
    call.cancel()


def test_wait_for_ready_is_passed_on(face, kind):
    error = face.client(NOWHERE).error_of(kind, wait_for_ready=True, timeout=0.3)
    assert error.code() is CODE.DEADLINE_EXCEEDED
    assert not notes(error)


def test_credentials_are_sent_with_every_attempt(face, script, kind):
    class Badge(grpc.AuthMetadataPlugin):
        def __call__(self, context, callback):
            callback((("badge", "alice"),), None)

    server = script(fail(), answer(), credentials=server_credentials())
    client = face.client(f"localhost:{server.port}", credentials=ALICE)
    assert client.send(kind, credentials=grpc.metadata_call_credentials(Badge()))
    assert [seen.metadata.get("badge") for seen in server.seen] == ["alice", "alice"]


def test_replayed_and_reason(face, script, kind):
    replay = answer(run="r", trailing=[(REPLAYED, "true")])
    client = face.client(script(replay, answer(run="r"), answer(), NOT_FOUND))
    found = []
    for _ in range(3):
        call = client.begin(kind)
        call.responses()
        found.append(call.replayed())
    assert found == [True, False, None]
    call = client.begin(kind)
    assert idem_grpc.reason(call.error()) is None
    assert call.replayed() is None
    assert idem_grpc.reason(ValueError()) is None


def test_the_run_is_in_both_metadata(face, script, kind):
    call = face.client(script(fail(), answer(run="r", trailing=[("end", "well")]))).begin(kind)
    call.responses()
    assert call.initial()[RUN] == "r"
    assert call.trailing() == {RUN: "r", "end": "well"}
