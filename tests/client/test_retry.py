"""When a call is sent again, as the pure core has it: by hand, on a clock of the test's own."""

import math
from datetime import timedelta

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem_grpc import Budget, Reason, Retry
from idem_grpc._client.answers import Failure
from idem_grpc._client.engine import TOO_LARGE, Backoff, Engine, Finish, Send
from idem_grpc._client.retry import Bucket
from idem_grpc._core.outcome import Code

DOWN = Failure(Code.UNAVAILABLE)
UNLIMITED = Retry(budget=None, max_attempts=1000)


class Course:
    """A call whose attempts fail as the test says, on a clock that only it moves."""

    def __init__(self, retry=UNLIMITED, *, timeout=None, may_retry=True, bucket=None, jitter=1.0):
        self.now = 1000.0
        self.waited: list[float] = []
        self.engine = Engine(
            retry,
            bucket or Bucket(retry.budget),
            timeout=timeout,
            may_retry=may_retry,
            clock=lambda: self.now,
            uniform=lambda low, high: jitter,
        )
        self.attempt: Send = self.engine.begin()

    @property
    def made(self) -> int:
        return self.engine.attempts

    @property
    def notes(self) -> list[str]:
        error = ValueError()
        self.engine.annotate(error)
        return getattr(error, "__notes__", [])

    def fails(self, failure=DOWN, *, after=0.0, is_whole=True) -> bool:
        """Let the attempt fail. Returns whether another one is made."""
        self.now += after
        action = self.engine.ended(self.attempt.attempt, failure, is_whole=is_whole)
        if action is Finish.AS_ENDED:
            return False
        assert isinstance(action, Backoff)
        self.waited.append(action.seconds)
        self.now += action.seconds
        following = self.engine.timer()
        assert isinstance(following, Send)
        self.attempt = following
        return True

    def succeeds(self):
        assert self.engine.ended(self.attempt.attempt, None) is Finish.AS_ENDED


def a6_backoff(retry, n):
    """``Retry n waits random(0.8, 1.2) * min(initial_backoff * multiplier**(n-1), max_backoff)``: A6."""
    backoff = retry.initial_backoff
    for _ in range(n - 1):
        backoff = min(backoff * retry.multiplier, retry.max_backoff)
    return backoff


@given(
    n=st.integers(1, 60),
    initial=st.integers(1, 10_000),
    factor=st.integers(1, 1000),
    multiplier=st.floats(1, 10),
    jitter=st.floats(0.8, 1.2),
)
def test_backoff_is_that_of_a6(n, initial, factor, multiplier, jitter):
    retry = Retry(initial_backoff=initial / 1000, max_backoff=initial * factor / 1000, multiplier=multiplier)
    ranges = []

    def uniform(low, high):
        ranges.append((low, high))
        return jitter

    assert retry.backoff(n, uniform) == pytest.approx(a6_backoff(retry, n) * jitter)
    assert ranges == [(0.8, 1.2)]


def test_backoff_never_overflows():
    assert Retry(multiplier=1e6).backoff(10**9, lambda low, high: 1.0) == 5.0


def test_waits_grow_until_the_longest():
    course = Course(Retry(max_attempts=8, initial_backoff=0.1, max_backoff=timedelta(seconds=2)))
    while course.fails():
        pass
    assert course.made == 8
    assert course.waited == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2])


def test_there_is_no_cap_of_five_attempts():
    course = Course(Retry(max_attempts=30, budget=None))
    while course.fails():
        pass
    assert course.made == 30


@pytest.mark.parametrize(
    ("failure", "is_retried"),
    [
        (Failure(Code.UNAVAILABLE), True),
        (Failure(Code.RESOURCE_EXHAUSTED), False),
        (Failure(Code.RESOURCE_EXHAUSTED, pushback=0.5), True),
        (Failure(Code.RESOURCE_EXHAUSTED, pushback=-0.001), False),
        (Failure(Code.UNAVAILABLE, pushback=-0.001), False),
        (Failure(Code.ABORTED), False),
        (Failure(Code.DEADLINE_EXCEEDED), False),
        (Failure(Code.CANCELLED), False),
        (Failure(Code.INTERNAL), False),
        (Failure(Code.UNKNOWN), False),
        *((Failure(reason.code, reason), reason.code is Code.UNAVAILABLE) for reason in Reason),
    ],
    ids=str,
)
def test_which_failures_are_worth_another_attempt(failure, is_retried):
    assert Course().fails(failure) is is_retried
    assert not Course(may_retry=False).fails(failure)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.code is not Code.UNAVAILABLE])
def test_no_setting_makes_a_refusal_worth_another_attempt(reason):
    codes = [code for code in Code if code is not Code.OK]
    assert not Course(Retry(codes=codes)).fails(Failure(reason.code, reason))


@pytest.mark.parametrize("code", [Code.ABORTED, "ABORTED"])
def test_codes_are_a_choice(code):
    retry = Retry(codes=[code])
    assert Course(retry).fails(Failure(Code.ABORTED))
    assert not Course(retry).fails(Failure(Code.UNAVAILABLE))


