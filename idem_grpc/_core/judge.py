"""The rules of the state machine, as data.

ARRIVAL says what a call does with the record that it finds under its key. LATE says what an owner does
that stores its outcome and no longer finds its own record. In both, the first rule that matches
decides. TRANSITIONS and BY_HAND list the state changes that are allowed. docs/states.md is
printed from the four.
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
"""Seconds for which an unclear end is kept: long enough for an operator to look at it."""


@dataclass(slots=True, eq=False)
class Call:
    """A keyed call, as the state machine sees it.

    store_key: the name of its record in the store.
    owner: a nonce of this call.
    fingerprint: None for a request stream, which is read while the call runs.
    binding: the binding that its token must have; None for a client's own key.
    rate_key: where new keys of its scope are counted, if its rules have a ``claim_rate``.
    """

    store_key: bytes
    owner: bytes
    fingerprint: Fingerprint | None
    rules: Rules
    binding: Binding | None = None
    rate_key: bytes = b""

    def first_claim(self) -> "Claim":
        """Return the claim of a key not used before. Most calls need no other."""
        unused = _UNUSED if self.binding is None else Record(state=State.OPEN, binding=self.binding)
        return self.claim(unused, None if self.binding is None else unused.to_bytes())

    def claim(self, found: Record, expected: bytes | None, max_left: float | None = None) -> "Claim":
        """Return the claim of the attempt after ``found``, which the store holds as ``expected``."""
        rules = self.rules
        is_strict = rules.on_unclear is OnUnclear.FAIL  # a dead owner must stay on record as long as UNKNOWN
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
        takeover = None if max_left is None else TakeOver(found.owner, found.lease)
        return Claim(record, swap, is_first, found.state is State.OPEN, takeover)


_UNUSED = Record(state=State.OPEN)


@dataclass(slots=True)
class Claim:
    """Swap ``record`` in, and run the handler if that succeeds.

    first_of_request: whether no earlier attempt at this request is on record.
    was_open: whether the key was given back before or, if it is a token, not used yet.
    takeover: the run whose lease has run out, if this claim takes over from one.
    ttl_left: seconds that the key had left to live when it was claimed.
    acknowledged: False for a call that runs although the store is unavailable.
    """

    record: Record
    swap: Swap
    first_of_request: bool
    was_open: bool = False
    takeover: TakeOver | None = None
    ttl_left: float = 0.0
    acknowledged: bool = True


@dataclass(slots=True, unsafe_hash=True)
class GiveUp:
    """Record as unclear the end of the run ``takeover``, whose lease has run out, and refuse the call."""

    swap: Swap
    takeover: TakeOver


@dataclass(slots=True, unsafe_hash=True)
class Overwrite:
    """Replace the record that was found with the late owner's outcome."""

    expected: bytes | None
    max_left: float | None = None


@dataclass(slots=True, unsafe_hash=True)
class Replay:
    """Reply with an outcome that was kept; ``owner`` is the run that made it.

    ``requests`` is the fingerprint of what it answers. A request stream has yet to be compared with it.
    """

    outcome: Outcome
    owner: bytes
    requests: Fingerprint | None


@dataclass(slots=True, unsafe_hash=True)
class Reject:
    """Refuse the call; ``owner`` is the run that prevents it, if any."""

    problem: Problem
    owner: bytes = b""


@dataclass(slots=True, unsafe_hash=True)
class WaitFor:
    """Wait for the run of ``owner``, whose lease ends in ``lease_left`` seconds unless renewed."""

    owner: bytes
    lease_left: float


Verdict = Claim | GiveUp | Overwrite | Replay | Reject | WaitFor


@dataclass(slots=True, unsafe_hash=True)
class Finding:
    """What a call found under its key, and the call itself.

    ``fingerprint`` is that of the call's request, as far as it is known. ``waited`` is True if this call has
    already waited for a run.
    """

    call: Call
    held: Held
    record: Record
    waited: bool
    fingerprint: Fingerprint | None

    @property
    def lease_left(self) -> float:
        """Seconds until the owner may be treated as dead, on the store's clock."""
        return self.record.lease_left(self.held.ttl_left)


@dataclass(slots=True, unsafe_hash=True)
class Rule:
    """In one of ``states``, if ``when`` holds, ``then`` returns the verdict.

    ``text`` describes the rule in docs/states.md.
    """

    states: tuple[State, ...]
    when: Callable[[Finding], bool]
    then: Callable[[Finding], Verdict]
    text: str


def judge(call: Call, held: Held, *, waited: bool = False) -> Verdict:
    """Return what a call does after finding ``held``."""
    finding = Finding(call, held, Record.from_bytes(held.value), waited, call.fingerprint)
    return _decide(ARRIVAL, finding)


def judge_late(call: Call, held: Held, fingerprint: Fingerprint | None = None) -> Verdict:
    """Return what the owner of a finished run does after finding ``held`` instead of its own record.

    ``fingerprint`` is that of a request stream, which is known by then.
    """
    finding = Finding(call, held, Record.from_bytes(held.value), True, fingerprint or call.fingerprint)
    return _decide(LATE, finding)


def left_unknown_by(call: Call, held: Held) -> bool:
    """Return whether another call recorded the end of this call's own run as UNKNOWN.

    This call is alive, so it can still give the key back.
    """
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
    known, own = finding.record.fingerprint, finding.fingerprint
    return known is not None and own is not None and not known.matches(own)


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
    return finding.call.claim(finding.record, finding.held.value, finding.record.max_left_of_dead)


