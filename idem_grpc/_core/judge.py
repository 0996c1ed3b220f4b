"""Every rule of the state machine, as data.

ARRIVAL says what a call does on what it finds under its key, LATE what an owner does
when it comes to keep an outcome and no longer finds its own record. In both, the
first rule that fits decides. TRANSITIONS and BY_HAND are what may follow what;
docs/states.md is printed from the four.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Outcome
from idem_grpc._core.policy import KeyRule, Rules
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from idem_grpc._core.steps import TakeOver
from idem_grpc._core.swap import Held, Swap

UNKNOWN_TTL = 30 * 24 * 3600.0
"""How long an unclear end is remembered, in seconds: long enough for somebody to look."""


@dataclass(slots=True, eq=False)
class Call:
    """A keyed call, as the state machine sees it.

    ``store_key`` is the record's name in the store, ``owner`` a nonce of this call's own,
    ``binding`` what its token must be good for (None for a client's own key).
    ``fingerprint`` is None for a request stream, which is read while the call runs. ``rate_key``
    is where its scope's new keys are counted, if its rules have a ``claim_rate``.
    """

    store_key: bytes
    owner: bytes
    fingerprint: Fingerprint | None
    rules: Rules
    binding: Binding | None = None
    rate_key: bytes = b""

    def first_claim(self) -> "Claim":
        """The claim that fits a key not used before: most calls need no other."""
        unused = _UNUSED if self.binding is None else Record(state=State.OPEN, binding=self.binding)
        return self.claim(unused, None if self.binding is None else unused.to_bytes())

    def claim(self, found: Record, expected: bytes | None, max_left: float | None = None) -> "Claim":
        """The next attempt after ``found``, which the store holds as ``expected``."""
        rules = self.rules
        is_strict = rules.on_unclear is OnUnclear.FAIL  # then a dead owner is not forgotten earlier
        record = Record(
            state=State.RUNNING,
            attempt=found.attempt + 1,
            owner=self.owner,
            fingerprint=None if self.fingerprint is None else found.fingerprint or self.fingerprint,
            lease=rules.lease,
            ttl=max(rules.retention, UNKNOWN_TTL) if is_strict else rules.retention,
            on_unclear=rules.on_unclear,
            binding=self.binding,
        )
        swap = Swap(self.store_key, expected, record.to_bytes(), record.ttl, max_left)
        is_first = found.fingerprint is None or (found.attempt == 1 and found.owner == self.owner)
        over = None if max_left is None else TakeOver(found.owner, found.lease)
        return Claim(record, swap, is_first, found.state is State.OPEN, over)


_UNUSED = Record(state=State.OPEN)


@dataclass(slots=True)
class Claim:
    """Swap ``record`` in, and run the handler if that succeeds.

    ``first_of_request``: no earlier attempt at this request is on record. ``was_open``: the key
    was given back or, if it is a token, not used yet. ``over``: the run whose lease has run out,
    if this takes over from one. ``left``: seconds that the key had left to live when it was claimed.
    ``acknowledged`` is False for a call that runs although the store is away.
    """

    record: Record
    swap: Swap
    first_of_request: bool
    was_open: bool = False
    over: TakeOver | None = None
    left: float = 0.0
    acknowledged: bool = True


@dataclass(slots=True, unsafe_hash=True)
class GiveUp:
    """Write that the end of the run ``over``, whose lease has run out, is unclear; refuse the call."""

    swap: Swap
    over: TakeOver


@dataclass(slots=True, unsafe_hash=True)
class Overwrite:
    """Put the late owner's outcome in the place of what was found."""

    expected: bytes | None
    max_left: float | None = None


@dataclass(slots=True, unsafe_hash=True)
class Replay:
    """Answer with an outcome that was kept; ``owner`` is the run that made it.

    ``requests`` is what it answers, of which a request stream has yet to show that it is the same.
    """

    outcome: Outcome
    owner: bytes
    requests: Fingerprint | None


@dataclass(slots=True, unsafe_hash=True)
class Reject:
    """Refuse the call; ``owner`` is the run that stands in its way, if any."""

    problem: Problem
    owner: bytes = b""


@dataclass(slots=True, unsafe_hash=True)
class WaitFor:
    """Wait for the run of ``owner``, whose lease lasts ``lease_left`` seconds unless renewed."""

    owner: bytes
    lease_left: float


Verdict = Claim | GiveUp | Overwrite | Replay | Reject | WaitFor


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
