"""Digests over lists of byte strings, framed so that no two lists can meet.

``("ab", "c")`` and ``("a", "bc")`` differ because each part is preceded by its
length, and uses differ because each names its purpose.
"""

import base64
import hashlib
import uuid

LONGEST = 64
"""Bytes that a digest in a record may have: a later release may make them longer than this one does."""


class Digest:
    """A SHA-256 over a purpose and parts, which can be told before all parts are there."""

    def __init__(self, purpose: str, *parts: bytes) -> None:
        self._hash = hashlib.sha256()
        for part in (purpose.encode(), *parts):
            self.add(part)

    def add(self, part: bytes) -> None:
        """Take in the next part."""
        self._hash.update(len(part).to_bytes(8, "big"))
        self._hash.update(part)

    def so_far(self, size: int = 16) -> bytes:
        """The first ``size`` bytes of the digest over the parts taken in."""
        return self._hash.digest()[:size]


def digest(purpose: str, *parts: bytes, size: int = 16) -> bytes:
    """The first ``size`` bytes of a SHA-256 over the purpose and the framed parts."""
    return Digest(purpose, *parts).so_far(size)


def store_key(namespace: str, operation: str, scope: bytes, key: str) -> bytes:
    """The name under which a store keeps the record of a client's own key.

    192 bits: neither can a caller make a key collide with another's, nor does
    the name tell anything about a person.
    """
    parts = (namespace.encode(), operation.encode(), scope, key.encode())
    return base64.urlsafe_b64encode(digest("key", *parts, size=24))


def token_key(namespace: str, token: str) -> bytes:
    """The same for a token that the server issued.

    Operation and scope stand in the record instead, so that a token used
    elsewhere is recognised as a mismatch, not as unknown.
    """
    return base64.urlsafe_b64encode(digest("token", namespace.encode(), token.encode(), size=24))


def as_uuid(bits: int, version: int) -> str:
    """A UUID of the given version (RFC 9562) from 128 bits, of which six are overwritten."""
    bits = bits & ~(0xF << 76) | version << 76
    bits = bits & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=bits))
