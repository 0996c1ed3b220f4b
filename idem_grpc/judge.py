"""Every rule of the state machine, as data.

ARRIVAL says what a call does on what it finds under its key, LATE what an owner does
when it comes to keep an outcome and no longer finds its own record. In both, the
first rule that fits decides. TRANSITIONS and BY_HAND are what may follow what;
docs/states.md is printed from the four.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from idem_grpc.fingerprint import Fingerprint
from idem_grpc.outcome import Outcome
from idem_grpc.policy import KeyRule
from idem_grpc.problem import Problem, Reason
from idem_grpc.record import OnUnclear, Record, State
from idem_grpc.steps import TakeOver
from idem_grpc.swap import Held, Swap
from idem_grpc.verdicts import UNKNOWN_TTL, Call, GiveUp, Overwrite, Reject, Replay, Verdict, WaitFor


@dataclass(slots=True, unsafe_hash=True)
class Finding:
    """What a call found under its key, and what the call itself brings along.

    ``shown`` is the fingerprint of its request, as far as that is known. ``waited`` tells that this
    call has waited for a run before.
    """

    call: Call
    held: Held
    record: Record
    waited: bool
    shown: Fingerprint | None

    @property
    def lease_left(self) -> float:
        """Seconds until the owner may be taken for dead, on the store's clock.

        The record says what life it was written with, so what is left of it tells how
        long ago its owner last wrote. A record with more left than was written, or
        without an end, stays alive: its owner's claim is not ours to judge.
        """
        return self.held.ttl_left - self.max_left

    @property
    def max_left(self) -> float:
        """The most life that the record may have left for its lease to have run out."""
        return self.record.ttl - self.record.lease


@dataclass(slots=True, unsafe_hash=True)
class Rule:
    """In one of ``states``, if ``when`` holds, ``then`` is what follows."""

    states: tuple[State, ...]
    when: Callable[[Finding], bool]
    then: Callable[[Finding], Verdict]
    text: str


def judge(call: Call, held: Held, *, waited: bool = False) -> Verdict:
    """What a call does on finding ``held``."""
    finding = Finding(call, held, Record.from_bytes(held.value), waited, call.fingerprint)
    return _decide(ARRIVAL, finding)


def judge_late(call: Call, held: Held, shown: Fingerprint | None = None) -> Verdict:
    """What the owner of a finished run does on finding ``held`` instead of its own record.

    ``shown`` is the fingerprint of a request stream, which is known by then.
    """
    finding = Finding(call, held, Record.from_bytes(held.value), True, shown or call.fingerprint)
    return _decide(LATE, finding)


def left_unknown_by(call: Call, held: Held) -> bool:
    """Whether others took the call's own run for dead, which the call, alive, can still give back."""
    record = Record.from_bytes(held.value)
    return record.state is State.UNKNOWN and record.owner == call.owner


def _decide(table: tuple[Rule, ...], finding: Finding) -> Verdict:
    state = finding.record.state
    for rule in table:
        if state in rule.states and rule.when(finding):
            return rule.then(finding)
    raise AssertionError(f"no rule for {state}")


def _always(_: Finding) -> bool:
    return True


def _needs_token(finding: Finding) -> bool:
    return finding.call.rules.key is KeyRule.TOKEN


def _bound_elsewhere(finding: Finding) -> bool:
    return finding.record.binding != finding.call.binding


def _other_request(finding: Finding) -> bool:
    known, shown = finding.record.fingerprint, finding.shown
    return known is not None and shown is not None and not known.matches(shown)


def _waited(finding: Finding) -> bool:
    return finding.waited


def _alive(finding: Finding) -> bool:
    return finding.lease_left > 0


def _strict(finding: Finding) -> bool:
    return OnUnclear.FAIL in (finding.record.on_unclear, finding.call.rules.on_unclear)


def _mine(finding: Finding) -> bool:
    return finding.record.owner == finding.call.owner


def _dropped(finding: Finding) -> bool:
    return finding.record.outcome is not None and finding.record.outcome.messages_dropped


def _claim(finding: Finding) -> Verdict:
    return finding.call.claim(finding.record, finding.held.value)


def _take_over(finding: Finding) -> Verdict:
    return finding.call.claim(finding.record, finding.held.value, finding.max_left)


def _give_up(finding: Finding) -> Verdict:
    unknown = replace(finding.record, state=State.UNKNOWN)
    call, held = finding.call, finding.held
    swap = Swap(call.store_key, held.value, unknown.to_bytes(), UNKNOWN_TTL, finding.max_left)
    return GiveUp(swap, TakeOver(finding.record.owner, finding.record.lease))


