"""One vocabulary for the clients of both faces, so that one test serves for both.

Tests call it from their own thread. The client of asyncio lives on an event loop in another thread.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import Retry, keys
from tests.server.client import Kind
from tests.server.harness import SyncServer, open_store
from tests.server.ledger import DEADLINE, Ledger
from tests.support.aio_ledger import ledger_server

T = TypeVar("T")
REQUEST = pb.LedgerRequest(order="one")
FAST = Retry(initial_backoff=0.001, max_backoff=0.01)
"""Settings for tests of what is sent, and not of when."""
PATIENT = Retry(initial_backoff=600, max_backoff=600)
"""A backoff that no test waits for."""
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


class Watched(Retry):
    """Counts in ``waits`` how often a call began to wait for its next attempt.

    A test that cancels between two attempts waits for it. A cancellation that meets the end of an attempt
    is tested by itself.
    """

    waits: int

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        object.__setattr__(self, "waits", 0)

    def backoff(self, *arguments: Any) -> float:
        object.__setattr__(self, "waits", self.waits + 1)
        return super().backoff(*arguments)


def patient() -> Watched:
    """A backoff that no test waits for, which is watched."""
    return Watched(initial_backoff=3600, max_backoff=3600, budget=None)


class Cancelled(Exception):
    """The call was cancelled, and its caller got the exception that grpc raises then."""


def pairs(metadata: Any) -> dict[str, str | bytes]:
    return dict(tuple(metadata or ()))


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def requests_of(requests: Sequence[Any], stream: Iterable[Any] | None) -> Any:
    """An iterator of the requests of a call, which are REQUEST unless others are given."""
    return iter(requests or [REQUEST]) if stream is None else stream


class Call:
    """A call on its way: grpc's future, stream of responses or call object, which is ``rpc``."""

    def __init__(self, rpc: Any, kind: Kind, face: "SyncFace") -> None:
        self.rpc = rpc
        self.kind = kind
        self._face = face

    def responses(self) -> list[Any]:
        """All responses that have not been read. Raises the RpcError of the call, or Cancelled."""
        raise NotImplementedError

    def next(self) -> Any:
        """The next response of a stream; None at its end."""
        raise NotImplementedError

    def reading(self) -> "Future[list[Any]]":
        """What ``responses`` gives, on a thread of its own."""
        executor = ThreadPoolExecutor(1)
        given = executor.submit(self.responses)
        executor.shutdown(wait=False)
        return given

    def error(self) -> Any:
        """The RpcError that the call ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            self.responses()
        return caught.value

    def read(self) -> tuple[list[tuple[str, int]], Any]:
        """Attempt and part of each response of a stream, and the error that follows, if any."""
        found: list[tuple[str, int]] = []
        try:
            while (response := self.next()) is not None:
                found.append((response.entry, response.part))
        except grpc.RpcError as error:
            return found, error
        return found, None

    def code(self) -> Any:
        return self._face.run(self.rpc.code())

    def details(self) -> Any:
        return self._face.run(self.rpc.details())

    def initial(self) -> dict[str, str | bytes]:
        return pairs(self._face.run(self.rpc.initial_metadata()))

    def trailing(self) -> dict[str, str | bytes]:
        return pairs(self._face.run(self.rpc.trailing_metadata()))

    def replayed(self) -> bool | None:
        return self._face.replayed(self.rpc)

    def cancel(self) -> bool:
        return bool(self._face.do(self.rpc.cancel))

    def cancelled(self) -> bool:
        return bool(self._face.do(self.rpc.cancelled))

    def done(self) -> bool:
        return bool(self._face.do(self.rpc.done))

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        self._face.do(self.rpc.add_done_callback, function)

    def when_done(self) -> "Future[Any]":
        """What its done callback is called with."""
        given = Future[Any]()
        self.add_done_callback(given.set_result)
        return given


class SyncCall(Call):
    def responses(self) -> list[Any]:
        if not self.kind.has_response_stream:
            try:
                return [self.rpc.result(DEADLINE)]
            except grpc.FutureCancelledError:
                raise Cancelled from None
        found: list[Any] = []
        while (response := self.next()) is not None:
            found.append(response)
        return found

    def next(self) -> Any:
        try:
            return next(self.rpc, None)
        except grpc.RpcError as error:
            if self.code() is grpc.StatusCode.CANCELLED:
                raise Cancelled from error
            raise


class SyncClient:
    """A channel with the interceptors, or with others."""

    def __init__(self, channel: Any, face: "SyncFace") -> None:
        self.channel = channel
        self._face = face
        self.stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)

    def begin(self, kind: Kind, *requests: Any, stream: Iterable[Any] | None = None, **options: Any) -> Call:
        """Start a call, of REQUEST unless other requests are given."""
        method = getattr(self.stub, kind.value)
        method = method if kind.has_response_stream else method.future
        given = requests_of(requests, stream)
        return SyncCall(
            method(given if kind.has_request_stream else next(given), **options), kind, self._face
        )

    def send(
        self, kind: Kind, *requests: Any, stream: Iterable[Any] | None = None, **options: Any
    ) -> list[Any]:
        """Make a call and wait for all its responses, by a blocking call where grpc has one."""
        given = requests_of(requests, stream)
        method = getattr(self.stub, kind.value)
        response = method(given if kind.has_request_stream else next(given), **options)
        return list(response) if kind.has_response_stream else [response]

    def error_of(self, kind: Kind, *requests: Any, **options: Any) -> Any:
        """The RpcError that such a call ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(kind, *requests, **options)
        return caught.value

    def invoke(self, stub: Any, name: str, request: Any) -> Any:
        """The response of a method of another service, by the class of its stub."""
        return getattr(stub(self.channel), name)(request)


