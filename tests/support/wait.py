"""Wait for an event, and never for an amount of time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(happened: Callable[[], T], *, deadline: float = 30.0, step: float = 0.005) -> T:
    """Call ``happened`` until it returns a true value, and return that.

    AssertionError after ``deadline`` seconds.
    """
    give_up = time.monotonic() + deadline
    while not (answer := happened()):
        assert time.monotonic() < give_up, f"it did not happen in {deadline} seconds"
        threading.Event().wait(step)  # between two questions
    return answer
