"""Measure throughput as a ratio to the bare server: python -m benchmarks throughput

All servers of a face run side by side, each in its own process. In each repeat, all are loaded once, in
turns, in another order each time. Ratios are taken within a repeat, so that other load on the host affects
all alike.
"""

import tempfile
from contextlib import ExitStack
from typing import Any

from benchmarks.load import (
    Server,
    in_turn,
    percentile,
    redis_server,
    require_h2load,
    rounds,
    spared_processor,
)
from benchmarks.report import Report, host, plot, table
from benchmarks.rows import ROWS, Verdict
from benchmarks.server import FACES

WARM_UP = 500
BLOCKS = 10


def measure(face: str, processor: int | None, *, repeats: int, calls: int, single: int) -> dict[str, Any]:
    """Load all servers of a face ``repeats`` times with ``calls`` calls, and make ``single`` single calls."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idem-benchmark-"))
        redis = stack.enter_context(redis_server())
        urls = {"memory": "memory:", "redis": redis.url, "sqlite": f"sqlite:///{folder}/store.db"}
        servers = [
            stack.enter_context(Server(face, row.name, urls[row.store], processor=processor)) for row in ROWS
        ]
        for server in servers:
            server.check()
            server.load(WARM_UP)
        found: dict[str, dict[str, Any]] = {
            row.name: {"ratio": [], "cpu_us": [], "calls_per_s": []} for row in ROWS
        }
        for spent in rounds({server.row: server for server in servers}, repeats, calls):
            for row, its in spent.items():
                found[row]["ratio"].append(spent["bare"].seconds / its.seconds)
                found[row]["cpu_us"].append(its.cpu / its.calls * 1e6)
                found[row]["calls_per_s"].append(its.calls / its.seconds)
        alone: dict[str, list[float]] = {row.name: [] for row in ROWS}
        for block in range(BLOCKS if single else 0):
            for server in in_turn(servers, block):
                alone[server.row] += server.singly(single // BLOCKS)
        for name, took in alone.items():
            if took:
                found[name]["p50_us"], found[name]["p99_us"] = percentile(took, 0.5), percentile(took, 0.99)
    return found


def verdicts(face: str, found: dict[str, Any]) -> list[Verdict]:
    column = FACES.index(face)
    return [
        Verdict(row.name, face, tuple(found[row.name]["ratio"]), row.bars[column] if row.bars else None)
        for row in ROWS
    ]


def main(report: Report, *, quick: bool = False) -> bool:
    """Measure all faces. Returns whether a bar was missed."""
    require_h2load()
    repeats, calls, single = (3, 1000, 0) if quick else (9, 8000, 1000)
    judged, found = list[Verdict](), dict[str, Any]()
    with spared_processor() as processor:
        for face in FACES:
            found[face] = measure(face, processor, repeats=repeats, calls=calls, single=single)
            of_face = verdicts(face, found[face])
            print(f"\n### {face}\n", *table(of_face, found[face]), sep="\n", flush=True)
            judged += of_face
    report.write("throughput", found)
    report.plot.write_text(plot(judged))
    print(f"\n{host()}")
    missed = [each for each in judged if each.is_missed]
    for each in missed:
        print(f"missed: {each.row} on {each.face}: {each.median:.2f}, and the bar is {each.bar:.2f}")
    return bool(missed)
