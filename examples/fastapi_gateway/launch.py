"""Start processes that end with their parent: the payments service and the gateway."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType


class Launched:
    """A process of ``python -m module options…``, whose first line of output ends with its address.

    A context manager that stops the process. Raises RuntimeError if the process does not start.
    """

    def __init__(self, module: str, *options: str) -> None:
        command = [sys.executable, "-m", module, *options]
        # Nothing is ever written to its standard input, which closes when this process ends, for any reason.
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
        """Stop the process (SIGTERM), and kill it if it takes too long. Returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """Kill the process (SIGKILL), without cleanup."""
        self._process.kill()
        self._process.communicate()


def when_orphaned(stop: Callable[[], None]) -> None:
    """In a process started by Launched: call ``stop`` when the parent process has ended."""

    def watch() -> None:
        sys.stdin.read()
        stop()

    threading.Thread(target=watch, daemon=True).start()
