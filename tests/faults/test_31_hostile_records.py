"""Records are checked when they are read: no record can harm a server or the command.

A record that no server writes is UNREADABLE: its duplicates get OUTCOME_UNKNOWN, nothing runs,
and it stays unchanged for a person to look at.
"""

import logging
import sqlite3
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idem_grpc_pb.v1 import record_pb2, token_pb2
from tests_pb.v1 import ledger_pb2

from idem_grpc import OnUnclear, Operation, Policy, Reason
from idem_grpc._cli.facts import as_lines, describe
from idem_grpc._core.digest import digest, store_key, token_key
from idem_grpc._core.durations import LONGEST
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.judge import Call, Claim, GiveUp, judge, judge_late
from idem_grpc._core.metadata import is_sendable
from idem_grpc._core.policy import Rules
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Held, Swap
from idem_grpc.stores._protocol import check_swap
from tests.cli.conftest import place, run, store
from tests.server.client import Answer, Kind
from tests.server.harness import FACES, open_store
from tests.server.kinds import ALL
from tests.server.ledger import order
from tests.server.processes import ServerProcess
from tests.support.hostile import CHANGES, JUNK, UNARY_CHANGES, records
from tests.tokens import servers as token_servers
from tests.tokens.servers import CHARGE, get, issue, issue_many, revoke, wanted

__all__ = ["place", "run", "store"]  # pytest finds fixtures by name

TTL = 3600.0


@pytest.fixture
def errors() -> Iterator[list[logging.LogRecord]]:
    """The errors that this library and grpc log."""
    found: list[logging.LogRecord] = []
    with _noting(found):
        yield found


