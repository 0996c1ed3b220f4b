"""Calls that the interceptor leaves alone."""

import grpc
import pytest

from tests.server.client import Kind
from tests.server.ledger import order, run


@pytest.mark.parametrize("any_kind", Kind, ids=lambda kind: kind.value)
def test_an_optional_call_without_a_key_runs_each_time(start, any_kind):
    server, request = start(), order(run(trailing=[("fee", "12")]))
    first = server.client.call(any_kind, request)
    second = server.client.call(any_kind, request)
    assert first.ok
    assert first.entry != second.entry
    assert len(first.messages) == (3 if any_kind.has_response_stream else 1)
    assert first.all_trailing == second.all_trailing == (("fee", "12"),)
    assert [run.execution for run in server.ledger.runs(request)] == [None, None]


@pytest.mark.parametrize("any_kind", Kind, ids=lambda kind: kind.value)
def test_an_optional_call_without_a_key_fails_with_its_own_status(start, any_kind):
    server, request = start(), order(run("ABORT_WITH_STATUS", grpc.StatusCode.NOT_FOUND, details="no card"))
    answer = server.client.call(any_kind, request)
    assert (answer.code, answer.details) == (grpc.StatusCode.NOT_FOUND, "no card")
    assert answer.error_info.domain == "ledger"


def test_a_method_without_side_effects_takes_a_key_and_ignores_it(start, key):
    server, request = start(), order()
    first = server.client.call(Kind.READ, request, key)
    second = server.client.call(Kind.READ, request, key)
    assert first.ok
    assert first.entry != second.entry
    assert first.run is None


def test_health_checks_are_left_alone(start, own_redis_server, key):
    """Also if the store is away, and if a proxy puts a key into all calls."""
    calls = []

    def check(request, context):
        calls.append(request)
        return b"\x08\x01"

    health = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    server = start(own_redis_server.url, handlers=[health])
    own_redis_server.kill()
    check_health = server.client.channel.unary_unary("/grpc.health.v1.Health/Check")
    for _ in range(2):
        assert check_health(b"", metadata=[("idempotency-key", key)]) == b"\x08\x01"
    assert len(calls) == 2
