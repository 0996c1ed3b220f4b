"""Load on a server: h2load sends the same call again and again, a Python client looks at the answers."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import uuid4

import grpc
from tests_pb.v1 import bench_pb2, bench_pb2_grpc

METHOD = "/tests.v1.BenchService/Charge"
REQUEST = bench_pb2.ChargeRequest(customer="uid123", amount=1999, items=["book", "pen"], receipt_bytes=100)
CONNECTIONS, STREAMS = 4, 16  # 64 calls in flight
KEY = "idempotency-key"


class Spent(NamedTuple):
    """What a number of calls took: seconds, and the server's CPU seconds."""

    calls: int
    seconds: float
    cpu: float


def require_h2load() -> str:
    """The command. Raises RuntimeError, saying how to get it."""
    command = shutil.which("h2load")
    if command is None:
        raise RuntimeError("h2load is missing: install it, as with `apt-get install nghttp2-client`")
    return command


class Server:
    """A server to be measured; see benchmarks.server."""

    def __init__(self, face: str, row: str, url: str, python: str, *, collects: bool = True) -> None:
        self.row = row
        command = [python, "-m", "benchmarks.server", face, row, url, *([] if collects else ["--no-gc"])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.port = int(self._line() or 0)
        if not self.port:
            self.close()
            raise RuntimeError(f"{' '.join(command)} did not start: exit status {self._process.returncode}")
        self.key = None if row in ("bare", "unprotected") else uuid4().hex

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def report(self) -> tuple[float, int, int]:
        """CPU seconds used, handlers run and reports made so far, and the kilobytes of memory now."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        cpu, runs, memory = self._line().split()
        return float(cpu), int(runs), int(memory)

    def load(self, calls: int, request: bench_pb2.ChargeRequest = REQUEST) -> Spent:
        """Have h2load make so many calls. Raises RuntimeError unless all succeed, and run as the row says."""
        body = request.SerializeToString()
        cpu, ran, _ = self.report()
        with tempfile.NamedTemporaryFile(suffix=".grpc") as file:
            Path(file.name).write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
            command = [
                *(require_h2load(), f"-n{calls}", f"-c{CONNECTIONS}", f"-m{STREAMS}", "-d", file.name),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                *(() if self.key is None else ("-H", f"{KEY}: {self.key}")),
                f"http://127.0.0.1:{self.port}{METHOD}",
            ]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - started
        if f"{calls} succeeded, 0 failed" not in done.stdout:
            raise RuntimeError(f"not all of {calls} calls succeeded:\n{done.stdout}")
        after, ran_after, _ = self.report()
        expected = 0 if self.row.endswith(("store", "cache")) else calls
        if ran_after - ran - 1 != expected:
            raise RuntimeError(f"{self.row}: {ran_after - ran - 1} handlers ran for {calls} calls")
        return Spent(calls, seconds, after - cpu)

    def check(self) -> None:
        """Look at the answers: what is first, what is a replay. Raises AssertionError."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            ask: Any = bench_pb2_grpc.BenchServiceStub(channel).Charge
            keyed = [] if self.key is None else [(KEY, self.key)]
            answers = [ask.with_call(REQUEST, metadata=keyed) for _ in range(3)]
        assert len({response.SerializeToString() for response, _ in answers}) == 1
        trailing = [dict(call.trailing_metadata() or ()) for _, call in answers]
        assert all(("idempotency-run" in each) is (self.key is not None) for each in trailing), trailing
        replayed = [each.get("idempotency-replayed") == "true" for each in trailing]
        assert replayed == [False, *[self.row.endswith(("store", "cache"))] * 2], (self.row, trailing)

    def latencies(self, calls: int) -> tuple[float, float]:
        """The median and the 99th percentile of a call in microseconds, one at a time."""
        took = []
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            ask: Any = bench_pb2_grpc.BenchServiceStub(channel).Charge
            keyed = [] if self.key is None else [(KEY, self.key)]
            for _ in range(calls):
                started = time.perf_counter()
                ask(REQUEST, metadata=keyed)
                took.append((time.perf_counter() - started) * 1e6)
        return median(took), percentile(took, 0.99)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
