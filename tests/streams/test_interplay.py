"""Tracing, health checks and reflection on a protected server."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from opentelemetry.instrumentation.grpc import aio_server_interceptor, server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from idem_grpc import KeyRule, Policy
from tests.server.client import RUN, Kind
from tests.server.ledger import SERVICE, order, run
from tests.support.wait import until


@pytest.fixture
def spans():
    """The spans that tracing has ended, and its interceptor."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(style, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    if style == "sync":
        return server_interceptor(tracer_provider=provider)
    return aio_server_interceptor(tracer_provider=provider)


# Inside, this tracing takes every handler of an aio server for a generator or a coroutine.
@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("place", ["before", "after"])
def test_tracing(start, tracing, spans, place, kind, key):
    """Outside of the library's interceptor it sees every call, and inside every run."""
    server = start(**{place: [tracing]})
    request = order(run(trailing=[("fee", "12")], initial=[("fee", "13")]))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.ok
    assert second.essence == first.essence
    assert second.replayed
    count = 2 if place == "before" else 1
    until(lambda: len(spans.get_finished_spans()) >= count)
    assert [span.name for span in spans.get_finished_spans()] == [kind.path] * count
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("place", ["before", "after"])
def test_errors_pass_tracing(start, tracing, place, kind, key):
    server = start(**{place: [tracing]})
    request = order(run("ABORT_WITH_STATUS", grpc.StatusCode.FAILED_PRECONDITION, details="declined"))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert (first.code, first.details) == (grpc.StatusCode.FAILED_PRECONDITION, "declined")
    assert first.error_info is not None
    assert second.essence == first.essence
    assert second.replayed


@pytest.mark.parametrize("style", ["aio"], indirect=True)
@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI], indirect=True)
def test_a_caller_that_leaves_is_known_behind_tracing_too(start, tracing, kind, key):
    """An interceptor outside holds the generator, and may hold it for long."""
    server = start(before=[tracing])
    request = order(run(gate="half-way", responses_before_gate=3, trailing=[("fee", "12")]))
    call = server.client.begin(kind, request, key, timeout=None)
    server.ledger.gate("half-way").await_arrival()
    call.cancel()
    assert call.answer().code is grpc.StatusCode.CANCELLED
    server.ledger.gate("half-way").open()
    answer = server.client.call(kind, request, key)
    assert answer.ok
    assert answer.replayed
    assert len(server.ledger.runs(request)) == 1


class _Registry:
    """Records the handlers that a service adds, for a server that is made later."""

    def __init__(self):
        self.handlers = []

    def add_generic_rpc_handlers(self, handlers):
        self.handlers.extend(handlers)

    def add_registered_method_handlers(self, *_):
        """Not needed here."""


def test_health_checks_and_reflection_need_no_key(start):
    registry: Any = _Registry()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), registry)
    names = [SERVICE, "grpc.health.v1.Health"]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), registry)
    server = start(handlers=registry.handlers, default=Policy(key=KeyRule.REQUIRED))
    assert not server.client.call(Kind.UNARY, order()).ok
    for metadata in ([], [("idempotency-key", "one")]):
        health: Any = health_pb2_grpc.HealthStub(server.client.channel)
        answer, call = health.Check.with_call(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert RUN not in dict(call.trailing_metadata())
        mirror: Any = reflection_pb2_grpc.ServerReflectionStub(server.client.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = mirror.ServerReflectionInfo(iter([question]), metadata=metadata)
        assert [service.name for service in listed.list_services_response.service] == sorted(names)
