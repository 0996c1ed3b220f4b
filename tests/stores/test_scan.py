"""Scanning the keys of the stores on Redis and SQLite."""

import math
from uuid import uuid4

import pytest

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError
from idem_grpc.stores._contract import TTL
from idem_grpc.stores._redis import RedisStore
from idem_grpc.stores._sqlite import SqliteStore
from tests.support.wait import until


@pytest.fixture(params=["sqlite", "redis"])
def open_named(request, tmp_path):
    """Return a function that opens stores by namespace, on one file or server."""
    if request.param == "sqlite":
        return lambda namespace: SqliteStore(str(tmp_path / "store.db"), namespace=namespace)
    url = request.getfixturevalue("redis_server").url
    return lambda namespace: RedisStore(url, namespace=namespace)


@pytest.fixture
def namespace():
    return uuid4().hex


def test_nothing_is_found_in_an_empty_store(open_named, namespace):
    with open_named(namespace) as store:
        assert not list(store.scan())


def test_every_key_is_found_over_many_pages(open_named, namespace):
    with open_named(namespace) as store:
        written = {b"": b"empty", b"\xff": b"last"}
        written |= {b"%d" % number: b"value %d" % number for number in range(350)}
        for key, value in written.items():
            store.swap(Swap(key, None, value, TTL))
        found = dict(store.scan())
    assert {key: held.value for key, held in found.items()} == written
    assert all(0 < held.ttl_left <= TTL for held in found.values())


def test_only_its_own_namespace_is_found(open_named, namespace):
    # Each of these sorts next to the namespace, begins with it, or is the beginning of it.
    others = [namespace[:-1], namespace + "-x", namespace + "x", namespace + ".", namespace + "/", "0", "z"]
    for other in others:
        with open_named(other) as store:
            store.swap(Swap(b"theirs", None, b"theirs", TTL))
    with open_named(namespace) as store:
        store.swap(Swap(b"mine", None, b"mine", TTL))
        assert [key for key, _ in store.scan()] == [b"mine"]


def test_expired_records_are_not_found(open_named, namespace):
    with open_named(namespace) as store:
        store.swap(Swap(b"brief", None, b"one", 0.05))
        store.swap(Swap(b"long", None, b"two", TTL))
        until(lambda: [key for key, _ in store.scan()] == [b"long"])


def test_swaps_work_during_a_scan(open_named, namespace):
    with open_named(namespace) as store, open_named(namespace) as other:
        keys = {b"%d" % number for number in range(250)}
        for key in keys:
            store.swap(Swap(key, None, b"one", TTL))
        scan = store.scan()
        first, _ = next(scan)
        assert isinstance(other.swap(Swap(b"0", b"one", b"two", TTL)), Swapped)
        assert isinstance(store.swap(Swap(b"1", b"one", b"two", TTL)), Swapped)
        assert {first, *(key for key, _ in scan)} == keys


def test_a_closed_store_is_not_scanned(open_named, namespace):
    store = open_named(namespace)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        list(store.scan())


def test_redis_keys_of_other_types_and_without_a_ttl(redis_server, namespace):
    with redis_server.client() as client, RedisStore(redis_server.url, namespace=namespace) as store:
        client.rpush(f"{namespace}:list", "theirs")
        client.set(f"{namespace}:immortal", "mine")
        assert list(store.scan()) == [(b"immortal", Held(b"mine", math.inf))]


def test_redis_is_scanned_by_the_scan_command(own_redis_server):
    with RedisStore(own_redis_server.url) as store:
        for number in range(150):
            store.swap(Swap(b"%d" % number, None, b"one", TTL))
        assert len(dict(store.scan())) == 150
    calls = own_redis_server.calls()
    assert calls["keys"] == 0
    assert calls["scan"] > 1
