"""Tokens fetched ahead, by a clock of the test's own."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from idem_grpc._tokens.keys import TokenPool


def tokens(*names, ttl=100.0):
    return [(name, ttl) for name in names]


def test_each_is_given_out_once_and_the_oldest_first():
    pool = TokenPool(4)
    pool.add(tokens("a", "b"), now=0)
    pool.add(tokens("c"), now=1)
    assert [pool.take(2) for _ in range(4)] == ["a", "b", "c", None]


@pytest.mark.parametrize(
    ("ttl", "good_for"), [(100, 75), (4, 3), (0.4, 0.3), (120, 90), (900, 870), (3600, 3570)]
)
def test_none_is_given_out_near_its_end(ttl, good_for):
    """The last quarter, 30 s at the most, is left to the call that uses it."""
    pool = TokenPool(2)
    pool.add(tokens("a", "b", ttl=ttl), now=1000)
    assert pool.take(1000 + good_for - 0.001) == "a"
    assert pool.take(1000 + good_for) is None


def test_its_life_is_counted_from_the_time_at_which_it_was_asked_for():
    pool = TokenPool(2)
    pool.add(tokens("asked for at 0, and here at 74"), now=0)
    assert pool.take(75) is None


def test_a_good_one_behind_those_that_ended_is_found():
    pool = TokenPool(4)
    pool.add(tokens("a", "b", ttl=10), now=0)
    pool.add(tokens("c", ttl=100), now=0)
    assert pool.take(50) == "c"
    assert pool.missing() == 4, "those that ended take no place"


def test_more_are_wanted_when_half_are_used():
    pool = TokenPool(5)
    assert pool.missing() == 5
    pool.add(tokens(*"abcde"), now=0)
    seen = []
    for _ in range(5):
        pool.take(1)
        seen.append(pool.missing())
    assert seen == [0, 0, 3, 4, 5]


def test_a_pool_of_one():
    pool = TokenPool(1)
    assert pool.missing() == 1
    pool.add(tokens("a"), now=0)
    assert pool.missing() == 0
    assert pool.take(1) == "a"
    assert pool.missing() == 1


def test_no_two_threads_get_the_same():
    pool = TokenPool(100)
    pool.add(tokens(*map(str, range(5000))), now=0)
    with ThreadPoolExecutor(20) as threads:
        taken = list(threads.map(lambda _: pool.take(1), range(5000)))
    assert len(set(taken)) == 5000
    assert pool.take(1) is None


def test_how_much_must_be_missing_is_up_to_refresh():
    pool = TokenPool(10, refresh=0.2)
    pool.add(((str(number), 100.0) for number in range(10)), 0.0)
    pool.take(0.0)
    assert pool.missing() == 0
    pool.take(0.0)
    assert pool.missing() == 2
