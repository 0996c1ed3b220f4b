"""Whether a server's memory stays flat: python -m benchmarks soak

300,000 first calls on Redis, with the collector of garbage and without it. The first fifth is warm-up; from
then on, memory may grow by 5 %.
"""

from itertools import product

from benchmarks.load import Server, redis_server, spared_processor
from benchmarks.report import Report

CALLS, PARTS = 300_000, 10
MOST = 1.05


def main(report: Report, *, quick: bool = False) -> bool:
    """Measure. Returns whether memory grew."""
    has_grown = False
    found: dict[str, list[int]] = {}
    with spared_processor() as processor, redis_server() as redis, redis.client() as client:
        for face, collects in product(("sync", "asyncio"), (True, False)):
            sizes = []
            with Server(face, "redis first", redis.url, collects=collects, processor=processor) as server:
                for _ in range(PARTS):
                    server.load(CALLS // PARTS)
                    sizes.append(server.report()[2])
                    client.flushdb()  # the records of all would fill the machine
            warm, last = sizes[PARTS // 5 - 1], max(sizes[PARTS // 5 :])
            has_grown |= last > warm * MOST
            how = "with the collector" if collects else "without it"
            found[f"{face}, {how}"] = sizes
            shown = ", ".join(f"{size / 1024:.0f}" for size in sizes)
            print(f"{face}, {how}: {shown} MiB; {last / warm:.3f} of the size after warm-up", flush=True)
    report.write("soak", found)
    return has_grown
