"""The kinds of method that grpc has, told apart in one place."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic for type checkers only
else:
    Handler = grpc.RpcMethodHandler

Behavior = Callable[[Any, Any], Any]

_FACTORIES = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Raw:
    """A message as interceptors outside this one see it: its bytes, unparsed.

    It is no bytes object, which can be iterated: an interceptor may take that for a stream.
    """

    __slots__ = ("body",)

    def __init__(self, body: bytes) -> None:
        self.body = body

    def SerializeToString(self) -> bytes:
        return self.body

    def ByteSize(self) -> int:
        return len(self.body)


class Outside:
    """How the messages of one call look outside this interceptor: as Raw, or as bytes.

    They are bytes where an interceptor has left out the functions of our handler, as works
    without us for a service that deals in bytes.
    """

    __slots__ = ("wrap",)

    def __init__(self) -> None:
        self.wrap: Callable[[bytes], Any] = Raw

    def taken(self, message: Any) -> bytes:
        """The bytes of a message that came from outside."""
        if isinstance(message, bytes):
            self.wrap = bytes
            return message
        body: bytes = message.SerializeToString()
        return body


def raw_handler(like: Handler, behavior: Behavior) -> Handler:
    """A handler of the same kind that is given, and gives, messages of class Raw.

    An interceptor outside may answer in its place, with a message of the method's own class.
    """
    serialize = like.response_serializer

    def body_of(response: Any) -> Any:
        if isinstance(response, Raw):
            return response.body
        return response if serialize is None else serialize(response)

    make = _FACTORIES[bool(like.request_streaming), bool(like.response_streaming)]
    return make(behavior, request_deserializer=Raw, response_serializer=body_of)


def behavior_of(handler: Handler) -> Behavior:
    """The function that serves the method. Like grpc, it goes by the kind: proxies may have all four."""
    if handler.request_streaming:
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert behavior is not None
    return behavior


def is_async(behavior: Behavior) -> bool:
    """Whether it runs on the event loop, and not on a thread."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


@contextmanager
def closed_after(responses: Any) -> Iterator[None]:
    """Close a generator with the block: what it does last must not meet the next run of its call."""
    try:
        yield
    finally:
        close = getattr(responses, "close", None)
        if close is not None:
            close()


class NotSerialized(Exception):
    """A handler's response cannot be sent."""


def serialized(handler: Handler, response: Any) -> bytes:
    """A response as bytes, by the handler's own function. Raises NotSerialized."""
    try:
        body = response if handler.response_serializer is None else handler.response_serializer(response)
    except Exception as error:
        raise NotSerialized(f"{type(response)} cannot be serialized") from error
    if not isinstance(body, bytes):
        raise NotSerialized(f"{type(response)} was serialized to {type(body)}, not to bytes")
    return body
