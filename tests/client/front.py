"""A keyed service whose handlers are functions of the test: the front of a call tree."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from tests.client.faces import AsyncFace, SyncFace
from tests.server.client import Client

Handler = Callable[[Any], object]


class Abort(Exception):
    """Raised by a handler with a code and details: the answer of the call."""


class Front(grpc.GenericRpcHandler):
    """Methods of one request and one response, by name: ``Front(face, Pay=handler)``.

    The server is of the given face; its handlers run on threads on both faces.
    """

    def __init__(self, face: SyncFace, scope: Any = idem_grpc.SHARED, **handlers: Handler) -> None:
        self._is_async = isinstance(face, AsyncFace)
        self._handlers = handlers
        self._client = Client(face.server(handlers=[self], scope=scope).address)

    def close(self) -> None:
        self._client.channel.close()

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.removeprefix("/tests.Front/")
        if name not in self._handlers:
            return None
        handler = self._handlers[name]

        def behavior(request: Any, context: Any) -> Any:
            try:
                handler(request)
            except Abort as abort:
                context.abort(*abort.args)
            return pb.LedgerResponse()

        async def async_behavior(request: Any, context: Any) -> Any:
            try:
                await asyncio.to_thread(handler, request)
            except Abort as abort:
                await context.abort(*abort.args)
            return pb.LedgerResponse()

        return grpc.unary_unary_rpc_method_handler(
            async_behavior if self._is_async else behavior,
            pb.LedgerRequest.FromString,
            pb.LedgerResponse.SerializeToString,
        )

    def call(self, name: str = "Do", *, key: str = "parent", amount: int = 1, tenant: str = "") -> Any:
        """Call it once, with a plain client: the code and the details that it answers with."""
        method = self._client.channel.unary_unary(
            f"/tests.Front/{name}", pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString
        )
        metadata = (("idempotency-key", key), ("x-tenant", tenant))
        call = method.future(pb.LedgerRequest(amount=amount), metadata=metadata, timeout=30)
        return call.code(), call.details()
