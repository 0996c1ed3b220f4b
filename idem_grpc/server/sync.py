"""The interceptor for threaded servers, ``grpc.server``.

grpc never stops a handler's thread, so a flow runs where its call arrived. What is left
of it after the reply goes to the keeper.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from time import monotonic

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
from idem_grpc.server.keeper import attempt
from idem_grpc.server.recording import RecordingContext
from idem_grpc.steps import Ended, Event, Execute, Pause, Reply, Wait, Waited
from idem_grpc.stores.protocol import Store
from idem_grpc.swap import Swap


class ServerInterceptor(grpc.ServerInterceptor):
    """Makes the keyed calls of a ``grpc.server`` take effect once.

    List it first, after authentication that reads metadata only::

        grpc.server(pool, interceptors=[ServerInterceptor(store, scope=metadata("x-tenant-id"))])

    store: from ``idem_grpc.open_store``. It stays yours to close, after ``drain``.
    scope: who shares keys and answers: SHARED, PEER, ``metadata(name)`` or a function of
        CallInfo. No default: an answer must not reach a caller who guessed a key.
    services: names or descriptors of services to check whole now, and not at their first call.
    policies: maps "/pkg.Service/Method" or "/pkg.Service/*" to a Policy. ``default`` is
        for what they leave open.
    max_waiters: how many duplicates may wait for a running call on a thread of the server's
        pool, whose size is not known here: a quarter of it is good. The others are told
        IN_PROGRESS at once. Default 2.
    reporter: is told of every keyed call.

    Raises ValueError or TypeError for settings that are wrong or contradict each other.
    """

    def __init__(
        self,
        store: Store,
        *,
        scope: Scope,
        services: Iterable[str | ServiceDescriptor] = (),
        policies: Mapping[str, Policy] = {},
        default: Policy = Policy(),  # noqa: B008 -- it is frozen
        max_waiters: int = 2,
        reporter: Reporter | None = None,
    ) -> None:
        if not isinstance(store, Store):
            raise TypeError(
                f"store={store!r}: give a store of idem_grpc.open_store (idem_grpc.aio has its own)"
            )
        self._store = store
        self._protection = Protection(
            store,
            scope=scope,
            services=services,
            policies=policies,
            default=default,
            max_waiters=max_waiters,
            reporter=reporter,
        )

    def drain(self, timeout: Duration | None = None) -> int:
        """Wait until nothing is left to run or to store, ``timeout`` at the most.

        Call it after ``server.stop``, before the store is closed. Returns how many runs
        were not over in time: what became of them, others will find out by their leases.
        """
        return self._protection.runs.drain(None if timeout is None else in_seconds(timeout))

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        plan = self._protection.plan(handler, handler_call_details)
        if plan is None:
            return handler
        method = handler_call_details.method

        def behavior(raw: bytes, context: grpc.ServicerContext) -> bytes:
            call = _Call(self._store, self._protection, handler, Caller.of(method, context), context)
            return call.send(plan if isinstance(plan, Reply) else call.reply(plan, raw))

        return raw_handler(handler, behavior)


class _Call:
    """One call that arrived: drives its flow on the thread of its RPC."""

    def __init__(
        self,
        store: Store,
        protection: Protection,
        handler: Handler,
        caller: Caller,
        context: grpc.ServicerContext,
    ) -> None:
        self._store = store
        self._protection = protection
        self._handler = handler
        self._caller = caller
        self._context = context
        self._recorded: RecordingContext | None = None
        self._wake = threading.Event()

    def reply(self, rules: Rules, raw: bytes) -> Reply:
        """What to answer to the request ``raw``: by the time it is known, so does the store."""
        try:
            parse = self._handler.request_deserializer
            admitted = self._protection.admission.admit(rules, self._caller, raw, parse)
        except Refused as refused:
            return Reply(refused.answer)
        self._patience = self._protection.patience(rules, self._context.time_remaining())
        if not self._context.add_callback(self._leave):
            self._leave()
        with self._protection.running(admitted.call, self._patience) as run:
            reply = self._drive(admitted)
            run.set_result(reply)
        return reply

    def _drive(self, admitted: Admitted) -> Reply:
        steps = flow(admitted.call)
        event: Event = None
        sent = 0.0
        while True:
            match steps.send(event):
                case Swap() as swap:
                    sent = monotonic()
                    event = attempt(self._store, swap)
                case Wait() as wait:
                    event = self._wait(wait)
                case Execute() as execute:
                    event = self._execute(execute, admitted, sent)
                case Reply() as reply:
                    self._protection.finish(steps, admitted.call.owner)
                    return reply
                case Pause():
                    raise AssertionError("a flow pauses only after its reply")

    def _wait(self, wait: Wait) -> Waited:
        if self._patience.left() == 0:
            return Waited(more=False)
        run = self._protection.runs.find(wait.owner)
        if run is None:
            self._wake.wait(self._patience.until_poll(wait))
            return Waited()
        run.add_done_callback(lambda _: self._wake.set())
        self._wake.wait(self._patience.left())
        return Waited(run.result()) if run.done() else Waited(more=False)

    def _leave(self) -> None:
        self._patience.gone = True
        self._wake.set()

    def _execute(self, execute: Execute, admitted: Admitted, sent: float) -> Ended:
        rules, owner = admitted.call.rules, admitted.call.owner
        execution = admitted.execution(execute.record)
        context = self._recorded = RecordingContext(self._caller, self._time_remaining)

        def lose() -> None:
            self._protection.lose(execution, self._caller, owner)

        with self._protection.keeper.renewing(execute.swap, rules, lose, sent), running(execution):
            try:
                response = behavior_of(self._handler)(admitted.request, context)
            except BaseException as error:  # the thread is the pool's: nothing may end it but the call
                ended = context.raised(error, execution, rules)
            else:
                ended = context.returned(lambda: serialized(self._handler, response), execution, rules)
            context.run_callbacks()
        return ended

    def _time_remaining(self) -> float | None:
        return self._context.time_remaining() if self._context.is_active() else None

    def send(self, reply: Reply) -> bytes:
        """End the RPC with a reply; for a caller that is gone, without one."""
        answer = self._protection.answer(reply, self._caller)
        if not self._context.is_active():
            return b""
        if self._recorded is not None:
            self._recorded.compress(self._context)
        if answer.initial_metadata:
            self._context.send_initial_metadata(answer.initial_metadata)
        if answer.code is not grpc.StatusCode.OK:
            self._context.abort_with_status(answer)
        self._context.set_trailing_metadata(answer.trailing_metadata)
        return answer.body
