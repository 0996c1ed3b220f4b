"""Fixtures that more than one folder of tests needs."""

import signal

import pytest

# A job in the background of a script ignores SIGINT, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("idem_grpc.stores._contract", "idem_grpc.testing", "tests.support")

from tests.support import eager  # noqa: E402 -- after what it is to be rewritten by
from tests.support import wheel as wheels  # noqa: E402 -- after that, likewise
from tests.support.redis_server import RedisServer  # noqa: E402 -- after that, likewise

eager.obey_environment()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built once. Tests that use it need a longer timeout, since building fetches packages."""
    return wheels.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def redis_server():
    """A server that all tests share: each uses a namespace of its own, and none kills or pauses it."""
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def own_redis_server():
    """A server of the test's own, which it may kill and pause, and whose commands it may count."""
    server = RedisServer()
    yield server
    server.stop()
