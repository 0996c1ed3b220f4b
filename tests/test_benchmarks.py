"""The servers that benchmarks measure answer as their rows say, and bars judge as they should."""

import sys

import pytest

from benchmarks import calls
from benchmarks.load import Server
from benchmarks.rows import ROWS, Verdict
from benchmarks.throughput import plot, shown


@pytest.fixture
def url(request, tmp_path):
    row = request.getfixturevalue("row")
    if row.store == "redis":
        return request.getfixturevalue("redis_server").url
    return "memory:" if row.store == "memory" else f"sqlite:///{tmp_path}/store.db"


@pytest.mark.parametrize("face", ["sync", "asyncio"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_server_answers_as_its_row_says(face, row, url):
    server = Server(face, row.name, url, sys.executable)
    try:
        server.check()
        cpu, reported, memory = server.report()
    finally:
        server.close()
    ran = reported  # one for each handler that ran
    assert ran == (1 if row.name.endswith(("store", "cache")) else 3)
    assert cpu > 0
    assert memory > 0


@pytest.mark.parametrize(
    ("ratios", "bar", "is_missed"),
    [
        ((0.5, 0.6, 0.7), 0.55, False),
        ((0.4, 0.5, 0.7), 0.6, False),  # the spread reaches it
        ((0.4, 0.5, 0.55), 0.6, True),
        ((0.4, 0.5), None, False),
    ],
)
def test_a_bar_is_missed_by_more_than_the_spread(ratios, bar, is_missed):
    assert Verdict("redis first", "sync", ratios, bar).is_missed is is_missed


def test_results_are_shown_as_a_table_and_a_plot():
    found = {
        row.name: {"ratio": [0.5, 0.7, 0.6], "cpu_us": [100.0], "p50_us": 1.0, "p99_us": 2.0} for row in ROWS
    }
    judged = [Verdict(row.name, "sync", (0.5, 0.7, 0.6), row.bars and row.bars[0]) for row in ROWS]
    table = list(shown(judged, found))
    assert any(line.startswith("| redis replay, cache | 0.60 (0.50..0.70) | 0.93 missed |") for line in table)
    drawn = plot(judged)
    assert drawn.startswith("<svg")
    assert drawn.count(">0.60</text>") == len(ROWS) - 1


def test_a_call_enters_no_more_functions_than_its_bar_allows(capsys):
    assert not calls.main(), capsys.readouterr().out
