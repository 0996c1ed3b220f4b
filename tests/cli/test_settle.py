"""``idem-grpc revoke``, ``resolve`` and ``forget``: they ask first, and change only what they showed."""

import subprocess
from dataclasses import replace

import pytest

from idem_grpc._cli.records import look
from idem_grpc._core.digest import store_key, token_key
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.record import State
from idem_grpc._core.swap import Swap, Swapped
from tests.cli.conftest import ENTRY
from tests.cli.records import (
    DONE,
    KEY,
    LEASE,
    OPEN,
    OPERATION,
    RUNNING,
    SCOPE,
    TOKEN,
    TTL,
    UNKNOWN,
    put,
    write,
    write_token,
)

DAY = 24 * 3600
DEAD = TTL - LEASE - 1


@pytest.fixture
def found(store):
    """The record under key "k", and its remaining TTL."""

    def found():
        held, record = look(store, store_key(store.namespace, OPERATION, SCOPE.encode(), "k"))
        return record, held.ttl_left

    return found


def test_forget_asks_first_and_no_changes_nothing(run, place, store, found):
    write(store, "k", DONE)
    for answer in ("n\n", "\n", ""):
        result = run("forget", *place, "k", *KEY, input=answer)
        assert result.exit_code == 1
        assert "DONE" in result.stdout, "it shows what it would drop"
        assert "nothing was changed" in result.stderr
    assert found()[0] == DONE
    assert run("forget", *place, "k", *KEY, input="y\n").exit_code == 0
    assert found()[0].state is State.ABSENT


@pytest.mark.parametrize("record", [DONE, OPEN, UNKNOWN])
def test_forget_drops_a_record_that_does_not_run(run, place, store, found, record):
    write(store, "k", record)
    assert run("forget", *place, "k", *KEY, "--yes").exit_code == 0
    assert found()[0].state is State.ABSENT


def test_forget_leaves_a_live_run_alone_unless_forced(run, place, store, found):
    write(store, "k", RUNNING)
    result = run("forget", *place, "k", *KEY, "--yes")
    assert (result.exit_code, "its lease is valid" in result.stderr) == (1, True)
    assert found()[0] == RUNNING
    assert run("forget", *place, "k", *KEY, "--yes", "--force").exit_code == 0
    assert found()[0].state is State.ABSENT


def test_forget_drops_dead_runs_and_unreadable_records(run, place, store, found):
    write(store, "k", RUNNING, ttl=DEAD)
    assert run("forget", *place, "k", *KEY, "--yes").exit_code == 0
    assert found()[0].state is State.ABSENT
    name = put(store, b"u" * 32, b"\xff\xff")
    assert run("forget", *place, "--raw", name, "--yes").exit_code == 0
    assert look(store, name.encode())[1].state is State.ABSENT


def test_resolve_to_run_again(run, place, store, found):
    write(store, "k", UNKNOWN, ttl=TTL)
    result = run("resolve", *place, "k", *KEY, "--rerun", input="y\n")
    assert result.exit_code == 0
    record, left = found()
    assert record == OPEN, "attempt and request are remembered"
    assert TTL - 60 < left <= TTL


def test_resolve_to_an_outcome(run, place, store, found):
    write(store, "k", UNKNOWN)
    result = run("resolve", *place, "k", *KEY, "--outcome-code", "not_found", "--details", "gone", "--yes")
    assert result.exit_code == 0
    record, left = found()
    assert record == replace(UNKNOWN, state=State.DONE, outcome=Outcome(Code.NOT_FOUND, "gone"), by_hand=True)
    assert DAY - 60 < left <= DAY


def test_resolve_to_a_response(run, place, store, found, tmp_path):
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "empty").write_bytes(b"")
    files = ("--response-file", tmp_path / "one", "--response-file", tmp_path / "empty")
    write(store, "k", UNKNOWN)
    how = (*files, "--unchecked", "--retention", 60)
    assert run("resolve", *place, "k", *KEY, *how, "--yes").exit_code == 0
    record, left = found()
    assert record.outcome == Outcome(Code.OK, messages=(b"one", b""))
    assert left <= 60


def test_resolve_takes_a_run_whose_lease_ran_out(run, place, store, found):
    write(store, "k", RUNNING, ttl=DEAD)
    assert run("resolve", *place, "k", *KEY, "--rerun", "--yes").exit_code == 0
    assert found()[0] == OPEN