def test_deadlines_are_a_choice_too_while_the_calls_own_still_runs():
    course = Course(Retry(codes=["DEADLINE_EXCEEDED"]), timeout=10)
    assert course.fails(Failure(Code.DEADLINE_EXCEEDED), after=1)
    assert not course.fails(Failure(Code.DEADLINE_EXCEEDED), after=10)


def test_one_attempt_waits_for_an_answer_on_its_way():
    course = Course(Retry(max_attempts=1))
    for _ in range(3):
        assert course.fails(Failure(Code.UNAVAILABLE, Reason.IN_PROGRESS, pushback=0.25))
    assert not course.fails(DOWN)


def test_a_note_says_that_a_call_could_not_be_sent_again_if_that_was_the_reason():
    course = Course()
    assert not course.fails(is_whole=False)
    assert course.notes == [f"idem_grpc: {TOO_LARGE}"]
    for course, code in (
        (Course(), Code.NOT_FOUND),
        (Course(Retry(max_attempts=1)), Code.UNAVAILABLE),
        (Course(timeout=0.01), Code.UNAVAILABLE),
    ):
        assert not course.fails(Failure(code), is_whole=False)
        assert not course.notes


class TestPushback:
    def test_the_larger_of_pushback_and_backoff_is_waited(self):
        course = Course(Retry(initial_backoff=1, max_backoff=60))
        course.fails(Failure(Code.UNAVAILABLE, pushback=7.5))
        course.fails(Failure(Code.UNAVAILABLE, pushback=0.01))
        assert course.waited == [7.5, 1]

    def test_backoff_starts_anew_after_it(self):
        course = Course(Retry(initial_backoff=1, max_backoff=60))
        for failure in (DOWN, DOWN, Failure(Code.UNAVAILABLE, pushback=30), DOWN, DOWN):
            course.fails(failure)
        assert course.waited == [1, 2, 30, 1, 2]

    @pytest.mark.parametrize("reason", [Reason.IN_PROGRESS, Reason.OUTCOME_PENDING])
    def test_an_answer_on_its_way_costs_neither_attempts_nor_budget(self, reason):
        retry = Retry(max_attempts=2, budget=Budget(max_tokens=4))
        bucket = Bucket(retry.budget)
        course = Course(retry, bucket=bucket)
        for _ in range(100):
            assert course.fails(Failure(Code.UNAVAILABLE, reason, pushback=0.25))
        assert course.fails(DOWN)
        assert not course.fails(DOWN)

    def test_waits_for_an_answer_on_its_way_grow(self):
        course = Course(Retry(initial_backoff=0.1, max_backoff=5))
        for _ in range(8):
            course.fails(Failure(Code.UNAVAILABLE, Reason.IN_PROGRESS, pushback=0.25))
        assert course.waited == pytest.approx([0.25, 0.25, 0.4, 0.8, 1.6, 3.2, 5, 5])


class TestDeadline:
    def test_every_attempt_has_what_is_left_of_the_calls_own(self):
        course = Course(timeout=10)
        assert course.attempt.timeout == 10
        course.fails(after=3)
        assert course.attempt.timeout == pytest.approx(10 - 3 - 0.1)

    def test_no_wait_outlasts_it(self):
        course = Course(timeout=10)
        assert not course.fails(Failure(Code.UNAVAILABLE, pushback=10))
        assert Course(timeout=10).fails(Failure(Code.UNAVAILABLE, pushback=9.99))

    def test_an_attempt_can_have_its_own(self):
        course = Course(Retry(attempt_timeout=timedelta(seconds=2), budget=None), timeout=5)
        assert course.attempt.timeout == 2
        assert course.fails(Failure(Code.DEADLINE_EXCEEDED), after=2)
        assert course.attempt.timeout == 2
        assert course.fails(Failure(Code.DEADLINE_EXCEEDED), after=2)
        assert course.attempt.timeout == pytest.approx(5 - 4 - 0.1 - 0.2)
        assert not course.fails(Failure(Code.DEADLINE_EXCEEDED), after=course.attempt.timeout)

    def test_that_of_an_attempt_serves_calls_without_one(self):
        course = Course(Retry(attempt_timeout=2, max_attempts=3))
        while course.fails(Failure(Code.DEADLINE_EXCEEDED), after=2):
            assert course.attempt.timeout == 2
        assert course.made == 3

    def test_without_any_there_is_none(self):
        assert Course().attempt.timeout is None

    def test_that_of_an_attempt_is_not_for_calls_that_are_never_sent_again(self):
        retry = Retry(attempt_timeout=2)
        assert Course(retry, timeout=5, may_retry=False).attempt.timeout == 5
        assert Course(retry, may_retry=False).attempt.timeout is None


