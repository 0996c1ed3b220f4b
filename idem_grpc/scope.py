"""Whose key it is: two callers with different scopes never meet, whatever keys they send.

Scope is a choice, not a default. A replay skips every check inside our interceptor,
so an answer must not reach a caller who guessed a key.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from idem_grpc.keytext import METADATA_NAME


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What a scope may look at.

    ``method`` is "/pkg.Service/Method", and "/idem.v1.TokenService/*" where tokens are issued,
    so a scope that depends on it suits no method with tokens.
    """

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    peer_identities: tuple[bytes, ...]
    auth_context: Mapping[str, Iterable[bytes]]


Scope = Callable[[CallInfo], str]
"""A pure function that tells callers apart. Where it raises or says nothing, the call is refused."""


def SHARED(call: CallInfo) -> str:
    """All callers trust each other: they share their keys and answers."""
    return ""


def PEER(call: CallInfo) -> str:
    """The authenticated identity of the peer, as its certificate or token tells it.

    A client whose replicas bear different certificates has a scope for each of them:
    a retry from another replica is then a new call. Use ``metadata`` or a function
    of your own there.
    """
    if not call.peer_identities:
        raise ValueError("the peer is not authenticated")
    return ":".join(quote(identity, safe="") for identity in call.peer_identities)


def metadata(name: str) -> Scope:
    """The value of a metadata entry, such as "x-tenant-id".

    It must be set or checked by something that callers cannot bypass. Raises TypeError or
    ValueError for what can be no name of an entry.
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
            raise ValueError(f"the call has {len(values)} values of {name}; exactly one is needed")
        value = values.pop()
        return value if isinstance(value, str) else quote(value, safe="")

    return scope


def scope_of(scope: Scope, call: CallInfo) -> str:
    """Evaluate a scope. Raises ValueError where it does not tell whose key it is."""
    if scope is SHARED:
        return ""
    value: object = scope(call)
    if not isinstance(value, str) or not value:
        raise ValueError(f"the scope returned {value!r}; a string that is not empty is needed")
    return value
