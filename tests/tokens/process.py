"""A server as a process of its own: ``python -m tests.tokens.process FACE URL NAMESPACE``.

It says its port first, then every event of its ledger, one a line; it opens the gates that it
is told to on its standard input, and ends when that does.
"""

import sys

from tests.server.harness import open_store
from tests.server.ledger import Ledger
from tests.server.process import say
from tests.tokens.servers import FACES


def main(face: str, url: str, namespace: str) -> None:
    server = FACES[face](open_store(face, url, namespace), ledger=Ledger(tell=say))
    say(f"port {server.address.rpartition(':')[2]}")
    for line in sys.stdin:
        server.ledger.gate(line.strip()).open()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
