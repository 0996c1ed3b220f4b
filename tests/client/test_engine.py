"""The client's engine against a model of a server, with events in every order.

The machine reports events to an engine as a driver could: in order, late, twice, and for attempts that were
over long before. It plays the server too, whose answers are streams of one run or another.
"""

import inspect
import math
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from idem_grpc import Budget, Reason, Retry
from idem_grpc._client import engine as engines
from idem_grpc._client.answers import Failure
from idem_grpc._client.engine import Backoff, Delivery, Engine, Finish, Renew, Send
from idem_grpc._client.retry import Bucket
from idem_grpc._core.execution import DerivedCall
from idem_grpc._core.outcome import Code
from tests.client.sources import Source

RETRIES = st.builds(
    Retry,
    max_attempts=st.sampled_from([1, 2, 3, 9, 9]),
    initial_backoff=st.sampled_from([0.1, 1]),
    max_backoff=st.sampled_from([1, 5]),
    attempt_timeout=st.sampled_from([None, None, 0.5, 20]),
    budget=st.sampled_from([None, Budget(max_tokens=4, ratio=0.5), Budget()]),
)
FAILURES = st.builds(
    Failure,
    code=st.sampled_from(
        [Code.UNAVAILABLE] * 6 + [Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND]
    ),
    pushback=st.sampled_from([None] * 6 + [-1.0, 0.0, 0.25, 8.0]),
    of_run=st.booleans(),
)
REFUSALS = st.builds(
    lambda reason, pushback: Failure(reason.code, reason, pushback),
    st.sampled_from([Reason.TOKEN_UNKNOWN] * 30 + [Reason.IN_PROGRESS] * 5 + list(Reason)),
    st.sampled_from([None, 0.25, 2.0]),
)
SELDOM = st.sampled_from([False] * 9 + [True])
"""Whether something is done that would end most calls too early."""

FREE = (Reason.IN_PROGRESS, Reason.OUTCOME_PENDING)


