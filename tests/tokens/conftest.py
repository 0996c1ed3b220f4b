"""Servers that issue tokens, on every face and store."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from idem_grpc.stores._memory import AsyncMemoryStore, MemoryStore
from tests.server.conftest import face, url
from tests.server.harness import Server, open_store, starting
from tests.tokens.servers import FACES, Clock

__all__ = ["face", "url"]  # fixtures are found by name

Start = Callable[..., Server]


@pytest.fixture
def start(face) -> Iterator[Start]:
    """Start a server of this face: ``start(url, **settings)``; see _WithTokens for the settings.

    All servers of a test share a namespace, so that on one store they share their tokens.
    """
    namespace = uuid4().hex
    with starting(lambda url: open_store(face, url, namespace), FACES[face]) as start:
        yield start


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def clocked(face, clock) -> MemoryStore | AsyncMemoryStore:
    """A store in memory, on ``clock``."""
    return MemoryStore(clock=clock) if face == "sync" else AsyncMemoryStore(clock=clock)
