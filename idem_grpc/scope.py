"""Whose key it is: two callers with different scopes never meet, whatever keys they send.

Scope is a choice, not a default. A replay skips every check inside our interceptor,
so an answer must not reach a caller who guessed a key.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from idem_grpc.keytext import METADATA_NAME, can_be_encoded, is_text
from idem_grpc.outcome import Metadata


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What a scope may look at.

    ``method`` is "/pkg.Service/Method", and "/idem.v1.TokenService/*" where tokens are issued,
    so a scope that depends on it suits no method with tokens.
    ``metadata`` is what interceptors outside passed on. A name that has a text which is not
    printable ASCII is left out: grpc decodes different bytes to the same text.
    ``peer_identities`` are of the kind ``peer_identity_key``, such as "x509_common_name".
    """

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    peer_identities: tuple[bytes, ...]
    auth_context: Mapping[str, Iterable[bytes]]
    peer_identity_key: str | None = None


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

    def scope(call: CallInfo) -> str:
        values = {value for key, value in call.metadata if key == name}
        if len(values) != 1:
            raise ValueError(
                f"the call has {len(values)} values of {name} (if its text is not printable ASCII,"
                " none counts); exactly one is needed"
            )
        value = values.pop()
        if name.endswith("-bin"):
            return quote(value, safe="")
        if not is_text(value):
            raise ValueError(f"the value of {name} is not printable ASCII")
        return str(value)

    return scope


def scope_of(scope: Scope, call: CallInfo) -> str:
    """Evaluate a scope. Raises ValueError if it does not return whose key it is."""
    if scope is SHARED:
        return ""
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
