"""What a key looks like on the wire, and what may stand in metadata."""

import re
from urllib.parse import quote

METADATA_KEY = "idempotency-key"
METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
NEVER_SENT = frozenset({"-bin", "grpc-timeout", "grpclb_client_stats"})
"""Well-formed names of metadata that no server can send: gRPC's core refuses the first, and aborts
the process on the others."""

MAX_LENGTH = 255
VALID_KEY = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}")
_TEXT, _BYTES = re.compile(r"[ -~]*"), re.compile(rb"[ -~]*")
_UNESCAPED = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ":%")


def is_valid(key: str) -> bool:
    """Whether a key may be sent: 1 to 255 characters of 0x21 to 0x7E."""
    return VALID_KEY.fullmatch(key) is not None


def is_text(value: str | bytes) -> bool:
    """Whether metadata may have a value under a name that does not end in -bin: printable ASCII."""
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    return _BYTES.fullmatch(value) is not None


def is_sendable(name: str, value: str | bytes) -> bool:
    """Whether a server can send this pair of metadata."""
    return (
        METADATA_NAME.fullmatch(name) is not None
        and name not in NEVER_SENT
        and (name.endswith("-bin") or is_text(value))
    )


def can_be_encoded(text: str) -> bool:
    """Whether a text has no lone surrogates, which UTF-8 cannot say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(part: str) -> str:
    """A part of a key, percent-encoded (UTF-8) where it would not be told from its neighbours."""
    return quote(part, safe=_UNESCAPED)
