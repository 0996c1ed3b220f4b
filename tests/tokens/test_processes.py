"""One token that a hundred callers use at once, on three server processes."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import pytest

from tests.server.client import Client, Kind
from tests.server.ledger import DEADLINE, order, run
from tests.server.processes import ENVIRONMENT, ROOT
from tests.tokens.servers import issue, shown

CALLERS = 100


class TokenProcess:
    """A server of tests.tokens.process. Raises AssertionError if it does not start."""

    def __init__(self, face: str, url: str, namespace: str) -> None:
        command = [sys.executable, "-m", "tests.tokens.process", face, url, namespace]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            assert self._process.stdout is not None
            word, _, port = self._process.stdout.readline().strip().partition(" ")
            assert word == "port", f"the server ended at its start, with {self._process.wait()}"
            self._client = Client(f"127.0.0.1:{port}")
        return self._client

    def open(self, gate: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(gate + "\n")
        self._process.stdin.flush()

    def end(self) -> list[str]:
        """Stop it gracefully, and return all that it printed. May be called twice."""
        if self._client is not None:
            self._client.channel.close()
        if self._process.poll() is not None:
            return []
        said: str = self._process.communicate(timeout=DEADLINE)[0]
        return said.splitlines()


@pytest.fixture(params=["sqlite", "redis"])
def processes(request, tmp_path):
    sqlite = f"sqlite:///{tmp_path}/store.db"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("redis_server").url
    namespace = uuid4().hex
    started = [TokenProcess(face, url, namespace) for face in ("sync", "aio", "sync")]
    yield started
    for process in started:
        process.end()


def test_a_token_used_by_100_callers_at_once_is_one_run(processes):
    request = order(run(gate="at work"))
    clients = [process.client for process in processes]
    token = issue(clients[0])
    together = threading.Barrier(CALLERS + 1)

    def pay(number):
        together.wait(DEADLINE)
        return clients[number % 3].persist(Kind.UNARY, request, token)

    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(pay, number) for number in range(CALLERS)]
        together.wait(DEADLINE)
        for process in processes:
            process.open("at work")
        answers = [call.result() for call in calls]
    assert {answer.code for answer in answers} == {grpc.StatusCode.OK}
    assert len({answer.essence for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert {shown(client, token).attempt for client in clients} == {1}
    runs = [line for process in processes for line in process.end() if line.startswith("run ")]
    assert runs == [f"run {request.order} 1"]
