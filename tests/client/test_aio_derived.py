"""In a keyed handler that is a coroutine, calls by ``grpc.aio`` in tasks of its own, all on one loop."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import client_interceptors, keys
from tests.server.client import Kind
from tests.server.ledger import order
from tests.server.servicers import Servicer
from tests.support.aio_calls import QUICK, connected
from tests.support.aio_ledger import ledger_server
from tests.support.scripted import answer, hang

DOWN = pb.LedgerRequest(order="down")


class Upstream(Servicer):
    """A keyed handler that does what the test has it do."""

    def __init__(self, act):
        self._act = act

    async def Unary(self, request, context):
        await self._act()
        return pb.LedgerResponse(entry=request.order)


@asynccontextmanager
async def tree(below, act, retry=QUICK):
    """A stub of a keyed service whose handler does ``act(downstream)``, where ``below`` is downstream."""
    ours = client_interceptors(retry=retry)
    async with (
        connected(below, interceptors=ours) as downstream,
        ledger_server(lambda _: Upstream(lambda: act(downstream))) as server,
        connected(server) as stub,
    ):
        yield stub


async def test_calls_at_once_have_a_step_each_across_tasks(script):
    runs = []

    async def act(downstream):
        async def call(name):
            with keys.step(name):
                await downstream.Unary(pb.LedgerRequest(order=name))

        await asyncio.gather(*(call(f"item-{number}") for number in range(5)))
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("the handler broke")

    below = script(answer())
    async with tree(below, act) as stub:
        request = order()
        with keys.using("parent"), pytest.raises(grpc.aio.AioRpcError):
            await stub.Unary(request)
        with keys.using("parent"):
            await stub.Unary(request)
    first, second = (
        {seen.requests[0].order: seen.key for seen in seen} for seen in (below.seen[:5], below.seen[5:])
    )
    assert first == second
    assert len(set(first.values())) == 5


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value)
async def test_calls_at_once_are_refused_across_tasks(script, kind):
    refused: list[Exception] = []

    async def act(downstream):
        async def call():
            return await getattr(downstream, kind.value)([DOWN] if kind.has_request_stream else DOWN)

        ended = await asyncio.gather(call(), call(), return_exceptions=True)
        refused.extend(error for error in ended if isinstance(error, Exception))

    below = script(answer())
    async with tree(below, act) as stub:
        await stub.Unary(order())
    (error,) = refused
    assert isinstance(error, RuntimeError)
    assert "keys.step" in str(error)
    assert len(below.keys) == 1


async def cancel_at_once(downstream):
    rpc = downstream.Unary(DOWN)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rpc.cancel()


async def time_out(downstream):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await downstream.Unary(DOWN)


async def stop_reading(downstream):
    rpc = downstream.ServerStream(DOWN)
    await rpc.read()
    rpc.cancel()


@pytest.mark.parametrize(
    ("end", "step"),
    [(cancel_at_once, hang()), (time_out, hang()), (stop_reading, answer(0, 1))],
    ids=["cancelled at once", "timed out", "read in part"],
)
@pytest.mark.parametrize("retry", [QUICK, None], ids=["ours", "native"])
async def test_a_call_that_ended_somehow_is_over(script, end, step, retry):
    """The next call to its method is refused unless it is."""

    async def act(downstream):
        for _ in range(3):
            await end(downstream)

    async with tree(script(step), act, retry) as stub:
        assert await stub.Unary(order())
