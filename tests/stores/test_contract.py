"""The store contract, on every store of the library, opened by its URL."""

from uuid import uuid4

import pytest

from idem_grpc.stores import open_async_store, open_store
from idem_grpc.testing import AsyncStoreContract, StoreContract


class OnRedis:
    """Uses a namespace of its own on the shared server, and a client that writes past the store."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):
        self.server = redis_server
        self.namespace = uuid4().hex

    def make_immortal(self, key, value):
        with self.server.client() as client:
            return client.set(self.namespace.encode() + b":" + key, value)


class TestMemory(StoreContract):
    def make_store(self):
        return open_store("memory:")


class TestAsyncMemory(AsyncStoreContract):
    def make_store(self):
        return open_async_store("memory:")


class TestSqlite(StoreContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def make_store(self):
        return open_store(f"sqlite:///{self.folder}/store.db")


class TestSqliteFull(TestSqlite):
    def make_store(self):
        return open_store(f"sqlite:///{self.folder}/store.db?synchronous=full")


class TestAsyncSqlite(AsyncStoreContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def make_store(self):
        return open_async_store(f"sqlite:///{self.folder}/store.db")


class TestRedis(OnRedis, StoreContract):
    def make_store(self):
        return open_store(self.server.url, namespace=self.namespace)


class TestAsyncRedis(OnRedis, AsyncStoreContract):
    def make_store(self):
        return open_async_store(self.server.url, namespace=self.namespace)


class TestRedisOnASocket(OnRedis, StoreContract):
    def make_store(self):
        return open_store(f"unix://{self.server.socket}", namespace=self.namespace)


class TestAsyncRedisOnASocket(OnRedis, AsyncStoreContract):
    def make_store(self):
        return open_async_store(f"unix://{self.server.socket}?max_connections=2", namespace=self.namespace)
