"""Run the scenes of an example. A scene returns its expectations, and whether each of them held."""

from collections.abc import Callable, Iterable


def play_all(scenes: Iterable[Callable[[], dict[str, bool]]]) -> int:
    """Play the scenes and print the results. Returns the exit status: 0 if all scenes held."""
    held = [play(scene) for scene in scenes]
    failed = held.count(False)
    print(f"FAILED: {failed} of {len(held)} scenes did not hold." if failed else "All scenes held.")
    return 1 if failed else 0


def play(scene: Callable[[], dict[str, bool]]) -> bool:
    held = scene()
    print(scene.__doc__)
    for what, holds in held.items():
        print(f"  {'✓' if holds else '✗'} {what}")
    return all(held.values())
