"""Whose key it is: two callers with different scopes never meet, whatever keys they send.

Scope is a choice, not a default. A replay skips every check inside our interceptor,
so an answer must not reach a caller who guessed a key.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from urllib.parse import quote

from idem_grpc._core.keys import can_be_encoded
from idem_grpc._core.metadata import METADATA_NAME, is_text
from idem_grpc._core.outcome import Metadata


class CallInfo:
    """What a scope may look at.

    ``method`` is "/pkg.Service/Method", and "/idem.v1.TokenService/*" where tokens are issued,
    so a scope that depends on it suits no method with tokens.
    ``metadata`` is what interceptors outside passed on. A name that has a text which is not
    printable ASCII is left out: grpc decodes different bytes to the same text.
    ``peer_identities`` are of the kind ``peer_identity_key``, such as "x509_common_name".
    """

    __slots__ = ("__weakref__", "_facts", "_given", "method")

    def __init__(
        self,
        method: str,
        metadata: tuple[tuple[str, str | bytes], ...],
        peer_identities: tuple[bytes, ...],
        auth_context: Mapping[str, Iterable[bytes]],
        peer_identity_key: str | None = None,
    ) -> None:
        self.method = method
        self._given = metadata
        self._facts: Callable[[str], Any] = {
            "peer_identities": peer_identities,
            "auth_context": auth_context,
            "peer_identity_key": peer_identity_key,
        }.__getitem__

    @classmethod
    def _of(
        cls, method: str, metadata: tuple[tuple[str, str | bytes], ...], facts: Callable[[str], Any]
    ) -> Self:
        """What a scope may look at of a call. ``facts(name)`` describes its peer, and is called late."""
        info = cls.__new__(cls)
        info.method, info._given, info._facts = method, metadata, facts
        return info

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return unambiguous(self._given)

    @property
    def peer_identities(self) -> tuple[bytes, ...]:
        return tuple(self._facts("peer_identities") or ())

    @property
    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        context: Mapping[str, Iterable[bytes]] = self._facts("auth_context")
        return context

    @property
    def peer_identity_key(self) -> str | None:
        key: str | None = self._facts("peer_identity_key")
        return key


Scope = Callable[[CallInfo], str]
"""A pure function that tells callers apart. Where it raises or says nothing, the call is refused.

It may return any text but the empty one, of any length: stores hold a digest of it.
"""


def SHARED(call: CallInfo) -> str:
    """All callers trust each other: they share their keys and answers."""
    return ""


def PEER(call: CallInfo) -> str:
    """The authenticated identity of the peer, with its kind, such as "x509_common_name:alice".

    A certificate's identity is its subject alternative names, or its common name if it has
    none. Replicas whose certificates agree in these are one peer. If each replica has a name
    of its own, a retry from another is a new call: use ``metadata`` or a function of your own.
    """
    if not call.peer_identities:
        raise ValueError("the peer is not authenticated")
    kind = quote(call.peer_identity_key or "", safe="")
    return ":".join([kind, *(quote(identity, safe="") for identity in call.peer_identities)])


def metadata(name: str) -> Scope:
    """The value of a metadata entry, such as "x-tenant-id", which must be printable ASCII.

    The value of a name that ends in "-bin" may be any bytes, and is percent-encoded. It must
    be set or checked by something that callers cannot bypass. Raises TypeError or ValueError
    for what can be no name of an entry.
    """
    if not isinstance(name, str):
        raise TypeError(f"metadata({name!r}): give the name of an entry, such as 'x-tenant-id'")
    if not METADATA_NAME.fullmatch(name):
        raise ValueError(
            f"metadata({name!r}): metadata keys are lower case: give letters, digits, '-', '_' and '.',"
            " as in 'x-tenant-id'"
        )

    is_binary = name.endswith("-bin")

    def scope(call: CallInfo) -> str:
        found: str | bytes | None = None
        for key, value in call._given:
            if key != name:
                continue
            if not is_binary and not is_text(value):
                raise ValueError(f"the value of {name} is not printable ASCII")
            if found is not None and value != found:
                raise ValueError(f"the call has several values of {name}; exactly one is needed")
            found = value
        if found is None:
            raise ValueError(f"the call has no value of {name}; exactly one is needed")
        return quote(found, safe="") if is_binary else str(found)

    return scope


info_of = CallInfo._of
"""Makes the CallInfo of a call whose peer is asked for when it is needed."""


def scope_of(scope: Scope, call: CallInfo) -> str:
    """Evaluate a scope. Raises ValueError if it does not return whose key it is."""
    value: object = scope(call)
    if not isinstance(value, str) or not value or not can_be_encoded(value):
        raise ValueError(f"the scope returned {value!r}; a text that is not empty is needed")
    return value


def unambiguous(metadata: Metadata) -> Metadata:
    """Metadata without the names that have a text which is not printable ASCII.

    grpc decodes it as UTF-8 or, where that fails, as Latin-1, so two values that differ in
    their bytes can be the same text.
    """
    odd = {name for name, value in metadata if isinstance(value, str) and not is_text(value)}
    return tuple(pair for pair in metadata if pair[0] not in odd) if odd else metadata
