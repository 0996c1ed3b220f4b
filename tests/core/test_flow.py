"""The rules of the flow, one at a time; each test drives a flow by hand."""

import math
from dataclasses import replace

import pytest

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.flow import LONGEST_PAUSE, MOST_STARTS
from idem_grpc._core.judge import UNKNOWN_TTL
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.policy import OnOutage
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import OnUnclear, Record, State
from idem_grpc._core.steps import (
    Ended,
    Ending,
    Execute,
    Full,
    Outage,
    Pause,
    Reply,
    TakeOver,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Held, Swapped
from tests.core.calls import (
    ALIVE,
    ANSWER,
    DEAD,
    DONE,
    ME,
    OPEN,
    RETENTION,
    RUNNING,
    STRICT,
    TOKEN,
    UNKNOWN,
    held,
    mine,
)
from tests.core.driven import DECIDED, FAILURE, UNCLEAR, Driven, running

MY_REPLY = Reply(ANSWER, b"me", requests=ME.fingerprint)
NOTHING = Held(None, 0.0)
TRUSTING = replace(ME, rules=replace(ME.rules, on_outage=OnOutage.RUN))


def test_a_call_is_claimed_executed_kept_and_answered():
    flow = Driven()
    claim = flow.swap()
    assert (claim.expected, flow.record().state, claim.ttl) == (None, State.RUNNING, RETENTION)
    assert flow.then(Swapped(0.0)).step == Execute(Record.from_bytes(claim.new), claim)
    flow.then(DECIDED)
    assert flow.swap().expected == claim.new
    assert flow.record() == replace(DONE, owner=b"me", on_unclear=OnUnclear.RERUN, fingerprint=ME.fingerprint)
    assert flow.then(Swapped(ALIVE)).step == MY_REPLY
    assert flow.then(None).step is None


class TestAfterExecuteAFlowNeverClaimsAgain:
    @pytest.mark.parametrize("there", [NOTHING, held(OPEN), held(RUNNING), held(DONE), held(UNKNOWN)])
    @pytest.mark.parametrize("ending", [Ending.UNCLEAR, Ending.NOT_NOW, Ending.FIXABLE])
    def test_a_release_that_conflicts_returns_the_calls_own_failure(self, there, ending):
        flow = running().then(Ended(FAILURE, ending), there)
        assert flow.step == Reply(FAILURE, b"me", requests=ME.fingerprint)
        assert flow.then(None).step is None

    @pytest.mark.parametrize("there", [NOTHING, held(OPEN), held(mine(UNKNOWN))])
    def test_the_outcome_is_kept_if_no_other_call_ran(self, there):
        flow = running().then(DECIDED, there)
        assert (flow.swap().expected, flow.record().state) == (there.value, State.DONE)
        assert flow.record().outcome == ANSWER
        assert flow.then(Swapped(1.0)).step == MY_REPLY

    def test_a_later_answer_is_replayed(self):
        theirs = Outcome(messages=(b"theirs",))
        flow = running().then(DECIDED, held(replace(DONE, outcome=theirs)))
        assert flow.step == Reply(theirs, b"other", replayed=True, requests=DONE.fingerprint)
        assert flow.then(None).step is None

    def test_a_later_run_is_waited_out(self):
        flow = running().then(DECIDED, held(RUNNING))
        assert flow.step == Reply(Problem(Reason.IN_PROGRESS), b"other")
        assert isinstance(flow.then(None).step, Pause)
        assert flow.then(None).record().state is State.DONE
        flow.then(held(replace(OPEN, attempt=2)))
        assert flow.swap().expected == replace(OPEN, attempt=2).to_bytes()
        assert flow.then(Swapped(1.0)).step is None

    def test_a_later_run_that_died_is_overwritten_unless_it_renews(self):
        flow = running().then(DECIDED, held(RUNNING, DEAD))
        assert (flow.swap().expected, flow.swap().max_left) == (RUNNING.to_bytes(), DEAD)
        assert flow.then(held(RUNNING, RETENTION)).step == Reply(Problem(Reason.IN_PROGRESS), b"other")

    def test_a_later_run_that_died_is_given_up_where_runs_are_not_repeated(self):
        flow = running(STRICT).then(DECIDED, held(RUNNING, DEAD))
        assert flow.record() == replace(
            RUNNING, state=State.UNKNOWN, lease=0.0, ttl=0.0, on_unclear=OnUnclear.RERUN
        )
        flow.then(Swapped(DEAD), held(UNKNOWN))
        assert flow.step == Reply(Problem(Reason.OUTCOME_UNKNOWN), b"other")

    def test_the_answer_to_another_request_is_not_replayed(self):
        theirs = replace(DONE, fingerprint=Fingerprint(b"another"))
        flow = running().then(DECIDED, held(theirs))
        assert flow.step == Reply(Problem(Reason.RESPONSE_NOT_KEPT), b"other")


class TestNoOutcomeLeavesTheProcessBeforeItsDoneIsAcknowledged:
    def test_while_the_store_is_away_the_answer_is_pending(self):
        flow = running().then(DECIDED, Outage())
        assert flow.step == Reply(Problem(Reason.OUTCOME_PENDING), b"me")
        flow.then(None)
        pauses = []
        for _ in range(20):
            flow.then(None)
            assert flow.record().state is State.DONE
            pauses.append(flow.then(Outage()).step)
        assert pauses[-1] == Pause(LONGEST_PAUSE)
        assert flow.then(None, Swapped(1.0)).step is None

    def test_a_tombstone_is_kept_and_the_first_caller_gets_the_whole_answer(self):
        small = replace(ME, rules=replace(ME.rules, max_response_bytes=5))
        flow = running(small).then(DECIDED)
        assert flow.record().outcome == replace(ANSWER, messages=(), messages_dropped=True)
        assert flow.then(Swapped(1.0)).step == MY_REPLY


class TestACallerWhoWaitedForAnAttemptAndSeesItFailGetsThatFailure:
    def waiting(self) -> Driven:
        flow = Driven().then(held(RUNNING))
        assert isinstance(flow.step, Wait)
        assert flow.step.owner == b"other"
        return flow

    def test_in_the_same_process(self):
        flow = self.waiting().then(Waited(Reply(FAILURE, b"other")))
        assert flow.step == Reply(FAILURE, b"other", replayed=True)
        assert flow.then(None).step is None

    @pytest.mark.parametrize("left_behind", [NOTHING, held(OPEN), held(replace(OPEN, fingerprint=None))])
    def test_in_another_process_the_call_is_in_progress_and_its_key_is_free(self, left_behind):
        flow = self.waiting().then(Waited(), left_behind)
        assert isinstance(flow.step, Reply)
        assert flow.step.answer == Problem(Reason.IN_PROGRESS, is_free=True)
        assert flow.then(None).step is None

    def test_the_answer_is_replayed(self):
        assert self.waiting().then(Waited(), held(DONE)).step == Reply(ANSWER, b"other", replayed=True)

    def test_a_wait_that_runs_out_ends_in_progress(self):
        flow = self.waiting().then(Waited(more=False))
        assert flow.step == Reply(Problem(Reason.IN_PROGRESS), b"other")

    def test_a_run_that_died_is_taken_over(self):
        flow = self.waiting().then(Waited(), held(RUNNING, DEAD), Waited())
        assert (flow.record().attempt, flow.swap().max_left) == (2, DEAD)

    def test_reading_the_store_again_changes_nothing(self):
        look = self.waiting().then(Waited()).swap()
        assert look.expected == look.new

    def test_it_asks_with_growing_pauses_and_when_the_lease_ends(self):
        flow = Driven()
        waits = []
        for left in (*[ALIVE] * 12, DEAD + 0.01):
            flow.then(held(RUNNING, left))
            assert isinstance(flow.step, Wait)
            waits.append(flow.step.seconds)
            flow.then(Waited())
        assert waits[:2] == [0.05, pytest.approx(0.075)]
        assert waits[-2:] == [1.0, pytest.approx(0.01)]


class TestOnlyTheDeathOfAProcessLeavesRunningBehind:
    def refused(self, call=ME) -> Driven:
        flow = Driven(call).then(Outage())
        assert flow.step == Reply(Problem(Reason.STORE_UNAVAILABLE))
        return flow.then(None)

    def test_a_claim_whose_reply_was_lost_is_undone(self):
        flow = self.refused()
        assert flow.swap().expected == ME.first_claim().swap.new
        assert (flow.record().state, flow.record().attempt) == (State.OPEN, 1)
        assert flow.then(Swapped(ALIVE)).step is None

    def test_a_claim_that_may_still_land_is_fenced_off(self):
        flow = self.refused().then(NOTHING)
        assert (flow.swap().expected, flow.record().state) == (None, State.OPEN)
        assert flow.then(Swapped(0.0)).step is None

    def test_a_claim_that_overtakes_the_fence_is_undone(self):
        flow = self.refused().then(NOTHING, Held(ME.first_claim().swap.new, RETENTION))
        assert flow.swap().expected == ME.first_claim().swap.new
        assert flow.then(Swapped(RETENTION)).step is None

    @pytest.mark.parametrize("there", [held(OPEN), held(RUNNING), held(DONE), held(UNKNOWN)])
    def test_the_record_of_another_call_is_left_alone(self, there):
        assert self.refused().then(there).step is None

    def test_a_takeover_that_may_still_land_is_fenced_off_until_the_owner_has_moved_on(self):
        flow = Driven().then(held(RUNNING, DEAD), Waited(), Outage(), None, held(RUNNING, RETENTION))
        assert (flow.swap().expected, flow.swap().max_left) == (RUNNING.to_bytes(), DEAD)
        assert isinstance(flow.then(held(RUNNING, RETENTION)).step, Pause)
        assert flow.then(None, held(DONE)).step is None

    def test_undoing_a_claim_is_repeated_until_the_store_answers(self):
        flow = self.refused()
        undo = flow.swap()
        for _ in range(20):
            assert isinstance(flow.then(Outage()).step, Pause)
            assert flow.then(None).step == undo

    @pytest.mark.parametrize("call", [ME, STRICT])
    def test_a_release_is_repeated_until_the_store_answers(self, call):
        flow = running(call).then(UNCLEAR)
        release = flow.swap()
        assert flow.then(Outage()).step == Reply(FAILURE, b"me", requests=ME.fingerprint)
        assert flow.then(None, None, Outage(), None).step == release
        assert flow.then(NOTHING).step is None

    @pytest.mark.parametrize("call", [ME, STRICT])
    def test_a_claim_that_others_took_for_dead_is_taken_back(self, call):
        taken = held(mine(UNKNOWN))
        flow = self.refused(call).then(taken)
        assert (flow.swap().expected, flow.record().state) == (taken.value, State.OPEN)
        assert flow.then(Swapped(ALIVE)).step is None

    @pytest.mark.parametrize("there", [NOTHING, held(RUNNING)])
    def test_a_claim_that_never_left_the_process_is_not_given_back(self, there):
        flow = Driven().then(Outage(sent=False))
        assert flow.step == Reply(Problem(Reason.STORE_UNAVAILABLE))
        assert flow.then(None).step is None

    @pytest.mark.parametrize("call", [ME, STRICT, TRUSTING])
    def test_a_call_over_the_bound_runs_nothing_and_gives_nothing_back(self, call):
        flow = Driven(call).then(Full())
        assert flow.step == Reply(Problem(Reason.OVERLOADED))
        assert flow.then(None).step is None

    def test_a_call_over_the_bound_takes_nothing_over(self):
        flow = Driven().then(held(RUNNING, DEAD), Waited(), Full())
        assert flow.step == Reply(Problem(Reason.OVERLOADED))
        assert flow.then(None).step is None

    def test_a_misconfigured_store_is_not_asked_again(self):
        flow = Driven().then(Outage(misused=True))
        assert flow.step == Reply(Problem(Reason.MISCONFIGURED))
        assert flow.then(None).step is None


class TestTheEndOfAHandler:
    @pytest.mark.parametrize(
        ("call", "ending", "left"),
        [
            (ME, Ending.UNCLEAR, State.OPEN),
            (STRICT, Ending.UNCLEAR, State.UNKNOWN),
            (STRICT, Ending.NOT_NOW, State.OPEN),
        ],
    )
    def test_the_state_and_retention_that_it_leaves(self, call, ending, left):
        flow = running(call).then(Ended(FAILURE, ending))
        assert (flow.record().state, flow.record().fingerprint) == (left, call.fingerprint)
        assert flow.swap().ttl == (UNKNOWN_TTL if left is State.UNKNOWN else RETENTION)

    def test_a_wrong_request_may_be_corrected(self):
        flow = running(STRICT).then(Ended(FAILURE, Ending.FIXABLE))
        assert (flow.record().state, flow.record().fingerprint) == (State.OPEN, None)

    @pytest.mark.parametrize(
        ("left", "ttl"), [(900.0, 900.0), (0.0, 0.001), (math.inf, RETENTION), (0.0004, 0.001)]
    )
    def test_a_token_that_is_given_back_keeps_the_life_it_had_left(self, left, ttl):
        flow = Driven(TOKEN).then(Swapped(left), Ended(FAILURE, Ending.FIXABLE))
        assert (flow.swap().ttl, flow.record().binding) == (ttl, TOKEN.binding)


class TestRunningWhileTheStoreIsAway:
    def test_the_call_runs_and_is_answered_and_its_outcome_is_kept_later(self):
        flow = Driven(TRUSTING).then(Outage(), DECIDED, Outage())
        assert flow.step == replace(MY_REPLY, protected=False)
        assert flow.then(None, None).record().state is State.DONE
        assert flow.then(NOTHING).swap().expected is None
        assert flow.then(Swapped(0.0)).step is None

    def test_its_answer_is_unprotected_even_if_it_is_kept_at_once(self):
        flow = Driven(TRUSTING).then(Outage(), DECIDED, Swapped(0.0))
        assert flow.step == replace(MY_REPLY, protected=False)

    def test_a_duplicate_that_shares_its_answer_is_unprotected_too(self):
        shared = replace(MY_REPLY, protected=False)
        flow = Driven().then(held(RUNNING), Waited(shared))
        assert flow.step == replace(shared, replayed=True, requests=None)

    def test_the_answer_of_another_run_in_the_store_is_protected(self):
        flow = Driven(TRUSTING).then(Outage(), DECIDED, held(DONE))
        assert isinstance(flow.step, Reply)
        assert (flow.step.replayed, flow.step.protected) == (True, True)

    def test_its_own_claim_may_land_late(self):
        flow = Driven(TRUSTING).then(Outage(), DECIDED, NOTHING)
        flow.then(Held(TRUSTING.first_claim().swap.new, RETENTION))
        assert flow.swap().expected == TRUSTING.first_claim().swap.new
        assert flow.then(Swapped(RETENTION)).step == replace(MY_REPLY, protected=False)

    def test_a_claim_that_may_have_landed_is_given_back(self):
        flow = Driven(TRUSTING).then(Outage(), UNCLEAR, NOTHING)
        assert flow.step == Reply(FAILURE, b"me", requests=ME.fingerprint, protected=False)
        assert flow.then(None).swap().expected == TRUSTING.first_claim().swap.new
        assert flow.then(NOTHING).swap().expected is None
        assert flow.then(Swapped(0.0)).step is None

    def test_it_starts_without_a_lease(self):
        flow = Driven(TRUSTING).then(Outage())
        assert isinstance(flow.step, Execute)
        assert not flow.step.acknowledged

    def test_a_call_that_saw_another_run_is_in_progress_and_runs_nothing(self):
        flow = Driven(TRUSTING).then(held(RUNNING), Waited(), Outage())
        assert flow.step == Reply(Problem(Reason.IN_PROGRESS), b"other")


def test_a_dead_run_is_given_up_and_its_calls_are_refused():
    flow = Driven(STRICT).then(held(RUNNING, DEAD), Waited())
    assert (flow.record().state, flow.swap().ttl, flow.swap().max_left) == (State.UNKNOWN, UNKNOWN_TTL, DEAD)
    assert flow.then(Swapped(DEAD)).step == Reply(Problem(Reason.OUTCOME_UNKNOWN), b"other")
    assert flow.then(None).step is None


def test_a_run_that_renews_just_before_its_takeover_is_waited_for():
    flow = Driven(STRICT).then(held(RUNNING, DEAD), Waited(), held(RUNNING, RETENTION))
    assert isinstance(flow.step, Wait)
    assert flow.step.seconds > 0


@pytest.mark.parametrize("call", [ME, STRICT])
class TestARunWhoseLeaseHasRunOut:
    """It may still be alive in this process, if only the store was away."""

    def test_is_looked_for_in_this_process_before_it_is_taken_over(self, call):
        assert Driven(call).then(held(RUNNING, DEAD)).step == TakeOver(b"other", RUNNING.lease)

    def test_gives_its_reply_if_it_is_alive_in_this_process(self, call):
        pending = Reply(Problem(Reason.OUTCOME_PENDING), b"other")
        assert Driven(call).then(held(RUNNING, DEAD), Waited(pending)).step == pending

    def test_is_not_taken_over_by_a_call_that_cannot_wait(self, call):
        flow = Driven(call).then(held(RUNNING, DEAD), Waited(more=False))
        assert flow.step == Reply(Problem(Reason.IN_PROGRESS), b"other")

    def test_is_left_alone_until_owners_had_time_to_renew_after_an_outage(self, call):
        flow = Driven(call).then(held(RUNNING, DEAD), Waited(hold=10.0))
        assert isinstance(flow.step, Wait)
        assert flow.step.owner == b"other"
        assert isinstance(flow.then(Waited(), held(RUNNING, DEAD)).step, TakeOver), "it asks each time"
        assert flow.then(Waited()).swap().max_left == DEAD

    def test_is_not_taken_over_if_it_renews_meanwhile(self, call):
        flow = Driven(call).then(held(RUNNING, DEAD), Waited(hold=10.0), Waited(), held(RUNNING))
        assert isinstance(flow.step, Wait)


class TestAHandlerThatCouldNotStartInTime:
    """Its lease has run out, or nearly so, before it began."""

    def late(self, call=ME, left=0.0) -> Driven:
        flow = Driven(call).then(Swapped(left), TooLate())
        assert flow.swap().expected == flow.swap().new == call.first_claim().swap.new
        return flow

    def test_starts_if_its_claim_still_holds(self):
        claim = ME.first_claim()
        assert self.late().then(Swapped(DEAD)).step == Execute(claim.record, claim.swap)

    @pytest.mark.parametrize("call", [ME, STRICT])
    def test_claims_again_if_others_took_it_for_dead(self, call):
        flow = self.late(call).then(held(mine(UNKNOWN)))
        assert (flow.swap().expected, flow.record().attempt) == (mine(UNKNOWN).to_bytes(), 2)
        assert isinstance(flow.then(Swapped(1.0)).step, Execute)

    def test_waits_for_a_run_that_took_it_over(self):
        flow = self.late().then(held(replace(RUNNING, attempt=2)))
        assert isinstance(flow.step, Wait)

    def test_replays_the_answer_of_a_run_that_took_it_over(self):
        assert self.late().then(held(DONE)).step == Reply(ANSWER, b"other", replayed=True)

    def test_does_not_repeat_a_run_that_took_it_over_and_failed(self):
        assert self.late().then(held(OPEN)).step == Reply(Problem(Reason.IN_PROGRESS, is_free=True), b"other")

    def test_gives_its_claim_back_if_the_store_is_away(self):
        flow = self.late().then(Outage(sent=False))
        assert flow.step == Reply(Problem(Reason.STORE_UNAVAILABLE))
        assert (flow.then(None).record().state, flow.swap().expected) == (
            State.OPEN,
            ME.first_claim().swap.new,
        )

    def test_gives_its_claim_back_if_the_store_is_too_slow_each_time(self):
        flow = self.late()
        for _ in range(MOST_STARTS - 2):
            flow.then(Swapped(DEAD), TooLate())
            assert flow.swap().expected == flow.swap().new
        flow.then(Swapped(DEAD), TooLate())
        assert flow.step == Reply(Problem(Reason.STORE_UNAVAILABLE))
        assert (flow.then(None).record().state, flow.swap().expected) == (
            State.OPEN,
            ME.first_claim().swap.new,
        )

    def test_runs_without_the_store_under_on_outage_run(self):
        claim = TRUSTING.first_claim()
        flow = self.late(TRUSTING)
        for _ in range(MOST_STARTS - 1):
            flow.then(Swapped(DEAD), TooLate())
        assert flow.step == Execute(claim.record, claim.swap, acknowledged=False)

    def test_a_wrong_request_may_be_corrected_under_a_claim_that_was_made_twice(self):
        flow = self.late(STRICT).then(held(mine(UNKNOWN)), Swapped(1.0), Ended(FAILURE, Ending.FIXABLE))
        assert flow.record().fingerprint is None

    def test_a_token_claimed_twice_is_given_back_for_the_retention(self):
        taken = held(mine(replace(UNKNOWN, binding=TOKEN.binding)))
        flow = self.late(TOKEN, left=900.0).then(taken, Swapped(1e6), Ended(FAILURE, Ending.NOT_NOW))
        assert flow.swap().ttl == RETENTION


def test_the_answer_of_a_run_here_is_not_given_to_another_request():
    theirs = Reply(ANSWER, b"other", requests=Fingerprint(b"another"))
    flow = Driven().then(held(RUNNING), Waited(theirs))
    assert flow.step == Reply(Problem(Reason.KEY_REUSED), b"other")
