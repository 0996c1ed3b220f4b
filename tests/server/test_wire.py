"""Refusals on the wire, for clients that do not use this library."""

import json

import grpc
import pytest
from google.rpc import error_details_pb2

from idem_grpc import KeyRule, OnUnclear, Policy, Reason, metadata
from tests.server.client import PUSHBACK, RUN, Kind
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order, run

kind = kinds(*FIRST_AND_LAST)

RETRIES = ("grpc.enable_retries", 1)
SERVICE_CONFIG = (
    "grpc.service_config",
    json.dumps(
        {
            "methodConfig": [
                {
                    "name": [{}],
                    "retryPolicy": {
                        "maxAttempts": 5,
                        "initialBackoff": "0.01s",
                        "maxBackoff": "0.01s",
                        "backoffMultiplier": 1,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    ),
)


def key_required(start, kind):
    server = start(default=Policy(key=KeyRule.REQUIRED))
    return server.client.call(kind, order())


def key_invalid(start, kind):
    return start().client.call(kind, order(), ["one", "two"])


def key_reused(start, kind):
    server = start()
    server.client.call(kind, order(), "key")
    return server.client.call(kind, order(), "key")


def scope_unknown(start, kind):
    return start(scope=metadata("x-tenant-id")).client.call(kind, order(), "key")


def token_unknown(start, kind):
    return start(default=Policy(key=KeyRule.TOKEN)).client.call(kind, order(), "key")


def in_progress(start, kind):
    server, request = start(max_waiters=0), order(run(gate="at work"))
    server.client.begin(kind, request, "key")
    server.ledger.gate("at work").await_arrival()
    return server.client.call(kind, request, "key")


def outcome_unknown(start, kind):
    server, request = start(default=Policy(on_unclear=OnUnclear.FAIL)), order(run("RAISE"))
    server.client.call(kind, request, "key")
    return server.client.call(kind, request, "key")


def response_not_kept(start, kind):
    server, request = start(default=Policy(max_response_bytes=0)), order()
    server.client.call(kind, request, "key")
    return server.client.call(kind, request, "key")


def misconfigured(start, kind):
    return start(default=Policy(retention=60)).client.call(kind, order(), "key")


REFUSALS = {
    Reason.KEY_REQUIRED: (key_required, grpc.StatusCode.INVALID_ARGUMENT),
    Reason.KEY_INVALID: (key_invalid, grpc.StatusCode.INVALID_ARGUMENT),
    Reason.KEY_REUSED: (key_reused, grpc.StatusCode.INVALID_ARGUMENT),
    Reason.SCOPE_UNKNOWN: (scope_unknown, grpc.StatusCode.UNAUTHENTICATED),
    Reason.TOKEN_UNKNOWN: (token_unknown, grpc.StatusCode.FAILED_PRECONDITION),
    Reason.IN_PROGRESS: (in_progress, grpc.StatusCode.UNAVAILABLE),
    Reason.OUTCOME_UNKNOWN: (outcome_unknown, grpc.StatusCode.FAILED_PRECONDITION),
    Reason.RESPONSE_NOT_KEPT: (response_not_kept, grpc.StatusCode.FAILED_PRECONDITION),
    Reason.MISCONFIGURED: (misconfigured, grpc.StatusCode.INTERNAL),
}  # test_outage.py has those of a store that is away


@pytest.mark.parametrize("reason", REFUSALS, ids=str)
def test_a_refusal_has_its_reason(start, kind, reason):
    refuse, code = REFUSALS[reason]
    answer = refuse(start, kind)
    assert answer.code is code
    assert answer.status.code == code.value[0]
    assert answer.status.message == answer.details
    assert answer.details
    assert answer.error_info.domain == "idem_grpc"
    assert answer.error_info.reason == reason == answer.reason
    assert not answer.replayed
    assert not answer.messages
    assert not answer.initial, "initial metadata would end the retries of grpc itself"


def test_in_progress_says_when_to_retry(start, kind):
    answer = in_progress(start, kind)
    retry_info = answer.detail(error_details_pb2.RetryInfo)
    assert retry_info.retry_delay.ToMilliseconds() == int(dict(answer.all_trailing)[PUSHBACK])
    assert 0 < answer.pushback < 1
    assert answer.run


def test_the_pushback_grows_with_each_attempt(start, kind):
    server, request = start(max_waiters=0), order(run(gate="at work"))
    server.client.begin(kind, request, "key")
    server.ledger.gate("at work").await_arrival()

    def after(attempts):
        metadata = [("grpc-previous-rpc-attempts", str(attempts))]
        return server.client.call(kind, request, "key", metadata=metadata, timeout=None).pushback

    waits = [after(attempts) for attempts in range(4)]
    assert 2 * waits[0] < waits[1] < waits[2] / 2 < waits[3] / 4


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], ids=lambda kind: kind.value)
def test_a_stock_client_converges(start, kind, key):
    """With only a service config: grpc's own retries, after the server's pushback.

    They lose messages of request streams: see benchmarks/native.py.
    """
    server, request = start(max_waiters=0), order(run(gate="at work"))
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    stock = server.new_client(RETRIES, SERVICE_CONFIG)
    retried = stock.begin(kind, request, key)
    assert not retried.done()
    server.ledger.gate("at work").open()
    answer = retried.answer()
    assert answer.essence == first.answer().essence
    assert answer.replayed
    assert len(server.ledger.runs(request)) == 1


def test_every_keyed_answer_names_its_run(start, kind):
    server = start()
    asked = [order(), order(run(code=grpc.StatusCode.NOT_FOUND)), order(run(code=grpc.StatusCode.ABORTED))]
    named = [server.client.call(kind, request, request.order).run for request in asked]
    assert len(set(named)) == 3
    assert all(named)
    assert server.client.call(kind, order()).run is None


def test_a_stream_names_its_run_with_its_first_message_and_not_earlier(start, kind, key):
    server = start()
    first = server.client.call(kind, order(), key)
    assert dict(first.initial).get(RUN) == (first.run if kind.has_response_stream else None)
    failed = server.client.call(kind, order(run(code=grpc.StatusCode.ABORTED)), "other")
    assert bool(failed.initial) == bool(failed.messages)
