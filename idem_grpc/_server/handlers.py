"""The kinds of method that grpc has, told apart in one place."""

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


def body_of(message: Any) -> tuple[bytes, Callable[[bytes], Any]]:
    """The bytes of a message that came from outside, and how messages go back there: as Raw, or as bytes.

    They are bytes where an interceptor has left out the functions of our handler, as works without us for a
    service that deals in bytes.
    """
    if isinstance(message, Raw):
        return message.body, Raw
    if isinstance(message, bytes):
        return message, bytes
    return message.SerializeToString(), Raw


class RawHandler(Handler):
    """A handler of the same kind as ``like`` that is given, and gives, messages of class Raw.

    An interceptor outside may answer in its place, with a message of the method's own class.
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


def close(responses: Any) -> None:
    """Close a generator that is left: what it does last must not meet the next run of its call."""
    if (closing := getattr(responses, "close", None)) is not None:
        closing()


class NotSerialized(Exception):
    """A handler's response cannot be sent."""


def serialized(serialize: Callable[[Any], Any] | None, response: Any) -> bytes:
    """A response as bytes, by the handler's own function. Raises NotSerialized."""
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
