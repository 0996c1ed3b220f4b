"""I/O-free state shared by the calls of one interceptor: settings, methods, runs and waiting places."""

import logging
import threading
import weakref
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc._core.clock import elapsed
from idem_grpc._core.execution import Run
from idem_grpc._core.methods import Methods, find_method
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.policy import Policy, Rules
from idem_grpc._core.problem import NOTHING_KNOWN, Outlook, Problem, Reason
from idem_grpc._core.reporter import Reporter
from idem_grpc._core.scope import SHARED, Scope, info_of, scope_of
from idem_grpc._core.steps import (
    Compare,
    Compared,
    Ended,
    Ending,
    Event,
    Execute,
    Full,
    Outage,
    Reply,
    Step,
    Steps,
    TakeOver,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Swap
from idem_grpc._server.admission import (
    CachedContext,
    Method,
    Refused,
    check_policies,
    check_scope,
    checked_services,
    metadata_of,
)
from idem_grpc._server.availability import NOT_SENT, Availability, should_log
from idem_grpc._server.cache import Cache
from idem_grpc._server.call import ServedCall
from idem_grpc._server.handlers import Handler
from idem_grpc._server.keeper import Keeper
from idem_grpc.stores._protocol import Store

logger = logging.getLogger("idem_grpc")


class Runs:
    """The runs of this process. For threads and event loops. Calls without duplicates take no lock.

    ``detached`` counts the runs that continue after their callers left, from the moment they leave. Once
    there are ``max_detached`` of them, no further run should begin.
    """

    def __init__(self, max_detached: int) -> None:
        self._max_detached = max_detached
        self.detached = self._times_full = 0
        self.is_full = False
        """Whether ``max_detached`` is reached, so that no further run should begin."""
        self._runs: dict[bytes, Run] = {}
        self._changed = threading.Condition()
        self._awaiting: set[Future[None]] = set()
        self._draining = 0

    def start(self, run: Run) -> None:
        """Register the flow of a call."""
        run.began = elapsed()
        self._runs[run.owner] = run

    def detach(self, run: Run) -> None:
        """Count a run as detached, since its caller left. Has no effect if the run is over."""
        if run.is_over or run.is_detached:
            return
        with self._changed:
            self._count(run)
        self.attach(run)  # the run may have ended before it was counted

    def _count(self, run: Run) -> None:
        if run.is_detached:
            return
        run.is_detached = True
        self.detached += 1
        self.is_full = self.detached >= self._max_detached
        if self.detached == self._max_detached:
            self._times_full += 1
            if should_log(self._times_full):
                logger.warning(
                    "max_detached is reached: %d runs continue after their callers left (%d times by"
                    " now); calls that would run are refused until one of them ends",
                    self.detached,
                    self._times_full,
                )

    def attach(self, run: Run) -> None:
        """Stop counting a detached run, if it is over."""
        with self._changed:
            if run.is_over and run.is_detached:
                run.is_detached = False
                self.detached -= 1
                self.is_full = self.detached >= self._max_detached

    def find(self, owner: bytes) -> Run | None:
        """Return the run of ``owner`` if this process has it, unfinished and within ``max_run``, or None."""
        run = self._runs.get(owner)
        return None if run is None or run.is_disowned else run

    def end(self, run: Run) -> None:
        """Remove a run whose flow has ended, and notify ``drain``."""
        self._runs.pop(run.owner, None)
        if not self._draining:
            return
        with self._changed:
            self._changed.notify_all()
            if self._runs:
                return
            awaiting = tuple(self._awaiting)
            self._awaiting.clear()
        for over in awaiting:
            if over.set_running_or_notify_cancel():
                over.set_result(None)

    def over(self) -> Future[None]:
        """Return a future that is done once no flow is left. It occupies no thread. Cancel it to give up."""
        over = Future[None]()
        with self._changed:
            self._draining += 1
            over.add_done_callback(self._drained)
            if self._runs:
                self._awaiting.add(over)
                return over
        over.set_result(None)
        return over

    def _drained(self, over: Future[None]) -> None:
        with self._changed:
            self._draining -= 1
            self._awaiting.discard(over)

    def left(self) -> int:
        """Return how many flows are not over."""
        return len(self._runs)

    def drain(self, timeout: float | None) -> int:
        """Wait up to ``timeout`` seconds until all flows are over. Returns how many are not."""
        with self._changed:
            self._draining += 1
            try:
                self._changed.wait_for(lambda: not self._runs, timeout)
            finally:
                self._draining -= 1
            return len(self._runs)


class Protection:
    """The settings of an interceptor, its methods, its runs and its keeper.

    ``blocking`` is the store that the keeper's threads use. The other arguments are those of
    ServerInterceptor.
    """

    def __init__(
        self,
        blocking: Store,
        *,
        scope: Scope,
        services: Iterable[str | ServiceDescriptor],
        policies: Mapping[str, Policy],
        default: Policy,
        max_waiters: int,
        max_detached: int,
        cache_bytes: int,
        reporter: Reporter | None,
    ) -> None:
        check_scope(scope)
        check_policies(policies, default)
        self.namespace = blocking.namespace
        self.availability = Availability()
        self.keeper = Keeper(blocking, self.availability)
        self.runs = Runs(max_detached)
        self._places = threading.Semaphore(max_waiters)
        self.cache = Cache(cache_bytes) if cache_bytes and not blocking.is_in_process else None
        self.reporter = reporter
        self.scope = scope
        self._rules = Methods(policies, default, checked_services(services))
        self._methods: dict[str, Method] = {}
        self._unprotected: dict[str, Handler] = {}

    def plan(
        self, details: grpc.HandlerCallDetails, handler: Handler
    ) -> tuple[Method, Metadata, list[str | bytes], Reply | None] | None:
        """Return the method, metadata and keys of a call, and the reply if the call is refused.

        Returns None if the call goes straight to its handler.
        """
        path = details.method
        method = self._methods.get(path)
        if method is None or method.handler is not handler or not method.is_settled:
            if self._unprotected.get(path) is handler:
                return None
            try:
                method = self._method(path, handler)
            except Refused as refused:
                method = Method(path, handler, Rules.of(path, ()), self.namespace)
                return method, (), [], Reply(refused.answer)
            if method is None:
                return None
        try:
            metadata, given_keys = metadata_of(details)
        except Refused as refused:
            return method, (), [], Reply(refused.answer)
        if given_keys:
            return method, metadata, given_keys, None
        return None if method.is_key_optional else (method, metadata, given_keys, method.refusal)

    def _method(self, path: str, handler: Handler) -> Method | None:
        """Return the Method of a handler, creating it if need be; None if its calls are not protected.

        Raises Refused if its policy is invalid.
        """
        try:
            rules = self._rules.rules(path)
        except (ValueError, TypeError):
            logger.exception("%s is refused: its idempotency policy is invalid", path)
            raise Refused(Problem(Reason.MISCONFIGURED)) from None
        known = self._methods.get(path)
        if known is not None and known.handler is handler and known.rules is rules:
            return known
        if len(self._methods) + len(self._unprotected) >= _MOST_METHODS:
            self._methods.clear()
            self._unprotected.clear()
        # Without a descriptor, the contract may still be imported later and change the rules.
        is_settled = find_method(path) is not None
        if rules is None:
            if is_settled:
                self._unprotected[path] = handler
            return None
        method = self._methods[path] = Method(path, handler, rules, self.namespace)
        method.is_settled = is_settled
        return method

    def check_operations(self, issued: Collection[str]) -> None:
        """Raise ValueError if an operation in ``issued``, for which tokens are issued, is misspelt."""
        self._rules.check_operations(issued)

    def scope_of(self, path: str, metadata: Metadata, context: Any) -> str:
        """Return the scope of a call. Raises Refused if the scope function fails."""
        if self.scope is SHARED:
            return ""
        cached = CachedContext(context)
        info = info_of(path, metadata, cached.get)
        try:
            scope = scope_of(self.scope, info)
            held = weakref.ref(info)
            del info
            if held() is not None:  # the scope function kept it, and may read it after the call
                cached.freeze()
            return scope
        except Exception as error:
            logger.warning("%s is refused: %s", path, error)
            raise Refused(Problem(Reason.SCOPE_UNKNOWN)) from error

    def take_place(self) -> bool:
        """Take one of the ``max_waiters`` places for waiting duplicates. Returns whether one was free."""
        return self._places.acquire(blocking=False)

    def give_place_back(self) -> None:
        self._places.release()

    def limit_event(self) -> Outage | Full | None:
        """Return the event for a call that must not run now, because a limit is reached; else None."""
        if self.keeper.is_full:
            return NOT_SENT
        return Full() if self.runs.is_full else None

    def outlook(self, call: ServedCall, refusal: Problem, owner: bytes) -> Outlook:
        """Return what determines the pushback of a call that was refused because of the run of ``owner``."""
        if not call.owner:  # refused before it reached the store
            return NOTHING_KNOWN
        time_left = call.deadline() - monotonic()
        if refusal.reason is not Reason.IN_PROGRESS or refusal.is_free:
            return Outlook(time_left)
        run, rules = self.runs.find(owner), call.rules
        lasted = 0.0 if run is None else elapsed() - run.began
        return Outlook(time_left, lasted, rules.lease, rules.wait, rules.max_run)

    def report_lost(self, call: ServedCall) -> None:
        """Log and report that the lease of a run is lost."""
        path, owner = call.method.path, call.owner.hex()
        logger.warning("%s: run %s has lost its lease", path, owner)
        if self.reporter is not None:
            try:
                self.reporter.lease_lost(path, owner)
            except Exception:
                logger.exception("the reporter raised")

    def finish(self, steps: Steps, call: ServedCall) -> None:
        """Finish a flow that has replied: here if it has no steps left, else in the keeper."""
        try:
            step = steps.send(None)
        except StopIteration:
            self.runs.end(call)
        else:
            lease = call.lease if call.has_run else None
            self.keeper.finish(steps, step, lambda: self.runs.end(call), lease, call.rules)


_MOST_METHODS = 4096  # a limit, since callers may invent method names if a generic handler accepts any


def interrupted(step: Step) -> Event:
    """Return the event for a step that was not performed, or was interrupted."""
    match step:
        case Swap():
            return Outage()
        case Wait() | TakeOver():
            return Waited(more=False)
        case Compare():
            return Compared(same=False)
        case Execute():
            return Ended(Outcome(Code.UNAVAILABLE, "the server stops: nothing was run"), Ending.NOT_NOW)
        case _:
            raise AssertionError(f"{step}: only the keeper performs this step")
