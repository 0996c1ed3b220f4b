"""The examples that need no key do what they say, run as their readers run them, and can fail."""

import subprocess
import sys

import pytest

from examples.upsert.prices import UPSERT
from tests.support import groups
from tests.support.pages import blocks


def run(example, *options):
    return groups.run(f"examples.{example}", *options)


def ticks(printed):
    return {line[4:]: line[2] == "✓" for line in printed.splitlines() if line[2:3] in {"✓", "✗"}}


def test_update_profile():
    status, printed = run("update_profile")
    assert status == 0, printed
    assert len(ticks(printed)) >= 11
    assert all(ticks(printed).values())
    for what in ("update_time stays", "one event is sent", "the second is ABORTED, for its etag"):
        assert f"  ✓ {what}\n" in printed
    assert printed.endswith("All scenes held.\n")


def test_update_profile_can_fail():
    status, printed = run("update_profile", "--careless")
    assert status == 1, printed
    for what in ("update_time stays", "one event is sent", "the second is ABORTED, for its etag"):
        assert f"  ✗ {what}\n" in printed
    assert printed.endswith("FAILED: 4 of 4 scenes did not hold.\n")


def test_upsert():
    status, printed = run("upsert")
    assert status == 0, printed
    assert printed.count("✓ one row was written, once") == 2
    assert "  ✓ it undoes nothing\n" in printed
    assert all(ticks(printed).values())
    assert printed.endswith("All scenes held.\n")


def test_upsert_can_fail():
    status, printed = run("upsert", "--careless")
    assert status == 1, printed
    assert "  ✗ it undoes nothing\n" in printed
    assert printed.endswith("FAILED: 3 of 3 scenes did not hold.\n")


@pytest.mark.parametrize("example", ["update_profile", "upsert"])
def test_a_server_that_does_not_start_is_a_failure(example, tmp_path):
    """It is given a folder for a database."""
    ended = subprocess.run(
        [sys.executable, "-m", f"examples.{example}.server", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "listens" not in ended.stdout


def test_the_readme_shows_what_is_printed():
    _, printed = run("update_profile")
    (shown,) = blocks("examples/update_profile/README.md", "text")
    assert shown in printed


def test_the_readme_shows_the_statement():
    (shown,) = blocks("examples/upsert/README.md", "sql")
    assert shown.strip() == UPSERT.strip()
