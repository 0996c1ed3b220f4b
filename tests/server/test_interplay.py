"""Other interceptors, outside and inside of the library's."""

from contextvars import ContextVar

import grpc
import pytest

from idem_grpc._core.record import State
from tests.server.ledger import order, run

GOOD = [("authorization", "good")]
caller: ContextVar[str] = ContextVar("caller", default="nobody")


def like(handler, behavior):
    """A handler of the same kind with another behavior."""
    words = [
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    ]
    make = getattr(grpc, f"{'_'.join(words)}_rpc_method_handler")
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def behavior_of(handler):
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


class Auth(grpc.ServerInterceptor):
    """Rejects callers by their metadata."""

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if GOOD[0] in [tuple(pair) for pair in details.invocation_metadata]:
            return handler

        def deny(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return like(handler, deny)


class AsyncAuth(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        if GOOD[0] in [tuple(pair) for pair in details.invocation_metadata]:
            return handler

        async def deny(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return like(handler, deny)


class Names(grpc.ServerInterceptor):
    """Sets a context variable to the caller, for everything inside of it."""

    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def named(request, context):
            token = caller.set("alice")
            try:
                response = behavior_of(handler)(request, context)
                if handler.response_streaming:
                    response = iter(list(response))
            finally:
                caller.reset(token)
            return response

        return like(handler, named)


class AsyncNames(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        caller.set("alice")
        return await continuation(details)


class Asks(grpc.ServerInterceptor):
    """Records the caller that it sees in the context variable."""

    def __init__(self):
        self.seen = []

    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def asked(request, context):
            self.seen.append(caller.get())
            return behavior_of(handler)(request, context)

        return like(handler, asked)


class AsyncAsks(grpc.aio.ServerInterceptor):
    def __init__(self):
        self.seen = []

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        behavior = behavior_of(handler)

        async def asked(request, context):
            self.seen.append(caller.get())
            if not handler.response_streaming:
                return await behavior(request, context)
            async for response in behavior(request, context):
                await context.write(response)
            return None

        return like(handler, asked)


@pytest.fixture
def interceptor(face):
    """An interceptor of this face, by its name."""
    kinds = {"sync": (Auth, Names, Asks), "aio": (AsyncAuth, AsyncNames, AsyncAsks)}[face]
    return lambda name: dict(zip(("auth", "names", "asks"), kinds, strict=True))[name]()


def denied(answer):
    return (answer.code, answer.details) == (grpc.StatusCode.UNAUTHENTICATED, "who are you?")


def test_a_caller_that_is_rejected_outside_gets_no_replay(start, interceptor, kind, key):
    server, request = start(before=[interceptor("auth")]), order()
    stranger = server.client.call(kind, request, key)
    assert denied(stranger)
    assert stranger.run is None
    assert server.record(key, kind).state is State.ABSENT
    answer = server.client.call(kind, request, key, metadata=GOOD)
    assert answer.ok
    assert denied(server.client.call(kind, request, key)), "nor does a stranger get a replay"
    assert server.client.call(kind, request, key, metadata=GOOD).essence == answer.essence


def test_a_caller_that_is_rejected_inside_may_use_its_key_again(start, interceptor, kind, key):
    server, request = start(after=[interceptor("auth")]), order()
    assert denied(server.client.call(kind, request, key))
    assert not server.ledger.all_runs
    assert server.record(key, kind).state is State.OPEN
    answer = server.client.call(kind, request, key, metadata=GOOD)
    assert answer.ok
    (only,) = server.ledger.runs(request)
    assert only.execution.attempt == 2
    assert server.client.call(kind, request, key).essence == answer.essence, "a replay skips what is inside"


def test_context_variables_reach_the_handler(start, interceptor, kind, key):
    asks = interceptor("asks")
    server = start(before=[interceptor("names")], after=[asks])
    first = server.client.call(kind, order(), key)
    assert first.ok
    assert asks.seen == ["alice"]
    assert server.client.call(kind, order(run(code=grpc.StatusCode.NOT_FOUND)), "other").code is (
        grpc.StatusCode.NOT_FOUND
    )
    assert asks.seen == ["alice", "alice"]


def test_metadata_of_the_caller_reaches_the_handler(start, kind, key):
    server, request = start(), order()
    pairs = [("trace", "1"), ("trace", "2"), ("seal-bin", b"\x00\xff")]
    assert server.client.call(kind, request, key, metadata=pairs).ok
    (only,) = server.ledger.runs(request)
    seen = [tuple(pair) for pair in only.context.invocation_metadata()]
    assert [pair for pair in seen if pair[0] in ("trace", "seal-bin")] == pairs
    assert ("idempotency-key", key) in seen
    assert only.context.peer().startswith("ipv4:127.0.0.1")
