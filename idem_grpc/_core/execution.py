"""What a handler can learn and say about its own run: ``current()``."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import Context, ContextVar, Token
from threading import Lock

from idem_grpc._core.clock import elapsed
from idem_grpc._core.digest import as_uuid, digest
from idem_grpc._core.judge import Call
from idem_grpc._core.policy import Rules
from idem_grpc._core.record import Record
from idem_grpc._core.steps import Ending, Outage, Reply
from idem_grpc._core.swap import Held, Swap, Swapped, renewal

RENEWALS_PER_LEASE = 3
PROBES_PER_RENEWAL = 4

Wake = Callable[[], object]

logger = logging.getLogger("idem_grpc")


class DerivedCall:
    """A call that a run makes downstream, and that gets a derived key."""

    __slots__ = ("is_over", "ordinal")

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.is_over = False

    def end(self) -> None:
        """Note that the call is over. Takes no lock, since it may run during garbage collection."""
        self.is_over = True


class DerivedCalls:
    """The downstream calls of a run, numbered by method and step, so that each gets its own key."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latest: dict[tuple[str, str], DerivedCall] = {}

    def begin(self, method: str, step: str) -> DerivedCall:
        """Begin a call to ``method`` in ``step``. Raises RuntimeError if one is still under way."""
        with self._lock:
            latest = self._latest.get((method, step))
            if latest is not None and not latest.is_over:
                raise RuntimeError(
                    f"a keyed handler calls {method} while it is calling it already, so chance would decide"
                    " which of the two gets which derived key. Name each of them with keys.step(…), and"
                    " cancel a stream that you leave before its end: it is under way until then"
                )
            call = DerivedCall(0 if latest is None else latest.ordinal + 1)
            self._latest[method, step] = call
            return call


