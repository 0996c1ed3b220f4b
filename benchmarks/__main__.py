"""Measure: ``make bench``, ``make bench-quick``, or ``make bench ARGS=updates`` for one of them."""

import argparse
import sys
from collections.abc import Callable

from benchmarks import calls, native, peers, soak, throughput, updates

ALL: dict[str, Callable[[], bool | None]] = {
    "throughput": throughput.main,
    "calls": calls.main,
    "peers": peers.main,
    "updates": updates.main,
    "native": native.main,
    "soak": soak.main,
}


def main() -> None:
    everything = [name for name in ALL if name != "soak"]  # which takes a quarter of an hour
    parser = argparse.ArgumentParser(description="Measure what interceptors, stores and updates cost.")
    parser.add_argument("what", nargs="*", metavar="what", help=f"of {', '.join(ALL)}; default: all but soak")
    parser.add_argument("--quick", action="store_true", help="less than a minute: the first two, briefly")
    given = parser.parse_args()
    wanted = given.what or everything
    if unknown := set(wanted) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    if given.quick:
        sys.exit(any([throughput.main(quick=True), calls.main()]))
    missed = False
    for number, name in enumerate(wanted):
        print(end="\n" if number else "")
        missed |= bool(ALL[name]())
    sys.exit(missed)


if __name__ == "__main__":
    main()
