"""Calls under asyncio's eager tasks, on both sides (cpython #97696).

These are always run; ``make test-eager`` runs all asyncio tests with eager tasks.
"""

import asyncio
import threading

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc.aio
from idem_grpc import OnCancel, Policy
from tests.client.conftest import script
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, order
from tests.server.ledger import run as plan
from tests.support import eager
from tests.support.aio_calls import (
    QUICK,
    arrived,
    begin,
    connected,
    error_of,
    notes,
    parts,
    responses_of,
    until,
)
from tests.support.aio_ledger import ledger_server
from tests.support.scripted import answer, fail, hang
from tests.tokens.servers import CHARGE, OnSync

__all__ = ["script"]  # fixtures are found by name

STREAMING = [Kind.CLIENT_STREAM, Kind.BIDI]
request_streams = pytest.mark.parametrize("kind", STREAMING, ids=lambda kind: kind.value)


def run(main):
    async def limited():
        async with asyncio.timeout(DEADLINE):
            return await main

    return eager.run(limited())


def test_tasks_are_eager():
    async def main():
        started = []

        async def start():
            started.append(asyncio.current_task())

        task = asyncio.create_task(start())
        assert started == [task]
        assert asyncio.current_task() not in (None, task)

    run(main())


def test_calls_are_retried_under_one_key(script, kind):
    server = script(fail(), fail(reads=1), answer())

    async def main():
        async with connected(server) as stub:
            assert await responses_of(kind, begin(stub, kind))
            assert len(server.seen) == 3
            assert len(set(server.keys)) == 1
            if kind.has_request_stream:
                assert server.seen[-1].parts == [0, 1, 2]

    run(main())


async def nothing():
    return
    yield


@request_streams
@pytest.mark.parametrize(
    ("source", "count"),
    [
        (lambda: parts(3), 3),
        (lambda: [pb.LedgerRequest()] * 3, 3),
        (nothing, 0),
        (list, 0),
    ],
    ids=["async", "plain", "empty async", "empty plain"],
)
@pytest.mark.parametrize("retry", [QUICK, None], ids=["retried", "not retried"])
def test_requests_may_come_from_any_iterable(script, kind, source, count, retry):
    server = script(answer())

    async def main():
        async with connected(server, retry=retry) as stub:
            assert await responses_of(kind, getattr(stub, kind.value)(source()))
            assert server.seen[0].was_complete
            assert len(server.seen[0].requests) == count

    run(main())


@request_streams
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("settings", [{}, {"retry": None}, {"keys": None}], ids=["retried", "keyed", "bare"])
def test_requests_may_be_written(script, kind, count, settings):
    server = script(answer())

    async def main():
        async with connected(server, **settings) as stub:
            rpc = getattr(stub, kind.value)()
            for part in range(count):
                await rpc.write(pb.LedgerRequest(part=part))
            await rpc.done_writing()
            assert await responses_of(kind, rpc)
            assert server.seen[0].parts == list(range(count))

    run(main())


@request_streams
def test_an_iterator_that_raises_cancels_the_call(script, kind, caplog):
    async def broken():
        yield pb.LedgerRequest(part=int("three"))

    async def main():
        async with connected(script(hang())) as stub:
            rpc = getattr(stub, kind.value)(broken())
            with pytest.raises(asyncio.CancelledError):
                await responses_of(kind, rpc)
            assert await rpc.code() is grpc.StatusCode.CANCELLED

    run(main())
    assert "never retrieved" not in caplog.text


def test_the_error_of_the_last_attempt_is_raised(script, kind):
    async def main():
        settings = {"retry": idem_grpc.aio.Retry(max_attempts=2, initial_backoff=0.01)}
        async with connected(script(fail()), **settings) as stub:
            error = await error_of(kind, begin(stub, kind))
            assert notes(error) == ["idem_grpc: 2 attempts were made"]

    run(main())


@pytest.mark.parametrize("retry", [QUICK, None], ids=["retried", "not retried"])
def test_the_next_call_may_follow_a_cancelled_one_at_once(script, kind, retry):
    """In a keyed handler no two calls to one method may be in flight without a step for each."""

    async def main():
        below = script(answer(0, until=threading.Event()), answer())
        ours = idem_grpc.aio.client_interceptors(retry=retry)
        async with connected(below, interceptors=ours) as downstream:

            class Upstream:
                async def Unary(self, request, context):
                    rpc = begin(downstream, kind)
                    await arrived(below, 1)
                    rpc.cancel()
                    await responses_of(kind, begin(downstream, kind))
                    return pb.LedgerResponse()

            class Others:
                def __init__(self, ledger):
                    self.Unary = Upstream().Unary

                def __getattr__(self, name):
                    return None

            async with ledger_server(Others) as server, connected(server) as stub:
                assert await stub.Unary(order())
                assert len(set(below.keys)) == 2

    run(main())


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_a_server_answers_duplicates(kind, on_cancel):
    async def main():
        async with ledger_server(default=Policy(on_cancel=on_cancel)) as server, connected(server) as stub:
            request, key = order(), [("idempotency-key", "one")]
            first = await responses_of(kind, send(stub, kind, request, metadata=key))
            assert await responses_of(kind, send(stub, kind, request, metadata=key)) == first
            assert len(server.ledger.all_runs) == 1

    run(main())


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_a_server_whose_caller_leaves(kind, on_cancel):
    """The run goes on, or it is cancelled and its key is free again."""

    async def main():
        async with ledger_server(default=Policy(on_cancel=on_cancel)) as server, connected(server) as stub:
            request, key = order(plan(gate="here"), plan()), [("idempotency-key", "one")]
            first = send(stub, kind, request, metadata=key)
            reading = asyncio.create_task(responses_of(kind, first))
            await until(server.ledger.gate("here").reached.is_set)
            first.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if on_cancel is OnCancel.FINISH:
                server.ledger.gate("here").open()
            assert await responses_of(kind, send(stub, kind, request, metadata=key))
            # Cut before the requests were read to their end, a run ends unclear all the same.
            is_finished = on_cancel is OnCancel.FINISH and kind is not Kind.BIDI
            assert len(server.ledger.all_runs) == (1 if is_finished else 2)

    run(main())


def test_tokens_are_fetched_once_for_all_waiting_calls():
    server = OnSync(open_store("sync", "memory:", "eager"))

    async def main():
        async with grpc.aio.insecure_channel(server.address) as channel:
            tokens = idem_grpc.aio.TokenKeys(channel, CHARGE, prefetch=2)
            async with connected(server, keys=tokens) as stub:
                await asyncio.gather(*(stub.Unary(order()) for _ in range(10)))

    try:
        run(main())
        assert len({ran.execution and ran.execution.key for ran in server.ledger.all_runs}) == 10
    finally:
        server.close()


def send(stub, kind, request, **options):
    return getattr(stub, kind.value)([request] * 3 if kind.has_request_stream else request, **options)
