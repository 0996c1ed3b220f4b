"""The state of a key after each way in which a run can end."""

from typing import Any

import grpc
import pytest

from idem_grpc import OnUnclear, Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.kinds import ALL, kinds
from tests.server.ledger import RichStatus, order, run

kind = kinds(Kind.UNARY, Kind.SERVER_STREAM)

DECIDED = ["NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"]
FIXABLE = ["INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"]
NOT_NOW = ["RESOURCE_EXHAUSTED", "ABORTED"]
REUSED = Reason.KEY_REUSED
UNCLEAR = ["UNKNOWN", "INTERNAL", "DATA_LOSS", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"]


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def strict(start):
    return start(default=Policy(on_unclear=OnUnclear.FAIL))


def refuses_another_request(server, kind, request, key):
    """Whether another request is refused. A stream is only compared if there is an answer."""
    return kind.has_request_stream or server.client.call(kind, corrected(request), key).reason is REUSED


def codes(*names):
    return pytest.mark.parametrize("code", [grpc.StatusCode[name] for name in names], ids=lambda c: c.name)


def corrected(request):
    """Another request for the same order, as a caller corrects it."""
    other = type(request)()
    other.CopyFrom(request)
    other.amount += 1
    return other


def attempts(server, request):
    return [run.execution.attempt for run in server.ledger.runs(request)]


@codes(*DECIDED)
def test_a_decided_outcome_is_kept(server, kind, key, code):
    request = order(run(code=code, details="no"))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert (first.code, first.details) == (code, "no")
    assert second.essence == first.essence
    assert attempts(server, request) == [1]
    assert server.client.call(kind, corrected(request), key).reason is Reason.KEY_REUSED


@codes(*FIXABLE)
def test_a_wrong_request_may_be_corrected_under_its_key(server, kind, key, code):
    request = order(run(code=code, details="a typo"), run())
    first = server.client.call(kind, request, key)
    assert (first.code, first.details, first.replayed) == (code, "a typo", False)
    second = server.client.call(kind, corrected(request), key)
    assert second.ok
    assert attempts(server, request) == [1, 2]
    assert server.client.call(kind, request, key).reason is Reason.KEY_REUSED
    assert server.client.call(kind, corrected(request), key).essence == second.essence


@codes(*NOT_NOW)
def test_a_retryable_failure_gives_the_key_back(server, kind, key, code):
    request = order(run(code=code, details="later"), run())
    first = server.client.call(kind, request, key)
    assert (first.code, first.details, first.replayed) == (code, "later", False)
    assert refuses_another_request(server, kind, request, key)
    second = server.client.call(kind, request, key)
    assert second.ok
    assert second.run != first.run
    assert attempts(server, request) == [1, 2]


@codes(*UNCLEAR)
def test_an_unclear_end_is_run_again(server, kind, key, code):
    request = order(run(code=code, details="hm"), run())
    first = server.client.call(kind, request, key)
    assert (first.code, first.details, first.replayed) == (code, "hm", False)
    assert refuses_another_request(server, kind, request, key)
    assert server.client.call(kind, request, key).ok
    assert attempts(server, request) == [1, 2]


@codes(*UNCLEAR)
def test_an_unclear_end_is_not_run_again_under_fail(strict, kind, key, code):
    request = order(run(code=code, details="hm"), run())
    first = strict.client.call(kind, request, key)
    assert (first.code, first.details) == (code, "hm")
    for _ in range(2):
        answer = strict.client.call(kind, request, key)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.OUTCOME_UNKNOWN,
        )
        assert answer.run == first.run
    assert attempts(strict, request) == [1]


@codes(*NOT_NOW, *FIXABLE)
def test_a_failure_without_effect_is_run_again_under_every_policy(strict, kind, key, code):
    request = order(run(code=code), run())
    assert strict.client.call(kind, request, key).code is code
    assert strict.client.call(kind, request, key).ok
    assert attempts(strict, request) == [1, 2]


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_an_exception_is_unclear(server, strict, kind):
    for its_server, name in ((server, "one"), (strict, "two")):
        request = order(run("RAISE", details="disk full"), run())
        first = its_server.client.call(kind, request, name)
        assert first.code is grpc.StatusCode.UNKNOWN
        assert "disk full" in first.details
        second = its_server.client.call(kind, request, name)
        assert second.ok if its_server is server else second.reason is Reason.OUTCOME_UNKNOWN
        assert attempts(its_server, request) == ([1, 2] if its_server is server else [1])


