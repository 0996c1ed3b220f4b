"""Validators for settings.

Each raises a TypeError or ValueError that names the setting and says what to give instead.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Protocol

from idem_grpc._core.durations import LONGEST, Duration, in_seconds, is_duration
from idem_grpc._core.outcome import Code


class StatusCode(Protocol):
    """A member of ``grpc.StatusCode`` or of ``idem_grpc.Code``."""

    @property
    def name(self) -> str: ...


def seconds_of(owner: str, name: str, duration: Duration, *, smallest: float = 0.001) -> float:
    """Return the setting ``name`` of ``owner`` in seconds.

    Raises TypeError if it is not a duration, and ValueError if it is not between ``smallest`` seconds and
    ten years.
    """
    if not is_duration(duration):
        raise TypeError(f"{owner}({name}={duration!r}): give a timedelta or a number of seconds")
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not smallest <= seconds <= LONGEST:
        raise ValueError(f"{owner}({name}={duration!r}): give between {smallest:g} s and ten years")
    return in_seconds(duration)


def rate_of(owner: str, name: str, rate: object) -> tuple[int, float]:
    """Return the setting ``name`` of ``owner`` as (number, seconds). Raises TypeError or ValueError."""
    if not (isinstance(rate, tuple) and len(rate) == 2 and isinstance(rate[0], int)):
        raise TypeError(f"{owner}({name}={rate!r}): give (number, seconds), as in (600, 900)")
    whole_number(owner, name, rate[0], smallest=1)
    return rate[0], seconds_of(owner, name, rate[1])


def whole_number(owner: str, name: str, value: object, *, smallest: int) -> None:
    """Check that a setting is a whole number, ``smallest`` or more. Raises TypeError or ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}({name}={value!r}): give a whole number")
    if value < smallest:
        raise ValueError(f"{owner}({name}={value}): give {smallest} or more")


def number(owner: str, name: str, value: object) -> None:
    """Check a setting that is a number. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}({name}={value!r}): give a number")


def codes_of(setting: str, codes: Collection[StatusCode | str]) -> frozenset[Code]:
    """Return status codes, given as enum members or as names, as a set.

    Raises TypeError or ValueError that begins with ``setting``.
    """
    if isinstance(codes, str):
        raise TypeError(f"{setting}: give a collection of status codes, not one string ({codes!r})")
    if not isinstance(codes, Collection):  # this check would exhaust an iterator
        raise TypeError(f"{setting}: give a collection of status codes, such as [{codes}]")
    names = [code if isinstance(code, str) else getattr(code, "name", repr(code)) for code in codes]
    for name in names:
        if name == "OK":
            raise ValueError(f"{setting}: OK is not an error: leave it out")
        if name not in Code.__members__:
            raise ValueError(f"{setting}: {name} is not a status code: give members of grpc.StatusCode")
    return frozenset(Code[name] for name in names)
