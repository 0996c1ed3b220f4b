"""Run the benchmarks: ``make bench``, ``make bench-quick``, or one of them by ``make bench ARGS=updates``."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import calls, costs, floor, native, peers, soak, throughput, updates
from benchmarks.report import Report

ALL: dict[str, Callable[..., bool]] = {
    "throughput": throughput.main,
    "calls": calls.main,
    "peers": peers.main,
    "costs": costs.main,
    "floor": floor.main,
    "soak": soak.main,
    "updates": updates.main,
    "native": native.main,
}
LONG = ("soak", "native")  # run only when named
QUICK = ("throughput", "calls", "peers")


def main() -> None:
    usual = [name for name in ALL if name not in LONG]
    parser = argparse.ArgumentParser(description="Measure what interceptors, stores and updates cost.")
    parser.add_argument(
        "what", nargs="*", metavar="what", help=f"of {', '.join(ALL)}; default: all but {', '.join(LONG)}"
    )
    parser.add_argument("--quick", action="store_true", help=f"less than a minute: {', '.join(QUICK)}")
    given = parser.parse_args()
    if unknown := set(given.what) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    if given.quick:
        report = Report(Path(".bench/results.json"), Path(".bench/benchmarks.svg"))
    else:
        report = Report(Path("benchmarks/results.json"), Path("docs/benchmarks.svg"))
    missed = False
    for number, name in enumerate(given.what or (QUICK if given.quick else usual)):
        print(end="\n" if number else "")
        missed |= ALL[name](report, quick=given.quick)
    sys.exit(missed)


if __name__ == "__main__":
    main()
