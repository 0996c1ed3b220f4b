"""Stores on a Redis (or Valkey) server: a swap is one short script and one round trip.

The sync and the asyncio store share everything that is not I/O. Every swap is safe to send twice, so the
connections send it again, once, if its reply is lost. They give up after a bounded time, so that an
RPC can be answered while the store is away.
"""

import hashlib
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

import redis
import redis.asyncio
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import (
    AsyncStore,
    Store,
    StoreError,
    StoreUnavailable,
    check_swap,
    check_swaps,
    check_swaps_async,
    read_swap,
)
from idem_grpc.stores._redis_connections import AsyncConnection, Connections

# The options allowed in a URL. Some of redis-py's other options break the store (decode_responses), some
# cannot be written in a URL (retry), and some exist in only one of its two clients (retry_on_error).
# health_check_interval has no effect: every connection is checked before each use.
_SECONDS = frozenset({"socket_timeout", "socket_connect_timeout", "timeout"})
_OPTIONS = _SECONDS | {
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval"),
    *("socket_keepalive", "socket_read_size", "ssl_keyfile", "ssl_certfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname"),
    *("ssl_min_version", "ssl_ciphers"),
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A validated URL: its text without credentials and query, and the defaults to pass to redis-py."""

    redacted: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        try:
            parts = urlsplit(url)
            if _names_several(parts):
                raise _SeveralHosts
            host, port = parts.hostname or "localhost", parts.port or 6379
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            if "@" in parts.query:  # a '?' in a password: the "query" is secret, so do not quote its names
                raise ValueError
        except _SeveralHosts:
            raise ValueError("the Redis URL names several hosts: give the URL of one server") from None
        except ValueError:  # not chained: it quotes the part that it cannot parse, which may be the password
            raise ValueError(
                "the Redis URL cannot be parsed: write scheme://user:password@host:port/db?option=value,"
                " and percent-encode '/', '#', '?', '@' and ':' in a user name or password"
            ) from None
        _check_query(query)
        if parts.fragment:
            raise ValueError("the Redis URL contains a '#': percent-encode it as %23")
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("the URL names no socket: write unix:///path/to/redis.sock")
            redacted = f"unix://{parts.path}"
        else:
            if not re.fullmatch(r"(/\d*)?", parts.path):
                raise ValueError("the path of a Redis URL is the number of a database, as in redis://host/0")
            redacted = f"{parts.scheme}://{host}:{port}{parts.path}"
        return cls(redacted, _defaults(parts.scheme))


class _SeveralHosts(ValueError):
    pass


def _names_several(parts: SplitResult) -> bool:
    """Return whether a comma separates hosts, rather than being part of an unencoded password."""
    is_cut = "@" in f"{parts.path}{parts.query}{parts.fragment}"  # by a '/', '?' or '#' in the password
    return "," in parts.netloc.rpartition("@")[2] and not is_cut


def _check_query(query: Mapping[str, str]) -> None:
    if unknown := sorted(query.keys() - _OPTIONS):
        raise ValueError(
            f"the Redis URL has unsupported options: {', '.join(unknown)};"
            f" supported are {', '.join(sorted(_OPTIONS))}"
        )
    if not re.fullmatch(r"\d+", query.get("db", "0")):
        raise ValueError("'db' in the Redis URL must be the number of a database")
    for name in sorted(query.keys() & (_SECONDS | {"max_connections"})):
        if not re.fullmatch(r"\d*\.?\d+", query[name]) or not float(query[name]):
            raise ValueError(f"{name} in the Redis URL must be a positive number")


def _defaults(scheme: str) -> dict[str, Any]:
    options = {
        "socket_timeout": 2.0,
        "socket_connect_timeout": 2.0,
        "timeout": 5.0,  # the longest wait for a free connection
        # In version 3, servers also send push messages, which are not replies.
        "protocol": 2,
    }
    return options if scheme == "unix" else options | {"socket_keepalive": True}


CLUSTER = (
    "the server is a node of a Redis cluster, and clusters are not supported yet: give the URL of a server"
    " that is not in a cluster"
)
_CREDENTIALS = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError)
_FORBIDDEN = re.compile(r"ACL failure|user executing the script can't run|^NOPERM")
_NO_COMMAND = re.compile(r"unknown (?:redis )?(?:sub)?command\b(?: ['`](\w{1,20})['`])?", re.IGNORECASE)
_NO_DATABASE = re.compile(r"DB index|SELECT is not allowed|Invalid Database", re.IGNORECASE)
_NO_SCRIPTS = re.compile(r"compiling script|scripting engine|script shebang")


def failure(url: RedisUrl, error: Exception, key: bytes | None = None) -> StoreError:
    """Return the error to raise instead of redis-py's ``error``. ``key`` is the key of the swap.

    A StoreError stands for a mistake in the URL, in the server's configuration or in the database, which a
    retry does not fix. All other errors, including unknown ones, become StoreUnavailable. Raise the result
    without a cause: the server's message may quote the command, and so a password or a record.
    """
    if mistake := _mistake(error, key):
        return StoreError(f"{url.redacted}: {mistake}")
    answered = isinstance(error, (ResponseError, BusyLoadingError)) or "max number of clients" in str(error)
    return StoreUnavailable(f"{url.redacted}: {type(error).__name__}: {error}", answered=answered)


def is_forbidden(error: Exception) -> bool:
    """Return whether this user lacks the permission for a command, or the server does not offer it."""
    text = str(error)
    is_known = isinstance(error, NoPermissionError) or _FORBIDDEN.search(text) or _NO_COMMAND.search(text)
    return bool(isinstance(error, ResponseError) and is_known)


def is_of_another_type(reply: object) -> bool:
    """Return whether a script failed because the key holds a list or another type than a string."""
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


def skipped_keys_warning(keys: Collection[bytes]) -> str:
    """Return a warning about keys of another type that a scan has skipped."""
    example = min(keys).decode(errors="backslashreplace")
    others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return (
        f"skipped {example}{others}: the value's Redis type is not that of a record, so another program"
        " writes in this namespace, and calls with that key are refused"
    )


def _mistake(error: Exception, key: bytes | None) -> str | None:
    """Return what is configured wrongly and how to correct it; None for a temporary failure."""
    text = str(error)
    if isinstance(error, _CREDENTIALS):
        return _credentials(text)
    if isinstance(error, AskError):  # the base class of MovedError too
        return CLUSTER
    if not isinstance(error, ResponseError):
        return None
    if is_of_another_type(error):
        name = "a key of the store" if key is None else f"the key {key.decode(errors='backslashreplace')}"
        return (
            f"{name} has a Redis type that is not that of a record, so another program writes in this"
            " namespace: delete or rename that key, and give the store its own namespace or database"
        )
    if isinstance(error, NoPermissionError) or _FORBIDDEN.search(text):
        return (
            f"the user in the URL lacks a permission ({text}): allow the commands EVALSHA, EVAL, GET, PTTL,"
            " SET, PEXPIRE and DEL on the keys of the namespace"
        )
    if found := _NO_COMMAND.search(text):
        return (
            f"the server does not know the command {found[1] or 'that a script needs'}, or its configuration"
            " disables it: use a Redis or Valkey server (not a Sentinel) with EVALSHA and EVAL"
        )
    if _NO_DATABASE.search(text):
        return f"the server has no database with the number in the URL ({text}): give one that exists"
    if _NO_SCRIPTS.search(text):
        return f"the server cannot run the store's script ({text}): use a Redis or Valkey server with Lua"
    return None


def _credentials(text: str) -> str:
    if "Authentication required" in text:
        return "the server requires a password, and the URL has none: write it as redis://user:password@host"
    if re.search(r"without any password|no password is set", text):
        return "the URL has a password, and the server has none: remove it, or set one on the server"
    return "the server rejects the user name or password of the URL, or the user is disabled: correct them"


_PAGE = 100  # keys examined by one SCAN
# Keys that check() reads. A cluster spreads that many over its nodes, so a single node lacks some of them.
_SPREAD = [read_swap(b"check:%d" % number) for number in range(100)]

logger = logging.getLogger("idem_grpc")


@contextmanager
def _option_errors() -> Iterator[None]:
    """Raise ValueError for any error with which redis-py rejects an option of the URL."""
    try:
        yield
    except (TypeError, ValueError, RedisError) as error:
        raise ValueError(f"redis-py rejects an option of the Redis URL: {error}") from None


def _strings(*arguments: bytes) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


def _command(*arguments: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(arguments), _strings(*arguments))


_SCRIPT = files("idem_grpc.stores").joinpath("swap.lua").read_bytes()
_DIGEST = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
# The start of the command for a swap: eight strings, one of which is a key. EVAL sends the script, which the
# server caches until it restarts, so that EVALSHA can run it by its digest.
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


def _parse_info(url: RedisUrl, reply: Any) -> dict[bytes, bytes]:
    """Parse the reply to INFO or CLUSTER INFO. Empty if it is forbidden, as on some managed servers."""
    if isinstance(reply, Exception):
        if is_forbidden(reply):
            return {}
        raise failure(url, reply)
    return dict(line.split(b":", 1) for line in reply.splitlines() if b":" in line)


def _require_safe(url: RedisUrl, info: Mapping[bytes, bytes], cluster: Mapping[bytes, bytes]) -> None:
    """Raise StoreError if INFO or CLUSTER INFO shows that the server would lose records."""
    policy = info.get(b"maxmemory_policy", b"noeviction").decode()
    if policy != "noeviction":
        raise StoreError(
            f"{url.redacted}: the server's maxmemory-policy is {policy}, and a call whose record is evicted"
            " may run twice: set it to noeviction, or use a separate server"
        )
    if int(cluster.get(b"cluster_size", 1)) > 1:
        raise StoreError(f"{url.redacted}: {CLUSTER}")


class RedisStore(Store):
    """A store on one Redis server.

    ``url`` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, or
    ``unix:///path``. Its query takes redis-py's options:

    socket_timeout, socket_connect_timeout: default 2 seconds each.
    max_connections: default 4. More are rarely needed, since a connection serves all threads that
        wait for one.
    timeout: the longest wait for a free connection; default 5 seconds.

    If a reply is lost, the swap is sent once more, so the store gives up on a silent server after
    about twice those times. Raises ValueError for a URL or an option that it cannot use.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.redacted
        with _option_errors():
            pool = redis.BlockingConnectionPool.from_url(url, **self._url.options, max_connections=4)
            pool.connection_class(**pool.connection_kwargs)  # validates every option, and does no I/O
        self._connections = Connections(pool)

    def swap(self, swap: Swap) -> Swapped | Held:
        return self.swap_many((swap,))[0]

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self._opener.require()
        replies = self._run(self._prefix, swaps)
        return _answers(self._url, self._prefix, swaps, replies)

    def scan(self) -> Iterator[tuple[bytes, Held]]:
        """Iterate over the keys of this namespace and their values.

        It uses SCAN, which does not block other clients, and goes through all keys of the database.
        Keys written meanwhile may be missing, and a key may be yielded twice. Keys of another Redis type
        than a record's are skipped, with a warning in the log. Raises as ``swap`` does.
        """
        cursor, first, foreign = b"0", True, set[bytes]()
        while cursor != b"0" or first:
            self._opener.require()
            (reply,) = self._execute(_page(self._prefix, cursor))
            if isinstance(reply, Exception):
                raise failure(self._url, reply)
            first = False
            cursor, keys = reply
            # Not in a transaction, in which a server out of memory refuses even GET.
            replies = self._run(b"", [read_swap(key) for key in keys])
            for key, reply in zip(keys, replies, strict=True):
                if is_of_another_type(reply):
                    foreign.add(key)
                    continue
                held = _answer(self._url, key, reply)
                if isinstance(held, Held) and held.value is not None:
                    yield key[len(self._prefix) :], held
        if foreign:
            logger.warning("%s: %s", self._url.redacted, skipped_keys_warning(foreign))

    def check(self) -> None:
        check_swaps(self)
        self.swap_many(_SPREAD)
        info = _parse_info(self._url, *self._execute(_command(b"INFO")))
        cluster: Mapping[bytes, bytes] = {}
        if info.get(b"cluster_enabled") == b"1":
            cluster = _parse_info(self._url, *self._execute(_command(b"CLUSTER", b"INFO")))
        _require_safe(self._url, info, cluster)

    def close(self) -> None:
        self._opener.closed = True
        if self._opener.is_here():  # a forked process would close its parent's connections
            self._connections.close()

    def _run(self, prefix: bytes, swaps: Sequence[Swap]) -> list[Any]:
        """Run the script for each swap. Some of the replies may be errors."""
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
    """A store on one Redis server, for asyncio. ``blocking`` is a RedisStore with its own connections.

    All tasks share one connection. The options of the URL are those of RedisStore, but
    ``max_connections`` is the number of swaps that may be in flight on it, 256 by default, and
    ``timeout`` is the longest wait to become one of them. A cancelled swap may have taken effect.
    """

    def __init__(self, url: str, *, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self.blocking = RedisStore(url, namespace=namespace)
        self._url = RedisUrl.parse(url)
        self._place = self._url.redacted
        with _option_errors():
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
        info = _parse_info(self._url, *await self._execute(_command(b"INFO")))
        cluster: Mapping[bytes, bytes] = {}
        if info.get(b"cluster_enabled") == b"1":
            cluster = _parse_info(self._url, *await self._execute(_command(b"CLUSTER", b"INFO")))
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
