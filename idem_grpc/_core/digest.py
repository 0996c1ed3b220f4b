"""Digests of lists of byte strings, framed so that different lists are hashed as different bytes.

Each part is preceded by its length, so ``("ab", "c")`` and ``("a", "bc")`` differ. Each digest begins
with the name of its purpose, so digests for different purposes differ.
"""

import hashlib
import uuid
from binascii import b2a_base64

LONGEST = 64
"""Most bytes that a digest in a record may have. This release writes less; a later one may write more."""


class Digest:
    """An incremental SHA-256 over a purpose and framed parts."""

    __slots__ = ("_hash",)

    def __init__(self, purpose: str, *parts: bytes) -> None:
        self._hash = hashlib.sha256()
        for part in (purpose.encode(), *parts):
            self.add(part)

    def add(self, part: bytes) -> None:
        """Add the next part."""
        self._hash.update(len(part).to_bytes(8, "big"))
        self._hash.update(part)

    def so_far(self, size: int = 16) -> bytes:
        """Return the first ``size`` bytes of the digest of the parts added so far."""
        return self._hash.digest()[:size]

    def over(self, *parts: bytes, size: int = 16) -> bytes:
        """Return the digest of the parts added so far and ``parts``, without adding ``parts``."""
        copy = self._hash.copy()
        for part in parts:
            copy.update(len(part).to_bytes(8, "big"))
            copy.update(part)
        return copy.digest()[:size]


def digest(purpose: str, *parts: bytes, size: int = 16) -> bytes:
    """Return the first ``size`` bytes of a SHA-256 over the purpose and the framed parts."""
    return Digest(purpose, *parts).so_far(size)


class StoreKeys:
    """The names of the records of one operation in one namespace; see ``store_key``."""

    __slots__ = ("_prefix",)

    def __init__(self, namespace: str, operation: str) -> None:
        self._prefix = Digest("key", namespace.encode(), operation.encode())

    def name(self, scope: bytes, key: str) -> bytes:
        """Return the name of the record of a client's own key."""
        digest = self._prefix.over(scope, key.encode(), size=24)
        return b2a_base64(digest, newline=False).translate(_URL_SAFE)


def store_key(namespace: str, operation: str, scope: bytes, key: str) -> bytes:
    """Return the name under which a store keeps the record of a client's own key.

    The name is a digest of 192 bits: a caller cannot make a key collide with another caller's, and the
    name reveals nothing about a person.
    """
    return StoreKeys(namespace, operation).name(scope, key)


def token_key(namespace: str, token: str) -> bytes:
    """Return the name under which a store keeps the record of a token that the server issued.

    Operation and scope are kept in the record, not in the name. A token that is used elsewhere is
    therefore recognised as a mismatch, and not as unknown.
    """
    name = digest("token", namespace.encode(), token.encode(), size=24)
    return b2a_base64(name, newline=False).translate(_URL_SAFE)


_URL_SAFE = bytes.maketrans(b"+/", b"-_")  # the alphabet of RFC 4648, section 5


def as_uuid(bits: int, version: int) -> str:
    """Return a UUID of the given version (RFC 9562) made from 128 bits, six of which are overwritten."""
    bits = bits & ~(0xF << 76) | version << 76
    bits = bits & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=bits))
