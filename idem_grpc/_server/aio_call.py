"""One call to an asyncio server, from its arrival to its end.

The first swap runs in the RPC's own coroutine, and so does a whole replay. grpc cancels that coroutine
when the caller leaves, so the rest of any other flow runs in a task of its own. If that task is cancelled
too, as at the end of the event loop, the step under way returns an event with which the flow can continue.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import WeakMethod

from idem_grpc._core import execution
from idem_grpc._core.clock import elapsed
from idem_grpc._core.execution import Run, adopt
from idem_grpc._core.flow import flow
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.policy import OnCancel
from idem_grpc._core.steps import (
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
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Held, Swap, Swapped, renewal
from idem_grpc._server.admission import Method, Refused
from idem_grpc._server.aio_handlers import Pipe, Threads, serve
from idem_grpc._server.call import ServedCall, replace_claimable
from idem_grpc._server.contexts import AioContext
from idem_grpc._server.handlers import body_of, serialized
from idem_grpc._server.keeper import NotStarted
from idem_grpc._server.protection import Protection, interrupted
from idem_grpc._server.recording import CallerGone, Recording, disable_compression
from idem_grpc._server.replies import GRPC_CODES, Part, stream_initial_metadata
from idem_grpc._server.streams import Incoming, compare
from idem_grpc.stores._protocol import AsyncStore

logger = logging.getLogger("idem_grpc")


class AioCall(ServedCall):
    """One keyed call to an asyncio server.

    ``rpc`` returns the task in which the call was intercepted; None unless its method streams responses.
    """

    __slots__ = (
        *("__weakref__", "_done", "_ended", "_exit_error", "_flow_error", "_handling", "_outcome", "_pipe"),
        *("_reading", "_rpc", "_store", "_task", "_threads", "_wake"),
    )

    _done: asyncio.Future[None]

    def __init__(
        self,
        protection: Protection,
        method: Method,
        metadata: Metadata,
        given_keys: list[str | bytes],
        store: AsyncStore,
        threads: Threads,
        rpc: Callable[[], asyncio.Task[Any] | None] | None,
        context: Any,
    ) -> None:
        super().__init__(protection, method, metadata, given_keys, context)
        self._store, self._threads, self._rpc = store, threads, rpc
        self._flow_error: BaseException | None = None
        self._ended: Ended | None = None
        self._handling: asyncio.Task[Any] | None = None
        self._outcome: Outcome | None = None
        self._reading: asyncio.Task[None] | None = None
        self._exit_error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._pipe = Pipe() if method.streams_requests or method.streams_responses else None

    async def response(self, request: Any, refused: Reply | None) -> Any:
        """Serve a method with one response. ``request`` is its message; None for a request stream."""
        try:
            outcome = await self._reply(request) if refused is None else self.answer(refused)
            if outcome is None:
                await self._done
                outcome = self._result()
            await self._send_status(outcome)
            return self.wrap(outcome.messages[0] if outcome.messages else b"")
        finally:
            await self._close_rpc()

    async def responses(self, request: Any, refused: Reply | None) -> AsyncGenerator[Any, None]:
        """Serve a method with a stream of responses. A generator, as outer interceptors expect."""
        sent = 0
        try:
            if refused is None:
                self._watch_rpc()
                outcome = await self._reply(request)
            else:
                outcome = self.answer(refused)
            if outcome is None:
                pipe = self._pipe
                assert pipe is not None
                while (item := await pipe.take()) is not None:
                    part, written = item
                    if part.variables is not None:
                        adopt(part.variables)
                    await self._send_initial_metadata(part.initial_metadata)
                    if part.uncompressed:
                        disable_compression(self.context)
                    yield self.wrap(part.message)
                    sent += 1
                    pipe.written(written)
                outcome = self._result()
            for message in outcome.messages[sent:]:
                await self._send_initial_metadata(self.initial_metadata)
                yield self.wrap(message)
            await self._send_status(outcome)
        finally:
            await self._close_rpc()

    # Run in the RPC's coroutine.

    async def _reply(self, request: Any) -> Outcome | None:
        """Start the flow. Returns the outcome to send; None if a task does the rest of the flow."""
        raw = None
        if not self.method.streams_requests:
            raw, self.wrap = body_of(request)
        try:
            immediate = self.admit(raw)
        except Refused as refused:
            immediate = Reply(refused.answer)
        if immediate is not None:
            return self.answer(immediate)
        self.protection.runs.start(self)
        steps = flow(self)
        step = steps.send(None)
        assert isinstance(step, Swap), "a flow begins with its first claim"
        try:
            event: Event = await self._swap(step)
        except asyncio.CancelledError:  # the caller left; the task sends the swap again
            self._continue_in_task(steps, step)
            raise
        except GeneratorExit:
            self._finish_without_waiting(steps, interrupted(step))
            raise
        except (KeyboardInterrupt, SystemExit) as stop:
            self._exit_error = stop
            event = interrupted(step)
        try:
            step = steps.send(event)
            if isinstance(step, Reply):
                return self._finish_with(steps, step)
        except BaseException as error:
            self._fail(error)
            raise
        self._continue_in_task(steps, step)
        return None

    def _continue_in_task(self, steps: Steps, step: Step) -> None:
        """Run the rest of a flow in a task of its own, which outlives the RPC."""
        if self.method.streams_responses:  # the RPC may end unnoticed, and its context must not be read then
            self.cached_context(self.context).freeze()
        else:
            self._done = asyncio.get_running_loop().create_future()
        if self.method.streams_requests:
            assert self._pipe is not None
            self._reading = asyncio.create_task(self._pipe.pump(self.context))
        task = asyncio.create_task(self._drive(steps, step))
        if not self.is_over:  # an eager task may have finished it
            self._task = task

    def _result(self) -> Outcome:
        """Return the outcome of the task, or raise its error."""
        if self._flow_error is not None:
            raise self._flow_error
        if self.variables is not None:
            adopt(self.variables)
        assert self._outcome is not None
        return self._outcome

    def _watch_rpc(self) -> None:
        """Register for the end of the RPC. A generator that is abandoned at a yield may not notice it."""
        rpc = None if self._rpc is None else self._rpc()
        if rpc is not None and rpc is asyncio.current_task():
            rpc.add_done_callback(lambda _: self._on_rpc_end())
            return
        leave = WeakMethod(self._on_rpc_end)  # grpc never drops its callbacks

        def left(_: Any) -> None:
            if (alive := leave()) is not None:
                alive()

        self.context.add_done_callback(left)

    async def _send_initial_metadata(self, initial_metadata: Metadata) -> None:
        if not self.is_initial_metadata_sent:
            self.is_initial_metadata_sent = True
            if self.recording is not None:
                self.recording.compress()
            await self.context.send_initial_metadata(initial_metadata)

    async def _send_status(self, outcome: Outcome) -> None:
        """Send the status of an answer through the context methods that outer interceptors observe."""
        if self._exit_error is not None:  # no status is sent: _close_rpc raises it instead
            return
        recording, context = self.recording, self.context
        if recording is not None and recording.has_only_outcome:
            recording = None
        if outcome.initial_metadata:
            await self._send_initial_metadata(outcome.initial_metadata)
        elif recording is not None and not self.is_initial_metadata_sent:
            recording.compress()
        if recording is not None and recording.take_uncompressed():
            disable_compression(context)
        context.set_trailing_metadata(outcome.trailing_metadata)
        if recording is not None:
            recording.raise_failure()
        if outcome.code is not Code.OK:
            # grpc's context keeps the exception, whose frames hold this call. Avoid a reference cycle.
            self._freeze_context()
            self.context = self.recording = recording = None
            try:
                await context.abort(GRPC_CODES[outcome.code], outcome.details)
            finally:
                del context
        if outcome.details:
            context.set_details(outcome.details)

    async def _close_rpc(self) -> None:
        """Clean up at the end of the RPC's coroutine. Its context must not be used afterwards."""
        self._on_rpc_end()
        self._freeze_context()
        if self.is_over:
            if self.recording is not None:
                self.recording.log_failure()
            self.recording = self.request = self.variables = self._task = None
        self.context = None
        reading, self._reading = self._reading, None
        try:
            if reading is not None:
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            if self._exit_error is not None:
                self._raise_exit()

    def _freeze_context(self) -> None:
        """Read the values that holders of the handler's context may still need, or drop the context."""
        if self.context is None:
            return
        if self.recording is not None and (self.recording.is_context_held or not self.is_over):
            self.cached_context(self.context).freeze()
        elif self._cached_context is not None:
            self._cached_context.close()

    def _raise_exit(self) -> None:
        """Raise the KeyboardInterrupt or SystemExit of the handler, once, if the run is over."""
        stop = self._exit_error
        if stop is None or not self.is_over:
            return
        self._exit_error = None
        try:
            raise stop
        finally:
            del stop  # a reference cycle: its traceback holds this frame

    def _on_rpc_end(self) -> None:
        """Stop waiting and sending, since the RPC has ended."""
        self.is_gone = True
        if self._pipe is not None:
            self._pipe.leave()
        if self._reading is not None:
            self._reading.cancel()
        if self.is_over:
            return
        if self._wake is not None:
            self._wake.set()
        if self.owner:
            self.detach()
        if self.recording is not None and self.recording.caller_left():
            self._cancel_handler()

    def _cancel_handler(self) -> None:
        """Cancel the handler, at most once, so that its cleanup can await."""
        handling, self._handling = self._handling, None
        if handling is not None:
            handling.cancel()

    # Run in the flow's task.

    async def _drive(self, steps: Steps, step: Step) -> None:
        try:
            while not isinstance(step, Reply):
                if self._exit_error is not None and isinstance(step, Execute):
                    step = steps.send(interrupted(step))
                    continue
                try:
                    event = await self._perform(step)
                except (KeyboardInterrupt, SystemExit) as stop:
                    self._exit_error = stop
                    event = interrupted(step)
                except GeneratorExit:  # the event loop drops this coroutine: it cannot await any more
                    if not isinstance(step, Execute) or self._ended is not None:
                        self._finish_without_waiting(steps, self._ended or interrupted(step))
                    raise
                step = steps.send(event)
            self._outcome = self._finish_with(steps, step)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._task = None
            if self._pipe is not None:
                self._pipe.close()
            if not self.method.streams_responses and not self._done.done():
                self._done.set_result(None)
        if self.is_gone:
            if self.recording is not None:
                self.recording.log_failure()
            self.recording = self.request = self.variables = None
            if self._exit_error is not None and (task := asyncio.current_task()) is not None:
                task.add_done_callback(asyncio.Task.exception)  # marks it as retrieved: the loop raises it
            self._raise_exit()

    def _finish_with(self, steps: Steps, reply: Reply) -> Outcome:
        outcome = self.answer(reply)
        self.protection.finish(steps, self)
        self.mark_over(reply)
        return outcome

    def _finish_without_waiting(self, steps: Steps, event: Event) -> None:
        """Finish a flow up to its reply without awaiting anything."""
        step = steps.send(event)
        while not isinstance(step, Reply):
            step = steps.send(interrupted(step))
        self._finish_with(steps, step)

    def _fail(self, error: BaseException) -> None:
        if not self.is_over:
            self._flow_error = error
            self.protection.runs.end(self)
            self.mark_over(None)

    async def _perform(self, step: Step) -> Event:
        if isinstance(step, Swap):
            try:
                return await self._swap(step)
            except asyncio.CancelledError:
                return Outage()
        if isinstance(step, Execute):
            return await self._execute(step)
        if isinstance(step, Wait):
            return await self._wait(step)
        if isinstance(step, TakeOver):
            return await self._take_over(step)
        assert isinstance(step, Compare), "a flow pauses only after its reply"
        return await self._compare(step)

    async def _swap(self, swap: Swap) -> Swapped | Held | Outage | Full:
        sent, limit = swap, None
        if not self.has_run:
            if self.is_gone:
                self.detach()
            if not self.has_claim and (limit := self.protection.limit_event()) is not None:
                sent = renewal(swap)
        began = elapsed()
        seen = await self.protection.availability.attempt_async(self._store, sent, began)
        event = self.after_swap(sent, seen, began)
        return event if limit is None else replace_claimable(swap, event, limit)

    async def _wait(self, wait: Wait) -> Waited:
        run = self.protection.runs.find(wait.owner)
        if run is not None:
            return await self._wait_for_run(run)
        if self.is_gone or self.wait_left() == 0:
            return Waited(more=False)
        await self._sleep(self.poll_delay(wait))
        return Waited()

    async def _take_over(self, takeover: TakeOver) -> Waited:
        run = self.protection.runs.find(takeover.owner)
        if run is not None:
            return await self._wait_for_run(run)
        return Waited(hold=self.protection.availability.takeover_delay(takeover.lease))

    async def _wait_for_run(self, run: Run) -> Waited:
        """Wait for the reply of a run in this process."""
        if self.is_gone or self.wait_left() == 0:
            return Waited(more=False)
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, self._wake_event().set)
        run.join(wake)
        await self._sleep(self.wait_left())
        run.leave(wake)
        return Waited(run.reply, more=False)

    def _wake_event(self) -> asyncio.Event:
        """Return the event that is set once the RPC or the awaited run has ended."""
        event = self._wake
        if event is None:
            event = self._wake = asyncio.Event()
        if self.is_gone:
            event.set()
        return event

    async def _sleep(self, seconds: float) -> None:
        self.is_waiting = True
        try:
            await asyncio.wait_for(self._wake_event().wait(), seconds)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._on_rpc_end()
        finally:
            self.is_waiting, self._wake = False, None

    async def _execute(self, execute: Execute) -> Ended | TooLate:
        lease = self.begin_lease(execute)
        recording = self.recording = Recording(self, in_aio=True)
        keeper = self.protection.keeper
        keeper.keep_renewing(lease)
        token = execution.enter(self)
        try:
            ended = await self._handle(recording)
            recording.run_callbacks()
        except NotStarted:
            return self.too_late()
        except GeneratorExit:
            self.has_run = True
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # not the handler's own
            if not isinstance(error, Exception):
                self._exit_error = error
            ended = recording.raised(error)
        finally:
            execution.leave(token)
            keeper.stop_renewing(lease)
        self.has_run = True
        lease.outcome_bytes = ended.outcome.size
        return ended

    async def _handle(self, recording: Recording) -> Ended:
        is_async = self.method.is_async
        try:
            serving: Awaitable[Any] = self._serve(recording)
            if is_async and self.rules.on_cancel is OnCancel.CANCEL:
                serving = handling = asyncio.ensure_future(serving)
                self._handling = None if handling.done() else handling  # an eager task may be done
                del handling
                if self.is_gone:  # the caller left before there was a handler to cancel
                    self._cancel_handler()
            return recording.returned(await serving)
        except NotStarted:
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not is_async:
                raise  # the event loop drops this coroutine; the handler continues on its thread
            self._ended = recording.raised(self._exit_error or error)
            return self._ended
        finally:
            del serving  # a reference cycle: a task holds its exception, whose traceback holds this frame

    def _start(self) -> None:
        """Raise NotStarted if the handler must not start. Called right before it, on its thread."""
        if self.lease is None or not self.lease.may_start:
            raise NotStarted

    async def _serve(self, recording: Recording) -> Any:
        """Call the handler. Returns its response, unless it streams responses.

        If the request stream is cut, reading raises CallerGone. If another task of the handler reads it,
        the handler itself is cancelled too, as in grpc, since it may wait for that task.
        """
        method, incoming, pipe = self.method, recording.incoming, self._pipe
        if method.is_async:
            self._handling = asyncio.current_task()

        async def send(response: Any) -> None:
            message = serialized(method.serialize, response)
            recording.add_response(message)
            self.has_streamed = True
            initial = stream_initial_metadata(recording.initial_metadata, self.announced_run)
            variables = copy_context() if self._handling is asyncio.current_task() else None
            assert pipe is not None
            await pipe.write(Part(message, initial, recording.take_uncompressed(), variables))

        async def receive(end: object) -> Any:
            recording.raise_if_over()
            try:
                raw = None if incoming is None or pipe is None else await self._read(pipe, incoming)
            except CallerGone:
                if self._handling is not asyncio.current_task():
                    self._cancel_handler()
                raise
            return end if incoming is None or raw is None else incoming.take(raw)

        try:
            if method.is_async and pipe is None:
                self._start()
                return await method.behavior(
                    self.request, recording.track_context(AioContext(recording, None, None))
                )
            return await serve(method, self.request, recording, self._threads, self._start, send, receive)
        except (KeyboardInterrupt, SystemExit) as stop:  # from a task, it would end the loop at once
            self._exit_error = stop
            raise _Exiting from None
        finally:
            self._handling = None
            self.variables = copy_context()

    async def _read(self, pipe: Pipe, incoming: Incoming) -> bytes | None:
        """Return the next message of the request stream; None at its end. Raises CallerGone if it is cut."""
        message = await pipe.read(incoming)
        if message is None:
            return None
        raw, self.wrap = body_of(message)
        return bytes(raw)

    async def _compare(self, wanted: Compare) -> Compared:
        incoming, pipe = Incoming(self.method), self._pipe
        assert pipe is not None
        comparing = compare(incoming, wanted, has_turns=self.method.streams_responses)
        initial = stream_initial_metadata(wanted.outcome.initial_metadata, wanted.run)
        try:
            async with asyncio.timeout(self.rules.max_run):
                response = next(comparing)
                while True:
                    if response is None:
                        response = comparing.send(await self._read(pipe, incoming))
                    else:
                        await pipe.write(Part(response, initial))
                        response = comparing.send(None)
        except StopIteration as end:
            return Compared(end.value)
        except (CallerGone, Refused, TimeoutError, asyncio.CancelledError):
            return Compared(same=False)


class _Exiting(Exception):
    """Replaces a KeyboardInterrupt or SystemExit of the handler until the end of its run is stored."""
