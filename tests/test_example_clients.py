"""The examples of clients do what they say, run as their readers run them, and can fail."""

import re
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.support import groups
from tests.support.wait import until

EXAMPLES = ("retries", "order_chain", "hourly_job")


def run(example, *options):
    return groups.run(f"examples.{example}", *options)


def scenes(printed):
    """What each scene of retries printed, by its passenger."""
    parts = re.split(r"^(\w+): ", printed, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_retries():
    status, printed = run("retries")
    assert status == 0, printed
    seen = scenes(printed)
    assert list(seen) == ["busy", "cut", "killed", "slow", "reused"]
    keys = set()
    for passenger, ends in {
        "busy": ("attempt 1", "attempt 2"),
        "cut": ("attempt 1", "not run"),
        "killed": ("attempt 1", "attempt 2"),
        "slow": ("attempt 1", "not run"),
    }.items():
        calls = re.findall(r"call \d+  key ([0-9a-f-]{36})  (.*)", seen[passenger])
        assert len({key for key, _ in calls}) == 1, seen[passenger]
        assert (calls[0][1], calls[-1][1]) == ends
        keys.add(calls[0][0])
        (had,) = re.findall(r"has (seat \d+)(?:, replayed)?; reserved: \1$", seen[passenger], re.MULTILINE)
        assert had
    assert len(keys) == 4, "each logical call has a key of its own"
    assert "KEY_REUSED" in seen["reused"]
    assert printed.splitlines()[-1] == "All scenes held."


def test_retries_without_protection():
    status, printed = run("retries", "--unprotected")
    assert status == 1, printed
    assert printed.splitlines()[-1] == "FAILED: 5 of 5 scenes did not hold."
    seen = scenes(printed)
    assert "the handler must run 1×, and ran 2×" in seen["cut"]
    assert re.search(r"reserved: seat \d+, seat \d+", seen["killed"])
    assert "the second call must be refused" in seen["reused"]


def test_order_chain():
    status, printed = run("order_chain")
    assert status == 0, printed
    assert re.findall(r"(\w+): effects: (\d+), answers: (.*)", printed) == [
        ("payment", "1", "OK, OK replayed"),
        ("inventory", "1", "OK"),
        ("payment", "1", "OK, OK replayed"),
        ("inventory", "1", "OK, OK replayed"),
    ]
    assert printed.count("the client has payment-1 and inventory-1") == 2
    assert printed.splitlines()[-1] == "All scenes held."


OPEN = """
import sys
from importlib import import_module
from pathlib import Path
books = getattr(import_module("examples." + sys.argv[1]), sys.argv[2])
for line in sys.stdin:
    books(Path(line.strip()))
    print("opened", flush=True)
"""


@pytest.mark.parametrize(
    ("module", "books"),
    [
        ("checkout.ledger", "Ledger"),
        ("order_chain.books", "Books"),
        ("retries.train", "Train"),
        ("update_profile.profiles", "Profiles"),
        ("upsert.prices", "Prices"),
    ],
)
def test_two_servers_may_open_the_same_new_books_at_once(module, books, tmp_path):
    """Like the two Order servers. Each process gets the next file when both have opened the last one."""
    with ExitStack() as stack:
        openers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OPEN, module, books],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        for number in range(40):
            for opener in openers:
                assert opener.stdin is not None
                print(tmp_path / f"{number}.db", file=opener.stdin, flush=True)
            said = [opener.stdout.readline() for opener in openers if opener.stdout is not None]
            assert said == ["opened\n"] * 2


def test_order_chain_with_new_keys_in_every_run():
    status, printed = run("order_chain", "--new-keys")
    assert status == 1, printed
    assert re.findall(r"(\w+): effects: (\d+)", printed) == [
        ("payment", "2"),
        ("inventory", "1"),
        ("payment", "2"),
        ("inventory", "2"),
    ]
    assert printed.splitlines()[-1] == "FAILED: 2 of 2 scenes did not hold."


def test_hourly_job():
    status, printed = run("hourly_job")
    assert status == 0, printed
    asked = re.findall(r"^(\d\d):\d\d  3 ask: (.*)$", printed, re.MULTILINE)
    assert len(asked) == 12
    for hour in ("10", "11"):
        answers = ", ".join(answer for at, answer in asked if at == hour).split(", ")
        assert sorted(answers) == ["mailed"] + ["mailed already"] * 17
        assert f"report:uid123:20240330T{hour}: mailed 1×" in printed
    assert printed.splitlines()[-1] == "It was mailed once an hour."


def test_hourly_job_without_protection():
    status, printed = run("hourly_job", "--unprotected")
    assert status == 1, printed
    assert "mailed 36×" in printed
    assert printed.splitlines()[-1] == "FAILED: 2 rules did not hold."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_is_stopped_ends_its_servers(example, number):
    with groups.started(f"examples.{example}") as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "it printed nothing"
        process.send_signal(number)
        process.communicate(timeout=60)
        if example != "hourly_job":  # which may have ended well before the signal came
            assert process.returncode != 0
        until(lambda: not groups.group_lives(process.pid))
