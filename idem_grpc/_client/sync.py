"""The client interceptors for ``grpc``: a key for every call, and retries that keep it.

A blocking call is retried on its caller's thread and ends as grpc's own; a future, and a
stream of responses, is a RetriedCall. Which of the two a call with one response is shows in
what the first attempt gives.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import grpc

from idem_grpc._client.answers import replayed_in
from idem_grpc._client.common import (
    NO_TOKEN,
    TOO_LARGE,
    Channel,
    Pairs,
    Trial,
    once,
    single,
    snapshot,
    with_another_key,
    with_key,
)
from idem_grpc._client.foreign_calls import as_call
from idem_grpc._client.grpc_calls import code_of, is_background, is_local_failure, metadata_of, when_over
from idem_grpc._client.keying import KeySource, checked
from idem_grpc._client.retry import Backoff, Renewal, Retry
from idem_grpc._client.sync_attempts import Attempts
from idem_grpc._client.sync_calls import RetriedCall
from idem_grpc._client.sync_requests import Requests
from idem_grpc._core.keys import SingleUse


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


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Pairs | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


Continuation = Callable[[Any, Any], Any]


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
        end = once(chosen.end)
        try:
            key = checked(chosen.key)
            details = _Details(
                given.method,
                given.timeout,
                with_key(given.metadata, key),
                given.credentials,
                getattr(given, "wait_for_ready", None),
                getattr(given, "compression", None),
            )
            sending = _Sending(continuation, details, request, stream, gives_stream, end, chosen.source)
            if self._channel.retry is not None and self._channel.will_retry(chosen):
                trial = self._channel.trial(chosen, key, given.timeout)
                return sending.attended(trial, self._channel.retry.max_request_bytes)
            if chosen.is_derived:
                return sending.attended(single(given.timeout), 0)
            call = continuation(details, request if stream is None else stream)
            if self._channel.attends_to(chosen) and not is_local_failure(call):
                if gives_stream:
                    call = as_call(call, is_stream=True)
                when_over(
                    call, lambda code, trailing: self._channel.ended(code, trailing, chosen.source, key)
                )
            return call
        except BaseException:
            end()
            raise


class _Sending:
    """What is sent in every attempt at one call. ``end`` is called when the call is over."""

    def __init__(
        self,
        continuation: Continuation,
        details: _Details,
        request: Any,
        stream: Any,
        gives_stream: bool,
        end: Callable[[], None],
        source: SingleUse | None,
    ) -> None:
        self._continuation = continuation
        self._details = details
        self._request = request
        self._stream = stream
        self._gives_stream = gives_stream
        self._requests: Requests | None = None
        self._end = end
        self._source = source

    def attended(self, trial: Trial, max_request_bytes: int) -> Any:
        """Send it, and again if it fails: here if its caller waits for it, elsewhere if not."""
        if self._stream is not None:
            self._requests = Requests(self._stream, max_request_bytes)
        call = self.send(trial.attempt())
        if is_background(call):
            self._request = snapshot(self._request)  # its caller may do with it what he wants to
            attempts = Attempts(self, call, trial, self._requests, self._end)
            return RetriedCall(attempts, self._details.timeout)
        try:
            return call if is_local_failure(call) else self._insist(call, trial)
        finally:
            self._end()
            if self._requests is not None:
                self._requests.close()

    def send(self, timeout: float | None) -> Any:
        """Make an attempt."""
        request = self._request if self._requests is None else self._requests.feed()
        call = self._continuation(replace(self._details, timeout=timeout), request)
        return as_call(call, is_stream=self._gives_stream)

    def another_key(self) -> "Future[str]":
        """A key in place of one for a single use that the server does not know."""
        assert self._source is not None
        return self._source.another()  # type: ignore[no-any-return]  # in this face

    def use(self, key: str) -> None:
        """Send ``key`` from now on."""
        self._details = replace(self._details, metadata=with_another_key(self._details.metadata, key))

    def _insist(self, call: Any, trial: Trial) -> Any:
        """Send a blocking call until it succeeds, or nothing more can be done for it."""
        while isinstance(call, grpc.RpcError):
            is_whole = self._requests is None or self._requests.is_whole
            step = trial.failed(code_of(call), metadata_of(call), can_resend=is_whole)
            if step is None:
                trial.note(call, *([TOO_LARGE] if trial.was_held_back else []))
                if not hasattr(call, "result"):  # another interceptor raised it, and grpc asks for its result
                    raise call
                return call
            if isinstance(step, Backoff):
                threading.Event().wait(min(step.seconds, threading.TIMEOUT_MAX))
            elif failure := self._renew(trial, step):
                trial.note(call, f"{NO_TOKEN}{failure!r}")
                return call
            following = self.send(trial.attempt())
            if is_local_failure(following):  # the channel was closed, or another interceptor is at fault
                trial.note(call, f"the last of them could not be sent: {following.exception()!r}")
                return call
            call = following
        trial.succeeded()
        return call

    def _renew(self, trial: Trial, renewal: Renewal) -> Exception | None:
        """Get another key. Returns why there is none."""
        timeout = None if renewal.timeout is None else min(renewal.timeout, threading.TIMEOUT_MAX)
        try:
            key = self.another_key().result(timeout)
        except Exception as error:
            return error
        self.use(key)
        trial.renewed(key)
        return None
