"""Sources of keys that are awaited, and metadata of ``grpc.aio``."""

import asyncio

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from tests.support.aio_calls import begin, connected, error_of, responses_of
from tests.support.scripted import answer, fail


async def test_a_source_may_be_awaited(script, kind):
    asked, released = asyncio.Event(), asyncio.Event()

    async def slow(outgoing):
        asked.set()
        await released.wait()
        return f"slow:{outgoing.method}"

    server = script(fail(), fail())
    async with connected(server, keys=slow) as stub:
        failing = asyncio.ensure_future(error_of(kind, begin(stub, kind)))
        await asked.wait()
        assert not server.seen
        released.set()
        await failing
        assert set(server.keys) == {f"slow:{kind.path}"}


async def test_the_deadline_holds_for_the_source_too(script, kind):
    async def never(outgoing):
        await asyncio.Event().wait()

    server = script(answer())
    async with connected(server, keys=never) as stub:
        error = await error_of(kind, begin(stub, kind, timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not server.seen


async def test_a_call_can_be_cancelled_while_its_source_is_awaited(script, kind):
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never(outgoing):
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = script(answer())
    async with connected(server, keys=never) as stub:
        rpc = begin(stub, kind)
        await asked.wait()
        rpc.cancel()
        with pytest.raises(asyncio.CancelledError):
            await responses_of(kind, rpc)
        await cancelled.wait()
        assert not server.seen


async def test_the_metadata_that_was_given_is_left_as_it_was(script):
    metadata = grpc.aio.Metadata(("tenant", "blue"))
    server = script(answer())
    async with connected(server) as stub:
        for _ in range(2):
            await stub.Unary(pb.LedgerRequest(), metadata=metadata)
        assert tuple(metadata) == (("tenant", "blue"),)
        assert [seen.metadata["tenant"] for seen in server.seen] == ["blue", "blue"]
        assert len(set(server.keys)) == 2
