"""What the interceptors for grpc and for grpc.aio have in common: all that is not I/O."""

import logging
import math
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc.elapsed import elapsed
from idem_grpc.endings import Ending
from idem_grpc.execution import KeyedExecution, running
from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.policy import Policy, Rules
from idem_grpc.problem import NOTHING_KNOWN, Outlook, Problem, Reason
from idem_grpc.reporter import Reporter
from idem_grpc.scope import Scope
from idem_grpc.server.admission import Admission, Caller, Refused, metadata_of
from idem_grpc.server.arities import Handler
from idem_grpc.server.availability import Availability
from idem_grpc.server.keeper import Keeper, Promise
from idem_grpc.server.replies import Answer, answer
from idem_grpc.server.runs import Run, Runs
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
from idem_grpc.swap import Held, Swap, Swapped
from idem_grpc.verdicts import Call

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
        reporter: Reporter | None,
    ) -> None:
        self.admission = Admission(blocking.namespace, scope, services, policies, default)
        self.availability = Availability()
        self.keeper = Keeper(blocking, self.availability)
        self.runs = Runs(max_detached)
        self._reporter = reporter or Reporter()
        self._places = threading.Semaphore(max_waiters)

    @property
    def no_room(self) -> Outage | Full | None:
        """What keeps a call from running now, if anything does."""
        if self.keeper.is_full:
            return Outage(sent=False)
        return Full() if self.runs.is_full else None

    def plan(self, details: grpc.HandlerCallDetails) -> tuple[Rules | Reply, Metadata] | None:
        """The rules to protect a call by, or the reply that refuses it, and the call's metadata.

        None lets it through.
        """
        metadata: Metadata = ()
        try:
            rules = self.admission.rules(details.method)
            if rules is None:
                return None
            metadata = metadata_of(details)
            return (rules, metadata) if self.admission.is_keyed(rules, metadata) else None
        except Refused as refused:
            return Reply(refused.answer), metadata

    def answer(
        self,
        reply: Reply,
        caller: Caller,
        handler: Handler,
        streamed: bytes = b"",
        patience: "Patience | None" = None,
    ) -> Answer:
        """What is sent for a reply, which is also reported. ``patience`` is that of a call with a flow.

        ``streamed`` is the owner of the run whose responses were sent already, if any: they
        cannot be followed by the end of another. A record whose answer has more or fewer messages
        than the method sends is one that nobody can read.
        """
        if streamed and reply.owner != streamed:
            reply = Reply(Problem(Reason.LEASE_LOST), reply.owner)
        if isinstance(reply.answer, Outcome) and not _fits(reply.answer, handler):
            reply = Reply(Problem(Reason.OUTCOME_UNKNOWN), reply.owner)
        refusal = reply.answer
        outlook = (
            self._outlook(refusal, reply.owner, patience) if isinstance(refusal, Problem) else NOTHING_KNOWN
        )
        sent, event = answer(reply, caller, outlook)
        try:
            self._reporter.replied(event)
        except Exception:
            logger.exception("the reporter raised")
        return sent

    def _outlook(self, refusal: Problem, owner: bytes, patience: "Patience | None") -> Outlook:
        """What is known of when a call that was refused is worth sending again."""
        if patience is None:
            return NOTHING_KNOWN
        time_left = patience.deadline - monotonic()
        if refusal.reason is not Reason.IN_PROGRESS or refusal.is_free:
            return Outlook(time_left)
        run, rules = self.runs.find(owner), patience.rules
        lasted = 0.0 if run is None else elapsed() - run.began
        return Outlook(time_left, lasted, rules.lease, rules.wait, rules.max_run)

    @contextmanager
    def keeping(
        self, promise: Promise, execution: KeyedExecution, owner: bytes, caller: Caller
    ) -> Iterator[None]:
        """Renew the lease of a run, and make it the current one, until the block ends."""
        told = False

        def lose() -> None:
            nonlocal told
            if not told:
                told = True
                self._lost(caller, owner)
            if execution.lease.run_left <= 0:
                self.runs.disown(owner)

        with self.keeper.renewing(promise, lose), running(execution):
            yield

    def _lost(self, caller: Caller, owner: bytes) -> None:
        logger.warning("%s: run %s has lost its lease", caller.method, owner.hex())
        try:
            self._reporter.lease_lost(caller.method, owner.hex())
        except Exception:
            logger.exception("the reporter raised")

    def finish(self, steps: Steps, call: Call, promise: Promise | None) -> None:
        """Bring a flow that has replied to its end, here if nothing is left of it to do.

        ``promise`` is that of its run, None if nothing was run.
        """
        runs, owner = self.runs, call.owner
        try:
            step = steps.send(None)
        except StopIteration:
            runs.end(owner)
        else:
            self.keeper.finish(steps, step, lambda: runs.end(owner), promise, call.rules)

    @contextmanager
    def running(self, call: Call, patience: "Patience") -> Iterator[Run]:
        """Register a flow; it ends when it is finished, or here if driving it fails."""
        run = self.runs.start(call.owner)
        try:
            yield run
        except BaseException:
            self.runs.end(call.owner)
            run.end(None)
            raise
        finally:
            patience.close()

    def patience(self, rules: Rules, remaining: float | None) -> "Patience":
        """How long a call with ``remaining`` seconds to its deadline may wait for another."""
        return Patience(self._places, rules, math.inf if remaining is None else remaining)


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


def unless_claimable(
    swap: Swap, seen: Swapped | Held | Outage, instead: Outage | Full
) -> Swapped | Held | Outage | Full:
    """What a call that may not claim makes of a look: ``instead``, where it would have claimed."""
    return instead if isinstance(seen, Held) and seen.value == swap.expected else seen


def once_claimed(seen: Swapped | Held | Outage) -> Swapped | Held | Outage:
    """What a run makes of an answer: a store that took its claim may well take its end, a little later."""
    return Outage() if isinstance(seen, Outage) and seen.misused else seen


def _fits(outcome: Outcome, handler: Handler) -> bool:
    """Whether the method can send so many messages: without a stream it is one, and only if all is well."""
    return handler.response_streaming or len(outcome.messages) == (outcome.code is Code.OK)


class Patience:
    """How long one call may wait for the run of another, and in which place.

    ``remaining`` is the time to its ``deadline``.
    """

    def __init__(self, places: threading.Semaphore, rules: Rules, remaining: float) -> None:
        self._places = places
        self.rules = rules
        now = monotonic()
        self.deadline = now + remaining
        self._ends = now + min(rules.wait, remaining)
        self._has_place = False
        self.gone = False

    def left(self) -> float:
        """Seconds for which the call may go on waiting: 0 if its caller is gone or no place is free."""
        self._has_place = self._has_place or self._places.acquire(blocking=False)
        return max(0.0, self._ends - monotonic()) if self._has_place and not self.gone else 0.0

    def until_poll(self, wait: Wait) -> float:
        """Seconds until the store is looked at again: duplicates are kept from doing so in step."""
        return min(self.left(), wait.seconds * random.uniform(0.8, 1.2))

    def close(self) -> None:
        """Give the place back."""
        if self._has_place:
            self._has_place = False
            self._places.release()
