"""Redis servers with special settings, and a server with scripted replies."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.redis_server import RedisServer
from tests.support.wait import until

SLOTS = 16384
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n")
_OF_A_CLUSTER = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")


@contextmanager
def running(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    """A server with these options."""
    server = RedisServer(*options, password=password)
    try:
        yield server
    finally:
        server.stop()


def at(server: RedisServer, credentials: str = "", path: str = "") -> str:
    """The URL of a server, with ``credentials`` such as ``"user:password@"``, and the rest."""
    return server.url.replace("://", f"://{credentials}") + path


@contextmanager
def cluster(*shares: range) -> Iterator[list[RedisServer]]:
    """The nodes of a cluster, each with its slots."""
    nodes: list[RedisServer] = []
    try:
        for share in shares:
            nodes.append(RedisServer(*_OF_A_CLUSTER))
            with nodes[-1].client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", share[0], share[-1])
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        until(lambda: all(_is_complete(node, len(shares)) for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            node.stop()


def _is_complete(node: RedisServer, size: int) -> bool:
    with node.client() as client:
        info = client.execute_command("CLUSTER INFO")
    known = info["cluster_state"], info["cluster_slots_ok"], info["cluster_size"]
    return known == ("ok", str(SLOTS), str(size))


@contextmanager
def scripted(reply: bytes) -> Iterator[str]:
    """The URL of a server that gives one reply to every command after the handshake."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                for command in _COMMAND.findall(data):
                    connection.sendall(b"+OK\r\n" if command == b"CLIENT" else reply)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