class Served(grpc.ServerInterceptor):
    """A protected server: where it is, what its handlers did, and the methods of the attempts that came."""

    def __init__(self) -> None:
        self.ledger: Ledger
        self.address = ""
        self.attempts: list[str] = []

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self.attempts.append(handler_call_details.method)
        return continuation(handler_call_details)


class SyncFace:
    """``grpc``."""

    library: Any = idem_grpc

    def __enter__(self) -> "SyncFace":
        self._closing = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def run(self, result: Any) -> Any:
        """What a method of grpc's gives."""
        return result

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function where grpc wants to be called."""
        return function(*arguments)

    def replayed(self, call: Any) -> bool | None:
        return self.run(self.library.replayed(call))  # type: ignore[no-any-return]  # of either face

    def client(
        self, server: Any, *, interceptors: Any = None, credentials: Any = None, **settings: Any
    ) -> SyncClient:
        """A client of ``server`` or of an address.

        ``settings`` are those of ``client_interceptors``, by default unique keys and fast retries.
        """
        address = getattr(server, "address", server)
        channel = (
            grpc.insecure_channel(address, OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, OPTIONS)
        )
        self._closing.callback(channel.close)
        return SyncClient(grpc.intercept_channel(channel, *self._chosen(interceptors, settings)), self)

    def _chosen(self, interceptors: Any, settings: dict[str, Any]) -> Any:
        if interceptors is not None:
            return interceptors
        return self.library.client_interceptors(**{"keys": keys.unique, "retry": FAST, **settings})

    def server(self, handlers: Sequence[grpc.GenericRpcHandler] = (), **settings: Any) -> "Served":
        """Start a protected server of this face; ``settings`` are those of its interceptor."""
        served = Served()
        namespace = uuid4().hex
        server = SyncServer(
            open_store("sync", "memory:", namespace), before=[served], handlers=handlers, **settings
        )
        self._closing.callback(server.close)
        served.ledger, served.address = server.ledger, server.address
        return served


class AsyncCall(Call):
    def responses(self) -> list[Any]:
        return self._or_cancelled(self._responses())

    async def _responses(self) -> list[Any]:
        if not self.kind.has_response_stream:
            return [await self.rpc]
        return [response async for response in self.rpc]

    def next(self) -> Any:
        async def following() -> Any:
            return await anext(aiter(self.rpc), None)

        return self._or_cancelled(following())

    def _or_cancelled(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def outcome() -> T:
            try:
                return await coroutine
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():  # this waited too long; the call was not cancelled
                    raise
                raise Cancelled from None

        result: T = self._face.run(outcome())
        return result


class AsyncClient(SyncClient):
    """A channel of grpc.aio, on the loop of its face."""

    def begin(self, kind: Kind, *requests: Any, stream: Iterable[Any] | None = None, **options: Any) -> Call:
        given = requests_of(requests, stream)
        body = given if stream is None else _from_threads(stream)
        method = getattr(self.stub, kind.value)
        rpc = self._face.do(lambda: method(body if kind.has_request_stream else next(given), **options))
        return AsyncCall(rpc, kind, self._face)

    def send(
        self, kind: Kind, *requests: Any, stream: Iterable[Any] | None = None, **options: Any
    ) -> list[Any]:
        return self.begin(kind, *requests, stream=stream, **options).responses()

    def invoke(self, stub: Any, name: str, request: Any) -> Any:
        async def response() -> Any:
            return await getattr(stub(self.channel), name)(request)

        return self._face.run(response())


async def _from_threads(stream: Iterable[Any]) -> AsyncIterator[Any]:
    """The items of an iterator that may block."""
    iterator = iter(stream)
    while (item := await asyncio.to_thread(next, iterator, None)) is not None:
        yield item


class AsyncFace(SyncFace):
    """``grpc.aio``. The event loop is closed together with the face."""

    library = idem_grpc.aio

    def __enter__(self) -> "AsyncFace":
        super().__enter__()
        started = threading.Event()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self._closed = asyncio.Event()
            started.set()
            await self._closed.wait()

        def run() -> None:
            with asyncio.Runner() as runner:
                runner.run(serve())

        self._thread = threading.Thread(target=run, name="loop of the client")
        self._thread.start()
        assert started.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.loop.call_soon_threadsafe(self._closed.set)
        self._thread.join(DEADLINE)

    def run(self, awaitable: Any) -> Any:
        """What an awaitable gives, on the loop, and in the context of the caller."""

        async def result() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await awaitable

        return asyncio.run_coroutine_threadsafe(result(), self.loop).result()

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on the loop."""

        async def call() -> T:
            return function(*arguments)

        result: T = self.run(call())
        return result

    def client(
        self, server: Any, *, interceptors: Any = None, credentials: Any = None, **settings: Any
    ) -> AsyncClient:
        address = getattr(server, "address", server)
        chosen = self._chosen(interceptors, settings)

        def open_channel() -> Any:
            if credentials is None:
                return grpc.aio.insecure_channel(address, OPTIONS, interceptors=chosen)
            return grpc.aio.secure_channel(address, credentials, OPTIONS, interceptors=chosen)

        channel = self.do(open_channel)
        self._closing.callback(lambda: self.run(channel.close()))
        return AsyncClient(channel, self)

    def server(self, handlers: Sequence[grpc.GenericRpcHandler] = (), **settings: Any) -> Any:
        serving = ledger_server(handlers=handlers, **settings)
        server = self.run(serving.__aenter__())
        self._closing.callback(lambda: self.run(serving.__aexit__(None, None, None)))
        return server


FACES = {"sync": SyncFace, "aio": AsyncFace}
