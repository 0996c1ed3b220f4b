"""Which calls need a key, which keys are valid, and which scope they are in."""

import grpc
import pytest

from idem_grpc import PEER, KeyRule, Policy, Reason, metadata
from idem_grpc._core.record import State
from tests.server.certificates import ALICE, BOB, server_credentials
from tests.server.client import Kind
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order

kind = kinds(*FIRST_AND_LAST)

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_a_call_without_a_required_key_is_refused(start, kind):
    server, request = start(default=Policy(key=KeyRule.REQUIRED)), order()
    answer = server.client.call(kind, request)
    assert (answer.code, answer.reason) == (INVALID, Reason.KEY_REQUIRED)
    assert not server.ledger.all_runs
    assert server.client.call(kind, request, "key").ok


def test_a_token_method_refuses_client_keys(start, kind, key):
    server, request = start(default=Policy(key=KeyRule.TOKEN)), order()
    assert server.client.call(kind, request).reason is Reason.KEY_REQUIRED
    answer = server.client.call(kind, request, key)
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.TOKEN_UNKNOWN)
    assert not server.ledger.all_runs


BAD_KEYS = {"empty": [""], "long": ["x" * 256], "two": ["one", "two"], "blank": ["a b"]}


@pytest.mark.parametrize("keys", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.parametrize("rule", [KeyRule.OPTIONAL, KeyRule.REQUIRED], ids=lambda rule: rule.value)
def test_an_invalid_key_is_refused(start, kind, keys, rule):
    server, request = start(default=Policy(key=rule)), order()
    answer = server.client.call(kind, request, keys)
    assert (answer.code, answer.reason) == (INVALID, Reason.KEY_INVALID)
    assert not server.ledger.all_runs


@pytest.mark.parametrize("good", ["x", "x" * 255, "!~:%/+=", "Order-1"])
def test_a_valid_key_is_accepted(start, kind, good):
    server, request = start(), order()
    first, second = (server.client.call(kind, request, good) for _ in range(2))
    assert first.ok
    assert second.replayed


def test_the_same_key_twice_is_one_key(start, kind, key):
    """A proxy may add the header that is already there."""
    server, request = start(), order()
    first = server.client.call(kind, request, [key, key])
    assert first.ok
    assert server.client.call(kind, request, key).essence == first.essence


def test_methods_do_not_share_keys_unless_they_share_an_operation(start, key):
    apart, request = start(), order()
    assert apart.client.call(Kind.UNARY, request, key).ok
    assert not apart.client.call(Kind.SERVER_STREAM, request, key).replayed
    policies = {kind.path: Policy(operation="pay") for kind in (Kind.UNARY, Kind.SERVER_STREAM)}
    shared = start(policies=policies)
    assert shared.client.call(Kind.UNARY, request, key).ok
    assert shared.client.call(Kind.SERVER_STREAM, request, key).reason is Reason.KEY_REUSED


def tenant(name):
    return [("x-tenant-id", name)]


def test_tenants_do_not_share_keys(start, url, kind, key):
    server, request = start(url, scope=metadata("x-tenant-id")), order()
    first = server.client.call(kind, request, key, metadata=tenant("acme"))
    other = server.client.call(kind, order(amount=1), key, metadata=tenant("emca"))
    assert first.ok
    assert other.ok
    assert first.entry != other.entry
    assert server.client.call(kind, request, key, metadata=tenant("acme")).essence == first.essence


@pytest.mark.parametrize("pairs", [[], tenant(""), tenant("one") + tenant("two")], ids=["no", "empty", "two"])
def test_a_call_without_a_tenant_is_refused(start, kind, key, pairs):
    server = start(scope=metadata("x-tenant-id"))
    answer = server.client.call(kind, order(), key, metadata=pairs)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.SCOPE_UNKNOWN)
    assert not server.ledger.all_runs


def test_a_scope_function_that_raises_refuses_the_call(start, kind, key):
    def scope(call):
        raise KeyError(call.method)

    server = start(scope=scope)
    assert server.client.call(kind, order(), key).reason is Reason.SCOPE_UNKNOWN
    assert not server.ledger.all_runs


def test_a_scope_function_gets_the_call(start, kind, key):
    seen = []

    def scope(call):
        seen.append(call)
        return "acme"

    server = start(scope=scope)
    assert server.client.call(kind, order(), key, metadata=[("a", "b")]).ok
    assert seen[0].method == kind.path
    assert ("a", "b") in seen[0].metadata
    assert server.record(key, kind, scope="acme").state is State.DONE


def test_an_unauthenticated_peer_has_no_scope(start, kind, key):
    server = start(scope=PEER)
    answer = server.client.call(kind, order(), key)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.SCOPE_UNKNOWN)
    assert not server.ledger.all_runs


def test_authenticated_peers_do_not_share_keys(start, kind, key):
    server, request = start(scope=PEER, credentials=server_credentials()), order()
    alice, alice_again, bob = (
        server.new_client(("grpc.ssl_target_name_override", "localhost"), credentials=who)
        for who in (ALICE, ALICE, BOB)
    )
    first = alice.call(kind, request, key)
    assert first.ok
    assert alice_again.call(kind, request, key).essence == first.essence
    other = bob.call(kind, request, key)
    assert other.ok
    assert other.entry != first.entry
    executions = [run.execution for run in server.ledger.runs(request)]
    assert len({execution.scope for execution in executions}) == 2
