"""A store in a process of its own: ``python -m tests.support.remote_store URL``.

It answers one line for each line that it reads: the value of an expression in which ``store``
is the store.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import StoreError, open_store
from idem_grpc.stores._sqlite import SqliteStore


class Failed(NamedTuple):
    """A StoreError that was raised there."""

    type: str
    answered: bool
    text: str


NAMES = {"Swap": Swap, "Held": Held, "Swapped": Swapped, "Failed": Failed, "inf": float("inf")}


class RemoteStore:
    """The process of a store. ``within`` is put before its command."""

    def __init__(self, url: str, *, within: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.support.remote_store", url],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, expression: str) -> Any:
        """Evaluate the expression there, and return the value, or Failed for a StoreError.

        AssertionError if the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return eval(line, NAMES)

    def swap(self, swap: Swap) -> Swapped | Held | Failed:
        answer: Swapped | Held | Failed = self.ask(f"store.swap({swap!r})")
        return answer

    def read(self, key: bytes) -> Held:
        answer: Held = self.ask(f"store.read({key!r})")
        return answer

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> "RemoteStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(url: str) -> None:
    store = open_store(url)
    if isinstance(store, SqliteStore):
        store._sweep_every = 0.01
    with store:
        for line in sys.stdin:
            try:
                answer = eval(line, {"store": store} | NAMES)
            except StoreError as error:
                answer = Failed(type(error).__name__, getattr(error, "answered", False), str(error))
            sys.stdout.write(repr(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
