"""Calls made in a keyed handler bear keys that are the same when it is run again."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import client_interceptors, keys
from tests.client_aio.scripted import QUICK, Step, connected, fails, serving
from tests.client_aio.serving import ledger_server
from tests.server.client import Kind
from tests.server.ledger import order
from tests.server.servicers import Servicer

DOWN = pb.LedgerRequest(order="down")


class Upstream(Servicer):
    """A keyed handler that does what the test has it do."""

    def __init__(self, act):
        self._act = act

    async def Unary(self, request, context):
        await self._act(request)
        return pb.LedgerResponse(entry=request.order)


@asynccontextmanager
async def tree(act, *steps, **settings):
    """A stub of a keyed service whose handler does ``act(downstream, request)``, and what is downstream.

    All of it is on one loop."""
    interceptors = client_interceptors(retry=QUICK, **settings)
    async with serving(*steps) as below, connected(below, interceptors=interceptors) as downstream:

        async def handle(request):
            await act(downstream, request)

        async with ledger_server(lambda _: Upstream(handle)) as server, connected(server) as stub:
            yield stub, below


class Failing:
    """Fails its first run, in a way that leaves open what it did."""

    def __init__(self, act):
        self.runs = 0
        self._act = act

    async def __call__(self, downstream, request):
        self.runs += 1
        await self._act(downstream)
        if self.runs == 1:
            raise RuntimeError("the handler broke")


async def twice(stub, request, key):
    """Call, with the same key, a handler whose first run fails."""
    with keys.using(key), pytest.raises(grpc.aio.AioRpcError):
        await stub.Unary(request)
    with keys.using(key):
        await stub.Unary(request)


async def test_calls_of_the_second_run_bear_the_keys_of_the_first():
    async def act(downstream):
        await downstream.Unary(DOWN)
        await downstream.Unary(DOWN)
        async for _ in downstream.ServerStream(DOWN):
            pass
        await downstream.ClientStream([DOWN])

    async with tree(Failing(act)) as (stub, below):
        await twice(stub, order(), "parent")
        assert len(below.keys) == 8
        assert below.keys[:4] == below.keys[4:]
        assert len(set(below.keys)) == 4
        assert None not in below.keys


async def test_all_attempts_of_such_a_call_bear_its_key():
    async def act(downstream, request):
        await downstream.Unary(DOWN)

    async with tree(act, fails(), fails(), Step()) as (stub, below):
        await stub.Unary(order())
        assert len(below.keys) == 3
        assert len(set(below.keys)) == 1


async def test_other_parents_have_other_keys():
    async def act(downstream, request):
        await downstream.Unary(DOWN)

    async with tree(act) as (stub, below):
        await stub.Unary(order())
        await stub.Unary(order())
        assert len(set(below.keys)) == 2


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value)
async def test_calls_at_once_are_refused_with_a_sentence(kind):
    refused: list[Exception] = []

    async def act(downstream, request):
        body = [DOWN] if kind.has_request_stream else DOWN
        method = getattr(downstream, kind.value)

        async def call():
            return await method(body)

        ended = await asyncio.gather(call(), call(), return_exceptions=True)
        refused.extend(error for error in ended if isinstance(error, Exception))

    async with tree(act) as (stub, below):
        await stub.Unary(order())
        (error,) = refused
        assert isinstance(error, RuntimeError)
        assert "keys.step" in str(error)
        assert len(below.keys) == 1


async def test_calls_at_once_have_a_step_each_across_tasks():
    async def act(downstream):
        async def call(name):
            with keys.step(name):
                await downstream.Unary(pb.LedgerRequest(order=name))

        await asyncio.gather(*(call(f"item-{number}") for number in range(5)))

    async with tree(Failing(act)) as (stub, below):
        await twice(stub, order(), "parent")
        first, second = (
            {seen.requests[0].order: seen.key for seen in seen} for seen in (below.seen[:5], below.seen[5:])
        )
        assert first == second
        assert len(set(first.values())) == 5


async def cancel(downstream):
    rpc = downstream.Unary(DOWN)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rpc.cancel()


async def fail(downstream):
    with pytest.raises(grpc.aio.AioRpcError):
        await downstream.Unary(DOWN, timeout=0)


async def time_out(downstream):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await downstream.Unary(DOWN)


async def stop_reading(downstream):
    rpc = downstream.ServerStream(DOWN)
    await rpc.read()
    rpc.cancel()


@pytest.mark.parametrize("end", [cancel, fail, time_out, stop_reading])
@pytest.mark.parametrize("retries", [True, False])
async def test_a_call_that_ended_somehow_is_over(end, retries):
    """The next call to its method is refused unless it is."""

    async def act(downstream, request):
        for _ in range(3):
            await end(downstream)

    retry = QUICK if retries else None
    async with serving(Step(hangs=True)) as below:
        ours = client_interceptors(retry=retry)
        async with connected(below, interceptors=ours) as downstream:

            async def handle(request):
                await act(downstream, request)

            async with ledger_server(lambda _: Upstream(handle)) as server, connected(server) as stub:
                assert await stub.Unary(order())


async def test_what_is_given_overrides_it():
    async def act(downstream, request):
        with keys.using("given"):
            await downstream.Unary(DOWN)
        await downstream.Unary(DOWN, metadata=(("idempotency-key", "own"),))

    async with tree(act) as (stub, below):
        await stub.Unary(order())
        assert below.keys == ["given", "own"]


async def test_so_does_a_key_made_of_the_request():
    async def act(downstream, request):
        await downstream.Unary(DOWN)

    async with tree(act, keys=keys.from_request("order:{order}")) as (stub, below):
        await stub.Unary(order())
        assert below.keys == ["order:down"]


async def test_it_can_be_switched_off():
    async def act(downstream, request):
        await asyncio.gather(downstream.Unary(DOWN), downstream.Unary(DOWN))

    async with tree(act, derive=False) as (stub, below):
        await stub.Unary(order())
        assert below.keys == [None, None]


async def test_methods_without_side_effects_need_no_key_here_either():
    async def act(downstream, request):
        await asyncio.gather(downstream.Read(DOWN), downstream.Read(DOWN))

    async with tree(act) as (stub, below):
        await stub.Unary(order())
        assert below.keys == [None, None]
