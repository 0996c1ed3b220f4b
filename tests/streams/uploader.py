"""A client in a process of its own, which begins uploads and never ends them, until it is killed.

Run as ``python -m tests.streams.uploader ADDRESS KEY…``.
"""

import sys
import threading

from tests.server.client import Client, Kind
from tests.streams.servers import Conversation


def main(address: str, *keys: str) -> None:
    client = Client(address)
    uploads = [begin(client, key) for key in keys]
    threading.Event().wait()
    del uploads


def begin(client: Client, key: str, timeout: float | None = None) -> Conversation:
    """Begin an upload. Its first message is its key."""
    return Conversation(client, kind_of(key), key, timeout=timeout).send(key.encode(), b"one", b"two")


def kind_of(key: str) -> Kind:
    """The kind of method that a key is for."""
    return Kind(key.split(":")[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
