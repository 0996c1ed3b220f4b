"""The asyncio interceptor on a threaded server: every call is refused, and the log says why."""

import logging
from collections.abc import Iterator
from typing import Any

import grpc

from idem_grpc.problem import Problem, Reason
from idem_grpc.server.arities import Handler, RawHandler
from idem_grpc.server.replies import GRPC_CODES

logger = logging.getLogger("idem_grpc")

_WRONG = "idem_grpc.aio.ServerInterceptor was given to grpc.server: give it idem_grpc.ServerInterceptor"


def refusing(handler: Any, method: str) -> Handler | None:
    """A handler in the place of ``handler`` that refuses its calls; those without a key as well."""
    logger.critical("%s is refused, as is every call: %s", method, _WRONG)
    if handler is None:
        return None
    if hasattr(handler, "close"):  # the coroutine of another interceptor that is misplaced
        handler.close()
        handler = grpc.unary_unary_rpc_method_handler(_unary)
    return RawHandler(handler, _stream if handler.response_streaming else _unary)


def _unary(request: Any, context: grpc.ServicerContext) -> Any:
    refusal = Problem(Reason.MISCONFIGURED, _WRONG).outcome()
    context.set_trailing_metadata(refusal.trailing_metadata)
    context.abort(GRPC_CODES[refusal.code], refusal.details)


def _stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    yield _unary(request, context)
