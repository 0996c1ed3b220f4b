"""Calls are retried through interceptors of other libraries, which replace the calls of grpc.

otel-contrib #2014: OpenTelemetry makes a generator of a response stream.
"""

import asyncio
import gc
import threading
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from idem_grpc import Budget, Retry, client_interceptors, keys
from tests.client.conftest import connect, script, stub_of
from tests.server.client import Kind
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer, fail
from tests.support.wait import until

__all__ = ["connect", "script", "stub_of"]  # fixtures are found by name

OK, UNAVAILABLE, ABORTED = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED
FAST = Retry(initial_backoff=0.001, max_backoff=0.01)
ANSWERING = [Kind.SERVER_STREAM, Kind.BIDI]
SINGLE = [Kind.UNARY, Kind.CLIENT_STREAM]
RUN = "ab" * 16


def on(kinds):
    return pytest.mark.parametrize("kind", kinds, indirect=True, ids=lambda kind: kind.value)


class Inside(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """An interceptor inside: returns ``make(send)``, where ``send()`` returns the call of grpc."""

    def __init__(self, make):
        self._make = make

    def _intercept(self, continuation, details, request):
        return self._make(lambda: continuation(details, request))

    intercept_unary_unary = intercept_unary_stream = _intercept
    intercept_stream_unary = intercept_stream_stream = _intercept


def generator(send):
    return (response for response in send())


def lazy_generator(send):
    yield from send()


class Iterator:
    """An iterator without the methods of a call or of a generator."""

    def __init__(self, send):
        self._call = send()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._call)


class Iterable:
    """An iterable that is no iterator."""

    def __init__(self, send):
        self._call = send()

    def __iter__(self):
        return iter(self._call)


class SomeMethods(Iterator):
    """An iterator with some of the methods of a call."""

    def initial_metadata(self):
        return self._call.initial_metadata()

    def cancel(self):
        return self._call.cancel()


STREAMS = [generator, lazy_generator, Iterator, Iterable, SomeMethods]
streams = pytest.mark.parametrize("make", STREAMS, ids=lambda make: make.__name__)


def parts(responses):
    return [response.part for response in responses]


def sent(stub, kind, **options):
    """Begin a call; for a method with one response, a future."""
    request: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
    method = getattr(stub, kind.value)
    return (method if kind.has_response_stream else method.future)(request, timeout=DEADLINE, **options)


@on(ANSWERING)
@streams
def test_response_streams_are_retried(script, stub_of, kind, make):
    server = script(fail(), fail(reads=None), answer(0, 1, 2))
    assert parts(sent(stub_of(server, inside=[Inside(make)]), kind)) == [0, 1, 2]
    assert len(server.seen) == 3
    assert len(set(server.keys)) == 1


@on(ANSWERING)
@streams
def test_the_last_failure_is_raised_from_iteration(script, stub_of, kind, make):
    server = script(fail())
    retry = Retry(max_attempts=2, initial_backoff=0.001)
    call = sent(stub_of(server, inside=[Inside(make)], retry=retry), kind)
    for _ in "12":
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        assert error.value.code() is UNAVAILABLE
        assert "idem_grpc: 2 attempts were made" in error.value.__notes__
    assert call.code() is UNAVAILABLE
    assert call.details() == "as the script says"
    assert len(server.seen) == 2


@on(ANSWERING)
@streams
def test_a_failure_that_must_not_be_retried_is_raised(script, stub_of, kind, make):
    server = script(answer(0, then=ABORTED, trailing=(("why", "so"),)))
    call = sent(stub_of(server, inside=[Inside(make)]), kind)
    assert next(call).part == 0
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() is call.code() is ABORTED
    assert ("why", "so") in [(pair.key, pair.value) for pair in call.trailing_metadata()]
    assert len(server.seen) == 1


@on(ANSWERING)
@streams
def test_a_stream_that_breaks_off_is_resumed_where_its_run_is_known(script, stub_of, kind, make):
    server = script(answer(0, 1, run=RUN, then=UNAVAILABLE), answer(0, 1, 2, run=RUN))
    call = sent(stub_of(server, inside=[Inside(make)]), kind)
    assert parts([next(call), next(call)]) == [0, 1]
    if make is SomeMethods:
        assert parts(call) == [2]
        assert len(server.seen) == 2
    else:
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        assert any("does not tell which run" in note for note in error.value.__notes__)
        assert len(server.seen) == 1


