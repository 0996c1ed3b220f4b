"""Servers of the services in contract.proto, for threads and for asyncio, with nothing set in code."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import grpc
from tests_pb.v1 import contract_pb2 as pb
from tests_pb.v1 import contract_pb2_grpc as pb_grpc

import idem_grpc
import idem_grpc.aio
from tests.server.ledger import DEADLINE

CONTRACT = "tests.v1.ContractService"
CONTRADICTION = "tests.v1.ContradictionService"


class Runs:
    """Counts what its handlers are asked for."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.keys: list[str | None] = []
        self._lock = threading.Lock()

    def note(self, request: Any) -> int:
        with self._lock:
            self.requests.append(request)
            execution = idem_grpc.current()
            self.keys.append(None if execution is None else execution.key)
            return len(self.requests)


def _handlers(runs: Runs, face: str) -> dict[str, Any]:
    """A handler for every method, which notes its request, and answers with how many there were."""

    def handler(response: Callable[[int], Any]) -> Any:
        def plain(_: Any, request: Any, context: Any) -> Any:
            return response(runs.note(request))

        async def coroutine(_: Any, request: Any, context: Any) -> Any:
            return response(runs.note(request))

        return plain if face == "sync" else coroutine

    return {
        "Plain": handler(lambda _: pb.PlainResponse()),
        "Full": handler(lambda _: pb.FullResponse()),
        "FromFields": handler(lambda number: pb.FromFieldsResponse(runs=number)),
        "Read": handler(lambda _: pb.ReadResponse()),
        "Stream": handler(lambda _: pb.StreamResponse()),
        "Short": handler(lambda _: pb.ShortResponse()),
        "Code": handler(lambda _: pb.CodeResponse()),
    }


class ContractServer:
    """``settings`` are the interceptor's."""

    face: ClassVar[str]

    def __init__(self, **settings: Any) -> None:
        self.runs = Runs()
        self._settings = {"scope": idem_grpc.SHARED, **settings}
        self.address = ""
        self._start()
        self.channel = grpc.insecure_channel(self.address)

    def stub(self, *interceptors: Any) -> Any:
        """A client, with those interceptors."""
        return pb_grpc.ContractServiceStub(grpc.intercept_channel(self.channel, *interceptors))

    def close(self) -> None:
        self.channel.close()
        self._stop()

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def _add(self, server: Any, interceptor: Any) -> None:
        handlers = _handlers(self.runs, self.face)
        one = type("Contract", (pb_grpc.ContractServiceServicer,), handlers)()
        other = type("Contradiction", (pb_grpc.ContradictionServiceServicer,), handlers)()
        pb_grpc.add_ContractServiceServicer_to_server(one, server)
        pb_grpc.add_ContradictionServiceServicer_to_server(other, server)
        package = idem_grpc if self.face == "sync" else idem_grpc.aio
        package.add_token_service(server, interceptor, operations={"tests.full": idem_grpc.Operation()})
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"


class OnSync(ContractServer):
    face = "sync"

    def _start(self) -> None:
        self._store = idem_grpc.open_store("memory:")
        interceptor = idem_grpc.ServerInterceptor(self._store, **self._settings)
        self._server = grpc.server(ThreadPoolExecutor(8), interceptors=[interceptor])
        self._add(self._server, interceptor)
        self._server.start()

    def _stop(self) -> None:
        self._server.stop(0).wait(DEADLINE)
        self._store.close()


class OnAio(ContractServer):
    face = "aio"

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store = idem_grpc.aio.open_store("memory:")
        interceptor = idem_grpc.aio.ServerInterceptor(self._store, **self._settings)
        self._run(self._serve(interceptor))

    async def _serve(self, interceptor: Any) -> None:
        self._server = grpc.aio.server(interceptors=[interceptor])
        self._add(self._server, interceptor)
        await self._server.start()

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE)

    def _stop(self) -> None:
        self._run(self._server.stop(0))
        self._run(self._store.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


FACES = {"sync": OnSync, "aio": OnAio}
