"""The client interceptors for ``grpc``. Each call gets a key, and keeps it in all retries.

A blocking call is retried on its caller's thread, and its result is grpc's own. A future or a response stream
is a RetriedCall. Whether a call with one response is a future is known from what the first attempt returns.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc

from idem_grpc._client.answers import replayed_in
from idem_grpc._client.channel import Channel, with_key
from idem_grpc._client.foreign_calls import as_call, is_local_failure, when_over
from idem_grpc._client.keying import KeySource, checked
from idem_grpc._client.requests import SyncRequests
from idem_grpc._client.retry import Retry
from idem_grpc._client.sync_call import Continuation, Details, SyncDriver


def client_interceptors(
    *,
    keys: KeySource | Mapping[str, KeySource] | None = None,
    retry: Retry | None = Retry(),  # noqa: B008 -- it is frozen
    derive: bool = True,
) -> list[Any]:
    """Return the interceptors for one channel. Pass all of them, and make new ones for each channel::

        channel = grpc.intercept_channel(
            grpc.insecure_channel(target), *client_interceptors(keys=keys.unique)
        )

    keys: where the key of a call comes from: ``keys.unique``, ``keys.from_request(…)``, any function of an
        ``Outgoing``, or a mapping of "/pkg.Service/Method" or "/pkg.Service/*" to such sources. The call's
        own ``idempotency-key`` metadata takes precedence, then ``keys.using``. Default: None, which gives
        keys to methods whose contract has a key rule, and none to others.
    retry: how calls are sent again that have a key or are marked idempotent, within the deadline of the
        call and a budget for the channel. None leaves retries to gRPC itself, which sends the same key.
        Do not combine the two, because the numbers of attempts multiply.
    derive: whether calls made in a keyed handler get keys derived from the handler's, which are the same
        whenever the handler is run again.

    One call has one key, which is the same in every attempt. Raises ValueError or TypeError for invalid
    patterns and templates. A call raises what its key source raises, ValueError for a key that may not be
    sent, and RuntimeError if chance would decide which derived key it gets.
    """
    return [_Interceptor(Channel(keys, retry, derive))]


def replayed(call: Any) -> bool | None:
    """Return whether the answer to a call, or its error, is that of an earlier run. Waits for its end.

    Returns None if the server does not protect the method, so the key had no effect.
    """
    return replayed_in(call.trailing_metadata())


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Intercepts all four kinds of method."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def intercept_unary_unary(self, continuation: Continuation, details: Any, request: Any) -> Any:
        return self._intercept(continuation, details, request, None)

    def intercept_unary_stream(self, continuation: Continuation, details: Any, request: Any) -> Any:
        return self._intercept(continuation, details, request, None, gives_stream=True)

    def intercept_stream_unary(self, continuation: Continuation, details: Any, requests: Any) -> Any:
        return self._intercept(continuation, details, None, requests)

    def intercept_stream_stream(self, continuation: Continuation, details: Any, requests: Any) -> Any:
        return self._intercept(continuation, details, None, requests, gives_stream=True)

    def _intercept(
        self,
        continuation: Continuation,
        given: Any,
        request: Any,
        stream: Any,
        *,
        gives_stream: bool = False,
    ) -> Any:
        chosen = self._channel.choose(given.method, request, given.metadata)
        try:
            key = checked(chosen.key)
            details = Details(
                given.method,
                given.timeout,
                with_key(given.metadata, key),
                given.credentials,
                getattr(given, "wait_for_ready", None),
                getattr(given, "compression", None),
            )
            if self._channel.will_retry(chosen) or chosen.derived is not None:
                if stream is not None:
                    request = SyncRequests(stream, self._channel.max_request_bytes)
                engine = self._channel.engine(chosen, key, given.timeout)
                driver = SyncDriver(
                    engine, continuation, details, request, gives_stream=gives_stream, source=chosen.source
                )
                return driver.run()
            call = continuation(details, request if stream is None else stream)
            if self._channel.watches(chosen) and not is_local_failure(call):
                if gives_stream:
                    call = as_call(call, is_stream=True)
                when_over(call, partial(self._channel.ended, chosen, key))
            return call
        except BaseException:
            chosen.end()
            raise
