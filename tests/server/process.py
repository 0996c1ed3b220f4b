"""A server as a process of its own: ``python -m tests.server.process FACE URL NAMESPACE SETTINGS``.

SETTINGS is JSON: those of the interceptor, with ``default`` as the fields of a Policy. The default of
``cache_bytes`` is 0, so that the server sees at once what a test does to its store. It prints its port,
then each event of its ledger on a line. It reads lines from its standard input: the name of a gate to
open, or ``echo`` and a text to print; and it ends at the end of that.
"""

import json
import sys
from typing import Any

from idem_grpc import OnUnclear, Policy
from tests.server.harness import FACES, open_store
from tests.server.ledger import Ledger
from tests.support import eager


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def settings(given: str) -> dict[str, Any]:
    found = json.loads(given)
    policy = found.pop("default", {})
    if "on_unclear" in policy:
        policy["on_unclear"] = OnUnclear[policy["on_unclear"]]
    return {"cache_bytes": 0, **found, "default": Policy(**policy)}


def main(face: str, url: str, namespace: str, given: str) -> None:
    eager.obey_environment()
    ledger = Ledger(report=say)
    server = FACES[face](open_store(face, url, namespace), ledger=ledger, **settings(given))
    say(f"port {server.address.rpartition(':')[2]}")
    for line in sys.stdin:
        if line.startswith("echo "):
            say(line.strip())
        else:
            ledger.gate(line.strip()).open()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
