"""The pool of tokens that are fetched ahead, on a clock that the test sets."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from idem_grpc._tokens.keys import TokenPool


def tokens(*names, ttl=100.0):
    return [(name, ttl) for name in names]


def test_each_token_is_given_out_once_and_the_oldest_first():
    pool = TokenPool(4)
    pool.add(tokens("a", "b"), now=0)
    pool.add(tokens("c"), now=1)
    assert [pool.take(2) for _ in range(4)] == ["a", "b", "c", None]


@pytest.mark.parametrize(
    ("ttl", "good_for"), [(100, 75), (4, 3), (0.4, 0.3), (120, 90), (900, 870), (3600, 3570)]
)
def test_no_token_is_given_out_near_its_end(ttl, good_for):
    """The last quarter of its life, at most 30 s, is left to the call that uses it."""
    pool = TokenPool(2)
    pool.add(tokens("a", "b", ttl=ttl), now=1000)
    assert pool.take(1000 + good_for - 0.001) == "a"
    assert pool.take(1000 + good_for) is None


def test_the_life_of_a_token_is_counted_from_the_request_for_it():
    pool = TokenPool(2)
    pool.add(tokens("asked for at 0, and here at 74"), now=0)
    assert pool.take(75) is None


def test_expired_tokens_are_skipped():
    pool = TokenPool(4)
    pool.add(tokens("a", "b", ttl=10), now=0)
    pool.add(tokens("c", ttl=100), now=0)
    assert pool.take(50) == "c"
    assert pool.missing() == 4, "those that ended take no place"


def test_more_tokens_are_fetched_when_half_are_used():
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


def test_no_two_threads_get_the_same_token():
    pool = TokenPool(100)
    pool.add(tokens(*map(str, range(5000))), now=0)
    with ThreadPoolExecutor(20) as threads:
        taken = list(threads.map(lambda _: pool.take(1), range(5000)))
    assert len(set(taken)) == 5000
    assert pool.take(1) is None


def test_refresh_sets_how_many_must_be_missing():
    pool = TokenPool(10, refresh=0.2)
    pool.add(((str(number), 100.0) for number in range(10)), 0.0)
    pool.take(0.0)
    assert pool.missing() == 0
    pool.take(0.0)
    assert pool.missing() == 2
