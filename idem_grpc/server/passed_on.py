"""What interceptors outside passed on, for the handlers of the TokenService.

A handler's context has the metadata that arrived, and not what interceptors made of it, so
our interceptor hands the handler-call details to these handlers.
"""

from contextvars import ContextVar
from typing import Any

import grpc

from idem_grpc.outcome import Metadata
from idem_grpc.server.admission import metadata_of
from idem_grpc.server.arities import Handler, is_async

TOKEN_SERVICE = "/idem.v1.TokenService/"

_details: ContextVar[Any] = ContextVar("idem_grpc_details", default=None)


def with_details(handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
    """A handler of the TokenService for which ``metadata_here`` gives the metadata of ``details``."""
    serve: Any = handler.unary_unary
    if serve is None:
        return handler

    def behavior(request: Any, context: Any) -> Any:
        token = _details.set(details)
        try:
            return serve(request, context)
        finally:
            _details.reset(token)

    async def async_behavior(request: Any, context: Any) -> Any:
        _details.set(details)  # in the RPC's own task
        return await serve(request, context)

    return grpc.unary_unary_rpc_method_handler(
        async_behavior if is_async(serve) else behavior,
        handler.request_deserializer,
        handler.response_serializer,
    )


def metadata_here(context: Any) -> Metadata:
    """The metadata of the call being served: that of ``context`` where no interceptor of ours is.

    Raises Refused for metadata that is none.
    """
    details = _details.get()
    return tuple(context.invocation_metadata() or ()) if details is None else metadata_of(details)[0]
