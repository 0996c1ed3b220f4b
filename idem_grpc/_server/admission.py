"""Read and check what arrives on the wire: settings, metadata, idempotency key and request."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from idem_grpc._core import keys
from idem_grpc._core.checks import whole_number
from idem_grpc._core.digest import StoreKeys, digest
from idem_grpc._core.fingerprint import Fingerprint, Fingerprinting
from idem_grpc._core.keys import METADATA_KEY, VALID_KEY, Outgoing
from idem_grpc._core.messages import message_of
from idem_grpc._core.methods import request_type
from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.policy import KeyRule, Policy, Rules, contradiction
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.reporter import Reporter
from idem_grpc._core.steps import Reply
from idem_grpc._server.handlers import Handler, behavior_of, is_async


def check_limits(max_waiters: object, max_detached: object, cache_bytes: object, reporter: object) -> None:
    """Check limits and the reporter. Raises ValueError or TypeError."""
    whole_number("ServerInterceptor", "max_waiters", max_waiters, smallest=0)
    whole_number("ServerInterceptor", "max_detached", max_detached, smallest=1)
    whole_number("ServerInterceptor", "cache_bytes", cache_bytes, smallest=0)
    if reporter is not None and not isinstance(reporter, Reporter):
        raise TypeError(f"reporter={reporter!r}: give an instance of a subclass of idem_grpc.Reporter")


def check_executor(executor: object) -> None:
    """Check the executor that runs plain functions. Raises TypeError."""
    if executor is None:
        return
    if not isinstance(executor, Executor) or isinstance(executor, ProcessPoolExecutor):
        raise TypeError(
            f"executor={executor!r}: give a concurrent.futures.ThreadPoolExecutor, such as the server's"
            " migration_thread_pool"
        )


def check_scope(scope: object) -> None:
    """Check the scope, which decides who shares keys and answers. Raises TypeError."""
    if not callable(scope):
        raise TypeError(
            f"scope={scope!r}: give SHARED, PEER, metadata('name') or a function of CallInfo"
            " that returns the name of those who share keys and answers"
        )
    if inspect.iscoroutinefunction(scope) or inspect.iscoroutinefunction(type(scope).__call__):
        raise TypeError(
            f"scope={scope!r}: give a plain function; do async work in an outer interceptor"
            " and pass its result on as metadata"
        )


def check_policies(policies: object, default: object) -> None:
    """Check the policies of an interceptor. Raises TypeError or ValueError.

    Contradictions between a policy and the other layers are found later, where those layers are known.
    """
    if not isinstance(policies, Mapping):
        raise TypeError(
            f"policies={policies!r}: give a mapping, such as {{'/pkg.Service/*': Policy(lease=10)}}"
        )
    if not isinstance(default, Policy):
        raise TypeError(f"default={default!r}: give a Policy, or leave it out")
    for pattern, policy in (*policies.items(), ("default", default)):
        if not isinstance(pattern, str):
            raise TypeError(
                f"policies: {pattern!r} is not a string: give a name, such as '/pkg.Service/Method'"
            )
        if isinstance(policy, Policy) and (wrong := contradiction(policy)):
            raise ValueError(f"{pattern}: {wrong}")


def checked_services(services: Iterable[str | ServiceDescriptor]) -> tuple[str | ServiceDescriptor, ...]:
    """Return the services to check at construction. Raises TypeError."""
    if isinstance(services, (str, bytes)) or not isinstance(services, Iterable):
        raise TypeError(f"services={services!r}: give a list of names, such as ['pkg.Service']")
    given = tuple(services)
    kinds: tuple[object, ...] = given
    for service in kinds:
        if not isinstance(service, (str, ServiceDescriptor)):
            raise TypeError(
                f"services: {service!r} is not a service: give a name, such as 'pkg.Service', or a descriptor"
            )
    return given


logger = logging.getLogger("idem_grpc")

_TOKEN_REQUIRED = "this method needs a token of the TokenService as its idempotency-key"

Parse = Callable[[bytes], Any]

NOT_PARSED = "Exception deserializing request!"  # the same text as in grpc


class Refused(Exception):
    """Refuses a call with ``answer``. Nothing was run or stored."""

    def __init__(self, answer: Outcome | Problem) -> None:
        super().__init__(answer)
        self.answer = answer


_CALLER_METHODS = ("invocation_metadata", "peer", "peer_identities", "peer_identity_key", "auth_context")


class CachedContext:
    """Caches the return values of context methods that describe the caller.

    grpc.aio frees the state behind a context when its RPC ends; calling the context later crashes the
    process. ``freeze`` reads everything that may still be needed before that.
    """

    __slots__ = ("_context", "_known")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return the value of the context method ``name``.

        Raises RuntimeError if it was not read before the context was dropped.
        """
        if name not in self._known:
            if self._context is None:
                raise RuntimeError(f"the RPC is over, and {name}() was not read from its context before")
            self._known[name] = getattr(self._context, name)()
        return self._known[name]

    def freeze(self) -> None:
        """Read all values that are not cached yet, and drop the context."""
        if self._context is not None:
            for name in _CALLER_METHODS:
                self.get(name)
        self._context = None

    def close(self) -> None:
        """Drop the context. ``get`` raises RuntimeError from now on for values that are not cached."""
        self._context = None