@pytest.mark.parametrize(
    ("record", "says"),
    [(RUNNING, "its lease is valid"), (DONE, "nothing to resolve"), (OPEN, "nothing to resolve")],
)
def test_resolve_refuses_records_that_are_not_unknown(run, place, store, found, record, says):
    write(store, "k", record)
    result = run("resolve", *place, "k", *KEY, "--rerun", "--yes")
    assert (result.exit_code, says in result.stderr) == (1, True)
    assert found()[0] == record


def test_resolve_refuses_unreadable_records(run, place, store):
    name = put(store, b"u" * 32, b"\xff\xff")
    result = run("resolve", *place, "--raw", name, "--rerun", "--yes")
    assert (result.exit_code, "'forget' drops it" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--outcome-code", "OK"),
        ("--rerun", "--outcome-code", "ABORTED"),
        ("--outcome-code", "NONE_SUCH"),
        ("--outcome-code", "ABORTED", "--response-file", __file__),
        ("--rerun", "--response-file", __file__),
        ("--response-file", "/nowhere"),
        ("--outcome-code", "ABORTED", "--retention", "0"),
    ],
)
def test_resolve_takes_exactly_one_valid_outcome(run, place, store, found, how):
    write(store, "k", UNKNOWN)
    assert run("resolve", *place, "k", *KEY, *how, "--yes").exit_code == 2
    assert found()[0] == UNKNOWN


def test_revoke_deletes_an_unused_token(run, place, store):
    write_token(store, "idt_a", TOKEN)
    result = run("revoke", *place, "--token", "idt_a", input="y\n")
    assert (result.exit_code, "idt_a" in result.output) == (0, False)
    assert look(store, token_key(store.namespace, "idt_a"))[1].state is State.ABSENT


@pytest.mark.parametrize("record", [RUNNING, DONE, UNKNOWN, OPEN])
def test_revoke_leaves_a_used_token_alone(run, place, store, record):
    used = replace(record, binding=TOKEN.binding)
    write_token(store, "idt_a", used)
    result = run("revoke", *place, "--token", "idt_a", "--yes")
    assert (result.exit_code, "it was not changed" in result.stderr) == (1, True)
    assert look(store, token_key(store.namespace, "idt_a"))[1] == used


def test_revoke_refuses_client_keys(run, place, store, found):
    write(store, "k", OPEN)
    result = run("revoke", *place, "k", *KEY, "--yes")
    assert (result.exit_code, "'forget'" in result.stderr) == (1, True)
    assert found()[0] == OPEN


def test_revoke_refuses_unreadable_records(run, place, store):
    put(store, token_key(store.namespace, "idt_a"), b"\xff\xff")
    result = run("revoke", *place, "--token", "idt_a", "--yes")
    assert (result.exit_code, "not a token" in result.stderr) == (1, False)
    assert "the record is unreadable" in result.stderr
    assert look(store, token_key(store.namespace, "idt_a"))[1].state is State.UNREADABLE


@pytest.mark.parametrize("command", [("revoke",), ("forget",), ("resolve", "--rerun")])
def test_a_missing_record_fails(run, place, store, command):
    result = run(*command, *place, "--token", "none", "--yes")
    assert (result.exit_code, "never used" in result.stderr) == (1, True)


def asked(*arguments):
    """Start the command as a process, and wait until it has asked its question."""
    process = subprocess.Popen(
        [ENTRY, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = ""
    while "[y/N]" not in said:
        letter = process.stdout.read(1)
        assert letter, process.stderr.read()
        said += letter
    return process


@pytest.mark.parametrize("command", [("forget",), ("resolve", "--rerun")])
def test_a_record_that_changes_before_the_answer_is_left_alone(place, store, found, command):
    name = write(store, "k", UNKNOWN).encode()
    process = asked(*command, *place, "k", *KEY)
    late = DONE.to_bytes()  # its owner was alive after all
    assert isinstance(store.swap(Swap(name, UNKNOWN.to_bytes(), late, TTL)), Swapped)
    _, stderr = process.communicate("y\n", timeout=30)
    assert process.returncode == 1
    assert "has changed meanwhile, and is now DONE: nothing was written" in stderr
    assert found()[0] == DONE


@pytest.mark.parametrize("command", [("forget",), ("resolve", "--rerun")])
def test_a_record_that_is_renewed_before_the_answer_is_left_alone(place, store, found, command):
    name = write(store, "k", RUNNING, ttl=DEAD).encode()
    process = asked(*command, *place, "k", *KEY)
    same = RUNNING.to_bytes()
    assert isinstance(store.swap(Swap(name, same, same, TTL)), Swapped)
    _, stderr = process.communicate("y\n", timeout=30)
    assert (process.returncode, "is now RUNNING: nothing" in stderr) == (1, True)
    assert found()[0] == RUNNING
