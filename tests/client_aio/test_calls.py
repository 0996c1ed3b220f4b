"""A call through the interceptors has the manners of grpc's own, retried or not."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

from idem_grpc.aio import client_interceptors, keys, reason, replayed
from tests.client_aio.scripted import NOWHERE, QUICK, Step, answer, call, connected, error_of, fails, serving
from tests.server.certificates import ALICE, server_credentials
from tests.server.client import REPLAYED, RUN, Kind

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
BOUNCED = fails(grpc.StatusCode.NOT_FOUND, trailing=(("fee", "12"),), initial=(("a", "b"),))
FINE = Step(trailing=(("fee", "12"),), initial=(("a", "b"),))

SETTINGS = {
    "no interceptors": {"interceptors": []},
    "a key only": {"retry": None},
    "retries": {},
}


@pytest.fixture(params=list(SETTINGS))
def settings(request):
    """What holds for grpc's own calls must hold for those that get a key, and that may be retried."""
    return SETTINGS[request.param]


async def test_a_call_that_succeeds(settings, kind):
    async with serving(FINE) as server, connected(server, **settings) as stub:
        rpc = call(stub, kind)
        assert not rpc.done()
        assert dict(tuple(await rpc.initial_metadata() or ()))["a"] == "b"
        await answer(kind, rpc)
        assert await rpc.code() is grpc.StatusCode.OK
        assert await rpc.details() == ""
        assert dict(tuple(await rpc.trailing_metadata())) == {"fee": "12"}
        assert rpc.done()
        assert not rpc.cancelled()
        assert not rpc.cancel()


async def test_a_call_that_fails(settings, kind):
    begun = asyncio.Event()
    async with (
        serving(replace(BOUNCED, ends_after=begun)) as server,
        connected(server, **settings) as stub,
    ):
        rpc = call(stub, kind)
        if kind.has_response_stream:  # grpc drops initial metadata that comes along with the status
            await rpc.initial_metadata()
        begun.set()
        error = await error_of(kind, rpc)
        assert type(error) is grpc.aio.AioRpcError
        assert await rpc.code() is error.code() is grpc.StatusCode.NOT_FOUND
        assert await rpc.details() == error.details() == "attempt 0 failed"
        assert tuple(await rpc.trailing_metadata()) == tuple(error.trailing_metadata()) == (("fee", "12"),)
        assert dict(tuple(error.initial_metadata()))["a"] == "b"
        assert dict(tuple(await rpc.initial_metadata()))["a"] == "b"
        assert await rpc.debug_error_string()
        assert rpc.done()
        assert not rpc.cancelled()


async def test_a_call_that_is_cancelled(settings, kind):
    async with serving(Step(hangs=True, responses=0)) as server, connected(server, **settings) as stub:
        rpc = call(stub, kind)
        await server.attempts(1)
        assert rpc.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer(kind, rpc)
        assert await rpc.code() is CANCELLED
        assert await rpc.details() == "Locally cancelled by application!"
        assert dict(tuple(await rpc.trailing_metadata() or ())) == {}
        assert rpc.cancelled()
        assert rpc.done()
        assert not rpc.cancel()


async def test_the_status_of_a_call_that_nobody_awaits(settings, kind):
    async with serving(BOUNCED) as server, connected(server, **settings) as stub:
        rpc = call(stub, kind)
        assert await rpc.code() is grpc.StatusCode.NOT_FOUND
        assert await rpc.details() == "attempt 0 failed"


@pytest.mark.parametrize("step", [FINE, BOUNCED, fails()], ids=["fine", "bounced", "retried"])
async def test_callbacks_are_called_once_with_the_call(settings, kind, step):
    async with serving(step, FINE) as server, connected(server, **settings) as stub:
        called: list[object] = []
        ended = asyncio.Event()
        rpc = call(stub, kind)
        rpc.add_done_callback(called.append)
        rpc.add_done_callback(lambda _: ended.set())
        await asyncio.gather(answer(kind, rpc), return_exceptions=True)
        await ended.wait()
        rpc.add_done_callback(called.append)
        assert called == [rpc, rpc]


async def test_callbacks_are_called_of_a_call_that_is_cancelled(settings, kind):
    async with serving(Step(hangs=True, responses=0)) as server, connected(server, **settings) as stub:
        ended = asyncio.Event()
        rpc = call(stub, kind)
        rpc.add_done_callback(lambda _: ended.set())
        await server.attempts(1)
        rpc.cancel()
        await ended.wait()


async def test_waiting_for_the_connection(settings, kind):
    async with serving(FINE) as server, connected(server, **settings) as stub:
        rpc = call(stub, kind)
        await rpc.wait_for_connection()
        assert await answer(kind, rpc)