@on(ANSWERING)
@streams
def test_callbacks_are_called_at_the_end(script, stub_of, kind, make):
    server = script(fail(), answer(0))
    call = sent(stub_of(server, inside=[Inside(make)]), kind)
    over = threading.Event()
    call.add_done_callback(lambda _: over.set())
    assert parts(call) == [0]
    assert over.wait(DEADLINE)
    assert call.code() is OK


@on(ANSWERING)
@streams
def test_an_exception_that_is_no_rpc_error_is_raised_unchanged(script, stub_of, kind, make):
    server = script(answer(0, 1))

    def broken(send):
        def responses():
            yield next(given)
            raise ValueError("out of ink")

        given = iter(make(send))
        return responses()

    call = sent(stub_of(server, inside=[Inside(broken)]), kind)
    assert next(call).part == 0
    with pytest.raises(ValueError, match="out of ink"):
        next(call)
    assert len(server.seen) == 1


@on(ANSWERING)
@streams
def test_a_stream_that_is_cancelled_or_deleted_ends_its_call(script, stub_of, kind, make):
    server = script(answer(*range(100_000)))
    stub = stub_of(server, inside=[Inside(make)])
    call = sent(stub, kind)
    next(call)
    assert call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert server.seen[0].is_gone.wait(DEADLINE)
    with pytest.raises(grpc.RpcError):
        next(call)
    call = sent(stub, kind)
    next(call)
    del call
    gc.collect()
    assert server.seen[1].is_gone.wait(DEADLINE)


@on(ANSWERING)
@streams
def test_response_streams_pass_a_channel_without_retries(script, stub_of, kind, make):
    server = script(answer(0, 1), fail())
    stub = stub_of(server, inside=[Inside(make)], retry=None)
    assert parts(sent(stub, kind)) == [0, 1]
    with pytest.raises(grpc.RpcError) as error:
        list(sent(stub, kind))
    assert error.value.code() is UNAVAILABLE


@on(ANSWERING)
@streams
def test_failures_of_calls_that_are_not_retried_count_in_the_budget(script, stub_of, kind, make):
    """Calls without keys may not be retried; their failures leave no budget for a call that may."""
    server = script(fail())
    retry = Retry(initial_backoff=0.001, budget=Budget(max_tokens=4, ratio=1))
    stub = stub_of(server, inside=[Inside(make)], retry=retry, keys=None)
    for _ in "12":
        with pytest.raises(grpc.RpcError):
            list(sent(stub, kind))
    with pytest.raises(grpc.RpcError):
        list(sent(stub, kind, metadata=(("idempotency-key", "one"),)))
    assert len(server.seen) == 3


def passed_on(name):
    """A method that calls the same method of the call inside."""

    def method(self, *args, **options):
        return getattr(self._call, name)(*args, **options)

    return method


class ResultOnly:
    """The least that grpc requires of the result of an interceptor for a method with one response."""

    def __init__(self, send):
        self._call = send()

    result = passed_on("result")


class FutureOnly(grpc.Future):  # type: ignore[type-arg]  # at run time it takes none
    """A future that is no call."""

    def __init__(self, send):
        self._call = send()

    result = passed_on("result")
    exception = passed_on("exception")
    traceback = passed_on("traceback")
    done = passed_on("done")
    running = passed_on("running")
    cancel = passed_on("cancel")
    cancelled = passed_on("cancelled")

    def add_done_callback(self, fn):
        self._call.add_done_callback(lambda _: fn(self))


class OverAtOnce(FutureOnly):
    """A future that is done when it is returned."""

    def __init__(self, send):
        super().__init__(send)
        self._call.exception(DEADLINE)


class NotIterable(FutureOnly, grpc.Call):
    """A future and a call, but not an iterator, as grpc's own is."""

    code = passed_on("code")
    details = passed_on("details")
    initial_metadata = passed_on("initial_metadata")
    trailing_metadata = passed_on("trailing_metadata")
    add_callback = passed_on("add_callback")
    is_active = passed_on("is_active")
    time_remaining = passed_on("time_remaining")


def raises_at_once(send):
    """Wait for the answer, and raise its error."""
    call = send()
    call.result()
    return call


FUTURES = [FutureOnly, OverAtOnce, NotIterable, raises_at_once]


