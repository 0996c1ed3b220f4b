"""A server as a process of its own: ``python -m tests.tokens.process FACE URL NAMESPACE``.

It prints its port, then each event of its ledger on a line. It opens the gates that are named on
its standard input, and ends at the end of that.
"""

import sys

from tests.server.harness import open_store
from tests.server.ledger import Ledger
from tests.server.process import say
from tests.tokens.servers import FACES


def main(face: str, url: str, namespace: str) -> None:
    server = FACES[face](open_store(face, url, namespace), ledger=Ledger(report=say))
    say(f"port {server.address.rpartition(':')[2]}")
    for line in sys.stdin:
        server.ledger.gate(line.strip()).open()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
