"""The requests that a TokenService accepts, and its settings."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from idem_grpc_pb.v1 import token_pb2

import idem_grpc
import idem_grpc.aio
from idem_grpc import SHARED, Operation, Reason
from tests.server.client import Kind
from tests.server.ledger import order
from tests.tokens.servers import CHARGE, ask, get, issue, issue_many, revoke, shown, wanted

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DAY = 86_400.0


def test_a_token_is_safe_in_a_url_and_hard_to_guess(start):
    tokens = [token.token for token in issue_many(start().client, count=100)]
    assert len(set(tokens)) == 100
    for token in tokens:
        prefix, _, secret = token.partition("_")
        assert prefix == "idt"
        assert set(secret) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        assert len(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))) * 8 >= 128
    bits = b"".join(base64.urlsafe_b64decode(token[4:]) for token in tokens)
    ones = sum(byte.bit_count() for byte in bits) / (8 * len(bits))
    assert 0.45 < ones < 0.55, "no part of it is a counter or a clock"


def test_an_issued_token_has_its_operation_and_ttl(start, url):
    (token,) = issue_many(start(url).client)
    assert (token.operation, token.state, token.attempt) == (CHARGE, token_pb2.TOKEN_STATE_OPEN, 0)
    assert token.ttl.ToSeconds() == 900
    assert token.expire_time.seconds > 0


@pytest.mark.parametrize("operation", ["", "tests.unknown", CHARGE.upper(), "é", "x" * 5000])
def test_an_unknown_operation_is_refused(start, operation):
    answer = ask(start().client, "IssueTokens", wanted(operation))
    assert answer.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("count", "issued"), [(0, 1), (1, 1), (100, 100)])
def test_count_is_at_least_one_and_at_most_100(start, url, count, issued):
    assert len(issue_many(start(url).client, count=count)) == issued


@pytest.mark.parametrize("count", [101, -1, 2**31 - 1, -(2**31)])
def test_an_invalid_count_is_refused(start, count):
    assert ask(start().client, "IssueTokens", wanted(count=count)).code is INVALID


@pytest.mark.parametrize(
    ("ttl", "lives"), [(60, 60), (0.25, 0.25), (3600, 3600), (3601, 3600), (315_576_000_000, 3600)]
)
def test_ttl_is_limited_to_the_longest_of_the_operation(start, ttl, lives):
    (token,) = issue_many(start().client, ttl=ttl)
    assert token.ttl.ToMilliseconds() / 1000 == lives


@pytest.mark.parametrize(
    "ttl",
    [
        Duration(),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(nanos=1),
        Duration(seconds=-(2**63)),
    ],
)
def test_an_invalid_ttl_is_refused(start, ttl):
    request = token_pb2.IssueTokensRequest(operation=CHARGE, ttl=ttl)
    assert ask(start().client, "IssueTokens", request).code is INVALID


def test_the_largest_ttl_of_protobuf_is_limited_too(start):
    request = token_pb2.IssueTokensRequest(operation=CHARGE, ttl=Duration(seconds=2**63 - 1, nanos=2**31 - 1))
    answer = ask(start().client, "IssueTokens", request)
    (token,) = token_pb2.IssueTokensResponse.FromString(answer.messages[0]).tokens
    assert token.ttl.ToSeconds() == 3600


@pytest.mark.parametrize("token", ["", " ", "idt_", "é" * 300, "\0", "x" * 100_000])
def test_text_that_is_no_token_is_not_found(start, token):
    client = start().client
    assert get(client, token).code is grpc.StatusCode.NOT_FOUND
    assert revoke(client, token).ok


def test_a_client_key_is_no_token(start, url):
    """A client may send the same text to a method that requires no token."""
    policies = {Kind.UNARY.path: idem_grpc.Policy(operation="tests.own", key=idem_grpc.KeyRule.OPTIONAL)}
    server = start(url, policies=policies)
    token = issue(server.client)
    assert server.client.call(Kind.UNARY, order(), token).ok
    assert shown(server.client, token).attempt == 0, "the token is not used up by that"
    assert server.client.call(Kind.BIDI, order(), token).ok


@pytest.mark.parametrize("method", ["IssueTokens", "GetToken", "RevokeToken"])
def test_a_store_that_is_away_refuses_the_requests(start, own_redis_server, method):
    server = start(own_redis_server.url)
    token = issue(server.client)
    asked = {
        "IssueTokens": wanted(),
        "GetToken": token_pb2.GetTokenRequest(token=token),
        "RevokeToken": token_pb2.RevokeTokenRequest(token=token),
    }
    own_redis_server.kill()
    answer = ask(server.client, method, asked[method])
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE)
    delay = answer.detail(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() == round(answer.pushback * 1000) > 0
    own_redis_server.restart()
    assert ask(server.client, "IssueTokens", wanted()).ok


def test_a_closed_store_refuses_the_requests(start):
    server = start()
    server.store.close()
    answer = ask(server.client, "IssueTokens", wanted())
    assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, Reason.MISCONFIGURED)


OPERATIONS = {"tests.charge": Operation()}


def interceptors():
    """One of each face."""
    return [
        its.ServerInterceptor(its.open_store("memory:"), scope=SHARED) for its in (idem_grpc, idem_grpc.aio)
    ]


def test_interceptors_and_servers_of_the_other_face_are_refused():
    plain, asynchronous = interceptors()
    server = grpc.server(ThreadPoolExecutor(1))
    with pytest.raises(TypeError, match=r"for grpc\.aio, use idem_grpc\.aio$"):
        idem_grpc.add_token_service(server, asynchronous, operations=OPERATIONS)
    with pytest.raises(TypeError, match="for a server of grpc, use"):
        idem_grpc.aio.add_token_service(server, asynchronous, operations=OPERATIONS)  # type: ignore[arg-type]  # which is the point
    with pytest.raises(TypeError, match=r"for grpc, use idem_grpc$"):
        idem_grpc.aio.add_token_service(None, plain, operations=OPERATIONS)  # type: ignore[arg-type]  # which is the point
    with pytest.raises(TypeError, match="give a mapping, as in"):
        idem_grpc.add_token_service(server, plain, operations=["tests.charge"])  # type: ignore[arg-type]  # which is the point


async def of_aio():
    with pytest.raises(TypeError, match=r"for a server of grpc\.aio, use"):
        idem_grpc.add_token_service(grpc.aio.server(), interceptors()[0], operations=OPERATIONS)  # type: ignore[arg-type]  # which is the point


def test_a_server_of_aio_is_refused():
    asyncio.run(of_aio())


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": timedelta(0)},
        {"ttl": 0.0001},
        {"ttl": float("nan")},
        {"ttl": 61, "max_ttl": 60},
        {"max_ttl": float("inf")},
        {"max_ttl": 101 * 365 * DAY},
        {"issue_rate": (0, 60)},
        {"issue_rate": (-1, 60)},
        {"issue_rate": (10, 0)},
        {"issue_rate": (10, -1)},
        {"issue_rate": (10, float("nan"))},
        {"issue_rate": (10, float("inf"))},
        {"issue_rate": (10, 101 * 365 * DAY)},
    ],
    ids=str,
)
def test_an_invalid_operation_is_refused(settings):
    with pytest.raises(ValueError, match=r"Operation\("):
        Operation(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl": "15m"},
        {"max_ttl": None},
        {"issue_rate": 600},
        {"issue_rate": (10,)},
        {"issue_rate": ("600", 60)},
        {"issue_rate": (1.5, 60)},
    ],
    ids=str,
)
def test_an_operation_of_wrong_types_is_refused(settings):
    with pytest.raises(TypeError, match=r"Operation\("):
        Operation(**settings)


@pytest.mark.parametrize("package", [idem_grpc, idem_grpc.aio])
@pytest.mark.parametrize(
    ("operations", "error"),
    [
        ({}, ValueError),
        ({CHARGE: 900}, TypeError),
        ({"": Operation()}, ValueError),
        ({7: Operation()}, TypeError),
    ],
    ids=["none", "no Operation", "no name", "no string"],
)
def test_invalid_operations_are_refused(package, operations, error):
    interceptor = package.ServerInterceptor(package.open_store("memory:"), scope=idem_grpc.SHARED)
    with pytest.raises(error, match="operations"):
        package.add_token_service(None, interceptor, operations=operations)
