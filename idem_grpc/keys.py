"""Functions that make idempotency keys: structured, limited to a window of time, or unique.

docs/choosing-a-key.md explains when to use which.
"""

from idem_grpc._core.keys import (
    METADATA_KEY,
    FromRequest,
    Outgoing,
    from_request,
    is_valid,
    step,
    structured,
    unique,
    using,
    windowed,
)

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
