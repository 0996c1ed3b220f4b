"""Digests over lists of byte strings, framed so that no two lists can meet.

``("ab", "c")`` and ``("a", "bc")`` differ because each part is preceded by its
length, and uses differ because each names its purpose.
"""

import hashlib
import uuid
from binascii import b2a_base64

LONGEST = 64
"""Bytes that a digest in a record may have: a later release may make them longer than this one does."""


class Digest:
    """A SHA-256 over a purpose and parts, which can be told before all parts are there."""

    __slots__ = ("_hash",)

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

    def over(self, *parts: bytes, size: int = 16) -> bytes:
        """The digest over the parts taken in and further ones, which are not taken in."""
        copy = self._hash.copy()
        for part in parts:
            copy.update(len(part).to_bytes(8, "big"))
            copy.update(part)
        return copy.digest()[:size]


def digest(purpose: str, *parts: bytes, size: int = 16) -> bytes:
    """The first ``size`` bytes of a SHA-256 over the purpose and the framed parts."""
    return Digest(purpose, *parts).so_far(size)


class StoreKeys:
    """The names of the records of one operation in one namespace; see ``store_key``."""

    __slots__ = ("_begun",)

    def __init__(self, namespace: str, operation: str) -> None:
        self._begun = Digest("key", namespace.encode(), operation.encode())

    def name(self, scope: bytes, key: str) -> bytes:
        """The name of the record of a client's own key."""
        digest = self._begun.over(scope, key.encode(), size=24)
        return b2a_base64(digest, newline=False).translate(_URL_SAFE)


def store_key(namespace: str, operation: str, scope: bytes, key: str) -> bytes:
    """The name under which a store keeps the record of a client's own key.

    192 bits: neither can a caller make a key collide with another's, nor does
    the name tell anything about a person.
    """
    return StoreKeys(namespace, operation).name(scope, key)


def token_key(namespace: str, token: str) -> bytes:
    """The same for a token that the server issued.

    Operation and scope stand in the record instead, so that a token used
    elsewhere is recognised as a mismatch, not as unknown.
    """
    name = digest("token", namespace.encode(), token.encode(), size=24)
    return b2a_base64(name, newline=False).translate(_URL_SAFE)


_URL_SAFE = bytes.maketrans(b"+/", b"-_")  # the alphabet of RFC 4648, section 5


def as_uuid(bits: int, version: int) -> str:
    """A UUID of the given version (RFC 9562) from 128 bits, of which six are overwritten."""
    bits = bits & ~(0xF << 76) | version << 76
    bits = bits & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=bits))
