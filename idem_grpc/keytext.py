"""What a key looks like on the wire."""

import re
from urllib.parse import quote

METADATA_KEY = "idempotency-key"
MAX_LENGTH = 255
VALID_KEY = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}")
_UNESCAPED = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ":%")


def is_valid(key: str) -> bool:
    """Whether a key may be sent: 1 to 255 characters of 0x21 to 0x7E."""
    return VALID_KEY.fullmatch(key) is not None


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
