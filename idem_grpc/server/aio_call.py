"""One call to an asyncio server, from its arrival to its end.

grpc cancels an RPC's coroutine when the caller goes away, so the flow runs in a task of
its own. Should that be cancelled too, as at the end of the event loop, each of its steps
comes to an end that the flow knows how to go on from.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextvars import Context, copy_context
from functools import partial
from typing import Any
from weakref import WeakMethod

import grpc

from idem_grpc.elapsed import elapsed
from idem_grpc.execution import adopt
from idem_grpc.flow import flow
from idem_grpc.outcome import Metadata
from idem_grpc.policy import OnCancel, Rules
from idem_grpc.server.admission import Admitted, Caller, Refused
from idem_grpc.server.aio_handler import serve
from idem_grpc.server.aio_pipe import Pipe
from idem_grpc.server.aio_threads import Threads
from idem_grpc.server.arities import Handler, Outside, behavior_of, is_async, serialized
from idem_grpc.server.base import (
    Patience,
    Protection,
    cut_off,
    once_claimed,
    unless_claimable,
)
from idem_grpc.server.keeper import NotStarted, Promise
from idem_grpc.server.recording import CallerGone, Recording, disable_compression
from idem_grpc.server.replies import Answer, Part, opening
from idem_grpc.server.runs import Run
from idem_grpc.server.transcript import Incoming, compare
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
from idem_grpc.stores.protocol import AsyncStore
from idem_grpc.swap import Held, Swap, Swapped, renewal


class AioCall:
    """One call that arrived. ``request`` is its message, if that is no stream.

    ``rpc`` is the task in which it was intercepted.
    """

    def __init__(
        self,
        store: AsyncStore,
        protection: Protection,
        handler: Handler,
        caller: Caller,
        context: Any,
        request: Any,
        rpc: asyncio.Task[Any] | None,
        threads: Threads,
    ) -> None:
        self._store = store
        self._protection = protection
        self._handler = handler
        self._caller = caller
        self._context = context
        self._outside = Outside()
        self._raw = None if handler.request_streaming else self._outside.taken(request)
        self._rpc = rpc
        self._threads = threads
        self._flow: asyncio.Task[Answer] | None = None
        self._loop = asyncio.get_running_loop()
        self._pipe = Pipe(self._outside)
        self._is_opened = False
        self._streamed = b""
        self._answer: Answer | None = None
        self._recorded: Recording | None = None
        self._run: Run | None = None
        self._waits = self._has_claim = False
        self._promise: Promise | None = None
        self._variables: Context | None = None
        self._stop_by: BaseException | None = None
        self._is_dropped = False
        self._ended: Ended | None = None
        self._replied: tuple[Reply, Answer] | None = None
        self._handling: asyncio.Task[Any] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def response(self, plan: Rules | Reply, tasks: set[asyncio.Task[Answer]]) -> Any:
        """Serve a method with one response. The task of the flow is kept in ``tasks`` while it lasts."""
        try:
            self._begin(plan, tasks)
            await self._pipe.take()
            if self._variables is not None:
                adopt(self._variables)
            answer = self._result()
            await self._end(answer)
            return self._outside.wrap(answer.messages[0] if answer.messages else b"")
        finally:
            await self._stop()

    async def responses(
        self, plan: Rules | Reply, tasks: set[asyncio.Task[Answer]]
    ) -> AsyncGenerator[Any, None]:
        """The same for a stream of responses: a generator, as those outside of ours want one."""
        sent = 0
        try:
            self._begin(plan, tasks)
            while (item := await self._pipe.take()) is not None:
                part, written = item
                if part.variables is not None:
                    adopt(part.variables)
                await self._open(part.opening)
                if part.plain:
                    disable_compression(self._context)
                yield self._outside.wrap(part.message)
                sent += 1
                self._pipe.written(written)
            if self._variables is not None:
                adopt(self._variables)
            answer = self._result()
            for message in answer.messages[sent:]:
                await self._open(answer.opening)
                yield self._outside.wrap(message)
            await self._end(answer)
        finally:
            await self._stop()

    def _begin(self, plan: Rules | Reply, tasks: set[asyncio.Task[Answer]]) -> None:
        if isinstance(plan, Reply):
            self._answer = self._answered(plan)
            self._pipe.close()
            return
        self._flow = asyncio.create_task(self._reply(plan))
        tasks.add(self._flow)
        self._flow.add_done_callback(tasks.discard)
        self._flow.add_done_callback(lambda _: self._pipe.close())
        if self._handler.request_streaming:
            self._reading = asyncio.create_task(self._pipe.pump(self._context))
        if self._handler.response_streaming:
            self._watch()

    def _watch(self) -> None:
        """Have the end of the RPC noticed: a generator that is left while it yields may not see it."""
        rpc, self._rpc = self._rpc, None
        if rpc is not None and rpc is asyncio.current_task():
            rpc.add_done_callback(lambda _: self._leave())
            return
        leave = WeakMethod(self._leave)  # grpc never lets go of its callbacks

        def left(_: Any) -> None:
            if (alive := leave()) is not None:
                alive()

        self._context.add_done_callback(left)

    def _result(self) -> Answer:
        if self._answer is None:
            assert self._flow is not None
            return self._flow.result()
        return self._answer

    def _answered(self, reply: Reply, patience: Patience | None = None) -> Answer:
        """What is sent for a reply: asked once, whether or not the caller is still there."""
        return self._protection.answer(reply, self._caller, self._handler, self._streamed, patience)

    async def _stop(self) -> None:
        self._leave()
        flow, self._flow = self._flow, None
        reading, self._reading = self._reading, None
        try:
            if reading is not None:
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            if flow is not None and flow.done():
                self._log_failure()
                self._raise_stop()

    def _leave(self) -> None:
        """The RPC is over: nothing more is waited for on its account."""
        self._pipe.leave()
        self._wake.set()
        self._detach()
        if self._reading is not None:
            self._reading.cancel()
        if self._recorded is not None and self._recorded.caller_left():
            self._cancel_handler()

    def _detach(self) -> None:
        """Count the run as one whose caller has left, unless it only waits for another, and so ends now."""
        if self._run is not None and not self._waits:
            self._run.detach()

    def _cancel_handler(self) -> None:
        """Once: what it awaits after that, to end in good order, is its own affair."""
        handling, self._handling = self._handling, None
        if handling is not None:
            handling.cancel()

    async def _open(self, initial_metadata: Metadata) -> None:
        if not self._is_opened:
            self._is_opened = True
            if self._recorded is not None:
                self._recorded.compress()
            await self._context.send_initial_metadata(initial_metadata)

    async def _end(self, answer: Answer) -> None:
        """Send the status of an answer, by the methods that interceptors outside look at."""
        if self._stop_by is not None:  # and there is none: _stop raises it
            return
        if answer.initial_metadata:
            await self._open(answer.initial_metadata)
        elif self._recorded is not None and not self._is_opened:
            self._recorded.compress()
        if self._recorded is not None and self._recorded.take_plain():
            disable_compression(self._context)
        self._context.set_trailing_metadata(answer.trailing_metadata)
        if self._recorded is not None:
            self._recorded.raise_failure()
        if answer.code is not grpc.StatusCode.OK:
            # grpc keeps the exception, whose frames have us: so we may not have grpc's context by then.
            context, self._context, self._recorded = self._context, None, None
            try:
                await context.abort(answer.code, answer.details)
            finally:
                del context
        if answer.details:
            self._context.set_details(answer.details)

    async def _reply(self, rules: Rules) -> Answer:
        """What to answer: by the time it is known, so does the store."""
        try:
            parse = self._handler.request_deserializer
            admitted = self._protection.admission.admit(rules, self._caller, self._raw, parse)
        except Refused as refused:
            return self._answered(Reply(refused.answer))
        self._raw = None
        self._patience = self._protection.patience(rules, self._context.time_remaining())
        with self._protection.running(admitted.call, self._patience) as run:
            self._run = run
            try:
                reply, answer = await self._drive(admitted)
            except GeneratorExit:
                if self._replied is None:
                    raise
                reply, answer = self._replied
            run.end(reply)
        if self._pipe.is_gone:
            self._log_failure()
            if self._stop_by is not None and (task := asyncio.current_task()) is not None:
                task.add_done_callback(asyncio.Task.exception)  # the loop gets it, and nobody awaits it
            self._raise_stop()
        return answer

    def _log_failure(self) -> None:
        if self._recorded is not None:
            self._recorded.log_failure()

    async def _drive(self, admitted: Admitted) -> tuple[Reply, Answer]:
        steps = flow(admitted.call)
        event: Event = None
        sent = 0.0
        while True:
            step = steps.send(event)
            if isinstance(step, Reply):
                answer = self._answered(step, self._patience)
                self._protection.finish(steps, admitted.call, self._promise)
                if self._is_dropped:
                    self._replied = step, answer
                return step, answer
            if isinstance(step, Swap) and step.key == admitted.call.key:
                sent = elapsed()
            if self._is_dropped or (self._stop_by is not None and isinstance(step, Execute)):
                event = cut_off(step)
                continue
            try:
                match step:
                    case Swap() as swap:
                        event = await self._swap(swap)
                        self._has_claim = self._has_claim or isinstance(event, Swapped)
                    case Wait() as wait:
                        event = await self._wait(wait)
                    case TakeOver() as takeover:
                        event = await self._take_over(takeover)
                    case Execute() as execute:
                        event = await self._execute(execute, admitted, sent)
                    case Compare() as wanted:
                        event = await self._compare(wanted, admitted)
                    case Pause():
                        raise AssertionError("a flow pauses only after its reply")
            except (KeyboardInterrupt, SystemExit) as stop:
                self._stop_by = stop
                event = cut_off(step)
            except GeneratorExit:  # the event loop drops this coroutine, which may wait for nothing more
                if isinstance(step, Execute) and self._ended is None:
                    raise
                self._is_dropped = True
                event = self._ended or cut_off(step)

    def _raise_stop(self) -> None:
        """Raise what is to end the process, once, if the handler raised it."""
        stop, self._stop_by = self._stop_by, None
        if stop is None:
            return
        try:
            raise stop
        finally:
            del stop  # which has this frame, and would keep it

    async def _swap(self, swap: Swap) -> Swapped | Held | Outage | Full:
        availability = self._protection.availability
        try:
            if self._promise is not None:
                return once_claimed(await availability.attempt_async(self._store, swap))
            if self._pipe.is_gone:
                self._detach()
            if not self._has_claim and (no_room := self._protection.no_room) is not None:
                seen = await availability.attempt_async(self._store, renewal(swap))
                return unless_claimable(swap, seen, no_room)
            return await availability.attempt_async(self._store, swap)
        except asyncio.CancelledError:
            return Outage()

    async def _wait(self, wait: Wait) -> Waited:
        run = self._protection.runs.find(wait.owner)
        if run is not None:
            return await self._wait_here(run)
        if self._pipe.is_gone or self._patience.left() == 0:
            return Waited(more=False)
        await self._sleep(self._patience.until_poll(wait))
        return Waited()

    async def _take_over(self, takeover: TakeOver) -> Waited:
        run = self._protection.runs.find(takeover.owner)
        if run is not None:
            return await self._wait_here(run)
        return Waited(hold=self._protection.availability.hold(takeover.lease))

    async def _wait_here(self, run: Run) -> Waited:
        """Wait for the reply of a run of this process."""
        if self._pipe.is_gone or self._patience.left() == 0:
            return Waited(more=False)
        wake = partial(self._loop.call_soon_threadsafe, self._wake.set)
        run.join(wake)
        await self._sleep(self._patience.left())
        run.leave(wake)
        return Waited(run.reply, more=False)

    async def _sleep(self, seconds: float) -> None:
        self._waits = True
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._leave()
        finally:
            self._waits = False

    async def _execute(self, execute: Execute, admitted: Admitted, sent: float) -> Ended | TooLate:
        rules = admitted.call.rules
        execution = admitted.execution(execute.record, sent)
        promise = Promise(execute.swap, execution.lease, is_protected=execute.acknowledged)
        pipe = self._pipe
        recording = self._recorded = Recording(
            self._caller,
            execution,
            rules,
            self._handler,
            self._context,
            is_gone=lambda: pipe.is_gone,
            in_aio=True,
        )

        try:
            with self._protection.keeping(promise, execution, execute.record.owner, self._caller):
                ended = await self._handle(recording, admitted, promise)
                recording.run_callbacks()
        except NotStarted:
            self._recorded = None
            return TooLate()
        except GeneratorExit:
            self._promise = promise
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # and not the handler's own
            if not isinstance(error, Exception):
                self._stop_by = error
            ended = recording.raised(error)
        self._promise = promise
        promise.size = ended.outcome.size
        return ended

    async def _handle(self, recording: Recording, admitted: Admitted, promise: Promise) -> Ended:
        stops = admitted.call.rules.on_cancel is OnCancel.CANCEL
        try:
            serving: Awaitable[Any] = self._serve(recording, admitted, promise)
            if stops and is_async(behavior_of(self._handler)):
                serving = handling = asyncio.ensure_future(serving)
                self._handling = None if handling.done() else handling  # as an eager task may be
                del handling
                if self._pipe.is_gone:  # since before there was a handler to cancel
                    self._cancel_handler()
            response = await serving
            streams = self._handler.response_streaming
            return recording.returned(None if streams else lambda: serialized(self._handler, response))
        except NotStarted:
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not is_async(behavior_of(self._handler)):
                raise  # the event loop drops this coroutine; the handler runs on a thread, and goes on
            self._ended = recording.raised(self._stop_by or error)
            return self._ended
        finally:
            del serving  # a task has its exception, and that has this frame

    async def _serve(self, recording: Recording, admitted: Admitted, promise: Promise) -> Any:
        """Call the handler. Returns its one response.

        Where the request stream breaks off, whoever reads is told by CallerGone; a handler whose
        other task that is, is cancelled, as grpc does, lest it wait for what that will not send.
        """
        incoming = recording.incoming
        run = admitted.call.owner if promise.is_protected else b""
        if is_async(behavior_of(self._handler)):
            self._handling = asyncio.current_task()

        async def send(response: Any) -> None:
            message = serialized(self._handler, response)
            recording.sends(message)
            self._streamed = admitted.call.owner
            ahead = opening(recording.initial_metadata, run)
            variables = copy_context() if self._handling is asyncio.current_task() else None
            await self._pipe.write(Part(message, ahead, recording.take_plain(), variables))

        async def receive(end: object) -> Any:
            recording.raise_if_over()
            try:
                raw = None if incoming is None else await self._pipe.read(incoming)
            except CallerGone:
                if self._handling is not asyncio.current_task():
                    self._cancel_handler()
                raise
            return end if incoming is None or raw is None else incoming.take(raw)

        try:
            threads, start = self._threads, promise.start
            return await serve(self._handler, admitted.request, recording, threads, start, send, receive)
        except (KeyboardInterrupt, SystemExit) as stop:  # which, from a task, would end the loop at once
            self._stop_by = stop
            raise _Stopped from None
        finally:
            self._handling = None
            self._variables = copy_context()

    async def _compare(self, wanted: Compare, admitted: Admitted) -> Compared:
        rules = admitted.call.rules
        incoming = Incoming(self._caller.method, rules, self._handler.request_deserializer)
        comparing = compare(incoming, wanted, has_turns=bool(self._handler.response_streaming))
        ahead = opening(wanted.outcome.initial_metadata, wanted.run)
        try:
            async with asyncio.timeout(rules.max_run):
                response = next(comparing)
                while True:
                    if response is None:
                        response = comparing.send(await self._pipe.read(incoming))
                    else:
                        await self._pipe.write(Part(response, ahead))
                        response = comparing.send(None)
        except StopIteration as end:
            return Compared(end.value)
        except (CallerGone, Refused, TimeoutError, asyncio.CancelledError):
            return Compared(same=False)


class _Stopped(Exception):
    """Stands for an exception that is to end the process, until the store knows how the run ended."""
