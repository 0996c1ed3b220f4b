"""Scenes of an example: each says what it is to show, and whether that held."""

from collections.abc import Callable, Iterable


def play_all(scenes: Iterable[Callable[[], dict[str, bool]]]) -> int:
    """Play each and print what came of it. Returns the exit status: 0 if all of it held."""
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
