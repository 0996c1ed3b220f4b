"""Two payment servers in separate processes, on one store and one ledger, and clients of both."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from examples_pb.checkout.v1 import payments_pb2 as pb

from examples.checkout.client import Answer, Client
from examples.checkout.ledger import Ledger
from idem_grpc import keys

PRICE = 1299
"""The price of every order, in cents."""

LEASE = 2
"""Seconds of silence after which a run counts as dead. In production, keep the default of 30."""


class Server:
    """A server process. Its port is known once ``ready`` has returned."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "examples.checkout.server", "--name", name, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def ready(self) -> str:
        """Wait until it serves, and return its address."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"{self.name} did not start: exit status {self._process.wait()}")
        return said.split()[-1]

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the server to end. Kills a server that takes too long."""
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout=30)  # at most twice its grace period
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()


class Shop:
    """The servers and clients that the scenes use. A context manager that stops all its processes."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.ledger = Ledger(folder / "ledger.db")
        self._gates = folder / "gates"
        self._gates.mkdir()
        self._options = ("--ledger", str(folder / "ledger.db"), "--gates", str(self._gates), *options)
        self._pushbacks: Counter[str] = Counter()
        self._servers: list[Server] = []
        self._addresses: list[str] = []
        self._calls = ThreadPoolExecutor(max_workers=64)
        self._cleanup = ExitStack()

    def __enter__(self) -> "Shop":
        with self._cleanup:  # if one server does not start, stop the other
            self._cleanup.callback(self._calls.shutdown)
            self._servers += [self._launch("server-1"), self._launch("server-2")]
            self._addresses += [server.ready() for server in self._servers]
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _launch(self, name: str) -> Server:
        server = Server(name, *self._options)
        self._cleanup.callback(server.stop, signal.SIGKILL)
        return server

    def pay(
        self,
        order: str,
        server: int = 0,
        *,
        price: int = PRICE,
        card: str = "card-good",
        token: str = "",
        timeout: float = 10,
    ) -> "Future[Answer]":
        """Click on "Pay". All clicks on one page send its token.

        Without a token, all clicks for one order send the same key, built from the order id.
        """
        request = pb.ChargeRequest(
            order_id=order, amount=pb.Money(minor_units=price, currency="EUR"), card=card
        )
        return self._calls.submit(self._charge, self._addresses[server], request, token, timeout)

    def show_page(self, server: int = 0) -> str:
        """Get the token that comes with the page."""
        client = Client(self._addresses[server])
        try:
            return client.issue_token()
        finally:
            client.close()

    def _charge(self, address: str, request: pb.ChargeRequest, token: str, timeout: float) -> Answer:
        order = request.order_id
        client = Client(address, on_pushback=lambda reason: self._pushbacks.update([order]))
        try:
            if token:
                return client.pay(request, token, timeout)
            return client.charge(request, keys.structured("pay", order), timeout)
        finally:
            client.close()

    def pushbacks(self, order: str) -> int:
        """Return how often a call for this order was refused with a pushback."""
        return self._pushbacks[order]

    def open_gate(self, order: str) -> None:
        """Let the provider answer for a slow card."""
        (self._gates / order).touch()

    def kill(self, server: int) -> None:
        """Kill a server (SIGKILL, without cleanup) and start a new one in its place."""
        self._servers[server].stop(signal.SIGKILL)
        self._servers[server] = self._launch(self._servers[server].name)
        self._addresses[server] = self._servers[server].ready()

    def stop(self) -> list[int]:
        """Stop the servers (SIGTERM), which finish what they have begun. Returns their exit statuses."""
        return [server.stop(signal.SIGTERM) for server in self._servers]

    @staticmethod
    def until(happened: Callable[[], object], what: str, patience: float = 8) -> None:
        """Wait until ``happened()`` is true. Raises TimeoutError after ``patience`` seconds."""
        give_up = time.monotonic() + patience
        while not happened():
            if time.monotonic() > give_up:
                raise TimeoutError(f"{what}: this did not happen in {patience:g} s")
            threading.Event().wait(0.01)
