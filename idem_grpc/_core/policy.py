"""Policies: which calls need a key, how long answers are kept, and what follows an unclear end.

A Policy sets only the fields that its writer chooses. Policies are layered, and the first layer that
gives a field decides it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from idem_grpc._core.checks import StatusCode, codes_of, rate_of, seconds_of, whole_number
from idem_grpc._core.durations import Duration, in_seconds
from idem_grpc._core.keys import FromRequest, can_be_encoded
from idem_grpc._core.outcome import Code
from idem_grpc._core.record import OnUnclear


class KeyRule(Enum):
    """Which calls need a key.

    OPTIONAL: a call without a key runs unprotected.
    REQUIRED: a call without a key is refused.
    TOKEN: a call is refused unless its key is a token that the TokenService issued.
    """

    OPTIONAL = "optional"
    REQUIRED = "required"
    TOKEN = "token"


class OnOutage(Enum):
    """What happens to a keyed call while the store is unavailable.

    REFUSE: the call is refused, and nothing runs. RUN: the call runs, and may run twice.
    """

    REFUSE = "refuse"
    RUN = "run"


class OnCancel(Enum):
    """What happens to a run whose caller leaves, by a cancel, a deadline or a lost connection.

    FINISH: the run goes on as if the caller were there, and its answer is kept for the retry.
    CANCEL: the handler is cancelled as it would be without the interceptor, and the way it then ends is
        the end of the run.
    """

    FINISH = "finish"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a method is protected. Fields that are not given are left to the next layer.

    Durations are timedeltas or numbers of seconds, rounded to the millisecond.

    operation: the operation that a key stands for; default the method's full name. Methods with the
        same operation share their keys.
    key: which calls need a key; default KeyRule.OPTIONAL.
    retention: how long an answer is kept for duplicates; default 24 hours. At least four leases.
    lease: how long the process that runs a call may stay silent before others treat it as dead;
        default 30 seconds. It is renewed three times a lease.
    wait: how long a duplicate waits for the running call before it is refused with IN_PROGRESS;
        default 10 seconds. It never waits past its own deadline.
    max_run: how long a run is protected; default 1 hour, at least one lease. After that its lease is no
        longer renewed, and its end is unclear to others.
    on_unclear: what follows an unclear end; default OnUnclear.RERUN. Use FAIL where a second run would
        do harm, as with a payment.
    on_outage: what happens while the store is unavailable; default OnOutage.REFUSE. RUN cannot be
        combined with OnUnclear.FAIL or KeyRule.TOKEN.
    on_cancel: what happens when the caller leaves; default OnCancel.FINISH. CANCEL is for handlers that
        must stop; a run that is stopped has an unclear end.
    replay_errors: status codes other than OK whose answers are kept for duplicates; default NOT_FOUND,
        ALREADY_EXISTS and FAILED_PRECONDITION.
    ignore: request fields, as dotted paths, that are left out when requests are compared; default none.
        A path cannot lead into a google.protobuf.Any.
    max_response_bytes: the size up to which an answer is kept; default 1 MiB. Duplicates of a call with
        a larger answer are refused with RESPONSE_NOT_KEPT. In a stream, a response counts for at least
        16 bytes, and where both sides stream, each further turn counts for 64.
    claim_rate: how many new keys a scope may use in how many seconds, such as (600, 900); default (),
        which is no limit. A call with one key more is refused with RESOURCE_EXHAUSTED, and nothing is
        run or kept. Duplicates are not counted, nor are tokens, which have a rate of their own. It
        costs up to two round trips to the store for each new key.

    Raises TypeError or ValueError for an invalid value, saying what to give.
    """

    operation: str | None = None
    key: KeyRule | None = None
    retention: Duration | None = None
    lease: Duration | None = None
    wait: Duration | None = None
    max_run: Duration | None = None
    on_unclear: OnUnclear | None = None
    on_outage: OnOutage | None = None
    on_cancel: OnCancel | None = None
    replay_errors: Collection[StatusCode | str] | None = None
    ignore: Collection[str] | None = None
    max_response_bytes: int | None = None
    claim_rate: tuple[int, Duration] | tuple[()] | None = None

    def __post_init__(self) -> None:
        for name, smallest in (("retention", 0.001), ("lease", 0.001), ("max_run", 0.001), ("wait", 0.0)):
            duration = getattr(self, name)
            if duration is not None:
                seconds_of("Policy", name, duration, smallest=smallest)
        choices = {"key": KeyRule, "on_unclear": OnUnclear, "on_outage": OnOutage, "on_cancel": OnCancel}
        for name, kind in choices.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"Policy({name}={value!r}): give a member of {kind.__name__}")
        if self.operation is not None and not isinstance(self.operation, str):
            raise TypeError(f"Policy(operation={self.operation!r}): give a name, such as 'payments.charge'")
        if self.operation == "":
            raise ValueError('Policy(operation=""): leave it out to use the method\'s full name')
        if self.operation is not None and not can_be_encoded(self.operation):
            raise ValueError(f"Policy(operation={self.operation!r}): give a text without lone surrogates")
        if self.max_response_bytes is not None:
            whole_number("Policy", "max_response_bytes", self.max_response_bytes, smallest=0)
        if self.claim_rate is not None and self.claim_rate != ():
            rate_of("Policy", "claim_rate", self.claim_rate)
        if self.ignore is not None:
            _check_fields(self.ignore)
        if self.replay_errors is not None:
            codes_of("Policy(replay_errors=…)", self.replay_errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy with every field set, and durations in seconds.

    ``key_fields`` makes the key from the request's own fields, if the contract declares it.
    """

    operation: str
    key: KeyRule
    retention: float
    lease: float
    wait: float
    max_run: float
    on_unclear: OnUnclear
    on_outage: OnOutage
    on_cancel: OnCancel
    replay_errors: frozenset[Code]
    ignore: tuple[str, ...]
    max_response_bytes: int
    claim_rate: tuple[int, float] | None = None
    key_fields: FromRequest | None = None

    @classmethod
    def of(cls, method: str, layers: Iterable[Policy]) -> "Rules":
        """Set every field from the first of ``layers`` that gives it, else from the defaults.

        ``method`` is "/pkg.Service/Method". Raises ValueError if fields contradict each other.
        """
        stack = (*layers, BUILT_IN, Policy(operation=method))

        def decided(field: str) -> Any:
            values = (getattr(layer, field) for layer in stack)
            return next(value for value in values if value is not None)

        claim_rate = decided("claim_rate")
        rules = cls(
            operation=decided("operation"),
            key=decided("key"),
            retention=in_seconds(decided("retention")),
            lease=in_seconds(decided("lease")),
            wait=in_seconds(decided("wait")),
            max_run=in_seconds(decided("max_run")),
            on_unclear=decided("on_unclear"),
            on_outage=decided("on_outage"),
            on_cancel=decided("on_cancel"),
            replay_errors=codes_of("Policy(replay_errors=…)", decided("replay_errors")),
            ignore=tuple(sorted(set(decided("ignore")))),
            max_response_bytes=decided("max_response_bytes"),
            claim_rate=rate_of("Policy", "claim_rate", claim_rate) if claim_rate else None,
        )
        if wrong := contradiction(rules):
            raise ValueError(f"{method}: {wrong}")
        return rules


def contradiction(given: "Policy | Rules") -> str | None:
    """Return what is wrong if two fields that are given contradict each other; None if nothing is."""
    seconds = (given.retention, given.lease, given.max_run)
    retention, lease, max_run = (None if length is None else in_seconds(length) for length in seconds)
    if retention is not None and lease is not None and retention < 4 * lease:
        return (
            f"retention ({retention:g} s) must be at least four leases (of {lease:g} s each), so that"
            " a dead owner is remembered"
        )
    if max_run is not None and lease is not None and max_run < lease:
        return f"max_run ({max_run:g} s) must be at least one lease ({lease:g} s)"
    if given.on_outage is OnOutage.RUN and (given.on_unclear is OnUnclear.FAIL or given.key is KeyRule.TOKEN):
        return (
            "OnOutage.RUN may run a call twice, which OnUnclear.FAIL and KeyRule.TOKEN forbid:"
            " use OnOutage.REFUSE"
        )
    return None


def _check_fields(fields: object) -> None:
    if isinstance(fields, (str, bytes)) or not isinstance(fields, Collection):
        raise TypeError(f"Policy(ignore={fields!r}): give a collection of fields, not one string")
    for field in fields:
        if not isinstance(field, str) or not field:
            raise TypeError(f"Policy(ignore={fields!r}): {field!r} is not a field: give dotted paths")


BUILT_IN = Policy(
    key=KeyRule.OPTIONAL,
    retention=timedelta(hours=24),
    lease=timedelta(seconds=30),
    wait=timedelta(seconds=10),
    max_run=timedelta(hours=1),
    on_unclear=OnUnclear.RERUN,
    on_outage=OnOutage.REFUSE,
    on_cancel=OnCancel.FINISH,
    replay_errors=(Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION),
    ignore=(),
    max_response_bytes=1024 * 1024,
    claim_rate=(),
)
