"""The interceptor uses the metadata that interceptors outside pass on."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import KeyRule, Operation, Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind, Pending
from tests.server.harness import AsyncServer, SyncServer
from tests.server.ledger import DEADLINE, order, run
from tests.tokens.servers import ask, get, issue, tenant

TENANT = "x-tenant"
SPOOFED = [(TENANT, "spoofed")]
KEY = "idempotency-key"


class Outer(grpc.ServerInterceptor):
    """Passes on the details changed by ``change``."""

    def __init__(self, change):
        self.change = change

    def intercept_service(self, continuation, details):
        return continuation(self.change(details))


class AsyncOuter(grpc.aio.ServerInterceptor):
    def __init__(self, change):
        self.change = change

    async def intercept_service(self, continuation, details):
        Inner.native = type(details)
        return await continuation(self.change(details))


class Inner(grpc.aio.ServerInterceptor):
    """Converts the details to the class of grpc.aio, which accepts no other at the end."""

    native: Any = None

    async def intercept_service(self, continuation, details):
        return await continuation(self.native(details.method, ()))


@pytest.fixture
def outside(face):
    """Settings of a server with another interceptor outside: ``outside(change of details)``."""
    if face == "sync":
        return lambda change: {"before": [Outer(change)]}
    return lambda change: {"before": [AsyncOuter(change)], "after": [Inner()]}


def passing_on(metadata):
    """A change of the details: ``metadata`` makes the new pairs from those that came."""

    def change(details):
        came = [tuple(pair) for pair in details.invocation_metadata]
        return SimpleNamespace(method=details.method, invocation_metadata=metadata(came))

    return change


def without(name):
    return lambda came: [pair for pair in came if pair[0] != name]


def setting(name, value):
    return lambda came: [*without(name)(came), (name, value)]


@dataclass
class Details(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any


Named = namedtuple("Named", "method invocation_metadata extra")
Pair = namedtuple("Pair", "key value")

DETAILS = {
    "a namespace": lambda method, pairs: SimpleNamespace(method=method, invocation_metadata=pairs),
    "a dataclass": Details,
    "a namedtuple": lambda method, pairs: Named(method, tuple(pairs), None),
}
FORMS = {
    "tuples": lambda pairs: tuple(pairs),
    "lists": lambda pairs: [list(pair) for pair in pairs],
    "named tuples": lambda pairs: [Pair(*pair) for pair in pairs],
    "attributes": lambda pairs: [SimpleNamespace(key=key, value=value) for key, value in pairs],
    "names as bytes": lambda pairs: [(key.encode(), value) for key, value in pairs],
    "values as bytes": lambda pairs: [(key, value.encode()) for key, value in pairs],
    "upper case": lambda pairs: [(key.title(), value) for key, value in pairs],
    "metadata of aio": lambda pairs: grpc.aio.Metadata(*pairs),
    "an iterator": iter,
}


@pytest.mark.parametrize("details", DETAILS.values(), ids=DETAILS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_scope_and_key_are_read_from_all_forms_of_details(start, outside, details, form):
    pairs = [(TENANT, "real"), (KEY, "outer")]
    server = start(
        scope=idem_grpc.metadata(TENANT),
        **outside(lambda came: details(came.method, form(pairs))),
    )
    first, second = (server.client.call(Kind.UNARY, order(), "inner", metadata=SPOOFED) for _ in range(2))
    assert first.ok, first
    assert second.reason is Reason.KEY_REUSED
    assert server.record("outer", scope="real").state is State.DONE


def test_the_scope_is_that_set_by_an_interceptor_outside(start, outside, kind, key):
    seen = []

    def scope(call):
        seen.append(dict(call.metadata))
        return idem_grpc.metadata(TENANT)(call)

    server = start(scope=scope, **outside(passing_on(setting(TENANT, "real"))))
    request = order()
    answer = server.client.call(kind, request, key, metadata=SPOOFED)
    assert answer.ok
    assert server.record(key, kind, scope="real").state is State.DONE
    assert server.record(key, kind, scope="spoofed").state is State.ABSENT
    assert seen[0][TENANT] == "real"
    (entry,) = server.ledger.runs(request)
    assert entry.execution.scope == "real"
    assert server.client.call(kind, request, key, metadata=[(TENANT, "other")]).essence == answer.essence


def test_a_scope_that_an_interceptor_outside_removed_is_unknown(start, outside, kind, key):
    server = start(scope=idem_grpc.metadata(TENANT), **outside(passing_on(without(TENANT))))
    answer = server.client.call(kind, order(), key, metadata=SPOOFED)
    assert answer.reason is Reason.SCOPE_UNKNOWN
    assert not server.ledger.all_runs


def test_a_key_set_outside_is_used(start, outside, kind, key):
    server = start(default=Policy(key=KeyRule.REQUIRED), **outside(passing_on(setting(KEY, key))))
    request = order()
    first, second = server.client.call(kind, request), server.client.call(kind, request, "of the caller")
    assert first.ok
    assert second.essence == first.essence
    (entry,) = server.ledger.runs(request)
    assert entry.execution.key == key


def test_a_key_removed_outside_is_not_used(start, outside, kind, key):
    server, request = start(**outside(passing_on(without(KEY)))), order()
    answers = [server.client.call(kind, request, key) for _ in range(2)]
    assert all(answer.ok and not answer.run for answer in answers)
    assert len(server.ledger.runs(request)) == 2
    strict = start(default=Policy(key=KeyRule.REQUIRED), **outside(passing_on(without(KEY))))
    assert strict.client.call(kind, request, key).reason is Reason.KEY_REQUIRED


@pytest.mark.parametrize("bad", ["a b", "", "x" * 256, "caf\xe9", b"\xff", 7, ["list"]], ids=repr)
def test_an_invalid_key_set_outside_is_refused(start, outside, kind, key, bad):
    server = start(**outside(passing_on(setting(KEY, bad))))
    answer = server.client.call(kind, order(), key)
    assert answer.reason is Reason.KEY_INVALID
    assert "1 to 255 characters" in answer.details
    assert not server.ledger.all_runs


def test_a_second_key_set_outside_is_refused(start, outside, kind, key):
    server = start(**outside(passing_on(lambda came: [*came, (KEY, "outer")])))
    answer = server.client.call(kind, order(), key)
    assert answer.reason is Reason.KEY_INVALID
    assert "two different" in answer.details


def test_a_call_may_have_no_metadata(start, outside, kind, key):
    nothing = outside(passing_on(lambda _: None))
    server, request = start(**nothing), order()
    answers = [server.client.call(kind, request, key) for _ in range(2)]
    assert all(answer.ok and not answer.run for answer in answers)
    strict = start(default=Policy(key=KeyRule.REQUIRED), **nothing)
    assert strict.client.call(kind, request, key).reason is Reason.KEY_REQUIRED


@pytest.mark.parametrize("junk", [[("one",)], [7], 7, [None]], ids=repr)
def test_invalid_metadata_refuses_the_call_with_the_reason(start, outside, kind, key, junk, caplog):
    server = start(**outside(passing_on(lambda _: junk)))
    answer = server.client.call(kind, order(), key)
    assert answer.reason is Reason.MISCONFIGURED
    assert not server.ledger.all_runs
    assert f"{kind.path} is refused: an outer interceptor passed on" in caplog.text
    assert server.client.call(Kind.READ, order()).ok, "what is not protected is not looked at"


def test_the_attempts_of_a_client_are_counted_by_the_metadata_passed_on(start, outside, kind, key):
    def counted(came):
        attempts = [("grpc-previous-rpc-attempts", value) for name, value in came if name == "attempts"]
        return [*came, *attempts]

    server = start(default=Policy(wait=0), **outside(passing_on(counted)))
    held = order(run(gate="held"))
    first = server.client.begin(kind, held, key)
    server.ledger.gate("held").await_arrival()
    fresh, third = (server.client.call(kind, held, key, metadata=m) for m in ((), [("attempts", "2")]))
    assert fresh.reason is third.reason is Reason.IN_PROGRESS
    assert third.pushback > fresh.pushback
    server.ledger.gate("held").open()
    assert first.answer().ok


def test_the_method_is_that_passed_on(start, outside, kind, key):
    """Names without a registered handler, since grpc looks those up by the name that came."""
    seen = []

    def scope(call):
        seen.append(call.method)
        return "acme"

    def change(details):
        return SimpleNamespace(
            method=details.method.replace("tests.v1.Old", "tests.v1.LedgerService"),
            invocation_metadata=details.invocation_metadata,
        )

    server, request = start(scope=scope, **outside(change)), order()
    call = getattr(server.client.channel, kind.arity)(f"/tests.v1.Old/{kind.value}")
    raw = request.SerializeToString()
    body = iter([raw]) if kind.has_request_stream else raw
    send = call if kind.has_response_stream else call.future
    first = Pending(send(body, metadata=[(KEY, key)], timeout=DEADLINE), kind.has_response_stream).answer()
    assert first.ok, first
    assert set(seen) == {kind.path}
    assert server.record(key, kind, scope="acme").state is State.DONE


def test_a_handler_sees_what_its_context_has(start, outside, kind, key):
    """As without the interceptor: grpc gives handlers the metadata that came, not that passed on."""
    server, request = start(**outside(passing_on(setting(TENANT, "real")))), order()
    for keys in (key, None):
        assert server.client.call(kind, request, keys, metadata=SPOOFED).ok
    for entry in server.ledger.runs(request):
        assert dict(entry.context.invocation_metadata())[TENANT] == "spoofed"


ALICE, BOB = tenant("alice"), tenant("bob")
OPERATIONS = {"tests.charge": Operation()}


def generated(server, interceptor, operations):
    """Add a custom servicer as generated code does."""
    package = idem_grpc if isinstance(interceptor, idem_grpc.ServerInterceptor) else idem_grpc.aio
    servicer: Any = package.TokenServicer(interceptor, operations)
    token_pb2_grpc.add_TokenServiceServicer_to_server(servicer, server)


def ours(server, interceptor, operations):
    package: Any = idem_grpc if isinstance(interceptor, idem_grpc.ServerInterceptor) else idem_grpc.aio
    package.add_token_service(server, interceptor, operations=operations)


@pytest.fixture(params=[ours, generated], ids=["added by us", "added by generated code"])
def tokens(request, face, url):
    """A server with a TokenService behind interceptors: ``tokens(**settings)``."""
    base: Any = {"sync": SyncServer, "aio": AsyncServer}[face]
    package: Any = {"sync": idem_grpc, "aio": idem_grpc.aio}[face]
    servers = []

    class WithTokens(base):  # type: ignore[misc]  # either of the two
        def _add_everything(self, server, servicer):
            request.param(server, self.interceptor, OPERATIONS)
            super()._add_everything(server, servicer)

    def start(**settings):
        store = package.open_store("memory:")
        settings = {"default": Policy(operation="tests.charge", key=KeyRule.TOKEN), **settings}
        servers.append(WithTokens(store, scope=idem_grpc.metadata("x-tenant-id"), **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


POLICIES = {"none": {}, "of its own": {"/idem.v1.TokenService/*": Policy(key=KeyRule.OPTIONAL)}}


@pytest.mark.parametrize("url", ["memory"], indirect=True)
@pytest.mark.parametrize("policies", POLICIES.values(), ids=POLICIES)
def test_tokens_are_issued_to_the_scope_passed_on(tokens, outside, policies):
    server = tokens(**outside(passing_on(setting("x-tenant-id", "alice"))), policies=policies)
    token = issue(server.client, "tests.charge", metadata=BOB)
    assert get(server.client, token, BOB).ok
    assert server.client.call(Kind.UNARY, order(), token, metadata=BOB).ok
    keyed = ask(
        server.client,
        "IssueTokens",
        token_pb2.IssueTokensRequest(operation="tests.charge"),
        (*BOB, (KEY, "one")),
    )
    assert keyed.ok, keyed
    (issued,) = token_pb2.IssueTokensResponse.FromString(keyed.messages[0]).tokens
    assert server.client.call(Kind.UNARY, order(), issued.token, metadata=BOB).ok


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_no_token_is_issued_where_the_scope_was_removed(tokens, outside):
    server = tokens(**outside(passing_on(without("x-tenant-id"))))
    request = token_pb2.IssueTokensRequest(operation="tests.charge")
    assert ask(server.client, "IssueTokens", request, ALICE).reason is Reason.SCOPE_UNKNOWN
    assert ask(server.client, "GetToken", token_pb2.GetTokenRequest(token="x"), ALICE).reason is (
        Reason.SCOPE_UNKNOWN
    )


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_no_token_is_issued_on_invalid_metadata(tokens, outside):
    server = tokens(**outside(passing_on(lambda _: [7])))
    request = token_pb2.IssueTokensRequest(operation="tests.charge")
    assert ask(server.client, "IssueTokens", request, ALICE).reason is Reason.MISCONFIGURED
