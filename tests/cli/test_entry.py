"""The installed command: its help, its exit statuses, and the secrets that it never shows."""

import os
import subprocess

import pytest

import idem_grpc
from idem_grpc._core.swap import Swap
from tests.cli.conftest import ENTRY, start
from tests.cli.records import KEY
from tests.support.redis_server import RedisServer

COMMANDS = ("lint", "service-config", "inspect", "list", "revoke", "resolve", "forget", "proto-path")


def test_proto_path():
    ended = start("proto-path")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, idem_grpc.proto_path() + "\n", "")


def test_help_names_every_command_and_the_statuses():
    ended = start("--help")
    assert all(command in ended.stdout for command in COMMANDS)
    assert "Exit status" in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "..." not in run("--help").stdout.partition("Commands:")[2], (
        "what a command is for fits on its line"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_for_shells(shell):
    env = os.environ | {"_IDEM_GRPC_COMPLETE": f"{shell}_source"}
    ended = subprocess.run([ENTRY], env=env, capture_output=True, text=True, check=True)
    assert "_IDEM_GRPC_COMPLETE" in ended.stdout


def test_commands_and_choices_are_completed(run):
    def complete(words, at):
        env = {"_IDEM_GRPC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        ended = subprocess.run([ENTRY], env=os.environ | env, capture_output=True, text=True, check=True)
        return {line.partition(",")[2] for line in ended.stdout.splitlines()}

    assert complete("idem-grpc re", 1) == {"resolve", "revoke"}
    assert complete("idem-grpc list --state un", 3) == {"unknown", "unreadable"}


def test_a_store_can_be_named_by_the_environment(run, place, store):
    store.swap(Swap(b"key", None, b"value", 60))
    result = run("list", "--namespace", place[3], env={"IDEM_GRPC_STORE": place[1]})
    assert (result.exit_code, result.stdout) == (0, "No records in these states.\n")


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("memory:", 2, "this command cannot read it"),
        ("sqlite:///none.db", 2, "there is no store in"),
        ("sqlite:///", 2, "names no file"),
        ("mongodb://user:hunter2@host", 2, "must start with"),
        ("redis://user:hunter2@host:1/x", 2, "number of a database"),
        ("redis://user:hunt/er2@host", 2, "percent-encode"),
        ("redis://user:hunter2@127.0.0.1:1/0", 3, "the store did not answer: redis://127.0.0.1:1/0"),
    ],
)
def test_the_error_of_a_store_does_not_show_its_password(run, tmp_path, monkeypatch, url, status, says):
    monkeypatch.chdir(tmp_path)
    for command in (("list",), ("inspect", "k", *KEY), ("forget", "--yes", "k", *KEY)):
        result = run(*command, "--store", url)
        assert (result.exit_code, result.stdout) == (status, "")
        assert says in result.stderr
        assert "hunt" not in result.stderr
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "no store was made"


def test_a_wrong_password_is_not_shown():
    server = RedisServer(password="right")
    try:
        ended = start("list", "--store", f"redis://:hunter2@127.0.0.1:{server.port}/0")
        assert ended.returncode == 2
        assert "rejects the user name or password" in ended.stderr
        assert "hunter2" not in ended.stderr + ended.stdout
        ended = start("list", "--store", f"redis://:right@127.0.0.1:{server.port}/0")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "is empty" in ended.stderr
    finally:
        server.stop()


def test_a_file_of_another_program_is_left_alone(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run("list", "--store", f"sqlite:///{tmp_path}/notes.txt")
    assert (result.exit_code, "not a SQLite file" in result.stderr) == (2, True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
