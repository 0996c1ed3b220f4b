"""A call that is cancelled ends at once, wherever it is, and leaves nothing behind."""

import asyncio
import gc
import threading
from collections import Counter

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import Retry
from tests.client_aio.scripted import Step, answer, call, connected, fails, parts, pushes_back, serving
from tests.client_aio.serving import until
from tests.server.client import Kind
from tests.server.ledger import DEADLINE

HANGS = Step(hangs=True, responses=0)
SLOW = Retry(initial_backoff=3600, max_backoff=3600, budget=None)  # a test that waited for it would not end


async def is_cancelled(kind, rpc):
    with pytest.raises(asyncio.CancelledError):
        await answer(kind, rpc)
    assert rpc.cancelled()
    assert await rpc.code() is grpc.StatusCode.CANCELLED
    return True


async def test_cancelling_during_backoff_ends_the_call(kind):
    async with serving(fails()) as server, connected(server, retry=SLOW) as stub:
        rpc = call(stub, kind)
        awaiting = asyncio.create_task(is_cancelled(kind, rpc))
        await server.attempts(1)
        assert rpc.cancel()
        assert await awaiting
        assert len(server.seen) == 1


async def test_cancelling_during_pushback_ends_the_call(kind):
    async with serving(pushes_back("3600000")) as server, connected(server) as stub:
        rpc = call(stub, kind)
        await server.attempts(1)
        rpc.cancel()
        assert await is_cancelled(kind, rpc)


async def test_cancelling_in_flight_tells_the_server(kind):
    async with serving(fails(), HANGS) as server, connected(server) as stub:
        rpc = call(stub, kind)
        await server.attempts(2)
        rpc.cancel()
        assert await is_cancelled(kind, rpc)
        await server.left.wait()
        assert len(server.seen) == 2


async def test_cancelling_before_anything_was_sent(kind):
    async with serving(HANGS) as server, connected(server) as stub:
        for rounds in range(12):
            rpc = call(stub, kind)
            for _ in range(rounds):
                await asyncio.sleep(0)
            rpc.cancel()
            assert await is_cancelled(kind, rpc)
        assert all(not seen.was_complete or kind.has_request_stream for seen in server.seen)


@pytest.mark.parametrize("step", [HANGS, fails()], ids=["in flight", "backoff"])
async def test_who_awaits_may_be_cancelled(kind, step):
    async with serving(step) as server, connected(server, retry=SLOW) as stub:
        rpc = call(stub, kind)
        awaiting = asyncio.create_task(answer(kind, rpc))
        await server.attempts(1)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        assert await rpc.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("step", [HANGS, fails()], ids=["in flight", "backoff"])
async def test_a_timeout_of_asyncio_ends_the_call(kind, step):
    async with serving(step) as server, connected(server, retry=SLOW) as stub:
        rpc = call(stub, kind)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer(kind, rpc)
        assert await rpc.code() is grpc.StatusCode.CANCELLED


async def test_a_stream_of_which_part_was_taken():
    async with serving(Step(hangs=True)) as server, connected(server) as stub:
        for kind in (Kind.SERVER_STREAM, Kind.BIDI):
            rpc = call(stub, kind)
            assert (await rpc.read()).part == 0
            rpc.cancel()
            assert await is_cancelled(kind, rpc)


async def test_nothing_can_be_written_to_a_call_that_is_cancelled():
    async with serving(HANGS) as server, connected(server) as stub:
        for kind in (Kind.CLIENT_STREAM, Kind.BIDI):
            rpc = getattr(stub, kind.value)()
            await rpc.write(pb.LedgerRequest(part=0))
            rpc.cancel()
            assert await is_cancelled(kind, rpc)
            with pytest.raises(asyncio.InvalidStateError):
                await rpc.write(pb.LedgerRequest(part=1))


async def test_closing_the_channel_ends_what_is_waited_for(kind):
    async with serving(fails()) as server:
        async with connected(server, retry=SLOW) as stub:
            rpc = call(stub, kind)
            await server.attempts(1)
        assert await is_cancelled(kind, rpc)


async def test_a_stream_that_nobody_holds_is_cancelled():
    async with serving(Step(hangs=True)) as server, connected(server) as stub:
        async for _ in stub.ServerStream(pb.LedgerRequest()):
            break
        while not server.left.is_set():
            gc.collect()
            await asyncio.sleep(0.001)


async def test_a_stream_that_another_thread_collects_is_cancelled():
    asyncio.get_running_loop().set_debug(True)  # by which it minds what other threads do
    async with serving(Step(hangs=True)) as server, connected(server) as stub:
        rpc = stub.ServerStream(pb.LedgerRequest())
        await rpc.read()
        cycle = [rpc]
        cycle.append(cycle)
        gc.collect()
        gc.disable()
        try:
            del rpc, cycle
            collecting = threading.Timer(0.05, gc.collect)
            collecting.start()
            await asyncio.wait_for(server.left.wait(), DEADLINE)
        finally:
            gc.enable()
            collecting.join()


async def census():
    """How many there are: tasks, objects of ours and of grpc's by their classes, and objects at all."""
    for _ in range(4):
        await asyncio.sleep(0.02)  # what was cancelled unwinds
        gc.collect()
    things = gc.get_objects()
    kinds = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in things)
    ours = {kind: count for kind, count in kinds.items() if kind.startswith(("grpc.", "idem_grpc."))}
    return len(asyncio.all_tasks()), ours, len(things)


@pytest.mark.parametrize("step", [HANGS, fails()], ids=["in flight", "backoff"])
async def test_ten_thousand_cancelled_calls_leave_nothing_behind(step):
    """Five thousand here, and as many there."""
    kinds = (Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI)

    async def cancel_many(server, stub, count):
        for begun in range(0, count, 100):
            rpcs = [call(stub, kinds[number % 4], count=2) for number in range(100)]
            if begun % 500:  # some are cancelled before they are sent
                await server.attempts(len(server.seen) + 50)
            for rpc in rpcs:
                rpc.cancel()
            ended = await asyncio.gather(*(rpc.code() for rpc in rpcs))
            assert set(ended) == {grpc.StatusCode.CANCELLED}
            server.seen.clear()

    async with serving(step) as server, connected(server, retry=SLOW) as stub:
        await cancel_many(server, stub, 500)
        tasks, ours, objects = await census()
        await cancel_many(server, stub, 4500)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        _, ours_then, objects_then = await census()
        assert {kind: count for kind, count in ours_then.items() if count > ours.get(kind, 0) + 20} == {}
        assert objects_then < objects + 1500  # a third of an object for each call


async def test_abandoned_request_iterators_are_closed():
    closed = asyncio.Event()

    async def requests():
        try:
            async for part in parts(1):
                yield part
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with serving(Step(reads=1)) as server, connected(server) as stub:
        await stub.ClientStream(requests())
        await closed.wait()