class Calls(RuleBasedStateMachine):
    """One call, from its first attempt to its end."""

    @initialize(
        retry=RETRIES,
        timeout=st.sampled_from([None, None, None, 0.3, 10.0]),
        may_retry=st.sampled_from([True, True, True, True, False]),
        has_source=st.booleans(),
        jitter=st.sampled_from([0.8, 1.0, 1.2]),
    )
    def begin(self, retry, timeout, may_retry, has_source, jitter):
        self.now = 100.0
        self.retry = retry
        self.may_retry = may_retry
        self.ends = math.inf if timeout is None else self.now + timeout
        self.source = Source() if has_source else None
        self.derived = DerivedCall(0)
        self.engine = Engine(
            retry,
            Bucket(retry.budget),
            timeout=timeout,
            may_retry=may_retry,
            source=self.source,
            key="key 0",
            derived=self.derived,
            clock=lambda: self.now,
            uniform=lambda low, high: jitter,
        )
        self.left = math.inf if retry.budget is None else retry.budget.max_tokens
        self.under_way = 0  # the number of an attempt
        self.due: float | None = None
        self.is_renewing = False
        self.renewals = 0
        self.counted = 0
        self.run = ""
        self.position = 0
        self.caller: list[tuple[str, int]] = []
        self.finish: Finish | None = None
        self.obey(self.engine.begin())

    def obey(self, action):
        """Do what a driver would, and check that it was allowed."""
        assert self.finish is None
        assert not self.under_way, "an attempt is under way"
        self.due, self.is_renewing = None, False
        if isinstance(action, Send):
            assert action.attempt == self.engine.attempts
            assert self.now <= self.ends
            allowed = [self.ends - self.now]
            if self.may_retry and self.retry.attempt_timeout is not None:
                allowed.append(self.retry.attempt_timeout)
            assert (math.inf if action.timeout is None else action.timeout) == pytest.approx(min(allowed))
            self.under_way, self.run, self.position = action.attempt, "", 0
        elif isinstance(action, Backoff):
            assert self.may_retry
            self.due = self.now + action.seconds
            assert self.due < self.ends
        elif isinstance(action, Renew):
            assert self.may_retry
            assert self.source is not None
            self.is_renewing = True
            self.renewals += 1
            assert self.renewals == 1
        else:
            assert isinstance(action, Finish)
            self.finish = action

    # What happens.

    @rule(seconds=st.sampled_from([0.01, 0.4, 3.0]))
    def time_passes(self, seconds):
        if self.due is None or self.now + seconds <= self.due:
            self.now += seconds
        if self.under_way and self.now > self.ends:
            self.now = self.ends

    @precondition(lambda self: self.under_way)
    @rule(failure=FAILURES | FAILURES | REFUSALS, is_cut=st.sampled_from([False, False, False, True]))
    def an_attempt_fails(self, failure, is_cut):
        is_whole = not is_cut
        attempt, self.under_way = self.under_way, 0
        budget = self.retry.budget
        may_go_on = True
        action = self.engine.ended(attempt, failure, is_whole=is_whole)
        if isinstance(action, (Backoff, Renew)):
            assert is_whole
            assert not self.caller or self.caller[0][0], "nobody can tell whether the next answer is the same"
            assert failure.pushback is None or failure.pushback >= 0
            if failure.reason not in FREE:
                self.counted += 1
                self.left = max(self.left - 1, 0)
                may_go_on = budget is None or self.left > budget.max_tokens / 2
            assert may_go_on, "the budget is spent"
            assert self.counted < self.retry.max_attempts
            if isinstance(action, Backoff):
                assert action.seconds >= (failure.pushback or 0)
        if self.source is not None and failure.refuses_token:
            assert self.source.dropped
        self.obey(action)

    @precondition(lambda self: self.under_way)
    @rule(is_done=SELDOM)
    def an_attempt_succeeds(self, is_done):
        if not is_done and self.position >= len(self.caller):
            return
        attempt, self.under_way = self.under_way, 0
        is_behind = self.position < len(self.caller)
        self.obey(self.engine.ended(attempt, None))
        assert self.finish is (Finish.AS_INTERRUPTED if is_behind else Finish.AS_ENDED)

    @precondition(lambda self: self.under_way)
    @rule(run=st.sampled_from(["a"] * 4 + ["b", ""]))
    def a_response_arrives(self, run):
        self.run = run if self.position == 0 else self.run
        response = (self.run, self.position)
        self.position += 1
        action = self.engine.delivered(self.under_way, [("idempotency-run", self.run)] if self.run else ())
        if action is Delivery.HAND_OVER:
            self.caller.append(response)
            assert self.engine.handed_from == self.under_way
        elif action is Delivery.SKIP:
            assert self.caller[response[1]] == response
        else:
            assert action is Finish.AS_INTERRUPTED
            assert self.run != self.caller[0][0]
            self.under_way = 0
            self.obey(action)

    @precondition(lambda self: self.due is not None or self.is_renewing)
    @rule(works=st.booleans())
    def what_the_next_attempt_waits_for_is_there(self, works):
        if self.due is not None:
            self.now = max(self.now, self.due)
            self.obey(self.engine.timer())
        else:
            self.now = min(self.now, self.ends)
            self.obey(self.engine.renewed("key 1") if works else self.engine.not_renewed(LookupError("none")))

    @precondition(lambda self: self.under_way and not self.position)
    @rule(is_done=SELDOM)
    def an_attempt_cannot_be_sent(self, is_done):
        if not is_done:
            return
        self.under_way = 0
        self.obey(self.engine.not_sent(ValueError("closed")))
        assert self.finish is Finish.AS_ENDED

    @precondition(lambda self: self.finish is None)
    @rule(is_done=SELDOM)
    def the_caller_cancels(self, is_done):
        if not is_done:
            return
        self.under_way = 0
        self.obey(self.engine.cancelled())
        assert self.finish is Finish.CANCELLED

    # What comes late, or is of no use.

    @rule(failure=st.none() | FAILURES, age=st.integers(1, 3))
    def events_that_come_too_late_change_nothing(self, failure, age):
        engine, earlier = self.engine, self.engine.attempts - age
        assert engine.ended(earlier, failure) is None
        assert engine.delivered(earlier, [("idempotency-run", "a")]) is None
        if not self.under_way:
            assert engine.ended(engine.attempts, failure) is None
            assert engine.delivered(engine.attempts, ()) is None
            assert engine.not_sent(None) is None
        if self.due is None:
            assert engine.timer() is None
        if not self.is_renewing:
            assert engine.renewed("late") is None
            assert engine.not_renewed(TimeoutError()) is None
        if self.finish is not None:
            assert engine.cancelled() is None

    # What always holds.

    @invariant()
    def its_properties_agree_with_what_happened(self):
        if not hasattr(self, "engine"):
            return
        assert self.engine.is_over is (self.finish is not None)
        assert self.engine.is_sent is bool(self.under_way)
        assert self.derived.is_over is self.engine.is_over
        assert self.engine.is_behind is bool(self.under_way and self.position < len(self.caller))

    @invariant()
    def the_caller_gets_the_answer_of_one_run(self):
        caller = getattr(self, "caller", [])
        assert [position for _, position in caller] == list(range(len(caller)))
        assert len({run for run, _ in caller}) <= 1

    def teardown(self):
        """Whatever happened, the call can end."""
        if not hasattr(self, "engine"):
            return
        for _ in range(2):
            if self.due is not None or self.is_renewing:
                self.what_the_next_attempt_waits_for_is_there(works=False)
            if self.under_way:
                self.an_attempt_succeeds(is_done=True)
        assert self.finish is not None


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)

