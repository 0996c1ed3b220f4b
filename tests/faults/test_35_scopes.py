"""Callers with different scopes never share keys, with any metadata and any kind of identity."""

import base64

import grpc
import pytest
from click.testing import CliRunner

import idem_grpc
import idem_grpc.aio
from idem_grpc import PEER, CallInfo, Policy, Reason
from idem_grpc._cli.app import app
from idem_grpc._core.record import State
from idem_grpc._core.scope import scope_of
from tests.server.certificates import ALICE, ALICE_BY_COMMON_NAME, ALICE_REPLICA, BOB, server_credentials
from tests.server.client import Kind
from tests.server.ledger import order
from tests.tokens.rawcall import grpc_status
from tests.tokens.servers import FACES, OPERATIONS, issue, revoke

TENANT = "x-tenant"
OK, UNAUTHENTICATED = b"0", b"16"
NOT_TEXT = {
    "UTF-8": b"caf\xc3\xa9",
    "Latin-1": b"caf\xe9",
    "neither": b"caf\xff",
    "a tabulator": b"ca\tfe",
}
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, Reason.SCOPE_UNKNOWN)


@pytest.mark.parametrize("value", NOT_TEXT.values(), ids=NOT_TEXT)
def test_a_tenant_that_is_not_printable_ascii_is_unknown(start, kind, value):
    server = start(scope=idem_grpc.metadata(TENANT))
    sent = [(TENANT.encode(), value)]
    if value != b"ca\tfe":  # which gRPC's core refuses by itself
        assert grpc_status(server.address, kind.path, b"key", *sent) == UNAUTHENTICATED
    assert grpc_status(server.address, kind.path, b"key", (TENANT.encode(), b"cafe")) == OK
    assert len(server.ledger.all_runs) == 1


def test_a_scope_function_never_sees_two_tenants_as_one(start, kind):
    """grpc decodes different bytes to the same text, so values that are not text are not shown."""
    seen = []

    def scope(call):
        seen.append(dict(call.metadata))
        return dict(call.metadata)[TENANT]

    server = start(scope=scope)
    for value in NOT_TEXT["UTF-8"], NOT_TEXT["Latin-1"]:
        sent = [(TENANT.encode(), value), (b"other", b"it")]
        assert grpc_status(server.address, kind.path, b"key", *sent) == UNAUTHENTICATED
    assert not server.ledger.all_runs
    assert all(TENANT not in metadata and metadata["other"] == "it" for metadata in seen)


@pytest.mark.parametrize("first", [b"shop", b"caf\xe9"])
def test_a_name_with_a_value_that_is_not_text_has_no_value(start, kind, first):
    """Otherwise the valid one of two values would count as the only one."""
    second = {b"shop": b"caf\xe9", b"caf\xe9": b"shop"}[first]
    name = TENANT.encode()
    for scope in idem_grpc.metadata(TENANT), lambda call: dict(call.metadata)[TENANT]:
        server = start(scope=scope)
        status = grpc_status(server.address, kind.path, b"key", (name, first), (name, second))
        assert status == UNAUTHENTICATED
        assert not server.ledger.all_runs


def test_a_binary_entry_keeps_all_bytes_apart(start, kind):
    server = start(scope=idem_grpc.metadata("x-tenant-bin"))
    for value in NOT_TEXT.values():
        sent = (b"x-tenant-bin", base64.b64encode(value))
        assert grpc_status(server.address, kind.path, b"key", sent) == OK
    assert len({run.execution.scope for run in server.ledger.all_runs}) == len(NOT_TEXT)


@pytest.mark.parametrize("key", [b"caf\xc3\xa9", b"caf\xe9"])
def test_a_key_that_is_not_ascii_is_refused(start, kind, key):
    server = start()
    assert grpc_status(server.address, kind.path, key) == b"3"
    assert not server.ledger.all_runs


