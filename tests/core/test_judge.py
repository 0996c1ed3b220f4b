"""The tables of the judge: every rule has an example, and every finding has a rule."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.judge import (
    ARRIVAL,
    LATE,
    TRANSITIONS,
    Call,
    Claim,
    Finding,
    GiveUp,
    Overwrite,
    Reject,
    Replay,
    Rule,
    Verdict,
    WaitFor,
    judge,
    judge_late,
)
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from idem_grpc._core.steps import TakeOver
from idem_grpc._core.swap import Held, Swap
from tests.core.calls import (
    ALIVE,
    ANSWER,
    BINDING,
    DEAD,
    DONE,
    DROPPED,
    ME,
    OPEN,
    OTHER_REQUEST,
    REQUEST,
    RETENTION,
    RUNNING,
    STRICT,
    TOKEN,
    UNKNOWN,
    call,
    held,
    mine,
)


def found(record: Record | None, left: float = ALIVE, *, by: Call = ME, waited: bool = False) -> Finding:
    seen = held(record, left)
    return Finding(by, seen, Record.from_bytes(seen.value), waited, by.fingerprint)


def unreadable(by: Call = ME) -> Finding:
    return Finding(by, Held(b"\xff", 1.0), Record.from_bytes(b"\xff"), False, by.fingerprint)


def rejected(reason: Reason, owner: bytes = b"other") -> Verdict:
    return Reject(Problem(reason), owner)


def claimed(finding: Finding, max_left: float | None = None) -> Verdict:
    return finding.call.claim(finding.record, finding.held.value, max_left)


def given_up(record: Record = RUNNING) -> Verdict:
    unknown = replace(record, state=State.UNKNOWN).to_bytes()
    return GiveUp(
        Swap(b"key", record.to_bytes(), unknown, 30 * 24 * 3600.0, DEAD), TakeOver(record.owner, record.lease)
    )


ON_ARRIVAL: dict[str, tuple[Finding, Verdict]] = {
    "no such token": (found(None, by=TOKEN), rejected(Reason.TOKEN_UNKNOWN, b"")),
    "the run that this call waited for": (
        found(OPEN, waited=True),
        Reject(Problem(Reason.IN_PROGRESS, is_free=True), b"other"),
    ),
    "never seen": (found(None), claimed(found(None))),
    "unreadable": (unreadable(), rejected(Reason.OUTCOME_UNKNOWN, b"")),
    "a token of another": (
        found(replace(DONE, binding=Binding(b"operation", b"another")), by=TOKEN),
        rejected(Reason.TOKEN_MISMATCH, b""),
    ),
    "the key of another request": (
        found(replace(DONE, fingerprint=OTHER_REQUEST)),
        rejected(Reason.KEY_REUSED),
    ),
    "given back": (found(OPEN), claimed(found(OPEN))),
    "its owner is alive": (found(RUNNING), WaitFor(b"other", ALIVE - DEAD)),
    "its owner died, and": (found(RUNNING, DEAD, by=STRICT), given_up()),
    "its owner died: claim": (found(RUNNING, DEAD), claimed(found(RUNNING, DEAD), DEAD)),
    "done, answer not kept": (found(DROPPED), rejected(Reason.RESPONSE_NOT_KEPT)),
    "done: replay": (found(DONE), Replay(ANSWER, b"other", REQUEST)),
    "its own claim, taken for dead": (found(mine(UNKNOWN)), claimed(found(mine(UNKNOWN)))),
    "unclear end": (found(UNKNOWN), rejected(Reason.OUTCOME_UNKNOWN)),
}

WHEN_LATE: dict[str, tuple[Finding, Verdict]] = {
    "no other run": (found(OPEN), Overwrite(OPEN.to_bytes())),
    "unreadable": (unreadable(), rejected(Reason.OUTCOME_UNKNOWN, b"")),
    "now the key of another request": (
        found(replace(DONE, fingerprint=OTHER_REQUEST)),
        rejected(Reason.RESPONSE_NOT_KEPT),
    ),
    "its own claim": (found(mine(RUNNING)), Overwrite(mine(RUNNING).to_bytes())),
    "its own end": (found(mine(UNKNOWN)), Overwrite(mine(UNKNOWN).to_bytes())),
    "a later attempt ended": (found(UNKNOWN), rejected(Reason.OUTCOME_UNKNOWN)),
    "a later attempt is running": (found(RUNNING), WaitFor(b"other", ALIVE - DEAD)),
    "a later owner died, and": (found(RUNNING, DEAD, by=STRICT), given_up()),
    "a later owner died: keep": (found(RUNNING, DEAD), Overwrite(RUNNING.to_bytes(), DEAD)),
    "a later attempt is done, answer": (found(DROPPED), rejected(Reason.RESPONSE_NOT_KEPT)),
    "a later attempt is done: replay": (found(DONE), Replay(ANSWER, b"other", REQUEST)),
}


def rule_for(table: tuple[Rule, ...], finding: Finding) -> Rule:
    return next(rule for rule in table if finding.record.state in rule.states and rule.when(finding))


@pytest.mark.parametrize(("table", "examples"), [(ARRIVAL, ON_ARRIVAL), (LATE, WHEN_LATE)])
def test_each_rule_is_the_first_that_fits_its_example(table, examples):
    assert len(table) == len(examples)
    for rule, (text, (finding, _)) in zip(table, examples.items(), strict=True):
        assert rule.text.startswith(text)
        assert rule_for(table, finding) is rule


@pytest.mark.parametrize(("finding", "verdict"), ON_ARRIVAL.values(), ids=ON_ARRIVAL.keys())
def test_what_a_call_does_on_arrival(finding, verdict):
    assert judge(finding.call, finding.held, waited=finding.waited) == verdict


@pytest.mark.parametrize(("finding", "verdict"), WHEN_LATE.values(), ids=WHEN_LATE.keys())
def test_what_an_owner_that_comes_late_does(finding, verdict):
    assert judge_late(finding.call, finding.held) == verdict


def test_a_late_owner_keeps_its_outcome_if_there_is_no_record():
    assert judge_late(ME, Held(None, 0.0)) == Overwrite(None)


lives = st.floats(0, 1e9) | st.just(math.inf)


@given(
    record=st.sampled_from([OPEN, RUNNING, DONE, DROPPED, UNKNOWN, None]),
    owner=st.sampled_from([b"me", b"other"]),
    fingerprint=st.sampled_from([None, REQUEST, OTHER_REQUEST]),
    binding=st.sampled_from([None, BINDING]),
    by=st.sampled_from([ME, TOKEN, STRICT]),
    left=lives,
    waited=st.booleans(),
)
def test_every_finding_has_a_rule(record, owner, fingerprint, binding, by, left, waited):
    if record is not None:
        record = replace(record, owner=owner, fingerprint=fingerprint, binding=binding)
    judge(by, held(record, left), waited=waited)
    judge_late(by, held(record, left))


@pytest.mark.parametrize("judged", [judge, judge_late])
@given(value=st.binary(min_size=1), left=lives)
def test_any_bytes_in_the_store_have_a_rule(judged, value, left):
    judged(ME, Held(value, left))


@pytest.mark.parametrize("table", [ARRIVAL, LATE])
def test_every_state_has_a_rule_without_a_condition(table):
    anything = table[-1].when  # the last rule of both tables always fits
    assert {state for rule in table if rule.when is anything for state in rule.states} == set(State)


def test_every_state_but_unreadable_has_transitions():
    assert TRANSITIONS.keys() == set(State) - {State.UNREADABLE}


@pytest.mark.parametrize("left", [math.inf, RETENTION + 0.001, 1e9])
def test_a_record_without_end_or_with_more_left_than_written_is_never_taken_over(left):
    for record in (RUNNING, replace(RUNNING, on_unclear=OnUnclear.FAIL)):
        assert isinstance(judge(ME, held(record, left)), WaitFor)
        assert isinstance(judge_late(ME, held(record, left)), WaitFor)


@given(left=st.floats(0.001, RETENTION))
def test_a_record_without_a_ttl_is_never_taken_over(left):
    assert isinstance(judge(ME, held(replace(RUNNING, ttl=0.0), left)), WaitFor)


@given(left=st.floats(0, RETENTION))
def test_a_takeover_is_bound_to_the_lease_that_it_saw_run_out(left):
    match judge(ME, held(RUNNING, left)):
        case Claim(record, swap):
            assert left <= DEAD
            assert (record.attempt, swap.expected, swap.max_left) == (2, RUNNING.to_bytes(), DEAD)
        case verdict:
            assert left > DEAD
            assert isinstance(verdict, WaitFor)


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict"),
    [
        (OnUnclear.RERUN, OnUnclear.RERUN, Claim),
        (OnUnclear.RERUN, OnUnclear.FAIL, GiveUp),
        (OnUnclear.FAIL, OnUnclear.RERUN, GiveUp),
        (OnUnclear.FAIL, OnUnclear.FAIL, GiveUp),
    ],
)
def test_the_stricter_on_unclear_of_two_servers_applies(theirs, ours, verdict):
    record = replace(RUNNING, on_unclear=theirs)
    assert isinstance(judge(call(on_unclear=ours), held(record, DEAD)), verdict)


def test_a_token_is_claimed_in_one_swap_from_the_record_that_it_was_issued_with():
    issued = Record(state=State.OPEN, binding=BINDING)
    claim = TOKEN.first_claim()
    assert claim.swap.expected == issued.to_bytes()
    assert claim.record.binding == BINDING
    assert judge(TOKEN, held(issued)) == claim


@pytest.mark.parametrize("record", [OPEN, RUNNING, DONE, UNKNOWN], ids=lambda record: record.state.name)
@pytest.mark.parametrize("binding", [None, Binding(b"another", b"scope"), Binding(b"operation", b"another")])
def test_a_token_of_another_operation_or_scope_is_a_mismatch_in_every_state(record, binding):
    verdict = judge(TOKEN, held(replace(record, binding=binding)))
    assert verdict == rejected(Reason.TOKEN_MISMATCH, b"")


def test_a_used_token_is_replayed_and_never_claimed_again():
    assert isinstance(judge(TOKEN, held(replace(DONE, binding=BINDING))), Replay)
    assert judge(TOKEN, Held(None, 0.0), waited=True) == rejected(Reason.TOKEN_UNKNOWN, b"")


def test_a_claim_after_a_failure_is_for_the_same_request_and_counts_one_attempt_more():
    seen = Fingerprint(b"raw", b"of another version")
    claim = judge(ME, held(replace(OPEN, fingerprint=seen, attempt=4)))
    assert isinstance(claim, Claim)
    assert (claim.record.fingerprint, claim.record.attempt) == (seen, 5)


def test_a_record_without_a_fingerprint_takes_any_request():
    claim = judge(ME, held(replace(OPEN, fingerprint=None)))
    assert isinstance(claim, Claim)
    assert claim.record.fingerprint == REQUEST


def test_the_page_on_states_is_up_to_date():
    docs = Path(__file__).parents[2] / "docs"
    printed = subprocess.run(
        [sys.executable, str(docs / "print_states.py")], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert (docs / "states.md").read_text(encoding="utf-8") == printed, (
        "run: python docs/print_states.py > docs/states.md"
    )
