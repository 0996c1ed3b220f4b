"""Load a server: h2load sends the same call repeatedly, and a Python client checks the answers.

If there are two processors or more, the server has one to itself, so that only the server is measured. The
load generator and the stores use the others.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import grpc
from tests_pb.v1 import bench_pb2, bench_pb2_grpc

from benchmarks.server import answer
from tests.support.redis_server import RedisServer

METHOD = "/tests.v1.BenchService/Charge"


def charge_request(size: int) -> bench_pb2.ChargeRequest:
    """Return a small request for an answer of ``size`` bytes."""
    return bench_pb2.ChargeRequest(customer="uid123", amount=1999, items=["book", "pen"], receipt_bytes=size)


REQUEST = charge_request(100)
CONNECTIONS, STREAMS = 4, 16  # 64 calls in flight
KEY = "idempotency-key"


_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m),")
_DATA = re.compile(r"\((\d+)\) data")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_GRPC_HEADER = 5  # bytes before each message


class Spent(NamedTuple):
    """The time that a number of calls took: h2load's wall-clock seconds and the server's CPU seconds."""

    calls: int
    seconds: float
    cpu: float


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        yield server
    finally:
        server.stop()


def require_h2load() -> str:
    """Return the path of h2load. Raises RuntimeError with instructions if it is missing."""
    command = shutil.which("h2load")
    if command is None:
        raise RuntimeError("h2load is missing: install it, as with `apt-get install nghttp2-client`")
    return command


@contextmanager
def spared_processor() -> Iterator[int | None]:
    """Keep this process and its children off one processor. Yields it, or None if there is only one."""
    usable = _processors()
    spared = min(usable) if len(usable) > 1 else None
    with _running_on(usable - {spared}):
        yield spared


@contextmanager
def one_processor() -> Iterator[None]:
    """Restrict this process and its children to one shared processor."""
    with _running_on({min(_processors(), default=0)}):
        yield


def _processors() -> set[int]:
    """Return the processors that this process may use; empty if the platform does not report them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def _running_on(processors: set[int]) -> Iterator[None]:
    usable = _processors()
    if not usable:
        yield
        return
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def requests(command: list[str], calls: int, data: int | None) -> float:
    """Run h2load. Returns the seconds that its calls took.

    Raises RuntimeError unless all calls succeeded and the responses have ``data`` bytes in all (None: any
    number). The bytes are checked because h2load counts a call that gRPC refuses as a success.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finished, received = _FINISHED.search(done), _DATA.search(done)
    if finished is None or received is None or f"{calls} succeeded, 0 failed" not in done:
        raise RuntimeError(f"not all of {calls} calls succeeded:\n{done}")
    if data is not None and int(received[1]) != data:
        raise RuntimeError(f"not all of {calls} calls were answered: {received[1]} bytes, and not {data}")
    return float(finished[1]) * _UNITS[finished[2]]


class Server:
    """A server to be measured; see benchmarks.server. A context manager that stops it.

    collects: whether the garbage collector is on.
    processor: the only processor that it runs on, if any.
    library: folders to import the library from, in place of this checkout.
    """

    def __init__(
        self,
        face: str,
        row: str,
        url: str,
        *,
        collects: bool = True,
        processor: int | None = None,
        library: Sequence[Path] = (),
    ) -> None:
        self.row = row
        command = [sys.executable, "-P", "-m", "benchmarks.server", face, row, url]
        command += [] if collects else ["--no-gc"]
        command += [] if processor is None else ["--processor", str(processor)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, library), *sys.path])},
        )
        self.port = int(self._line() or 0)
        if not self.port:
            self.close()
            raise RuntimeError(f"{' '.join(command)} did not start: exit status {self._process.returncode}")
        is_keyed = row.endswith(("first", "store", "cache"))
        self.key = uuid4().hex if is_keyed else None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def report(self) -> tuple[float, int, int]:
        """Return the CPU seconds used, the handlers run so far, and the current memory in kilobytes."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        cpu, runs, memory = self._line().split()
        return float(cpu), int(runs), int(memory)

    def load(self, calls: int, request: bench_pb2.ChargeRequest = REQUEST) -> Spent:
        """Make ``calls`` calls with h2load.

        Raises RuntimeError if a call fails, or if the handler does not run as often as the row requires.
        """
        data = calls * (_GRPC_HEADER + answer(request).ByteSize())
        ran = self.report()[1]
        spent = self.send(calls, METHOD, request.SerializeToString(), data)
        ran = self.report()[1] - ran
        expected = 0 if self.row.endswith(("store", "cache")) else calls
        if ran != expected:
            raise RuntimeError(f"{self.row}: {ran} handlers ran for {calls} calls")
        return spent

    def send(self, calls: int, method: str, body: bytes, data: int | None = None) -> Spent:
        """Make ``calls`` calls of a method with h2load; see ``requests`` for ``data``."""
        with tempfile.NamedTemporaryFile(suffix=".grpc") as file:
            Path(file.name).write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
            command = [
                *(
                    require_h2load(),
                    f"-n{calls}",
                    f"-c{min(CONNECTIONS, calls)}",
                    f"-m{STREAMS}",
                    "-d",
                    file.name,
                ),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                *(() if self.key is None else ("-H", f"{KEY}: {self.key}")),
                f"http://127.0.0.1:{self.port}{method}",
            ]
            cpu = self.report()[0]
            seconds = requests(command, calls, data)
            return Spent(calls, seconds, self.report()[0] - cpu)

    def check(self, request: bench_pb2.ChargeRequest = REQUEST) -> None:
        """Check which answers are first and which are replays. Raises AssertionError."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            ask: Any = bench_pb2_grpc.BenchServiceStub(channel).Charge
            keyed = [] if self.key is None else [(KEY, self.key)]
            answers = [ask.with_call(request, metadata=keyed) for _ in range(3)]
        assert all(response == answer(request) for response, _ in answers)
        trailing = [dict(call.trailing_metadata() or ()) for _, call in answers]
        assert all(("idempotency-run" in each) is (self.key is not None) for each in trailing), trailing
        replayed = [each.get("idempotency-replayed") == "true" for each in trailing]
        assert replayed == [False, *[self.row.endswith(("store", "cache"))] * 2], (self.row, trailing)

    def singly(self, calls: int) -> list[float]:
        """Return the microseconds of each of ``calls`` single calls. Asserts that the answers are right."""
        took = []
        expected = answer(REQUEST)
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            ask: Any = bench_pb2_grpc.BenchServiceStub(channel).Charge
            keyed = [] if self.key is None else [(KEY, self.key)]
            assert ask(REQUEST, metadata=keyed) == expected  # also opens the connection
            for _ in range(calls):
                started = time.perf_counter()
                response = ask(REQUEST, metadata=keyed)
                took.append((time.perf_counter() - started) * 1e6)
                assert response == expected
        return took

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def in_turn(items: list[Any], repeat: int) -> list[Any]:
    """Return the items in another order in each repeat: both the first item and the neighbours change."""
    first = repeat % len(items)
    turned = items[first:] + items[:first]
    return turned if repeat % 2 else turned[::-1]


def rounds(
    servers: Mapping[str, Server], repeats: int, calls: int, request: bench_pb2.ChargeRequest = REQUEST
) -> Iterator[dict[str, Spent]]:
    """Load each server once per repeat, in turns. Yields the time that each took, by its name."""
    for repeat in range(repeats):
        yield {name: servers[name].load(calls, request) for name in in_turn(list(servers), repeat)}


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
