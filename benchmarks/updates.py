"""Measure the cost of ``changed`` and ``apply``: python -m benchmarks updates

Each time is shown with its ratio to serializing the same message. The two are measured in turns, so that
other load on the host affects both alike.
"""

import time
from collections.abc import Callable
from statistics import median

from examples_pb.update_profile.v1 import profiles_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask

from benchmarks.report import Report
from idem_grpc import updates

STRINGS = 850
SIZES = (1, 4, 16)
ROUNDS = 300


def profile(strings: int) -> pb.Profile:
    """Return a stored profile with ``strings`` strings of ten characters: 10 KB for 850 of them."""
    made = pb.Profile(name="profiles/1", interests=[f"{number:010}" for number in range(strings)])
    return updates.apply(pb.Profile(), made).message


def ways(stored: pb.Profile) -> dict[str, Callable[[], object]]:
    same, renamed, last = pb.Profile(), pb.Profile(), pb.Profile()
    for copy in (same, renamed, last):
        copy.CopyFrom(stored)
    renamed.display_name = "other"
    last.interests[-1] = "other"
    mask = FieldMask(paths=["display_name"])
    return {
        "changed, nothing differs": lambda: updates.changed(stored, same),
        "changed, a string differs": lambda: updates.changed(stored, renamed),
        "changed, the last of the strings differs": lambda: updates.changed(stored, last),
        "apply, nothing changes": lambda: updates.apply(stored, same),
        "apply with a mask, a string changes": lambda: updates.apply(stored, renamed, mask),
        "apply, the last of the strings changes": lambda: updates.apply(stored, last),
    }


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e6


def main(report: Report, *, quick: bool = False) -> bool:
    stored = profile(STRINGS)
    size = stored.ByteSize()
    title = f"a message of {size} bytes with {STRINGS} strings"
    print(f"{title:<46}{'µs':>9}{'ratio to SerializeToString':>30}")
    for name, act in ways(stored).items():
        times = [(timed(stored.SerializeToString), timed(act)) for _ in range(ROUNDS)]
        ours = median(took for _, took in times)
        print(f"{name:<46}{ours:>9.0f}{ours / median(base for base, _ in times):>29.1f}×")
    heads = "".join(f"{f'{factor}× as long':>15}" for factor in SIZES)
    print(f"\n{'least µs per 1000 strings: level if linear':<46}{heads}")
    grown = [(factor, ways(profile(factor * STRINGS))) for factor in SIZES]
    for name in grown[0][1]:
        costs = [min(timed(acts[name]) for _ in range(50)) / factor for factor, acts in grown]
        print(f"{name:<46}" + "".join(f"{cost * 1000 / STRINGS:>15.0f}" for cost in costs))
    return False
