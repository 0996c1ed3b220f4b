"""Check and convert the status and metadata that a handler sets, so that they can be stored and sent."""

from typing import Any

import grpc

from idem_grpc._core.metadata import NEVER_SENT, is_sendable
from idem_grpc._core.outcome import Code, Metadata


def error_text(error: BaseException) -> str:
    """Return ``str(error)``, or a placeholder if that raises."""
    try:
        return str(error)
    except Exception:
        return f"{type(error).__name__}, whose str() raises"


def encodable_text(details: str | bytes) -> str:
    """Return details as a str that can be encoded, with replacement characters if need be."""
    whole = details if isinstance(details, str) else details.decode(errors="replace")
    return whole.encode(errors="replace").decode()


def code_of(given: Any, in_aio: bool) -> Code:
    """Return the status for a code given to ``set_code`` or ``abort``. grpc.aio also accepts numbers."""
    if not in_aio:
        return Code.OK if given is None else _CODES.get(given, Code.UNKNOWN)
    if isinstance(given, int):
        return Code(given) if given in _NUMBERS else Code.UNKNOWN
    return _CODES.get(given, Code.UNKNOWN)


_CODES = {code: Code[code.name] for code in grpc.StatusCode}
_NUMBERS = frozenset(Code) - {Code.UNAUTHENTICATED}  # grpc.aio does not accept its number


def checked_metadata(given: Any) -> Metadata:
    """Return metadata that can be stored and sent. Names may be bytes, as in grpc.

    Raises TypeError or ValueError, in the handler, for metadata that gRPC cannot send. grpc itself would
    only fail after the answer is stored, and then no caller could ever receive it.
    """
    found = tuple(
        (key.decode("latin-1") if isinstance(key, bytes) else key, value) for key, value in given or ()
    )
    for key, value in found:
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"metadata {key!r}: {value!r}: key and value must be str or bytes")
        if key.endswith("-bin") and isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r}: a key that ends in -bin has a value of bytes")
        if key in NEVER_SENT:
            raise ValueError(f"metadata {key!r}: {value!r}: a server cannot send this key")
        if not is_sendable(key, value):
            raise ValueError(
                f"metadata {key!r}: {value!r}: a key consists of 0-9, a-z, '_', '-' and '.', and a value"
                " of printable ASCII, unless its key ends in -bin"
            )
    return found
