"""Servers for a test, on every face and store that it asks for."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.server.harness import FACES, Server, open_store, starting
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
    namespace = uuid4().hex
    with starting(lambda url: open_store(face, url, namespace), FACES[face]) as start:
        yield start
