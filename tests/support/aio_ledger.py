"""The ledger, protected by the interceptor of ``idem_grpc.aio``, on the event loop of the test."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from tests.server.ledger import Ledger
from tests.server.servicers import AsyncServicer


class LedgerServer(grpc.aio.ServerInterceptor):
    """A server: where it is, what its handlers did, and the methods of the attempts that came."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.address = ""
        self.attempts: list[str] = []

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self.attempts.append(handler_call_details.method)
        return await continuation(handler_call_details)


@asynccontextmanager
async def ledger_server(
    servicer: Callable[[Ledger], Any] = AsyncServicer,
    *,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    **settings: Any,
) -> AsyncIterator[LedgerServer]:
    """A server in this loop. ``settings`` are those of the interceptor."""
    it = LedgerServer()
    store = idem_grpc.aio.open_store("memory:", namespace=uuid4().hex)
    protection: Any = idem_grpc.aio.ServerInterceptor(store, **{"scope": idem_grpc.SHARED, **settings})
    server = grpc.aio.server(interceptors=[it, protection])
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer(it.ledger), server)
    server.add_generic_rpc_handlers(tuple(handlers))
    it.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield it
    finally:
        it.ledger.open_all()
        await server.stop(0)
        await protection.drain(10)
        await store.aclose()
