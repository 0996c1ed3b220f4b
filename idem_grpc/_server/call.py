"""I/O-free base class of one keyed call on a server."""

import logging
import math
import os
import random
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any

from idem_grpc._core.digest import token_key
from idem_grpc._core.execution import Lease, Run
from idem_grpc._core.flow import replay_at_once
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import Binding
from idem_grpc._core.reporter import Replied
from idem_grpc._core.scope import SHARED
from idem_grpc._core.steps import Execute, Full, Outage, Reply, TooLate, Wait
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc._server.admission import CachedContext, Method, key_from_metadata, parsed, previous_attempts
from idem_grpc._server.handlers import Raw
from idem_grpc._server.replies import as_sent, stream_initial_metadata

if TYPE_CHECKING:
    from idem_grpc._server.protection import Protection
    from idem_grpc._server.recording import Recording

logger = logging.getLogger("idem_grpc")

_OWNER_BYTES = 8


class ServedCall(Run):
    """I/O-free logic shared by SyncCall and AioCall.

    given_keys: the keys in its ``metadata``.
    is_gone: whether its caller has left.
    wrap: converts the bytes of a response to the type that outer interceptors get.
    """

    __slots__ = (
        *("_cached_context", "_deadline", "_has_place", "_is_reported_lost", "_sent", "_waits_until"),
        *("context", "given_keys", "has_claim", "has_run", "has_streamed", "initial_metadata", "is_gone"),
        *("is_initial_metadata_sent", "is_waiting", "metadata", "method", "protection", "recording"),
        *("request", "variables", "wrap"),
    )

    def __init__(
        self,
        protection: "Protection",
        method: Method,
        metadata: Metadata,
        given_keys: list[str | bytes],
        context: Any,
    ) -> None:
        super().__init__(method.rules)
        self.protection = protection
        self.method = method
        self.metadata = metadata
        self.given_keys = given_keys
        self.context = context
        self.request: Any = None
        self.wrap: Callable[[bytes], Any] = Raw
        self.recording: Recording | None = None
        self.variables: Context | None = None
        self.initial_metadata: Metadata = ()
        self.is_gone = self.has_claim = self.has_run = self.has_streamed = self.is_waiting = False
        self.is_initial_metadata_sent = self._has_place = self._is_reported_lost = False
        self._cached_context: CachedContext | None = None
        self._deadline: float | None = None
        self._waits_until = self._sent = 0.0

    # On arrival.

    def admit(self, raw: bytes | None) -> Reply | None:
        """Read the scope, the key and the request. ``raw`` is None for a request stream, which is read later.

        Returns the reply if the answer is in the cache. Raises Refused if one of them is invalid.
        """
        method = self.method
        if self.protection.scope is not SHARED:
            self.scope = self.protection.scope_of(method.path, self.metadata, self.context)
        scope = self.scope.encode()
        if self.given_keys:
            self.key = key_from_metadata(self.given_keys)
            if method.is_token:
                self.store_key = token_key(method.namespace, self.key)
                self.binding = Binding.of(self.rules.operation, self.scope)
            else:
                self.store_key = method.keys.name(scope, self.key)
            if raw is not None and (cached := self._cached_reply(raw)) is not None:
                return cached
        if raw is None:
            method.check_stream()
        else:
            self.request = raw if method.parse is None else parsed(raw, method.parse)
            read = method.readable(raw, self.request) if method.reads_fields else self.request
            self.fingerprint = method.fingerprint(raw, read)
            if not self.given_keys:
                self.key = method.key_from_request(read, self.metadata)
                self.store_key = method.keys.name(scope, self.key)
        if self.rules.claim_rate is not None:
            self.rate_key = method.rate_key(self.scope)
        self.owner = os.urandom(_OWNER_BYTES)
        return None

    def _cached_reply(self, raw: bytes) -> Reply | None:
        """Return the reply to a duplicate if its answer is cached and its request has the same bytes."""
        cache = self.protection.cache
        record = None if cache is None else cache.get(self.store_key)
        if record is None:
            return None
        return replay_at_once(record, self.binding, self.method.fingerprints.raw(raw))

    def cached_context(self, context: Any) -> CachedContext:
        """Return the cached values of the call's ``context``. Created on first use."""
        if self._cached_context is None:
            self._cached_context = CachedContext(context)
        return self._cached_context

    def detach(self) -> None:
        """Count the run as detached, unless the call waits for another run and so ends now."""
        if not self.is_waiting:
            self.protection.runs.detach(self)

    def caller_is_gone(self) -> bool:
        """Whether the caller can no longer receive the answer."""
        return self.is_gone

    # Between the store and the flow.

    def after_swap(self, swap: Swap, seen: Swapped | Held | Outage, began: float) -> Swapped | Held | Outage:
        """Update the state of the call after a swap sent at ``began``. Returns the event for the flow."""
        is_own = swap.key == self.store_key  # else it counts a claim rate
        if is_own:
            self._sent = began
        if isinstance(seen, Outage):
            # The store accepted the claim of a run, so it may accept the outcome later.
            return Outage() if self.has_run and seen.misused else seen
        if isinstance(seen, Swapped):
            self.has_claim = True
        cache = self.protection.cache
        if cache is not None and is_own and not self.method.streams_requests:
            cache.update(swap, seen, began)
        return seen

    def begin_lease(self, execute: Execute) -> Lease:
        """Create the lease of the run that is about to start, and note the start."""
        record = execute.record
        lease = Lease(
            execute.swap,
            record.lease,
            self.rules.max_run,
            self._sent,
            acknowledged=execute.acknowledged,
            on_lost=self._lost,
        )
        self.starts(record, lease)
        return lease

    def too_late(self) -> TooLate:
        """End the lease of a handler that was not started, since another process may take the call over."""
        lease, self.recording = self.lease, None
        if lease is not None:
            lease.end()
            logger.warning(
                "handler start postponed: less than a quarter of its lease of %g s is left",
                lease.seconds,
            )
        return TooLate()

    def _lost(self) -> None:
        lease = self.lease
        if not self._is_reported_lost:
            self._is_reported_lost = True
            self.protection.report_lost(self)
        if lease is not None and lease.run_left <= 0:
            self.is_disowned = True

    @property
    def announced_run(self) -> bytes:
        """The run id to send with streamed responses; empty if the run began without its claim."""
        return self.owner if self.lease is not None and self.lease.acknowledged else b""

    # While waiting for another run.

    def deadline(self) -> float:
        """Return the caller's deadline on the clock ``monotonic``; infinity if it has none."""
        if self._deadline is None:
            remaining = 0.0 if self.is_gone else self.context.time_remaining()
            self._deadline = monotonic() + (math.inf if remaining is None else remaining)
        return self._deadline

    def wait_left(self) -> float:
        """Return the seconds for which the call may still wait: 0 if its caller left or no place is free."""
        if not self._waits_until:
            self._waits_until = min(monotonic() + self.rules.wait, self.deadline())
        self._has_place = self._has_place or self.protection.take_place()
        return max(0.0, self._waits_until - monotonic()) if self._has_place and not self.is_gone else 0.0

    def poll_delay(self, wait: Wait) -> float:
        """Return the seconds until the store is read again, with jitter so that duplicates spread out."""
        return min(self.wait_left(), wait.seconds * random.uniform(0.8, 1.2))

    # At its end.

    def answer(self, reply: Reply) -> Outcome:
        """Return the outcome to send for a reply, and report it. Called once.

        If this call has already streamed responses of its own run, the end of another run cannot follow
        them: the outcome is LEASE_LOST. If the record has more or fewer messages than the method sends, it
        cannot be replayed: the outcome is OUTCOME_UNKNOWN.
        """
        if self.has_streamed and reply.owner != self.owner:
            reply = Reply(Problem(Reason.LEASE_LOST), reply.owner)
        answer = reply.answer
        if (
            isinstance(answer, Outcome)
            and not self.method.streams_responses
            and len(answer.messages) != (answer.code is Code.OK)  # one message if OK, else none
        ):
            answer = Problem(Reason.OUTCOME_UNKNOWN)
            reply = Reply(answer, reply.owner)
        if isinstance(answer, Outcome):
            outcome = answer
        else:
            outcome = answer.outcome(
                previous_attempts(self.metadata), outlook=self.protection.outlook(self, answer, reply.owner)
            )
        if (reporter := self.protection.reporter) is not None:
            reason = answer.reason if isinstance(answer, Problem) else None
            run = reply.owner.hex()
            event = Replied(self.method.path, outcome.code, reply.replayed, reason, run, reply.protected)
            try:
                reporter.replied(event)
            except Exception:
                logger.exception("the reporter raised")
        sent = as_sent(reply, outcome)
        if self.method.streams_responses:
            self.initial_metadata = stream_initial_metadata(sent.initial_metadata, reply.run)
        return sent

    def mark_over(self, reply: Reply | None) -> None:
        """Mark the call as over and wake waiting duplicates. ``reply`` is None after an internal error."""
        self.reply, self.is_over = reply, True
        if self.waiters is not None:
            self.wake_waiters()
        if self.is_detached:
            self.protection.runs.attach(self)
        if self._has_place:
            self._has_place = False
            self.protection.give_place_back()


def replace_claimable(
    swap: Swap, seen: Swapped | Held | Outage, instead: Outage | Full
) -> Swapped | Held | Outage | Full:
    """Return ``instead`` if ``seen`` shows that the call could have claimed the key; else ``seen``."""
    return instead if isinstance(seen, Held) and seen.value == swap.expected else seen