async def test_waiting_for_the_connection_spans_attempts(kind):
    async with serving(fails(), fails(), FINE) as server, connected(server) as stub:
        rpc = call(stub, kind)
        await rpc.wait_for_connection()
        assert await answer(kind, rpc)
        assert len(server.seen) == 3


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], ids=lambda kind: kind.value)
async def test_the_connection_that_never_comes(kind):
    async with serving(fails()) as server, connected(server) as stub:
        rpc = call(stub, kind)
        if kind is Kind.SERVER_STREAM:
            assert await rpc.code() is UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.wait_for_connection()
        assert raised.value.code() is UNAVAILABLE


async def test_the_opening_is_that_of_the_attempt_that_has_one(kind):
    async with serving(fails(), fails(), FINE) as server, connected(server) as stub:
        rpc = call(stub, kind)
        assert dict(tuple(await rpc.initial_metadata())) == {"a": "b"}
        assert await answer(kind, rpc)


async def test_the_opening_comes_before_any_response():
    hangs = Step(initial=(("a", "b"),), hangs=True, responses=0, reads=0)
    async with serving(hangs) as server, connected(server) as stub:
        for kind in (Kind.SERVER_STREAM, Kind.BIDI):
            rpc = call(stub, kind)
            assert dict(tuple(await rpc.initial_metadata())) == {"a": "b"}
            assert not rpc.done()
            rpc.cancel()


async def test_a_call_goes_on_though_nobody_holds_it():
    async with serving(fails(), FINE) as server, connected(server) as stub:
        ended = asyncio.Event()
        call(stub, Kind.UNARY).add_done_callback(lambda _: ended.set())
        await ended.wait()
        assert len(server.seen) == 2


async def test_wait_for_ready_passes_through(kind):
    interceptors = client_interceptors(keys=keys.unique, retry=QUICK)
    async with grpc.aio.insecure_channel(NOWHERE, interceptors=interceptors) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        error = await error_of(kind, call(stub, kind, wait_for_ready=True, timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not getattr(error, "__notes__", [])


async def test_credentials_pass_through_in_every_attempt(kind):
    class Badge(grpc.AuthMetadataPlugin):
        def __call__(self, context, callback):
            callback((("badge", "alice"),), None)

    badge = grpc.metadata_call_credentials(Badge())
    interceptors = client_interceptors(keys=keys.unique, retry=QUICK)
    async with serving(fails(), Step(), credentials=server_credentials()) as server:
        port = server.address.rpartition(":")[2]
        async with grpc.aio.secure_channel(f"localhost:{port}", ALICE, interceptors=interceptors) as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            assert await answer(kind, call(stub, kind, credentials=badge))
        assert [seen.metadata.get("badge") for seen in server.seen] == ["alice", "alice"]


async def test_replays_and_refusals_can_be_told(kind):
    steps = (
        Step(trailing=((RUN, "r"), (REPLAYED, "true"))),
        Step(trailing=((RUN, "r"),)),
        Step(),
        BOUNCED,
    )
    async with serving(*steps) as server, connected(server) as stub:
        told = []
        for _ in range(3):
            rpc = call(stub, kind)
            await answer(kind, rpc)
            told.append(await replayed(rpc))
        assert told == [True, False, None]
        rpc = call(stub, kind)
        error = await error_of(kind, rpc)
        assert reason(error) is None
        assert await replayed(rpc) is None


class Outer(grpc.aio.UnaryUnaryClientInterceptor):
    """Another's interceptor, which gets to see our call object."""

    def __init__(self):
        self.seen = []

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        rpc = await continuation(client_call_details, request)
        self.seen.append((await rpc.code(), rpc.done(), rpc.time_remaining()))
        return rpc


async def test_interceptors_further_out_see_one_call():
    outer = Outer()
    ours = client_interceptors(keys=keys.unique, retry=QUICK)
    async with serving(fails(), FINE) as server, connected(server, interceptors=[outer, *ours]) as stub:
        assert await stub.Unary(pb.LedgerRequest(), timeout=60)
        ((code, is_done, left),) = outer.seen
        assert (code, is_done) == (grpc.StatusCode.OK, True)
        assert 0 < left <= 60


async def test_interceptors_further_in_see_every_attempt():
    inner = Outer()
    ours = client_interceptors(keys=keys.unique, retry=QUICK)
    async with serving(fails(), FINE) as server, connected(server, interceptors=[*ours, inner]) as stub:
        assert await stub.Unary(pb.LedgerRequest(), timeout=60)
        assert [code for code, *_ in inner.seen] == [UNAVAILABLE, grpc.StatusCode.OK]


@pytest.mark.parametrize("retry", [None, QUICK])
async def test_an_interceptor_further_in_may_answer_itself(retry):
    class Cached(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, client_call_details, request):
            return pb.LedgerResponse(entry="cached")

    ours = client_interceptors(keys=keys.unique, retry=retry)
    async with serving() as server, connected(server, interceptors=[*ours, Cached()]) as stub:
        rpc = stub.Unary(pb.LedgerRequest())
        assert (await rpc).entry == "cached"
        assert await rpc.code() is grpc.StatusCode.OK
        assert await replayed(rpc) is None
        assert not server.seen