class TestBudget:
    def test_a_call_that_succeeds_puts_back_its_ratio(self):
        bucket = Bucket(Budget(max_tokens=10, ratio=0.5))
        for _ in range(5):
            bucket.take()
        assert not bucket.take()
        for _ in range(3):
            bucket.put_back()
        assert not bucket.take()  # 4.5
        for _ in range(4):
            bucket.put_back()
        assert bucket.take()  # 5.5

    def test_it_never_holds_more_than_its_most(self):
        bucket = Bucket(Budget(max_tokens=2, ratio=1))
        for _ in range(100):
            bucket.put_back()
        assert [bucket.take() for _ in range(2)] == [False, False]

    def test_it_is_the_channels_and_not_the_calls(self):
        retry = Retry(budget=Budget(max_tokens=6))
        bucket = Bucket(retry.budget)
        assert [Course(retry, bucket=bucket).fails() for _ in range(4)] == [True, True, False, False]

    def test_success_of_a_call_counts_once_however_often_it_was_sent(self):
        retry = Retry(budget=Budget(max_tokens=100, ratio=0.1))
        bucket = Bucket(retry.budget)
        for _ in range(10):
            course = Course(retry, bucket=bucket)
            course.fails()
            course.succeeds()
        # Ten were spent and one put back; half must be left.
        assert [bucket.take() for _ in range(50)].count(True) == 50 - 10 + 1 - 1

    def test_calls_that_are_never_sent_again_count_as_well(self):
        """They show the server's health as well as others do: in A6 every call counts."""
        retry = Retry(budget=Budget(max_tokens=6, ratio=1))
        bucket = Bucket(retry.budget)
        for _ in range(3):
            assert not Course(retry, bucket=bucket, may_retry=False).fails()
            assert not Course(retry, bucket=bucket, may_retry=False).fails(Failure(Code.NOT_FOUND))
        assert not Course(retry, bucket=bucket).fails()
        for _ in range(4):
            Course(retry, bucket=bucket, may_retry=False).succeeds()
        assert Course(retry, bucket=bucket).fails()

    def test_attempts_that_cannot_be_sent_again_count_as_well(self):
        retry = Retry(budget=Budget(max_tokens=6))
        bucket = Bucket(retry.budget)
        for _ in range(3):
            assert not Course(retry, bucket=bucket).fails(is_whole=False)
        assert not Course(retry, bucket=bucket).fails()

    def test_the_default_holds_a_storm_down_and_lets_it_recover(self):
        """A server is down for 1000 calls, then well for 1000, then fails one call in twenty."""
        retry = Retry()
        bucket = Bucket(retry.budget)

        def sent(fails):
            course = Course(retry, bucket=bucket)
            while fails() and course.fails():
                pass
            return course.made

        assert sum(sent(lambda: True) for _ in range(1000)) <= 1000 + 50

        for _ in range(1000):
            course = Course(retry, bucket=bucket)
            course.succeeds()
        outcomes = iter([number % 20 == 0 for number in range(100_000)])
        made = 0
        for _ in range(1000):
            course = Course(retry, bucket=bucket)
            while next(outcomes):
                assert course.fails(), "a few failures among many successes are all retried"
            course.succeeds()
            made += course.made
        assert 1040 <= made <= 1060

    def test_without_one_there_is_no_limit(self):
        bucket = Bucket(None)
        assert all(bucket.take() for _ in range(10_000))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": 0},
        {"initial_backoff": 0},
        {"initial_backoff": 2, "max_backoff": 1},
        {"multiplier": 0.5},
        {"attempt_timeout": 0},
        {"attempt_timeout": timedelta(seconds=-1)},
        {"max_request_bytes": -1},
        {"codes": ["OK"]},
        {"codes": ["NO_CODE"]},
        {"codes": "UNAVAILABLE"},  # which is no collection of them
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises((ValueError, TypeError), match=r"Retry\("):
        Retry(**settings)


@pytest.mark.parametrize("settings", [{"max_tokens": 0}, {"ratio": 0}, {"ratio": -1}], ids=str)
def test_a_budget_of_nothing(settings):
    with pytest.raises(ValueError, match="budget=None"):
        Budget(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_attempts": "3"}, "give a whole number"),
        ({"max_attempts": 2.5}, "give a whole number"),
        ({"max_request_bytes": "1MB"}, "give a whole number"),
        ({"attempt_timeout": "2s"}, "give a timedelta or a number of seconds"),
        ({"initial_backoff": "1s"}, "give a timedelta or a number of seconds"),
        ({"max_backoff": None}, "give a timedelta or a number of seconds"),
        ({"multiplier": "2"}, "give a number"),
        ({"budget": 100}, "give a Budget, or None"),
        ({"codes": grpc.StatusCode.ABORTED}, "give a collection of status codes"),
    ],
    ids=str,
)
def test_settings_of_another_kind(settings, says):
    with pytest.raises(TypeError, match=says):
        Retry(**settings)


def test_a_budget_is_of_numbers():
    with pytest.raises(TypeError, match="give a number"):
        Budget(max_tokens="100")  # type: ignore[arg-type]  # which is no number
    with pytest.raises(ValueError, match="both must be positive"):
        Budget(ratio=math.nan)
