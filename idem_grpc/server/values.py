"""What a handler says of its answer, made fit to be stored and sent."""

from typing import Any

from idem_grpc.outcome import Metadata


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


def pairs(given: Any) -> Metadata:
    """Metadata that can be stored. Raises TypeError, to the handler, for what is none."""
    found = tuple((key, value) for key, value in given or ())
    for key, value in found:
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"metadata {key!r}: {value!r}: a key is a str, and a value a str or bytes")
        if key.endswith("-bin") and isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r}: the value of a key that ends in -bin is bytes")
    return found
