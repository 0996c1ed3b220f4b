"""Stores on a Redis (or Valkey) server: one short script, one round trip a swap.

The plain and the asyncio store stand side by side and share all that is not
I/O. Every swap is safe to send twice, so redis-py may retry; it is told to do so
once, and to give up in bounded time, since the caller has something to say to
its own caller when the store is away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from uuid import uuid4

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from idem_grpc.stores.protocol import (
    AsyncStore,
    OpeningProcess,
    Store,
    StoreError,
    StoreUnavailable,
    UsingLoop,
    checked_swap,
    key_prefix,
)
from idem_grpc.stores.redis_url import RedisUrl
from idem_grpc.swap import Held, Swap, Swapped

_SCRIPT = files("idem_grpc.stores").joinpath("swap.lua").read_text("ascii")
_RETRIES = 1
_BACKOFF = ConstantBackoff(0.05)  # seconds
_PAGE = 100  # keys looked at by one SCAN


@contextmanager
def _sentences() -> Iterator[None]:
    """Make a ValueError of whatever redis-py says of an option, when it is told of it."""
    try:
        yield
    except (TypeError, ValueError, RedisError) as error:
        raise ValueError(f"the Redis URL has an option that does not fit: {error}") from None


@contextmanager
def _unavailable(url: RedisUrl) -> Iterator[None]:
    """Whatever a server says or fails to say, the swap may or may not have taken effect."""
    try:
        yield
    except (RedisError, OSError) as error:
        answered = isinstance(error, (ResponseError, BusyLoadingError))
        raise StoreUnavailable(f"{url.shown}: {type(error).__name__}: {error}", answered=answered) from error


def _checked(swaps: Sequence[Swap]) -> list[Swap]:
    """All of them, before the first is sent."""
    return [checked_swap(swap.key, swap.expected, swap.new, swap.ttl, swap.max_left) for swap in swaps]


def _arguments(swap: Swap) -> list[bytes | int]:
    bounded = swap.max_left is not None and swap.max_left != math.inf
    return [
        swap.expected or b"",
        swap.new or b"",
        math.ceil(swap.ttl * 1000) if swap.new is not None else b"",
        math.floor(swap.max_left * 1000) if swap.max_left is not None and bounded else b"",
    ]


def _answer(reply: list[Any]) -> Swapped | Held:
    pttl, *held = reply
    return Held(held[0] or None, _seconds(pttl)) if held else Swapped(_seconds(pttl))


def _seconds(pttl: int) -> float:
    return {-2: 0.0, -1: math.inf}.get(pttl, pttl / 1000)


def _require_no_eviction(memory: Mapping[str, Any]) -> None:
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreError(
            f"the server's maxmemory-policy is {policy}, and an evicted record is a call that runs twice:"
            " set it to noeviction, or use a server of its own"
        )


class RedisStore(Store):
    """A store on one Redis server.

    ``url`` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, or
    ``unix:///path``. Its query takes redis-py's options; by default ``socket_timeout``
    and ``socket_connect_timeout`` are 2 seconds, ``max_connections`` 50 and ``timeout``,
    the wait for one of them, 5 seconds. A lost answer is asked for once more, so a
    server that is silent is given up after about twice those times.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        self.namespace = namespace
        self._prefix = key_prefix(namespace)
        self._opener = OpeningProcess()
        self._url = RedisUrl.parse(url)
        with _sentences():
            pool = redis.BlockingConnectionPool.from_url(
                url, **self._url.options, retry=redis.retry.Retry(_BACKOFF, _RETRIES)
            )
            pool.connection_class(**pool.connection_kwargs)  # does no I/O, and looks at every option
        self._client = redis.Redis.from_pool(pool)
        self._script = self._client.register_script(_SCRIPT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url.shown!r}, namespace={self.namespace!r})"

    def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        self._opener.require()
        swap = checked_swap(key, expected, new, ttl, max_left)
        with _unavailable(self._url):
            return _answer(self._script([self._prefix + key], _arguments(swap)))

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        pipeline = self._client.pipeline(transaction=False)
        for swap in _checked(swaps):
            self._script([self._prefix + swap.key], _arguments(swap), client=pipeline)
        with _unavailable(self._url):
            return [_answer(reply) for reply in pipeline.execute()]

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        By SCAN, which keeps nobody waiting: it goes through all keys of the database. What
        is written meanwhile may be missing, and a key may come twice. Raises as ``swap`` does.
        """
        cursor, first = 0, True
        while cursor or first:
            self._opener.require()
            with _unavailable(self._url):
                cursor, keys = self._client.scan(cursor, self._prefix + b"*", count=_PAGE)
                pipeline = self._client.pipeline(transaction=True)
                for key in keys:
                    pipeline.get(key)
                    pipeline.pttl(key)
                replies = iter(pipeline.execute(raise_on_error=False))
            first = False
            for key, value, pttl in zip(keys, replies, replies, strict=False):
                # What has another type is not a store's. (A client may be told to decode; ours is not.)
                if isinstance(key, bytes) and isinstance(value, bytes):
                    yield key[len(self._prefix) :], Held(value, _seconds(pttl))

    def check(self) -> None:
        probe = b"check:" + uuid4().bytes
        self.swap(probe, None, b"probe", 1.0)
        self.swap(probe, b"probe", None, 1.0)
        with _unavailable(self._url):
            try:
                memory = self._client.info("memory")
            except ResponseError:  # managed servers may forbid it, and then there is nothing to go by
                return
        _require_no_eviction(memory)

    def close(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():  # a forked process would hang up for its parent
            self._client.close()


class AsyncRedisStore(AsyncStore):
    """As RedisStore, for asyncio. ``blocking`` has connections of its own.

    Whether a swap that is cancelled took effect is not known. Its connection is
    closed, as redis-py does with one whose reply was not read to the end.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        self.namespace = namespace
        self.blocking = RedisStore(url, namespace=namespace)
        self._prefix = key_prefix(namespace)
        self._opener = OpeningProcess()
        self._loop = UsingLoop()
        self._url = RedisUrl.parse(url)
        with _sentences():
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url, **self._url.options, retry=redis.asyncio.retry.Retry(_BACKOFF, _RETRIES)
            )
            pool.connection_class(**pool.connection_kwargs)
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._script = self._client.register_script(_SCRIPT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url.shown!r}, namespace={self.namespace!r})"

    async def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        self._opener.require()
        self._loop.require()
        swap = checked_swap(key, expected, new, ttl, max_left)
        with _unavailable(self._url):
            return _answer(await self._script([self._prefix + key], _arguments(swap)))

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        pipeline = self._client.pipeline(transaction=False)
        for swap in _checked(swaps):
            await self._script([self._prefix + swap.key], _arguments(swap), client=pipeline)
        with _unavailable(self._url):
            return [_answer(reply) for reply in await pipeline.execute()]

    async def check(self) -> None:
        probe = b"check:" + uuid4().bytes
        await self.swap(probe, None, b"probe", 1.0)
        await self.swap(probe, b"probe", None, 1.0)
        with _unavailable(self._url):
            try:
                memory = await self._client.info("memory")
            except ResponseError:
                return
        _require_no_eviction(memory)

    async def aclose(self) -> None:
        self.blocking.close()
        if not self._opener.closed and self._opener.is_here():
            self._loop.require()
            self._opener.closed = True
            await self._client.aclose()
