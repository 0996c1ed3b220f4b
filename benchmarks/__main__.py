"""Measure: ``make bench``, or ``make bench ARGS=calls`` for one of them."""

import argparse

from benchmarks import calls, native, stores, updates

ALL = {"stores": stores.main, "calls": calls.main, "updates": updates.main, "native": native.main}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what stores, interceptors and updates cost.")
    parser.add_argument("what", nargs="*", metavar="what", help=f"of {', '.join(ALL)}; default: all")
    wanted = parser.parse_args().what or list(ALL)
    if unknown := set(wanted) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    for number, name in enumerate(wanted):
        print(end="\n" if number else "")
        ALL[name]()


if __name__ == "__main__":
    main()
