"""Stores on a Redis (or Valkey) server: one short script, one round trip a swap.

The plain and the asyncio store stand side by side and share all that is not
I/O. Every swap is safe to send twice, so redis-py may retry; it is told to do so
once, and to give up in bounded time, since the caller has something to say to
its own caller when the store is away.
"""

import asyncio
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from types import TracebackType
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from idem_grpc.stores.checking import check_swaps, check_swaps_async
from idem_grpc.stores.protocol import (
    AsyncStore,
    Store,
    StoreError,
    check_swap,
    looking,
)
from idem_grpc.stores.redis_errors import CLUSTER, failure, is_forbidden, is_of_another_type, left_out
from idem_grpc.stores.redis_url import RedisUrl
from idem_grpc.swap import Held, Swap, Swapped

_SCRIPT = files("idem_grpc.stores").joinpath("swap.lua").read_text("ascii")
# EVAL sends the script, and the server keeps it. It knows it by its digest from then on, until it restarts.
_BY_TEXT = ("EVAL", _SCRIPT)
_BY_DIGEST = ("EVALSHA", hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest())
_RETRIES = 1
_BACKOFF = ConstantBackoff(0.05)  # seconds
_PAGE = 100  # keys looked at by one SCAN
# Keys that check() looks at: so many that a cluster spreads them over its nodes, and this one lacks some.
_SPREAD = [looking(b"check:%d" % number) for number in range(100)]

_Arguments = tuple[int, bytes, bytes, bytes, int | bytes, int | bytes]

logger = logging.getLogger("idem_grpc")


@contextmanager
def _sentences() -> Iterator[None]:
    """Make a ValueError of whatever redis-py says of an option, when it is told of it."""
    try:
        yield
    except (TypeError, ValueError, RedisError) as error:
        raise ValueError(f"the Redis URL has an option that does not fit: {error}") from None


def _arguments(prefix: bytes, swap: Swap) -> _Arguments:
    """What the script is sent: the number of keys, the key, and the rest."""
    bounded = swap.max_left is not None and swap.max_left != math.inf
    return (
        1,
        prefix + swap.key,
        swap.expected or b"",
        swap.new or b"",
        math.ceil(swap.ttl * 1000) if swap.new is not None else b"",
        math.floor(swap.max_left * 1000) if swap.max_left is not None and bounded else b"",
    )


def _all_arguments(prefix: bytes, swaps: Sequence[Swap]) -> list[_Arguments]:
    """Those of all swaps, each of which is checked before the first is sent."""
    for swap in swaps:
        check_swap(swap)
    return [_arguments(prefix, swap) for swap in swaps]


def _answer(reply: list[Any]) -> Swapped | Held:
    pttl, *held = reply
    return Held(held[0] or None, _seconds(pttl)) if held else Swapped(_seconds(pttl))


def _answers(url: RedisUrl, keys: Sequence[bytes], replies: Sequence[Any]) -> list[Swapped | Held]:
    for key, reply in zip(keys, replies, strict=True):
        if isinstance(reply, Exception):
            raise failure(url, reply, key)
    return [_answer(reply) for reply in replies]


def _seconds(pttl: int) -> float:
    return {-2: 0.0, -1: math.inf}.get(pttl, pttl / 1000)


def _have(replies: Sequence[Any], kind: type[ResponseError]) -> bool:
    return any(isinstance(reply, kind) for reply in replies)


