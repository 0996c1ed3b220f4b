"""``idem-grpc inspect`` and ``list``."""

import json
import re
from dataclasses import replace

import pytest

from idem_grpc._core.outcome import Outcome
from idem_grpc._core.swap import Swap
from tests.cli.records import (
    DONE,
    KEY,
    LEASE,
    OPEN,
    RUNNING,
    TOKEN,
    TTL,
    UNKNOWN,
    put,
    write,
    write_token,
)


def test_a_run_is_shown_with_its_lease(run, place, store):
    name = write(store, "k", RUNNING)
    shown = json.loads(run("inspect", *place, "k", *KEY, "--json").stdout)
    assert 0 <= shown.pop("silent_seconds") < LEASE
    assert TTL - LEASE < shown.pop("ttl_seconds") <= TTL
    assert shown == {
        "key": name,
        "state": "RUNNING",
        "kind": "key",
        "attempt": 2,
        "run": RUNNING.owner.hex(),
        "request_known": True,
        "lease_seconds": LEASE,
        "owner_alive": True,
        "on_unclear": "FAIL",
    }
    shown = run("inspect", *place, "k", *KEY).stdout
    assert "RUNNING: its owner last wrote" in shown
    assert "lease of 30 s" in shown


def test_a_lease_that_ran_out_is_shown(run, place, store):
    write(store, "k", RUNNING, ttl=TTL - LEASE - 10)
    shown = run("inspect", *place, "k", *KEY).stdout
    assert re.search(r"RUNNING, lease expired: its owner last wrote 4\d", shown), shown


def test_an_answer_is_shown_by_its_size_unless_requested(run, place, store):
    write(store, "k", DONE)
    for extra in ((), ("--json",)):
        shown = run("inspect", *place, "k", *KEY, *extra).stdout
        assert "NOT_FOUND" in shown
        assert "secret" not in shown
        assert "c2VjcmV0" not in shown
    shown = json.loads(run("inspect", *place, "k", *KEY, "--json").stdout)
    assert shown["outcome"] == {
        "code": "NOT_FOUND",
        "messages": 1,
        "bytes": 6,
        "dropped": False,
        "metadata": 2,
    }
    shown = json.loads(run("inspect", *place, "k", *KEY, "--json", "--show-response").stdout)
    assert shown["outcome"]["details"] == "a secret"
    assert shown["outcome"]["messages_base64"] == ["c2VjcmV0"]
    assert shown["outcome"]["trailing_metadata"] == [["x-secret", "one"], ["x-bin", "AA=="]]
    assert "a secret" in run("inspect", *place, "k", *KEY, "--show-response").stdout


def test_an_answer_that_was_not_kept_is_shown_as_such(run, place, store):
    write(store, "k", replace(DONE, outcome=Outcome(messages_dropped=True)))
    assert "too large, not kept" in run("inspect", *place, "k", *KEY).stdout


def test_a_record_is_found_by_token_and_by_raw_key(run, place, store):
    name = write_token(store, "idt_abc", TOKEN)
    shown = run("inspect", *place, "--token", "idt_abc").stdout
    assert "a token of the TokenService" in shown
    assert "idt_abc" not in shown
    for raw in (name, f"{store.namespace}:{name}"):  # the second as the server's own tools show it
        assert json.loads(run("inspect", *place, "--raw", raw, "--json").stdout)["key"] == name


def test_inspect_and_list_change_nothing(run, place, store):
    write(store, "k", RUNNING)
    before = dict(store.scan())
    run("inspect", *place, "k", *KEY)
    run("list", *place)
    after = dict(store.scan())
    assert {name: held.value for name, held in after.items()} == {
        name: held.value for name, held in before.items()
    }
    assert all(held.ttl_left <= before[name].ttl_left for name, held in after.items()), "nothing was renewed"


def test_a_missing_record_fails(run, place, store):
    write(store, "k", RUNNING)
    for other in (("k2", *KEY), ("k", *KEY[:3], "tenant-2"), ("k", *KEY[:3], ""), ("--token", "k")):
        result = run("inspect", *place, *other)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "never used, has expired or was dropped" in result.stderr


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ((), "Name one key"),
        (("k",), "--scope ''"),
        (("k", "--operation", "o"), "--scope ''"),
        (("k", "--token", "t"), "Name one key"),
        (("--token", "t", "--scope", "s"), "need KEY"),
        (("a key", *KEY), "1 to 255 characters"),
    ],
)
def test_a_key_must_be_named_in_exactly_one_way(run, place, named, says):
    result = run("inspect", *place, *named)
    assert result.exit_code == 2
    assert says in result.stderr


def listed(run, place, *options):
    return {
        shown["key"]: shown["state"] for shown in json.loads(run("list", *place, "--json", *options).stdout)
    }


def test_list_shows_running_and_stuck_records(run, place, store):
    names = {
        "running": write(store, "running", RUNNING),
        "dead": write(store, "dead", RUNNING, ttl=TTL - LEASE - 1),
        "done": write(store, "done", DONE),
        "open": write(store, "open", OPEN),
        "unknown": write(store, "unknown", UNKNOWN),
        "token": write_token(store, "token", TOKEN),
        "unreadable": put(store, b"u" * 32, b"\xff\xff"),
    }
    for other in (b"\xff" * 24, b"check:" + b"\xff" * 16):  # the count of a caller's tokens, and a probe
        store.swap(Swap(other, None, b"no record", TTL))

    def found(*options):
        shown = listed(run, place, *options)
        return {label for label, name in names.items() if name in shown}, len(shown)

    assert found() == ({"running", "dead", "unknown", "unreadable"}, 4)
    assert found("--state", "dead") == ({"dead"}, 1)
    assert found("--state", "running") == ({"running", "dead"}, 2)
    assert found("--state", "open", "--state", "done") == ({"open", "token", "done"}, 3)
    assert found("--limit", "2")[1] == 2


def test_list_prints_a_table(run, place, store):
    name = write(store, "dead", RUNNING, ttl=TTL - LEASE - 10)
    header, line = run("list", *place).stdout.splitlines()
    assert header.split()[:4] == ["KEY", "STATE", "ATTEMPT", "RUN"]
    assert line.startswith(name)
    assert header.index("RUN") == line.index(RUNNING.owner.hex())
    assert re.match(r"4\d", line[header.index("SILENT") :]), line


def test_an_empty_list_is_reported(run, place, store):
    write(store, "done", DONE)
    assert run("list", *place).stdout == "No records in these states.\n"
    assert run("list", *place, "--json").stdout == "[]\n"
