"""A TCP proxy between a client and its servers, which can lose a reply."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Proxy:
    """Forwards connections to the first of ``targets`` that accepts them. A context manager."""

    def __init__(self, *targets: str) -> None:
        self.targets = list(targets)
        self._is_cut: Callable[[], object] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def lose_reply_once(self, happened: Callable[[], object]) -> None:
        """Cut the connection at the first bytes that a server sends once ``happened()`` is true."""
        self._is_cut = happened

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *error: object) -> None:
        _end(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the listener was closed
                return
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = self._connect()
        if server is not None:
            threading.Thread(target=_pass_on, args=(client, server), name="requests", daemon=True).start()
            _pass_on(server, client, self._is_to_cut)
            _end(server)
        _end(client)

    def _connect(self, patience: float = 20.0) -> socket.socket | None:
        """Connect to a server. Retries for ``patience`` seconds, because the server may still be starting."""
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up:
            for target in list(self.targets):
                host, _, port = target.rpartition(":")
                with suppress(OSError):
                    return socket.create_connection((host, int(port)))
            threading.Event().wait(0.02)
        return None

    def _is_to_cut(self) -> bool:
        if self._is_cut is None or not self._is_cut():
            return False
        self._is_cut = None
        return True


def _pass_on(
    source: socket.socket, sink: socket.socket, is_to_cut: Callable[[], bool] = lambda: False
) -> None:
    with suppress(OSError):
        while (data := source.recv(65536)) and not is_to_cut():
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


def _end(connection: socket.socket) -> None:
    """Close a socket, and wake the threads that read from it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
