"""Where records are kept: one protocol, and the stores that come with the library."""

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from idem_grpc.stores._protocol import AsyncStore, Store, StoreError, StoreUnavailable

__all__ = ["AsyncStore", "Store", "StoreError", "StoreUnavailable", "open_async_store", "open_store"]

# Each store is imported when it is asked for, so that a server without Redis does not load redis-py.


def open_store(url: str, *, namespace: str = "idem") -> Store:
    """The store at ``url``; nothing is opened or connected before its first use.

    ``memory:``, ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``,
    ``redis://host:6379/0``, ``rediss://`` (TLS) and ``unix:///path/to/redis.sock``.
    ``namespace`` keeps apart services that share one. Raises ValueError or TypeError
    for a URL or namespace that no store can use.
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
    """As open_store, for asyncio. The store may be opened before its event loop runs."""
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
    """The parts of a URL of a known scheme. No message here quotes what may be a password."""
    if not isinstance(url, str):
        raise TypeError(f"open_store({type(url).__name__}): give a URL, such as 'sqlite:///idem.db'")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("the store's URL cannot be read: percent-encode what is special in it") from None
    match parts.scheme:
        case "memory":
            if parts.netloc or parts.path or parts.query:
                raise ValueError("a store in memory has no name and no options: write memory:")
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
        raise ValueError("each connection would get a database of its own in memory: use the store memory:")
    if parts.fragment:
        raise ValueError("the URL of a file holds a '#': percent-encode it as %23")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    if options:
        raise ValueError(f"unknown options for SQLite: {', '.join(options)}; there is synchronous=full")
    return path, synchronous
