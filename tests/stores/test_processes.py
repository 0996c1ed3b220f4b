"""A store belongs to the process that opened it, and to one event loop."""

import subprocess
import sys

import pytest

FORK = """
import os, sys
from idem_grpc.stores import StoreError, open_store
from idem_grpc._core.swap import Swap
store = open_store(sys.argv[1])
store.swap(Swap(b"parent", None, b"one", 60))
child = os.fork()
if not child:
    for act in (lambda: store.swap(Swap(b"child", None, b"two", 60)), store.check):
        try:
            act()
        except StoreError as error:
            assert "after the fork" in str(error), error
        else:
            os._exit(2)
    store.close()
    store.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
store.check()
store.swap(Swap(b"key", None, b"three", 60))
assert store.swap(Swap(b"parent", None, b"other", 60)).value == b"one"
store.close()
"""

ASYNC_FORK = """
import asyncio, os, sys
from idem_grpc.stores import StoreError, open_async_store
from idem_grpc._core.swap import Swap
store = open_async_store(sys.argv[1])
child = os.fork()
async def main():
    try:
        await store.swap(Swap(b"child", None, b"two", 60))
    except StoreError as error:
        assert "after the fork" in str(error), error
        await store.aclose()
    else:
        sys.exit(2)
async def parent():
    async with store:
        await store.check()
if not child:
    asyncio.run(main())
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
asyncio.run(parent())
"""

FORGOTTEN = """
import sys
from idem_grpc.stores import open_store
from idem_grpc._core.swap import Swap
store = open_store(sys.argv[1])
store.swap(Swap(b"key", None, b"one", 60))
"""


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request, tmp_path):
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite:///{tmp_path}/store.db"
        case _:
            return request.getfixturevalue("own_redis_server").url


def run(script, *arguments):
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=60)


def test_a_store_opened_before_a_fork_is_refused_with_the_reason(url):
    run(FORK, url)


def test_an_async_store_opened_before_a_fork_is_refused_with_the_reason(url):
    run(ASYNC_FORK, url)


def test_a_store_that_is_not_closed_keeps_no_process_alive(url):
    run(FORGOTTEN, url)
