"""Real servers of both faces, on every store."""

from collections.abc import Iterator

import pytest

from tests.server.conftest import Start, face, key, kind, start, url
from tests.server.harness import starting
from tests.streams.conftest import namespace, open_one, style
from tests.streams.servers import SERVERS
from tests.support.redis_server import RedisServer

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
def redis(own_redis_server: RedisServer) -> RedisServer:
    """A Redis server of the test's own."""
    return own_redis_server


@pytest.fixture
def admin(redis):
    """A client of that server."""
    with redis.client() as client:
        yield client


@pytest.fixture
def start_scripted(style, open_one) -> Iterator[Start]:
    """Start a server whose handlers are scripts, in each style: ``start_scripted(where, scripts={…})``."""
    with starting(open_one, SERVERS[style]) as start:
        yield start