class _noting(logging.Handler):
    """A log handler that is installed until its block ends."""

    def __init__(self, found: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        if "PollerCompletionQueue" not in record.getMessage():  # grpc.aio, where loops of two threads meet
            self._found.append(record)

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def put(store: Any, name: bytes, value: bytes) -> None:
    """Make the store hold a value."""
    store.swap(Swap(name, store.read(name).value, value, TTL))


def held(store: Any, name: bytes) -> bytes:
    value: bytes | None = store.read(name).value
    assert value is not None
    return value


def hostile(value: bytes, kind: Kind) -> Iterator[tuple[str, bytes]]:
    """Values that may replace the record of a call, by name."""
    changes = CHANGES if kind.has_response_stream else {**CHANGES, **UNARY_CHANGES}
    for name, change in changes.items():
        record = record_pb2.Record.FromString(value)
        change(record)
        yield name, record.SerializeToString()
    for junk in [*JUNK, value[:-1], value + b"\xff"]:
        yield f"junk {junk[:8]!r}", junk


def test_such_a_record_is_refused_and_stays_as_it_is(start, url, kind, errors):
    server = start(url, cache_bytes=0)
    first_key, request = uuid4().hex, order()
    first = server.client.call(kind, request, first_key)
    assert first.ok
    name = store_key(server.store.namespace, kind.path, b"", first_key)
    value = held(server.store, name)
    for what, planted in hostile(value, kind):
        key = uuid4().hex
        name = store_key(server.store.namespace, kind.path, b"", key)
        put(server.store, name, planted)
        answer = server.client.call(kind, request, key)
        assert answer.reason is Reason.OUTCOME_UNKNOWN, what
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION, what
        assert server.store.read(name).value == planted, what
    assert len(server.ledger.runs(request)) == 1
    assert server.client.call(kind, request, first_key).essence == first.essence
    assert not errors


@pytest.mark.parametrize("where", ["initial_metadata", "trailing_metadata"])
@pytest.mark.parametrize("name", ["grpc-timeout", "grpclb_client_stats"])
def test_metadata_that_aborts_a_process_aborts_none(face, kind, tmp_path, where, name, key):
    """The server is a process of its own, so that the test sees that it stays alive."""
    url, namespace = f"sqlite:///{tmp_path}/store.db", uuid4().hex
    server = ServerProcess(face, url, namespace)
    try:
        request = order()
        assert server.client.call(kind, request, key).ok
        with open_store("sync", url, namespace) as opened:
            stored = store_key(namespace, kind.path, b"", key)
            record = record_pb2.Record.FromString(held(opened, stored))
            getattr(record.outcome, where).add(key=name, value=b"1S")
            put(opened, stored, record.SerializeToString())
        for _ in range(2):
            assert server.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
        assert server.client.call(kind, request, uuid4().hex).ok
    finally:
        server.close()


def test_an_owner_that_comes_late_leaves_such_a_record_alone(start, url, kind, errors):
    """It was written while the handler ran; the outcome does not replace it."""
    server = start(url, cache_bytes=0)
    record = record_pb2.Record(state=record_pb2.STATE_DONE, attempt=2, owner=b"8 bytes.")
    record.outcome.trailing_metadata.add(key="grpc-timeout", value=b"1S")
    for planted in (record.SerializeToString(), b"an operator's note"):
        key, gate = uuid4().hex, uuid4().hex
        request = order(ledger_pb2.LedgerRun(gate=gate))
        call = server.client.begin(kind, request, key)
        server.ledger.gate(gate).await_arrival()
        name = store_key(server.store.namespace, kind.path, b"", key)
        put(server.store, name, planted)
        server.ledger.gate(gate).open()
        answer = call.answer()
        assert answer.reason in (Reason.OUTCOME_UNKNOWN, Reason.LEASE_LOST)
        assert server.store.read(name).value == planted
    assert not errors


def test_an_empty_value_in_redis_is_unreadable(face, start, redis_server, kind, key, errors, run):
    server = start(redis_server.url, cache_bytes=0)
    request = order()
    assert server.client.call(kind, request, key).ok
    name = store_key(server.store.namespace, kind.path, b"", key)
    redis_server.client().set(server.store.namespace.encode() + b":" + name, b"")
    assert server.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
    assert not errors
    place = ("--store", redis_server.url, "--namespace", server.store.namespace, "--raw", name.decode())
    assert "UNREADABLE" in run("inspect", *place).stdout
    assert run("forget", *place, "--yes").exit_code == 0
    assert server.client.call(kind, request, key).ok


FOREIGN = [
    "value = 'an operator''s note'",
    "value = CAST(x'ff' AS TEXT)",
    "value = 42",
    "value = x''",
    "ttl = 'long'",
    "expiry = 'never'",
    "wall_expiry = x'00'",
]


@pytest.mark.parametrize("change", FOREIGN)
def test_a_row_of_a_sqlite_file_that_no_store_wrote_is_unreadable(
    face, start, tmp_path, kind, key, errors, run, change
):
    url = f"sqlite:///{tmp_path}/store.db"
    server = start(url, cache_bytes=0)
    request = order()
    assert server.client.call(kind, request, key).ok
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute(f"UPDATE records SET {change}")
    connection.close()
    assert server.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
    assert not errors
    name = store_key(server.store.namespace, kind.path, b"", key).decode()
    place = ("--store", url, "--namespace", server.store.namespace)
    assert f"{name}  UNREADABLE" in run("list", *place).stdout
    assert run("forget", *place, "--raw", name, "--yes").exit_code == 0
    assert server.client.call(kind, request, key).ok
    assert len(server.ledger.runs(request)) == 2


# -- any values at all


@pytest.fixture(scope="module", params=list(FACES))
def fuzzed(request):
    """A server for tests that write any bytes to its store; no call waits for another."""
    store = open_store(request.param, "memory:", uuid4().hex)
    server = FACES[request.param](store, default=Policy(wait=0))
    yield server
    server.close()


REFUSED = {Reason.KEY_REUSED, Reason.IN_PROGRESS, Reason.RESPONSE_NOT_KEPT, Reason.TOKEN_MISMATCH}


def check(server: Any, kind: Kind, value: bytes) -> None:
    """Check that a call that finds ``value`` gets the answer in it, or a refusal, without an exception."""
    key, request, errors = uuid4().hex, order(), list[logging.LogRecord]()
    put(server.store, store_key(server.store.namespace, kind.path, b"", key), value)
    with _noting(errors):
        answer = server.client.call(kind, request, key)
    record = Record.from_bytes(value)
    if answer.reason is not None:
        assert answer.reason in REFUSED or answer.reason is Reason.OUTCOME_UNKNOWN
    elif answer.replayed:
        assert record.outcome is not None
        assert answer.code.value[0] == record.outcome.code
    else:
        assert answer.ok
        assert record.state in (State.OPEN, State.RUNNING)
    if record.state is State.UNREADABLE:
        assert answer.reason is Reason.OUTCOME_UNKNOWN
    assert not errors


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=120, deadline=None)
@given(value=st.binary(min_size=1, max_size=80))
def test_bytes_of_any_kind_in_a_store(fuzzed, kind, value):
    check(fuzzed, kind, value)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=250, deadline=None)
@given(value=records.filter(bool))
def test_records_of_any_values_in_a_store(fuzzed, kind, value):
    check(fuzzed, kind, value)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=250, deadline=None)
@given(planted=records, state=st.integers(1, 4))
def test_valid_records_with_some_changed_values(fuzzed, kind, planted, state):
    record = record_pb2.Record(attempt=1, owner=b"8 bytes.")
    record.outcome.messages.append(b"")
    record.lease.seconds, record.ttl.seconds = 30, 3600
    record.MergeFromString(planted)
    record.state = state
    record.ClearField("binding")
    record.ClearField("fingerprint")
    check(fuzzed, kind, record.SerializeToString())


@settings(max_examples=500, deadline=None)
@given(value=records | st.binary(), left=st.floats(0, allow_nan=False))
def test_the_reader_raises_nothing_and_what_it_reads_can_be_sent_and_shown(value, left):
    record = Record.from_bytes(value)
    if record.outcome is not None:
        outcome = record.outcome
        metadata = (*outcome.initial_metadata, *outcome.trailing_metadata)
        assert all(is_sendable(name, said) for name, said in metadata)
        assert sum(turn.responses for turn in outcome.turns) in (0, len(outcome.messages))
    if record.state is not State.UNREADABLE:
        assert Record.from_bytes(record.to_bytes()) == record
    for show in (True, False):
        for line in as_lines(describe(b"name", Held(value, left), record, show_response=show)):
            assert line.isprintable()


