"""Servers that issue tokens, on every face and store that a test asks for."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from idem_grpc.stores.memory import AsyncMemoryStore, MemoryStore
from tests.server.conftest import face, url
from tests.server.harness import Server, open_store
from tests.tokens.servers import FACES, Clock

__all__ = ["face", "url"]  # fixtures are found by name

Start = Callable[..., Server]


@pytest.fixture
def start(face) -> Iterator[Start]:
    """Start a server of this face: ``start(url, **settings)``; see _WithTokens for the settings.

    All servers of a test share a namespace, so that on one store they know one another's tokens.
    """
    servers: list[Server] = []
    namespace = uuid4().hex

    def start(url: str = "memory:", *, store: Any = None, **settings: Any) -> Server:
        opened = open_store(face, url, namespace) if store is None else store
        servers.append(FACES[face](opened, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.ledger.open_all()
    for server in servers:
        server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def clocked(face, clock) -> MemoryStore | AsyncMemoryStore:
    """A store in memory, on ``clock``."""
    return MemoryStore(clock=clock) if face == "sync" else AsyncMemoryStore(clock=clock)
