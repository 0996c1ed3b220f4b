"""Which key a call bears, and that it is the same in all its attempts."""

import asyncio

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import keys
from tests.client_aio.scripted import answer, call, connected, error_of, fails, serving
from tests.server.client import Kind
from tests.server.ledger import SERVICE

REQUEST = pb.LedgerRequest(order="one")


async def test_one_call_has_one_key_in_all_its_attempts(kind):
    async with serving(fails(), fails(), fails()) as server, connected(server) as stub:
        await error_of(kind, call(stub, kind))
        assert len(server.seen) > 3
        assert len(set(server.keys)) == 1
        before = len(server.seen)
        await error_of(kind, call(stub, kind))
        assert server.keys[0] != server.keys[before]


async def test_the_metadata_of_the_call_comes_first():
    async with serving() as server, connected(server, keys=keys.from_request("order:{order}")) as stub:
        with keys.using("used"):
            await stub.Unary(REQUEST, metadata=(("idempotency-key", "given"), ("tenant", "blue")))
        assert server.keys == ["given"]
        assert server.seen[0].metadata["tenant"] == "blue"


async def test_then_the_key_that_is_used_and_only_once():
    async with serving() as server, connected(server, keys=keys.from_request("order:{order}")) as stub:
        with keys.using("used"):
            await stub.Unary(REQUEST)
            await stub.Unary(REQUEST)
        assert server.keys == ["used", "order:one"]


async def test_the_key_that_is_used_is_that_of_the_call_that_is_made_first():
    async with serving() as server, connected(server, keys=None) as stub:
        with keys.using("used"):
            rpc = stub.Unary(pb.LedgerRequest(order="first"))
        await stub.Unary(pb.LedgerRequest(order="second"))
        await rpc
        assert {seen.requests[0].order: seen.key for seen in server.seen} == {"first": "used", "second": None}


async def test_a_source_may_be_chosen_by_method():
    sources = {
        f"/{SERVICE}/*": lambda outgoing: f"any:{outgoing.method}",
        f"/{SERVICE}/Unary": keys.from_request("order:{order}"),
    }
    async with serving() as server, connected(server, keys=sources) as stub:
        await answer(Kind.UNARY, call(stub, Kind.UNARY))
        await answer(Kind.BIDI, call(stub, Kind.BIDI))
        assert server.keys == ["order:one", f"any:/{SERVICE}/Bidi"]


async def test_a_source_may_be_awaited(kind):
    released = asyncio.Event()

    async def slow(outgoing):
        await released.wait()
        return f"slow:{outgoing.method}"

    async with serving(fails(), fails()) as server, connected(server, keys=slow) as stub:
        rpc = asyncio.ensure_future(error_of(kind, call(stub, kind)))
        await asyncio.sleep(0)
        assert not server.seen
        released.set()
        await rpc
        assert set(server.keys) == {f"slow:{kind.path}"}


async def test_the_deadline_holds_for_the_source_too(kind):
    async def never(outgoing):
        await asyncio.Event().wait()

    async with serving() as server, connected(server, keys=never) as stub:
        error = await error_of(kind, call(stub, kind, timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not server.seen


async def test_a_call_can_be_cancelled_while_its_source_is_awaited(kind):
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never(outgoing):
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving() as server, connected(server, keys=never) as stub:
        rpc = call(stub, kind)
        await asked.wait()
        rpc.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer(kind, rpc)
        await cancelled.wait()
        assert not server.seen


@pytest.mark.parametrize("given", ["", "blank space", "ü", 7])
async def test_a_key_that_may_not_be_sent_is_refused_before_it_is(given):
    async with serving() as server, connected(server, keys=lambda outgoing: given) as stub:
        with pytest.raises(ValueError, match="0x21 to 0x7E"):
            await stub.Unary(REQUEST)
        assert not server.seen


async def test_what_a_source_raises_comes_out_of_the_call(kind):
    def broken(outgoing):
        raise LookupError("no such tenant")

    async with serving() as server, connected(server, keys=broken) as stub:
        with pytest.raises(LookupError, match="no such tenant"):
            await answer(kind, call(stub, kind))
        assert not server.seen


async def test_methods_without_side_effects_bear_no_key_and_are_retried():
    async with serving(fails(), fails(), fails()) as server, connected(server) as stub:
        error = await error_of(Kind.READ, stub.Read(REQUEST))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert len(server.seen) == 10
        assert set(server.keys) == {None}


async def test_a_call_with_neither_key_nor_idempotency_is_sent_once(kind):
    async with serving(fails()) as server, connected(server, keys=None) as stub:
        error = await error_of(kind, call(stub, kind))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert server.keys == [None]


async def test_without_retry_a_call_only_gets_its_key(kind):
    async with serving(fails()) as server, connected(server, retry=None) as stub:
        await error_of(kind, call(stub, kind))
        (key,) = server.keys
        assert key


async def test_the_metadata_that_was_given_is_left_as_it_was():
    metadata = grpc.aio.Metadata(("tenant", "blue"))
    async with serving() as server, connected(server) as stub:
        await stub.Unary(REQUEST, metadata=metadata)
        await stub.Unary(REQUEST, metadata=metadata)
        assert tuple(metadata) == (("tenant", "blue"),)
        assert len(set(server.keys)) == 2


async def test_all_attempts_send_the_request_as_it_was():
    async with serving(fails(), fails(hangs=True)) as server, connected(server) as stub:
        request = pb.LedgerRequest(order="one")
        rpc = stub.Unary(request)
        await server.attempts(1)
        request.order = "changed meanwhile"
        await server.attempts(2)
        assert [seen.requests[0].order for seen in server.seen] == ["one", "one"]
        rpc.cancel()