def _require_safe(url: RedisUrl, info: Mapping[str, Any], cluster: Mapping[str, Any]) -> None:
    """Raise StoreError for a server that would lose records, by its INFO and CLUSTER INFO."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreError(
            f"{url.shown}: the server's maxmemory-policy is {policy}, and an evicted record is a call that"
            " runs twice: set it to noeviction, or use a server of its own"
        )
    if int(cluster.get("cluster_size", 1)) > 1:
        raise StoreError(f"{url.shown}: {CLUSTER}")


class RedisStore(Store):
    """A store on one Redis server.

    ``url`` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, or
    ``unix:///path``. Its query takes redis-py's options; by default ``socket_timeout``
    and ``socket_connect_timeout`` are 2 seconds, ``max_connections`` 50 and ``timeout``,
    the wait for one of them, 5 seconds. A lost answer is asked for once more, so a
    server that is silent is given up after about twice those times.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.shown
        with _sentences():
            pool = redis.BlockingConnectionPool.from_url(
                url, **self._url.options, retry=redis.retry.Retry(_BACKOFF, _RETRIES)
            )
            pool.connection_class(**pool.connection_kwargs)  # does no I/O, and looks at every option
        self._client: Any = redis.Redis.from_pool(pool)  # whose types are those of a client that decodes, too

    def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()
        check_swap(swap)
        arguments = _arguments(self._prefix, swap)
        try:
            try:
                reply = self._client.execute_command(*_BY_DIGEST, *arguments)
            except NoScriptError:
                reply = self._client.execute_command(*_BY_TEXT, *arguments)
        except (RedisError, OSError) as error:
            raise failure(self._url, error, arguments[1]) from None
        return _answer(reply)

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        batch = _all_arguments(self._prefix, swaps)
        try:
            replies = self._send(batch)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None
        return _answers(self._url, [arguments[1] for arguments in batch], replies)

    def _send(self, batch: Sequence[_Arguments]) -> list[Any]:
        """The replies, in order. Some of them may be errors."""
        replies = self._pipeline(_BY_DIGEST, batch)
        if _have(replies, NoScriptError):
            replies = self._pipeline(_BY_TEXT, batch)
        if _have(replies, ReadOnlyError):
            with suppress(ResponseError):  # an error that is raised makes redis-py connect anew
                replies = self._pipeline(_BY_TEXT, batch, raise_on_error=True)
        return replies

    def _pipeline(
        self, script: tuple[str, str], batch: Sequence[_Arguments], *, raise_on_error: bool = False
    ) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for arguments in batch:
                pipeline.execute_command(*script, *arguments)
            replies: list[Any] = pipeline.execute(raise_on_error)
            return replies

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        By SCAN, which keeps nobody waiting: it goes through all keys of the database. What
        is written meanwhile may be missing, and a key may come twice. Keys of another type
        than a record's are left out, with a warning in the log. Raises as ``swap`` does.
        """
        cursor, first, foreign = 0, True, set[bytes]()
        while cursor or first:
            self._opener.require()
            try:
                cursor, keys = self._client.scan(cursor, self._prefix + b"*", count=_PAGE)
                # Not in a transaction: there, a server out of memory refuses even GET.
                batch = [_arguments(b"", looking(key)) for key in keys]
                replies = self._send(batch)
            except (RedisError, OSError) as error:
                raise failure(self._url, error) from None
            first = False
            for key, reply in zip(keys, replies, strict=True):
                if is_of_another_type(reply):
                    foreign.add(key)
                    continue
                (held,) = _answers(self._url, [key], [reply])
                if isinstance(held, Held) and held.value is not None:
                    yield key[len(self._prefix) :], held
        if foreign:
            logger.warning("%s: %s", self._url.shown, left_out(foreign))

    def check(self) -> None:
        check_swaps(self)
        self.swap_many(_SPREAD)
        cluster: Mapping[str, Any] = {}
        try:
            info = self._client.info()
            if info.get("cluster_enabled"):
                cluster = self._client.execute_command("CLUSTER INFO")
        except (RedisError, OSError) as error:
            if not is_forbidden(error):  # managed servers may forbid it, and then there is nothing to go by
                raise failure(self._url, error) from None
            info = {}
        _require_safe(self._url, info, cluster)

    def close(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():  # a forked process would hang up for its parent
            self._client.close()


class _Places:
    """As many as the pool has connections, to be taken before one of them is.

    So nobody waits inside redis-py's pool: where some do, giving a connection back takes a while, and a
    task that is cancelled meanwhile loses it for good.
    """

    def __init__(self, pool: redis.asyncio.BlockingConnectionPool) -> None:
        self._free = asyncio.Semaphore(pool.max_connections)
        self._timeout = pool.timeout

    async def __aenter__(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # which does not wait
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            raise RedisConnectionError(f"No connection available within {self._timeout:g} s.") from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.release()


class AsyncRedisStore(AsyncStore):
    """As RedisStore, for asyncio. ``blocking`` has connections of its own.

    Whether a swap that is cancelled took effect is not known. Its connection is
    closed, as redis-py does with one whose reply was not read to the end.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self.blocking = RedisStore(url, namespace=namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.shown
        with _sentences():
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url, **self._url.options, retry=redis.asyncio.retry.Retry(_BACKOFF, _RETRIES)
            )
            pool.connection_class(**pool.connection_kwargs)
        self._client: Any = redis.asyncio.Redis.from_pool(pool)
        self._places = _Places(pool)

    async def swap(self, swap: Swap) -> Swapped | Held:
        self._opener.require()
        self._loop.require()
        check_swap(swap)
        arguments = _arguments(self._prefix, swap)
        try:
            async with self._places:
                try:
                    reply = await self._client.execute_command(*_BY_DIGEST, *arguments)
                except NoScriptError:
                    reply = await self._client.execute_command(*_BY_TEXT, *arguments)
        except (RedisError, OSError) as error:
            raise failure(self._url, error, arguments[1]) from None
        return _answer(reply)

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        batch = _all_arguments(self._prefix, swaps)
        try:
            async with self._places:
                replies = await self._send(batch)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None
        return _answers(self._url, [arguments[1] for arguments in batch], replies)

    async def _send(self, batch: Sequence[_Arguments]) -> list[Any]:
        replies = await self._pipeline(_BY_DIGEST, batch)
        if _have(replies, NoScriptError):
            replies = await self._pipeline(_BY_TEXT, batch)
        if _have(replies, ReadOnlyError):
            with suppress(ResponseError):
                replies = await self._pipeline(_BY_TEXT, batch, raise_on_error=True)
        return replies

    async def _pipeline(
        self, script: tuple[str, str], batch: Sequence[_Arguments], *, raise_on_error: bool = False
    ) -> list[Any]:
        # Outside of such a block, redis-py does not always give the connection back.
        async with self._client.pipeline(transaction=False) as pipeline:
            for arguments in batch:
                pipeline.execute_command(*script, *arguments)
            replies: list[Any] = await pipeline.execute(raise_on_error)
            return replies

    async def check(self) -> None:
        await check_swaps_async(self)
        await self.swap_many(_SPREAD)
        cluster: Mapping[str, Any] = {}
        try:
            async with self._places:
                info = await self._client.info()
                if info.get("cluster_enabled"):
                    cluster = await self._client.execute_command("CLUSTER INFO")
        except (RedisError, OSError) as error:
            if not is_forbidden(error):
                raise failure(self._url, error) from None
            info = {}
        _require_safe(self._url, info, cluster)

    async def aclose(self) -> None:
        self.blocking.close()
        if not self._opener.closed and self._opener.is_here():
            self._loop.require()
            self._opener.closed = True
            await self._client.aclose()
