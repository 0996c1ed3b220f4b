"""Real servers on real ports, of both faces.

A test chooses the face (sync or aio), the store and the kind of method; everything else is the
same.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record
from tests.server.client import MESSAGE_SIZE, Client, Kind
from tests.server.ledger import DEADLINE, Ledger
from tests.server.servicers import AsyncServicer, Servicer

T = TypeVar("T")


class Server:
    """A server with the ledger and the interceptor. Tests get one from the fixture ``start``.

    ``before`` and ``after`` are interceptors outside and inside of this library's; ``plain`` gives
    an aio server handlers that run on threads; ``protected=False`` leaves the library's interceptor
    out; other settings are passed to it.
    """

    ledger: Ledger
    store: idem_grpc.Store  # for the test to look at, and to write in
    interceptor: Any
    address: str

    def __init__(
        self,
        store: Any,
        *,
        ledger: Ledger | None = None,
        before: Sequence[Any] = (),
        after: Sequence[Any] = (),
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        credentials: grpc.ServerCredentials | None = None,
        workers: int = 32,
        plain: bool = False,
        protected: bool = True,
        maximum_concurrent_rpcs: int | None = None,
        **interceptor: Any,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.opened = store
        self._before, self._after, self._handlers = before, after, handlers
        self._protected = protected
        self._credentials, self._workers, self._plain = credentials, workers, plain
        self._maximum_concurrent_rpcs = maximum_concurrent_rpcs
        self._settings = {"scope": idem_grpc.SHARED, **interceptor}
        self._clients: list[Client] = []
        self._start()
        self.client = self.new_client()

    def new_client(self, *options: tuple[str, Any], credentials: Any = None) -> Client:
        """A client of this server with a connection of its own, which is closed with the server."""
        client = Client(self.address, *options, credentials=credentials)
        self._clients.append(client)
        return client

    def record(self, key: str, kind: Kind = Kind.UNARY, scope: str = "") -> Record:
        """The record in the store under ``key``."""
        name = store_key(self.store.namespace, kind.path, scope.encode(), key)
        return Record.from_bytes(self.store.read(name).value)

    def close(self) -> None:
        """Stop it, wait for everything that still runs, and close its store."""
        self.ledger.open_all()
        for client in self._clients:
            client.channel.close()
        self.stop(grace=0)
        self.drain(DEADLINE)
        self._close()

    def _start(self) -> None:
        raise NotImplementedError

    def stop(self, grace: float | None) -> None:
        raise NotImplementedError

    def drain(self, timeout: float | None) -> int:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _interceptors(self) -> list[Any]:
        return [*self._before, *([self.interceptor] if self._protected else []), *self._after]

    def _add_everything(self, server: Any, servicer: Any) -> None:
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, server)
        server.add_generic_rpc_handlers(tuple(self._handlers))
        if self._credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._credentials)
        self.address = f"127.0.0.1:{port}"


class SyncServer(Server):
    """On ``grpc.server``."""

    def _start(self) -> None:
        self.store = self.opened
        self.interceptor = idem_grpc.ServerInterceptor(self.opened, **self._settings)
        self._server = grpc.server(
            ThreadPoolExecutor(self._workers),
            interceptors=self._interceptors(),
            options=MESSAGE_SIZE,
            maximum_concurrent_rpcs=self._maximum_concurrent_rpcs,
        )
        self._add_everything(self._server, Servicer(self.ledger))
        self._server.start()

    def stop(self, grace: float | None) -> None:
        self._server.stop(grace).wait(DEADLINE)

    def drain(self, timeout: float | None) -> int:
        left: int = self.interceptor.drain(timeout)
        return left

    def _close(self) -> None:
        self.opened.close()


class AsyncServer(Server):
    """On ``grpc.aio.server``, with an event loop on a thread of its own."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE)

    def _start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="event loop", daemon=True)
        self._thread.start()
        self.store = self.opened.blocking
        self.interceptor = idem_grpc.aio.ServerInterceptor(self.opened, **self._settings)
        self.run(self._serve())

    async def _serve(self) -> None:
        self._server = grpc.aio.server(
            ThreadPoolExecutor(self._workers),
            interceptors=self._interceptors(),
            options=MESSAGE_SIZE,
            maximum_concurrent_rpcs=self._maximum_concurrent_rpcs,
        )
        servicer = Servicer(self.ledger) if self._plain else AsyncServicer(self.ledger)
        self._add_everything(self._server, servicer)
        await self._server.start()

    def stop(self, grace: float | None) -> None:
        self.run(self._server.stop(grace))

    def drain(self, timeout: float | None) -> int:
        left: int = self.run(self.interceptor.drain(timeout))
        return left

    def tasks(self) -> int:
        """How many tasks its loop has now."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return self.run(count())

    def _close(self) -> None:
        self.run(self.opened.aclose())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()


FACES = {"sync": SyncServer, "aio": AsyncServer}


def open_store(face: str, url: str, namespace: str) -> Any:
    """A store for a face."""
    opener = idem_grpc.open_store if face == "sync" else idem_grpc.aio.open_store
    return opener(url, namespace=namespace)


@contextmanager
def starting(opening: Callable[[str], Any], serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Give ``start(url, **settings)``, which starts servers that are stopped at the end of the block.

    ``opening`` opens a store by its URL, unless ``start`` is given a ``store``, and ``serving`` starts
    a server on that store with the settings.
    """
    servers: list[Any] = []

    def start(url: str = "memory:", *, store: Any = None, **settings: Any) -> Any:
        servers.append(serving(opening(url) if store is None else store, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.ledger.open_all()
    for server in servers:
        server.close()
