"""One call to a threaded server, from its arrival to its end.

grpc never stops a handler's thread, so a flow runs where its call arrived. What is left
of it after the reply goes to the keeper.
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import Context, copy_context
from typing import Any

import grpc

from idem_grpc.elapsed import elapsed
from idem_grpc.execution import adopt
from idem_grpc.flow import flow
from idem_grpc.outcome import Metadata
from idem_grpc.policy import Rules
from idem_grpc.server.admission import Admitted, Caller, Refused
from idem_grpc.server.arities import Handler, Outside, behavior_of, closed_after, serialized
from idem_grpc.server.base import Patience, Protection, once_claimed, unless_claimable
from idem_grpc.server.contexts import SyncContext
from idem_grpc.server.keeper import NotStarted, Promise
from idem_grpc.server.outlet import Outlet
from idem_grpc.server.recording import CallerGone, Recording, disable_compression
from idem_grpc.server.replies import Answer, Part, opening
from idem_grpc.server.runs import Run
from idem_grpc.server.transcript import EOF_HOLD, Incoming, compare
from idem_grpc.steps import (
    Compare,
    Compared,
    Ended,
    Event,
    Execute,
    Full,
    Outage,
    Pause,
    Reply,
    TakeOver,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc.stores.protocol import Store
from idem_grpc.swap import Held, Swap, Swapped, renewal

logger = logging.getLogger("idem_grpc")


class SyncCall:
    """One call that arrived. ``request`` is its message, or an iterator of those of a stream."""

    def __init__(
        self,
        store: Store,
        protection: Protection,
        handler: Handler,
        caller: Caller,
        context: grpc.ServicerContext,
        request: Any,
    ) -> None:
        self._store = store
        self._protection = protection
        self._handler = handler
        self._caller = caller
        self._context = context
        self._outside = Outside()
        self._request: Any = request if handler.request_streaming else self._outside.taken(request)
        self._outlet = Outlet()
        self._is_opened = False
        self._streamed = b""
        self._recorded: Recording | None = None
        self._variables: Context | None = None
        self._run: Run | None = None
        self._waits = self._has_claim = False
        self._promise: Promise | None = None
        self._wake = threading.Event()
        self._gone = threading.Event()

    def response(self, plan: Rules | Reply) -> Any:
        """Serve a method with one response, on the thread of its RPC."""
        answer = self._answered(plan) if isinstance(plan, Reply) else self._reply(plan)
        self._end(answer)
        return self._outside.wrap(answer.messages[0] if answer.messages else b"")

    def responses(self, plan: Rules | Reply) -> Iterator[Any]:
        """Serve a method with a stream of responses.

        grpc asks for no more of them once the caller is gone, so the flow has a thread
        of its own. That of the RPC stays until the flow is over: as for other methods, the
        size of the pool is how many handlers run, of callers who left too.
        """
        thread = threading.get_ident()
        sent = 0
        if isinstance(plan, Reply):
            answer = self._answered(plan)
        else:
            pending = self._beside(plan)
            try:
                while (part := self._outlet.take()) is not None:
                    self._open(part.opening)
                    if part.variables is not None:
                        adopt(part.variables)
                    if part.plain:
                        disable_compression(self._context)
                    yield self._outside.wrap(part.message)
                    sent += 1
            finally:
                self._outlet.close()
                if threading.get_ident() == thread:  # and not a collector of garbage on any other
                    pending.exception()
                    if self._gone.is_set():
                        self._log_failure()
            if self._gone.is_set():
                return
            if self._variables is not None:
                adopt(self._variables)
            try:
                answer = pending.result()
            finally:
                del pending  # the traceback of its error would keep it
        for message in answer.messages[sent:]:
            self._open(answer.opening)
            yield self._outside.wrap(message)
        self._end(answer)

    def _answered(self, reply: Reply, patience: Patience | None = None) -> Answer:
        """What is sent for a reply: asked once, whether or not the caller is still there."""
        return self._protection.answer(reply, self._caller, self._handler, self._streamed, patience)

    def _beside(self, rules: Rules) -> Future[Answer]:
        pending = Future[Answer]()

        def work() -> None:
            try:
                pending.set_result(self._reply(rules))
                if self._gone.is_set():
                    self._log_failure()
            except BaseException as error:
                logger.exception("%s broke", self._caller.method)  # nobody else may be there to tell
                pending.set_exception(error.with_traceback(None))  # of which this frame has ``pending``
            finally:
                self._outlet.close()

        threading.Thread(target=copy_context().run, args=(work,), name="idem_grpc stream").start()
        return pending

    def _open(self, initial_metadata: Metadata) -> None:
        if not self._is_opened:
            self._is_opened = True
            if self._recorded is not None:
                self._recorded.compress()
            try:
                self._context.send_initial_metadata(initial_metadata)
            except grpc.RpcError as error:  # the caller is gone: what comes next is not sent either
                _let_go(error)

    def _end(self, answer: Answer) -> None:
        """Send the status of an answer, by the methods that interceptors outside look at."""
        recorded = self._recorded
        if self._context.is_active():
            if answer.initial_metadata:
                self._open(answer.initial_metadata)
            elif recorded is not None:
                recorded.compress()
            if recorded is not None and recorded.take_plain():
                disable_compression(self._context)
        self._context.set_trailing_metadata(answer.trailing_metadata)
        if recorded is not None:
            recorded.raise_failure()
        if answer.code is not grpc.StatusCode.OK:
            self._context.abort(answer.code, answer.details)
        if answer.details:
            self._context.set_details(answer.details)

    def _log_failure(self) -> None:
        if self._recorded is not None:
            self._recorded.log_failure()

    def _reply(self, rules: Rules) -> Answer:
        """What to answer: by the time it is known, so does the store."""
        raw = None if self._handler.request_streaming else self._request
        try:
            parse = self._handler.request_deserializer
            admitted = self._protection.admission.admit(rules, self._caller, raw, parse)
        except Refused as refused:
            return self._answered(Reply(refused.answer))
        self._patience = self._protection.patience(rules, self._context.time_remaining())
        if not self._context.add_callback(self._leave):
            self._leave()
        with self._protection.running(admitted.call, self._patience) as run:
            self._run = run
            reply, answer = self._drive(admitted)
            run.end(reply)
        return answer

    def _leave(self) -> None:
        """The caller is gone: nothing more is sent, nor waited for on its account."""
        self._gone.set()
        self._patience.gone = True
        self._wake.set()
        self._detach()
        self._outlet.close()
        if self._recorded is not None:
            self._recorded.caller_left()

    def _detach(self) -> None:
        """Count the run as one whose caller has left, unless it only waits for another, and so ends now."""
        if self._run is not None and not self._waits:
            self._run.detach()

    def _drive(self, admitted: Admitted) -> tuple[Reply, Answer]:
        steps = flow(admitted.call)
        event: Event = None
        sent = 0.0
        while True:
            match steps.send(event):
                case Swap() as swap:
                    if swap.key == admitted.call.key:
                        sent = elapsed()
                    event = self._swap(swap)
                    self._has_claim = self._has_claim or isinstance(event, Swapped)
                case Wait() as wait:
                    event = self._wait(wait)
                case TakeOver() as takeover:
                    event = self._take_over(takeover)
                case Execute() as execute:
                    event = self._execute(execute, admitted, sent)
                case Compare() as wanted:
                    event = self._compare(wanted, admitted)
                case Reply() as reply:
                    answer = self._answered(reply, self._patience)
                    self._protection.finish(steps, admitted.call, self._promise)
                    return reply, answer
                case Pause():
                    raise AssertionError("a flow pauses only after its reply")

    def _swap(self, swap: Swap) -> Swapped | Held | Outage | Full:
        availability = self._protection.availability
        if self._promise is not None:
            return once_claimed(availability.attempt(self._store, swap))
        if self._gone.is_set():
            self._detach()
        if not self._has_claim and (no_room := self._protection.no_room) is not None:
            return unless_claimable(swap, availability.attempt(self._store, renewal(swap)), no_room)
        return availability.attempt(self._store, swap)

    def _wait(self, wait: Wait) -> Waited:
        run = self._protection.runs.find(wait.owner)
        if run is not None:
            return self._wait_here(run)
        if self._patience.left() == 0:
            return Waited(more=False)
        self._sleep(self._patience.until_poll(wait))
        return Waited()

    def _take_over(self, takeover: TakeOver) -> Waited:
        run = self._protection.runs.find(takeover.owner)
        if run is not None:
            return self._wait_here(run)
        return Waited(hold=self._protection.availability.hold(takeover.lease))

    def _wait_here(self, run: Run) -> Waited:
        """Wait for the reply of a run of this process."""
        if self._patience.left() == 0:
            return Waited(more=False)
        wake = self._wake.set
        run.join(wake)
        self._sleep(self._patience.left())
        run.leave(wake)
        return Waited(run.reply, more=False)

    def _sleep(self, seconds: float) -> None:
        self._waits = True
        self._wake.wait(seconds)
        self._waits = False

    def _execute(self, execute: Execute, admitted: Admitted, sent: float) -> Ended | TooLate:
        execution = admitted.execution(execute.record, sent)
        promise = Promise(execute.swap, execution.lease, is_protected=execute.acknowledged)
        gone, context = self._gone, self._context
        recording = self._recorded = Recording(
            self._caller,
            execution,
            admitted.call.rules,
            self._handler,
            context,
            is_gone=lambda: gone.is_set() or not context.is_active(),
            in_aio=False,
        )

        try:
            with self._protection.keeping(promise, execution, execute.record.owner, self._caller):
                promise.start()
                ended = self._handle(recording, admitted, promise)
                recording.run_callbacks()
        except NotStarted:
            self._recorded = None
            return TooLate()
        except Exception as error:  # the handler's own are caught: its lease could not be kept
            ended = recording.raised(error)
        self._promise = promise
        promise.size = ended.outcome.size
        return ended

    def _handle(self, recording: Recording, admitted: Admitted, promise: Promise) -> Ended:
        incoming = recording.incoming
        request = admitted.request if incoming is None else iter(lambda: self._next(incoming), _END)
        run = admitted.call.owner if promise.is_protected else b""
        doing = "calling application"
        try:
            response = behavior_of(self._handler)(request, SyncContext(recording))
            if not self._handler.response_streaming:
                return recording.returned(lambda: serialized(self._handler, response))
            doing = "iterating responses"
            with closed_after(response):
                for each in response:
                    message = serialized(self._handler, each)
                    recording.sends(message)
                    self._streamed = admitted.call.owner
                    ahead = opening(recording.initial_metadata, run)
                    self._outlet.put(Part(message, ahead, recording.take_plain(), copy_context()))
            return recording.returned(None)
        except BaseException as error:  # the thread is the pool's: nothing may end it but the call
            return recording.raised(error, doing)
        finally:
            if self._handler.response_streaming:  # on a thread of its own
                self._variables = copy_context()

    def _next(self, incoming: Incoming) -> Any:
        raw = self._read(incoming)
        return _END if raw is None else incoming.take(raw)

    def _read(self, incoming: Incoming) -> bytes | None:
        """The next message of the request stream; None at its end. Raises CallerGone where it is cut."""
        if incoming.malformed:
            return None
        try:
            raw = self._outside.taken(next(self._request))
        except StopIteration:
            incoming.whole = incoming.whole or self._is_there_after_the_end()
            if incoming.whole:
                return None
        except grpc.RpcError as error:
            _let_go(error)
        else:
            return raw
        incoming.cut = True
        raise CallerGone("the request stream was cut")

    def _is_there_after_the_end(self) -> bool:
        """Whether the end of the request stream was the caller's, and is not that of the call."""
        return all(not self._gone.wait(step) and self._context.is_active() for step in EOF_HOLD)

    def _compare(self, wanted: Compare, admitted: Admitted) -> Compared:
        rules = admitted.call.rules
        incoming = Incoming(self._caller.method, rules, self._handler.request_deserializer)
        comparing = compare(incoming, wanted, has_turns=bool(self._handler.response_streaming))
        ahead = opening(wanted.outcome.initial_metadata, wanted.run)
        try:
            with self._protection.keeper.limiting(rules.max_run, self._context.cancel):
                response = next(comparing)
                while True:
                    if response is None:
                        response = comparing.send(self._read(incoming))
                    else:
                        self._outlet.put(Part(response, ahead))
                        response = comparing.send(None)
        except StopIteration as end:
            return Compared(end.value)
        except (CallerGone, Refused):
            return Compared(same=False)


def _let_go(error: grpc.RpcError) -> None:
    """Drop the traceback of an error, whose frames have the state of its call, in which grpc keeps it."""
    error.__traceback__ = None


_END = object()