def _give_up(finding: Finding) -> Verdict:
    unknown = replace(finding.record, state=State.UNKNOWN)
    call, held = finding.call, finding.held
    swap = Swap(call.store_key, held.value, unknown.to_bytes(), UNKNOWN_TTL, finding.record.max_left_of_dead)
    return GiveUp(swap, TakeOver(finding.record.owner, finding.record.lease))


def _overwrite(finding: Finding) -> Verdict:
    return Overwrite(finding.held.value)


def _overwrite_dead(finding: Finding) -> Verdict:
    return Overwrite(finding.held.value, finding.record.max_left_of_dead)


def _replay(finding: Finding) -> Verdict:
    record = finding.record
    return Replay(record.outcome or Outcome(), record.owner, record.fingerprint)


def _wait(finding: Finding) -> Verdict:
    return WaitFor(finding.record.owner, finding.lease_left)


def _reject_token_mismatch(_: Finding) -> Verdict:
    return Reject(Problem(Reason.TOKEN_MISMATCH))  # an owner would reveal whether the token was used


def _share_failure(finding: Finding) -> Verdict:
    return Reject(Problem(Reason.IN_PROGRESS, is_free=True), finding.record.owner)


def _reject(reason: Reason) -> Callable[[Finding], Verdict]:
    return lambda finding: Reject(Problem(reason), finding.record.owner)


_ANY = (State.OPEN, State.RUNNING, State.DONE, State.UNKNOWN)
_UNREADABLE = Rule(
    (State.UNREADABLE,),
    _always,
    _reject(Reason.OUTCOME_UNKNOWN),
    "unreadable: refuse until an operator has looked at it",
)

ARRIVAL = (
    Rule((State.ABSENT,), _needs_token, _reject(Reason.TOKEN_UNKNOWN), "no such token, or expired: refuse"),
    Rule(
        (State.ABSENT, State.OPEN),
        _waited,
        _share_failure,
        "the run that this call waited for left no outcome: share its failure, do not run again",
    ),
    Rule((State.ABSENT,), _always, _claim, "never seen: claim"),
    _UNREADABLE,
    Rule(_ANY, _bound_elsewhere, _reject_token_mismatch, "a token of another operation or scope: refuse"),
    Rule(_ANY, _other_request, _reject(Reason.KEY_REUSED), "the key of another request: refuse"),
    Rule((State.OPEN,), _always, _claim, "given back, or a token just issued: claim"),
    Rule((State.RUNNING,), _alive, _wait, "its owner is alive: wait"),
    Rule(
        (State.RUNNING,),
        _strict,
        _give_up,
        "its owner died, and the policy forbids another run: record UNKNOWN",
    ),
    Rule((State.RUNNING,), _always, _take_over, "its owner died: claim the next attempt"),
    Rule((State.DONE,), _dropped, _reject(Reason.RESPONSE_NOT_KEPT), "done, answer not kept: refuse"),
    Rule((State.DONE,), _always, _replay, "done: replay its answer"),
    Rule((State.UNKNOWN,), _mine, _claim, "its own claim, taken for dead before it ran: claim again"),
    Rule(
        (State.UNKNOWN,),
        _always,
        _reject(Reason.OUTCOME_UNKNOWN),
        "unclear end: refuse until an operator has looked at it",
    ),
)

LATE = (
    Rule((State.ABSENT, State.OPEN), _always, _overwrite, "no other run: keep the outcome"),
    _UNREADABLE,
    Rule(_ANY, _other_request, _reject(Reason.RESPONSE_NOT_KEPT), "now the key of another request: refuse"),
    Rule((State.RUNNING,), _mine, _overwrite, "its own claim, which arrived late: keep the outcome"),
    Rule((State.UNKNOWN,), _mine, _overwrite, "its own end, which is clear after all: keep the outcome"),
    Rule((State.UNKNOWN,), _always, _reject(Reason.OUTCOME_UNKNOWN), "a later attempt ended unclear: refuse"),
    Rule((State.RUNNING,), _alive, _wait, "a later attempt is running: wait"),
    Rule(
        (State.RUNNING,),
        _strict,
        _give_up,
        "a later owner died, and the policy forbids another run: record UNKNOWN",
    ),
    Rule((State.RUNNING,), _always, _overwrite_dead, "a later owner died: keep the outcome"),
    Rule(
        (State.DONE,),
        _dropped,
        _reject(Reason.RESPONSE_NOT_KEPT),
        "a later attempt is done, answer not kept: refuse",
    ),
    Rule((State.DONE,), _always, _replay, "a later attempt is done: replay its answer"),
)

TRANSITIONS = {
    State.ABSENT: (State.OPEN, State.RUNNING, State.DONE),
    State.OPEN: (State.RUNNING, State.OPEN, State.DONE, State.ABSENT),
    State.RUNNING: (State.DONE, State.OPEN, State.UNKNOWN, State.RUNNING, State.ABSENT),
    State.DONE: (State.ABSENT,),
    State.UNKNOWN: (State.RUNNING, State.DONE, State.OPEN, State.ABSENT),
}

BY_HAND = {State.DONE: (State.DONE, State.OPEN)}
"""Further transitions, allowed only from an outcome that an operator set, to correct it."""
