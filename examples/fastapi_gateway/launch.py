"""Processes that do not outlive the one that starts them: the payments service, and the gateway."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType


class Launched:
    """``python -m module options…``, and the first line that it prints, which says where it listens.

    As a context manager it ends the process. Raises RuntimeError if it does not start.
    """

    def __init__(self, module: str, *options: str) -> None:
        command = [sys.executable, "-m", module, *options]
        # Nothing is ever written to its standard input: it ends when we do, however we end.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            self._process.communicate()
            raise RuntimeError(f"{module} did not start: exit status {self._process.returncode}")
        self.address = said.split()[-1]
        self.pid = self._process.pid

    def __enter__(self) -> "Launched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Ask it to end, and have it killed if it takes too long. Returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self._process.kill()
        self._process.communicate()


def when_orphaned(stop: Callable[[], None]) -> None:
    """In a process that was Launched: call ``stop`` once the one that did so has ended."""

    def watch() -> None:
        sys.stdin.read()
        stop()

    threading.Thread(target=watch, daemon=True).start()
