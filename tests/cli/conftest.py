"""A store, and the command: in this process, and as users start it."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from idem_grpc._cli.app import app
from idem_grpc.stores import open_store

ENTRY = str(Path(sys.executable).with_name("idem-grpc"))
Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the command in this process; ``input`` is what the user types."""

    def run(*arguments: object, input: str = "", env: Mapping[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, [str(one) for one in arguments], input=input, env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the installed entry point."""
    command = [ENTRY, *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.fixture(params=["sqlite", "redis"])
def place(request, tmp_path):
    """The options that name a store that no other test uses."""
    namespace = uuid4().hex
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db"
    else:
        url = request.getfixturevalue("redis_server").url
    return ("--store", url, "--namespace", namespace)


@pytest.fixture
def store(place):
    """The same store, opened by the test."""
    with open_store(place[1], namespace=place[3]) as store:
        store.check()  # which makes the file
        yield store
