"""``service_config`` gives gRPC what gRPC takes, and refuses what it would not."""

import json
import math
from datetime import timedelta

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

from idem_grpc import service_config
from tests.support.scripted import answer, fail

SERVICE = "tests.v1.LedgerService"


def policy(config: str) -> dict[str, object]:
    return dict(json.loads(config)["methodConfig"][0]["retryPolicy"])


def names(config: str) -> list[dict[str, str]]:
    return list(json.loads(config)["methodConfig"][0]["name"])


def stock_channel(server, config: str) -> grpc.Channel:
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(server.address, options)


def call(server, config: str) -> None:
    with stock_channel(server, config) as channel:
        ledger_pb2_grpc.LedgerServiceStub(channel).Unary(pb.LedgerRequest(), timeout=20)


ACCEPTED = [
    {},
    {"services": [SERVICE]},
    {"services": [f"/{SERVICE}/*", "tests.v1.Other"]},
    {"services": (f"{SERVICE}/Unary", f"/{SERVICE}/ServerStream")},
    {"max_attempts": 2},
    {"initial_backoff": 0.01, "max_backoff": 0.01},
    {"initial_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(days=3000)},
    {"max_backoff": 1e8},
    {"max_backoff": 1234567.891},
    {"multiplier": 1},
    {"multiplier": 1000},
    {"codes": [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]},
    {"codes": ("ABORTED", grpc.StatusCode.UNAVAILABLE)},
]


@pytest.mark.parametrize("settings", ACCEPTED, ids=str)
def test_grpc_takes_what_is_accepted(script, settings):
    server = script(answer())
    call(server, service_config(**settings))
    assert len(server.seen) == 1


def test_grpc_does_not_take_just_anything(script):
    """Else the test above would say nothing."""
    server = script(answer())
    with pytest.raises(grpc.RpcError):
        call(server, service_config().replace('"0.1s"', '"1e-05s"'))
    assert not server.seen


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"services": SERVICE}, TypeError, "give a list of names"),
        ({"services": 5}, TypeError, "give a list of names"),
        ({"services": [5]}, ValueError, "5 is no name"),
        ({"services": [""]}, ValueError, "'' is no name"),
        ({"services": ["/"]}, ValueError, "is no name"),
        ({"services": ["a b"]}, ValueError, "is no name"),
        ({"services": ["*"]}, ValueError, "is no name"),
        ({"services": [f"{SERVICE}/Unary/More"]}, ValueError, "is no name"),
        ({"services": [f"{SERVICE}/ClientStream"]}, ValueError, "has a request stream"),
        ({"services": [SERVICE, f"/{SERVICE}/Bidi"]}, ValueError, "has a request stream"),
        ({"services": [SERVICE, SERVICE]}, ValueError, "is named twice"),
        ({"services": [SERVICE, f"/{SERVICE}/*"]}, ValueError, "is named twice"),
        ({"max_attempts": 1}, ValueError, "give 2 or more"),
        ({"max_attempts": 6}, ValueError, "gRPC takes 2 to 5"),
        ({"max_attempts": 3.5}, TypeError, "give a whole number"),
        ({"max_attempts": "3"}, TypeError, "give a whole number"),
        ({"max_attempts": True}, TypeError, "give a whole number"),
        ({"initial_backoff": 0}, ValueError, "initial_backoff=0"),
        ({"initial_backoff": -1}, ValueError, "initial_backoff=-1"),
        ({"initial_backoff": 0.0009}, ValueError, "initial_backoff=0.0009"),
        ({"initial_backoff": 0.009}, ValueError, "give 0.01 seconds or more"),
        ({"max_backoff": 0.009}, ValueError, "give 0.01 seconds or more"),
        ({"initial_backoff": "1s"}, TypeError, "initial_backoff='1s'"),
        ({"max_backoff": timedelta(0)}, ValueError, "max_backoff"),
        ({"max_backoff": math.inf}, ValueError, "max_backoff=inf"),
        ({"max_backoff": math.nan}, ValueError, "max_backoff=nan"),
        ({"multiplier": 0.9}, ValueError, "from 1 to 1000"),
        ({"multiplier": 0}, ValueError, "multiplier=0"),
        ({"multiplier": -2}, ValueError, "multiplier=-2"),
        ({"multiplier": math.nan}, ValueError, "multiplier=nan"),
        ({"multiplier": "2"}, TypeError, "multiplier='2'"),
        ({"codes": []}, ValueError, "name at least one"),
        ({"codes": ["OK"]}, ValueError, "OK is not an error"),
        ({"codes": "UNAVAILABLE"}, TypeError, "give a collection"),
        ({"codes": grpc.StatusCode.UNAVAILABLE}, TypeError, "give a collection"),
    ],
    ids=str,
)
def test_what_grpc_would_refuse_is_refused_with_a_sentence(settings, error, says):
    with pytest.raises(error, match=says):
        service_config(**settings)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.01, "0.01s"), (0.012, "0.012s"), (0.1, "0.1s"), (5, "5s"), (100, "100s"), (1e8, "100000000s")],
)
def test_durations_are_written_without_an_exponent(seconds, written):
    assert policy(service_config(initial_backoff=seconds))["initialBackoff"] == written


def test_a_service_may_be_named_as_in_policies():
    named = service_config([f"/{SERVICE}/*", "/tests.v1.Other/One", "tests.v1.Third/"])
    assert names(named) == [
        {"service": SERVICE},
        {"service": "tests.v1.Other", "method": "One"},
        {"service": "tests.v1.Third"},
    ]
    assert names(service_config()) == [{}]


def test_request_streams_of_a_service_are_left_out():
    retried, left_out = json.loads(service_config([SERVICE, "tests.v1.Other"]))["methodConfig"]
    assert "retryPolicy" in retried
    assert [name["method"] for name in left_out.pop("name")] == ["ClientStream", "Bidi"]
    assert not left_out, "which takes precedence, and has no retries"


@pytest.mark.parametrize("method", ["Unary", "ClientStream"])
def test_grpc_retries_what_is_left_in_and_nothing_else(script, method):
    server = script(fail(), answer())
    with stock_channel(server, service_config([SERVICE], initial_backoff=0.01)) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        if method == "Unary":
            stub.Unary(pb.LedgerRequest(), timeout=20)
            assert len(server.seen) == 2
        else:
            with pytest.raises(grpc.RpcError):
                stub.ClientStream(iter([pb.LedgerRequest()]), timeout=20)
            assert len(server.seen) == 1
