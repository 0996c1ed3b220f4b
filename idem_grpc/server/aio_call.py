"""One call to an asyncio server, from its arrival to its end.

grpc cancels an RPC's coroutine when the caller goes away, so the flow runs in a task of
its own. Should that be cancelled too, as at the end of the event loop, each of its steps
comes to an end that the flow knows how to go on from.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Any

import grpc

from idem_grpc.execution import running
from idem_grpc.flow import flow
from idem_grpc.outcome import Metadata
from idem_grpc.policy import OnCancel, Rules
from idem_grpc.server.admission import Admitted, Caller, Refused
from idem_grpc.server.aio_pipe import Pipe
from idem_grpc.server.arities import Handler, behavior_of, closed_after, is_async, serialized
from idem_grpc.server.base import Protection
from idem_grpc.server.keeper import failed
from idem_grpc.server.recording import AsyncRecordingContext, CallerGone, Recording, RecordingContext
from idem_grpc.server.replies import Answer, opening
from idem_grpc.server.transcript import Incoming, compare
from idem_grpc.steps import Compare, Compared, Ended, Event, Execute, Outage, Pause, Reply, Wait, Waited
from idem_grpc.stores.protocol import AsyncStore
from idem_grpc.swap import Held, Swap, Swapped

_END = object()


class AioCall:
    """One call that arrived. ``raw`` is its request; None if that is a stream."""

    def __init__(
        self,
        store: AsyncStore,
        protection: Protection,
        handler: Handler,
        caller: Caller,
        context: Any,
        raw: bytes | None,
    ) -> None:
        self._store = store
        self._protection = protection
        self._handler = handler
        self._caller = caller
        self._context = context
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        self._pipe = Pipe()
        self._is_opened = False
        self._streamed = b""
        self._recorded: Recording | None = None
        self._handling: asyncio.Future[Any] | None = None
        self._wake = asyncio.Event()

    async def serve(self, plan: Rules | Reply, tasks: set[asyncio.Task[Reply]]) -> bytes | None:
        """Be the coroutine of the RPC. The task of the flow is kept in ``tasks`` while it lasts."""
        if isinstance(plan, Reply):
            return await self._end(self._protection.answer(plan, self._caller), 0)
        flow_task = asyncio.create_task(self._reply(plan))
        tasks.add(flow_task)
        flow_task.add_done_callback(tasks.discard)
        flow_task.add_done_callback(lambda _: self._pipe.close())
        reading = (
            asyncio.create_task(self._pipe.pump(self._context)) if self._handler.request_streaming else None
        )
        sent = 0
        try:
            while (item := await self._pipe.take()) is not None:
                message, written = item
                await self._open(self._pipe.opening)
                await self._context.write(message)
                sent += 1
                self._pipe.written(written)
            answer = self._protection.answer(flow_task.result(), self._caller, self._streamed)
            return await self._end(answer, sent)
        finally:
            self._leave()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _leave(self) -> None:
        """The RPC is over: nothing more is waited for on its account."""
        self._pipe.leave()
        self._wake.set()
        if self._recorded is not None:
            self._recorded.caller_left()
        if self._handling is not None:
            self._handling.cancel()

    async def _open(self, initial_metadata: Metadata) -> None:
        if not self._is_opened:
            self._is_opened = True
            if self._recorded is not None:
                self._recorded.compress(self._context)
            await self._context.send_initial_metadata(initial_metadata)

    async def _end(self, answer: Answer, sent: int) -> bytes | None:
        """Send what is left of an answer, of which ``sent`` messages were."""
        body = None
        if not self._handler.response_streaming:
            body = answer.messages[0] if answer.messages else b""
        else:
            for message in answer.messages[sent:]:
                await self._open(answer.opening)
                await self._context.write(message)
        if answer.initial_metadata:
            await self._open(answer.initial_metadata)
        elif self._recorded is not None and not self._is_opened:
            self._recorded.compress(self._context)
        if answer.code is not grpc.StatusCode.OK:
            await self._context.abort_with_status(answer)
        self._context.set_trailing_metadata(answer.trailing_metadata)
        return body

    async def _reply(self, rules: Rules) -> Reply:
        """What to answer: by the time it is known, so does the store."""
        try:
            parse = self._handler.request_deserializer
            admitted = self._protection.admission.admit(rules, self._caller, self._raw, parse)
        except Refused as refused:
            return Reply(refused.answer)
        self._patience = self._protection.patience(rules, self._context.time_remaining())
        with self._protection.running(admitted.call, self._patience) as run:
            reply = await self._drive(admitted)
            run.set_result(reply)
        return reply

    async def _drive(self, admitted: Admitted) -> Reply:
        steps = flow(admitted.call)
        event: Event = None
        sent = 0.0
        while True:
            match steps.send(event):
                case Swap() as swap:
                    sent = monotonic()
                    event = await self._swap(swap)
                case Wait() as wait:
                    event = await self._wait(wait)
                case Execute() as execute:
                    event = await self._execute(execute, admitted, sent)
                case Compare() as wanted:
                    event = await self._compare(wanted, admitted)
                case Reply() as reply:
                    self._protection.finish(steps, admitted.call.owner)
                    return reply
                case Pause():
                    raise AssertionError("a flow pauses only after its reply")

    async def _swap(self, swap: Swap) -> Swapped | Held | Outage:
        try:
            return await self._store.swap(swap.key, swap.expected, swap.new, swap.ttl, swap.max_left)
        except asyncio.CancelledError:
            return Outage()
        except Exception as error:
            return failed(error)

    async def _wait(self, wait: Wait) -> Waited:
        if self._pipe.is_gone or self._patience.left() == 0:
            return Waited(more=False)
        run = self._protection.runs.find(wait.owner)
        if run is None:
            await self._sleep(self._patience.until_poll(wait))
            return Waited()
        run.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._wake.set))
        await self._sleep(self._patience.left())
        return Waited(run.result()) if run.done() else Waited(more=False)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._leave()

    async def _execute(self, execute: Execute, admitted: Admitted, sent: float) -> Ended:
        rules, owner = admitted.call.rules, admitted.call.owner
        execution = admitted.execution(execute.record)
        kind = AsyncRecordingContext if is_async(behavior_of(self._handler)) else RecordingContext
        recording = self._recorded = kind(
            self._caller,
            execution,
            rules,
            self._handler,
            time_remaining=self._context.time_remaining,
            is_gone=lambda: self._pipe.is_gone,
        )

        def lose() -> None:
            self._protection.lose(execution, self._caller, owner)

        with self._protection.keeper.renewing(execute.swap, rules, lose, sent), running(execution):
            try:
                serving: Awaitable[Any] = self._serve(recording, admitted)
                if rules.on_cancel is OnCancel.CANCEL and kind is AsyncRecordingContext:
                    serving = self._handling = asyncio.ensure_future(serving)
                    if self._pipe.is_gone:  # since before there was a handler to cancel
                        self._handling.cancel()
                response = await serving
                streams = self._handler.response_streaming
                ended = recording.returned(None if streams else lambda: serialized(self._handler, response))
            except (Exception, asyncio.CancelledError) as error:
                ended = recording.raised(error)
            recording.run_callbacks()
        return ended

    async def _serve(self, recording: Recording, admitted: Admitted) -> Any:
        """Call the handler, in whichever of grpc's styles it is written. Returns its one response."""
        behavior, incoming = behavior_of(self._handler), recording.incoming

        async def send(response: Any) -> None:
            message = serialized(self._handler, response)
            recording.sends(message)
            self._streamed = admitted.call.owner
            await self._pipe.write(message, opening(recording.initial_metadata, admitted.call.owner))

        async def receive(end: object = _END) -> Any:
            raw = None if incoming is None else await self._pipe.read(incoming)
            return end if incoming is None or raw is None else incoming.take(raw)

        async def requests() -> AsyncIterator[Any]:
            while (request := await receive()) is not _END:
                yield request

        if not isinstance(recording, AsyncRecordingContext):
            serving = asyncio.to_thread(self._serve_on_thread, recording, admitted, send, receive)
            return await _to_its_end(asyncio.ensure_future(serving))
        if incoming is not None:
            recording.reader = partial(receive, grpc.aio.EOF)
        if self._handler.response_streaming:
            recording.writer = send
        request = admitted.request if incoming is None else requests()
        if inspect.isasyncgenfunction(behavior):
            async with aclosing(behavior(request, recording)) as responses:
                async for response in responses:
                    await send(response)
            return None
        return await behavior(request, recording)

    def _serve_on_thread(
        self,
        recording: Recording,
        admitted: Admitted,
        send: Callable[[Any], Coroutine[Any, Any, None]],
        receive: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Call a plain function, whose streams are plain iterators."""

        def wait_for(step: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(step, self._loop).result()

        is_stream = recording.incoming is not None
        request = iter(lambda: wait_for(receive()), _END) if is_stream else admitted.request
        response = behavior_of(self._handler)(request, recording)
        if not self._handler.response_streaming:
            return response
        with closed_after(response):
            for each in response:
                wait_for(send(each))
        return None

    async def _compare(self, wanted: Compare, admitted: Admitted) -> Compared:
        rules = admitted.call.rules
        incoming = Incoming(self._caller.method, rules, self._handler.request_deserializer)
        comparing = compare(incoming, wanted)
        try:
            async with asyncio.timeout(rules.max_run):
                response = next(comparing)
                while True:
                    if response is None:
                        response = comparing.send(await self._pipe.read(incoming))
                    else:
                        await self._pipe.write(
                            response, opening(wanted.outcome.initial_metadata, wanted.owner)
                        )
                        response = comparing.send(None)
        except StopIteration as end:
            return Compared(end.value)
        except (CallerGone, Refused, TimeoutError, asyncio.CancelledError):
            return Compared(same=False)


async def _to_its_end(thread: asyncio.Future[Any]) -> Any:
    """Await what runs on a thread: no cancel stops that, so none may have us think it ended."""
    while True:
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.done():
                raise
