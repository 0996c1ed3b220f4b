"""Write the measured figures as a table, a plot and a JSON file."""

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.rows import ROWS, Verdict
from benchmarks.server import FACES


def host() -> dict[str, str]:
    """Return the processor and the versions that the figures were measured with."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    packages = ("grpcio", "protobuf", "redis", "hiredis", "uvloop")
    return {
        "cpu": f"{os.cpu_count()} × {model}",
        "python": platform.python_version(),
        **{each.name: each.version for each in distributions() if each.name in packages},
    }


def table(judged: Iterable[Verdict], found: dict[str, Any]) -> Iterable[str]:
    """Yield the figures of the servers of one face, as lines of Markdown."""
    yield "| | ratio to bare (min..max) | bar | server CPU, µs a call | over bare | p50 / p99 alone, µs |"
    yield "| --- | --- | --- | --- | --- | --- |"
    bare = median(found["bare"]["cpu_us"])
    for each in judged:
        its = found[each.row]
        cpu = median(its["cpu_us"])
        bar = "" if each.bar is None else f"{each.bar:.2f}{' missed' if each.is_missed else ''}"
        alone = f"{its['p50_us']:.0f} / {its['p99_us']:.0f}" if "p50_us" in its else ""
        yield (f"| {each.row} | {each} | {bar} | {cpu:.0f} | {cpu - bare:+.0f} | {alone} |")


def plot(judged: list[Verdict]) -> str:
    """Return an SVG with a bar for each row and face, and a line at its required minimum."""
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


class Report(NamedTuple):
    """The files that a run writes."""

    results: Path
    plot: Path

    def write(self, name: str, found: Any) -> None:
        """Store figures under a name in the results file. Figures under other names are kept."""
        self.results.parent.mkdir(exist_ok=True)
        had = json.loads(self.results.read_text()) if self.results.exists() else {}
        found = {**had, "host": host(), name: _rounded(found)}
        self.results.write_text(json.dumps(found, indent=1) + "\n")


def _rounded(found: Any) -> Any:
    """Return the figures rounded to four significant digits."""
    if isinstance(found, float):
        return float(f"{found:.4g}")
    if isinstance(found, dict):
        return {name: _rounded(each) for name, each in found.items()}
    return [_rounded(each) for each in found] if isinstance(found, (list, tuple)) else found
