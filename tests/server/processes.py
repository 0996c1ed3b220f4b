"""Servers in processes of their own, which a test may kill and pause."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests_pb.v1 import ledger_pb2 as pb

from tests.server.client import Client, Kind
from tests.server.ledger import DEADLINE, order
from tests.support.wait import until

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class ServerProcess:
    """A server of tests.server.process. Raises AssertionError if it does not start.

    ``within`` is put before its command, such as a command that makes a container.
    """

    def __init__(
        self, face: str, url: str, namespace: str, *, within: Sequence[str] = (), **settings: Any
    ) -> None:
        command = [sys.executable, "-m", "tests.server.process", face, url, namespace, json.dumps(settings)]
        self._process = subprocess.Popen(
            [*within, *command],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._events: list[str] = []
        self._port: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._client: Client | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @cached_property
    def address(self) -> str:
        port = self._port.get(timeout=DEADLINE)
        assert port is not None, f"the server ended at its start, with {self._process.wait()}"
        return f"127.0.0.1:{port}"

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def attempts(self, request: pb.LedgerRequest) -> list[int]:
        """The attempts at an order that ran here, of the events reported so far."""
        if self._process.poll() is None:
            self._hear()
        events = [event.split() for event in list(self._events)]
        return [int(words[2]) for words in events if words[:2] == ["run", request.order]]

    def _hear(self) -> None:
        """Wait until all events printed so far are read, since they may arrive after the answers of calls."""
        assert self._process.stdin is not None
        echo = f"echo {uuid4().hex}"
        self._process.stdin.write(echo + "\n")
        self._process.stdin.flush()
        until(lambda: echo in self._events)

    def await_gate(self, name: str) -> None:
        """Wait until a handler is at a gate."""
        until(lambda: f"gate {name}" in self._events)

    def open(self, gate: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(gate + "\n")
        self._process.stdin.flush()

    def pause(self) -> None:
        """SIGSTOP, and wait until all of its threads are stopped."""
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        until(lambda: all(_stands_still(thread) for thread in threads.iterdir()))

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, after reading all events printed before."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def close(self) -> None:
        if self._client is not None:
            self._client.channel.close()
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "port":
                self._port.put(rest)
            else:
                self._events.append(line.strip())
        self._port.put(None)


def _stands_still(thread: Path) -> bool:
    """Whether a thread is stopped, as proc(5) has it, or has ended since it was listed."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def starting_processes(face: str, url: str) -> Iterator[Callable[..., list[ServerProcess]]]:
    """Give ``start(prefixes, **settings)``, which starts servers on one store, one within each prefix."""
    started: list[ServerProcess] = []
    namespace = uuid4().hex

    def start(prefixes: Sequence[Sequence[str]], **settings: Any) -> list[ServerProcess]:
        for prefix in prefixes:
            started.append(ServerProcess(face, url, namespace, within=prefix, **settings))
        for process in started:
            assert process.client.call(Kind.READ, order()).ok
        return started

    yield start
    for process in started:
        process.close()
