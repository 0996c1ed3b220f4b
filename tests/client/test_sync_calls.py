"""What only ``grpc`` has: blocking calls with ``with_call``, and details that interceptors see."""

import gc

import grpc

import idem_grpc
from tests.client.faces import REQUEST
from tests.server.client import REPLAYED, RUN
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer, fail, hang


def test_with_call(script, stub_of):
    server = script(fail(), answer(2, run="r", trailing=(("end", "well"),)))
    response, call = stub_of(server).Unary.with_call(REQUEST)
    assert response.part == 2
    assert call.code() is grpc.StatusCode.OK
    assert dict(call.initial_metadata())[RUN] == "r"
    assert dict(call.trailing_metadata())["end"] == "well"


def test_replayed_of_with_call(script, stub_of):
    stub = stub_of(script(answer(run="r"), answer(run="r", trailing=[(REPLAYED, "true")]), answer()))
    found = [idem_grpc.replayed(stub.Unary.with_call(REQUEST)[1]) for _ in range(3)]
    assert found == [False, True, None]


def test_compression_and_credentials_are_those_of_every_attempt(script, stub_of, kind):
    details = []

    class Inside(
        grpc.UnaryUnaryClientInterceptor,
        grpc.UnaryStreamClientInterceptor,
        grpc.StreamUnaryClientInterceptor,
        grpc.StreamStreamClientInterceptor,
    ):
        def _record(self, continuation, given, request):
            details.append(given)
            return continuation(given._replace(credentials=None), request)  # for want of TLS

        intercept_unary_unary = intercept_unary_stream = _record
        intercept_stream_unary = intercept_stream_stream = _record

    credentials = grpc.access_token_call_credentials("token")
    options = {
        "compression": grpc.Compression.Gzip,
        "wait_for_ready": True,
        "credentials": credentials,
        "timeout": 30,
    }
    method = getattr(stub_of(script(fail(), answer()), inside=[Inside()]), kind.value)
    response = method(iter([REQUEST]) if kind.has_request_stream else REQUEST, **options)
    if kind.has_response_stream:
        list(response)
    assert len(details) == 2
    for given in details:
        assert given.compression is grpc.Compression.Gzip
        assert given.wait_for_ready is True
        assert given.credentials is credentials
        assert given.method == kind.path
        assert 25 < given.timeout <= 30


def test_a_stream_that_nobody_holds_is_cancelled_where_it_is_never_sent_again(script, stub_of):
    server = script(hang())
    call = stub_of(server, keys=None).ServerStream(REQUEST)
    server.await_calls(1)
    del call
    gc.collect()
    assert server.seen[0].is_gone.wait(DEADLINE)
