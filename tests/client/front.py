"""A keyed service whose handlers are functions of the test: the front of a call tree."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from tests.server.harness import SyncServer, open_store

Handler = Callable[[Any, Any], Any]


class Front(grpc.GenericRpcHandler):
    """Methods of one request and one response, by name: ``Front(Pay=handler)``."""

    def __init__(self, scope: Any = idem_grpc.SHARED, **handlers: Handler) -> None:
        self._handlers = handlers
        store = open_store("sync", "memory:", uuid4().hex)
        self.server = SyncServer(store, scope=scope, handlers=[self])

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.removeprefix("/tests.Front/")
        if name not in self._handlers:
            return None
        handler = self._handlers[name]

        def behavior(request: Any, context: Any) -> Any:
            return handler(request, context) or pb.LedgerResponse()

        return grpc.unary_unary_rpc_method_handler(
            behavior, pb.LedgerRequest.FromString, pb.LedgerResponse.SerializeToString
        )

    def call(self, name: str = "Do", *, key: str = "parent", amount: int = 1, tenant: str = "") -> Any:
        """Call it once, with a plain client: the code and the details that it answers with."""
        method = self.server.client.channel.unary_unary(
            f"/tests.Front/{name}", pb.LedgerRequest.SerializeToString, pb.LedgerResponse.FromString
        )
        metadata = (("idempotency-key", key), ("x-tenant", tenant))
        call = method.future(pb.LedgerRequest(amount=amount), metadata=metadata, timeout=30)
        return call.code(), call.details()
