"""Calls of ``grpc.aio`` that are cancelled in every way leave nothing behind."""

import asyncio
import gc
import threading
from collections import Counter
from functools import partial

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import keys
from tests.client.faces import patient
from tests.server.client import Kind
from tests.server.kinds import ALL
from tests.server.ledger import DEADLINE, order
from tests.support.aio_calls import arrived, begin, connected, parts, responses_of, until
from tests.support.aio_ledger import ledger_server
from tests.support.scripted import answer, fail, hang

HANGS, FAILS = hang(), fail()
STEPS = pytest.mark.parametrize("step", [HANGS, FAILS], ids=["in flight", "backoff"])


async def under_way(server, step, retry):
    """Wait until a call is in flight, or waits for its next attempt."""
    await arrived(server, 1)
    if step is FAILS:
        await until(lambda: retry.waits)


async def is_cancelled(kind, rpc):
    with pytest.raises(asyncio.CancelledError):
        await responses_of(kind, rpc)
    assert rpc.cancelled()
    assert await rpc.code() is grpc.StatusCode.CANCELLED
    return True


async def test_cancelling_before_anything_was_sent(script, kind):
    server = script(hang())
    async with connected(server) as stub:
        for rounds in range(12):
            rpc = begin(stub, kind)
            for _ in range(rounds):
                await asyncio.sleep(0)
            rpc.cancel()
            assert await is_cancelled(kind, rpc)


@STEPS
async def test_a_task_that_awaits_a_call_may_be_cancelled(script, kind, step):
    server, retry = script(step), patient()
    async with connected(server, retry=retry) as stub:
        rpc = begin(stub, kind)
        awaiting = asyncio.create_task(responses_of(kind, rpc))
        await under_way(server, step, retry)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        assert await rpc.code() is grpc.StatusCode.CANCELLED


async def test_a_cancel_that_meets_the_end_of_an_attempt_is_not_lost(script, kind):
    """grpc.aio may drop the CancelledError, and report how the attempt ended instead."""
    server = script(fail())
    async with connected(server, retry=patient()) as stub:
        for rounds in range(200):
            seen = len(server.seen)
            rpc = begin(stub, kind)
            reading = asyncio.create_task(responses_of(kind, rpc))
            await arrived(server, seen + 1)
            for _ in range(rounds % 12):
                await asyncio.sleep(0)
            reading.cancel()
            async with asyncio.timeout(DEADLINE):
                assert await rpc.code() is grpc.StatusCode.CANCELLED
            await asyncio.wait([reading])
            assert reading.cancelled()


@STEPS
async def test_a_timeout_of_asyncio_ends_the_call(script, kind, step):
    server, retry = script(step), patient()
    limit = asyncio.timeout(None)

    async def read(rpc):
        async with limit:
            await responses_of(kind, rpc)

    async with connected(server, retry=retry) as stub:
        rpc = begin(stub, kind)
        reading = asyncio.create_task(read(rpc))
        await under_way(server, step, retry)
        limit.reschedule(asyncio.get_running_loop().time())
        with pytest.raises(TimeoutError):
            await reading
        assert await rpc.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], ids=lambda kind: kind.value)
class TestUploads:
    async def test_nothing_can_be_written_to_a_call_that_is_cancelled(self, script, kind):
        async with connected(script(hang())) as stub:
            rpc = getattr(stub, kind.value)()
            await rpc.write(pb.LedgerRequest(part=0))
            rpc.cancel()
            assert await is_cancelled(kind, rpc)
            with pytest.raises(asyncio.InvalidStateError):
                await rpc.write(pb.LedgerRequest(part=1))

    async def test_a_cancelled_upload_is_not_taken_for_a_complete_one(self, kind):
        async with ledger_server() as server, connected(server) as stub:
            for _ in range(20):
                request = order()
                with keys.using(request.order):
                    rpc = getattr(stub, kind.value)()
                await rpc.write(request)
                await until(partial(server.ledger.runs, request))
                rpc.cancel()
                assert await is_cancelled(kind, rpc)
                with keys.using(request.order):
                    again = getattr(stub, kind.value)([request])
                await responses_of(kind, again)
                assert [each.is_over for each in server.ledger.runs(request)] == [False, True]


async def test_closing_the_channel_ends_what_is_waited_for(script, kind):
    server, retry = script(FAILS), patient()
    async with connected(server, retry=retry) as stub:
        rpc = begin(stub, kind)
        await under_way(server, FAILS, retry)
    assert await is_cancelled(kind, rpc)


async def test_a_stream_that_nobody_holds_is_cancelled(script):
    server = script(answer(0, until=threading.Event()))
    async with connected(server) as stub:
        async for _ in stub.ServerStream(pb.LedgerRequest()):
            break
        await until(lambda: gc.collect() or server.seen[0].is_gone.is_set())


async def test_a_stream_that_another_thread_collects_is_cancelled(script):
    asyncio.get_running_loop().set_debug(True)  # which raises on calls from other threads
    server = script(answer(0, until=threading.Event()))
    async with connected(server) as stub:
        rpc = stub.ServerStream(pb.LedgerRequest())
        await rpc.read()
        cycle = [rpc]
        cycle.append(cycle)
        gc.collect()
        gc.disable()
        try:
            del rpc, cycle
            await asyncio.to_thread(gc.collect)
            async with asyncio.timeout(DEADLINE):
                await until(server.seen[0].is_gone.is_set)
        finally:
            gc.enable()


def census():
    """How many objects of the library and of grpc there are, by their classes, and objects of any kind."""
    gc.collect()
    things = gc.get_objects()
    kinds = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in things)
    ours = {kind: count for kind, count in kinds.items() if kind.startswith(("grpc.", "idem_grpc."))}
    return ours, len(things)


@STEPS
async def test_ten_thousand_cancelled_calls_leave_nothing_behind(script, step):
    """Five thousand in each of the two states."""
    server, retry = script(step), patient()

    async def cancel_many(stub, count):
        for begun in range(0, count, 100):
            waits = retry.waits
            rpcs = [begin(stub, ALL[number % 4], count=2) for number in range(100)]
            if begun % 500:  # some are cancelled before they are sent
                await arrived(server, 50)
                if step is FAILS:
                    await until(lambda: retry.waits == waits + 100)  # noqa: B023 -- is called in this round
            for rpc in rpcs:
                rpc.cancel()
            ended = await asyncio.gather(*(rpc.code() for rpc in rpcs))
            assert set(ended) == {grpc.StatusCode.CANCELLED}
            await until(lambda: all(seen.is_gone.is_set() for seen in server.seen))
            server.seen.clear()

    async with connected(server, retry=retry) as stub:
        await cancel_many(stub, 500)
        await until(lambda: len(asyncio.all_tasks()) <= 1)
        ours, objects = census()
        await cancel_many(stub, 4500)
        await until(lambda: len(asyncio.all_tasks()) <= 1)

        def is_clean():
            ours_then, objects_then = census()
            more = {kind: count for kind, count in ours_then.items() if count > ours.get(kind, 0) + 20}
            return not more and objects_then < objects + 1500

        # What the last calls leave goes a little later; a third of an object for each call may stay.
        await until(is_clean)


async def test_abandoned_request_iterators_are_closed(script):
    closed = asyncio.Event()

    async def requests():
        try:
            async for part in parts(1):
                yield part
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with connected(script(answer(reads=1))) as stub:
        await stub.ClientStream(requests())
        await closed.wait()
