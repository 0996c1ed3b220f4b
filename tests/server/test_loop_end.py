"""An event loop that ends while handlers run on its threads, or while drain waits."""

import asyncio
import threading
from typing import Any

import grpc
import pytest

import idem_grpc.aio
from idem_grpc import SHARED
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record, State
from tests.server.client import Client, Kind
from tests.server.ledger import SERVICE, Gate, order, run
from tests.support.wait import until

AT_WORK = "at work"
TURNS = 200  # of the loop; what a cancelled flow does with a store in memory takes a few of them


class Ending:
    """A loop that ends while a plain handler is at a gate, which opens after that."""

    def __init__(self, store):
        self.store = store
        self.gate = Gate()
        self.seen = []

    def state(self):
        name = store_key(self.store.blocking.namespace, Kind.UNARY.path, b"", "key")
        return Record.from_bytes(self.store.blocking.read(name).value).state

    def handler(self, request, context):
        self.gate.cross()
        self.seen.append(self.state())
        return b"done"

    async def open_gate_at_the_end(self):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self.gate.open()
            raise

    async def main(self):
        interceptor = idem_grpc.aio.ServerInterceptor(self.store, scope=SHARED)
        server = grpc.aio.server(interceptors=[interceptor])
        methods: dict[str, Any] = {Kind.UNARY.value: grpc.unary_unary_rpc_method_handler(self.handler)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        call = client.begin(Kind.UNARY, order(), "key")
        await asyncio.to_thread(self.gate.await_arrival)
        await server.stop(0)
        await asyncio.to_thread(call.answer)
        client.channel.close()
        self.last = asyncio.create_task(self.open_gate_at_the_end())
        await asyncio.sleep(0)


def test_a_thread_that_outlives_its_loop_keeps_its_run():
    """A thread cannot be cancelled: if its run counted as ended, a retry would run at the same time."""
    ending = Ending(idem_grpc.aio.open_store("memory:"))
    asyncio.run(ending.main())
    assert ending.seen == [State.RUNNING]
    assert ending.state() is State.DONE


@pytest.mark.parametrize("face", ["aio"], indirect=True)
def test_a_drain_that_is_cancelled_leaves_no_thread(start, key):
    """A thread that still waits would keep the process from exiting."""
    server = start()
    server.client.begin(Kind.UNARY, order(run(gate=AT_WORK)), key)
    server.ledger.gate(AT_WORK).await_arrival()
    before = set(threading.enumerate())

    async def cancelled_drain():
        drain = asyncio.create_task(server.interceptor.drain())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        drain.cancel()
        await asyncio.wait([drain])
        return drain.cancelled()

    assert server.run(cancelled_drain())
    until(lambda: set(threading.enumerate()) <= before)
    assert server.drain(0) == 1


class DrainAtOnce(grpc.aio.ServerInterceptor):
    """Drains in the same turn of the loop in which a call has arrived."""

    def __init__(self):
        self.ours: Any = None
        self.left = []

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def behavior(request, context):
            answer = asyncio.create_task(handler.unary_unary(request, context))
            await asyncio.sleep(0)
            self.left.append(await self.ours.drain(0))
            return await answer

        return grpc.unary_unary_rpc_method_handler(behavior)


@pytest.mark.parametrize("face", ["aio"], indirect=True)
def test_drain_waits_for_a_flow_that_has_not_begun(start, key):
    outside = DrainAtOnce()
    server = start(before=[outside])
    outside.ours = server.interceptor
    call = server.client.begin(Kind.UNARY, order(run(gate=AT_WORK)), key)
    until(lambda: outside.left)
    server.ledger.gate(AT_WORK).open()
    assert call.answer().ok
    assert outside.left == [1]
