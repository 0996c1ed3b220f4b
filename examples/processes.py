"""What the examples share: servers as processes of their own, which do not outlive who started them.

A server ends when its standard input does, and that ends with its parent, however the parent ends.
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
    """Serve on a free port, which is printed, until standard input ends. ``add`` adds the services."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent says when to end
    server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=interceptors)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"{name} listens on 127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(GRACE).wait()
    for each in interceptors:
        if isinstance(each, ServerInterceptor):
            each.drain(GRACE)  # lets runs end whose callers are gone, and tells the store


class Server:
    """A server process. As a context manager, it is gone afterwards."""

    def __init__(self, module: str, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = module

    def ready(self) -> str:
        """Wait until it serves, and return its address. Raises RuntimeError if it does not start."""
        return self.line().split()[-1]

    def line(self) -> str:
        """Wait for the next line that it prints."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"{self._name} has ended: exit status {self._process.wait()}")
        return said.strip()

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self._process.kill()
        self._process.wait()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Let it end what it has begun; a server that takes too long over it is killed."""
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
    """Wait until something shows. Raises RuntimeError if it does not in ``patience`` seconds."""
    give_up = time.monotonic() + patience
    while not happened():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what}: this did not happen in {patience:g} s")
        threading.Event().wait(0.01)
