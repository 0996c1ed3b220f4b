"""Keys that a client makes: structured, windowed to a span of time, or unique.

docs/choosing-a-key.md says which to use when.
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
