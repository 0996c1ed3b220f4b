"""A process that stays in a write transaction: ``python -m tests.support.sqlite_lock PATH``.

It prints ``locked`` once it has the lock, and releases it at the end of its input.
"""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Have another process hold the write lock of the file at ``path`` until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.sqlite_lock", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n", "the process did not get the lock"
        yield
    finally:
        process.communicate()


def main(path: str) -> None:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    sys.stdout.write("locked\n")
    sys.stdout.flush()
    sys.stdin.read()
    connection.execute("ROLLBACK")


if __name__ == "__main__":
    main(sys.argv[1])