@pytest.fixture
def with_tokens(face):
    """A server of the face with a TokenService: ``with_tokens(**settings)``."""
    servers = []

    def start(**settings):
        package = {"sync": idem_grpc, "aio": idem_grpc.aio}[face]
        servers.append(FACES[face](package.open_store("memory:"), operations=OPERATIONS, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("value", [NOT_TEXT["UTF-8"], NOT_TEXT["Latin-1"]])
def test_no_token_is_issued_to_a_tenant_that_is_not_printable_ascii(with_tokens, value):
    server = with_tokens(scope=idem_grpc.metadata(TENANT))
    for method in "IssueTokens", "GetToken", "RevokeToken":
        path = f"/idem.v1.TokenService/{method}"
        assert grpc_status(server.address, path, b"key", (TENANT.encode(), value)) == UNAUTHENTICATED


BAD = {
    "a lone surrogate": "tenant-\ud800",
    "nothing": "",
    "None": None,
    "bytes": b"tenant",
    "a number": 7,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_scope_that_is_no_text_is_unknown(start, kind, key, bad, caplog):
    server = start(scope=lambda call: bad)
    answer = server.client.call(kind, order(), key)
    assert (answer.code, answer.reason) == REFUSED
    assert not server.ledger.all_runs
    assert f"{kind.path} is refused: the scope returned {bad!r}" in caplog.text


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_no_token_is_issued_to_a_scope_that_is_no_text(with_tokens, bad):
    server = with_tokens(scope=lambda call: bad)
    assert revoke(server.client, "idt_x").reason is Reason.SCOPE_UNKNOWN


@pytest.mark.parametrize("odd", ["caf\xe9", "\0", "a\nb", "x" * 1_000_000, "\U0001f600"], ids=repr)
def test_a_scope_function_may_return_any_text(start, kind, key, odd):
    """The scope is digested, so a store accepts any length and any characters."""
    server, request = start(scope=lambda call: odd), order()
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert first.ok
    assert second.essence == first.essence
    assert server.record(key, kind, scope=odd).state is State.DONE


def test_a_scope_that_is_a_coroutine_function_is_refused_at_construction(start):
    async def scope(call):
        return "tenant"

    with pytest.raises(TypeError, match="a plain function"):
        start(scope=scope)


def test_an_object_that_is_called_as_a_coroutine_is_refused_at_construction(start):
    class Scope:
        async def __call__(self, call):
            return "tenant"

    with pytest.raises(TypeError, match="a plain function"):
        start(scope=Scope())


def test_an_operation_that_cannot_be_encoded_is_refused_at_construction():
    with pytest.raises(ValueError, match="operation='\\\\ud800'"):
        Policy(operation="\ud800")


@pytest.mark.parametrize(
    "named",
    [
        ("key", "--operation", "o", "--scope", "caf\udce9"),
        ("key", "--operation", "caf\udce9", "--scope", ""),
        ("--token", "caf\udce9"),
        ("--raw", "caf\udce9"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("command", ["inspect", "forget", "revoke", "resolve"])
def test_a_name_on_the_command_line_that_is_not_utf_8_is_refused(tmp_path, command, named):
    options = ("--rerun",) if command == "resolve" else ()
    result = CliRunner().invoke(app, [command, *options, "--store", f"sqlite:///{tmp_path}/s.db", *named])
    assert result.exit_code == 2
    assert "is not valid UTF-8" in result.stderr


def peers(server, *credentials):
    options = ("grpc.ssl_target_name_override", "localhost")
    return [server.new_client(options, credentials=one) for one in credentials]


def test_a_name_in_the_subject_and_one_among_alternatives_are_two_peers(start, kind, key):
    server, request = start(scope=PEER, credentials=server_credentials()), order()
    answers = [client.call(kind, request, key) for client in peers(server, ALICE, ALICE_BY_COMMON_NAME, BOB)]
    assert all(answer.ok and not answer.replayed for answer in answers)
    scopes = [run.execution.scope for run in server.ledger.runs(request)]
    assert scopes == [
        "x509_subject_alternative_name:alice",
        "x509_common_name:alice",
        "x509_subject_alternative_name:bob",
    ]
    assert {server.record(key, kind, scope=scope).state for scope in scopes} == {State.DONE}


def test_replicas_with_the_same_names_are_one_peer(start, kind, key):
    server, request = start(scope=PEER, credentials=server_credentials()), order()
    first, second = (client.call(kind, request, key) for client in peers(server, ALICE, ALICE_REPLICA))
    assert first.ok
    assert second.essence == first.essence


def test_tokens_of_two_kinds_of_peer_are_two_callers(with_tokens):
    server = with_tokens(scope=PEER, credentials=server_credentials())
    by_names, by_common_name = peers(server, ALICE, ALICE_BY_COMMON_NAME)
    token = issue(by_names)
    assert by_common_name.call(Kind.UNARY, order(), token).reason is Reason.TOKEN_MISMATCH
    assert revoke(by_common_name, token).reason is Reason.TOKEN_MISMATCH
    assert by_names.call(Kind.UNARY, order(), token).ok


def test_call_info_says_what_kind_of_identity_it_has(start, kind, key):
    seen = []

    def scope(call):
        seen.append(call)
        return "all"

    server = start(scope=scope, credentials=server_credentials())
    (alice,) = peers(server, ALICE)
    assert alice.call(kind, order(), key).ok
    assert seen[0].peer_identity_key == "x509_subject_alternative_name"
    plain = start(scope=scope)
    assert plain.client.call(kind, order(), key).ok
    assert seen[1].peer_identity_key is None


def test_identities_of_one_peer_are_not_those_of_another():
    """For any text: parts are escaped and separated."""
    infos = [
        CallInfo("/m", (), identities, {}, kind)
        for identities, kind in [
            ((b"a", b"b"), "k"),
            ((b"a:b",), "k"),
            ((b"a%3Ab",), "k"),
            ((b"b",), "k:a"),
            ((b"a\xff",), "k"),
            (("a\xff".encode(),), "k"),
            ((b"a",), None),
        ]
    ]
    assert len({scope_of(PEER, info) for info in infos}) == len(infos)


def test_call_info_can_be_made_as_before():
    assert CallInfo("/m", (), (), {}).peer_identity_key is None
