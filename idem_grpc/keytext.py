"""What a key looks like on the wire, and what may stand in metadata."""

import re
from urllib.parse import quote

METADATA_KEY = "idempotency-key"
METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
MAX_LENGTH = 255
_UNESCAPED = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ":%")


def is_valid(key: str) -> bool:
    """Whether a key may be sent: 1 to 255 characters of 0x21 to 0x7E."""
    return 1 <= len(key) <= MAX_LENGTH and all("\x21" <= character <= "\x7e" for character in key)


def is_text(value: str | bytes) -> bool:
    """Whether metadata may have a value under a name that does not end in -bin: printable ASCII."""
    text = value if isinstance(value, str) else value.decode("latin-1")
    return all(" " <= character <= "~" for character in text)


def escaped(part: str) -> str:
    """A part of a key, percent-encoded (UTF-8) where it would not be told from its neighbours."""
    return quote(part, safe=_UNESCAPED)
