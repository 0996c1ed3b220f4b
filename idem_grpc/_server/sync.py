"""The interceptor for threaded servers, ``grpc.server``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc._core.durations import Duration, in_seconds
from idem_grpc._core.policy import Policy
from idem_grpc._core.reporter import Reporter
from idem_grpc._core.scope import Scope
from idem_grpc._server.admission import TOKEN_SERVICE, check_limits, with_details
from idem_grpc._server.handlers import Handler, RawHandler
from idem_grpc._server.protection import Protection
from idem_grpc._server.sync_call import SyncCall
from idem_grpc.stores._protocol import Store


class ServerInterceptor(grpc.ServerInterceptor):
    """Makes the keyed calls of a ``grpc.server`` take effect once.

    List it first, or right after authentication that reads only metadata::

        grpc.server(pool, interceptors=[ServerInterceptor(store, scope=metadata("x-tenant-id"))])

    store: a store from ``idem_grpc.open_store``. The caller closes it, after ``drain``.
    scope: who shares keys and answers: SHARED, PEER, ``metadata(name)`` or a function of
        CallInfo. No default: an answer must not reach a caller who guessed a key.
    services: names or descriptors of services to check completely now, rather than at their first call.
    policies: maps "/pkg.Service/Method" or "/pkg.Service/*" to a Policy.
    default: the Policy for fields that ``policies`` leave open.
    max_waiters: how many duplicates may wait for a running call. Each occupies a thread of the
        server's pool; a quarter of the pool is a good value. Further duplicates are answered with
        IN_PROGRESS at once. Default 2.
    max_detached: how many runs may continue after their callers left. At the limit, a call that would
        run is refused with OVERLOADED; replays and duplicates are still served. Each such run also
        occupies a thread of the server's pool. Default 1000.
    cache_bytes: how many bytes of answers to keep in this process, for duplicates that arrive within 10
        seconds. Other duplicates read the store. 0 disables the cache. Default 8 MiB.
    reporter: a Reporter, called for every keyed call. Default: none.

    Raises ValueError or TypeError for settings that are invalid or contradict each other.
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
        max_detached: int = 1000,
        cache_bytes: int = 8 * 1024 * 1024,
        reporter: Reporter | None = None,
    ) -> None:
        if not isinstance(store, Store):
            raise TypeError(
                f"store={store!r}: give a store from idem_grpc.open_store (not from idem_grpc.aio)"
            )
        check_limits(max_waiters, max_detached, cache_bytes, reporter)
        self._store = store
        self._protection = Protection(
            store,
            scope=scope,
            services=services,
            policies=policies,
            default=default,
            max_waiters=max_waiters,
            max_detached=max_detached,
            cache_bytes=cache_bytes,
            reporter=reporter,
        )

    def drain(self, timeout: Duration | None = None) -> int:
        """Wait until all runs have ended and their outcomes are stored.

        Call it after ``server.stop`` and before the store is closed.

        timeout: seconds or a timedelta. Default: None, no limit.

        Returns how many runs had not ended in time. Other processes can take them over once their leases
        run out.
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
        if handler_call_details.method.startswith(TOKEN_SERVICE):
            handler = with_details(handler, handler_call_details)
        planned = self._protection.plan(handler_call_details, handler)
        if planned is None:
            return handler
        method, metadata, given_keys, refused = planned

        def behavior(request: Any, context: grpc.ServicerContext) -> Any:
            call = SyncCall(self._protection, method, metadata, given_keys, context)
            serve = call.responses if method.streams_responses else call.response
            return serve(self._store, request, refused)

        return RawHandler(handler, behavior)
