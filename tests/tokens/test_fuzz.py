"""Any idempotency-key gets a proper status."""

import re
from uuid import uuid4

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import KeyRule, Policy, Reason
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order
from tests.tokens.rawcall import grpc_status
from tests.tokens.servers import FACES, get, issue, revoke

LETTERS = "".join(map(chr, range(0x20, 0x7F)))  # what grpc lets through; it strips blanks at the ends
CLEAN = {
    None: {grpc.StatusCode.OK},
    Reason.KEY_INVALID: {grpc.StatusCode.INVALID_ARGUMENT},
    Reason.KEY_REQUIRED: {grpc.StatusCode.INVALID_ARGUMENT},
    Reason.KEY_REUSED: {grpc.StatusCode.INVALID_ARGUMENT},
    Reason.TOKEN_UNKNOWN: {grpc.StatusCode.FAILED_PRECONDITION},
}
TOO_LONG = 7000  # characters, from which grpc itself may refuse a call's metadata
short = st.text(LETTERS, max_size=300)
long = st.builds(str.__mul__, st.text(LETTERS, min_size=1, max_size=20), st.integers(1, 1000))
like_a_token = st.builds("idt_{}".format, st.text(LETTERS, min_size=20, max_size=28))


@pytest.fixture(scope="module", params=list(FACES))
def server(request):
    """A server whose ServerStream takes any key, and its other methods only tokens."""
    policies = {Kind.SERVER_STREAM.path: Policy(operation="tests.any", key=KeyRule.OPTIONAL)}
    server = FACES[request.param](open_store(request.param, "memory:", uuid4().hex), policies=policies)
    yield server
    server.close()


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
@settings(max_examples=150, deadline=None)
@given(key=short | long | like_a_token)
@example(key="")
@example(key=" ")
@example(key="x" * 255)
@example(key="x" * 256)
@example(key="a b")
@example(key="a,b")
def test_a_key_of_any_text(server, kind, key):
    before = len(server.ledger.all_runs)
    answer = server.client.call(kind, order(), key)
    if len(key) > TOO_LONG and answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return
    assert answer.code in CLEAN[answer.reason], answer
    ran = len(server.ledger.all_runs) - before
    assert ran == answer.ok, "what is refused is not run"
    assert not (answer.ok and kind is Kind.UNARY), "a token cannot be guessed"


@settings(max_examples=100, deadline=None)
@given(where=st.integers(0, 27), letter=st.sampled_from(LETTERS))
def test_a_token_with_a_letter_changed(server, where, letter):
    token = issue(server.client)
    changed = token[:where] + letter + token[where + 1 :]
    answer = server.client.call(Kind.UNARY, order(), changed)
    assert answer.ok == (changed.strip() == token), answer
    assert answer.code in CLEAN[answer.reason], answer


@settings(max_examples=100, deadline=None)
@given(token=st.text(max_size=300))
def test_get_token_with_any_text(server, token):
    assert get(server.client, token).code is grpc.StatusCode.NOT_FOUND
    assert revoke(server.client, token).ok


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.text(LETTERS, min_size=1, max_size=40), min_size=2, max_size=4))
def test_several_keys(server, keys):
    answer = server.client.call(Kind.UNARY, order(), keys)
    assert answer.code in CLEAN[answer.reason], answer
    assert not answer.ok


INVALID_ARGUMENT, FAILED_PRECONDITION = b"3", b"9"


@settings(max_examples=100, deadline=None)
@given(key=st.binary(max_size=300))
@example(key=b"\xff\xfe")
@example(key="é".encode())
@example(key=b"a\x00b")
@example(key=b"a\x7f")
def test_a_key_of_any_bytes(server, key):
    status = grpc_status(server.address, Kind.UNARY.path, key)
    well_formed = re.fullmatch(rb"[\x21-\x7e]{1,255}", key)
    assert status == (FAILED_PRECONDITION if well_formed else INVALID_ARGUMENT), key
    assert not server.ledger.runs(pb.LedgerRequest())
