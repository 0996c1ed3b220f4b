"""What only futures of ``grpc`` have, such as waiting with a timeout, and being cancelled when dropped."""

import gc
import threading
from concurrent.futures import Future
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Retry, client_interceptors
from idem_grpc._client.foreign_calls import is_background, is_local_failure
from tests.client.faces import PATIENT, REQUEST
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import UNAVAILABLE, answer, fail, hang
from tests.support.wait import until

CODE = grpc.StatusCode

kind = kinds(Kind.UNARY, Kind.CLIENT_STREAM)


def future(stub, kind, **options):
    method = getattr(stub, kind.value)
    return method.future(iter([REQUEST]) if kind.has_request_stream else REQUEST, **options)


def ended(call) -> Future[Any]:
    """The call as its done callback gives it."""
    done = Future[Any]()
    call.add_done_callback(done.set_result)
    return done


def test_success(script, stub_of, kind):
    call = future(stub_of(script(fail(), fail(), answer(3))), kind)
    assert call.result(DEADLINE).part == 3
    assert call.exception() is None
    assert call.traceback() is None
    assert not call.running()
    assert not call.is_active()
    assert call.time_remaining() is None
    assert not call.add_callback(lambda: None)


def test_failure(script, stub_of, kind):
    call = future(stub_of(script(fail(), fail(CODE.NOT_FOUND))), kind)
    with pytest.raises(grpc.RpcError) as caught:
        call.result(DEADLINE)
    assert caught.value is call.exception()
    assert caught.value.code() is CODE.NOT_FOUND
    assert caught.value.__notes__ == ["idem_grpc: 2 attempts were made"]
    assert call.traceback() is not None


def test_nothing_blocks(script, stub_of, kind):
    gate = threading.Event()
    server = script(fail(), hang(gate))
    call = future(stub_of(server), kind, timeout=300)
    done = ended(call)
    server.await_calls(2)
    assert call.running()
    assert call.is_active()
    assert not call.done()
    assert 0 < call.time_remaining() <= 300
    for wait in (call.result, call.exception, call.traceback):
        with pytest.raises(grpc.FutureTimeoutError):
            wait(timeout=0.01)
    assert not done.done()
    gate.set()
    assert done.result(DEADLINE) is call
    assert call.result().entry == "1"


def test_callbacks_come_when_all_attempts_are_over_and_once(script, stub_of, kind):
    gate = threading.Event()
    server = script(fail(), fail(), hang(gate))
    called: list[object] = []
    call = future(stub_of(server), kind)
    call.add_done_callback(lambda call: 1 / 0)  # does not keep the others from being called
    call.add_done_callback(lambda call: called.append(len(server.seen)))
    assert call.add_callback(lambda: called.append("plain"))
    last = ended(call)
    gate.set()
    last.result(DEADLINE)
    assert called == [3, "plain"]
    assert ended(call).result(0) is call


@pytest.mark.parametrize("settings", [{}, {"retry": PATIENT}], ids=["in flight", "backoff"])
def test_waiting_for_a_call_that_is_cancelled(script, stub_of, kind, settings):
    server = script(fail() if settings else hang())
    call = future(stub_of(server, **settings), kind)
    server.await_calls(1)
    assert call.cancel()
    for wait in (call.result, call.exception, call.traceback):
        with pytest.raises(grpc.FutureCancelledError):
            wait(DEADLINE)
    assert call.trailing_metadata() == ()
    assert call.initial_metadata() == ()


def test_a_call_that_nobody_holds_is_cancelled(script, stub_of, kind):
    server = script(hang())
    call = future(stub_of(server), kind)
    server.await_calls(1)
    del call
    gc.collect()
    assert server.seen[0].is_gone.wait(DEADLINE)


def test_a_call_that_somebody_waits_for_is_not(script, stub_of, kind):
    gate = threading.Event()
    server = script(fail(), hang(gate))
    done = ended(future(stub_of(server), kind))
    gc.collect()
    server.await_calls(2)
    gc.collect()
    gate.set()
    assert done.result(DEADLINE).result().part == 0


def test_a_channel_that_is_closed_ends_it(script, connect, kind):
    server = script(fail())
    channel = connect(server, retry=Retry(initial_backoff=0.5, max_backoff=0.5))
    make = channel.stream_unary if kind.has_request_stream else channel.unary_unary
    method = make(kind.path, pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString)
    call = method.future(iter([REQUEST]) if kind.has_request_stream else REQUEST)
    assert until(lambda: server.seen and server.seen[0].is_gone.is_set())
    channel.close()
    error = call.exception(DEADLINE)
    assert isinstance(error, grpc.RpcError)
    assert error.code() in (UNAVAILABLE, CODE.CANCELLED)


class TestBlockingAndFutureCalls:
    """How an interceptor distinguishes the two, with the installed grpc."""

    def first_answers(self, script, connect, kind, step, blocking):
        """What continuations give to an interceptor."""
        given = []

        class Spy(grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation, details, request):
                given.append(continuation(details, request))
                return given[-1]

            intercept_stream_unary = intercept_unary_unary

        channel = connect(script(step), retry=None, outside=[Spy()])
        make = channel.stream_unary if kind.has_request_stream else channel.unary_unary
        method = make(kind.path, pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString)
        request = iter([REQUEST]) if kind.has_request_stream else REQUEST
        try:
            if blocking:
                method(request)
            else:
                method.future(request).result(DEADLINE)
        except grpc.RpcError:
            pass
        return given

    @pytest.mark.parametrize("step", [answer(), fail()], ids=["success", "failure"])
    @pytest.mark.parametrize("blocking", [True, False])
    def test_what_grpc_gives_tells_them_apart(self, script, connect, kind, step, blocking):
        (call,) = self.first_answers(script, connect, kind, step, blocking)
        assert is_background(call) is not blocking
        assert not is_local_failure(call)

    def test_an_exception_on_this_side_is_neither(self, script, connect, kind):
        class Broken(grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation, details, request):
                raise LookupError("broken")

            intercept_stream_unary = intercept_unary_unary

        server = script(answer())
        channel = connect(server, inside=[Broken()])
        make = channel.stream_unary if kind.has_request_stream else channel.unary_unary
        method = make(kind.path, pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString)
        for wait in (method, lambda request: method.future(request).result(DEADLINE)):
            with pytest.raises(LookupError, match="broken"):
                wait(iter([REQUEST]) if kind.has_request_stream else REQUEST)
        assert not server.seen


def test_interceptors_of_two_channels_in_a_row_agree(script, connect, kind):
    """Nobody should do this, but it works: the outer one takes the call of the inner one for grpc's."""
    server = script(fail(), fail(), answer(9))
    channel = connect(server, outside=client_interceptors(keys=lambda outgoing: "given"))
    make = channel.stream_unary if kind.has_request_stream else channel.unary_unary
    method = make(kind.path, pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString)
    assert method.future(iter([REQUEST]) if kind.has_request_stream else REQUEST).result(DEADLINE).part == 9
    assert set(server.keys) == {"given"}
