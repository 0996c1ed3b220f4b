"""The command ``idem-grpc``: contracts are checked with it, and stores looked after.

What it needs comes with the extra ``[cli]``; without that it says so, in a sentence.
"""

import sys
from importlib.util import find_spec


def main() -> None:
    """The entry point. Exit statuses are those of ``idem_grpc._cli.failures``."""
    if find_spec("click") is None:
        sys.stderr.write("idem-grpc needs click, as its extra 'cli' has it: pip install 'click>=8.2'\n")
        sys.exit(2)
    from idem_grpc._cli.app import app

    app(prog_name="idem-grpc")
