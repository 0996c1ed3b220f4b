"""The execution that current() gives a handler."""

import uuid

import grpc
import pytest

from idem_grpc import Policy, current, metadata
from tests.server.client import Kind
from tests.server.ledger import order, run
from tests.support.wait import until

SHORT = Policy(lease=1, max_run=1, retention=600, wait=0)  # and time to compare streams on a slow machine


def runs(server, request):
    return server.ledger.runs(request)


def test_current_has_the_key_operation_and_scope(start, kind, key):
    server = start(scope=metadata("x-tenant-id"), policies={kind.path: Policy(operation="pay")})
    request = order()
    assert server.client.call(kind, request, key, metadata=[("x-tenant-id", "acme")]).ok
    (first,) = runs(server, request)
    execution = first.execution
    assert execution.key == key
    assert (execution.operation, execution.scope, execution.attempt) == ("pay", "acme", 1)
    assert not execution.lease_lost


def test_the_operation_is_the_method_unless_the_policy_names_one(start, kind, key):
    server, request = start(), order()
    assert server.client.call(kind, request, key).ok
    assert runs(server, request)[0].execution.operation == kind.path


def test_current_is_none_outside_of_a_handler():
    assert current() is None


def test_attempts_are_counted_and_derived_ids_are_the_same(start, kind, key):
    server = start()
    again = [run(code=grpc.StatusCode.ABORTED), run("RAISE"), run(code=grpc.StatusCode.UNAVAILABLE), run()]
    request = order(*again)
    answers = [server.client.call(kind, request, key) for _ in range(5)]
    assert [answer.ok for answer in answers] == [False, False, False, True, True]
    assert [run.execution.attempt for run in runs(server, request)] == [1, 2, 3, 4]
    (derived,) = {run.derived for run in runs(server, request)}
    assert str(uuid.UUID(derived)) == derived


def test_derived_ids_differ_by_key_tenant_method_and_name(start, kind):
    server = start(scope=metadata("x-tenant-id"))
    request = order()
    for key, tenant in (("one", "acme"), ("two", "acme"), ("one", "other")):
        assert server.client.call(kind, request, key, metadata=[("x-tenant-id", tenant)]).ok
    ids = {run.execution.derive(name) for run in runs(server, request) for name in ("charge", "mail")}
    assert len(ids) == 6


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], indirect=True)
def test_a_run_longer_than_max_run_loses_its_lease(start, url, kind, key):
    one, other = start(url, default=SHORT), start(url, default=SHORT)
    request = order(run(gate="slow"), run())
    first = one.client.begin(kind, request, key)
    one.ledger.gate("slow").await_arrival()
    (slow,) = runs(one, request)
    until(lambda: slow.execution.lease_lost)
    second = other.client.persist(kind, request, key)
    assert second.ok
    assert runs(other, request)[0].execution.attempt == 2
    one.ledger.gate("slow").open()
    late = first.answer()
    if kind.has_response_stream:  # some of what it sent is out, and is not what was kept
        assert late.code is grpc.StatusCode.ABORTED
    else:
        assert late.essence == second.essence
    assert one.record(key, kind).attempt == 2, "a late owner never overwrites its successor"


def test_a_run_past_max_run_is_taken_over_on_its_own_server_too(start, kind, key):
    server, request = start(default=SHORT), order(run(gate="slow"), run())
    first = server.client.begin(kind, request, key)
    server.ledger.gate("slow").await_arrival()
    second = server.client.persist(kind, request, key)
    assert second.ok
    assert [run.execution.attempt for run in runs(server, request)] == [1, 2]
    server.ledger.gate("slow").open()
    first.answer()
    assert server.client.call(kind, request, key).essence == second.essence


def test_the_answer_of_a_run_that_lost_its_lease_is_kept_if_no_other_ran(start, kind, key):
    server, request = start(default=SHORT), order(run(gate="slow"))
    first = server.client.begin(kind, request, key)
    server.ledger.gate("slow").await_arrival()
    until(lambda: runs(server, request)[0].execution.lease_lost)
    server.ledger.gate("slow").open()
    answer = first.answer()
    assert answer.ok
    assert server.client.call(kind, request, key).essence == answer.essence
