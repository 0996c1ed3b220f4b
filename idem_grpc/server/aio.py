"""The interceptor for asyncio servers, ``grpc.aio.server``.

grpc cancels a handler in the middle of a write when its caller goes away, so a flow runs
in a task of its own. Should that be cancelled too, as at the end of the event loop, each
step comes to an end that the flow knows how to go on from.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc.execution import running
from idem_grpc.flow import flow
from idem_grpc.policy import Duration, Policy, Rules, in_seconds
from idem_grpc.reporter import Reporter
from idem_grpc.scope import Scope
from idem_grpc.server.admission import Admitted, Caller, Refused
from idem_grpc.server.arities import Handler, behavior_of, raw_handler, serialized
from idem_grpc.server.base import Protection
from idem_grpc.server.keeper import failed
from idem_grpc.server.recording import AsyncRecordingContext, Recording, RecordingContext
from idem_grpc.steps import Ended, Event, Execute, Outage, Pause, Reply, Wait, Waited
from idem_grpc.stores.protocol import AsyncStore
from idem_grpc.swap import Held, Swap, Swapped


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """As ``idem_grpc.ServerInterceptor``, for a ``grpc.aio.server``.

    ``store`` is one of ``idem_grpc.aio.open_store``. Handlers may be coroutines, or plain
    functions, which run on a thread. A duplicate that waits costs no thread, so
    ``max_waiters`` is 1000 by default.
    """

    def __init__(
        self,
        store: AsyncStore,
        *,
        scope: Scope,
        services: Iterable[str | ServiceDescriptor] = (),
        policies: Mapping[str, Policy] = {},
        default: Policy = Policy(),  # noqa: B008 -- it is frozen
        max_waiters: int = 1000,
        reporter: Reporter | None = None,
    ) -> None:
        if not isinstance(store, AsyncStore):
            raise TypeError(f"store={store!r}: give a store of idem_grpc.aio.open_store")
        self._store = store
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._protection = Protection(
            store.blocking,
            scope=scope,
            services=services,
            policies=policies,
            default=default,
            max_waiters=max_waiters,
            reporter=reporter,
        )

    async def drain(self, timeout: Duration | None = None) -> int:
        """As ``idem_grpc.ServerInterceptor.drain``."""
        return await asyncio.to_thread(
            self._protection.runs.drain, None if timeout is None else in_seconds(timeout)
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        plan = self._protection.plan(handler, handler_call_details)
        if plan is None:
            return handler
        method = handler_call_details.method

        async def behavior(raw: bytes, context: Any) -> bytes:
            call = _Call(self._store, self._protection, handler, Caller.of(method, context), context)
            if isinstance(plan, Reply):
                return await call.send(plan)
            task = asyncio.create_task(call.reply(plan, raw))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                return await call.send(await asyncio.shield(task))
            except asyncio.CancelledError:
                call.leave()
                raise

        return raw_handler(handler, behavior)


class _Call:
    """One call that arrived: drives its flow in a task that outlives its RPC."""

    def __init__(
        self, store: AsyncStore, protection: Protection, handler: Handler, caller: Caller, context: Any
    ) -> None:
        self._store = store
        self._protection = protection
        self._handler = handler
        self._caller = caller
        self._context = context
        self._recorded: Recording | None = None
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._is_gone = False

    async def reply(self, rules: Rules, raw: bytes) -> Reply:
        """What to answer to the request ``raw``: by the time it is known, so does the store."""
        try:
            parse = self._handler.request_deserializer
            admitted = self._protection.admission.admit(rules, self._caller, raw, parse)
        except Refused as refused:
            return Reply(refused.answer)
        self._patience = self._protection.patience(rules, self._time_remaining())
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
        if self._is_gone or self._patience.left() == 0:
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
            self.leave()

    def leave(self) -> None:
        """The caller is gone: do not wait on its account, nor let the handler see its deadline."""
        self._is_gone = True
        self._wake.set()

    async def _execute(self, execute: Execute, admitted: Admitted, sent: float) -> Ended:
        rules, owner = admitted.call.rules, admitted.call.owner
        execution = admitted.execution(execute.record)

        def lose() -> None:
            self._protection.lose(execution, self._caller, owner)

        with self._protection.keeper.renewing(execute.swap, rules, lose, sent), running(execution):
            behavior, request = behavior_of(self._handler), admitted.request
            context: Any
            if inspect.iscoroutinefunction(behavior):
                context = AsyncRecordingContext(self._caller, self._time_remaining)
                served = behavior(request, context)
            else:
                context = RecordingContext(self._caller, self._time_remaining)
                served = asyncio.to_thread(behavior, request, context)
            self._recorded = context
            try:
                response = await served
            except (Exception, asyncio.CancelledError) as error:
                ended: Ended = context.raised(error, execution, rules)
            else:
                ended = context.returned(lambda: serialized(self._handler, response), execution, rules)
            context.run_callbacks()
        return ended

    def _time_remaining(self) -> float | None:
        remaining: float | None = None if self._is_gone else self._context.time_remaining()
        return remaining

    async def send(self, reply: Reply) -> bytes:
        """End the RPC with a reply."""
        answer = self._protection.answer(reply, self._caller)
        if self._recorded is not None:
            self._recorded.compress(self._context)
        if answer.initial_metadata:
            await self._context.send_initial_metadata(answer.initial_metadata)
        if answer.code is not grpc.StatusCode.OK:
            await self._context.abort_with_status(answer)
        self._context.set_trailing_metadata(answer.trailing_metadata)
        return answer.body
