"""The interceptor for asyncio servers, ``grpc.aio.server``."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc._core.durations import Duration, in_seconds
from idem_grpc._core.policy import Policy
from idem_grpc._core.reporter import Reporter
from idem_grpc._core.scope import Scope
from idem_grpc._server.admission import TOKEN_SERVICE, check_executor, check_limits, with_details
from idem_grpc._server.aio_call import AioCall
from idem_grpc._server.aio_handlers import Threads
from idem_grpc._server.handlers import Handler, RawHandler, refusing
from idem_grpc._server.protection import Protection
from idem_grpc.stores._protocol import AsyncStore, OnLoop


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Makes the keyed calls of a ``grpc.aio.server`` take effect once.

    Takes the same arguments and raises the same exceptions as ``idem_grpc.ServerInterceptor``, except
    for those listed here. Handlers may be coroutines, or plain functions, which run on a thread.

    Used in a ``grpc.server`` by mistake, it refuses every call with MISCONFIGURED.

    store: a store from ``idem_grpc.aio.open_store``. The caller closes it, after ``drain``.
    max_waiters: how many duplicates may wait for a running call. They occupy no thread. Default 1000.
    max_detached: how many runs may continue after their callers left. Set it if you set
        ``maximum_concurrent_rpcs``, which does not count such runs. Default 1000.
    executor: runs plain functions; each occupies a thread while it runs. Pass the server's
        ``migration_thread_pool``, which an interceptor cannot see. The caller shuts it down, after
        ``drain``. Default: up to 128 threads that belong to the interceptor and end with ``drain``.
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
        max_detached: int = 1000,
        cache_bytes: int = 8 * 1024 * 1024,
        executor: Executor | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        if not isinstance(store, AsyncStore):
            raise TypeError(f"store={store!r}: give a store from idem_grpc.aio.open_store")
        check_limits(max_waiters, max_detached, cache_bytes, reporter)
        check_executor(executor)
        self._store = store
        self._on_loop = store.blocking if isinstance(store.blocking, OnLoop) else None
        self._threads = Threads(executor)
        self._protection = Protection(
            store.blocking,
            scope=scope,
            services=services,
            policies=policies,
            default=default,
            max_waiters=max_waiters,
            max_detached=max_detached,
            cache_bytes=cache_bytes,
            reporter=reporter,
        )

    async def drain(self, timeout: Duration | None = None) -> int:
        """Wait until all runs have ended, as ``idem_grpc.ServerInterceptor.drain`` does."""
        runs = self._protection.runs
        await asyncio.sleep(0)  # let tasks that were created but have not started register their flows
        with suppress(TimeoutError):
            async with asyncio.timeout(None if timeout is None else in_seconds(timeout)):
                while runs.left():
                    await asyncio.wrap_future(runs.over())
        if (left := runs.left()) == 0:
            self._threads.close()
        return left

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Coroutine[Any, Any, Handler | None]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # used in grpc.server, which does not check the class of its interceptors
            refused: Any = refusing(continuation(handler_call_details), handler_call_details.method)
            return refused  # type: ignore[no-any-return]  # grpc.server expects a handler, not a coroutine
        return self._intercept(continuation, handler_call_details)

    async def _intercept(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method.startswith(TOKEN_SERVICE):
            handler = with_details(handler, handler_call_details)
        planned = self._protection.plan(handler_call_details, handler)
        if planned is None:
            return handler
        method, metadata, given_keys, refused = planned
        if self._on_loop is not None:
            self._on_loop.use_running_loop()
        # A weak reference: an outer interceptor may run this in a task of its own, which then holds the
        # returned handler.
        rpc = weakref.ref(asyncio.current_task()) if method.streams_responses else None
        arrived = partial(
            AioCall, self._protection, method, metadata, given_keys, self._store, self._threads, rpc
        )

        # grpc's context keeps the exception of an abort, whose traceback keeps these frames. To avoid a
        # cycle, they must not hold the context, nor the request stream, which refers to it.

        async def response(request: Any, context: Any) -> Any:
            call, body = arrived(context), None if method.streams_requests else request
            del request, context
            return await call.response(body, refused)

        async def responses(request: Any, context: Any) -> AsyncIterator[Any]:
            call, body = arrived(context), None if method.streams_requests else request
            del request, context
            async with aclosing(call.responses(body, refused)) as messages:
                async for message in messages:
                    yield message

        return RawHandler(handler, responses if method.streams_responses else response)
