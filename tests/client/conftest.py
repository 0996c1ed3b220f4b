"""Scripted servers, channels with our interceptors, and clocks of the test's own."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2_grpc

from idem_grpc import Retry, client_interceptors, keys
from tests.client.scripted import Scripted
from tests.server.client import Kind
from tests.server.kinds import ALL, kinds

FAST = Retry(initial_backoff=0.001, max_backoff=0.01)
"""Settings for tests that care for what is sent, and not for when."""


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


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """A channel with our interceptors: ``connect(server, **settings)``, by default with unique keys.

    ``inside`` are interceptors between ours and the wire, ``outside`` those before ours.
    """
    channels: list[grpc.Channel] = []

    def connect(server: Any, *, inside: Any = (), outside: Any = (), **settings: Any) -> grpc.Channel:
        plain = grpc.insecure_channel(
            server.address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        channels.append(plain)
        ours = client_interceptors(**{"keys": keys.unique, "retry": FAST, **settings})
        return grpc.intercept_channel(plain, *outside, *ours, *inside)

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def stub_of(connect) -> Callable[..., Any]:
    """A stub on such a channel."""
    return lambda server, **settings: ledger_pb2_grpc.LedgerServiceStub(connect(server, **settings))


kind = kinds(*ALL)


def send(stub: Any, kind: Kind, *requests: Any, **options: Any) -> list[Any]:
    """Make a call of any kind, blocking, and return all responses."""
    method = getattr(stub, kind.value)
    given = iter(requests) if kind.has_request_stream else requests[0]
    response = method(given, **options)
    return list(response) if kind.has_response_stream else [response]
