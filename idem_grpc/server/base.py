"""What the interceptors for grpc and for grpc.aio have in common: all that is not I/O."""

import logging
import threading
import weakref
from collections.abc import Collection, Iterable, Mapping
from time import monotonic
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc.elapsed import elapsed
from idem_grpc.endings import Ending
from idem_grpc.methods import Methods, find_method
from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.policy import Policy, Rules
from idem_grpc.problem import NOTHING_KNOWN, Outlook, Problem, Reason
from idem_grpc.reporter import Reporter
from idem_grpc.scope import SHARED, Scope, info_of, scope_of
from idem_grpc.server.admission import Method, Refused, metadata_of
from idem_grpc.server.arities import Handler
from idem_grpc.server.availability import NOT_SENT, Availability
from idem_grpc.server.cache import Cache
from idem_grpc.server.call import ServedCall
from idem_grpc.server.facts import Facts
from idem_grpc.server.keeper import Keeper
from idem_grpc.server.runs import Runs
from idem_grpc.server.settings import check_policies, check_scope, checked_services
from idem_grpc.steps import (
    Compare,
    Compared,
    Ended,
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
from idem_grpc.stores.protocol import Store
from idem_grpc.swap import Swap

logger = logging.getLogger("idem_grpc")


class Protection:
    """The settings of an interceptor, the runs of its calls and the thread that keeps them.

    ``blocking`` is a store that the keeper's thread may use; the rest are the arguments
    of ServerInterceptor.
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
        self._passing: dict[str, Handler] = {}

    def plan(
        self, details: grpc.HandlerCallDetails, handler: Handler
    ) -> tuple[Method, Metadata, list[str | bytes], Reply | None] | None:
        """How a call is protected: its method, metadata and keys, and the reply if it is refused.

        None lets it through.
        """
        path = details.method
        method = self._methods.get(path)
        if method is None or method.handler is not handler or not method.is_settled:
            if self._passing.get(path) is handler:
                return None
            try:
                method = self._method(path, handler)
            except Refused as refused:
                method = Method(path, handler, Rules.of(path, ()), self.namespace)
                return method, (), [], Reply(refused.answer)
            if method is None:
                return None
        try:
            metadata, given = metadata_of(details)
        except Refused as refused:
            return method, (), [], Reply(refused.answer)
        if given:
            return method, metadata, given, None
        return None if method.passes_without_key else (method, metadata, given, method.refusal)

    def _method(self, path: str, handler: Handler) -> Method | None:
        """A method that is called for the first time; None if its calls run as if we were not there.

        Raises Refused where its policy is at fault.
        """
        try:
            rules = self._rules.rules(path)
        except (ValueError, TypeError):
            logger.exception("%s is refused: its idempotency policy is at fault", path)
            raise Refused(Problem(Reason.MISCONFIGURED)) from None
        known = self._methods.get(path)
        if known is not None and known.handler is handler and known.rules is rules:
            return known
        if len(self._methods) + len(self._passing) >= _MOST_METHODS:
            self._methods.clear()
            self._passing.clear()
        # Else its contract may be imported yet, and change its rules.
        is_settled = find_method(path) is not None
        if rules is None:
            if is_settled:
                self._passing[path] = handler
            return None
        method = self._methods[path] = Method(path, handler, rules, self.namespace)
        method.is_settled = is_settled
        return method

    def check_operations(self, issued: Collection[str]) -> None:
        """Raise ValueError if an operation that tokens are issued for is a misspelt one."""
        self._rules.check_operations(issued)

    def scope_of(self, path: str, metadata: Metadata, context: Any) -> str:
        """Whose call it is. Raises Refused if that is unknown."""
        if self.scope is SHARED:
            return ""
        facts = Facts(context)
        info = info_of(path, metadata, facts.get)
        try:
            scope = scope_of(self.scope, info)
            held = weakref.ref(info)
            del info
            if held() is not None:  # and may be asked when the call is over
                facts.freeze()
            return scope
        except Exception as error:
            logger.warning("%s is refused: %s", path, error)
            raise Refused(Problem(Reason.SCOPE_UNKNOWN)) from error

    def take_place(self) -> bool:
        """Take one of the places in which duplicates wait, if one is free."""
        return self._places.acquire(blocking=False)

    def give_place_back(self) -> None:
        self._places.release()

    def no_room(self) -> Outage | Full | None:
        """What keeps a call from running now, if anything does."""
        if self.keeper.is_full:
            return NOT_SENT
        return Full() if self.runs.is_full else None

    def outlook(self, call: ServedCall, refusal: Problem, owner: bytes) -> Outlook:
        """What is known of when a call that was refused, because of the run of ``owner``, may come again."""
        if not call.owner:  # it was refused before anything was asked
            return NOTHING_KNOWN
        time_left = call.deadline() - monotonic()
        if refusal.reason is not Reason.IN_PROGRESS or refusal.is_free:
            return Outlook(time_left)
        run, rules = self.runs.find(owner), call.rules
        lasted = 0.0 if run is None else elapsed() - run.began
        return Outlook(time_left, lasted, rules.lease, rules.wait, rules.max_run)

    def report_lost(self, call: ServedCall) -> None:
        """The lease of a run is lost."""
        path, owner = call.method.path, call.owner.hex()
        logger.warning("%s: run %s has lost its lease", path, owner)
        if self.reporter is not None:
            try:
                self.reporter.lease_lost(path, owner)
            except Exception:
                logger.exception("the reporter raised")

    def finish(self, steps: Steps, call: ServedCall) -> None:
        """Bring a flow that has replied to its end, here if nothing is left of it to do."""
        try:
            step = steps.send(None)
        except StopIteration:
            self.runs.end(call)
        else:
            lease = call.lease if call.has_run else None
            self.keeper.finish(steps, step, lambda: self.runs.end(call), lease, call.rules)


_MOST_METHODS = 4096  # generic handlers take any name, so a caller could have us remember without end


def cut_off(step: Step) -> Event:
    """What came of a step that is not done any more, or could not be waited for to its end."""
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
            raise AssertionError(f"{step} is for the keeper")
