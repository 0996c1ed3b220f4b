"""Scripted servers, and clients of both faces. Tests may be coroutines, each with a loop of its own."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2_grpc

from idem_grpc import client_interceptors, keys
from tests.client.faces import FACES, FAST, OPTIONS, SyncFace
from tests.server.kinds import ALL, kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import Scripted


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def run():
        async with asyncio.timeout(3 * DEADLINE):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


@pytest.fixture
def script() -> Iterator[Callable[..., Scripted]]:
    """Start a server that does ``script(*steps)``."""
    servers: list[Scripted] = []

    def start(*steps: Any, **settings: Any) -> Scripted:
        servers.append(Scripted(*steps, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=list(FACES))
def face(request) -> Iterator[SyncFace]:
    """The vocabulary of a face; what it has opened is closed after the test."""
    with FACES[request.param]() as face:
        yield face


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """A plain ``grpc`` channel with the interceptors: ``connect(server, **settings)``.

    ``inside`` are interceptors between ours and the wire, ``outside`` those before ours.
    """
    channels: list[grpc.Channel] = []

    def connect(server: Any, *, inside: Any = (), outside: Any = (), **settings: Any) -> grpc.Channel:
        channels.append(grpc.insecure_channel(server.address, OPTIONS))
        ours = client_interceptors(**{"keys": keys.unique, "retry": FAST, **settings})
        return grpc.intercept_channel(channels[-1], *outside, *ours, *inside)

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def stub_of(connect) -> Callable[..., Any]:
    """A stub on such a channel."""
    return lambda server, **settings: ledger_pb2_grpc.LedgerServiceStub(connect(server, **settings))


kind = kinds(*ALL)
