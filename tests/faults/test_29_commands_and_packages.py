"""The command on a wrong namespace, how to install it, and the supported versions of grpcio."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from idem_grpc.stores import open_store
from tests.cli.conftest import place, run, store
from tests.cli.records import DONE, KEY, UNKNOWN, write

__all__ = ["place", "run", "store"]  # fixtures are found by name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTHING = "the namespace 'wrong' is empty"


@pytest.fixture
def elsewhere(place, store):
    """The options of a store whose records are all in another namespace."""
    write(store, "k", UNKNOWN)
    return (*place[:2], "--namespace", "wrong")


def test_list_fails_on_an_empty_namespace(run, elsewhere):
    for options in ((), ("--state", "done"), ("--limit", "1")):
        result = run("list", *elsewhere, *options)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{NOTHING}: give the --namespace of the servers" in result.stderr
    result = run("list", *elsewhere, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])
    assert NOTHING in result.stderr


def test_list_succeeds_if_all_records_are_in_other_states(run, place, store):
    write(store, "k", DONE)
    result = run("list", *place)
    assert (result.exit_code, result.stdout) == (0, "No records in these states.\n")
    result = run("list", *place, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


COMMANDS = {
    "inspect": ("inspect",),
    "inspect --json": ("inspect", "--json"),
    "resolve": ("resolve", "--rerun", "--yes"),
    "revoke": ("revoke", "--yes"),
    "forget": ("forget", "--yes"),
}
NAMED = {"key": ("k", *KEY), "token": ("--token", "idt_x"), "raw": ("--raw", "x" * 32)}


@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_key_in_an_empty_namespace_is_reported_as_such(run, elsewhere, command, named):
    result = run(*command, *elsewhere, *named)
    assert (result.exit_code, result.stdout) == (1, "")
    assert NOTHING in result.stderr


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_key_in_a_namespace_with_records(run, place, store, command):
    write(store, "another", UNKNOWN)
    result = run(*command, *place, "k", *KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no record under" in result.stderr
    assert "is empty" not in result.stderr


def test_list_fails_on_an_empty_store(run, tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    with open_store(url) as store:
        store.check()
    result = run("list", "--store", url)
    assert result.exit_code == 1
    assert "the namespace 'idem' is empty" in result.stderr


def requirement(name: str) -> Requirement:
    (found,) = (Requirement(each) for each in PROJECT["dependencies"] if re.match(rf"{name}\b", each))
    return found


def test_yanked_releases_of_grpcio_are_excluded():
    specifier = requirement("grpcio").specifier
    assert not any(specifier.contains(version) for version in ("1.78.1", "1.82.0", "1.73.0"))
    assert all(specifier.contains(version) for version in ("1.73.1", "1.78.0", "1.78.2", "1.82.1", "1.85.3"))


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
SOURCES = [*(ROOT / "idem_grpc").rglob("*.py"), *(ROOT / "protos").rglob("*.proto"), *PAGES]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_says_to_install_the_unreleased_package_from_an_index(path):
    assert not re.search(r"pip install[^\n`]*(?<![\w./])idem[-_]grpc(?![\w-]*[-.]\d)", path.read_text())
