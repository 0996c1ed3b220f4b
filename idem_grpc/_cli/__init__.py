"""The command ``idem-grpc``, which checks contracts and maintains stores.

Its dependencies are in the extra ``[cli]``. Without them it prints how to install them.
"""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command. Exit statuses are those of ``idem_grpc._cli.failures``."""
    if find_spec("click") is None:
        sys.stderr.write("idem-grpc needs click, which is in its extra 'cli': pip install 'click>=8.2'\n")
        sys.exit(2)
    from idem_grpc._cli.app import app

    app(prog_name="idem-grpc")
