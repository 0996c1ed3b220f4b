"""Stores on a Redis (or Valkey) server: one short script, one round trip a swap.

The plain and the asyncio store stand side by side and share all that is not I/O. Every swap is safe to
send twice, so the connections send it again, once, when a reply is lost, and give up in bounded time:
the caller has something to say to its own caller when the store is away.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from idem_grpc.stores.checking import check_swaps, check_swaps_async
from idem_grpc.stores.protocol import AsyncStore, Store, StoreError, check_swap, looking
from idem_grpc.stores.redis_connections import AsyncConnection, Connections
from idem_grpc.stores.redis_errors import CLUSTER, failure, is_forbidden, is_of_another_type, left_out
from idem_grpc.stores.redis_url import RedisUrl
from idem_grpc.swap import Held, Swap, Swapped

_PAGE = 100  # keys looked at by one SCAN
# Keys that check() looks at: so many that a cluster spreads them over its nodes, and this one lacks some.
_SPREAD = [looking(b"check:%d" % number) for number in range(100)]

logger = logging.getLogger("idem_grpc")


@contextmanager
def _sentences() -> Iterator[None]:
    """Make a ValueError of whatever redis-py says of an option, when it is told of it."""
    try:
        yield
    except (TypeError, ValueError, RedisError) as error:
        raise ValueError(f"the Redis URL has an option that does not fit: {error}") from None


def _strings(*arguments: bytes) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


def _command(*arguments: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(arguments), _strings(*arguments))


_SCRIPT = files("idem_grpc.stores").joinpath("swap.lua").read_bytes()
_DIGEST = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
# What a swap begins with: eight strings, of which one names a key. EVAL sends the script, and the server
# keeps it. It knows it by its digest from then on, until it restarts.
_BY_TEXT = b"*8\r\n" + _strings(b"EVAL", _SCRIPT, b"1")
_BY_DIGEST = b"*8\r\n" + _strings(b"EVALSHA", _DIGEST, b"1")
_SWAP = b"%b" + 5 * b"$%d\r\n%b\r\n"


def _packed(script: bytes, prefix: bytes, swap: Swap) -> bytes:
    check_swap(swap)
    key = prefix + swap.key
    expected = swap.expected or b""
    new = swap.new or b""
    ttl = b"%d" % math.ceil(swap.ttl * 1000) if new else b""
    max_left = b""
    if swap.max_left is not None and swap.max_left != math.inf:
        max_left = b"%d" % math.floor(swap.max_left * 1000)
    strings = len(key), key, len(expected), expected, len(new), new, len(ttl), ttl, len(max_left), max_left
    return _SWAP % (script, *strings)


def _all_packed(script: bytes, prefix: bytes, swaps: Sequence[Swap]) -> bytes:
    return b"".join([_packed(script, prefix, swap) for swap in swaps])


def _answer(url: RedisUrl, key: bytes, reply: Any) -> Swapped | Held:
    if isinstance(reply, Exception):
        raise failure(url, reply, key)
    pttl, *held = reply
    left = pttl / 1000 if pttl >= 0 else 0.0 if pttl == -2 else math.inf
    return Held(held[0] or None, left) if held else Swapped(left)


def _answers(
    url: RedisUrl, prefix: bytes, swaps: Sequence[Swap], replies: Sequence[Any]
) -> list[Swapped | Held]:
    return [_answer(url, prefix + swap.key, reply) for swap, reply in zip(swaps, replies, strict=True)]


def _page(prefix: bytes, cursor: bytes) -> bytes:
    return _command(b"SCAN", cursor, b"MATCH", prefix + b"*", b"COUNT", b"%d" % _PAGE)


def _facts(url: RedisUrl, reply: Any) -> dict[bytes, bytes]:
    """What a server says of itself; nothing where that is forbidden, as managed servers may do."""
    if isinstance(reply, Exception):
        if is_forbidden(reply):
            return {}
        raise failure(url, reply)
    return dict(line.split(b":", 1) for line in reply.splitlines() if b":" in line)


def _require_safe(url: RedisUrl, info: Mapping[bytes, bytes], cluster: Mapping[bytes, bytes]) -> None:
    """Raise StoreError for a server that would lose records, by its INFO and CLUSTER INFO."""
    policy = info.get(b"maxmemory_policy", b"noeviction").decode()
    if policy != "noeviction":
        raise StoreError(
            f"{url.shown}: the server's maxmemory-policy is {policy}, and an evicted record is a call that"
            " runs twice: set it to noeviction, or use a server of its own"
        )
    if int(cluster.get(b"cluster_size", 1)) > 1:
        raise StoreError(f"{url.shown}: {CLUSTER}")


class RedisStore(Store):
    """A store on one Redis server.

    ``url`` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, or
    ``unix:///path``. Its query takes redis-py's options. By default ``socket_timeout`` and
    ``socket_connect_timeout`` are 2 seconds; ``max_connections`` is 4, since a connection serves all
    threads that wait for one, and ``timeout``, the longest wait, is 5 seconds. When a reply is lost,
    the swap is sent once more, so a server that is silent is given up after about twice those times.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.shown
        with _sentences():
            pool = redis.BlockingConnectionPool.from_url(url, **self._url.options, max_connections=4)
            pool.connection_class(**pool.connection_kwargs)  # does no I/O, and looks at every option
        self._connections = Connections(pool)

    def swap(self, swap: Swap) -> Swapped | Held:
        return self.swap_many((swap,))[0]

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        replies = self._run(self._prefix, swaps)
        return _answers(self._url, self._prefix, swaps, replies)

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Every key of this namespace with what it holds, at some time while this runs.

        By SCAN, which keeps nobody waiting: it goes through all keys of the database. What
        is written meanwhile may be missing, and a key may come twice. Keys of another type
        than a record's are left out, with a warning in the log. Raises as ``swap`` does.
        """
        cursor, first, foreign = b"0", True, set[bytes]()
        while cursor != b"0" or first:
            self._opener.require()
            (reply,) = self._execute(_page(self._prefix, cursor))
            if isinstance(reply, Exception):
                raise failure(self._url, reply)
            first = False
            cursor, keys = reply
            # Not in a transaction: there, a server out of memory refuses even GET.
            replies = self._run(b"", [looking(key) for key in keys])
            for key, reply in zip(keys, replies, strict=True):
                if is_of_another_type(reply):
                    foreign.add(key)
                    continue
                held = _answer(self._url, key, reply)
                if isinstance(held, Held) and held.value is not None:
                    yield key[len(self._prefix) :], held
        if foreign:
            logger.warning("%s: %s", self._url.shown, left_out(foreign))

    def check(self) -> None:
        check_swaps(self)
        self.swap_many(_SPREAD)
        info = _facts(self._url, *self._execute(_command(b"INFO")))
        cluster: Mapping[bytes, bytes] = {}
        if info.get(b"cluster_enabled") == b"1":
            cluster = _facts(self._url, *self._execute(_command(b"CLUSTER", b"INFO")))
        _require_safe(self._url, info, cluster)

    def close(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():  # a forked process would hang up for its parent
            self._connections.close()

    def _run(self, prefix: bytes, swaps: Sequence[Swap]) -> list[Any]:
        """Have the server run the script. Some of the replies may be errors."""
        replies = self._execute(_all_packed(_BY_DIGEST, prefix, swaps), len(swaps))
        if NoScriptError in map(type, replies):
            replies = self._execute(_all_packed(_BY_TEXT, prefix, swaps), len(swaps))
        return replies

    def _execute(self, packed: bytes, count: int = 1) -> list[Any]:
        try:
            return self._connections.execute(packed, count)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None


class AsyncRedisStore(AsyncStore):
    """As RedisStore, for asyncio. ``blocking`` has connections of its own.

    All tasks share one connection. ``max_connections`` is how many swaps may be under way on it,
    256 by default, and ``timeout`` is the longest wait to be one of them. Whether a swap that is
    cancelled took effect is not known.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self.blocking = RedisStore(url, namespace=namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.shown
        with _sentences():
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url, **self._url.options, max_connections=256
            )
            pool.connection_class(**pool.connection_kwargs)
        self._connection = AsyncConnection(pool)

    async def swap(self, swap: Swap) -> Swapped | Held:
        return (await self.swap_many((swap,)))[0]

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        self._loop.require()
        replies = await self._run(swaps)
        return _answers(self._url, self._prefix, swaps, replies)

    async def check(self) -> None:
        await check_swaps_async(self)
        await self.swap_many(_SPREAD)
        info = _facts(self._url, *await self._execute(_command(b"INFO")))
        cluster: Mapping[bytes, bytes] = {}
        if info.get(b"cluster_enabled") == b"1":
            cluster = _facts(self._url, *await self._execute(_command(b"CLUSTER", b"INFO")))
        _require_safe(self._url, info, cluster)

    async def aclose(self) -> None:
        self.blocking.close()
        if not self._opener.closed and self._opener.is_here():
            self._loop.require()
            self._opener.closed = True
            await self._connection.aclose()

    async def _run(self, swaps: Sequence[Swap]) -> list[Any]:
        replies = await self._execute(_all_packed(_BY_DIGEST, self._prefix, swaps), len(swaps))
        if NoScriptError in map(type, replies):
            replies = await self._execute(_all_packed(_BY_TEXT, self._prefix, swaps), len(swaps))
        return replies

    async def _execute(self, packed: bytes, count: int = 1) -> list[Any]:
        try:
            return await self._connection.execute(packed, count)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None
