"""What only calls of ``grpc.aio`` have: waiting for the connection, and interceptors around the library's."""

import asyncio

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import client_interceptors, keys, replayed
from tests.server.client import Kind
from tests.support.aio_calls import QUICK, begin, connected, error_of, responses_of
from tests.support.scripted import UNAVAILABLE, answer, fail

OK = grpc.StatusCode.OK
SETTINGS = {"no interceptors": {"interceptors": []}, "a key only": {"retry": None}, "retries": {}}


@pytest.fixture(params=list(SETTINGS))
def settings(request):
    """What holds for grpc's own calls must hold for those that get a key, and that may be retried."""
    return SETTINGS[request.param]


async def test_the_error_of_a_call(script, settings, kind):
    async with connected(script(fail(grpc.StatusCode.NOT_FOUND)), **settings) as stub:
        rpc = begin(stub, kind)
        assert type(await error_of(kind, rpc)) is grpc.aio.AioRpcError
        assert await rpc.debug_error_string()


async def test_waiting_for_the_connection(script, settings, kind):
    async with connected(script(answer()), **settings) as stub:
        rpc = begin(stub, kind)
        await rpc.wait_for_connection()
        assert await responses_of(kind, rpc)


async def test_waiting_for_the_connection_spans_attempts(script, kind):
    server = script(fail(), fail(), answer())
    async with connected(server) as stub:
        rpc = begin(stub, kind)
        await rpc.wait_for_connection()
        assert await responses_of(kind, rpc)
        assert len(server.seen) == 3


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], ids=lambda kind: kind.value)
async def test_a_connection_that_is_never_made(script, kind):
    async with connected(script(fail())) as stub:
        rpc = begin(stub, kind)
        if kind is Kind.SERVER_STREAM:
            assert await rpc.code() is UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.wait_for_connection()
        assert raised.value.code() is UNAVAILABLE


async def test_a_call_goes_on_though_nobody_holds_it(script):
    server = script(fail(), answer())
    async with connected(server) as stub:
        ended = asyncio.Event()
        begin(stub, Kind.UNARY).add_done_callback(lambda _: ended.set())
        await ended.wait()
        assert len(server.seen) == 2


class Observer(grpc.aio.UnaryUnaryClientInterceptor):
    """Another interceptor, which sees the call object."""

    def __init__(self):
        self.seen = []

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        rpc = await continuation(client_call_details, request)
        self.seen.append((await rpc.code(), rpc.done(), rpc.time_remaining()))
        return rpc


async def test_interceptors_further_out_see_one_call(script):
    outer = Observer()
    ours = client_interceptors(keys=keys.unique, retry=QUICK)
    async with connected(script(fail(), answer()), interceptors=[outer, *ours]) as stub:
        assert await stub.Unary(pb.LedgerRequest(), timeout=60)
        ((code, is_done, left),) = outer.seen
        assert (code, is_done) == (OK, True)
        assert 0 < left <= 60


async def test_interceptors_further_in_see_every_attempt(script):
    inner = Observer()
    ours = client_interceptors(keys=keys.unique, retry=QUICK)
    async with connected(script(fail(), answer()), interceptors=[*ours, inner]) as stub:
        assert await stub.Unary(pb.LedgerRequest(), timeout=60)
        assert [code for code, *_ in inner.seen] == [UNAVAILABLE, OK]


@pytest.mark.parametrize("retry", [None, QUICK], ids=["a key only", "retries"])
async def test_an_interceptor_further_in_may_answer_itself(script, retry):
    class Cached(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, client_call_details, request):
            return pb.LedgerResponse(entry="cached")

    server = script(answer())
    ours = client_interceptors(keys=keys.unique, retry=retry)
    async with connected(server, interceptors=[*ours, Cached()]) as stub:
        rpc = stub.Unary(pb.LedgerRequest())
        assert (await rpc).entry == "cached"
        assert await rpc.code() is OK
        assert await replayed(rpc) is None
        assert not server.seen