TAKEN = [Rules.of("/a.B/C", [Policy(on_unclear=unclear)]) for unclear in OnUnclear]


@pytest.mark.parametrize("rules", TAKEN)
@settings(max_examples=500, deadline=None)
@given(value=records.filter(bool) | st.binary(min_size=1), left=st.floats(0, allow_nan=False))
def test_every_value_has_a_verdict_that_every_store_can_apply(rules, value, left):
    for fingerprint in (Fingerprint(b"raw"), None):
        call = Call(b"name", b"8 bytes.", fingerprint, rules)
        for verdict in (judge(call, Held(value, left)), judge_late(call, Held(value, left))):
            if isinstance(verdict, (Claim, GiveUp)):
                swap = verdict.swap
                check_swap(swap)
                assert swap.max_left is None or 0 <= swap.max_left <= LONGEST


# -- tokens


@pytest.fixture
def start_tokens(face):
    servers = []

    def start(url: str, **given: Any) -> Any:
        opened = open_store(face, url, uuid4().hex)
        servers.append(token_servers.FACES[face](opened, **given))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_token_whose_record_is_unreadable(start_tokens, url, errors):
    server = start_tokens(url)
    used, request = issue(server.client), order()
    assert server.client.call(Kind.UNARY, request, used).ok
    value = held(server.store, token_key(server.store.namespace, used))
    for what, planted in hostile(value, Kind.SERVER_STREAM):
        token = issue(server.client)
        name = token_key(server.store.namespace, token)
        put(server.store, name, planted)
        answers = [
            get(server.client, token),
            revoke(server.client, token),
            server.client.call(Kind.UNARY, request, token),
        ]
        assert [answer.reason for answer in answers] == [Reason.OUTCOME_UNKNOWN] * 3, what
        assert server.store.read(name).value == planted, what
    assert not errors


def issued(server: Any, count: int = 1) -> Answer:
    return token_servers.ask(server.client, "IssueTokens", wanted(CHARGE, count))


@pytest.fixture
def counter():
    """The name of the record that counts a caller's tokens."""
    return lambda server: digest("rate", server.store.namespace.encode(), CHARGE.encode(), b"", size=24)


def test_an_unreadable_count_of_tokens(start_tokens, url, counter, errors):
    server = start_tokens(url)
    for junk in (b"\xff", b"an operator's note", b"\x08", b"\x0a"):
        put(server.store, counter(server), junk)
        answer = issued(server)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.OUTCOME_UNKNOWN,
        ), junk
        assert server.store.read(counter(server)).value == junk
    put(server.store, counter(server), token_pb2.IssueCount(count=1).SerializeToString())
    assert issue_many(server.client)
    assert not errors


@pytest.mark.parametrize("most", [600, 2**32 - 1, 2**40])
def test_the_highest_count_of_tokens(start_tokens, url, counter, errors, most):
    server = start_tokens(
        url, operations={**token_servers.OPERATIONS, CHARGE: Operation(issue_rate=(most, 900))}
    )
    for count in (2**32 - 1, 2**32 - 2):
        put(server.store, counter(server), token_pb2.IssueCount(count=count).SerializeToString())
        assert issued(server, 2).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not errors


# -- the command


def test_the_command_handles_such_records(run, place, store):
    record = record_pb2.Record(state=record_pb2.STATE_DONE, attempt=1, owner=b"8 bytes.")
    record.fingerprint.raw = b"d" * 16
    record.outcome.messages.append(b"")
    planted = dict(hostile(record.SerializeToString(), Kind.SERVER_STREAM))
    names = [f"{number:032}" for number in range(len(planted))]
    for name, value in zip(names, planted.values(), strict=True):
        put(store, name.encode(), value)
    listed = run("list", *place).stdout
    for name, what in zip(names, planted, strict=True):
        assert f"{name}  UNREADABLE" in listed, what
        for how in ((), ("--show-response",), ("--json",)):
            assert "UNREADABLE" in run("inspect", *place, "--raw", name, *how).stdout
        for command in (
            ("resolve", "--rerun"),
            ("resolve", "--outcome-code", "ABORTED"),
            ("revoke",),
        ):
            refused = run(*command, *place, "--raw", name, "--yes")
            assert (refused.exit_code, "the record is unreadable" in refused.stderr) == (1, True), what
    for name in names:
        assert run("forget", *place, "--raw", name, "--yes").exit_code == 0
    assert "UNREADABLE" not in run("list", *place).output


def test_text_of_a_record_is_escaped_for_the_terminal(run, place, store):
    record = record_pb2.Record(state=record_pb2.STATE_DONE, attempt=1, owner=b"8 bytes.")
    record.outcome.code, record.outcome.details = 5, "\x9b2J\u202egone\x1b[2J é"
    put(store, b"n" * 32, record.SerializeToString())
    shown = run("inspect", *place, "--raw", "n" * 32, "--show-response").stdout
    assert shown.replace("\n", "").isprintable()
    assert "gone" in shown
