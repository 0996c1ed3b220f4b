"""Real servers of both faces, on every store."""

from collections.abc import Iterator

import pytest

from tests.server.conftest import Start, face, key, kind, start, url
from tests.server.harness import starting
from tests.streams.conftest import namespace, open_one, style
from tests.streams.servers import SERVERS

__all__ = [
    "face",
    "key",
    "kind",
    "namespace",
    "open_one",
    "start",
    "style",
    "url",
]  # fixtures are found by name


@pytest.fixture
def start_scripted(style, open_one) -> Iterator[Start]:
    """Start a server whose handlers are scripts, in each style: ``start_scripted(where, scripts={…})``."""
    with starting(open_one, SERVERS[style]) as start:
        yield start
