"""Interceptors outside that look at messages, or map exceptions to statuses."""

from collections.abc import AsyncIterable, Iterable
from typing import Any

import grpc
import pytest
from grpc_interceptor import AsyncExceptionToStatusInterceptor, ExceptionToStatusInterceptor
from grpc_interceptor.exceptions import NotFound
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import OnUnclear, Policy, Reason, current
from idem_grpc._core.record import State
from tests.faults.compared import Compared, ask, status
from tests.faults.handlers import behavior_of, ending, like
from tests.server.kinds import ALL, kinds
from tests.server.ledger import Gate, order
from tests.streams.scripts import Cross, Do, Read, Send
from tests.streams.servers import Conversation
from tests.support.wait import until

kind = kinds(*ALL)

# Those that are coroutines or async generators, as interceptors of grpc.aio take handlers to be.
native_styles = pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)


def mapping(style: str, **settings: Any) -> Any:
    """The interceptor of grpc-interceptor: maps exceptions, and checks whether a response is iterable."""
    if style == "sync":
        return ExceptionToStatusInterceptor(**settings)
    return AsyncExceptionToStatusInterceptor(**settings)


def answers(context):
    yield Do(int)


def raises_a_status(context):
    yield Do(int)
    raise NotFound("no such order")


def raises(context):
    yield Do(int)
    raise ValueError("secret")


