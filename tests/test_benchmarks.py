"""The servers that benchmarks measure answer as their rows say, and bars judge as they should."""

import asyncio
import json
import sys

import pytest

from benchmarks import calls, peers
from benchmarks.load import Server, requests
from benchmarks.report import Report, plot, table
from benchmarks.rows import ROWS, Verdict
from benchmarks.server import THINGS


@pytest.fixture
def url(request, tmp_path):
    row = request.getfixturevalue("row")
    if row.store == "redis":
        return request.getfixturevalue("redis_server").url
    return "memory:" if row.store == "memory" else f"sqlite:///{tmp_path}/store.db"


@pytest.mark.parametrize("face", ["sync", "asyncio"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_server_answers_as_its_row_says(face, row, url):
    with Server(face, row.name, url) as server:
        server.check()
        server.report()
        cpu, ran, memory = server.report()
    assert ran == (1 if row.name.endswith(("store", "cache")) else 3)
    assert cpu > 0
    assert memory > 0


@pytest.mark.parametrize("thing", THINGS)
def test_an_interceptor_that_does_one_thing_runs_the_handler(thing):
    with Server("sync", thing, "memory:") as server:
        assert server.singly(2)
        assert server.report()[1] == 3


def printed(text):
    """A command that prints what h2load would."""
    return [sys.executable, "-c", f"print({text!r})"]


FINISHED = """finished in 250.00ms, 40.00 req/s, 1.2KB/s
requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout
traffic: 1.14KB (1170) total, 125B (125) headers (space savings 93.00%), 1.00KB (1024) data"""


def test_the_seconds_of_a_load_are_those_of_h2load():
    assert requests(printed(FINISHED), 10, 1024) == 0.25


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            FINISHED.replace("10 succeeded, 0 failed", "9 succeeded, 1 failed"),
            "not all of 10 calls succeeded",
        ),
        (FINISHED.replace("(1024)", "(0)"), "0 bytes, and not 1024"),  # as where gRPC refuses all of them
        ("no such thing", "not all of 10 calls succeeded"),
    ],
)
def test_a_load_with_failures_is_no_figure(text, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        requests(printed(text), 10, 1024)


@pytest.mark.parametrize(
    ("ratios", "bar", "is_missed"),
    [
        ((0.5, 0.6, 0.7), 0.55, False),
        ((0.4, 0.5, 0.7), 0.6, False),  # the spread reaches it
        ((0.4, 0.5, 0.55), 0.6, True),
        ((0.4, 0.5), None, False),
        ((0.5,) * 8 + (0.7,), 0.6, True),  # nor does one lucky repeat of nine reach it
        ((0.5,) * 7 + (0.7, 0.7), 0.6, False),
    ],
)
def test_a_bar_is_missed_by_more_than_the_spread(ratios, bar, is_missed):
    assert Verdict("redis first", "sync", ratios, bar).is_missed is is_missed


@pytest.mark.parametrize(("count", "outside"), [(1, 1), (3, 1), (5, 1), (6, 1), (9, 2), (15, 4), (20, 6)])
def test_the_median_lies_between_order_statistics(count, outside):
    """The numbers are those of any table for the sign test at 95 %."""
    verdict = Verdict("redis first", "sync", tuple(float(number) for number in range(count)), None)
    assert verdict.interval == (outside - 1, count - outside)


def test_results_are_shown_as_a_table_and_a_plot():
    found = {
        row.name: {"ratio": [0.5, 0.7, 0.6], "cpu_us": [100.0], "p50_us": 1.0, "p99_us": 2.0} for row in ROWS
    }
    judged = [Verdict(row.name, "sync", (0.5, 0.7, 0.6), row.bars and row.bars[0]) for row in ROWS]
    lines = list(table(judged, found))
    assert any(line.startswith("| redis replay, cache | 0.60 (0.50..0.70) | 0.93 missed |") for line in lines)
    drawn = plot(judged)
    assert drawn.startswith("<svg")
    assert drawn.count(">0.60</text>") == len(ROWS) - 1


def test_results_keep_what_was_measured_before(tmp_path):
    report = Report(tmp_path / "new" / "results.json", tmp_path / "plot.svg")
    report.write("one", [1])
    report.write("two", [2])
    report.write("one", [3])
    found = json.loads(report.results.read_text())
    assert (found["one"], found["two"]) == ([3], [2])
    assert found["host"]["python"]


def test_a_call_enters_no_more_functions_than_its_bar_allows():
    counts = calls.sync_counts()
    assert {name: count for name, count in counts.items() if count > calls.BARS[name]} == {}
    assert asyncio.run(calls.async_counts()).keys() == counts.keys()


def test_a_library_that_does_not_run_once_is_no_comparison():
    times: peers.Times = {}

    def measure():
        for once, keys in peers.turns({"forgetful": lambda _: peers.handled()}, times, 1, 2):
            for key in keys:
                once(key)

    with pytest.raises(RuntimeError, match="forgetful, replay: 2 of 2 calls ran"):
        measure()


def test_a_library_that_is_not_installed_is_left_out(capsys):
    def missing(_):
        raise ImportError("no such package")

    libraries = {"one": lambda _: 1, "two": lambda _: 2, "three": missing}
    assert peers.made(libraries, "") == {"one": 1, "two": 2}
    assert "three is left out: no such package" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="pip install"):
        peers.made({"one": lambda _: 1, "three": missing}, "")
