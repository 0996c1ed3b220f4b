"""Key sources that fetch tokens from a TokenService, for grpc and grpc.aio.

A source has one request for tokens in flight at a time, shared by all calls that need a token.
Otherwise fifty threads at an empty pool would request fifty batches, and exceed the issue rate.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration as DurationMessage
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

from idem_grpc._core.checks import seconds_of, whole_number
from idem_grpc._core.durations import Duration
from idem_grpc._core.keys import Outgoing, SingleUse
from idem_grpc._core.metadata import METADATA_NAME, is_text
from idem_grpc._tokens.issuing import MAX_COUNT

_MARGIN_PART = 0.25
_MAX_MARGIN = 30.0


class Token(str):
    """A token with the generation of the pool that it was fetched for."""

    generation = 0


class TokenPool:
    """A thread-safe pool of up to ``size`` tokens. Times are monotonic, in seconds.

    ``generation`` counts how often the pool was dropped.
    """

    def __init__(self, size: int, refresh: float = 0.5) -> None:
        self._size = size
        self._refresh = refresh
        self._lock = Lock()
        self._tokens: deque[tuple[Token, float]] = deque()
        self.generation = 0

    def add(self, tokens: Iterable[tuple[str, float]], now: float, generation: int = 0) -> None:
        """Add pairs of a token and its ttl in seconds, which counts from ``now``, the time of the request.

        The last quarter of a token's life, at most 30 s, is reserved for the call that uses it. Tokens
        that were requested in an earlier generation are discarded.
        """
        with self._lock:
            if generation != self.generation:
                return
            for name, ttl in tokens:
                token = Token(name)
                token.generation = generation
                self._tokens.append((token, now + ttl - min(ttl * _MARGIN_PART, _MAX_MARGIN)))

    def drop(self, token: str) -> None:
        """Drop all tokens if ``token`` belongs to the current generation; earlier ones are gone."""
        with self._lock:
            if isinstance(token, Token) and token.generation == self.generation:
                self.generation += 1
                self._tokens.clear()

    def take(self, now: float) -> Token | None:
        """Remove and return the oldest token that is still valid; None if there is none."""
        with self._lock:
            while self._tokens:
                token, good_until = self._tokens.popleft()
                if now < good_until:
                    return token
            return None

    def missing(self) -> int:
        """Return how many tokens are missing; 0 if they are less than the part ``refresh`` of the size."""
        with self._lock:
            missing = self._size - len(self._tokens)
            return missing if missing >= self._refresh * self._size else 0


logger = logging.getLogger("idem_grpc")


class _TokenSource(SingleUse):
    """State and checks shared by the sync and asyncio sources."""

    def __init__(
        self,
        operation: str,
        prefetch: int,
        refresh: float,
        ttl: Duration | None,
        metadata: Sequence[tuple[str, str | bytes]],
        timeout: Duration,
    ) -> None:
        whole_number("TokenKeys", "prefetch", prefetch, smallest=1)
        if prefetch > MAX_COUNT:
            raise ValueError(f"TokenKeys(prefetch={prefetch}): give 1 to {MAX_COUNT}")
        part: object = refresh
        if not isinstance(part, (int, float)) or isinstance(part, bool) or not 0 < part <= 1:
            raise ValueError(
                f"TokenKeys(refresh={refresh!r}): give a fraction of prefetch, above 0 and up to 1"
            )
        name: object = operation
        if not isinstance(name, str) or not name:
            raise ValueError("TokenKeys: name the operation, such as 'payments.charge'")
        self._operation = operation
        self._ttl = None if ttl is None else seconds_of("TokenKeys", "ttl", ttl)
        self._metadata = _pairs(metadata)
        self._timeout = seconds_of("TokenKeys", "timeout", timeout)
        self._pool = TokenPool(prefetch, refresh)

    def drop(self, key: str) -> None:
        """Drop all tokens of the same generation as ``key``, which the server does not know."""
        self._pool.drop(key)

    def _request(self) -> token_pb2.IssueTokensRequest:
        request = token_pb2.IssueTokensRequest(operation=self._operation, count=self._pool.missing() or 1)
        if self._ttl is not None:
            ttl = DurationMessage()
            ttl.FromMilliseconds(round(self._ttl * 1000))
            request.ttl.CopyFrom(ttl)
        return request

    def _add(self, response: token_pb2.IssueTokensResponse, asked: float, generation: int) -> None:
        tokens = ((token.token, token.ttl.ToMilliseconds() / 1000) for token in response.tokens)
        self._pool.add(tokens, asked, generation)

    def _report(self, error: Exception, *, is_ahead: bool) -> None:
        error.add_note(f"no token for {self._operation!r} could be fetched, so the call was not sent")
        if is_ahead:
            logger.warning("tokens for %r could not be prefetched: %s", self._operation, error)


def _pairs(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    pairs: object = metadata
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise TypeError(f"TokenKeys(metadata={metadata!r}): give pairs, as in [('x-tenant-id', 'shop')]")
    given = tuple(metadata)
    each: tuple[object, ...] = given
    for pair in each:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"TokenKeys(metadata=…): {pair!r} is not a pair of a name and a value")
        _check_pair(*pair)
    return given


def _check_pair(name: str, value: object) -> None:
    """Reject metadata that grpc would reject at the first call.

    Messages do not quote the value, which may be secret.
    """
    if not METADATA_NAME.fullmatch(name):
        raise ValueError(
            f"TokenKeys(metadata=…): the name {name!r} cannot be sent: give lower-case letters, digits,"
            " '-', '_' and '.', as in 'x-tenant-id'"
        )
    is_binary = name.endswith("-bin")
    if not isinstance(value, bytes if is_binary else (str, bytes)):
        kind, wanted = type(value).__name__, "bytes" if is_binary else "a string"
        raise TypeError(f"TokenKeys(metadata=…): the value of {name!r} is of type {kind}: give {wanted}")
    if not is_binary and not is_text(value):
        raise ValueError(
            f"TokenKeys(metadata=…): the value of {name!r} cannot be sent: give printable ASCII characters,"
            " or bytes under a name that ends in '-bin'"
        )


class TokenKeys(_TokenSource):
    """A key source for ``client_interceptors(keys=…)`` whose keys are tokens of ``operation``.

    channel: a channel to the TokenService, with the same caller identity as the calls that use
        the tokens.
    operation: the name of the operation, as on the server.
    prefetch: the number of tokens kept ready, 1 to 100; default 16.
    refresh: the fraction of them that must be used before more are fetched in the background,
        above 0 and up to 1; default 0.5.
    ttl: the life of an unused token, a timedelta or seconds; None, the default, uses the server's.
    metadata: pairs sent with each request for tokens, such as the tenant that scopes them.
    timeout: for a request for tokens, a timedelta or seconds; default 5 seconds.

    No token is used twice, or shortly before it expires. If no token can be fetched, the call fails
    with the RpcError of that request. If the server does not know a token (TOKEN_UNKNOWN), the tokens
    of its generation are dropped, and the call is sent again, once, with a new token, if the channel
    retries and no attempt can have run. Raises ValueError or TypeError for invalid settings.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        operation: str,
        *,
        prefetch: int = 16,
        refresh: float = 0.5,
        ttl: Duration | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: Duration = 5.0,
    ) -> None:
        super().__init__(operation, prefetch, refresh, ttl, metadata, timeout)
        if not isinstance(channel, grpc.Channel):
            raise TypeError(
                f"TokenKeys({channel!r}): give a channel of grpc; for grpc.aio, use idem_grpc.aio.TokenKeys"
            )
        self._stub: token_pb2_grpc.TokenServiceStub = token_pb2_grpc.TokenServiceStub(channel)
        self._lock = threading.Lock()
        self._fetching: Future[None] | None = None

    def __call__(self, _: Outgoing) -> str:
        """Return an unused token, and wait for one if the pool is empty."""
        while (token := self._pool.take(monotonic())) is None:
            fetching, must_fetch = self._pending_or_new()
            if must_fetch:
                self._fetch(fetching)
            fetching.result()
        self._refresh()
        return token

    def another(self) -> Future[str]:
        """Return a future for a new token, for callers that must not block."""
        future: Future[str] = Future()
        self._resolve(future)
        return future

    def _resolve(self, future: Future[str], fetched: Future[None] | None = None) -> None:
        if fetched is not None and (failure := fetched.exception()) is not None:
            future.set_exception(failure)
        elif (token := self._pool.take(monotonic())) is not None:
            self._refresh()
            future.set_result(token)
        else:
            self._fetch_in_thread(is_ahead=False).add_done_callback(partial(self._resolve, future))

    def _refresh(self) -> None:
        if self._pool.missing():
            self._fetch_in_thread(is_ahead=True)

    def _fetch_in_thread(self, *, is_ahead: bool) -> Future[None]:
        """Return the request in flight; if there is none, start one in a thread."""
        fetching, must_fetch = self._pending_or_new()
        if must_fetch:
            thread = threading.Thread(
                target=self._fetch, args=(fetching, is_ahead), name="idem_grpc tokens", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # no more threads can be started
                self._end(fetching, None if is_ahead else error)
        return fetching

    def _pending_or_new(self) -> tuple[Future[None], bool]:
        """Return the request in flight or a new one, and whether the caller must send it."""
        with self._lock:
            must_fetch = self._fetching is None
            self._fetching = self._fetching or Future()
            return self._fetching, must_fetch

    def _fetch(self, fetching: Future[None], is_ahead: bool = False) -> None:
        asked, generation = monotonic(), self._pool.generation
        failure: Exception | None = None
        try:
            response = self._stub.IssueTokens(self._request(), timeout=self._timeout, metadata=self._metadata)
            self._add(response, asked, generation)
        except Exception as error:
            self._report(error, is_ahead=is_ahead)
            failure = error
        finally:  # even on a KeyboardInterrupt, or other threads would wait forever
            self._end(fetching, failure)

    def _end(self, fetching: Future[None], failure: Exception | None = None) -> None:
        with self._lock:
            self._fetching = None
        if failure is None:
            fetching.set_result(None)
        else:
            fetching.set_exception(failure)


class AsyncTokenKeys(_TokenSource):
    """A key source of tokens for ``grpc.aio``. The parameters are those of ``idem_grpc.TokenKeys``."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        operation: str,
        *,
        prefetch: int = 16,
        refresh: float = 0.5,
        ttl: Duration | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: Duration = 5.0,
    ) -> None:
        super().__init__(operation, prefetch, refresh, ttl, metadata, timeout)
        if not isinstance(channel, grpc.aio.Channel):
            raise TypeError(
                f"TokenKeys({channel!r}): give a channel of grpc.aio; for grpc, use idem_grpc.TokenKeys"
            )
        self._stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        self._fetching: asyncio.Task[Exception | None] | None = None

    async def __call__(self, _: Outgoing) -> str:
        """Return an unused token, and wait for one if the pool is empty."""
        return await self._take()

    async def _take(self) -> str:
        while (token := self._pool.take(monotonic())) is None:
            # Shielded: the cancellation of one caller must not cancel the request that all share.
            failure = await asyncio.shield(self._fetch())
            if failure is not None:
                raise failure
        if self._pool.missing():
            self._fetch(is_ahead=True)
        return token

    def another(self) -> Coroutine[Any, Any, str]:
        """Return a coroutine for a new token, in place of a dropped one."""
        return self._take()

    def _fetch(self, *, is_ahead: bool = False) -> "asyncio.Task[Exception | None]":
        """Return the request in flight; if there is none, start one."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._ask(is_ahead))
        return self._fetching

    async def _ask(self, is_ahead: bool) -> Exception | None:
        asked, generation = monotonic(), self._pool.generation
        try:
            response = await self._stub.IssueTokens(
                self._request(), timeout=self._timeout, metadata=self._metadata
            )
            self._add(response, asked, generation)
        except Exception as error:
            self._report(error, is_ahead=is_ahead)
            return error
        return None
