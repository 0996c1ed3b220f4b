"""Measure the cost, in grpc itself, of the features that the interceptor uses: python -m benchmarks floor

Compares interceptors that use one such feature, and do nothing else, with the bare server.
"""

from contextlib import ExitStack
from statistics import median

from benchmarks.load import Server, rounds, spared_processor
from benchmarks.report import Report
from benchmarks.server import THINGS
from benchmarks.throughput import WARM_UP

REPEATS, CALLS = 9, 4000


def main(report: Report, *, quick: bool = False) -> bool:
    """Measure on the threaded server. There is no bar."""
    with spared_processor() as processor, ExitStack() as stack:
        servers = [
            stack.enter_context(Server("sync", row, "memory:", processor=processor))
            for row in ("bare", *THINGS)
        ]
        for server in servers:
            server.load(WARM_UP)
        found: dict[str, list[float]] = {server.row: [] for server in servers}
        for spent in rounds({server.row: server for server in servers}, REPEATS, CALLS):
            for row, its in spent.items():
                found[row].append(its.cpu / CALLS * 1e6)
    report.write("floor", found)
    print("\n### An interceptor that does one thing, sync: µs of the server's CPU over bare\n")
    print("| | over bare |\n| --- | --- |")
    for row in THINGS:
        over = median(its - base for its, base in zip(found[row], found["bare"], strict=True))
        print(f"| {row} | {over:+.0f} |")
    return False
