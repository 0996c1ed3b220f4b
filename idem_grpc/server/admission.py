"""From what arrives over the wire to a call that the state machine knows."""

import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc import keys
from idem_grpc.digest import digest, store_key, token_key
from idem_grpc.execution import KeyedExecution, Lease, identity_of
from idem_grpc.fingerprint import Fingerprint, fingerprint
from idem_grpc.messages import message_of
from idem_grpc.methods import Methods, request_type
from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.policy import KeyRule, Policy, Rules
from idem_grpc.problem import Problem, Reason
from idem_grpc.record import Binding, Record
from idem_grpc.scope import CallInfo, Scope, scope_of, unambiguous
from idem_grpc.server.settings import check_policies, checked_services
from idem_grpc.sources import Outgoing
from idem_grpc.verdicts import Call

logger = logging.getLogger("idem_grpc")

_OWNER_BYTES = 8
_TOKEN_REQUIRED = "this method needs a token of the TokenService as its idempotency-key"

Parse = Callable[[bytes], Any]

NOT_PARSED = "Exception deserializing request!"  # grpc's own words


class Refused(Exception):
    """The call gets this answer, and nothing was run or stored."""

    def __init__(self, answer: Outcome | Problem) -> None:
        super().__init__(answer)
        self.answer = answer


def metadata_of(details: Any) -> Metadata:
    """The metadata of a call, as interceptors outside passed it on in its handler-call details.

    Details may be of any class, and name and value of an entry may be bytes. Raises Refused
    for entries that are no pairs.
    """
    given = getattr(details, "invocation_metadata", None)
    try:
        entries = () if given is None else tuple(given)
        return entries if _are_usual(entries) else tuple(map(_pair, entries))
    except (TypeError, ValueError, AttributeError):
        logger.exception(
            "%s is refused: an interceptor outside passed on details whose invocation_metadata is no"
            " sequence of pairs",
            details.method,
        )
        raise Refused(Problem(Reason.MISCONFIGURED)) from None


def _are_usual(entries: tuple[Any, ...]) -> bool:
    """Whether all are pairs of text as grpc gives them, of which none has to be made another."""
    for entry in entries:
        if not isinstance(entry, tuple) or len(entry) != 2:
            return False
        name, value = entry
        if type(name) is not str or type(value) is not str or not name.islower():
            return False
    return True


def _pair(entry: Any) -> tuple[str, str | bytes]:
    name, value = (entry.key, entry.value) if hasattr(entry, "key") else entry
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    name = name.lower()  # as all names are on the wire, so that no other spelling hides beside one
    if isinstance(value, bytes) and not name.endswith("-bin"):
        value = value.decode("latin-1")
    return name, value


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of a call's sender. Taken at once: grpc forgets it when the RPC ends.

    ``metadata`` is what interceptors outside passed on, and decides everything here.
    ``invocation_metadata`` is what the context has, for handlers: to those, grpc gives what
    arrived, whatever interceptors passed on to each other.
    """

    method: str
    metadata: Metadata
    invocation_metadata: tuple[Any, ...]
    peer: str
    peer_identities: tuple[bytes, ...] | None
    peer_identity_key: str | None
    auth_context: Mapping[str, Iterable[bytes]]

    @classmethod
    def of(cls, method: str, metadata: Metadata, context: Any) -> "Caller":
        """Read the context of either grpc or grpc.aio, which have these methods in common."""
        identities = context.peer_identities()
        return cls(
            method=method,
            metadata=metadata,
            invocation_metadata=tuple(context.invocation_metadata() or ()),
            peer=context.peer(),
            peer_identities=None if identities is None else tuple(identities),
            peer_identity_key=context.peer_identity_key(),
            auth_context=context.auth_context(),
        )

    @property
    def previous_attempts(self) -> int:
        """How often gRPC's own retries have sent this call before, by their own count."""
        value = dict(self.metadata).get("grpc-previous-rpc-attempts", "")
        return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """A keyed call, its scope and what its handler is given as the request."""

    call: Call
    key: str
    scope: str
    request: Any

    def execution(self, record: Record, claimed: float) -> KeyedExecution:
        """What ``current()`` is while the handler runs under ``record``.

        ``claimed`` is the time at which the claim was sent, on the clock ``elapsed``.
        """
        return KeyedExecution(
            key=self.key,
            operation=self.call.rules.operation,
            scope=self.scope,
            attempt=record.attempt,
            identity=identity_of(self.call.key, record),
            lease=Lease(record.lease, self.call.rules.max_run, claimed),
        )


