"""Servers whose handlers are scripts, and calls that a test drives message by message."""

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from tests.server.client import Answer, Client, Kind
from tests.server.harness import AsyncServer, Server, SyncServer
from tests.server.ledger import DEADLINE
from tests.streams.scripts import Script, handlers, ledger_handlers


class _Scripted(Server):
    style = ""

    def __init__(
        self,
        store: Any,
        *,
        scripts: dict[Kind, Script] | None = None,
        parse: Any = None,
        serialize: Any = None,
        **settings: Any,
    ) -> None:
        self._scripts, self._functions = scripts, (parse, serialize)
        super().__init__(store, **settings)

    def _add_everything(self, server: Any, servicer: Any) -> None:
        own = (
            ledger_handlers(self.style, self.ledger)
            if self._scripts is None
            else handlers(self.style, self._scripts, *self._functions)
        )
        server.add_generic_rpc_handlers((own, *self._handlers))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"


class OnSync(_Scripted, SyncServer):
    style = "sync"


class OnAio(_Scripted, AsyncServer):
    style = "aio"


class OnAioReadWrite(OnAio):
    style = "aio-read-write"


class OnAioThread(OnAio):
    """Plain handlers on the default executor of the loop, which has ``workers`` threads."""

    style = "aio-thread"

    async def _serve(self) -> None:
        self.loop.set_default_executor(ThreadPoolExecutor(self._workers))
        await super()._serve()


SERVERS = {server.style: server for server in (OnSync, OnAio, OnAioReadWrite, OnAioThread)}


class Conversation:
    """A call that a test drives message by message. Messages are bytes.

    A method with one request gets ``only``, and nothing that is sent.
    """

    def __init__(
        self,
        client: Client,
        kind: Kind,
        key: str | None,
        *,
        only: bytes = b"only",
        timeout: float | None = DEADLINE,
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.sent = 0
        self._kind = kind
        method: Any = getattr(client.channel, kind.arity)(kind.path)
        send = method if kind.has_response_stream else method.future
        keys = () if key is None else (("idempotency-key", key),)
        request = self._pass_on() if kind.has_request_stream else only
        self.rpc = send(request, metadata=(*keys, *metadata), timeout=timeout)
        self._rest: list[bytes] = []

    def _pass_on(self) -> Iterator[bytes]:
        while (message := self._requests.get()) is not None:
            yield message
            self.sent += len(message)

    def send(self, *messages: bytes) -> "Conversation":
        for message in messages:
            self._requests.put(message)
        return self

    def end(self) -> "Conversation":
        """End the request stream."""
        self._requests.put(None)
        return self

    def receive(self) -> bytes | None:
        """The next response; None if there are no more, also after a failure."""
        try:
            message: bytes = next(self.rpc)
        except (StopIteration, grpc.RpcError):
            return None
        self._rest.append(message)
        return message

    def cancel(self) -> None:
        self.rpc.cancel()
        self.end()  # else the thread that passes on requests waits for ever

    def answer(self) -> Answer:
        """Wait for the rest of the answer."""
        if self._kind.has_response_stream:
            while self.receive() is not None:
                pass
        else:
            with suppress(grpc.RpcError, grpc.FutureCancelledError):
                self._rest.append(self.rpc.result())
        self.end()
        return Answer(
            self.rpc.code(),
            self.rpc.details() or "",
            tuple(self._rest),
            tuple((m.key, m.value) for m in self.rpc.initial_metadata() or ()),
            tuple((m.key, m.value) for m in self.rpc.trailing_metadata() or ()),
        )


def say(client: Client, kind: Kind, key: str | None, messages: Iterable[bytes], **options: Any) -> Answer:
    """A call that sends all of ``messages`` at once."""
    return Conversation(client, kind, key, **options).send(*messages).end().answer()