def _overwrite(finding: Finding) -> Verdict:
    return Overwrite(finding.held.value)


def _overwrite_dead(finding: Finding) -> Verdict:
    return Overwrite(finding.held.value, finding.max_left)


def _replay(finding: Finding) -> Verdict:
    record = finding.record
    return Replay(record.outcome or Outcome(), record.owner, record.fingerprint)


def _wait(finding: Finding) -> Verdict:
    return WaitFor(finding.record.owner, finding.lease_left)


def _reject_stranger(_: Finding) -> Verdict:
    return Reject(Problem(Reason.TOKEN_MISMATCH))  # which is not told whether the token was used


def _share_failure(finding: Finding) -> Verdict:
    return Reject(Problem(Reason.IN_PROGRESS, is_free=True), finding.record.owner)


def _reject(reason: Reason) -> Callable[[Finding], Verdict]:
    return lambda finding: Reject(Problem(reason), finding.record.owner)


_ANY = (State.OPEN, State.RUNNING, State.DONE, State.UNKNOWN)
_UNREADABLE = Rule(
    (State.UNREADABLE,),
    _always,
    _reject(Reason.OUTCOME_UNKNOWN),
    "nobody can tell what it says: refuse until somebody has looked",
)

ARRIVAL = (
    Rule((State.ABSENT,), _needs_token, _reject(Reason.TOKEN_UNKNOWN), "an absent token is never run"),
    Rule(
        (State.ABSENT, State.OPEN),
        _waited,
        _share_failure,
        "the run that this call waited for left nothing: its failure is shared, not repeated",
    ),
    Rule((State.ABSENT,), _always, _claim, "never seen: claim"),
    _UNREADABLE,
    Rule(_ANY, _bound_elsewhere, _reject_stranger, "a token has one use and one owner"),
    Rule(_ANY, _other_request, _reject(Reason.KEY_REUSED), "one key stands for one request"),
    Rule((State.OPEN,), _always, _claim, "given back, or a token just issued: claim"),
    Rule((State.RUNNING,), _alive, _wait, "its owner lives: wait"),
    Rule((State.RUNNING,), _strict, _give_up, "its owner died, and the policy forbids another run"),
    Rule((State.RUNNING,), _always, _take_over, "its owner died: claim the next attempt"),
    Rule((State.DONE,), _dropped, _reject(Reason.RESPONSE_NOT_KEPT), "done; its answer was not kept"),
    Rule((State.DONE,), _always, _replay, "done: the same answer"),
    Rule((State.UNKNOWN,), _mine, _claim, "my own claim, taken for dead before it ran: claim again"),
    Rule((State.UNKNOWN,), _always, _reject(Reason.OUTCOME_UNKNOWN), "refuse until somebody has looked"),
)

LATE = (
    Rule((State.ABSENT, State.OPEN), _always, _overwrite, "nobody else ran it: keep"),
    _UNREADABLE,
    Rule(_ANY, _other_request, _reject(Reason.RESPONSE_NOT_KEPT), "the key has another request by now"),
    Rule((State.RUNNING,), _mine, _overwrite, "my own claim, which came late: keep"),
    Rule((State.UNKNOWN,), _mine, _overwrite, "my own end is clear after all: keep"),
    Rule((State.UNKNOWN,), _always, _reject(Reason.OUTCOME_UNKNOWN), "a later attempt ended unclear"),
    Rule((State.RUNNING,), _alive, _wait, "a later attempt runs: wait it out"),
    Rule((State.RUNNING,), _strict, _give_up, "a later owner died; no other run"),
    Rule((State.RUNNING,), _always, _overwrite_dead, "a later owner died: keep"),
    Rule((State.DONE,), _dropped, _reject(Reason.RESPONSE_NOT_KEPT), "done later; its answer was not kept"),
    Rule((State.DONE,), _always, _replay, "a later attempt is done: its answer stands"),
)

TRANSITIONS = {
    State.ABSENT: (State.OPEN, State.RUNNING, State.DONE),
    State.OPEN: (State.RUNNING, State.OPEN, State.DONE, State.ABSENT),
    State.RUNNING: (State.DONE, State.OPEN, State.UNKNOWN, State.RUNNING, State.ABSENT),
    State.DONE: (State.ABSENT,),
    State.UNKNOWN: (State.RUNNING, State.DONE, State.OPEN, State.ABSENT),
}

BY_HAND = {State.DONE: (State.DONE, State.OPEN)}
"""What may follow an outcome that a person gave, if a person corrects it."""
