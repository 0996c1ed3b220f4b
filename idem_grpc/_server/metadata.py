"""What a handler says of its answer, made fit to be stored and sent."""

from typing import Any

import grpc

from idem_grpc._core.metadata import NEVER_SENT, is_sendable
from idem_grpc._core.outcome import Code, Metadata


def shown(error: BaseException) -> str:
    """What an exception says, if it can."""
    try:
        return str(error)
    except Exception:
        return f"{type(error).__name__}, which cannot be shown"


def text(details: str | bytes) -> str:
    """Details that can be stored and sent, whatever the handler put in."""
    whole = details if isinstance(details, str) else details.decode(errors="replace")
    return whole.encode(errors="replace").decode()


def code_of(given: Any, in_aio: bool) -> Code:
    """The status that a code of ``set_code`` or ``abort`` has: in grpc.aio, numbers are codes too."""
    if not in_aio:
        return Code.OK if given is None else _CODES.get(given, Code.UNKNOWN)
    if isinstance(given, int):
        return Code(given) if given in _NUMBERS else Code.UNKNOWN
    return _CODES.get(given, Code.UNKNOWN)


_CODES = {code: Code[code.name] for code in grpc.StatusCode}
_NUMBERS = frozenset(Code) - {Code.UNAUTHENTICATED}  # the last one, which grpc.aio takes for none


def pairs(given: Any) -> Metadata:
    """Metadata that can be stored and sent. A name may be bytes, as it may be in grpc.

    Raises TypeError or ValueError, to the handler, for what is none: grpc would find that out
    once the answer is kept, and then nobody would ever get it.
    """
    found = tuple(
        (key.decode("latin-1") if isinstance(key, bytes) else key, value) for key, value in given or ()
    )
    for key, value in found:
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"metadata {key!r}: {value!r}: a key, and a value, is a str or bytes")
        if key.endswith("-bin") and isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r}: the value of a key that ends in -bin is bytes")
        if key in NEVER_SENT:
            raise ValueError(f"metadata {key!r}: {value!r}: a server cannot send this key")
        if not is_sendable(key, value):
            raise ValueError(
                f"metadata {key!r}: {value!r}: a key is made of 0-9, a-z, '_', '-' and '.', and a value"
                " of printable ASCII, unless its key ends in -bin"
            )
    return found
