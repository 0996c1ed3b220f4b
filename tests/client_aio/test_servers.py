"""With a server that is protected: what was done is not done again, whatever becomes of the answer."""

import asyncio
from functools import partial

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Policy, Reason
from idem_grpc.aio import Retry, keys, reason, replayed
from tests.client_aio.scripted import answer, connected, error_of
from tests.client_aio.serving import ledger_server, until
from tests.server.client import Kind
from tests.server.ledger import order, run

EXHAUSTED, NOT_FOUND = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND


def send(stub, kind, request):
    parts = [pb.LedgerRequest(order=request.order, part=part) for part in (1, 2)]
    return getattr(stub, kind.value)([request, *parts] if kind.has_request_stream else request)


async def test_an_answer_that_comes_too_late_for_its_attempt_is_that_of_the_next(kind):
    # A request stream that is cut is a run of its own, so there the deadline must not pass too early.
    retry = Retry(initial_backoff=0.01, attempt_timeout=2 if kind.has_request_stream else 0.2)
    async with ledger_server(default=Policy(wait=0)) as server, connected(server, retry=retry) as stub:
        request = order(run(gate="at work", responses_before_gate=3 if kind is Kind.BIDI else 0))
        rpc = send(stub, kind, request)
        answering = asyncio.create_task(answer(kind, rpc))
        await server.stands_at("at work")
        await until(lambda: len(server.attempts) >= 2)
        server.ledger.gate("at work").open()
        responses = await answering
        (only,) = server.ledger.runs(request)
        assert {response.entry for response in responses} == {only.entry}
        assert len(responses) == (3 if kind.has_response_stream else 1)
        assert await replayed(rpc) is True


async def test_a_run_in_progress_is_waited_for(kind):
    retry = Retry(initial_backoff=0.01, max_backoff=0.02, max_attempts=2)
    async with ledger_server(default=Policy(wait=0)) as server, connected(server, retry=retry) as stub:
        request = order(run(gate="at work"))
        with keys.using("same"):
            first = asyncio.create_task(answer(kind, send(stub, kind, request)))
            await server.stands_at("at work")
        with keys.using("same"):
            second = asyncio.create_task(answer(kind, send(stub, kind, request)))
            await asyncio.sleep(0.1)
        server.ledger.gate("at work").open()
        assert await first == await second
        assert len(server.ledger.runs(request)) == 1


async def test_refusals_of_a_real_server_end_the_call(kind):
    async with ledger_server() as server, connected(server) as stub:
        with keys.using("same"):
            await answer(kind, send(stub, kind, order()))
        with keys.using("same"):
            rpc = send(stub, kind, order())
            error = await error_of(kind, rpc)
        assert reason(error) is Reason.KEY_REUSED
        assert await replayed(rpc) is False


async def test_decided_failures_are_replayed(kind):
    async with ledger_server() as server, connected(server) as stub:
        request = order(run(code=NOT_FOUND))
        told = []
        for _ in range(2):
            with keys.using("same"):
                rpc = send(stub, kind, request)
                error = await error_of(kind, rpc)
                assert error.code() is NOT_FOUND
                told.append((await replayed(rpc), await replayed(error)))
        assert told == [(False, False), (True, True)]


async def test_what_nobody_protects_is_told(kind):
    async with ledger_server(policies={}) as server, connected(server, keys=None) as stub:
        rpc = send(stub, kind, order())
        await answer(kind, rpc)
        assert await replayed(rpc) is None


async def test_a_cancelled_upload_is_not_taken_for_a_complete_one():
    async with ledger_server() as server, connected(server) as stub:
        for kind in (Kind.CLIENT_STREAM, Kind.BIDI):
            for _ in range(20):
                request = order()
                with keys.using(request.order):
                    rpc = getattr(stub, kind.value)()
                await rpc.write(request)
                await until(partial(server.ledger.runs, request))
                rpc.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await answer(kind, rpc)
                with keys.using(request.order):
                    await answer(kind, send(stub, kind, request))
                assert [each.is_over for each in server.ledger.runs(request)] == [False, True]
