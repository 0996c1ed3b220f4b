"""URLs of stores: what each opens, and the errors of invalid ones."""

import subprocess
import sys

import pytest

from idem_grpc._core.swap import Swap
from idem_grpc.stores import open_async_store, open_store
from idem_grpc.stores._memory import AsyncMemoryStore, MemoryStore
from idem_grpc.stores._redis import AsyncRedisStore, RedisStore
from idem_grpc.stores._sqlite import AsyncSqliteStore, SqliteStore

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "kind", "async_kind"),
    [
        ("memory:", MemoryStore, AsyncMemoryStore),
        ("sqlite:///some/where.db", SqliteStore, AsyncSqliteStore),
        ("sqlite:////some/where.db?synchronous=full", SqliteStore, AsyncSqliteStore),
        ("redis://", RedisStore, AsyncRedisStore),
        ("redis://nowhere.invalid:1/3", RedisStore, AsyncRedisStore),
        ("redis://host/0?socket_timeout=.5&max_connections=3&timeout=1", RedisStore, AsyncRedisStore),
        ("rediss://user:pass%2Fword@host?ssl_cert_reqs=none", RedisStore, AsyncRedisStore),
        ("unix:///some/redis.sock?db=2&password=p", RedisStore, AsyncRedisStore),
    ],
)
def test_opening_does_no_io(url, kind, async_kind):
    with open_store(url, namespace="a/b.c-d_1") as store:
        assert type(store) is kind
        assert store.namespace == "a/b.c-d_1"
    async_store = open_async_store(url)
    assert type(async_store) is async_kind
    assert async_store.namespace == "idem"
    async_store.blocking.close()


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_sentinel_and_cluster_are_not_supported_yet(scheme):
    with pytest.raises(ValueError, match="not supported yet"):
        open_store(f"{scheme}://:{SECRET}@host")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "must start with memory:"),
        (f"postgres://:{SECRET}@host/db", "must start with memory:"),
        (f"{SECRET}", "must start with memory:"),
        (f"redis:{SECRET}@host", "must start with memory:"),
        (f"unix:/{SECRET}", "must start with memory:"),
        ("memory:name", "write memory:"),
        ("memory:?size=3", "write memory:"),
        ("sqlite:", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////some/folder/", "names no file"),
        ("sqlite://relative.db", "sqlite:///relative/path.db"),
        ("sqlite:///:memory:", "use the store memory:"),
        ("sqlite:///a#b.db", "%23"),
        ("sqlite:///a.db?mode=ro", "unknown SQLite options: mode"),
        ("sqlite:///a.db?synchronous=off", "must be 'normal' or 'full'"),
        (f"redis://:{SECRET}@host?decode_responses=True", "unsupported options: decode_responses"),
        (f"redis://:{SECRET}@host?retry=3&protocol=3", "unsupported options: protocol, retry"),
        (f"redis://:{SECRET}@host?socket_timeout=fast", "socket_timeout in the Redis URL must be"),
        (f"redis://:{SECRET}@host?socket_timeout=0", "socket_timeout in the Redis URL must be"),
        (f"redis://:{SECRET}@host?socket_timeout=-1", "socket_timeout in the Redis URL must be"),
        (f"redis://:{SECRET}@host?max_connections=0", "max_connections in the Redis URL must be"),
        (f"redis://:{SECRET}@host?db=first", "'db'"),
        (f"redis://:{SECRET}@host?db=-1", "'db'"),
        (f"redis://:{SECRET}@host,other", "several hosts"),
        (f"redis://:{SECRET}@host?ssl_ca_certs=ca.pem", "ssl_ca_certs"),
        (f"rediss://:{SECRET}@host?ssl_cert_reqs=perhaps", "perhaps"),
        (f"redis://:{SECRET}@host/first", "number of a database"),
        (f"redis://:{SECRET}@host?socket_timeout", "percent-encode"),
        (f"redis://:{SECRET}/x@host", "percent-encode"),
        (f"redis://:{SECRET}#x@host", "percent-encode"),
        (f"redis://:12?{SECRET}=@host", "percent-encode"),
        (f"redis://:12#{SECRET}@host", "%23"),
        (f"redis://:12/{SECRET}@host", "number of a database"),
        (f"redis://:{SECRET}@[host", "percent-encode"),
        ("unix://", "names no socket"),
        (f"unix:///some.sock?password={SECRET}&ssl_ca_certs=x", "ssl_ca_certs"),
    ],
)
@pytest.mark.parametrize("open_it", [open_store, open_async_store])
def test_an_invalid_url_is_refused_with_the_reason(open_it, url, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the sentences say what is expected
        open_it(url)
    said = str(caught.value)
    assert sentence in said
    assert SECRET not in said
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("namespace", ["", " ", "a b", "a:b", "{a}", "ä", "a\n", "a" * 101])
@pytest.mark.parametrize("url", ["memory:", "sqlite:///a.db", "redis://"])
def test_an_invalid_namespace_is_refused(url, namespace):
    with pytest.raises(ValueError, match="namespace is"):
        open_store(url, namespace=namespace)
    with pytest.raises(ValueError, match="namespace is"):
        open_async_store(url, namespace=namespace)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@host:7/1",
        f"rediss://:{SECRET}@host",
        f"unix://u:{SECRET}@/s?password={SECRET}",
    ],
)
def test_passwords_are_not_shown(url):
    with open_store(url) as store:
        assert SECRET not in repr(store)
        assert "RedisStore('" in repr(store)
    async_store = open_async_store(url)
    assert SECRET not in repr(async_store)
    async_store.blocking.close()


def test_the_module_of_a_store_is_imported_when_it_is_opened():
    script = """
import sys
from idem_grpc.stores import open_store
open_store("memory:").close()
assert not {"redis", "sqlite3"} & set(sys.modules)
open_store("sqlite:///a.db").close()
assert "redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_two_stores_in_memory_share_nothing():
    with open_store("memory:") as one, open_store("memory:") as two:
        one.swap(Swap(b"key", None, b"one", 60))
        assert two.swap(Swap(b"key", None, b"two", 60)).ttl_left == 0


@pytest.mark.parametrize("opening", [open_store, open_async_store])
def test_a_url_or_namespace_that_is_no_string_is_refused(opening):
    with pytest.raises(TypeError, match="give a URL"):
        opening(5)
    with pytest.raises(ValueError, match="namespace is 5: give 1 to 100"):
        opening("memory:", namespace=5)
