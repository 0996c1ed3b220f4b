"""A client in a process of its own, which begins uploads and never ends them.

``python -m tests.streams.uploader ADDRESS KEY…``; it is there to be killed.
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
    """The beginning of an upload, as far as it ever comes. Its first message is its key."""
    return Conversation(client, kind_of(key), key, timeout=timeout).send(key.encode(), b"one", b"two")


def kind_of(key: str) -> Kind:
    """Keys name the kind of method that they are for."""
    return Kind(key.split(":")[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
