"""Tables, and durations as text."""

import math

import pytest

from idem_grpc._cli.facts import duration, table


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.0214, "0.0214 s"),
        (59.94, "59.9 s"),
        (60, "1 min"),
        (90.5, "1 min 30 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (86_400, "1 d"),
        (30 * 86_400 + 7300, "30 d 2 h"),
        (math.inf, "without end"),
    ],
)
def test_durations_as_text(seconds, shown):
    assert duration(seconds) == shown


def test_a_table_is_aligned_without_trailing_blanks():
    assert table([("A", "LONG", "C"), ("aaa", "b", ""), ("a", "b", "ccc")]) == [
        "A    LONG  C",
        "aaa  b",
        "a    b     ccc",
    ]
    assert table([]) == []
