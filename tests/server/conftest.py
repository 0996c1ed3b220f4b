"""Servers, on every face and store."""

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
    """The URL of a store; all servers of a test share the store."""
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

    All servers of a test share a namespace, so that on one store they share their keys.
    """
    namespace = uuid4().hex
    with starting(lambda url: open_store(face, url, namespace), FACES[face]) as start:
        yield start
