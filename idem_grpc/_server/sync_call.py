"""One call to a threaded server, from its arrival to its end.

grpc never stops a handler's thread, so the flow runs on the thread of its RPC. After the reply, the
keeper performs the remaining steps.
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import grpc

from idem_grpc._core import execution
from idem_grpc._core.clock import elapsed
from idem_grpc._core.execution import Run, adopt
from idem_grpc._core.flow import flow
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.steps import (
    Compare,
    Compared,
    Ended,
    Event,
    Execute,
    Full,
    Outage,
    Reply,
    TakeOver,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Held, Swap, Swapped, renewal
from idem_grpc._server.admission import Refused
from idem_grpc._server.call import ServedCall, replace_claimable
from idem_grpc._server.contexts import SyncContext
from idem_grpc._server.handlers import body_of, close, serialized
from idem_grpc._server.recording import CallerGone, Recording, disable_compression
from idem_grpc._server.replies import GRPC_CODES, Part, stream_initial_metadata
from idem_grpc._server.streams import EOF_HOLD, Incoming, compare
from idem_grpc.stores._protocol import Store


class Outlet:
    """Passes responses from the flow's thread to that of the RPC, one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._part: Part | None = None
        self._is_closed = False

    def put(self, part: Part) -> None:
        """Pass one response on. Waits until the one before was taken. Dropped once the outlet is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._part is None or self._is_closed)
            self._part = part
            self._changed.notify_all()

    def take(self) -> Part | None:
        """Return the next response; None once the outlet is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._part is not None or self._is_closed)
            part, self._part = self._part, None
            self._changed.notify_all()
            return part

    def close(self) -> None:
        """Mark the end: no more responses come, or the caller left."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


logger = logging.getLogger("idem_grpc")


class SyncCall(ServedCall):
    """One keyed call to a threaded server."""

    __slots__ = ("_incoming", "_outlet", "_store", "_wake")

    _incoming: Iterator[Any]
    _outlet: Outlet | None
    _wake: threading.Event | None
    _store: Store

    def response(self, store: Store, request: Any, refused: Reply | None) -> Any:
        """Serve a method with one response, on the RPC's thread. ``request`` is a message or a stream."""
        self._store, self._wake, self._outlet = store, None, None
        try:
            outcome = self._reply(request) if refused is None else self.answer(refused)
            self._send_status(outcome)
            return self.wrap(outcome.messages[0] if outcome.messages else b"")
        finally:
            self._drop_rpc_state()

    def responses(self, store: Store, request: Any, refused: Reply | None) -> Iterator[Any]:
        """Serve a method with a stream of responses.

        grpc stops iterating once the caller has left, so the flow runs on a thread of its own. The RPC's
        thread stays until the flow is over, so that the size of the pool limits how many handlers run,
        as for other methods, including those whose callers left.
        """
        self._store, self._wake, self._outlet = store, None, None
        thread = threading.get_ident()
        try:
            yield from self._iterate_responses(request, refused, thread)
        finally:
            if threading.get_ident() == thread:  # else garbage collection closes it on another thread
                self._drop_rpc_state()

    def _iterate_responses(self, request: Any, refused: Reply | None, thread: int) -> Iterator[Any]:
        sent = 0
        if refused is not None:
            outcome = self.answer(refused)
        else:
            outlet = self._outlet = Outlet()
            pending = self._start_flow(request)
            try:
                while (part := outlet.take()) is not None:
                    self._send_initial_metadata(part.initial_metadata)
                    if part.variables is not None:
                        adopt(part.variables)
                    if part.uncompressed:
                        disable_compression(self.context)
                    yield self.wrap(part.message)
                    sent += 1
            finally:
                outlet.close()
                if threading.get_ident() == thread:
                    pending.exception()
                    if self.is_gone and self.recording is not None:
                        self.recording.log_failure()
            if self.is_gone:
                return
            if self.variables is not None:
                adopt(self.variables)
            try:
                outcome = pending.result()
            finally:
                del pending  # a reference cycle: the traceback of its error holds this frame
        for message in outcome.messages[sent:]:
            self._send_initial_metadata(self.initial_metadata)
            yield self.wrap(message)
        self._send_status(outcome)

    def _start_flow(self, request: Any) -> Future[Outcome]:
        pending, outlet = Future[Outcome](), self._outlet
        assert outlet is not None

        def work() -> None:
            try:
                pending.set_result(self._reply(request))
                if self.is_gone and self.recording is not None:
                    self.recording.log_failure()
            except BaseException as error:
                logger.exception("%s: internal error", self.method.path)  # the RPC may have ended
                pending.set_exception(error.with_traceback(None))  # its frame holds ``pending``
            finally:
                outlet.close()

        threading.Thread(target=copy_context().run, args=(work,), name="idem_grpc stream").start()
        return pending

    def _send_initial_metadata(self, initial_metadata: Metadata) -> None:
        if not self.is_initial_metadata_sent:
            self.is_initial_metadata_sent = True
            if self.recording is not None:
                self.recording.compress()
            try:
                self.context.send_initial_metadata(initial_metadata)
            except grpc.RpcError as error:  # the caller left
                _drop_traceback(error)

    def _send_status(self, outcome: Outcome) -> None:
        """Send the status of an answer through the context methods that outer interceptors observe."""
        recording, context = self.recording, self.context
        if recording is not None and recording.has_only_outcome:
            recording = None
        if outcome.initial_metadata and context.is_active():
            self._send_initial_metadata(outcome.initial_metadata)
        elif recording is not None:
            recording.compress()
        if recording is not None and recording.take_uncompressed() and context.is_active():
            disable_compression(context)
        context.set_trailing_metadata(outcome.trailing_metadata)
        if recording is not None:
            recording.raise_failure()
        if outcome.code is not Code.OK:
            context.abort(GRPC_CODES[outcome.code], outcome.details)
        if outcome.details:
            context.set_details(outcome.details)

    def _drop_rpc_state(self) -> None:
        """Drop what only the RPC needs, since the flow may still wait for the store."""
        self.context = self.request = self.recording = self.variables = None
        self._cached_context = self._outlet = None

    def _reply(self, request: Any) -> Outcome:
        """Run the flow up to its reply. Returns the outcome to send; if it is kept, it is stored by then."""
        raw = None
        if self.method.streams_requests:
            self._incoming = request
        else:
            raw, self.wrap = body_of(request)
        try:
            immediate = self.admit(raw)
        except Refused as refused:
            immediate = Reply(refused.answer)
        if immediate is not None:
            return self.answer(immediate)
        if not self.context.add_callback(self._on_rpc_end):
            self._on_rpc_end()
        self.protection.runs.start(self)
        reply = None
        try:
            reply, outcome = self._drive()
        finally:
            if reply is None:
                self.protection.runs.end(self)
            self.mark_over(reply)
        return outcome

    def _on_rpc_end(self) -> None:
        """Stop waiting and sending, since the RPC has ended."""
        self.is_gone = True
        if self.is_over:
            return
        if (wake := self._wake) is not None:
            wake.set()
        self.detach()
        if (outlet := self._outlet) is not None:
            outlet.close()
        if (recording := self.recording) is not None:
            recording.caller_left()

    def caller_is_gone(self) -> bool:
        context = self.context
        return self.is_gone or context is None or not context.is_active()

    def _drive(self) -> tuple[Reply, Outcome]:
        steps = flow(self)
        event: Event = None
        while True:
            step = steps.send(event)
            if isinstance(step, Swap):
                event = self._swap(step)
            elif isinstance(step, Execute):
                event = self._execute(step)
            elif isinstance(step, Reply):
                outcome = self.answer(step)
                self.protection.finish(steps, self)
                return step, outcome
            elif isinstance(step, Wait):
                event = self._wait(step)
            elif isinstance(step, TakeOver):
                event = self._take_over(step)
            elif isinstance(step, Compare):
                event = self._compare(step)
            else:
                raise AssertionError(f"{step}: a flow pauses only after its reply")

    def _swap(self, swap: Swap) -> Swapped | Held | Outage | Full:
        sent, limit = swap, None
        if not self.has_run:
            if self.is_gone:
                self.detach()
            if not self.has_claim and (limit := self.protection.limit_event()) is not None:
                sent = renewal(swap)
        began = elapsed()
        seen = self.protection.availability.attempt(self._store, sent, began)
        event = self.after_swap(sent, seen, began)
        return event if limit is None else replace_claimable(swap, event, limit)

    def _wait(self, wait: Wait) -> Waited:
        run = self.protection.runs.find(wait.owner)
        if run is not None:
            return self._wait_for_run(run)
        if self.wait_left() == 0:
            return Waited(more=False)
        self._sleep(self.poll_delay(wait))
        return Waited()

    def _take_over(self, takeover: TakeOver) -> Waited:
        run = self.protection.runs.find(takeover.owner)
        if run is not None:
            return self._wait_for_run(run)
        return Waited(hold=self.protection.availability.takeover_delay(takeover.lease))

    def _wait_for_run(self, run: Run) -> Waited:
        """Wait for the reply of a run in this process."""
        if self.wait_left() == 0:
            return Waited(more=False)
        wake = self._wake_event().set
        run.join(wake)
        self._sleep(self.wait_left())
        run.leave(wake)
        return Waited(run.reply, more=False)

    def _wake_event(self) -> threading.Event:
        """Return the event that is set once the RPC or the awaited run has ended."""
        event = self._wake
        if event is None:
            event = self._wake = threading.Event()
        if self.is_gone:  # perhaps before the event existed
            event.set()
        return event

    def _sleep(self, seconds: float) -> None:
        self.is_waiting = True
        self._wake_event().wait(seconds)
        self.is_waiting, self._wake = False, None

    def _execute(self, execute: Execute) -> Ended | TooLate:
        lease = self.begin_lease(execute)
        if not lease.may_start:
            return self.too_late()
        recording = self.recording = Recording(self, in_aio=False)
        keeper = self.protection.keeper
        keeper.keep_renewing(lease)
        token = execution.enter(self)
        try:
            ended = self._handle(recording)
            recording.run_callbacks()
        except Exception as error:  # not from the handler, whose exceptions _handle catches
            ended = recording.raised(error)
        finally:
            execution.leave(token)
            keeper.stop_renewing(lease)
        self.has_run = True
        lease.outcome_bytes = ended.outcome.size
        return ended

    def _handle(self, recording: Recording) -> Ended:
        method, incoming, outlet = self.method, recording.incoming, self._outlet
        request = self.request if incoming is None else iter(lambda: self._next(incoming), _END)
        doing = "calling application"
        try:
            response = method.behavior(request, SyncContext(recording))
            if outlet is None:
                return recording.returned(response)
            doing = "iterating responses"
            try:
                for each in response:
                    message = serialized(method.serialize, each)
                    recording.add_response(message)
                    self.has_streamed = True
                    initial = stream_initial_metadata(recording.initial_metadata, self.announced_run)
                    outlet.put(Part(message, initial, recording.take_uncompressed(), copy_context()))
            finally:
                close(response)
            return recording.returned()
        except BaseException as error:  # SystemExit too, which must not end a thread of the pool
            return recording.raised(error, doing)
        finally:
            if method.streams_responses:  # the handler ran on another thread
                self.variables = copy_context()

    def _next(self, incoming: Incoming) -> Any:
        raw = self._read(incoming)
        return _END if raw is None else incoming.take(raw)

    def _read(self, incoming: Incoming) -> bytes | None:
        """Return the next message of the request stream; None at its end. Raises CallerGone if it is cut."""
        if incoming.malformed:
            return None
        try:
            raw, self.wrap = body_of(next(self._incoming))
        except StopIteration:
            incoming.whole = incoming.whole or self._is_stream_whole()
            if incoming.whole:
                return None
        except grpc.RpcError as error:
            _drop_traceback(error)
        else:
            return raw
        incoming.cut = True
        raise CallerGone("the request stream was cut")

    def _is_stream_whole(self) -> bool:
        """Return whether the caller is still there after the end of its stream, so that it was not cut."""
        gone = self._wake_event()
        return all(not gone.wait(step) and not self.caller_is_gone() for step in EOF_HOLD)

    def _compare(self, wanted: Compare) -> Compared:
        incoming, outlet = Incoming(self.method), self._outlet
        comparing = compare(incoming, wanted, has_turns=self.method.streams_responses)
        initial = stream_initial_metadata(wanted.outcome.initial_metadata, wanted.run)
        keeper = self.protection.keeper
        timer = keeper.call_later(self.rules.max_run, self.context.cancel)
        try:
            response = next(comparing)
            while True:
                if response is None:
                    response = comparing.send(self._read(incoming))
                else:
                    assert outlet is not None
                    outlet.put(Part(response, initial))
                    response = comparing.send(None)
        except StopIteration as end:
            return Compared(end.value)
        except (CallerGone, Refused):
            return Compared(same=False)
        finally:
            keeper.cancel_call(timer)


def _drop_traceback(error: grpc.RpcError) -> None:
    """Drop the traceback of an error. grpc keeps the error in the call's state: a reference cycle."""
    error.__traceback__ = None


_END = object()
