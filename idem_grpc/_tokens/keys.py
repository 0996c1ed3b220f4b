"""Key sources that are fed by a TokenService, for grpc and grpc.aio.

A source has one request for tokens on its way at a time, which all who lack one share:
else fifty threads at an empty pool would ask for fifty batches, and soon have had too many.
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
from idem_grpc._tokens.issuing import MOST_AT_ONCE

_LAST_PART = 0.25
_LONGEST_MARGIN = 30.0


class Token(str):
    """A token, which remembers the generation of the pool that it was fetched for."""

    generation = 0


class TokenPool:
    """Up to ``size`` tokens. ``now`` is a monotonic time in seconds. For threads.

    ``generation`` counts how often the pool was dropped.
    """

    def __init__(self, size: int, refresh: float = 0.5) -> None:
        self._size = size
        self._refresh = refresh
        self._lock = Lock()
        self._tokens: deque[tuple[Token, float]] = deque()
        self.generation = 0

    def add(self, tokens: Iterable[tuple[str, float]], now: float, generation: int = 0) -> None:
        """Add tokens that live so many seconds from ``now``, the time at which they were asked for.

        The last quarter of a token's life, at most 30 s, is left to the call that uses it. Tokens
        that were asked for in an earlier generation are left out.
        """
        with self._lock:
            if generation != self.generation:
                return
            for name, ttl in tokens:
                token = Token(name)
                token.generation = generation
                self._tokens.append((token, now + ttl - min(ttl * _LAST_PART, _LONGEST_MARGIN)))

    def drop(self, token: str) -> None:
        """Drop all tokens if ``token`` is of this generation; those of earlier ones were dropped before."""
        with self._lock:
            if isinstance(token, Token) and token.generation == self.generation:
                self.generation += 1
                self._tokens.clear()

    def take(self, now: float) -> Token | None:
        """The oldest token that is still good; None if there is none."""
        with self._lock:
            while self._tokens:
                token, good_until = self._tokens.popleft()
                if now < good_until:
                    return token
            return None

    def missing(self) -> int:
        """How many tokens would fill the pool, if it is worth asking: the part ``refresh`` or more."""
        with self._lock:
            missing = self._size - len(self._tokens)
            return missing if missing >= self._refresh * self._size else 0


logger = logging.getLogger("idem_grpc")


class _Fetching(SingleUse):
    """What both faces have in common."""

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
        if prefetch > MOST_AT_ONCE:
            raise ValueError(f"TokenKeys(prefetch={prefetch}): give 1 to {MOST_AT_ONCE}")
        part: object = refresh
        if not isinstance(part, (int, float)) or isinstance(part, bool) or not 0 < part <= 1:
            raise ValueError(f"TokenKeys(refresh={refresh!r}): give a part of prefetch, above 0 and up to 1")
        name: object = operation
        if not isinstance(name, str) or not name:
            raise ValueError("TokenKeys: name the operation, such as 'payments.charge'")
        self._operation = operation
        self._ttl = None if ttl is None else seconds_of("TokenKeys", "ttl", ttl)
        self._metadata = _pairs(metadata)
        self._timeout = seconds_of("TokenKeys", "timeout", timeout)
        self._pool = TokenPool(prefetch, refresh)

    def drop(self, key: str) -> None:
        """The server does not know a token of this source: drop those that were fetched with it."""
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

    def _note(self, error: Exception, *, is_ahead: bool) -> None:
        error.add_note(f"no token for {self._operation!r} could be had, so the call was not made")
        if is_ahead:
            logger.warning("tokens for %r could not be fetched ahead: %s", self._operation, error)


def _pairs(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    pairs: object = metadata
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise TypeError(f"TokenKeys(metadata={metadata!r}): give pairs, as in [('x-tenant-id', 'shop')]")
    given = tuple(metadata)
    each: tuple[object, ...] = given
    for pair in each:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"TokenKeys(metadata=…): {pair!r} is no pair of a name and a value")
        _check_pair(*pair)
    return given


def _check_pair(name: str, value: object) -> None:
    """Refuse what grpc would refuse at the first call. The value may be secret, so it is not shown."""
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


class TokenKeys(_Fetching):
    """A source for ``client_interceptors(keys=…)`` whose keys are tokens of ``operation``.

    channel: to the TokenService, as the same caller as the calls that use the tokens.
    prefetch: how many tokens are kept ready, 1 to 100; default 16.
    refresh: the part of them that must be used before more are fetched in the background;
        default 0.5.
    ttl: how long an unused token shall live; None for the server's default.
    metadata: goes with each request for tokens, such as the tenant that scopes them.
    timeout: for a request for tokens; default 5 seconds.

    No token is given out twice, or near its end. Where none can be had, the call fails
    with the RpcError of the request for it. When the server does not know a token
    (TOKEN_UNKNOWN), those that were fetched with it are dropped, and the call is sent
    again once with a new one, if the channel retries and no attempt can have been run.
    Raises ValueError or TypeError for settings that make no sense.
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
                f"TokenKeys({channel!r}): give a channel of grpc; idem_grpc.aio.TokenKeys has those of aio"
            )
        self._stub: token_pb2_grpc.TokenServiceStub = token_pb2_grpc.TokenServiceStub(channel)
        self._lock = threading.Lock()
        self._fetching: Future[None] | None = None

    def __call__(self, _: Outgoing) -> str:
        """A token that nobody has used."""
        while (token := self._pool.take(monotonic())) is None:
            fetching, is_mine = self._join()
            if is_mine:
                self._fetch(fetching)
            fetching.result()
        self._refresh()
        return token

    def another(self) -> Future[str]:
        """A token, as soon as there is one, for callers that must not wait here."""
        given: Future[str] = Future()
        self._give(given)
        return given

    def _give(self, given: Future[str], fetched: Future[None] | None = None) -> None:
        if fetched is not None and (failure := fetched.exception()) is not None:
            given.set_exception(failure)
        elif (token := self._pool.take(monotonic())) is not None:
            self._refresh()
            given.set_result(token)
        else:
            self._fetch_aside(is_ahead=False).add_done_callback(partial(self._give, given))

    def _refresh(self) -> None:
        if self._pool.missing():
            self._fetch_aside(is_ahead=True)

    def _fetch_aside(self, *, is_ahead: bool) -> Future[None]:
        """The request for tokens that is on its way; if there is none, one is made on a thread."""
        fetching, is_mine = self._join()
        if is_mine:
            thread = threading.Thread(
                target=self._fetch, args=(fetching, is_ahead), name="idem_grpc tokens", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # there are too many threads
                self._end(fetching, None if is_ahead else error)
        return fetching

    def _join(self) -> tuple[Future[None], bool]:
        """The request for tokens that is on its way, and whether it is left to the caller to make."""
        with self._lock:
            is_mine = self._fetching is None
            self._fetching = self._fetching or Future()
            return self._fetching, is_mine

    def _fetch(self, fetching: Future[None], is_ahead: bool = False) -> None:
        asked, generation = monotonic(), self._pool.generation
        failure: Exception | None = None
        try:
            response = self._stub.IssueTokens(self._request(), timeout=self._timeout, metadata=self._metadata)
            self._add(response, asked, generation)
        except Exception as error:
            self._note(error, is_ahead=is_ahead)
            failure = error
        finally:  # on a KeyboardInterrupt too, or else the others would wait for ever
            self._end(fetching, failure)

    def _end(self, fetching: Future[None], failure: Exception | None = None) -> None:
        with self._lock:
            self._fetching = None
        if failure is None:
            fetching.set_result(None)
        else:
            fetching.set_exception(failure)


class AsyncTokenKeys(_Fetching):
    """The same for ``grpc.aio``."""

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
                f"TokenKeys({channel!r}): give a channel of grpc.aio; idem_grpc.TokenKeys has those of grpc"
            )
        self._stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        self._fetching: asyncio.Task[Exception | None] | None = None

    async def __call__(self, _: Outgoing) -> str:
        """A token that nobody has used."""
        return await self._take()

    async def _take(self) -> str:
        while (token := self._pool.take(monotonic())) is None:
            # A caller who is cancelled does not take the others' tokens along.
            failure = await asyncio.shield(self._fetch())
            if failure is not None:
                raise failure
        if self._pool.missing():
            self._fetch(is_ahead=True)
        return token

    def another(self) -> Coroutine[Any, Any, str]:
        """A token in place of one that was dropped."""
        return self._take()

    def _fetch(self, *, is_ahead: bool = False) -> "asyncio.Task[Exception | None]":
        """The request for tokens that is on its way; a new one if there is none."""
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
            self._note(error, is_ahead=is_ahead)
            return error
        return None
