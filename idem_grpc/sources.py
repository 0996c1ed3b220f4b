"""Where the key of a call comes from, as a client is told it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from idem_grpc.keytext import escaped, is_valid
from idem_grpc.messages import message_of, no_message

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_RUN_TOGETHER = re.compile(r"\0[^:]*\0")  # two fields without what their values cannot contain


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call that a client is about to make, as a key source sees it.

    ``method`` is "/pkg.Service/Method"; ``request`` is None for a request stream.
    """

    method: str
    request: Any
    metadata: tuple[tuple[str, str | bytes], ...]


class SingleUse(ABC):
    """A source whose keys are not to be had again: a handler that is run again would send others."""

    @abstractmethod
    def __call__(self, outgoing: Outgoing, /) -> Any:
        """The key of a call."""

    @abstractmethod
    def drop(self, key: str) -> None:
        """The server does not take a key of this source: those that were fetched with it are no better."""

    @abstractmethod
    def another(self) -> Any:
        """A key in place of one that was dropped: a Future of it, or in aio an awaitable."""


class FromRequest:
    """A source of keys that are made of the request; see ``from_request``."""

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
        if _RUN_TOGETHER.search("".join(text + "\0" * (path is not None) for text, path in self._parts)):
            raise ValueError(
                f"keys.from_request({template!r}): put a colon between two fields, or what ends the one"
                " could as well begin the other"
            )

    def check(self, descriptor: Descriptor) -> None:
        """Raise ValueError if a field is not one of the message type, or is no single value."""
        for path in self._paths():
            at: Descriptor | None = descriptor
            for name in path.split("."):
                field = at.fields_by_name.get(name) if at is not None else None
                if field is None or field.default_value == []:  # which a repeated field has
                    raise ValueError(
                        f"keys.from_request({self._template!r}): {descriptor.full_name} has no single"
                        f" field {path!r}"
                    )
                at = field.message_type
            if at is not None:
                raise ValueError(
                    f"keys.from_request({self._template!r}): {path!r} of {descriptor.full_name} is a"
                    " message: name one of its fields"
                )

    def __call__(self, outgoing: Outgoing) -> str:
        """The key of a call. Raises ValueError where the request lacks what it is made of."""
        request = message_of(outgoing.request)
        if request is None:
            why = "has no single request message"
            if outgoing.request is not None:
                why = f"has no fields to make a key of: its {no_message(outgoing.request)}"
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
            raise ValueError(f"the request has nothing in {path!r}, which its key is made of")
        return escaped(text)


def _is_given(holder: Any, name: str, value: Any) -> bool:
    """Whether a field was set. One without presence cannot tell 0 from nothing, so 0 is nothing:
    else all who forgot it would share one key."""
    field = holder.DESCRIPTOR.fields_by_name[name]
    return bool(holder.HasField(name)) if field.has_presence else bool(value != field.default_value)
