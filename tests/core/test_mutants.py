"""The walk finds faults: rules and steps that are broken on purpose, one at a time."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from idem_grpc._core import judge
from idem_grpc._core.flow import flow
from idem_grpc._core.judge import ARRIVAL, LATE, Call, Finding, Overwrite, Rule, Verdict
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.policy import OnOutage
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import OnUnclear, Record, State
from idem_grpc._core.steps import Ended, Ending, Event, Execute, Outage, Reply, Step, Steps, TakeOver, Waited
from idem_grpc._core.swap import Held, Swap, Swapped
from tests.core.history import Flow
from tests.core.walk import Faults, Scenario, Walk

FAULTS = Faults(lost=2, lapses=2, crashes=1, failures=2, cancels=1, all=4)
ALL = tuple(State)[2:]


def two_calls(on_unclear: OnUnclear = OnUnclear.RERUN, on_outage: OnOutage = OnOutage.REFUSE) -> Scenario:
    return Scenario((0, 1), (on_unclear,) * 2, FAULTS, on_outage=on_outage)


RERUN, FAIL = two_calls(), two_calls(OnUnclear.FAIL)
RUN = two_calls(on_outage=OnOutage.RUN)
RESENT = Scenario((0, 1), (OnUnclear.FAIL,) * 2, Faults(lost=1, resent=1, lapses=1))
LATE_START = Scenario((0, 1), (OnUnclear.RERUN,) * 2, Faults(late=1))
AWAY = Scenario((0, 1), (OnUnclear.RERUN,) * 2, Faults(outages=1, lost=1))


def without(table: tuple[Rule, ...], text: str) -> tuple[Rule, ...]:
    left = tuple(rule for rule in table if not rule.text.startswith(text))
    assert len(left) == len(table) - 1
    return left


def claim_anyway(finding: Finding) -> Verdict:
    return finding.call.claim(finding.record, finding.held.value)


def overwrite_anyway(finding: Finding) -> Verdict:
    return Overwrite(finding.held.value)


def first(state: State, then: Callable[[Finding], Verdict], table: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (Rule((state,), lambda _: True, then, "a mutant"), *table)


TABLES = [
    (
        "waiting for a run that failed is ignored",
        RERUN,
        {"ARRIVAL": without(ARRIVAL, "the run that this call waited for")},
        "waited for a run, and repeats it",
    ),
    (
        "a dead run is repeated where that is forbidden",
        FAIL,
        {"ARRIVAL": without(ARRIVAL, "its owner died, and the policy")},
        "FAIL: . runs, and . ran before",
    ),
    (
        "an unclear end is claimed like a clear one",
        FAIL,
        {"ARRIVAL": first(State.UNKNOWN, claim_anyway, ARRIVAL)},
        "UNKNOWN -> RUNNING by another than its owner",
    ),
    (
        "its own claim is refused as another's unclear end",
        RESENT,
        {"ARRIVAL": without(ARRIVAL, "its own claim, taken for dead")},
        "is refused for its own claim",
    ),
    (
        "a living run is claimed",
        RERUN,
        {"ARRIVAL": first(State.RUNNING, claim_anyway, ARRIVAL)},
        "RUNNING -> RUNNING overtakes an owner",
    ),
    (
        "an answer is replaced by another run",
        RERUN,
        {"ARRIVAL": first(State.DONE, claim_anyway, ARRIVAL)},
        "DONE -> RUNNING is not in TRANSITIONS",
    ),
    (
        "a late owner overwrites a living successor",
        RERUN,
        {"LATE": first(State.RUNNING, overwrite_anyway, LATE)},
        "RUNNING -> DONE overtakes an owner",
    ),
    (
        "a late owner overwrites its successor's answer",
        RERUN,
        {"LATE": first(State.DONE, overwrite_anyway, LATE)},
        "DONE -> DONE is not in TRANSITIONS",
    ),
    (
        "a late owner does not clear up its own end",
        FAIL,
        {"LATE": without(LATE, "its own end, which is clear after all")},
        "an outcome was decided, and is not kept",
    ),
    (
        "a late owner does not know its own claim",
        RUN,
        {"LATE": without(LATE, "its own claim, which arrived late")},
        "this path has no end",
    ),
]


@pytest.mark.parametrize(("scenario", "tables", "law"), [m[1:] for m in TABLES], ids=[m[0] for m in TABLES])
def test_a_broken_table_breaks_a_law(monkeypatch, scenario, tables, law):
    for name, table in tables.items():
        monkeypatch.setattr(judge, name, table)
    with pytest.raises(AssertionError, match=law):
        Walk(scenario).run()


Change = Callable[[Call, Step], Step]
Hear = Callable[[Call, Step, Event], Event]


def altered(change: Change = lambda _, step: step, hear: Hear = lambda _, __, event: event) -> Flow:
    """A flow whose steps, or the answers to them, are changed."""

    def mutant(call: Call) -> Steps:
        steps = flow(call)
        event: Event = None
        try:
            while True:
                step = change(call, steps.send(event))
                event = hear(call, step, (yield step))
        except StopIteration:
            return

    return mutant


def cut_short(is_over: Callable[[list[Step], list[Event]], bool]) -> Flow:
    """A flow that stops early."""

    def mutant(call: Call) -> Steps:
        steps = flow(call)
        asked: list[Step] = []
        heard: list[Event] = [None]
        try:
            while not is_over(asked, heard):
                asked.append(steps.send(heard[-1]))
                heard.append((yield asked[-1]))
        except StopIteration:
            return

    return mutant


def state(value: bytes | None) -> State:
    return Record.from_bytes(value).state


def is_reply(step: Step, reason: Reason) -> bool:
    return isinstance(step, Reply) and step.answer == Problem(reason)


def reply_at(asked: list[Step], reason: Reason) -> int:
    return next((at for at, step in enumerate(asked) if is_reply(step, reason)), len(asked))


def never_bounded(_: Call, step: Step) -> Step:
    if isinstance(step, Swap) and step.max_left is not None:
        return replace(step, max_left=None)
    return step


def gives_up_unbounded(call: Call, step: Step) -> Step:
    is_give_up = isinstance(step, Swap) and state(step.new) is State.UNKNOWN
    return never_bounded(call, step) if is_give_up else step


def deletes_instead_of_opening(_: Call, step: Step) -> Step:
    if isinstance(step, Swap) and state(step.new) is State.OPEN:
        return replace(step, new=None)
    return step


def takes_silence_for_yes(_: Call, step: Step, event: Event) -> Event:
    is_claim = isinstance(step, Swap) and state(step.new) is State.RUNNING
    return Swapped(0.0) if is_claim and isinstance(event, Outage) else event


def takes_no_for_yes(_: Call, step: Step, event: Event) -> Event:
    is_claim = isinstance(step, Swap) and state(step.new) is State.RUNNING
    return Swapped(0.0) if is_claim and isinstance(event, Held) else event


def takes_over_at_once(_: Call, step: Step, event: Event) -> Event:
    return Waited() if isinstance(step, TakeOver) else event


def starts_without_a_lease(_: Call, step: Step) -> Step:
    return replace(step, acknowledged=False) if isinstance(step, Execute) else step


def definite_after(asked: list[Step], heard: list[Event], reason: Reason) -> int:
    """How many swaps the store has answered since a refusal for ``reason``."""
    return sum(isinstance(event, (Swapped, Held)) for event in heard[reply_at(asked, reason) + 1 :])


def replied_failure(asked: list[Step], heard: list[Event]) -> bool:
    has_ended = any(isinstance(event, Ended) for event in heard)
    return has_ended and isinstance(asked[-1], Reply) and isinstance(asked[-1].answer, Outcome)


def answers_first(call: Call) -> Steps:
    """Replies with a decided outcome before it is kept."""
    steps = flow(call)
    event: Event = None
    has_replied = False
    try:
        while True:
            step = steps.send(event)
            if has_replied and isinstance(step, Reply):
                event = None
                continue
            event = yield step
            if isinstance(event, Ended) and event.ending is Ending.DECIDED:
                yield Reply(event.outcome, call.owner)
                has_replied = True
    except StopIteration:
        return


def answers_pending_calls(call: Call) -> Steps:
    """Replies with the outcome where it should say that the outcome is not stored yet."""
    outcome = Outcome()

    def hear(_: Call, __: Step, event: Event) -> Event:
        nonlocal outcome
        outcome = event.outcome if isinstance(event, Ended) else outcome
        return event

    def change(_: Call, step: Step) -> Step:
        return Reply(outcome, call.owner) if is_reply(step, Reason.OUTCOME_PENDING) else step

    return altered(change, hear)(call)


def after_its_end(more: Callable[[Call, Execute], Steps]) -> Flow:
    """A flow that goes on when a run has failed and its key was given back."""

    def mutant(call: Call) -> Steps:
        steps = flow(call)
        event: Event = None
        execute: Execute | None = None
        has_failed = False
        try:
            while True:
                step = steps.send(event)
                execute = step if isinstance(step, Execute) else execute
                event = yield step
                has_failed |= isinstance(event, Ended) and event.ending is not Ending.DECIDED
        except StopIteration:
            if has_failed and execute is not None:
                yield from more(call, execute)

    return mutant


def claims_again(call: Call, execute: Execute) -> Steps:
    seen = yield execute.swap
    if isinstance(seen, Held):
        yield call.claim(Record.from_bytes(seen.value), seen.value).swap


def releases_whoever_runs(call: Call, execute: Execute) -> Steps:
    seen = yield Swap(call.store_key, None, None, execute.swap.ttl)
    if isinstance(seen, Held) and state(seen.value) is State.RUNNING:
        opened = Record(state=State.OPEN, attempt=execute.record.attempt, owner=call.owner)
        yield Swap(call.store_key, seen.value, opened.to_bytes(), execute.swap.ttl)


def answers_again(call: Call, execute: Execute) -> Steps:
    yield Reply(Problem(Reason.IN_PROGRESS), execute.record.owner)


def nothing_more(_: Call, __: Execute) -> Steps:
    yield from ()


unavailable = Reason.STORE_UNAVAILABLE
FLOWS = [
    ("a takeover does not look at the lease", RERUN, altered(never_bounded), "overtakes an owner"),
    (
        "a run is given up without a look at its lease",
        FAIL,
        altered(gives_up_unbounded),
        "RUNNING -> UNKNOWN overtakes an owner",
    ),
    (
        "a claim is taken back by deleting",
        RERUN,
        altered(deletes_instead_of_opening),
        "which lives, is left behind",
    ),
    (
        "a claim that others took for dead is not taken back",
        RESENT,
        cut_short(lambda asked, heard: definite_after(asked, heard, unavailable) == 1),
        "UNKNOWN of ., which never ran",
    ),
    (
        "a run is taken over as soon as the store is back",
        AWAY,
        altered(hear=takes_over_at_once),
        "ran before with its lease alive",
    ),
    (
        "a handler is started although its lease has run out",
        LATE_START,
        altered(starts_without_a_lease),
        "runs, and the store holds",
    ),
    (
        "a lost claim is not given back",
        RERUN,
        cut_short(lambda asked, _: bool(asked) and is_reply(asked[-1], unavailable)),
        "which lives, is left behind",
    ),
    (
        "a claim that may still come is not fenced off",
        RERUN,
        cut_short(lambda asked, heard: definite_after(asked, heard, unavailable) == 1),
        "which lives, is left behind",
    ),
    (
        "a claim overtakes the fence",
        RERUN,
        cut_short(lambda asked, heard: definite_after(asked, heard, unavailable) == 2),
        "which lives, is left behind",
    ),
    ("no reply counts as a claim", RERUN, altered(hear=takes_silence_for_yes), "runs without its claim"),
    ("a refused claim is executed", RERUN, altered(hear=takes_no_for_yes), "runs, and the store holds"),
    ("the answer goes out first", RERUN, answers_first, "answers with what is not kept"),
    ("the answer does not wait for the store", RERUN, answers_pending_calls, "answers with what is not kept"),
    (
        "an outcome is not kept once its call is answered",
        RERUN,
        cut_short(lambda asked, _: bool(asked) and is_reply(asked[-1], Reason.OUTCOME_PENDING)),
        "which lives, is left behind",
    ),
    ("a release is not sent again", RERUN, cut_short(replied_failure), "which lives, is left behind"),
    ("a failed run is followed by another", RERUN, after_its_end(claims_again), "claims after Execute"),
    ("a release does not check the owner", RERUN, after_its_end(releases_whoever_runs), "overtakes an owner"),
    ("a call is answered twice", RERUN, after_its_end(answers_again), "answers twice"),
]


@pytest.mark.parametrize(("scenario", "mutant", "law"), [m[1:] for m in FLOWS], ids=[m[0] for m in FLOWS])
def test_a_broken_flow_breaks_a_law(scenario, mutant, law):
    with pytest.raises(AssertionError, match=law):
        Walk(scenario, mutant).run()


def test_a_wrapped_flow_without_a_change_passes():
    """The mutants fail for their changes, not for the wrapping."""
    small = replace(RERUN, faults=Faults(lost=1, lapses=1, failures=1))
    assert Walk(small, altered()).run() == Walk(small, cut_short(lambda _, __: False)).run()
    assert Walk(small, after_its_end(nothing_more)).run() == Walk(small).run()