def aborts(context):
    yield Do(lambda: context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice"))


def sets_a_code_and_raises(context):
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("full")
    yield Do(int)
    raise ValueError("secret")


def test_calls_are_answered_behind_a_mapping_interceptor(start_scripted, style, kind, key):
    server = start_scripted(scripts=ending(kind, answers), before=[mapping(style)])
    first, second = (ask(server.client, kind, key) for _ in range(2))
    assert first.ok
    assert second.essence == first.essence
    assert second.replayed


@native_styles
@pytest.mark.parametrize("settings", [{}, {"status_on_unknown_exception": grpc.StatusCode.INTERNAL}], ids=str)
@pytest.mark.parametrize("way", [raises_a_status, raises, aborts, sets_a_code_and_raises])
def test_exceptions_are_mapped_as_without_the_interceptor(start_scripted, style, kind, key, way, settings):
    servers = Compared(start_scripted, scripts=ending(kind, way), before=[mapping(style, **settings)])
    ours, plain = servers.ask(kind, key)
    assert status(ours) == status(plain)
    assert ours.run, "the run is known to the caller"


@native_styles
def test_a_mapped_exception_is_unclear_and_runs_again(start_scripted, style, kind, key):
    server = start_scripted(scripts=ending(kind, raises_a_status), before=[mapping(style)])
    first = ask(server.client, kind, key)
    assert server.record(key, kind).state is State.OPEN
    second = ask(server.client, kind, key)
    assert first.code is second.code is grpc.StatusCode.NOT_FOUND
    assert second.run != first.run


@native_styles
def test_a_mapped_exception_is_not_run_again_under_fail(start_scripted, style, kind, key):
    server = start_scripted(
        scripts=ending(kind, raises_a_status),
        before=[mapping(style)],
        default=Policy(on_unclear=OnUnclear.FAIL),
    )
    assert ask(server.client, kind, key).code is grpc.StatusCode.NOT_FOUND
    assert ask(server.client, kind, key).reason is Reason.OUTCOME_UNKNOWN


@native_styles
def test_the_status_of_a_mapping_interceptor_inside_is_kept(start_scripted, style, kind, key):
    server = start_scripted(scripts=ending(kind, raises_a_status), after=[mapping(style)])
    first, second = (ask(server.client, kind, key) for _ in range(2))
    assert (first.code, first.details) == (grpc.StatusCode.NOT_FOUND, "no such order")
    assert second.essence == first.essence
    assert second.replayed


@native_styles
def test_an_exception_that_is_kept_has_one_status_for_all(start_scripted, style, kind, key):
    """The first caller must not get another answer than its duplicates."""

    def keeps(context):
        run = current()
        assert run is not None
        run.keep()
        yield from raises_a_status(context)

    server = start_scripted(scripts=ending(kind, keeps), before=[mapping(style)])
    first, second = (ask(server.client, kind, key) for _ in range(2))
    assert first.code is grpc.StatusCode.UNKNOWN
    assert second.essence == first.essence
    assert second.replayed


@native_styles
def test_a_duplicate_that_waited_gets_the_unmapped_status(start_scripted, style, kind, key):
    gate = Gate()

    def waits(context):
        yield Cross(gate)
        raise NotFound("no such order")

    server = start_scripted(scripts=ending(kind, waits), before=[mapping(style)], max_waiters=2)
    first, second = (Conversation(server.client, kind, key).send(b"request").end() for _ in range(2))
    gate.await_arrival()
    until(lambda: server.drain(0) == 2)
    gate.open()
    codes = {answer.code for answer in (first.answer(), second.answer())}
    assert codes == {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN}


class Looks:
    """Looks at every message, and recognizes streams by their methods, as some interceptors do."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def look(self, message: Any) -> Any:
        assert not isinstance(message, (Iterable, AsyncIterable, bytes))
        assert not any(hasattr(message, name) for name in ("__iter__", "__aiter__", "__next__", "__len__"))
        assert message, "no message is false"
        assert message.ByteSize() == len(message.SerializeToString())
        self.sizes.append(message.ByteSize())
        return message


class SyncLooks(grpc.ServerInterceptor, Looks):
    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            given = map(self.look, request) if handler.request_streaming else self.look(request)
            response = behavior_of(handler)(given, context)
            return map(self.look, response) if handler.response_streaming else self.look(response)

        return like(handler, behavior)


class AsyncLooks(grpc.aio.ServerInterceptor, Looks):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def response(request, context):
            if not handler.request_streaming:
                self.look(request)
            return self.look(await behavior_of(handler)(request, context))

        async def responses(request, context):
            if not handler.request_streaming:
                self.look(request)
            async for message in behavior_of(handler)(request, context):
                yield self.look(message)

        return like(handler, responses if handler.response_streaming else response)


def ledger(kind):
    """A handler of the ledger's messages."""

    def script(context):
        request = yield Read()
        if kind.has_response_stream:
            yield Send(pb.LedgerResponse(entry=request.order))
        return pb.LedgerResponse(entry=request.order)

    functions = {"parse": pb.LedgerRequest.FromString, "serialize": pb.LedgerResponse.SerializeToString}
    return {"scripts": {kind: script}, **functions}


def test_interceptors_outside_see_messages(start_scripted, style, kind, key):
    looks: Any = SyncLooks() if style == "sync" else AsyncLooks()
    server = start_scripted(**ledger(kind), before=[looks])
    request = order()
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.ok
    assert first.entry == request.order
    assert second.essence == first.essence
    assert looks.sizes


class Front:
    """Answers one caller itself, and changes the request of another."""

    mine = pb.LedgerResponse(entry="from the front")
    other = pb.LedgerRequest(order="another")


class SyncFront(grpc.ServerInterceptor, Front):
    def intercept_service(self, continuation, details):
        handler = continuation(details)
        metadata = dict(details.invocation_metadata)

        def behavior(request, context):
            if "answer" in metadata:
                return iter([self.mine]) if handler.response_streaming else self.mine
            return behavior_of(handler)(
                iter([self.other]) if handler.request_streaming else self.other, context
            )

        return like(handler, behavior)


class AsyncFront(grpc.aio.ServerInterceptor, Front):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        metadata = dict(details.invocation_metadata)

        async def response(request, context):
            if "answer" in metadata:
                return self.mine
            return await behavior_of(handler)(request if handler.request_streaming else self.other, context)

        async def responses(request, context):
            if "answer" in metadata:
                yield self.mine
                return
            given = request if handler.request_streaming else self.other
            async for message in behavior_of(handler)(given, context):
                yield message

        return like(handler, responses if handler.response_streaming else response)


@pytest.fixture
def behind_a_front(start_scripted, style, kind):
    front: Any = SyncFront() if style == "sync" else AsyncFront()
    return start_scripted(**ledger(kind), before=[front])


def test_an_interceptor_outside_may_answer_itself(behind_a_front, kind, key):
    answer = behind_a_front.client.call(kind, order(), key, metadata=[("answer", "yes")])
    assert answer.entry == "from the front"
    assert behind_a_front.record(key, kind).state is State.ABSENT


def test_an_interceptor_outside_may_give_another_request(behind_a_front, style, kind, key):
    if style == "sync" or not kind.has_request_stream:  # in aio, requests are read from the context
        first, second = (behind_a_front.client.call(kind, order(), key) for _ in range(2))
        assert first.entry == "another"
        assert second.essence == first.essence, "both were the same request, as it arrived here"


class Proxy:
    """A handler that has all four methods whatever its kind, like the proxy of Datadog."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    @property
    def unary_unary(self) -> Any:
        return self._handler.unary_unary or self._wrong

    @property
    def unary_stream(self) -> Any:
        return self._handler.unary_stream or self._wrong

    @property
    def stream_unary(self) -> Any:
        return self._handler.stream_unary or self._wrong

    @property
    def stream_stream(self) -> Any:
        return self._handler.stream_stream or self._wrong

    def _wrong(self, request: Any, context: Any) -> Any:
        raise AssertionError("this is not the kind of the method")


class SyncProxies(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return Proxy(continuation(details))


class AsyncProxies(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        return Proxy(await continuation(details))


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_handler_that_is_a_proxy_is_called_by_its_kind(start_scripted, style, kind, key, place):
    proxies: Any = SyncProxies() if style == "sync" else AsyncProxies()
    where: dict[str, Any] = {place: [proxies]}
    server = start_scripted(**ledger(kind), **where)
    first, second = (server.client.call(kind, order(name="one"), key) for _ in range(2))
    assert first.ok
    assert second.essence == first.essence


class SyncBare(grpc.ServerInterceptor):
    """Leaves out the functions that parse and serialize, as for a service that deals in bytes."""

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        return like(handler, behavior_of(handler), bare=True)


class AsyncBare(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        return like(handler, behavior_of(handler), bare=True)


def test_an_interceptor_outside_may_deal_in_bytes(start_scripted, style, kind, key):
    bare: Any = SyncBare() if style == "sync" else AsyncBare()
    server = start_scripted(**ledger(kind), before=[bare])
    first, second = (server.client.call(kind, order(name="one"), key) for _ in range(2))
    assert first.entry == "one"
    assert second.essence == first.essence
