"""Stores that hold records: the protocol, and functions that open the built-in stores."""

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from idem_grpc.stores._protocol import AsyncStore, Store, StoreError, StoreUnavailable

__all__ = ["AsyncStore", "Store", "StoreError", "StoreUnavailable", "open_async_store", "open_store"]

# Each store is imported only when it is opened, so that a server without Redis does not load redis-py.


def open_store(url: str, *, namespace: str = "idem") -> Store:
    """Return the store at ``url``. It opens and connects nothing before its first use.

    url: ``memory:``, ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``,
        ``redis://host:6379/0``, ``rediss://`` (TLS) or ``unix:///path/to/redis.sock``.
    namespace: separates services that share a store; default "idem".

    Raises ValueError or TypeError for a URL or namespace that no store can use.
    """
    match _split(url):
        case SplitResult(scheme="memory"):
            from idem_grpc.stores._memory import MemoryStore

            return MemoryStore(namespace=namespace)
        case SplitResult(scheme="sqlite") as parts:
            from idem_grpc.stores._sqlite import SqliteStore

            path, synchronous = _sqlite_options(parts)
            return SqliteStore(path, namespace=namespace, synchronous=synchronous)
        case _:
            from idem_grpc.stores._redis import RedisStore

            return RedisStore(url, namespace=namespace)


def open_async_store(url: str, *, namespace: str = "idem") -> AsyncStore:
    """Return the asyncio store at ``url``, as open_store does. May be called before the event loop runs."""
    match _split(url):
        case SplitResult(scheme="memory"):
            from idem_grpc.stores._memory import AsyncMemoryStore

            return AsyncMemoryStore(namespace=namespace)
        case SplitResult(scheme="sqlite") as parts:
            from idem_grpc.stores._sqlite import AsyncSqliteStore

            path, synchronous = _sqlite_options(parts)
            return AsyncSqliteStore(path, namespace=namespace, synchronous=synchronous)
        case _:
            from idem_grpc.stores._redis import AsyncRedisStore

            return AsyncRedisStore(url, namespace=namespace)


def _split(url: str) -> SplitResult:
    """Split a URL and check its scheme. Error messages never quote the URL: it may hold a password."""
    if not isinstance(url, str):
        raise TypeError(f"open_store({type(url).__name__}): give a URL, such as 'sqlite:///idem.db'")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("the store's URL cannot be parsed: percent-encode special characters") from None
    match parts.scheme:
        case "memory":
            if parts.netloc or parts.path or parts.query:
                raise ValueError("a memory store has neither a name nor options: write memory:")
        case "sqlite":
            pass
        case "redis" | "rediss" | "unix" if url.startswith(f"{parts.scheme}://"):
            pass
        case "redis+sentinel" | "redis+cluster":
            raise ValueError(f"{parts.scheme}:// is not supported yet: give the URL of one server")
        case _:
            raise ValueError(
                "the store's URL must start with memory:, sqlite:///, redis://, rediss:// or unix://"
            )
    return parts


def _sqlite_options(parts: SplitResult) -> tuple[str, str]:
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or not path or path.endswith("/"):
        raise ValueError(
            "the URL names no file: write sqlite:///relative/path.db or sqlite:////absolute/path.db"
        )
    if path == ":memory:":
        raise ValueError(":memory: would give each connection its own database: use the store memory:")
    if parts.fragment:
        raise ValueError("the URL of a file contains a '#': percent-encode it as %23")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    if options:
        raise ValueError(f"unknown SQLite options: {', '.join(options)}; the only option is synchronous")
    return path, synchronous