class Lease:
    """For how long a run may take itself for the only one, on the clock of its own process.

    ``claim`` is the swap that it began with, which was sent at ``claimed`` on the clock ``elapsed``. It ends
    ``seconds`` after the last renewal that was acknowledged was sent, and ``max_run`` seconds after the
    claim was sent. A run that is not ``acknowledged`` began without its claim, and may start at any time.
    ``on_lost`` is called when it is known to be lost, perhaps more than once.
    """

    __slots__ = (
        *("_ends", "_is_taken", "_run_ends", "_sent", "acknowledged", "claim", "due", "is_over"),
        *("on_lost", "outcome_bytes", "seconds"),
    )

    def __init__(
        self,
        claim: Swap,
        seconds: float,
        max_run: float,
        claimed: float,
        *,
        acknowledged: bool = True,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.claim = claim
        self.seconds = seconds
        self.acknowledged = acknowledged
        self.on_lost = on_lost
        self.outcome_bytes = 0
        self.is_over = False
        self.due = claimed + seconds / RENEWALS_PER_LEASE
        """When it is to be renewed next."""
        self._ends = claimed + seconds
        self._run_ends = claimed + max_run
        self._is_taken = False
        self._sent = claimed

    @property
    def is_lost(self) -> bool:
        """Whether another process may be running the call by now."""
        return self._is_taken or elapsed() >= min(self._ends, self._run_ends)

    @property
    def may_start(self) -> bool:
        """Whether a handler may start under it: a quarter of it is left, in which it can be renewed."""
        left = min(self._ends, self._run_ends) - elapsed()
        return not self.acknowledged or (not self._is_taken and left >= self.seconds / 4)

    @property
    def run_left(self) -> float:
        """Seconds for which it may still be renewed."""
        return self._run_ends - elapsed()

    @property
    def interval(self) -> float:
        """Seconds in which the store is looked for, while it is away."""
        return self.seconds / (RENEWALS_PER_LEASE * PROBES_PER_RENEWAL)

    def swap(self) -> Swap | None:
        """The renewal to send now; None if it may not be renewed any more."""
        self._sent = elapsed()
        return renewal(self.claim) if self._sent < self._run_ends else None

    def run(self, seen: Swapped | Held | Outage | None) -> float | None:
        """Take in the answer to the renewal. Returns after how many seconds the next one is due, if any."""
        if self.is_over:  # and what the run wrote at its end has overtaken this renewal
            return None
        if isinstance(seen, Swapped):
            self._ends = self._sent + self.seconds
        elif isinstance(seen, Held):
            self._is_taken = True
        self.stalled()
        if seen is None or isinstance(seen, Held):
            return None
        return max(0.0, min(self.seconds / RENEWALS_PER_LEASE, self._run_ends - elapsed()))

    def stalled(self) -> None:
        """The store is away, and the lease was not renewed."""
        if self.is_lost:
            self.on_lost()
        if self.run_left <= 0:
            self.is_over = True

    def end(self) -> None:
        """The run is over: nothing is renewed any more."""
        self.is_over = True
        self.on_lost = _nothing


def _nothing() -> None:
    pass


class Execution(ABC):
    """One run of a keyed handler. Get it with ``current()``.

    key: the idempotency key as the caller sent it.
    operation: what the key stands for; the method's full name unless the policy says otherwise.
    scope: whose key it is, as the interceptor's ``scope`` gave it.
    attempt: 1 for the first run under this key, more after a run that left nothing.
        It fences off late writers; it does not make an effect happen exactly once.
    """

    __slots__ = ()
    key: str
    operation: str
    scope: str
    attempt: int

    @property
    @abstractmethod
    def lease_lost(self) -> bool:
        """Whether another process may be running this call by now.

        True once the lease could not be renewed in time, or ``max_run`` is over. A
        handler that finds it true should stop before its next effect.
        """

    @abstractmethod
    def keep(self) -> None:
        """Keep the answer of this run for every duplicate, whatever its status code."""

    @abstractmethod
    def release(self) -> None:
        """Say that this run had no effect: its answer is not kept, and a retry runs again."""

    @abstractmethod
    def derive(self, name: str) -> str:
        """A UUID that is the same in every attempt at this request, and differs by ``name``.

        Give it to a payment provider or a queue as *its* idempotency key. It is made
        of the record's name, the request and ``name``, so callers never share one. A request
        stream is not known while the call runs: its ids are those of the key alone.
        """


class Run(Call, Execution):
    """One keyed call, and its handler's run if it has one: what ``current()`` returns.

    ``reply`` is what it was answered, once it was. Duplicates in the same process ``join`` it.
    """

    __slots__ = (
        *("_calls", "_identity", "attempt", "began", "ending", "is_detached", "is_disowned"),
        *("is_over", "key", "lease", "reply", "scope", "waiters"),
    )

    lease: "Lease | None"
    ending: Ending | None
    reply: Reply | None

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.store_key = self.owner = self.rate_key = b""
        self.fingerprint = self.binding = None
        self.key = self.scope = ""
        self.attempt = 0
        self.began = 0.0
        self.lease = self.ending = self.reply = None
        self.is_over = self.is_disowned = self.is_detached = False
        self._identity = b""
        self._calls: DerivedCalls | None = None
        self.waiters: list[Wake] | None = None

    @property
    def operation(self) -> str:  # type: ignore[override]  # which nobody sets
        return self.rules.operation

    def starts(self, record: Record, lease: "Lease") -> None:
        """The handler is about to run, under ``record``."""
        self.attempt, self.lease, self.ending = record.attempt, lease, None
        self._identity = b"" if record.fingerprint is None else record.fingerprint.raw

    @property
    def lease_lost(self) -> bool:
        return self.lease is not None and self.lease.is_lost

    def keep(self) -> None:
        self.ending = Ending.DECIDED

    def release(self) -> None:
        self.ending = Ending.NOT_NOW

    def derive(self, name: str) -> str:
        bits = digest("derive", self.identity, name.encode(), size=16)
        return as_uuid(int.from_bytes(bits, "big"), version=8)

    @property
    def identity(self) -> bytes:
        """What stays the same over all attempts at one request under one store key."""
        return digest("request", self.store_key, self._identity)

    @property
    def calls(self) -> DerivedCalls:
        """The calls that its handler makes downstream."""
        calls = self._calls
        if calls is None:
            with _making:
                calls = self._calls = self._calls or DerivedCalls()
        return calls

    def join(self, wake: Wake) -> None:
        """Have ``wake`` called once the run is over, if it is at once. To be followed by ``leave``."""
        with _making:
            self.waiters = self.waiters or []
            self.waiters.append(wake)
        if self.is_over:  # and may not have seen this waiter
            wake()

    def leave(self, wake: Wake) -> None:
        """Forget a waiter, and so all that it holds."""
        with _making:
            if self.waiters and wake in self.waiters:
                self.waiters.remove(wake)

    def wake_waiters(self) -> None:
        """Wake the duplicates that wait: the run is over."""
        with _making:
            waiters, self.waiters = self.waiters, None
        for wake in waiters or ():
            try:
                wake()
            except Exception:  # the event loop of a waiter is closed: its call is over
                logger.debug("a duplicate could not be woken", exc_info=True)


_making = Lock()
"""Guards what is made for few runs only. It is held for a moment."""

_current: ContextVar[Run | None] = ContextVar("idem_grpc_execution", default=None)


def current() -> Execution | None:
    """The run that this code belongs to; None outside a keyed handler."""
    return _current.get()


current_run = _current.get
"""The same, for interceptors."""


def adopt(variables: Context) -> None:
    """Set the variables of this context as they are in that of a handler, but for ``current()``."""
    for variable, value in variables.items():
        if variable is not _current and variable.get(_UNSET) is not value:
            variable.set(value)


_UNSET = object()


enter = _current.set
"""Make a run the current one of this context. Returns the token for ``leave``."""


def leave(token: Token[Run | None]) -> None:
    """Make the run before it the current one again."""
    try:  # noqa: SIM105 -- which takes longer
        _current.reset(token)
    except ValueError:  # of another context: a coroutine that was dropped is collected anywhere
        pass
