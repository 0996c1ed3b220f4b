"""A server that stops loses no stream that had arrived completely, and drain counts those still running."""

import asyncio

import pytest

from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.ledger import order, run

IN_FLIGHT = 5


def half_way(kind):
    sent = {Kind.SERVER_STREAM: 1, Kind.BIDI: 3}.get(kind, 0)
    return run(gate="half-way", responses_before_gate=sent)


def begun(server, kind, count):
    """Begin calls, and wait until their handlers are half-way."""
    requests = [order(half_way(kind)) for _ in range(count)]
    calls = []
    for request in requests:
        server.ledger.gate("half-way").reached.clear()
        calls.append(server.client.begin(kind, request, request.order, timeout=None))
        server.ledger.gate("half-way").await_arrival()
    return requests, calls


def test_calls_that_had_arrived_are_finished_and_kept(start, kind):
    server = start()
    requests, calls = begun(server, kind, IN_FLIGHT)
    server.stop(grace=0)
    assert not any(call.answer().ok for call in calls)
    assert server.drain(0.05) == IN_FLIGHT
    server.ledger.gate("half-way").open()
    assert server.drain(30) == 0
    for request in requests:
        record = server.record(request.order, kind)
        assert record.state is State.DONE
        assert len(record.outcome.messages) == (3 if kind.has_response_stream else 1)


def test_calls_that_end_within_the_grace_are_answered(start, kind):
    server = start()
    _, calls = begun(server, kind, IN_FLIGHT)
    server.ledger.gate("half-way").open()
    server.stop(grace=30)
    assert all(call.answer().ok for call in calls)
    assert server.drain(30) == 0


@pytest.mark.parametrize("style", ["aio-thread"], indirect=True)
def test_handlers_that_hold_all_threads_do_not_hold_up_drain(start):
    """Plain handlers run on the threads of the loop, which may be few."""
    server = start(workers=2)
    begun(server, Kind.SERVER_STREAM, 2)

    async def drain_in_time() -> int:
        return await asyncio.wait_for(server.interceptor.drain(0.05), 10)

    assert server.run(drain_in_time()) == 2