@on(SINGLE)
@pytest.mark.parametrize("make", [ResultOnly, *FUTURES], ids=lambda make: make.__name__)
def test_blocking_calls_are_retried(script, stub_of, kind, make):
    server = script(fail(), answer(7), fail())
    stub = stub_of(server, inside=[Inside(make)])
    request: Any = [pb.LedgerRequest()] if kind.has_request_stream else pb.LedgerRequest()
    method = getattr(stub, kind.value)
    given = (lambda: iter(request)) if kind.has_request_stream else (lambda: request)
    assert method(given(), timeout=DEADLINE).part == 7
    server.steps = (fail(ABORTED),)
    with pytest.raises(grpc.RpcError) as error:
        method.with_call(given(), timeout=DEADLINE)
    assert error.value.code() is ABORTED


@on(SINGLE)
@pytest.mark.parametrize("make", FUTURES, ids=lambda make: make.__name__)
def test_futures_are_retried(script, stub_of, kind, make):
    server = script(fail(), answer(7))
    stub = stub_of(server, inside=[Inside(make)])
    call = sent(stub, kind)
    assert call.result(DEADLINE).part == 7
    assert len(server.seen) == 2
    server.steps = (fail(ABORTED),)
    call = sent(stub, kind)
    with pytest.raises(grpc.RpcError) as error:
        call.result(DEADLINE)
    assert error.value.code() is call.code() is ABORTED


@on(SINGLE)
@pytest.mark.parametrize("make", [FutureOnly, NotIterable], ids=lambda make: make.__name__)
def test_futures_do_not_block(script, stub_of, kind, make):
    may_answer = threading.Event()

    def slow(requests, context):
        assert may_answer.wait(DEADLINE)
        yield pb.LedgerResponse(part=7)

    call = sent(stub_of(script(slow), inside=[Inside(make)]), kind)
    assert not call.done()
    may_answer.set()
    assert call.result(DEADLINE).part == 7


@on(SINGLE)
def test_a_fallback_answer_is_not_retried(script, stub_of, kind):
    """Another interceptor has replaced the failure by an answer."""
    fallback = SimpleNamespace(result=lambda timeout=None: pb.LedgerResponse(part=99))
    server = script(fail())

    def falls_back(send):
        call = send()
        return call if call.code() is OK else fallback

    stub = stub_of(server, inside=[Inside(falls_back)])
    request: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
    assert getattr(stub, kind.value)(request, timeout=DEADLINE).part == 99
    assert len(server.seen) == 1


class Open(grpc.RpcError):
    """An RpcError without any method, such as a circuit breaker raises."""


def test_an_error_without_a_code_of_another_interceptor_reaches_the_caller(script, stub_of, kind):
    server = script(answer(0))

    def breaker(send):
        raise Open("the circuit is open")

    def breaks_later(send):
        yield from breaker(send)

    stub = stub_of(server, inside=[Inside(breaks_later if kind.has_response_stream else breaker)])
    call = sent(stub, kind)
    with pytest.raises(Open):
        list(call) if kind.has_response_stream else call.result()
    if not kind.has_response_stream:
        request: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
        with pytest.raises(Open):
            getattr(stub, kind.value)(request)
    assert not server.seen


class Busy(grpc.RpcError):
    """An error with a code that was not raised by grpc."""

    def code(self):
        return UNAVAILABLE


def test_an_error_that_another_interceptor_raises_is_retried_by_its_code(script, stub_of, kind):
    server = script(answer(0))
    errors = [Busy(), Busy()]

    def busy(send):
        if errors:
            raise errors.pop()
        return send()

    def busy_later(send):
        yield from busy(send)

    make = busy_later if kind.has_response_stream else busy
    stub = stub_of(server, inside=[Inside(make)])
    call = sent(stub, kind)
    assert parts(call if kind.has_response_stream else [call.result(DEADLINE)]) == [0]
    if not kind.has_response_stream:
        errors += [Busy(), Busy()]
        request: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
        assert getattr(stub, kind.value)(request, timeout=DEADLINE).part == 0


@on([Kind.UNARY, *ANSWERING])
def test_an_error_that_another_interceptor_raises_is_retried_by_its_code_in_asyncio(script, kind):
    errors = [Busy(), Busy()]

    async def busy(send):
        if errors:
            raise errors.pop()
        return await send()

    assert in_asyncio(script(answer(0)), busy, kind) == [0]


