"""The client with a protected server: what is sent twice takes effect once, and all get the answer."""

from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
from idem_grpc import Policy, Reason, Retry, keys
from tests.client.faces import notes
from tests.server.client import Client, Kind
from tests.server.harness import SyncServer, open_store
from tests.server.ledger import DEADLINE, order, run
from tests.support.wait import until

CODE = grpc.StatusCode


def impatient(kind):
    """A request stream that is cut is a run of its own, so there the deadline must not pass too early."""
    timeout = 2 if kind.has_request_stream else 0.5
    return Retry(attempt_timeout=timeout, initial_backoff=0.01, budget=None)


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (Kind.UNARY, 0),
        (Kind.SERVER_STREAM, 0),
        (Kind.SERVER_STREAM, 2),
        (Kind.CLIENT_STREAM, 0),
        (Kind.BIDI, 3),  # a run whose requests were cut off ends unclear: here they have all been read
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", [Policy(), Policy(wait=0)], ids=["the server waits", "it does not"])
def test_a_lost_reply(face, kind, before, policy):
    """The first attempt ends while its handler runs; a later one gets the answer of that run."""
    server = face.server(default=policy)
    request = order(run(gate="g", responses_before_gate=before, responses=4))
    call = face.client(server, retry=impatient(kind)).begin(kind, *[request] * 3, timeout=DEADLINE)
    reading = call.reading()
    until(lambda: len(server.attempts) >= 2)
    server.ledger.gate("g").open()
    responses = reading.result(DEADLINE)
    (only,) = server.ledger.runs(request)
    assert {response.entry for response in responses} == {only.entry}
    expected = {Kind.SERVER_STREAM: 4, Kind.BIDI: 3}.get(kind, 1)
    assert [response.part for response in responses] == list(range(expected))
    assert call.replayed() is True


def test_a_call_in_progress_is_waited_for(face, kind):
    """The server does not wait, so that it refuses duplicates as IN_PROGRESS until the run is over."""
    server = face.server(default=Policy(wait=0))
    request = order(run(gate="g"))
    client = face.client(server, retry=Retry(max_attempts=2, initial_backoff=0.01, max_backoff=0.02))

    def begin():
        with keys.using("one"):
            return client.begin(kind, request)

    calls = [begin()]
    server.ledger.gate("g").await_arrival()
    calls += [begin(), begin()]
    until(lambda: len(server.attempts) >= 3)
    plain = Client(server.address)
    assert plain.call(kind, request, "one").reason is Reason.IN_PROGRESS
    plain.channel.close()
    server.ledger.gate("g").open()
    first, second, third = ([response.entry for response in call.responses()] for call in calls)
    assert first == second == third != []
    assert len(server.ledger.runs(request)) == 1


def test_replayed(face, kind):
    client = face.client(face.server())
    request = order()
    found = []
    for _ in range(2):
        with keys.using("one"):
            call = client.begin(kind, request)
        found.append((call.responses(), call.replayed()))
    assert found == [(found[0][0], False), (found[0][0], True)]
    read = client.begin(Kind.READ, request)
    read.responses()
    assert read.replayed() is None


def test_replayed_errors(face, kind):
    client = face.client(face.server())
    request = order(run(code=CODE.NOT_FOUND))
    found = []
    for _ in range(2):
        with keys.using("one"):
            call = client.begin(kind, request)
        error = call.error()
        assert error.code() is CODE.NOT_FOUND
        assert idem_grpc.reason(error) is None
        found.append((call.replayed(), face.replayed(error)))
    assert found == [(False, False), (True, True)]


def test_refusals(face, kind):
    client = face.client(face.server(), keys=lambda outgoing: "one")
    client.send(kind, order())
    call = client.begin(kind, order())
    error = call.error()
    assert idem_grpc.reason(error) is Reason.KEY_REUSED
    assert call.replayed() is False
    assert not notes(error)


def test_an_unprotected_method_is_never_replayed(face, kind):
    call = face.client(face.server(policies={}), keys=None).begin(kind, order())
    call.responses()
    assert call.replayed() is None


def test_a_run_that_ends_unclear_is_run_again(face):
    server = face.server()
    request = order(run(code=CODE.UNAVAILABLE), run(code=CODE.UNAVAILABLE), run())
    (response,) = face.client(server).send(Kind.UNARY, request)
    runs = server.ledger.runs(request)
    assert [each.execution.attempt for each in runs] == [1, 2, 3]
    assert len({each.execution.key for each in runs}) == 1
    assert response.entry == runs[-1].entry


def test_the_service_config_is_enough_for_a_stock_client():
    """gRPC's own retries, with nothing of the library but the key."""
    server: Any = SyncServer(open_store("sync", "memory:", "served"))
    request = order(run(code=CODE.UNAVAILABLE), run())
    options = [("grpc.service_config", idem_grpc.service_config()), ("grpc.enable_retries", 1)]
    channel = grpc.intercept_channel(
        server.new_client(*options).channel, *idem_grpc.client_interceptors(keys=keys.unique, retry=None)
    )
    response = ledger_pb2_grpc.LedgerServiceStub(channel).Unary(request)
    first, second = server.ledger.runs(request)
    assert first.execution.key == second.execution.key
    assert response.entry == second.entry
    server.close()
