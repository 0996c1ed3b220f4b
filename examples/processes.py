"""Server processes for the examples, which end with the process that started them.

A server stops at the end of its standard input. That is closed when its parent ends, for any reason.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from idem_grpc import ServerInterceptor

THREADS = 16
GRACE = 10.0


def serve(name: str, interceptors: list[grpc.ServerInterceptor], add: Callable[[grpc.Server], None]) -> None:
    """Serve on a free port until standard input ends. Prints the address. ``add`` adds the services."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent stops this process
    server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=interceptors)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"{name} listens on 127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(GRACE).wait()
    for each in interceptors:
        if isinstance(each, ServerInterceptor):
            each.drain(GRACE)  # waits for runs whose callers have disconnected


class Server:
    """A server process. A context manager that kills it at the end."""

    def __init__(self, module: str, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = module

    def ready(self) -> str:
        """Wait until the server is up, and return its address. Raises RuntimeError if it does not start."""
        return self.line().split()[-1]

    def line(self) -> str:
        """Wait for the next line that the server prints."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"{self._name} has ended: exit status {self._process.wait()}")
        return said.strip()

    def kill(self) -> None:
        """Kill the server (SIGKILL), without cleanup."""
        self._process.kill()
        self._process.wait()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop the server after its calls in progress. Kills a server that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=2 * GRACE)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def until(happened: Callable[[], object], what: str, patience: float = 10) -> None:
    """Wait until ``happened()`` is true. Raises RuntimeError after ``patience`` seconds."""
    give_up = time.monotonic() + patience
    while not happened():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what}: this did not happen in {patience:g} s")
        threading.Event().wait(0.01)
