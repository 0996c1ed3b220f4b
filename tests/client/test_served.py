"""Our client before our server: what is sent twice takes effect once, and everybody gets the answer."""

import threading

import grpc
import pytest
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
from idem_grpc import Policy, Retry, keys
from tests.client.conftest import send
from tests.server.client import Kind
from tests.server.harness import SyncServer, open_store
from tests.server.ledger import DEADLINE, order, run

CODE = grpc.StatusCode


def impatient(kind):
    """A request stream that is cut is a run of its own, so there the deadline must not pass too early."""
    timeout = 2 if kind.has_request_stream else 0.5
    return Retry(attempt_timeout=timeout, initial_backoff=0.01, budget=None)


@pytest.fixture
def serve():
    """Start a server with the ledger: ``serve(**settings)``."""
    servers: list[SyncServer] = []

    def serve(**settings) -> SyncServer:
        servers.append(SyncServer(open_store("sync", "memory:", "served"), **settings))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


class Counting(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Stands inside ours, and does something when the second attempt is made."""

    def __init__(self, on_second):
        self.attempts = 0
        self._on_second = on_second

    def _count(self, continuation, details, request):
        self.attempts += 1
        if self.attempts == 2:
            self._on_second()
        return continuation(details, request)

    intercept_unary_unary = intercept_unary_stream = _count
    intercept_stream_unary = intercept_stream_stream = _count


@pytest.mark.parametrize("before", [0, 2])
def test_a_lost_reply(serve, stub_of, kind, before):
    """The first attempt ends while its handler runs; the second one gets the answer of that run."""
    server = serve()
    # A run whose requests were cut off is another matter: here they have all been read.
    before = {Kind.SERVER_STREAM: before, Kind.BIDI: 3}.get(kind, 0)
    request = order(run(gate="g", responses_before_gate=before, responses=4))
    counting = Counting(on_second=server.ledger.gate("g").open)
    requests = [request] * 3 if kind is Kind.BIDI else [request]
    stub = stub_of(server, retry=impatient(kind), inside=[counting])
    responses = send(stub, kind, *requests, timeout=DEADLINE)
    assert counting.attempts >= 2
    (only,) = server.ledger.runs(request)
    assert {response.entry for response in responses} == {only.entry}
    expected = {Kind.SERVER_STREAM: 4, Kind.BIDI: 3}.get(kind, 1)
    assert [response.part for response in responses] == list(range(expected))


def test_a_call_in_progress_is_waited_for(serve, stub_of, kind):
    """The server waits for nothing, so that the second caller is told IN_PROGRESS until the run is over."""
    server = serve(default=Policy(wait=0))
    request = order(run(gate="g"))
    stub = stub_of(server, retry=Retry(max_attempts=2, initial_backoff=0.01))
    answers: list[list[str]] = []

    def call():
        with keys.using("one"):
            answers.append([response.entry for response in send(stub, kind, request)])

    callers = [threading.Thread(target=call) for _ in range(3)]
    callers[0].start()
    server.ledger.gate("g").await_arrival()
    for caller in callers[1:]:
        caller.start()
    refused = server.client.call(kind, request, "one")
    assert refused.reason is idem_grpc.Reason.IN_PROGRESS
    server.ledger.gate("g").open()
    for caller in callers:
        caller.join(DEADLINE)
    assert answers[0] == answers[1] == answers[2] != []
    assert len(server.ledger.runs(request)) == 1


class TestUnary:
    def test_replayed(self, serve, stub_of):
        server = serve()
        stub = stub_of(server, keys=keys.from_request("{order}"))
        request = order()
        (first, one), (second, two) = stub.Unary.with_call(request), stub.Unary.with_call(request)
        assert first == second
        assert (idem_grpc.replayed(one), idem_grpc.replayed(two)) == (False, True)
        assert idem_grpc.replayed(stub.Unary.future(request)) is True
        _, read = stub.Read.with_call(request)
        assert idem_grpc.replayed(read) is None

    def test_replayed_errors(self, serve, stub_of):
        server = serve()
        stub = stub_of(server, keys=keys.from_request("{order}"))
        request = order(run(code=CODE.NOT_FOUND))
        found = []
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Unary(request)
            found.append(idem_grpc.replayed(caught.value))
            assert idem_grpc.reason(caught.value) is None
        assert found == [False, True]

    def test_reason(self, serve, stub_of):
        server = serve()
        stub = stub_of(server, keys=lambda outgoing: "one")
        stub.Unary(order())
        with pytest.raises(grpc.RpcError) as caught:
            stub.Unary(order())
        assert idem_grpc.reason(caught.value) is idem_grpc.Reason.KEY_REUSED
        assert not hasattr(caught.value, "__notes__")

    def test_a_run_that_ends_unclear_is_run_again(self, serve, stub_of):
        server = serve()
        request = order(run(code=CODE.UNAVAILABLE), run(code=CODE.UNAVAILABLE), run())
        response = stub_of(server).Unary(request)
        runs = server.ledger.runs(request)
        assert [each.execution.attempt for each in runs] == [1, 2, 3]
        assert len({each.execution.key for each in runs}) == 1
        assert response.entry == runs[-1].entry


def test_the_service_config_is_enough_for_a_stock_client(serve):
    """gRPC's own retries, with the key alone of ours."""
    server = serve()
    request = order(run(code=CODE.UNAVAILABLE), run())
    options = [("grpc.service_config", idem_grpc.service_config()), ("grpc.enable_retries", 1)]
    channel = grpc.intercept_channel(
        server.new_client(*options).channel, *idem_grpc.client_interceptors(keys=keys.unique, retry=None)
    )
    response = ledger_pb2_grpc.LedgerServiceStub(channel).Unary(request)
    first, second = server.ledger.runs(request)
    assert first.execution.key == second.execution.key
    assert response.entry == second.entry
