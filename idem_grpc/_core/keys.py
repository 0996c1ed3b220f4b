"""Idempotency keys: their format, their sources, and functions that make them."""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import floor
from string import Formatter
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from idem_grpc._core.digest import as_uuid
from idem_grpc._core.durations import Duration
from idem_grpc._core.messages import fields_along, message_of, why_no_message

METADATA_KEY = "idempotency-key"
MAX_LENGTH = 255
VALID_KEY = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}")
_UNESCAPED = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ":%")


def is_valid(key: str) -> bool:
    """Return whether a key may be sent: 1 to 255 characters of 0x21 to 0x7E."""
    return VALID_KEY.fullmatch(key) is not None


def can_be_encoded(text: str) -> bool:
    """Return whether UTF-8 can encode a text, which must have no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(part: str) -> str:
    """Percent-encode (UTF-8) colons, per cent signs, blanks and all that is not ASCII in a part of a key."""
    return quote(part, safe=_UNESCAPED)


_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_UNSEPARATED = re.compile(r"\0[^:]*\0")  # two fields without a colon between them


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call that a client is about to make, as a key source gets it.

    ``method`` is "/pkg.Service/Method". ``request`` is None for a request stream. ``metadata`` is the call's
    own metadata.
    """

    method: str
    request: Any
    metadata: tuple[tuple[str, str | bytes], ...]


class SingleUse(ABC):
    """A source of keys that it gives only once, so that a handler that is run again would send others."""

    @abstractmethod
    def __call__(self, outgoing: Outgoing, /) -> Any:
        """Return the key of a call."""

    @abstractmethod
    def drop(self, key: str) -> None:
        """Discard ``key``, which the server does not accept, and the keys that were fetched with it."""

    @abstractmethod
    def another(self) -> Any:
        """Return a replacement for a key that was dropped: a Future of it, or in aio an awaitable."""