SOURCE = inspect.getsource(engines)
MUTANTS = {
    "an earlier attempt's end counts": (
        "or attempt != self.attempts:\n            return None\n        if failure",
        ":\n            return None\n        if failure",
    ),
    "an earlier attempt's response counts": (
        "or attempt != self.attempts:\n            return None\n        if not",
        ":\n            return None\n        if not",
    ),
    "a timer sends at any time": (
        "if self._phase is _Phase.WAITING else None",
        "if not self.is_over else None",
    ),
    "a late key sends": ("if self._phase is not _Phase.RENEWING:", "if self.is_over:"),
    "a call ends twice": (
        "return None if self.is_over else self._finish(Finish.CANCELLED)",
        "return self._finish(Finish.CANCELLED)",
    ),
    "the derived call never ends": ("        self.abandon()\n        return how", "        return how"),
    "the budget is not asked": ("not self._bucket.take() or ", ""),
    "attempts are not counted": ("self._counted += 1", "pass"),
    "the server's no is ignored": (
        "not self._may_retry or (failure.pushback is not None and failure.pushback < 0)",
        "not self._may_retry",
    ),
    "unsafe calls are sent again": ("if not self._may_retry or", "if"),
    "the deadline is not looked at": ("self._clock() + seconds >= self._ends", "False"),
    "a pushback is not waited for": ("failure.pushback or 0.0)", "0.0)"),
    "a part of the requests is sent": ("if not is_whole or (", "if (is_whole and "),
    "responses are repeated": ("if self._seen <= self._handed_over:", "if self._seen < self._handed_over:"),
    "another run's responses follow": ("if self._handed_over and run != self._run:", "if False:"),
    "a shorter answer is taken": ("if self._seen >= self._handed_over else self._lose()", ""),
    "a run without a name is resumed": ("(self._handed_over and not self._run)", "False"),
    "keys are renewed again and again": (
        "self._may_renew = self._may_renew and failure.reason in _NOTHING_RAN",
        "pass",
    ),
    "a refused key is kept": ("self._source.drop(self._key)", "pass"),
    "attempts begin behind": ("        self._seen = 0\n", ""),
}


def walk(random):
    """Report events at random. Quicker than Hypothesis, which shrinks what it finds."""
    calls = Calls()
    calls.begin(
        retry=Retry(
            max_attempts=random.choice([1, 2, 3, 9]),
            initial_backoff=1,
            attempt_timeout=random.choice([None, None, 0.5, 20]),
            budget=random.choice([None, Budget(max_tokens=4, ratio=0.5)]),
        ),
        timeout=random.choice([None, None, 0.3, 10.0]),
        may_retry=random.random() < 0.8,
        has_source=random.random() < 0.5,
        jitter=1.0,
    )
    for _ in range(30):
        failure = Failure(
            random.choice([Code.UNAVAILABLE] * 4 + [Code.NOT_FOUND]),
            random.choice([None, None, Reason.TOKEN_UNKNOWN, Reason.IN_PROGRESS]),
            random.choice([None, None, None, -1.0, 8.0]),
        )
        event = random.random()
        if event < 0.1:
            calls.events_that_come_too_late_change_nothing(failure, random.randint(1, 3))
        elif event < 0.2:
            calls.time_passes(random.choice([0.01, 0.4, 3.0]))
        elif calls.due is not None or calls.is_renewing:
            calls.what_the_next_attempt_waits_for_is_there(works=True)
        elif not calls.under_way:
            break
        elif event < 0.6:
            calls.a_response_arrives(random.choice(["a", "a", "a", "b", ""]))
        elif event < 0.9:
            calls.an_attempt_fails(failure, random.random() < 0.2)
        elif event < 0.95:
            calls.an_attempt_succeeds(is_done=True)
        calls.its_properties_agree_with_what_happened()
        calls.the_caller_gets_the_answer_of_one_run()
    if calls.finish is not None:
        assert calls.engine.cancelled() is None
    calls.events_that_come_too_late_change_nothing(None, 1)
    calls.teardown()


def walks():
    for seed in range(5000):
        walk(Random(seed))


def test_random_walks_find_no_fault():
    walks()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_random_walks_find_a_fault_that_is_there(mutant, monkeypatch):
    right, wrong = MUTANTS[mutant]
    assert right in SOURCE
    module: dict[str, Any] = {"__name__": engines.__name__}
    exec(SOURCE.replace(right, wrong), module)
    for name in ("Delivery", "Engine", "Finish", "Renew", "Send", "Backoff"):
        monkeypatch.setitem(globals(), name, module[name])
    with pytest.raises(AssertionError):
        walks()
