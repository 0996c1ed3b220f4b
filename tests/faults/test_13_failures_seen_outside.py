"""Interceptors outside see how a keyed call ended, as they do on a server without idem_grpc."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from opentelemetry.instrumentation.grpc import aio_server_interceptor, server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode as SpanStatus
from prometheus_client import CollectorRegistry
from py_grpc_prometheus.prometheus_server_interceptor import (  # type: ignore[import-untyped]  # it has none
    PromServerInterceptor,
)

from idem_grpc import KeyRule, Policy, Reason, current
from tests.faults.compared import ask
from tests.faults.handlers import ending
from tests.server.client import Answer, Kind
from tests.server.kinds import ALL, kinds
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Do
from tests.streams.servers import Conversation
from tests.support.wait import until

kind = kinds(*ALL)

ERRORS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""The codes that OpenTelemetry takes for errors of a server."""


@dataclass
class Ending(grpc.Status):
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    details: str = "no"
    trailing_metadata: Any = (("seal", "1"),)


def aborts(context):
    yield Do(lambda: context.abort(grpc.StatusCode.UNAVAILABLE, "no"))


def aborts_with_status(context):
    yield Do(lambda: context.abort_with_status(Ending()))


def sets_a_code(context):
    context.set_code(grpc.StatusCode.UNAVAILABLE)
    context.set_details("no")
    yield Do(int)


def raises(context):
    yield Do(int)
    raise ValueError("no")


def says_not_found(context):
    yield Do(lambda: context.abort(grpc.StatusCode.NOT_FOUND, "no"))


def keeps_an_error(context):
    run = current()
    assert run is not None
    run.keep()
    yield from aborts(context)


def keeps_an_exception(context):
    run = current()
    assert run is not None
    run.keep()
    yield from raises(context)


def answers(context):
    yield Do(int)


class Outside:
    """The interceptor of OpenTelemetry, and the spans that it has ended."""

    def __init__(self, style: str) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        make: Any = server_interceptor if style == "sync" else aio_server_interceptor
        self.interceptor = make(tracer_provider=provider)

    def spans(self, count: int) -> list[Any]:
        until(lambda: len(self._exporter.get_finished_spans()) == count)
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def outside(style) -> Outside:
    return Outside(style)


def shows(span: Any, answer: Answer) -> bool:
    status = SpanStatus.ERROR if answer.code in ERRORS else SpanStatus.UNSET
    return (span.attributes["rpc.grpc.status_code"], span.status.status_code) == (
        answer.code.value[0],
        status,
    )


@pytest.mark.parametrize(
    "way",
    [
        aborts,
        aborts_with_status,
        sets_a_code,
        raises,
        says_not_found,
        keeps_an_error,
        keeps_an_exception,
        answers,
    ],
)
def test_opentelemetry_sees_first_runs_and_replays(start_scripted, outside, kind, key, way):
    server = start_scripted(scripts=ending(kind, way), before=[outside.interceptor])
    calls = [ask(server.client, kind, key) for _ in range(2)]
    for answer, span in zip(calls, outside.spans(2), strict=True):
        assert shows(span, answer)
    assert calls[1].replayed is (way not in (aborts, aborts_with_status, sets_a_code, raises))


def test_opentelemetry_sees_refusals(start_scripted, outside, kind, key):
    server = start_scripted(
        scripts=ending(kind, answers),
        before=[outside.interceptor],
        default=Policy(key=KeyRule.REQUIRED, max_response_bytes=0),
    )
    calls = [ask(server.client, kind, given) for given in (None, "no key", key, key)]
    assert [answer.reason for answer in calls] == [
        Reason.KEY_REQUIRED,
        Reason.KEY_INVALID,
        None,
        Reason.RESPONSE_NOT_KEPT,
    ]
    for answer, span in zip(calls, outside.spans(4), strict=True):
        assert shows(span, answer)


