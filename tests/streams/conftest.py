"""Servers with every style of handlers, on every store."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.server.conftest import key, kind, url
from tests.server.harness import Server, open_store, starting
from tests.streams.servers import SERVERS

__all__ = ["key", "kind", "url"]  # fixtures are found by name

Start = Callable[..., Server]


@pytest.fixture(params=list(SERVERS))
def style(request) -> str:
    """How the handlers are written, which decides the face."""
    return str(request.param)


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


@pytest.fixture
def open_one(style, namespace) -> Callable[..., Any]:
    """Open a store for a server of this style: ``open_one(where)``."""

    def open_one(where: str = "memory:") -> Any:
        return open_store("sync" if style == "sync" else "aio", where, namespace)

    return open_one


@pytest.fixture
def start(style, open_one) -> Iterator[Start]:
    """Start a server of this style: ``start(where, **settings)``; see Server for the settings.

    All servers of a test share a namespace, so that on one store they share their keys.
    """
    with starting(open_one, SERVERS[style]) as start:
        yield start
