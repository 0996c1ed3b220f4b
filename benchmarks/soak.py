"""Check that a server's memory stays flat: python -m benchmarks soak

Makes 300,000 first calls on Redis, with and without the garbage collector, and as many calls of the bare
server, because grpc.aio itself leaves cycles behind. The first two fifths are warm-up. After that, memory may
grow by 5 % more than the bare server's.
"""

from itertools import product
from uuid import uuid4

from benchmarks.load import Server, redis_server, spared_processor
from benchmarks.report import Report

CALLS, PARTS, WARM_UP = 300_000, 10, 4
MOST = 0.05


def sizes(face: str, row: str, url: str, processor: int | None, *, collects: bool) -> list[int]:
    """Return the memory in kilobytes after each part of the calls."""
    found = []
    with Server(face, row, url, collects=collects, processor=processor) as server:
        server.key = server.key or uuid4().hex  # grpc.aio leaves metadata behind too
        for _ in range(PARTS):
            server.load(CALLS // PARTS)
            found.append(server.report()[2])
    return found


def grown(found: list[int]) -> int:
    """Return the growth of memory since the warm-up, in kilobytes."""
    return max(found[WARM_UP:]) - found[WARM_UP - 1]


def main(report: Report, *, quick: bool = False) -> bool:
    """Measure. Returns whether memory grew by more than the limit."""
    has_grown = False
    results: dict[str, dict[str, list[int]]] = {}
    with spared_processor() as processor:
        for face, collects in product(("sync", "asyncio"), (True, False)):
            bare = sizes(face, "bare", "memory:", processor, collects=collects)
            with redis_server() as redis:
                ours = sizes(face, "redis first", redis.url, processor, collects=collects)
            part = (grown(ours) - grown(bare)) / ours[WARM_UP - 1]
            has_grown |= part > MOST
            how = f"{face}, {'with the collector' if collects else 'without it'}"
            results[how] = {"bare": bare, "ours": ours}
            for row, found in results[how].items():
                print(f"{how}, {row}: {', '.join(f'{size / 1024:.0f}' for size in found)} MiB")
            print(
                f"grown {part:+.1%} more than the bare server{', missed' if part > MOST else ''}", flush=True
            )
    report.write("soak", results)
    return has_grown