class FromRequest:
    """A source that makes keys from fields of the request; see ``from_request``."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._parts: list[tuple[str, str | None]] = []
        try:
            for text, path, form, conversion in Formatter().parse(template):
                if path is not None and (not _PATH.fullmatch(path) or form or conversion):
                    raise ValueError(f"{{{path}}} is not a dotted path of fields")
                self._parts.append((text, path))
        except ValueError as error:
            raise ValueError(f"keys.from_request({template!r}): {error}") from None
        texts = "".join(text for text, _ in self._parts)
        if not any(path for _, path in self._parts) or (texts and not is_valid(texts)):
            raise ValueError(
                f"keys.from_request({template!r}): name at least one field, as in 'order:{{order_id}}',"
                " between characters of 0x21 to 0x7E"
            )
        if _UNSEPARATED.search("".join(text + "\0" * (path is not None) for text, path in self._parts)):
            raise ValueError(
                f"keys.from_request({template!r}): put a colon between two fields, so that different"
                " values cannot make the same key"
            )

    def check(self, descriptor: Descriptor) -> None:
        """Raise ValueError if a path does not lead to a single value in the message type."""
        for path in self._paths():
            for _, field in fields_along(path, descriptor):
                if field is None or field.default_value == []:  # a repeated field
                    raise ValueError(
                        f"keys.from_request({self._template!r}): {descriptor.full_name} has no single"
                        f" field {path!r}"
                    )
            if field is not None and field.message_type is not None:
                raise ValueError(
                    f"keys.from_request({self._template!r}): {path!r} of {descriptor.full_name} is a"
                    " message: name one of its fields"
                )

    def __call__(self, outgoing: Outgoing) -> str:
        """Return the key of a call. Raises ValueError if the request lacks a field for it."""
        request = message_of(outgoing.request)
        if request is None:
            why = "has no single request message"
            if outgoing.request is not None:
                why = f"has no fields to make a key from: its {why_no_message(outgoing.request)}"
            raise ValueError(f"keys.from_request({self._template!r}): {outgoing.method} {why}")
        descriptor: Any = request.DESCRIPTOR
        self.check(descriptor)
        return "".join(text + self._value(request, path) for text, path in self._parts)

    def _paths(self) -> Iterator[str]:
        return (path for _, path in self._parts if path)

    def _value(self, request: Message, path: str | None) -> str:
        if not path:
            return ""
        *above, name = path.split(".")
        holder: Any = request
        for each in above:
            holder = getattr(holder, each)
        value = getattr(holder, name)
        text = value.hex() if isinstance(value, bytes) else str(value)
        if not text or not _is_given(holder, name, value):
            raise ValueError(f"the request has no value for {path!r}, from which its key is made")
        return escaped(text)


def _is_given(holder: Any, name: str, value: Any) -> bool:
    """Return whether a field was set.

    Without presence, 0 cannot be distinguished from an unset field, so 0 counts as unset: otherwise all
    callers that forget the field would share one key.
    """
    field = holder.DESCRIPTOR.fields_by_name[name]
    return bool(holder.HasField(name)) if field.has_presence else bool(value != field.default_value)


def structured(*parts: str | int) -> str:
    """Join parts that name one business action: ``("order", "uid123", 456)`` gives "order:uid123:456".

    Colons, per cent signs, blanks and all that is not ASCII are percent-encoded (UTF-8), so ("a:b", "c")
    and ("a", "b:c") give different keys.

    Raises ValueError for an empty part, for no parts, and for a key of more than 255 characters. Raises
    TypeError for a part that is neither a string nor a whole number, such as None: otherwise all callers
    that lack the value would share the key.
    """
    key = _joined(parts)
    if len(key) > MAX_LENGTH:
        raise ValueError(f"the key {key[:40]!r}… has {len(key)} characters; at most {MAX_LENGTH} may be sent")
    return key


def _joined(parts: tuple[object, ...]) -> str:
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise TypeError(
                f"keys.structured: {part!r} is not a part of a key: give strings and whole numbers"
            )
    if not parts or "" in parts:
        raise ValueError(f"keys.structured{parts!r}: give at least one part, and no empty ones")
    return ":".join(escaped(str(part)) for part in parts)


def windowed(*parts: str | int, window: Duration, at: datetime | None = None) -> str:
    """Return a structured key that is the same within one window of time, and new in the next.

    ``windowed("task", "uid123", window=timedelta(hours=1))`` is "task:uid123:20240330T10" from 10:00 to
    11:00 UTC. The last part is the start of the window, as precise as the window requires.

    window: a timedelta or a number of seconds. Windows are counted from 1970-01-01T00:00 UTC in whole
        seconds.
    at: the time to use instead of now. It must have a time zone.

    Two calls on either side of a window's edge have different keys, however close they are.

    Raises ValueError for a window that is not a whole, positive number of seconds, and for a time without
    a time zone. Raises TypeError for a window that is not a duration, and for a time that is not a
    datetime. Raises what ``structured`` raises for the parts.
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
    """Return a new UUIDv7 (RFC 9562): the time in milliseconds, then 74 random bits.

    ``unique`` itself is a source for ``client_interceptors(keys=…)``: one key for every logical call.
    """
    return as_uuid(time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big"), version=7)


def from_request(template: str) -> FromRequest:
    """Return a source for ``client_interceptors(keys=…)`` that makes the key from fields of the request.

    ``from_request("order:{user_id}:{item.sku}")`` names fields by dotted paths. Two fields must have a
    colon between them. Their values are escaped as in ``structured``.

    Raises ValueError for a template that cannot make a key. At the call, the source raises ValueError if
    a field is empty, or if the request is not a protobuf message and does not wrap one as those of
    proto-plus do.
    """
    return FromRequest(template)


_pending: ContextVar[list[str] | None] = ContextVar("idem_grpc_key", default=None)
_step: ContextVar[str] = ContextVar("idem_grpc_step", default="")


@contextmanager
def using(key: str) -> Iterator[None]:
    """Use ``key`` for the next call made in this context through the library's client interceptors.

    Raises TypeError if the key is not a string, and ValueError if it may not be sent.
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
    """Take the key that ``using`` set for the next call; None if there is none."""
    pending = _pending.get()
    return pending.pop() if pending else None


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name the keys that are derived in this context, inside a keyed handler.

    Derived keys of calls to one method depend on the order of the calls. If chance decides the order,
    as between threads or tasks, each call needs its own step::

        with keys.step(f"item-{item.sku}"):
            inventory.Reserve(...)

    A call that the handler's own code repeats, for example with tenacity, is another call and gets
    another key. To give all tries one key, use ``using(current().derive(name))``.

    Steps nest. Raises ValueError for an empty name, and TypeError for one that is not a string.
    """
    if name == "":
        raise ValueError("keys.step(''): give the step a name that is the same in every attempt")
    token = _step.set(_joined((_step.get() or "step", name)))
    try:
        yield
    finally:
        _step.reset(token)


def current_step() -> str:
    """Return the step that this code is in; empty outside a step."""
    return _step.get()