class Method:
    """A method with its rules and handler. Made once for each handler and shared by all its calls."""

    __slots__ = (
        *("behavior", "fingerprints", "handler", "is_async", "is_settled", "is_token", "keys", "namespace"),
        *("parse", "is_key_optional", "path", "reads_fields", "refusal", "rules", "serialize"),
        *("streams_requests", "streams_responses"),
    )

    def __init__(self, path: str, handler: Handler, rules: Rules, namespace: str) -> None:
        self.path = path
        self.handler = handler
        self.rules = rules
        self.namespace = namespace
        self.is_settled = False
        """Whether its descriptor has been found, so that its rules can no longer change."""
        self.is_token = rules.key is KeyRule.TOKEN
        self.behavior = behavior_of(handler)
        self.is_async = is_async(self.behavior)
        self.parse = handler.request_deserializer
        self.serialize = handler.response_serializer
        self.streams_requests = bool(handler.request_streaming)
        self.streams_responses = bool(handler.response_streaming)
        self.is_key_optional = rules.key is KeyRule.OPTIONAL
        """Whether a call without a key goes straight to the handler."""
        self.refusal: Reply | None = None
        """The reply to a call without a key; None if the key is optional or made from the request."""
        if not self.is_key_optional and rules.key_fields is None:
            message = _TOKEN_REQUIRED if self.is_token else ""
            self.refusal = Reply(Problem(Reason.KEY_REQUIRED, message))
        self.reads_fields = bool(rules.ignore or rules.key_fields)
        """Whether its rules read fields of the request."""
        self.keys = StoreKeys(namespace, rules.operation)
        self.fingerprints = Fingerprinting(path, rules.ignore)

    def rate_key(self, scope: str) -> bytes:
        """Return the store key of the claim rate of a scope; empty if new keys are not counted."""
        if self.rules.claim_rate is None or self.is_token:
            return b""
        parts = (self.namespace, self.rules.operation, scope)
        return digest("claim rate", *(part.encode() for part in parts), size=24)

    def fingerprint(self, raw: bytes, request: Any) -> Fingerprint:
        """Return the fingerprint of a request. Raises Refused if the policy does not fit the request."""
        try:
            return self.fingerprints.of(raw, request)
        except ValueError:
            logger.exception("%s is refused: its idempotency policy is invalid", self.path)
            raise Refused(Problem(Reason.MISCONFIGURED)) from None

    def readable(self, raw: bytes, request: Any) -> Any:
        """Return the request in a form whose fields the rules can read.

        Parses ``raw`` by the method's descriptor if the handler's deserializer did not return a protobuf
        message. Raises Refused if the bytes are not of that type.
        """
        if not self.reads_fields or message_of(request) is not None:
            return request
        known = request_type(self.path)
        return request if known is None else parsed(raw, known.FromString)

    def key_from_request(self, request: Any, metadata: Metadata) -> str:
        """Return the key made from the request's fields. Raises Refused if they do not give a valid one."""
        make = self.rules.key_fields
        assert make is not None, "a call without a key is refused otherwise"
        try:
            key = make(Outgoing(self.path, request, metadata))
        except ValueError as error:
            raise Refused(Problem(Reason.KEY_REQUIRED, str(error))) from None
        if not keys.is_valid(key):
            raise Refused(Problem(Reason.KEY_INVALID, "the key made from the request is too long"))
        return key

    def check_stream(self) -> None:
        """Check, before the handler runs, that messages of a request stream have the fields to ignore.

        If the method has no known descriptor, an empty message is parsed to see which type the handler's
        deserializer returns. Raises Refused.
        """
        if not self.rules.ignore or request_type(self.path) is not None:
            return
        try:
            request = b"" if self.parse is None else self.parse(b"")
        except Exception:
            return
        self.fingerprint(b"", request)


