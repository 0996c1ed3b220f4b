"""Scopes, which separate callers: those with different scopes never share a key, whatever keys they send.

Every interceptor must be given a scope; there is no default. A replay skips every check inside the
interceptor, so an answer must not reach a caller who guessed a key.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from urllib.parse import quote

from idem_grpc._core.keys import can_be_encoded
from idem_grpc._core.metadata import METADATA_NAME, is_text
from idem_grpc._core.outcome import Metadata


class CallInfo:
    """What a scope function can read of a call.

    method: "/pkg.Service/Method", or "/idem.v1.TokenService/*" where tokens are issued. A scope that
        depends on it is therefore unsuitable for methods with tokens.
    metadata: what interceptors outside passed on. A name that has a text which is not printable ASCII is
        left out, because grpc decodes different bytes to the same text.
    peer_identities: the peer's identities, of the kind ``peer_identity_key``.
    auth_context: the properties of the peer's authentication, as grpc returns them.
    peer_identity_key: the kind of the identities, such as "x509_common_name"; None without any.
    """

    __slots__ = ("__weakref__", "_all_metadata", "_peer_info", "method")

    def __init__(
        self,
        method: str,
        metadata: tuple[tuple[str, str | bytes], ...],
        peer_identities: tuple[bytes, ...],
        auth_context: Mapping[str, Iterable[bytes]],
        peer_identity_key: str | None = None,
    ) -> None:
        self.method = method
        self._all_metadata = metadata
        self._peer_info: Callable[[str], Any] = {
            "peer_identities": peer_identities,
            "auth_context": auth_context,
            "peer_identity_key": peer_identity_key,
        }.__getitem__

    @classmethod
    def _of(
        cls, method: str, metadata: tuple[tuple[str, str | bytes], ...], peer_info: Callable[[str], Any]
    ) -> Self:
        """Return the info of a call. ``peer_info(name)`` describes its peer, and is called when needed."""
        info = cls.__new__(cls)
        info.method, info._all_metadata, info._peer_info = method, metadata, peer_info
        return info

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return unambiguous(self._all_metadata)

    @property
    def peer_identities(self) -> tuple[bytes, ...]:
        return tuple(self._peer_info("peer_identities") or ())

    @property
    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        context: Mapping[str, Iterable[bytes]] = self._peer_info("auth_context")
        return context

    @property
    def peer_identity_key(self) -> str | None:
        key: str | None = self._peer_info("peer_identity_key")
        return key


Scope = Callable[[CallInfo], str]
"""A pure function that returns the scope of a call. If it raises or returns no scope, the call is refused.

A scope is any text that is not empty, of any length: stores hold a digest of it.
"""


def SHARED(call: CallInfo) -> str:
    """Give all callers one scope: they trust each other, and share their keys and answers."""
    return ""


def PEER(call: CallInfo) -> str:
    """Return the authenticated identity of the peer, with its kind, such as "x509_common_name:alice".

    A certificate's identity is its subject alternative names, or its common name if it has none. Replicas
    whose certificates agree in these are one peer. If each replica has its own name, a retry from another
    is a new call: use ``metadata`` or a function of your own. Raises ValueError for a peer that is not
    authenticated, so that its call is refused.
    """
    if not call.peer_identities:
        raise ValueError("the peer is not authenticated")
    kind = quote(call.peer_identity_key or "", safe="")
    return ":".join([kind, *(quote(identity, safe="") for identity in call.peer_identities)])


def metadata(name: str) -> Scope:
    """Return a scope function that reads a metadata entry, such as "x-tenant-id".

    The value must be printable ASCII; under a name that ends in "-bin" it may be any bytes, which are
    percent-encoded. It must be set or checked by something that callers cannot bypass. A call without a
    value, or with different values, is refused. Raises TypeError or ValueError for an invalid name.
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
        for key, value in call._all_metadata:
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
"""Returns the CallInfo of a call whose peer is read only when needed."""


def scope_of(scope: Scope, call: CallInfo) -> str:
    """Evaluate a scope function. Raises ValueError if it does not return a scope."""
    value: object = scope(call)
    if not isinstance(value, str) or not value or not can_be_encoded(value):
        raise ValueError(f"the scope returned {value!r}: it must return a text that is not empty")
    return value


def unambiguous(metadata: Metadata) -> Metadata:
    """Return metadata without the names that have a text which is not printable ASCII.

    grpc decodes it as UTF-8 or, if that fails, as Latin-1, so two values with different bytes can become
    the same text.
    """
    odd = {name for name, value in metadata if isinstance(value, str) and not is_text(value)}
    return tuple(pair for pair in metadata if pair[0] not in odd) if odd else metadata
