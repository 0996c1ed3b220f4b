"""How much of the bare server's throughput is left: python -m benchmarks throughput

All servers of a face run side by side, each in a process of its own, and take turns: in each repeat all are
loaded once, in another order each time. Ratios are taken within a repeat, so that whatever else the host does
falls on all of them alike.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import Server, require_h2load
from benchmarks.rows import ROWS, Verdict
from benchmarks.server import FACES
from tests.support.redis_server import RedisServer

RESULTS = Path("benchmarks/results.json")
PLOT = Path("docs/benchmarks.svg")
WARM_UP = 1000


def measure(face: str, *, repeats: int, calls: int, single: int) -> dict[str, Any]:
    """Load all servers of a face ``repeats`` times with ``calls`` calls, and ``single`` one by one."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idem-benchmark-"))
        redis = RedisServer()
        stack.callback(redis.stop)
        urls = {"memory": "memory:", "redis": redis.url, "sqlite": f"sqlite:///{folder}/store.db"}
        servers = [Server(face, row.name, urls[row.store], sys.executable) for row in ROWS]
        for server in servers:
            stack.callback(server.close)
        for server in servers:
            server.check()
            server.load(WARM_UP)
        found: dict[str, dict[str, list[float]]] = {
            row.name: {"ratio": [], "cpu_us": [], "calls_per_s": []} for row in ROWS
        }
        for repeat in range(repeats):
            first = repeat % len(servers)
            turn = servers[first:] + servers[:first]
            spent = {server.row: server.load(calls) for server in (turn if repeat % 2 else reversed(turn))}
            bare = spent["bare"]
            for row, its in spent.items():
                found[row]["ratio"].append(bare.seconds / its.seconds)
                found[row]["cpu_us"].append(its.cpu / its.calls * 1e6)
                found[row]["calls_per_s"].append(its.calls / its.seconds)
        result: dict[str, Any] = found
        for server in servers if single else ():
            result[server.row]["p50_us"], result[server.row]["p99_us"] = server.latencies(single)
    return result


def verdicts(face: str, found: dict[str, Any]) -> list[Verdict]:
    column = FACES.index(face)
    return [
        Verdict(row.name, face, tuple(found[row.name]["ratio"]), row.bars[column] if row.bars else None)
        for row in ROWS
    ]


def shown(judged: Iterable[Verdict], found: dict[str, Any]) -> Iterable[str]:
    """A table of one face, as Markdown."""
    yield "| | ratio to bare (min..max) | bar | server CPU, µs a call | over bare | p50 / p99 alone, µs |"
    yield "| --- | --- | --- | --- | --- | --- |"
    bare = median(found["bare"]["cpu_us"])
    for each in judged:
        its = found[each.row]
        cpu = median(its["cpu_us"])
        bar = "" if each.bar is None else f"{each.bar:.2f}{' missed' if each.is_missed else ''}"
        alone = f"{its['p50_us']:.0f} / {its['p99_us']:.0f}" if "p50_us" in its else ""
        yield (
            f"| {each.row} | {each.median:.2f} ({min(each.ratios):.2f}..{max(each.ratios):.2f}) | {bar} |"
            f" {cpu:.0f} | {cpu - bare:+.0f} | {alone} |"
        )


def host() -> dict[str, str]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = f"{len(names)} × {names[0]}" if names else model
    packages = ("grpcio", "protobuf", "redis", "hiredis", "uvloop")
    return {"cpu": model, "python": platform.python_version(), **{name: version(name) for name in packages}}


def plot(judged: list[Verdict]) -> str:
    """A bar for each row and face, and a mark where its bar is, as SVG."""
    rows = [row for row in ROWS if row.bars]
    width, left, step, gap = 760, 170, 14, 12
    colors = dict(zip(FACES, ("#4269d0", "#efb118", "#3ca951"), strict=True))
    height = len(rows) * (len(FACES) * step + gap) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="16">ratio to bare gRPC, 64 calls in flight (line: the bar)</text>',
    ]
    scale = width - left - 50
    top = 28
    for row in rows:
        parts.append(f'<text x="{left - 8}" y="{top + 25}" text-anchor="end">{row.name}</text>')
        for face in FACES:
            for each in judged:
                if (each.row, each.face) != (row.name, face) or each.bar is None:
                    continue
                long = each.median * scale
                at = left + each.bar * scale
                parts += [
                    f'<rect x="{left}" y="{top}" width="{long:.0f}" height="{step - 3}"'
                    f' fill="{colors[face]}"/>',
                    f'<text x="{left + long + 4:.0f}" y="{top + 9}">{each.median:.2f}</text>',
                    f'<path d="M{at:.0f} {top - 1}v{step - 1}" stroke="black"/>',
                ]
            top += step
        top += gap
    legend = left
    for face, color in colors.items():
        parts.append(f'<rect x="{legend}" y="{top}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{legend + 14}" y="{top + 9}">{face}</text>')
        legend += 90
    return "\n".join([*parts, "</svg>", ""])


def main(*, quick: bool = False) -> bool:
    """Measure all faces. Returns whether a bar was missed."""
    require_h2load()
    repeats, calls, single = (3, 3000, 0) if quick else (9, 8000, 1000)
    judged, results = list[Verdict](), dict[str, Any]()
    for face in ("sync", "asyncio") if quick else FACES:
        results[face] = measure(face, repeats=repeats, calls=calls, single=single)
        of_face = verdicts(face, results[face])
        print(f"\n### {face}\n", *shown(of_face, results[face]), sep="\n", flush=True)
        judged += of_face
    if not quick:
        RESULTS.write_text(json.dumps({"host": host(), "throughput": results}, indent=1) + "\n")
        PLOT.write_text(plot(judged))
    print(f"\n{host()}")
    missed = [each for each in judged if each.is_missed]
    for each in missed:
        print(f"missed: {each.row} on {each.face}: {each.median:.2f}, and the bar is {each.bar:.2f}")
    return bool(missed)