def test_opentelemetry_sees_that_a_call_is_in_progress(start_scripted, outside, kind, key):
    gate = Gate()

    def waits(context):
        yield Cross(gate)

    server = start_scripted(scripts=ending(kind, waits), before=[outside.interceptor], max_waiters=0)
    first = Conversation(server.client, kind, key).send(b"request").end()
    gate.await_arrival()
    second = ask(server.client, kind, key)
    assert second.reason is Reason.IN_PROGRESS
    assert shows(outside.spans(1)[0], second)
    gate.open()
    assert first.answer().ok


# OpenTelemetry itself takes no plain functions in aio, and no coroutine for a stream.
@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("way", [aborts, raises, answers])
def test_opentelemetry_sees_what_it_sees_without_the_interceptor(start_scripted, style, kind, key, way):
    """Except for an exception, whose status it does not know without idem_grpc."""
    seen = []
    for protected in (True, False):
        outside = Outside(style)
        server = start_scripted(scripts=ending(kind, way), before=[outside.interceptor], protected=protected)
        ask(server.client, kind, key)
        (span,) = outside.spans(1)
        events = [(event.name, event.attributes["exception.type"]) for event in span.events]
        status = None if way is raises else (span.status.status_code, span.status.description)
        seen.append((events, status))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("style", ["sync"], indirect=True)
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("way", [aborts, aborts_with_status, sets_a_code, raises, says_not_found, answers])
def test_prometheus_counts_what_it_counts_without_the_interceptor(start_scripted, kind, key, place, way):
    counted = []
    for protected in (True, False):
        registry = CollectorRegistry()
        where: dict[str, Any] = {place: [PromServerInterceptor(registry=registry)]}
        server = start_scripted(scripts=ending(kind, way), protected=protected, **where)
        ask(server.client, kind, key)
        counted.append(
            {
                sample.labels["grpc_code"]: sample.value
                for metric in registry.collect()
                for sample in metric.samples
                if sample.name == "grpc_server_handled_total" and sample.value
            }
        )
    assert counted[0] == counted[1]


class Notes:
    """Records what an interceptor outside can read from its context once the call is over."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, context: Any, error: BaseException | None) -> None:
        details = context.details()
        text = details.decode() if isinstance(details, bytes) else details
        trailing = tuple(tuple(pair) for pair in context.trailing_metadata() or ())
        self.seen.append((context.code() or grpc.StatusCode.OK, text or "", trailing, error))


class SyncNotes(grpc.ServerInterceptor, Notes):
    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            try:
                response = handler.unary_unary(request, context)
            except Exception as error:
                self.note(context, error)
                raise
            self.note(context, None)
            return response

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


class AsyncNotes(grpc.aio.ServerInterceptor, Notes):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def behavior(request, context):
            try:
                response = await handler.unary_unary(request, context)
            except Exception as error:
                self.note(context, error)
                raise
            self.note(context, None)
            return response

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


@pytest.mark.parametrize("kind", [Kind.UNARY], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize(
    "way",
    [aborts, aborts_with_status, sets_a_code, says_not_found, keeps_an_error, keeps_an_exception, answers],
)
def test_the_context_outside_has_the_status_of_the_call(start_scripted, style, kind, key, way):
    notes: Any = SyncNotes() if style == "sync" else AsyncNotes()
    server = start_scripted(scripts=ending(kind, way), before=[notes])
    calls = [ask(server.client, kind, key) for _ in range(2)]
    assert until(lambda: len(notes.seen) == 2)
    for answer, (code, details, trailing, error) in zip(calls, notes.seen, strict=True):
        assert (code, details, trailing) == (answer.code, answer.details, answer.all_trailing)
        assert (error is None) is answer.ok


@pytest.mark.parametrize("kind", [Kind.UNARY], ids=lambda kind: kind.value, indirect=True)
def test_the_handlers_own_exception_comes_out(start_scripted, style, kind, key):
    raised = ValueError("no")

    def way(context):
        yield Do(int)
        raise raised

    notes: Any = SyncNotes() if style == "sync" else AsyncNotes()
    server = start_scripted(scripts=ending(kind, way), before=[notes])
    with suppress(grpc.RpcError):
        ask(server.client, kind, key)
    assert until(lambda: notes.seen)
    assert notes.seen[0][3] is raised
