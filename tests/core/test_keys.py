"""The keys that the module keys makes: for a business action, for a time window, for one call."""

import math
import re
import uuid
from contextvars import copy_context
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem_grpc import keys

QUARTER, HOUR, DAY = timedelta(minutes=15), timedelta(hours=1), timedelta(days=1)
parts = st.lists(
    st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()), min_size=1, max_size=4
)


UNIQUE = uuid.UUID(keys.unique())


def windowed(at: str, window: timedelta) -> str:
    return keys.windowed("task", window=window, at=datetime.fromisoformat(at))


def test_structured():
    assert keys.structured("order", "uid123", "order456") == "order:uid123:order456"
    assert keys.structured("order", 0) == "order:0"
    assert keys.structured("a:b", "c") == "a%3Ab:c"
    assert keys.structured("100%", "é", " ") == "100%25:%C3%A9:%20"


@given(parts, parts)
def test_structured_keys_differ_if_any_part_differs(one, other):
    assert (keys.structured(*one) == keys.structured(*other)) == (one == other)


@given(parts)
def test_structured_keys_are_valid(some):
    assert keys.is_valid(keys.structured(*some))


@pytest.mark.parametrize("some", [(), ("",), ("a", "", "b"), ("a" * 256,), ("é" * 43,), ("\ud800",)])
def test_invalid_parts_are_refused(some):
    with pytest.raises(ValueError):  # noqa: PT011 -- the last is what Python itself says
        keys.structured(*some)


@pytest.mark.parametrize(
    "part", [None, True, 1.5, b"bytes", ["list"], UNIQUE], ids=lambda part: type(part).__name__
)
def test_parts_of_other_types_are_refused(part):
    with pytest.raises(TypeError, match="give strings and whole numbers"):
        keys.structured("pay", part)
    with pytest.raises(TypeError, match="give strings and whole numbers"):
        keys.windowed("pay", part, window=HOUR)


def test_a_key_of_255_characters_is_the_longest():
    assert keys.structured("a" * 255) == "a" * 255
    assert keys.is_valid("a" * 255)
    assert not keys.is_valid("a" * 256)


@given(st.text(max_size=3))
def test_valid_keys_are_1_to_255_printable_characters(key):
    assert keys.is_valid(key) == bool(re.fullmatch(r"[\x21-\x7e]{1,255}", key))


@pytest.mark.parametrize(
    ("at", "window", "end"),
    [
        ("2024-03-30T10:00:00+00:00", HOUR, "20240330T10"),
        ("2024-03-30T10:59:59.999+00:00", HOUR, "20240330T10"),
        ("2024-03-30T11:00:00.000+00:00", HOUR, "20240330T11"),
        ("2024-03-30T10:14:59.999+00:00", QUARTER, "20240330T1000"),
        ("2024-03-30T10:15:00.000+00:00", QUARTER, "20240330T1015"),
        ("2024-03-30T23:59:59.999999+00:00", DAY, "20240330"),
        ("2024-03-31T00:00:00.000+00:00", DAY, "20240331"),
        ("2024-03-30T10:00:29.999+00:00", timedelta(seconds=30), "20240330T100000"),
        ("2024-03-30T10:00:30+00:00", timedelta(seconds=30), "20240330T100030"),
        ("2024-02-29T12:00:00+00:00", DAY, "20240229"),
        # Windows are counted from 1970, a Thursday, and need not divide a day.
        ("2024-03-30T10:00:00+00:00", timedelta(days=7), "20240328"),
        ("1970-01-01T06:59:59+00:00", timedelta(hours=7), "19700101T00"),
        ("1970-01-02T04:00:00+00:00", timedelta(hours=7), "19700102T04"),
        ("1970-01-01T01:30:00+00:00", timedelta(minutes=90), "19700101T0130"),
        ("1969-12-31T23:59:59.500+00:00", DAY, "19691231"),
    ],
)
def test_windowed(at, window, end):
    assert windowed(at, window) == f"task:{end}"


def test_the_time_zone_does_not_matter():
    same_moment = ["2024-03-30T23:30:00+00:00", "2024-03-31T05:15:00+05:45", "2024-03-30T16:30:00-07:00"]
    assert {windowed(at, DAY) for at in same_moment} == {"task:20240330"}


moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
windows = st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds))


@given(moments, windows, st.integers(-86399, 86399))
def test_a_key_changes_with_its_window(at, window, offset):
    local = at.astimezone(timezone(timedelta(seconds=offset)))
    start = datetime(1970, 1, 1, tzinfo=UTC) + (at - datetime(1970, 1, 1, tzinfo=UTC)) // window * window
    tick = timedelta(milliseconds=1)
    edges = [start - tick, start, local, start + window - tick, start + window]
    found = [keys.windowed("task", window=window, at=moment) for moment in edges]
    assert found[1] == found[2] == found[3]
    assert len({found[0], found[1], found[4]}) == 3


@pytest.mark.parametrize(
    "window",
    [
        timedelta(0),
        -HOUR,
        timedelta(milliseconds=1500),
        timedelta(microseconds=1),
        0,
        -60,
        1.5,
        math.inf,
        math.nan,
    ],
    ids=str,
)
def test_a_window_is_a_whole_positive_number_of_seconds(window):
    with pytest.raises(ValueError, match="whole, positive"):
        keys.windowed("task", window=window)


@pytest.mark.parametrize("seconds", [3600, 3600.0])
def test_a_window_may_be_given_in_seconds(seconds):
    at = datetime(2024, 3, 30, 10, 59, tzinfo=UTC)
    assert keys.windowed("task", window=seconds, at=at) == "task:20240330T10"


@pytest.mark.parametrize("window", ["1h", None, True])
def test_a_window_must_be_a_duration(window):
    with pytest.raises(TypeError, match="give a timedelta or a whole number of seconds"):
        keys.windowed("task", window=window)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        keys.windowed("task", window=HOUR, at=datetime(2024, 3, 30))


def test_now_is_the_default():
    before = keys.windowed("task", window=DAY, at=datetime.now(UTC))
    now = keys.windowed("task", window=DAY)
    assert now in (before, keys.windowed("task", window=DAY, at=datetime.now(UTC)))


def test_unique_keys_are_uuids_of_version_7_in_the_order_of_their_milliseconds():
    some = [uuid.UUID(keys.unique()) for _ in range(1000)]
    assert len(set(some)) == 1000
    assert all((key.version, key.variant) == (7, uuid.RFC_4122) for key in some)
    assert all(one.int >> 80 <= other.int >> 80 for one, other in pairwise(some))
    age = datetime.now(UTC).timestamp() - (some[0].int >> 80) / 1000
    assert -1 < age < 60


@pytest.mark.parametrize("key", ["", "a b", "é", "a" * 256])
def test_an_invalid_key_cannot_be_used(key):
    with pytest.raises(ValueError, match="may not be sent"), keys.using(key):
        pytest.fail("it was used")


def test_only_a_string_can_be_used():
    with pytest.raises(TypeError, match="give a string"), keys.using(UNIQUE):  # type: ignore[arg-type]  # no string
        pytest.fail("it was used")


def test_a_copied_context_has_no_key_of_a_block_that_ended():
    with keys.using("outer"), keys.using("inner"):
        pass
    copy_context().run(lambda: keys.using("elsewhere").__enter__())
