"""Handlers as interceptors of others' make them, of the one that is inside."""

from collections.abc import Callable
from typing import Any

import grpc


def behavior_of(handler: Any) -> Any:
    """The function that serves the method."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def like(handler: Any, behavior: Callable[[Any, Any], Any], *, bare: bool = False) -> Any:
    """A handler of the same kind with another behavior; without the functions of messages if ``bare``."""
    words = [
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    ]
    functions = () if bare else (handler.request_deserializer, handler.response_serializer)
    return getattr(grpc, f"{'_'.join(words)}_rpc_method_handler")(behavior, *functions)