class Admission:
    """The settings of an interceptor that say what is protected, and how. Does no I/O."""

    def __init__(
        self,
        namespace: str,
        scope: Scope,
        services: Iterable[str | ServiceDescriptor],
        policies: Mapping[str, Policy],
        default: Policy,
    ) -> None:
        if not callable(scope):
            raise TypeError(
                f"scope={scope!r}: give SHARED, PEER, metadata('name') or a function of CallInfo,"
                " which says who shares keys and answers"
            )
        if inspect.iscoroutinefunction(scope) or inspect.iscoroutinefunction(type(scope).__call__):
            raise TypeError(
                f"scope={scope!r}: give a plain function; what has to wait belongs into an interceptor"
                " outside, which passes on what it finds as metadata"
            )
        check_policies(policies, default)
        self.namespace = namespace
        self._scope = scope
        self._methods = Methods(policies, default, checked_services(services))

    def rules(self, method: str) -> Rules | None:
        """The rules of a method; None if its calls run as if we were not there.

        Raises Refused where its policy is at fault.
        """
        try:
            return self._methods.rules(method)
        except (ValueError, TypeError):
            logger.exception("%s is refused: its idempotency policy is at fault", method)
            raise Refused(Problem(Reason.MISCONFIGURED)) from None

    def check_operations(self, issued: Collection[str]) -> None:
        """Raise ValueError if an operation that tokens are issued for is a misspelt one."""
        self._methods.check_operations(issued)

    def is_keyed(self, rules: Rules, metadata: Metadata) -> bool:
        """Whether a call has a key; one without runs as if we were not there.

        Raises Refused for a call that lacks a key it needs.
        """
        if any(key == keys.METADATA_KEY for key, _ in metadata):
            return True
        if rules.key is KeyRule.OPTIONAL:
            return False
        if rules.key_fields is not None:
            return True
        if rules.key is KeyRule.TOKEN:
            raise Refused(Problem(Reason.KEY_REQUIRED, _TOKEN_REQUIRED))
        raise Refused(Problem(Reason.KEY_REQUIRED))

    def admit(self, rules: Rules, caller: Caller, raw: bytes | None, parse: Parse | None) -> Admitted:
        """Read the key, the scope and the request, of which a stream (``raw`` is None) comes later.

        Raises Refused where one of them is not valid.
        """
        key = _key_in(caller.metadata)
        scope = self.scope_of(caller)
        request, shown = None, None
        if raw is not None:
            request = parsed(raw, parse)
            read = readable(caller.method, raw, request, rules)
            shown = _fingerprint(caller.method, raw, read, rules)
            if key is None:
                key = _key_of(Outgoing(caller.method, read, caller.metadata), rules)
        elif rules.ignore:
            _check_stream(caller.method, parse, rules)
        owner = os.urandom(_OWNER_BYTES)
        assert key is not None, "a key is made of a request stream's fields by no rules"
        if rules.key is KeyRule.TOKEN:
            binding = Binding.of(rules.operation, scope)
            call = Call(token_key(self.namespace, key), owner, shown, rules, binding)
        else:
            name = store_key(self.namespace, rules.operation, scope.encode(), key)
            call = Call(name, owner, shown, rules, rate_key=self._rate_key(rules, scope))
        return Admitted(call, key, scope, request)

    def _rate_key(self, rules: Rules, scope: str) -> bytes:
        if rules.claim_rate is None:
            return b""
        parts = (self.namespace, rules.operation, scope)
        return digest("claim rate", *(part.encode() for part in parts), size=24)

    def scope_of(self, caller: Caller) -> str:
        """Whose call it is. Raises Refused if that is unknown."""
        info = CallInfo(
            caller.method,
            unambiguous(caller.metadata),
            caller.peer_identities or (),
            caller.auth_context,
            caller.peer_identity_key,
        )
        try:
            return scope_of(self._scope, info)
        except Exception as error:
            logger.warning("%s is refused: %s", caller.method, error)
            raise Refused(Problem(Reason.SCOPE_UNKNOWN)) from error


def _key_of(call: Outgoing, rules: Rules) -> str:
    """The key that the contract makes of the request."""
    try:
        key = "" if rules.key_fields is None else rules.key_fields(call)
    except ValueError as error:
        raise Refused(Problem(Reason.KEY_REQUIRED, str(error))) from None
    if not keys.is_valid(key):
        raise Refused(Problem(Reason.KEY_INVALID, "the key that is made of the request is too long"))
    return key


def _key_in(metadata: Metadata) -> str | None:
    values = [value for key, value in metadata if key == keys.METADATA_KEY]
    if not values:
        return None
    key = values[0]
    if any(value != key for value in values):
        raise Refused(Problem(Reason.KEY_INVALID, "the call has two different idempotency-keys"))
    if not isinstance(key, str) or not keys.is_valid(key):
        raise Refused(
            Problem(Reason.KEY_INVALID, "an idempotency-key has 1 to 255 characters, of 0x21 to 0x7E")
        )
    return key


def _fingerprint(method: str, raw: bytes, request: Any, rules: Rules) -> Fingerprint:
    try:
        return fingerprint(method, raw, request, rules.ignore)
    except ValueError:
        logger.exception("%s is refused: its idempotency policy is at fault", method)
        raise Refused(Problem(Reason.MISCONFIGURED)) from None


def readable(method: str, raw: bytes, request: Any, rules: Rules) -> Any:
    """A request of which rules can read the fields, if they name any.

    It is read by the method's descriptor if the handler's own function made something else of
    it. Raises Refused if its bytes are not of that type.
    """
    if not (rules.ignore or rules.key_fields) or message_of(request) is not None:
        return request
    known = request_type(method)
    return request if known is None else parsed(raw, known.FromString)


def _check_stream(method: str, parse: Parse | None, rules: Rules) -> None:
    """Refuse a request stream whose messages will not have the fields to ignore, before its handler runs.

    Where no descriptor knows the method, an empty message shows what the handler's function makes.
    """
    if request_type(method) is None:
        try:
            request = b"" if parse is None else parse(b"")
        except Exception:
            return
        _fingerprint(method, b"", request, rules)


def parsed(raw: bytes, parse: Parse | None) -> Any:
    """A request by the handler's own function. Raises Refused, as grpc does, where that fails."""
    if parse is None:
        return raw
    try:
        return parse(raw)
    except Exception:
        logger.exception(NOT_PARSED)
        raise Refused(Outcome(Code.INTERNAL, NOT_PARSED)) from None
