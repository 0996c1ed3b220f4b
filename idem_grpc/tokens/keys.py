"""Key sources that are fed by a TokenService, for grpc and grpc.aio."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from time import monotonic

import grpc
from google.protobuf.duration_pb2 import Duration as DurationMessage
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

from idem_grpc.policy import Duration, in_seconds
from idem_grpc.sources import Outgoing, SingleUse
from idem_grpc.tokens.issuing import MOST_AT_ONCE
from idem_grpc.tokens.pool import TokenPool

logger = logging.getLogger("idem_grpc")


class _Fetching(SingleUse):
    """What both faces have in common."""

    def __init__(
        self,
        operation: str,
        prefetch: int,
        ttl: Duration | None,
        metadata: Sequence[tuple[str, str | bytes]],
        timeout: Duration,
    ) -> None:
        if not 1 <= prefetch <= MOST_AT_ONCE:
            raise ValueError(f"TokenKeys(prefetch={prefetch}): give 1 to {MOST_AT_ONCE}")
        if not operation:
            raise ValueError("TokenKeys: name the operation, such as 'payments.charge'")
        self._operation = operation
        self._ttl = None if ttl is None else in_seconds(ttl)
        self._metadata = tuple(metadata)
        self._timeout = in_seconds(timeout)
        self._pool = TokenPool(prefetch)
        self._is_fetching = False

    def _request(self) -> token_pb2.IssueTokensRequest:
        request = token_pb2.IssueTokensRequest(operation=self._operation, count=self._pool.missing() or 1)
        if self._ttl is not None:
            ttl = DurationMessage()
            ttl.FromMilliseconds(round(self._ttl * 1000))
            request.ttl.CopyFrom(ttl)
        return request

    def _add(self, response: token_pb2.IssueTokensResponse, asked: float) -> None:
        self._pool.add(((token.token, token.ttl.ToMilliseconds() / 1000) for token in response.tokens), asked)

    def _noted(self, error: grpc.RpcError) -> grpc.RpcError:
        error.add_note(f"no token for {self._operation!r} could be had, so the call was not made")
        return error


class TokenKeys(_Fetching):
    """A source for ``client_interceptors(keys=…)`` whose keys are tokens of ``operation``.

    channel: to the TokenService, as the same caller as the calls that use the tokens.
    prefetch: how many tokens are kept ready, 1 to 100; more are fetched in the background
        when half of them are used. Default 16.
    ttl: how long an unused token shall live; None for the server's default.
    metadata: goes with each request for tokens, such as the tenant that scopes them.
    timeout: for a request for tokens; default 5 seconds.

    No token is given out twice, or near its end. Where none can be had, the call fails
    with the RpcError of the request for it.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        operation: str,
        *,
        prefetch: int = 16,
        ttl: Duration | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: Duration = 5.0,
    ) -> None:
        super().__init__(operation, prefetch, ttl, metadata, timeout)
        self._stub: token_pb2_grpc.TokenServiceStub = token_pb2_grpc.TokenServiceStub(channel)
        self._lock = threading.Lock()

    def __call__(self, _: Outgoing) -> str:
        """A token that nobody has used."""
        while (token := self._pool.take(monotonic())) is None:
            try:
                self._fetch()
            except grpc.RpcError as error:
                raise self._noted(error) from None
        if self._pool.missing() and self._begins():
            threading.Thread(target=self._fetch_ahead, name="idem_grpc tokens", daemon=True).start()
        return token

    def _begins(self) -> bool:
        with self._lock:
            begins, self._is_fetching = not self._is_fetching, True
            return begins

    def _fetch_ahead(self) -> None:
        try:
            self._fetch()
        except grpc.RpcError as error:
            logger.warning("tokens for %r could not be fetched ahead: %s", self._operation, error)
        finally:
            self._is_fetching = False

    def _fetch(self) -> None:
        asked = monotonic()
        response = self._stub.IssueTokens(self._request(), timeout=self._timeout, metadata=self._metadata)
        self._add(response, asked)


class AsyncTokenKeys(_Fetching):
    """The same for ``grpc.aio``."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        operation: str,
        *,
        prefetch: int = 16,
        ttl: Duration | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: Duration = 5.0,
    ) -> None:
        super().__init__(operation, prefetch, ttl, metadata, timeout)
        self._stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        self._fetching: asyncio.Task[None] | None = None

    async def __call__(self, _: Outgoing) -> str:
        """A token that nobody has used."""
        while (token := self._pool.take(monotonic())) is None:
            try:
                await self._fetch()
            except grpc.RpcError as error:
                raise self._noted(error) from None
        if self._pool.missing() and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch_ahead())
        return token

    async def _fetch_ahead(self) -> None:
        try:
            await self._fetch()
        except grpc.RpcError as error:
            logger.warning("tokens for %r could not be fetched ahead: %s", self._operation, error)

    async def _fetch(self) -> None:
        asked = monotonic()
        response = await self._stub.IssueTokens(
            self._request(), timeout=self._timeout, metadata=self._metadata
        )
        self._add(response, asked)
