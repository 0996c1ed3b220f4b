"""Stores on a Redis (or Valkey) server: one short script, one round trip a swap.

The plain and the asyncio store stand side by side and share all that is not I/O. Every swap is safe to
send twice, so the connections send it again, once, when a reply is lost, and give up in bounded time:
the caller has something to say to its own caller when the store is away.
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
    looking,
)
from idem_grpc.stores._redis_connections import AsyncConnection, Connections

# What a URL may say. Of redis-py's other options some break the store (decode_responses), some cannot
# be written in a URL (retry), and some hold for one of its two clients only (retry_on_error). A
# health_check_interval changes nothing: a connection is looked at before each use.
_SECONDS = frozenset({"socket_timeout", "socket_connect_timeout", "timeout"})
_OPTIONS = _SECONDS | {
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval"),
    *("socket_keepalive", "socket_read_size", "ssl_keyfile", "ssl_certfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname"),
    *("ssl_min_version", "ssl_ciphers"),
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that was looked through: what of it may be shown, and what redis-py is to assume beside it."""

    shown: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        try:
            parts = urlsplit(url)
            if _names_several(parts):
                raise _SeveralHosts
            host, port = parts.hostname or "localhost", parts.port or 6379
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            if "@" in parts.query:  # then what is before it is no query, and its names are not for showing
                raise ValueError
        except _SeveralHosts:
            raise ValueError("the Redis URL names several hosts: give that of one server") from None
        except ValueError:  # not chained: it quotes the part it cannot read, and that may be the password
            raise ValueError(
                "the Redis URL cannot be read: write scheme://user:password@host:port/db?option=value,"
                " and percent-encode '/', '#', '?', '@' and ':' in a user name or password"
            ) from None
        _check_query(query)
        if parts.fragment:
            raise ValueError("the Redis URL holds a '#': percent-encode it as %23")
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("the URL names no socket: write unix:///path/to/redis.sock")
            shown = f"unix://{parts.path}"
        else:
            if not re.fullmatch(r"(/\d*)?", parts.path):
                raise ValueError("the path of a Redis URL is the number of a database, as in redis://host/0")
            shown = f"{parts.scheme}://{host}:{port}{parts.path}"
        return cls(shown, _defaults(parts.scheme))


class _SeveralHosts(ValueError):
    pass


def _names_several(parts: SplitResult) -> bool:
    """Tell whether a comma is between hosts, and not in a password that is not percent-encoded."""
    is_cut = "@" in f"{parts.path}{parts.query}{parts.fragment}"
    return "," in parts.netloc.rpartition("@")[2] and not is_cut


def _check_query(query: Mapping[str, str]) -> None:
    if unknown := sorted(query.keys() - _OPTIONS):
        raise ValueError(
            f"the Redis URL has options that a store cannot use: {', '.join(unknown)};"
            f" it can use {', '.join(sorted(_OPTIONS))}"
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
        "timeout": 5.0,  # for a connection
        # Version 3 has messages that are no replies.
        "protocol": 2,
    }
    return options if scheme == "unix" else options | {"socket_keepalive": True}


CLUSTER = (
    "the server is a node of a Redis cluster, and other nodes hold the other keys: clusters are not supported"
    " yet, so give the URL of a server that is in none"
)
_CREDENTIALS = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError)
_FORBIDDEN = re.compile(r"ACL failure|user executing the script can't run|^NOPERM")
_NO_COMMAND = re.compile(r"unknown (?:redis )?(?:sub)?command\b(?: ['`](\w{1,20})['`])?", re.IGNORECASE)
_NO_DATABASE = re.compile(r"DB index|SELECT is not allowed|Invalid Database", re.IGNORECASE)
_NO_SCRIPTS = re.compile(r"compiling script|scripting engine|script shebang")


def failure(url: RedisUrl, error: Exception, key: bytes | None = None) -> StoreError:
    """The error to raise instead of redis-py's ``error``. ``key`` is the name that the swap was for.

    A StoreError is a mistake in the URL, on the server or in the database: sending the call again does not
    help. Everything else is a StoreUnavailable, errors that are not known here too. Raise it without a
    cause: the server's words may repeat what it was sent, such as the password or a record.
    """
    if mistake := _mistake(error, key):
        return StoreError(f"{url.shown}: {mistake}")
    answered = isinstance(error, (ResponseError, BusyLoadingError)) or "max number of clients" in str(error)
    return StoreUnavailable(f"{url.shown}: {type(error).__name__}: {error}", answered=answered)


def is_forbidden(error: Exception) -> bool:
    """Tell whether the server has a command for other users only, or for nobody."""
    text = str(error)
    is_known = isinstance(error, NoPermissionError) or _FORBIDDEN.search(text) or _NO_COMMAND.search(text)
    return bool(isinstance(error, ResponseError) and is_known)


def is_of_another_type(reply: object) -> bool:
    """Tell whether a script's reply is that the key holds a list or the like."""
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


def left_out(keys: Collection[bytes]) -> str:
    """What to say of keys of another type that a scan met."""
    example = min(keys).decode(errors="backslashreplace")
    others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return (
        f"left out {example}{others}: the Redis type is not a record's, so something else writes in this"
        " namespace, and calls whose key has that name are refused"
    )


def _mistake(error: Exception, key: bytes | None) -> str | None:
    """What is set up wrongly, and what to do about it; None for what passes."""
    text = str(error)
    if isinstance(error, _CREDENTIALS):
        return _credentials(text)
    if isinstance(error, AskError):  # MOVED is one too
        return CLUSTER
    if not isinstance(error, ResponseError):
        return None
    if is_of_another_type(error):
        name = "a key of the store" if key is None else f"the key {key.decode(errors='backslashreplace')}"
        return (
            f"{name} holds a Redis type that is not a record's, so something else writes in this namespace:"
            " delete or rename that key, and give the store a namespace or a database of its own"
        )
    if isinstance(error, NoPermissionError) or _FORBIDDEN.search(text):
        return (
            f"the user of the URL lacks a permission ({text}): a store needs the commands EVALSHA, EVAL, GET,"
            " PTTL, SET, PEXPIRE and DEL on the keys of its namespace"
        )
    if found := _NO_COMMAND.search(text):
        return (
            f"the server does not know the command {found[1] or 'that a script needs'}, or its configuration"
            " disables it: a store needs a Redis or Valkey server (not a Sentinel) with EVALSHA and EVAL"
        )
    if _NO_DATABASE.search(text):
        return f"there is no database with the number in the URL ({text}): give one that the server has"
    if _NO_SCRIPTS.search(text):
        return f"the server cannot run the store's script ({text}): a store needs a Redis or Valkey with Lua"
    return None


def _credentials(text: str) -> str:
    if "Authentication required" in text:
        return "the server asks for a password, and the URL has none: write it as redis://user:password@host"
    if re.search(r"without any password|no password is set", text):
        return "the URL has a password, and the server has none: remove it, or set one on the server"
    return "the server refuses the user name or the password of the URL, or that user is disabled: correct it"


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
