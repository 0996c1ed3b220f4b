"""Checks of names and values in gRPC metadata."""

import re

RUN_ID = "idempotency-run"
"""Names the run that an answer is of."""

REPLAYED = "idempotency-replayed"
"""Says that an answer is that of an earlier run."""

METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
NEVER_SENT = frozenset({"-bin", "grpc-timeout", "grpclb_client_stats"})
"""Well-formed names that no server can send: gRPC's core rejects the first, and aborts the process on the
others."""

_TEXT, _BYTES = re.compile(r"[ -~]*"), re.compile(rb"[ -~]*")


def is_text(value: str | bytes) -> bool:
    """Return whether a value is printable ASCII, as it must be unless its name ends in -bin."""
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    return _BYTES.fullmatch(value) is not None


def is_sendable(name: str, value: str | bytes) -> bool:
    """Return whether a server can send this metadata entry."""
    return (
        METADATA_NAME.fullmatch(name) is not None
        and name not in NEVER_SENT
        and (name.endswith("-bin") or is_text(value))
    )
