"""The client interceptors for ``grpc``: a key for every call, and retries that keep it.

A blocking call is retried on its caller's thread and ends as grpc's own; a future, and a
stream of responses, is a RetriedCall. Which of the two a call with one response is shows in
what the first attempt gives.
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
    """The interceptors to give to a channel, all of them, and to no other channel::

        channel = grpc.intercept_channel(
            grpc.insecure_channel(target), *client_interceptors(keys=keys.unique)
        )

    keys: where the key of a call comes from: ``keys.unique``, ``keys.from_request(…)``,
        any function of an ``Outgoing``, or a mapping of "/pkg.Service/Method" or
        "/pkg.Service/*" to such sources. The call's own ``idempotency-key`` metadata comes
        first, then ``keys.using``. By default, methods whose contract declares a key rule
        get what it says, and others get no key.
    retry: how calls that bear a key, or are marked idempotent, are sent again, within the
        deadline of the call and a budget for the channel. None leaves that to gRPC's own
        retries, on which the key rides along; both together would multiply.
    derive: inside a keyed handler, calls without a key of their own get one that is
        derived from the handler's, the same whenever that is run again.

    One call has one key, which is the same in every attempt. Raises ValueError or TypeError
    for patterns and templates that are at fault. A call raises what its source of keys
    does, ValueError for a key that may not be sent, and RuntimeError if order would decide
    which derived key it gets.
    """
    return [_Interceptor(Channel(keys, retry, derive))]


def replayed(call: Any) -> bool | None:
    """Whether a call, or its error, brought the answer of an earlier run; waits until it is over.

    None if the server does not protect the method, so that the key was of no use.
    """
    return replayed_in(call.trailing_metadata())


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """All four kinds of method."""

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
