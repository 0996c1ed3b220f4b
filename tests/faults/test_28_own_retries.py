"""A keyed handler that retries a failed call in its own code, such as with tenacity."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from idem_grpc import Policy, current, keys
from tests.client.conftest import connect, script, stub_of
from tests.server.ledger import order
from tests.server.servicers import AsyncServicer
from tests.support.aio_ledger import ledger_server
from tests.support.pages import block
from tests.support.scripted import answer, fail

__all__ = ["connect", "script", "stub_of"]  # fixtures are found by name

ITEM = SimpleNamespace(sku="tea")


def insisting(make):
    """Retry without end, as tenacity does."""
    while True:
        try:
            return make()
        except grpc.RpcError:
            pass


@pytest.fixture
def down(script):
    """A server for three tries in the first run of the handler, and two in the second."""
    return script(fail(), fail(), answer(), fail(), answer())


def test_all_tries_have_the_same_key_with_the_code_of_the_page(down, stub_of, start, key):
    stub = stub_of(down, keys=None, retry=None)
    inventory = SimpleNamespace(Reserve=lambda item: stub.Unary(pb.LedgerRequest(order=item.sku)))
    reserve = block("client.md", "tenacity")["reserve"]
    run_twice(start, key, lambda: insisting(lambda: reserve(inventory, ITEM)))
    assert len(down.keys) == 5
    assert len(set(down.keys)) == 1


@pytest.mark.parametrize("step", [False, True], ids=["bare", "in a step"])
def test_without_the_code_of_the_page_each_try_has_another_key(down, stub_of, start, key, step):
    """As the page says: a retry cannot be distinguished from another call."""
    stub = stub_of(down, keys=None, retry=None)

    def reserve():
        if not step:
            return stub.Unary(pb.LedgerRequest(order="tea"))
        with keys.step("reserve"):
            return stub.Unary(pb.LedgerRequest(order="tea"))

    run_twice(start, key, lambda: insisting(reserve))
    first, second = down.keys[:3], down.keys[3:]
    assert len(set(first)) == 3
    assert second == first[:2]


def run_twice(start, key, act):
    """Run ``act`` in a keyed handler twice, since the first run has no answer."""

    def handle(request, context):
        act()
        context.abort(grpc.StatusCode.ABORTED, "so that it runs again")

    method: Any = grpc.unary_unary_rpc_method_handler(handle)
    front = start(handlers=[grpc.method_handlers_generic_handler("tests.Front", {"Do": method})])
    for _ in "12":
        with pytest.raises(grpc.RpcError) as error:
            front.client.channel.unary_unary("/tests.Front/Do")(b"", metadata=[("idempotency-key", key)])
        assert error.value.code() is grpc.StatusCode.ABORTED, error.value.details()


def test_all_tries_of_a_coroutine_have_the_same_key(down, key):
    class Servicer(AsyncServicer):
        async def Unary(self, request, context):
            ours = idem_grpc.aio.client_interceptors(retry=None)
            async with grpc.aio.insecure_channel(down.address, interceptors=ours) as channel:
                stub = ledger_pb2_grpc.LedgerServiceStub(channel)
                while True:
                    try:
                        run = current()
                        assert run is not None
                        with keys.using(run.derive("reserve")):
                            await stub.Unary(pb.LedgerRequest(order="tea"))
                        break
                    except grpc.aio.AioRpcError:
                        pass
            await context.abort(grpc.StatusCode.ABORTED, "so that it runs again")

    async def main():
        async with (
            ledger_server(Servicer, default=Policy()) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            request = order()
            for _ in "12":
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.Unary(request, metadata=(("idempotency-key", key),))
                assert error.value.code() is grpc.StatusCode.ABORTED, error.value.details()

    asyncio.run(main())
    assert len(down.keys) == 5
    assert len(set(down.keys)) == 1
