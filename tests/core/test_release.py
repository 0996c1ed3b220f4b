"""The record that an attempt without an answer leaves: its retention, and the request that it is for."""

from dataclasses import replace

import pytest

from idem_grpc._core.judge import UNKNOWN_TTL
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import State
from idem_grpc._core.steps import Ended, Ending, Outage, Pause, Reply, Waited
from idem_grpc._core.swap import Swapped
from tests.core.calls import ME, OPEN, RETENTION, RUNNING, STRICT, TOKEN, UNKNOWN, held, mine
from tests.core.driven import DECIDED, FAILURE, UNCLEAR, Driven, running

FIXABLE = Ended(FAILURE, Ending.FIXABLE)
NOT_NOW = Ended(FAILURE, Ending.NOT_NOW)


def test_a_request_that_was_tried_once_may_be_corrected():
    assert running().then(FIXABLE).record().fingerprint is None


@pytest.mark.parametrize("left", [OPEN, RUNNING], ids=["ended unclear", "died"])
def test_a_request_may_not_be_corrected_if_an_earlier_attempt_may_have_had_an_effect(left):
    asked = [Waited()] if left is RUNNING else []  # whether it lives in this process
    flow = Driven().then(held(left, 1.0), *asked, Swapped(1.0), FIXABLE)
    assert flow.record().state is State.OPEN
    assert flow.record().fingerprint == ME.fingerprint


@pytest.mark.parametrize(
    ("ended", "life"),
    [(FIXABLE, 5.0), (NOT_NOW, 5.0), (UNCLEAR, RETENTION)],
    ids=["fixable", "not now", "unclear"],
)
def test_a_token_keeps_the_life_it_had_left_unless_its_run_may_have_had_an_effect(ended, life):
    flow = Driven(TOKEN).then(Swapped(5.0), ended)
    assert (flow.record().state, flow.swap().ttl) == (State.OPEN, life)


def test_a_claim_under_fail_is_kept_as_long_as_an_unknown_record():
    assert Driven(STRICT).swap().ttl == Driven(STRICT).record().ttl == UNKNOWN_TTL


class TestAnOwnerTakenForDeadThatLives:
    @pytest.mark.parametrize("ended", [FIXABLE, NOT_NOW])
    def test_gives_the_key_back_if_its_run_had_no_effect(self, ended):
        unknown = held(mine(UNKNOWN))
        flow = running(STRICT).then(ended, unknown)
        assert flow.step == Reply(FAILURE, b"me", requests=ME.fingerprint)
        flow.then(None)
        assert (flow.swap().expected, flow.record().state) == (unknown.value, State.OPEN)
        assert flow.then(Swapped(1.0)).step is None

    def test_leaves_the_key_unknown_if_its_run_may_have_had_an_effect(self):
        flow = running(STRICT).then(UNCLEAR, held(mine(UNKNOWN)))
        assert flow.step == Reply(FAILURE, b"me", requests=ME.fingerprint)
        assert flow.then(None).step is None

    def test_leaves_the_record_of_another_owner_alone(self):
        flow = running(STRICT).then(NOT_NOW, held(replace(UNKNOWN, owner=b"other")))
        assert flow.then(None).step is None


class TestAStoreThatWillNeverAnswer:
    def test_is_not_asked_again_for_an_answer(self):
        flow = running().then(DECIDED, Outage(misused=True))
        assert flow.step == Reply(Problem(Reason.OUTCOME_PENDING), b"me")
        assert flow.then(None).step is None

    def test_is_not_asked_again_for_a_release(self):
        flow = running().then(NOT_NOW, Outage())
        assert isinstance(flow.then(None).step, Pause)
        assert flow.then(None, Outage(misused=True)).step is None


def test_duplicates_that_waited_for_a_dropped_outcome_get_response_not_kept():
    dropped = Reply(Outcome(messages_dropped=True), b"other")
    flow = Driven().then(held(RUNNING), Waited(dropped))
    assert flow.step == Reply(Problem(Reason.RESPONSE_NOT_KEPT), b"other")


@pytest.mark.parametrize("ending", [Ending.UNCLEAR, Ending.NOT_NOW])
def test_the_failure_of_a_run_whose_caller_left_is_not_shared_with_waiting_duplicates(ending):
    left = running().then(Ended(FAILURE, ending, caller_left=True), Swapped(1.0)).step
    assert left == Reply(FAILURE, b"me", requests=ME.fingerprint, is_shared=False)
    waiting = Driven().then(held(RUNNING), Waited(replace(left, owner=b"other")))
    assert waiting.step == Reply(Problem(Reason.IN_PROGRESS, is_free=True), b"other")
