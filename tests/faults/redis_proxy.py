"""A TCP proxy between a store and its Redis, which holds replies back so that tests can act meanwhile."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.server.ledger import DEADLINE


class RedisProxy:
    """Forwards everything that the store sends, and as many replies as the test allows; all, by default."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._changed = threading.Condition()
        self._allowed: int | None = None
        self._connections: set[socket.socket] = set()
        self.held = 0
        """How many replies are held back now."""
        self.hung_up = 0
        """How many connections the store has closed so far."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends accept()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)

    def allow(self, replies: int | None) -> None:
        """Let this number of replies pass from now on, and hold the next; None lets all pass."""
        with self._changed:
            self._allowed = replies
            self._changed.notify_all()

    def cut(self) -> None:
        """Close all connections."""
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()
            self._changed.notify_all()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._target), DEADLINE) as far:
            with self._changed:
                self._connections |= {near, far}
            forward = threading.Thread(target=self._forward, args=(near, far), daemon=True)
            forward.start()
            self._back(near, far)
            forward.join(DEADLINE)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
        with self._changed:
            self.hung_up += near in self._connections
            self._connections -= {near, far}
            self._changed.notify_all()
        with suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def _back(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                with self._changed:
                    self.held += 1
                    self._changed.wait_for(lambda: self._allowed != 0 or near not in self._connections)
                    self.held -= 1
                    if self._allowed:
                        self._allowed -= 1
                near.sendall(data)
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)