def metadata_of(details: grpc.HandlerCallDetails) -> tuple[Metadata, list[str | bytes]]:
    """Return the metadata of a call as outer interceptors passed it on, and the keys in it.

    ``details`` may be of any class. Names and values may be bytes. Raises Refused if the metadata is not
    a sequence of pairs.
    """
    given = getattr(details, "invocation_metadata", None)
    found: list[str | bytes] = []
    try:
        entries = () if given is None else tuple(given)
        for entry in entries:
            if not isinstance(entry, tuple):
                break
            name, value = entry
            if type(name) is not str or not name.islower():
                break
            if type(value) is not str and not name.endswith("-bin"):
                break
            if name == METADATA_KEY:
                found.append(value)
        else:
            return entries, found
        entries = tuple(map(_pair, entries))
    except (TypeError, ValueError, AttributeError):
        logger.exception(
            "%s is refused: an outer interceptor passed on invocation_metadata that is not"
            " a sequence of pairs",
            details.method,
        )
        raise Refused(Problem(Reason.MISCONFIGURED)) from None
    return entries, [value for name, value in entries if name == METADATA_KEY]


def _pair(entry: Any) -> tuple[str, str | bytes]:
    name, value = (entry.key, entry.value) if hasattr(entry, "key") else entry
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    name = name.lower()  # as on the wire, so that a differently spelled duplicate is found
    if isinstance(value, bytes) and not name.endswith("-bin"):
        value = value.decode("latin-1")
    return name, value


def previous_attempts(metadata: Metadata) -> int:
    """Return how often gRPC's own retries have sent this call before, by ``grpc-previous-rpc-attempts``."""
    value = dict(metadata).get("grpc-previous-rpc-attempts", "")
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else 0


def key_from_metadata(given: list[str | bytes]) -> str:
    """Return the key of a call. Raises Refused if it is invalid, or if ``given`` has two different keys."""
    key = given[0]
    if len(given) > 1 and any(other != key for other in given):
        raise Refused(Problem(Reason.KEY_INVALID, "the call has two different idempotency-keys"))
    if not isinstance(key, str) or VALID_KEY.fullmatch(key) is None:
        raise Refused(
            Problem(Reason.KEY_INVALID, "an idempotency-key has 1 to 255 characters from 0x21 to 0x7E")
        )
    return key


def parsed(raw: bytes, parse: Parse) -> Any:
    """Parse a request with the handler's deserializer. Raises Refused with grpc's own status if it fails."""
    try:
        return parse(raw)
    except Exception:
        logger.exception(NOT_PARSED)
        raise Refused(Outcome(Code.INTERNAL, NOT_PARSED)) from None


TOKEN_SERVICE = "/idem.v1.TokenService/"

_details: ContextVar[Any] = ContextVar("idem_grpc_details", default=None)


def with_details(handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
    """Wrap a handler of the TokenService so that ``metadata_here`` returns the metadata of ``details``."""
    serve: Any = handler.unary_unary
    if serve is None:
        return handler

    def behavior(request: Any, context: Any) -> Any:
        token = _details.set(details)
        try:
            return serve(request, context)
        finally:
            _details.reset(token)

    async def async_behavior(request: Any, context: Any) -> Any:
        _details.set(details)  # no reset: it is set in the RPC's own task
        return await serve(request, context)

    return grpc.unary_unary_rpc_method_handler(
        async_behavior if is_async(serve) else behavior,
        handler.request_deserializer,
        handler.response_serializer,
    )


def metadata_here(context: Any) -> Metadata:
    """Return the metadata of the call being served, or that of ``context`` if there is no ServerInterceptor.

    Raises Refused if the metadata is not a sequence of pairs.
    """
    details = _details.get()
    return tuple(context.invocation_metadata() or ()) if details is None else metadata_of(details)[0]
