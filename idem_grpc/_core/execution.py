"""The run of a keyed handler, which the handler gets with ``current()``."""

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
    """A downstream call of a run, which gets a derived key."""

    __slots__ = ("is_over", "ordinal")

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.is_over = False

    def end(self) -> None:
        """Mark the call as over. Takes no lock, because it may run during garbage collection."""
        self.is_over = True


class DerivedCalls:
    """The downstream calls of a run, numbered by method and step so that each gets its own key."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latest: dict[tuple[str, str], DerivedCall] = {}

    def begin(self, method: str, step: str) -> DerivedCall:
        """Begin a call to ``method`` in ``step``.

        Raises RuntimeError if an earlier one is still in progress.
        """
        with self._lock:
            latest = self._latest.get((method, step))
            if latest is not None and not latest.is_over:
                raise RuntimeError(
                    f"a keyed handler calls {method} while it is calling it already, so chance would decide"
                    " which of the two gets which derived key: give each its own keys.step(…), and cancel a"
                    " stream that you leave before its end, since it is in progress until then"
                )
            call = DerivedCall(0 if latest is None else latest.ordinal + 1)
            self._latest[method, step] = call
            return call


class Lease:
    """The time for which a run may act as the only run of its call, on the clock of its own process.

    ``claim`` is the swap that claimed the key. It was sent at ``claimed`` on the clock ``elapsed``. The lease
    ends ``seconds`` after the last acknowledged renewal was sent, and ``max_run`` seconds after the claim
    was sent at the latest. ``acknowledged`` is False for a run that began without a confirmed claim; such a
    run may start at any time. ``on_lost`` is called when the lease is known to be lost, perhaps repeatedly.
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
        """When the next renewal is due, on the clock ``elapsed``."""
        self._ends = claimed + seconds
        self._run_ends = claimed + max_run
        self._is_taken = False
        self._sent = claimed

    @property
    def is_lost(self) -> bool:
        """Whether another process may already be running the call."""
        return self._is_taken or elapsed() >= min(self._ends, self._run_ends)

    @property
    def may_start(self) -> bool:
        """Whether a handler may start under the lease.

        A quarter of the lease must be left, so that there is time to renew it. A run without a confirmed
        claim may always start.
        """
        left = min(self._ends, self._run_ends) - elapsed()
        return not self.acknowledged or (not self._is_taken and left >= self.seconds / 4)

    @property
    def run_left(self) -> float:
        """Seconds for which the lease can still be renewed."""
        return self._run_ends - elapsed()

    @property
    def interval(self) -> float:
        """Seconds between probes of the store while it is unavailable."""
        return self.seconds / (RENEWALS_PER_LEASE * PROBES_PER_RENEWAL)

    def swap(self) -> Swap | None:
        """Return the renewal to send now; None if the lease may not be renewed any more."""
        self._sent = elapsed()
        return renewal(self.claim) if self._sent < self._run_ends else None

    def run(self, seen: Swapped | Held | Outage | None) -> float | None:
        """Process the answer to a renewal. Returns the seconds until the next renewal, or None."""
        if self.is_over:  # its last write has overtaken this renewal
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
        """Call ``on_lost`` if the lease is lost, and end it if ``max_run`` is over."""
        if self.is_lost:
            self.on_lost()
        if self.run_left <= 0:
            self.is_over = True

    def end(self) -> None:
        """End the lease when its run is over: it is not renewed any more."""
        self.is_over = True
        self.on_lost = _nothing


def _nothing() -> None:
    pass


class Execution(ABC):
    """One run of a keyed handler. Get it with ``current()``.

    key: the idempotency key as the caller sent it.
    operation: the operation of the key; the method's full name unless the policy names another.
    scope: the scope of the call, as the interceptor's ``scope`` function returned it.
    attempt: 1 for the first run under this key, higher after runs that left no outcome.
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
        """Whether another process may already be running this call.

        True once the lease was not renewed in time, or ``max_run`` is over. The handler should then stop
        before its next effect.
        """

    @abstractmethod
    def keep(self) -> None:
        """Keep the answer of this run for every duplicate, whatever its status code."""

    @abstractmethod
    def release(self) -> None:
        """Declare that this run had no effect: its answer is not kept, and a retry runs the handler again."""

    @abstractmethod
    def derive(self, name: str) -> str:
        """Return a UUID that is the same in every attempt at this request, and differs by ``name``.

        Pass it to a payment provider or a queue as *its* idempotency key. It is a digest of the record's
        name, the request and ``name``, so two callers never get the same one. A request stream is
        not known while the call runs: its UUIDs depend on the record's name and ``name`` alone.
        """


class Run(Call, Execution):
    """One keyed call, and the run of its handler if there is one: what ``current()`` returns.

    ``reply`` is the reply to the call, once there is one. Duplicates in the same process ``join`` the run.
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
    def operation(self) -> str:  # type: ignore[override]  # a read-only property
        return self.rules.operation

    def starts(self, record: Record, lease: "Lease") -> None:
        """Note that the handler is about to run under ``record``."""
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
        """A digest of the store key and the request, which is the same in all attempts at the request."""
        return digest("request", self.store_key, self._identity)

    @property
    def calls(self) -> DerivedCalls:
        """The downstream calls of the handler."""
        calls = self._calls
        if calls is None:
            with _runs_lock:
                calls = self._calls = self._calls or DerivedCalls()
        return calls

    def join(self, wake: Wake) -> None:
        """Register ``wake`` to be called when the run is over, or now if it is. Pair it with ``leave``."""
        with _runs_lock:
            self.waiters = self.waiters or []
            self.waiters.append(wake)
        if self.is_over:  # wake_waiters may have missed this waiter
            wake()

    def leave(self, wake: Wake) -> None:
        """Remove a waiter, and with it all references that it holds."""
        with _runs_lock:
            if self.waiters and wake in self.waiters:
                self.waiters.remove(wake)

    def wake_waiters(self) -> None:
        """Wake the duplicates that wait for the run, which is over."""
        with _runs_lock:
            waiters, self.waiters = self.waiters, None
        for wake in waiters or ():
            try:
                wake()
            except Exception:  # the event loop of a waiter is closed: its call is over
                logger.debug("a duplicate could not be woken", exc_info=True)


_runs_lock = Lock()
"""Guards attributes that only few runs need. It is held briefly."""

_current: ContextVar[Run | None] = ContextVar("idem_grpc_execution", default=None)


def current() -> Execution | None:
    """Return the run that this code belongs to; None outside a keyed handler."""
    return _current.get()


current_run = _current.get
"""The same function with the type that interceptors need."""


def adopt(variables: Context) -> None:
    """Copy the context variables of a handler's context into this one, except for ``current()``."""
    for variable, value in variables.items():
        if variable is not _current and variable.get(_UNSET) is not value:
            variable.set(value)


_UNSET = object()


enter = _current.set
"""Make a run the current one of this context. Returns the token for ``leave``."""


def leave(token: Token[Run | None]) -> None:
    """Restore the run that was current before ``enter``."""
    try:  # noqa: SIM105 -- contextlib.suppress is slower
        _current.reset(token)
    except ValueError:  # a dropped coroutine may be collected in another context
        pass
