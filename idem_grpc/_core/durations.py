"""Durations as settings give them, and their conversion to seconds."""

import math
from datetime import timedelta

Duration = timedelta | float
"""A timedelta, or a number of seconds."""

LONGEST = timedelta(days=3653).total_seconds()
"""The longest duration that a setting or a record may have, in seconds: ten years."""


def is_duration(value: object) -> bool:
    """Return whether a value is a timedelta or a number. A bool is neither."""
    return isinstance(value, (timedelta, int, float)) and not isinstance(value, bool)


def in_seconds(duration: Duration) -> float:
    """Convert a duration to seconds, rounded to the millisecond.

    Raises TypeError if it is not a duration, and ValueError if it is negative or not finite.
    """
    if not is_duration(duration):
        raise TypeError(f"{duration!r} is not a duration: give a timedelta or a number of seconds")
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{duration!r} is not a duration: give 0 seconds or more")
    return round(seconds, 3)
