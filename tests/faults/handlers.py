"""Handlers of servers in these tests, and wrappers for handlers, as other interceptors make them."""

from collections.abc import Callable
from typing import Any

import grpc

from tests.server.client import Kind
from tests.streams.scripts import Do, Read, Send


def ending(
    kind: Kind, way: Callable[[Any], Any], *, first: bytes | None = b"first", last: bytes | None = b"last"
) -> dict[Kind, Any]:
    """Scripts of a handler that reads one request, runs ``way``, and answers if that did not end it.

    A response stream has ``first`` before that, and ``last`` after it, unless they are None.
    """

    def script(context: Any) -> Any:
        yield Read()
        if kind.has_response_stream and first is not None:
            yield Send(first)
        yield from way(context)
        if kind.has_response_stream and last is not None:
            yield Send(last)
        return b"answer"

    return {kind: script}


def doing(kind: Kind, act: Callable[[Any], object]) -> dict[Kind, Any]:
    """Scripts of a handler that reads one request, calls ``act`` with its context, and answers."""

    def way(context: Any) -> Any:
        yield Do(lambda: act(context))

    return ending(kind, way, first=None, last=b"answer")


def behavior_of(handler: Any) -> Any:
    """The function that serves the method."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def like(handler: Any, behavior: Callable[[Any, Any], Any], *, bare: bool = False) -> Any:
    """A handler of the same kind with another behavior; without its parser and serializer if ``bare``."""
    words = [
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    ]
    functions = () if bare else (handler.request_deserializer, handler.response_serializer)
    return getattr(grpc, f"{'_'.join(words)}_rpc_method_handler")(behavior, *functions)