@pytest.mark.parametrize("kind", ALL, indirect=True)
@pytest.mark.parametrize("end", ["NONE", "WRONG_TYPE"])
def test_a_value_that_is_no_response_is_internal_and_unclear(server, strict, kind, end):
    for its_server, name in ((server, "one"), (strict, "two")):
        request = order(run(end), run())
        first = its_server.client.call(kind, request, name)
        assert first.code is grpc.StatusCode.INTERNAL
        second = its_server.client.call(kind, request, name)
        assert second.ok if its_server is server else second.reason is Reason.OUTCOME_UNKNOWN


@codes("NOT_FOUND", "INVALID_ARGUMENT", "ABORTED", "INTERNAL")
def test_set_code_counts_as_an_abort(server, kind, key, code):
    request = order(run("SET_CODE", code, details="no"), run())
    first = server.client.call(kind, request, key)
    assert (first.code, first.details) == (code, "no")
    second = server.client.call(kind, request, key)
    assert (second.essence == first.essence) is (code is grpc.StatusCode.NOT_FOUND)
    assert second.ok is (code is not grpc.StatusCode.NOT_FOUND)


def test_set_code_ok_is_a_success(server, kind, key):
    request = order(run("SET_CODE", grpc.StatusCode.OK, details="fine"))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.ok
    assert first.messages
    assert second.essence == first.essence


@codes("OK", "INVALID_ARGUMENT", "ABORTED", "INTERNAL", "UNAVAILABLE")
def test_keep_keeps_any_code(server, kind, key, code):
    request = order(run("SET_CODE", code, mark="KEEP", details="so be it"), run())
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.code is code
    assert second.essence == first.essence
    assert second.replayed
    assert attempts(server, request) == [1]


@codes("OK", "NOT_FOUND", "INTERNAL")
def test_release_keeps_no_code(strict, kind, key, code):
    request = order(run("SET_CODE", code, mark="RELEASE"), run())
    first, second = (strict.client.call(kind, request, key) for _ in range(2))
    assert first.code is code
    assert second.ok
    assert second.run != first.run
    assert attempts(strict, request) == [1, 2]


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_an_exception_after_keep_is_kept(server, kind, key):
    request = order(run("RAISE", mark="KEEP"), run())
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.code is grpc.StatusCode.UNKNOWN
    assert second.essence == first.essence


def test_replay_errors_are_the_policys_choice(start, kind, key):
    server = start(default=Policy(replay_errors=[grpc.StatusCode.ABORTED]))
    request = order(run(code=grpc.StatusCode.ABORTED))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert second.essence == first.essence
    other = order(run(code=grpc.StatusCode.NOT_FOUND), run())
    assert server.client.call(kind, other, "other").code is grpc.StatusCode.NOT_FOUND
    assert server.client.call(kind, other, "other").ok


def test_a_refusal_passed_on_from_downstream_is_not_kept(start, key):
    """Its status would be kept if it was the handler's own."""
    downstream = start(default=Policy(max_response_bytes=0))
    assert downstream.client.call(Kind.UNARY, order(name="parcel"), "downstream").ok
    passed_on = []

    def front(request, context):
        refusal = downstream.client.call(Kind.UNARY, order(name="parcel"), "downstream")
        passed_on.append(refusal)
        context.abort_with_status(RichStatus(refusal.code, refusal.details, refusal.trailing))

    service: dict[str, Any] = {"Pay": grpc.unary_unary_rpc_method_handler(front)}
    server = start(handlers=[grpc.method_handlers_generic_handler("tests.v1.Front", service)])
    pay = server.client.channel.unary_unary("/tests.v1.Front/Pay")
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as refused:
            pay(b"request", metadata=[("idempotency-key", key)])
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert [refusal.reason for refusal in passed_on] == [Reason.RESPONSE_NOT_KEPT] * 2


@pytest.mark.parametrize("kind", ALL, indirect=True)
def test_a_malformed_request_is_internal_and_leaves_no_record(server, kind, key):
    answer = server.client.call(kind, b"\xff\xff\xff", key)
    assert answer.code is grpc.StatusCode.INTERNAL
    assert not server.ledger.all_runs
    left = State.OPEN if kind.has_request_stream else State.ABSENT  # a stream is claimed before it is read
    assert server.record(key, kind).state is left
    assert server.client.call(kind, order(), key).ok
