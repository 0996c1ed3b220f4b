"""The client interceptors for ``grpc.aio``. Each call gets a key, and keeps it in all retries.

grpc registers an interceptor for the first kind of method that its class is made for, and
for no other, so there are four small classes over one core.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import grpc

from idem_grpc._client.aio_call import (
    AioDriver,
    Continuation,
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
    at_once,
    is_unsent,
    sent_details,
)
from idem_grpc._client.answers import replayed_in
from idem_grpc._client.channel import Channel, with_key
from idem_grpc._client.keying import Chosen, KeySource, checked
from idem_grpc._client.requests import AioRequests
from idem_grpc._client.retry import Retry


def client_interceptors(
    *,
    keys: KeySource | Mapping[str, KeySource] | None = None,
    retry: Retry | None = Retry(),  # noqa: B008 -- it is frozen
    derive: bool = True,
) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors for one channel of ``grpc.aio``. Pass all of them.

    Each call has one ``idempotency-key`` in all its attempts, from the first of these that gives one: its
    own metadata, ``keys.using``, ``keys.from_request``, a key derived from that of the keyed handler which
    makes the call, any other source in ``keys``.

    keys: a source for all methods, or a mapping of "/pkg.Service/Method" or "/pkg.Service/*" to sources.
        A source may return an awaitable, which counts against the call's deadline. Default: None, which
        is ``keys.unique`` for methods whose contract asks for keys, and no key for others.
    retry: how calls are sent again that have a key, or that the contract marks as idempotent. None
        disables retries. The budget belongs to this list, so make one list for each channel.
    derive: whether calls made in a keyed handler get derived keys.

    A call that fails raises grpc.aio.AioRpcError, with a note that gives the number of attempts. Raises
    ValueError or TypeError for invalid patterns, templates and sources.
    """
    caller = _Caller(Channel(keys, retry, derive))
    return [_UnaryUnary(caller), _UnaryStream(caller), _StreamUnary(caller), _StreamStream(caller)]


async def replayed(call: Any) -> bool | None:
    """Return whether the answer to a call, or its error, is that of an earlier run. Waits for its end.

    Returns None if the server does not protect the method, so the key had no effect.
    """
    trailing = call.trailing_metadata()  # a coroutine if it is a call, but not if it is an error
    return replayed_in(await trailing if inspect.isawaitable(trailing) else trailing)


class _Caller:
    """Makes the calls of a channel, for its four interceptors."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def call(
        self,
        kind: Callable[[AioDriver], Any],
        continuation: Continuation,
        details: Any,
        request: Any,
        *,
        takes_stream: bool = False,
        gives_stream: bool = False,
    ) -> Any:
        """Make a call. Returns the call object to give to grpc."""
        began = monotonic()
        method = details.method if isinstance(details.method, str) else details.method.decode()
        chosen = self._channel.choose(method, None if takes_stream else request, details.metadata)
        try:
            key = await _key(chosen, details.timeout)
            metadata = with_key(details.metadata, key)
            if takes_stream:
                # Under eager tasks, grpc's call that runs this is still being constructed, and what a caller
                # writes to it can only be read afterwards.
                await asyncio.sleep(0)
            timeout = None
            if details.timeout is not None:
                timeout = max(details.timeout - (monotonic() - began), 0.0)
            # Without an iterator, an outer interceptor writes to grpc's own call: nothing can be kept.
            if not self._channel.will_retry(chosen) or request is None:
                call = await continuation(sent_details(details, metadata, timeout), request)
                return self._watched(call, chosen, key)
            if takes_stream:
                request = AioRequests(request, self._channel.max_request_bytes)
            driver = AioDriver(
                self._channel.engine(chosen, key, timeout),
                continuation,
                details,
                metadata,
                request,
                timeout,
                gives_stream=gives_stream,
                source=chosen.source,
            )
        except BaseException:
            chosen.end()
            raise
        return kind(driver)

    def _watched(self, call: Any, chosen: Chosen, key: str | None) -> Any:
        """Return grpc's own call, which is sent only once, and have its end reported."""
        is_reported = False

        def over(call: Any) -> None:
            nonlocal is_reported
            chosen.end()
            code = at_once(call.code())
            # grpc calls this each time that it sets a status
            if not is_reported and code is not None and not is_unsent(code, at_once(call.details())):
                is_reported = True
                if self._channel.watches(chosen):
                    self._channel.ended(chosen, key, code, at_once(call.trailing_metadata()))

        if call.done():  # such as one that another interceptor made of a mere response
            over(call)
        else:
            call.add_done_callback(over)
        return call


async def _key(chosen: Chosen, timeout: float | None) -> str | None:
    """Return the key of a call. Its source may take as long as the call's own timeout."""
    if not inspect.isawaitable(chosen.key):
        return checked(chosen.key)
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            return checked(await chosen.key)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(),
            "the call's key did not come in time: it was not sent",
        ) from None


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._caller.call(UnaryUnaryCall, continuation, client_call_details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._caller.call(
            UnaryStreamCall, continuation, client_call_details, request, gives_stream=True
        )


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await self._caller.call(
            StreamUnaryCall, continuation, client_call_details, request_iterator, takes_stream=True
        )


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await self._caller.call(
            StreamStreamCall,
            continuation,
            client_call_details,
            request_iterator,
            takes_stream=True,
            gives_stream=True,
        )
