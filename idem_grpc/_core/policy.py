"""What a method's key means: which kind, for how long, and what an unclear end leads to.

A Policy says as much as its writer cares about. Policies are layered, and a field
is decided by the first layer that gives it.
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

    OPTIONAL: a call without a key runs unprotected. REQUIRED: it is refused.
    TOKEN: it is refused, and the key must be a token that the TokenService issued.
    """

    OPTIONAL = "optional"
    REQUIRED = "required"
    TOKEN = "token"


class OnOutage(Enum):
    """What becomes of a keyed call while the store is away.

    REFUSE: nothing runs. RUN: it runs, and may run twice.
    """

    REFUSE = "refuse"
    RUN = "run"


class OnCancel(Enum):
    """What becomes of a run whose caller goes away: by a cancel, a deadline or a lost connection.

    FINISH: it goes on as if the caller were there, and its answer is kept for the retry.
    CANCEL: it is told as it would be without us, and what it then makes of it is its end.
    """

    FINISH = "finish"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a method is protected. Fields that are not given are left to the next layer.

    Durations are timedeltas or seconds, kept to the millisecond.

    operation: what the key stands for; default the method's full name. Methods that
        share an operation share their keys.
    key: default KeyRule.OPTIONAL.
    retention: how long an answer is kept for duplicates; default 24 hours. At least
        four leases.
    lease: how long the process that runs a call may stay silent before others take it
        for dead; default 30 seconds. It is renewed three times a lease.
    wait: how long a duplicate waits for the running call before it is told
        IN_PROGRESS, and never past its own deadline; default 10 seconds.
    max_run: how long a run is protected; past it, its lease is no longer renewed and
        its end is unclear to others; default 1 hour.
    on_unclear: default OnUnclear.RERUN. A payment whose second run would do harm wants FAIL.
    on_outage: default OnOutage.REFUSE. RUN goes with neither OnUnclear.FAIL nor KeyRule.TOKEN.
    on_cancel: default OnCancel.FINISH. CANCEL is for handlers that must stop; being stopped
        is an unclear end.
    replay_errors: status codes, apart from OK, that are an answer to keep; default
        NOT_FOUND, ALREADY_EXISTS and FAILED_PRECONDITION.
    ignore: request fields, as dotted paths, that do not tell one request from another. A path
        cannot lead into a google.protobuf.Any.
    max_response_bytes: a larger answer is not kept, and its duplicates are told
        RESPONSE_NOT_KEPT; default 1 MiB. In a stream, a response counts for 16 bytes at
        least, and each further turn, where both sides stream, for 64.

    claim_rate: new keys of one scope in so many seconds, such as (600, 900); a call with one key
        more is refused with RESOURCE_EXHAUSTED, and nothing is run or kept. Duplicates are not
        counted, nor are tokens, which have a rate of their own. It costs up to two round trips for
        each new key. Default: (), which is no limit.

    Raises ValueError or TypeError for a value that makes no sense, saying what would.
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
            raise ValueError(f"Policy(operation={self.operation!r}): it has a lone surrogate: give a text")
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
    """A policy with every field decided, durations in seconds.

    ``key_fields`` makes the key of the request's own fields, if the contract has it so.
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
        """Decide every field by the first of ``layers`` that gives it, else by the defaults.

        ``method`` is "/pkg.Service/Method". Raises ValueError when the fields, put
        together, contradict each other.
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
    """What is wrong with two fields together, of those that are given; None if nothing is."""
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
            raise TypeError(f"Policy(ignore={fields!r}): {field!r} is no field: give dotted paths")


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
