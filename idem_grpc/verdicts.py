"""A keyed call, and what the judge can say of it."""

from dataclasses import dataclass

from idem_grpc.fingerprint import Fingerprint
from idem_grpc.outcome import Outcome
from idem_grpc.policy import Rules
from idem_grpc.problem import Problem
from idem_grpc.record import Binding, OnUnclear, Record, State
from idem_grpc.steps import TakeOver
from idem_grpc.swap import Swap

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
