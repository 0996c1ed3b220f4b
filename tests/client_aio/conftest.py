"""Tests here are coroutines, each with an event loop of its own."""

import asyncio
import inspect

import pytest

from tests.server.kinds import ALL, kinds
from tests.server.ledger import DEADLINE


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def run():
        async with asyncio.timeout(3 * DEADLINE):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


kind = kinds(*ALL)
