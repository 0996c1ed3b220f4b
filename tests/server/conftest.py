"""Servers for a test, on every face and store that it asks for."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.server.harness import FACES, Server, open_store
from tests.server.kinds import ALL, kinds

Start = Callable[..., Server]

kind = kinds(*ALL)


@pytest.fixture(params=list(FACES))
def face(request) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request, tmp_path) -> str:
    """One of the three stores; those of one test, of whichever server, are the same store."""
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite:///{tmp_path}/store.db"
        case _:
            return str(request.getfixturevalue("redis_server").url)


@pytest.fixture
def key() -> str:
    return uuid4().hex


@pytest.fixture
def start(face) -> Iterator[Start]:
    """Start a server of this face: ``start(url, **settings)``; see Server for the settings.

    All servers of a test share a namespace, so that on one store they know one another's keys.
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
