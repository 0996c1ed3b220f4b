"""Uniform access to the four kinds of grpc method handler."""

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from idem_grpc._core.problem import Problem, Reason
from idem_grpc._server.replies import GRPC_CODES

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic for type checkers only
else:
    Handler = grpc.RpcMethodHandler

Behavior = Callable[[Any, Any], Any]


class Raw:
    """An unparsed message, as outer interceptors see it.

    Not a bytes object: those are iterable, and an interceptor may mistake one for a stream.
    """

    __slots__ = ("body",)

    def __init__(self, body: bytes) -> None:
        self.body = body

    def SerializeToString(self) -> bytes:
        return self.body

    def ByteSize(self) -> int:
        return len(self.body)


def body_of(message: Any) -> tuple[bytes, Callable[[bytes], Any]]:
    """Return the bytes of a message, and the type in which to return messages to outer interceptors.

    The type is Raw, or bytes if an outer interceptor dropped the serializers of the handler, as some do for
    services whose messages are bytes.
    """
    if isinstance(message, Raw):
        return message.body, Raw
    if isinstance(message, bytes):
        return message, bytes
    return message.SerializeToString(), Raw


class RawHandler(Handler):
    """A handler of the same kind as ``like`` that takes and returns messages of class Raw.

    It also serializes messages of the method's own class, since an outer interceptor may answer with one.
    """

    request_deserializer = Raw
    unary_unary = unary_stream = stream_unary = stream_stream = None

    def __init__(self, like: Handler, behavior: Behavior) -> None:
        self.request_streaming = like.request_streaming
        self.response_streaming = like.response_streaming
        self._serialize = like.response_serializer
        if like.request_streaming:
            if like.response_streaming:
                self.stream_stream = behavior
            else:
                self.stream_unary = behavior
        elif like.response_streaming:
            self.unary_stream = behavior
        else:
            self.unary_unary = behavior

    def response_serializer(self, response: Any) -> Any:
        if type(response) is Raw:
            return response.body
        return response if self._serialize is None else self._serialize(response)


def behavior_of(handler: Handler) -> Behavior:
    """Return the function that serves the method. Selected by kind, as in grpc: proxies may have all four."""
    if handler.request_streaming:
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert behavior is not None
    return behavior


def is_async(behavior: Behavior) -> bool:
    """Whether a handler function runs on the event loop rather than on a thread."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


def close(responses: Any) -> None:
    """Close a response generator, so that its cleanup does not overlap with the next run of the call."""
    if (closing := getattr(responses, "close", None)) is not None:
        closing()


class NotSerialized(Exception):
    """A handler's response cannot be sent."""


def serialized(serialize: Callable[[Any], Any] | None, response: Any) -> bytes:
    """Serialize a response with the handler's serializer. Raises NotSerialized if that fails."""
    try:
        body = response if serialize is None else serialize(response)
    except Exception as error:
        raise NotSerialized(f"{type(response)} cannot be serialized") from error
    if not isinstance(body, bytes):
        raise NotSerialized(f"{type(response)} was serialized to {type(body)}, not to bytes")
    return body


logger = logging.getLogger("idem_grpc")

_WRONG = "idem_grpc.aio.ServerInterceptor was given to grpc.server: give it idem_grpc.ServerInterceptor"


def refusing(handler: Any, method: str) -> Handler | None:
    """Return a handler like ``handler`` that refuses all calls, including those without a key."""
    logger.critical("%s is refused, like all calls: %s", method, _WRONG)
    if handler is None:
        return None
    if hasattr(handler, "close"):  # the coroutine of another asyncio interceptor
        handler.close()
        handler = grpc.unary_unary_rpc_method_handler(_unary)
    return RawHandler(handler, _stream if handler.response_streaming else _unary)


def _unary(request: Any, context: grpc.ServicerContext) -> Any:
    refusal = Problem(Reason.MISCONFIGURED, _WRONG).outcome()
    context.set_trailing_metadata(refusal.trailing_metadata)
    context.abort(GRPC_CODES[refusal.code], refusal.details)


def _stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    yield _unary(request, context)