@pytest.fixture
def tracing():
    """The tracer provider of OpenTelemetry, and its spans."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return SimpleNamespace(provider=provider, spans=spans.get_finished_spans)


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("future", [False, True], ids=["blocking", "future"])
def test_calls_are_retried_through_opentelemetry(script, tracing, kind, place, future):
    server = script(fail(), answer(0))
    traced = client_interceptor(tracer_provider=tracing.provider)
    with grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as plain:
        ours = client_interceptors(keys=keys.unique, retry=FAST)
        channel: Any = intercept_channel(plain, traced) if place == "inside" else plain
        channel = grpc.intercept_channel(channel, *ours)
        channel = intercept_channel(channel, traced) if place == "outside" else channel
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        if kind.has_response_stream:
            assert parts(sent(stub, kind)) == [0]
        elif future:
            assert sent(stub, kind).result(DEADLINE).part == 0
        else:
            given: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
            assert getattr(stub, kind.value)(given, timeout=DEADLINE).part == 0
    assert len(server.seen) == 2
    assert len(set(server.keys)) == 1
    until(lambda: len(tracing.spans()) == (2 if place == "inside" else 1))


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_calls_are_retried_through_opentelemetry_in_asyncio(script, tracing, kind, place):
    server = script(fail(), answer(0, 1) if kind.has_response_stream else answer(0))

    async def main():
        traced = aio_client_interceptors(tracer_provider=tracing.provider)
        ours = idem_grpc.aio.client_interceptors(keys=keys.unique, retry=FAST)
        interceptors = [*ours, *traced] if place == "inside" else [*traced, *ours]
        async with grpc.aio.insecure_channel(server.address, interceptors=interceptors) as channel:
            return await received(ledger_pb2_grpc.LedgerServiceStub(channel), kind)

    assert asyncio.run(main()) == ([0, 1] if kind.has_response_stream else [0])
    assert len(server.seen) == 2
    assert len(set(server.keys)) == 1
    assert len(tracing.spans()) == (2 if place == "inside" else 1)


async def received(stub, kind):
    given: Any = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
    call = getattr(stub, kind.value)(given, timeout=DEADLINE)
    if kind.has_response_stream:
        return [response.part async for response in call]
    return [(await call).part]


def aio_inside(make):
    class Of(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):
            return await make(lambda: continuation(details, request))

    class OfStream(grpc.aio.StreamStreamClientInterceptor):
        async def intercept_stream_stream(self, continuation, details, request):
            return await make(lambda: continuation(details, request))

    class OfUnary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return await make(lambda: continuation(details, request))

    return [Of(), OfStream(), OfUnary()]


async def aio_generator(send):
    call = await send()
    return (response async for response in call)


async def aio_lazy_generator(send):
    async def responses():
        async for response in await send():
            yield response

    return responses()


class AioIterator:
    def __init__(self, call):
        self._call = call

    def __aiter__(self):
        self._responses = aiter(self._call)
        return self

    async def __anext__(self):
        return await anext(self._responses)


async def aio_iterator(send):
    return AioIterator(await send())


aio_streams = pytest.mark.parametrize(
    "make", [aio_generator, aio_lazy_generator, aio_iterator], ids=lambda make: make.__name__
)


def in_asyncio(server, make, kind, **settings):
    async def main():
        ours = idem_grpc.aio.client_interceptors(**{"keys": keys.unique, "retry": FAST, **settings})
        interceptors = [*ours, *aio_inside(make)]
        async with grpc.aio.insecure_channel(server.address, interceptors=interceptors) as channel:
            async with asyncio.timeout(DEADLINE):
                return await received(ledger_pb2_grpc.LedgerServiceStub(channel), kind)

    return asyncio.run(main())


@on(ANSWERING)
@aio_streams
def test_response_streams_are_retried_in_asyncio(script, kind, make):
    server = script(fail(), fail(), answer(0, 1, 2))
    assert in_asyncio(server, make, kind) == [0, 1, 2]
    assert len(server.seen) == 3


@on(ANSWERING)
@aio_streams
def test_the_last_failure_is_raised_from_iteration_in_asyncio(script, kind, make):
    # A call that ends while it sends a request gets INTERNAL from grpc.aio, and the call of a lazy generator
    # cannot be seen to find the true status. So the server reads the whole request first.
    server = script(fail(reads=None))
    with pytest.raises(grpc.RpcError) as error:
        in_asyncio(server, make, kind, retry=Retry(max_attempts=2, initial_backoff=0.001))
    assert error.value.code() is UNAVAILABLE
    assert "idem_grpc: 2 attempts were made" in error.value.__notes__
    assert len(server.seen) == 2


def test_an_interceptor_that_returns_a_response_in_asyncio(script):
    server = script(fail(), answer(7))

    async def response(send):
        return await (await send())

    assert in_asyncio(server, response, Kind.UNARY) == [7]
    assert len(server.seen) == 2
