"""Keys that a client makes: structured, windowed to a span of time, or unique.

docs/choosing-a-key.md says which to use when.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from math import floor

from idem_grpc.digest import as_uuid
from idem_grpc.keytext import MAX_LENGTH, METADATA_KEY, escaped, is_valid
from idem_grpc.policy import Duration
from idem_grpc.sources import FromRequest, Outgoing

__all__ = [
    "METADATA_KEY",
    "FromRequest",
    "Outgoing",
    "from_request",
    "is_valid",
    "step",
    "structured",
    "unique",
    "using",
    "windowed",
]


def structured(*parts: str | int) -> str:
    """Join parts that name one business action: ``("order", "uid123", 456)`` is "order:uid123:456".

    Colons, per cent signs, blanks and all that is not ASCII are percent-encoded
    (UTF-8), so that ("a:b", "c") and ("a", "b:c") differ. Raises ValueError for an
    empty part, for no parts, and for a key of more than 255 characters; TypeError for
    a part that is neither, such as None: all who lack the value would share the key.
    """
    key = _joined(parts)
    if len(key) > MAX_LENGTH:
        raise ValueError(f"the key {key[:40]!r}… has {len(key)} characters; at most {MAX_LENGTH} may be sent")
    return key


def _joined(parts: tuple[object, ...]) -> str:
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise TypeError(f"keys.structured: {part!r} is no part of a key: give strings and whole numbers")
    if not parts or "" in parts:
        raise ValueError(f"keys.structured{parts!r}: every part must say something; none may be empty")
    return ":".join(escaped(str(part)) for part in parts)


def windowed(*parts: str | int, window: Duration, at: datetime | None = None) -> str:
    """A structured key that is the same within one window of time, and new in the next.

    ``windowed("task", "uid123", window=timedelta(hours=1))`` is "task:uid123:20240330T10"
    from 10:00 to 11:00 UTC: the start of the window, as precise as the window needs.
    ``window`` is a timedelta or a number of seconds. Windows are counted from
    1970-01-01T00:00 UTC in whole seconds. ``at`` is the time to stand in for now, and
    must know its time zone.

    Two calls on either side of a window's edge have different keys, however close.
    Raises ValueError for a window that is not a whole, positive number of seconds, and
    TypeError for one that is no duration.
    """
    if isinstance(window, bool) or not isinstance(window, (timedelta, int, float)):
        raise TypeError(f"window={window!r}: give a timedelta or a whole number of seconds")
    seconds = window.total_seconds() if isinstance(window, timedelta) else window
    if not (seconds >= 1 and seconds % 1 == 0):
        raise ValueError(f"window={window!r}: give a whole, positive number of seconds")
    moment: object = at
    if not (moment is None or isinstance(moment, datetime)):
        raise TypeError(f"at={at!r}: give a datetime with a time zone, such as datetime.now(UTC)")
    if at is not None and at.tzinfo is None:
        raise ValueError(f"at={at!r}: give a time with a time zone, such as datetime.now(UTC)")
    span = int(seconds)
    now = floor((at or datetime.now(UTC)).timestamp())
    start = datetime.fromtimestamp(now - now % span, UTC)
    form = next(form for unit, form in _PRECISIONS if span % unit == 0)
    return structured(*parts, start.strftime(form))


_PRECISIONS = ((86400, "%Y%m%d"), (3600, "%Y%m%dT%H"), (60, "%Y%m%dT%H%M"), (1, "%Y%m%dT%H%M%S"))


def unique(_: object = None) -> str:
    """A new UUIDv7 (RFC 9562): the time in milliseconds, then 74 random bits.

    Itself a source for ``client_interceptors(keys=…)``: one key for every logical call.
    """
    return as_uuid(time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big"), version=7)


def from_request(template: str) -> FromRequest:
    """A source for ``client_interceptors(keys=…)`` that makes the key of fields of the request.

    ``from_request("order:{user_id}:{item.sku}")`` names fields by dotted paths. Their values
    are escaped as in ``structured``, and need a colon between each other; an empty one raises
    ValueError at the call. So does a request that is no protobuf message and wraps none, as
    those of proto-plus do. Raises ValueError for a template that cannot make a key.
    """
    return FromRequest(template)


_pending: ContextVar[list[str] | None] = ContextVar("idem_grpc_key", default=None)
_step: ContextVar[str] = ContextVar("idem_grpc_step", default="")


@contextmanager
def using(key: str) -> Iterator[None]:
    """Give ``key`` to the next call made in this context through our client interceptors.

    Raises ValueError for a key that may not be sent.
    """
    if not isinstance(key, str):
        raise TypeError(f"keys.using({key!r}): give a string")
    if not is_valid(key):
        raise ValueError(f"the key {key[:40]!r} may not be sent: give 1 to 255 characters of 0x21 to 0x7E")
    token = _pending.set([key])
    try:
        yield
    finally:
        _pending.reset(token)


def take_pending() -> str | None:
    """The key that ``using`` holds for the next call, which is this one."""
    pending = _pending.get()
    return pending.pop() if pending else None


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name the keys that are derived in this context, inside a keyed handler.

    Calls to one method get their keys by order. Where order is left to chance, as between
    threads or tasks, each needs a step of its own::

        with keys.step(f"item-{item.sku}"):
            inventory.Reserve(...)

    A call that the handler's own code makes again, such as with tenacity, is another one and gets
    another key: give all tries one with ``using(current().derive(name))``.

    Steps nest. Raises ValueError for an empty name, and TypeError for what is none.
    """
    if name == "":
        raise ValueError("keys.step(''): give the step a name that is the same in every attempt")
    token = _step.set(_joined((_step.get() or "step", name)))
    try:
        yield
    finally:
        _step.reset(token)


def current_step() -> str:
    """The step that this code is in; empty outside any."""
    return _step.get()
