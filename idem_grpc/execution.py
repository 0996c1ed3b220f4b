"""What a handler can learn and say about its own run: ``current()``."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from math import inf
from threading import Lock

from idem_grpc.digest import as_uuid, digest
from idem_grpc.elapsed import elapsed
from idem_grpc.endings import Ending
from idem_grpc.record import Record


class Calls:
    """The calls that a run makes downstream, counted, so that each has its own derived key."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: dict[tuple[str, str], int] = {}
        self._under_way: set[tuple[str, str]] = set()

    def begin(self, method: str, step: str) -> int:
        """The ordinal of a call to ``method`` in ``step``. Raises RuntimeError if one is under way."""
        with self._lock:
            if (method, step) in self._under_way:
                raise RuntimeError(
                    f"a keyed handler calls {method} while it is calling it already: which of the two"
                    " gets which derived key would be chance. Name each of them with keys.step(…), and"
                    " cancel a stream that you leave before its end: it is under way until then"
                )
            self._under_way.add((method, step))
            ordinal = self._made.get((method, step), 0)
            self._made[method, step] = ordinal + 1
            return ordinal

    def end(self, method: str, step: str) -> None:
        """The call is over."""
        with self._lock:
            self._under_way.discard((method, step))


class Lease:
    """For how long a run may take itself for the only one, on the clock of its own process.

    It ends ``seconds`` after the last renewal that was acknowledged was sent, and
    ``max_run`` after the claim was sent, which was at ``claimed`` on the clock ``elapsed``.
    """

    def __init__(self, seconds: float = inf, max_run: float = inf, claimed: float = 0.0) -> None:
        self.seconds = seconds
        self._ends = claimed + seconds
        self._run_ends = claimed + max_run
        self._is_taken = False

    @property
    def run_left(self) -> float:
        """Seconds for which it may still be renewed."""
        return self._run_ends - elapsed()

    @property
    def left(self) -> float:
        """Seconds until it runs out unless it is renewed."""
        return self._ends - elapsed()

    @property
    def is_lost(self) -> bool:
        """Whether another process may be running the call by now."""
        return self._is_taken or elapsed() >= min(self._ends, self._run_ends)

    @property
    def may_start(self) -> bool:
        """Whether a handler may start under it: a quarter of it is left, in which it can be renewed."""
        return not self.is_lost and self.left >= self.seconds / 4

    def renewed(self, sent: float) -> None:
        """A renewal that was sent at ``sent`` was acknowledged."""
        self._ends = sent + self.seconds

    def taken(self) -> None:
        """The record is another's."""
        self._is_taken = True


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


@dataclass(slots=True)
class KeyedExecution(Execution):
    """The same with the interceptors' side of it: ``identity``, ``lease``, ``ending`` and ``calls``."""

    key: str
    operation: str
    scope: str
    attempt: int
    identity: bytes = field(repr=False)
    lease: Lease = field(default_factory=Lease, repr=False)
    ending: Ending | None = field(default=None, repr=False)
    calls: Calls = field(default_factory=Calls, repr=False)

    @property
    def lease_lost(self) -> bool:
        return self.lease.is_lost

    def keep(self) -> None:
        self.ending = Ending.DECIDED

    def release(self) -> None:
        self.ending = Ending.NOT_NOW

    def derive(self, name: str) -> str:
        bits = digest("derive", self.identity, name.encode(), size=16)
        return as_uuid(int.from_bytes(bits, "big"), version=8)


_current: ContextVar[KeyedExecution | None] = ContextVar("idem_grpc_execution", default=None)


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


@contextmanager
def running(execution: KeyedExecution) -> Iterator[None]:
    """Make ``execution`` the current one of this context."""
    token = _current.set(execution)
    try:
        yield
    finally:
        try:  # noqa: SIM105 -- which takes longer
            _current.reset(token)
        except ValueError:  # of another context: a coroutine that was dropped is collected anywhere
            pass


def identity_of(key: bytes, record: Record) -> bytes:
    """What stays the same over all attempts at one request under one store key."""
    fingerprint = record.fingerprint
    return digest("request", key, fingerprint.raw if fingerprint is not None else b"")
