"""From what arrives over the wire to what the state machine knows: metadata, key, scope and request."""

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


def check_watch(max_waiters: object, max_detached: object, cache_bytes: object, reporter: object) -> None:
    """Check limits and the reporter. Raises ValueError or TypeError, saying what to give."""
    whole_number("ServerInterceptor", "max_waiters", max_waiters, smallest=0)
    whole_number("ServerInterceptor", "max_detached", max_detached, smallest=1)
    whole_number("ServerInterceptor", "cache_bytes", cache_bytes, smallest=0)
    if reporter is not None and not isinstance(reporter, Reporter):
        raise TypeError(f"reporter={reporter!r}: give an instance of a subclass of idem_grpc.Reporter")


def check_executor(executor: object) -> None:
    """Where plain functions run. Raises TypeError, saying what to give."""
    if executor is None:
        return
    if not isinstance(executor, Executor) or isinstance(executor, ProcessPoolExecutor):
        raise TypeError(
            f"executor={executor!r}: give a concurrent.futures.ThreadPoolExecutor, such as the server's"
            " migration_thread_pool"
        )


def check_scope(scope: object) -> None:
    """Who shares keys and answers. Raises TypeError, saying what to give."""
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


def check_policies(policies: object, default: object) -> None:
    """What methods are protected by. Raises TypeError or ValueError, saying what to give.

    What contradicts itself only together with other layers is found where those are known.
    """
    if not isinstance(policies, Mapping):
        raise TypeError(
            f"policies={policies!r}: give a mapping, such as {{'/pkg.Service/*': Policy(lease=10)}}"
        )
    if not isinstance(default, Policy):
        raise TypeError(f"default={default!r}: give a Policy, or leave it out")
    for pattern, policy in (*policies.items(), ("default", default)):
        if not isinstance(pattern, str):
            raise TypeError(f"policies: {pattern!r} is no string: give a name, as in '/pkg.Service/Method'")
        if isinstance(policy, Policy) and (wrong := contradiction(policy)):
            raise ValueError(f"{pattern}: {wrong}")


def checked_services(services: Iterable[str | ServiceDescriptor]) -> tuple[str | ServiceDescriptor, ...]:
    """The services to check now. Raises TypeError, saying what to give."""
    if isinstance(services, (str, bytes)) or not isinstance(services, Iterable):
        raise TypeError(f"services={services!r}: give a list of names, such as ['pkg.Service']")
    given = tuple(services)
    kinds: tuple[object, ...] = given
    for service in kinds:
        if not isinstance(service, (str, ServiceDescriptor)):
            raise TypeError(
                f"services: {service!r} is none: give a name, as in 'pkg.Service', or a descriptor"
            )
    return given


logger = logging.getLogger("idem_grpc")

_TOKEN_REQUIRED = "this method needs a token of the TokenService as its idempotency-key"

Parse = Callable[[bytes], Any]

NOT_PARSED = "Exception deserializing request!"  # grpc's own words


class Refused(Exception):
    """The call gets this answer, and nothing was run or stored."""

    def __init__(self, answer: Outcome | Problem) -> None:
        super().__init__(answer)
        self.answer = answer


_FACTS = ("invocation_metadata", "peer", "peer_identities", "peer_identity_key", "auth_context")


class Facts:
    """What the context of an RPC says of its caller, each fact asked for once.

    When the RPC ends, grpc.aio frees what its context stands on, and asking it crashes the process. So
    what may still be wanted is asked for by then, with ``freeze``.
    """

    __slots__ = ("_context", "_known")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """What the method ``name`` of the context returns."""
        if name not in self._known:
            if self._context is None:
                raise RuntimeError(f"the RPC is over: its context can no longer be asked for {name}()")
            self._known[name] = getattr(self._context, name)()
        return self._known[name]

    def freeze(self) -> None:
        """Ask for all that is not known yet. The context is not asked any more."""
        if self._context is not None:
            for name in _FACTS:
                self.get(name)
        self._context = None

    def close(self) -> None:
        """The context is not asked any more. Raises RuntimeError from now on for what was not asked for."""
        self._context = None


class Method:
    """A method as an interceptor serves it: made once for each handler, and used by all its calls."""

    __slots__ = (
        *("behavior", "fingerprints", "handler", "is_async", "is_settled", "is_token", "keys", "namespace"),
        *("parse", "passes_without_key", "path", "reads_fields", "refusal", "rules", "serialize"),
        *("streams_requests", "streams_responses"),
    )

    def __init__(self, path: str, handler: Handler, rules: Rules, namespace: str) -> None:
        self.path = path
        self.handler = handler
        self.rules = rules
        self.namespace = namespace
        self.is_settled = False
        """Whether its contract is known by now, so that its rules stay what they are."""
        self.is_token = rules.key is KeyRule.TOKEN
        self.behavior = behavior_of(handler)
        self.is_async = is_async(self.behavior)
        self.parse = handler.request_deserializer
        self.serialize = handler.response_serializer
        self.streams_requests = bool(handler.request_streaming)
        self.streams_responses = bool(handler.response_streaming)
        self.passes_without_key = rules.key is KeyRule.OPTIONAL
        """Whether a call without a key runs as if there were no interceptor."""
        self.refusal: Reply | None = None
        """The reply to a call without a key, if it needs one that is not made of its request."""
        if not self.passes_without_key and rules.key_fields is None:
            message = _TOKEN_REQUIRED if self.is_token else ""
            self.refusal = Reply(Problem(Reason.KEY_REQUIRED, message))
        self.reads_fields = bool(rules.ignore or rules.key_fields)
        """Whether its rules name fields of the request."""
        self.keys = StoreKeys(namespace, rules.operation)
        self.fingerprints = Fingerprinting(path, rules.ignore)

    def rate_key(self, scope: str) -> bytes:
        """The name under which new keys of a scope are counted; empty if they are not."""
        if self.rules.claim_rate is None or self.is_token:
            return b""
        parts = (self.namespace, self.rules.operation, scope)
        return digest("claim rate", *(part.encode() for part in parts), size=24)

    def fingerprint(self, raw: bytes, request: Any) -> Fingerprint:
        """The fingerprint of a request. Raises Refused where the policy does not fit it."""
        try:
            return self.fingerprints.of(raw, request)
        except ValueError:
            logger.exception("%s is refused: its idempotency policy is at fault", self.path)
            raise Refused(Problem(Reason.MISCONFIGURED)) from None

    def readable(self, raw: bytes, request: Any) -> Any:
        """A request of which the rules can read the fields, if they name any.

        It is read by the method's descriptor if the handler's own function made something else of
        it. Raises Refused if its bytes are not of that type.
        """
        if not self.reads_fields or message_of(request) is not None:
            return request
        known = request_type(self.path)
        return request if known is None else parsed(raw, known.FromString)

    def key_of(self, request: Any, metadata: Metadata) -> str:
        """The key that the contract makes of the request. Raises Refused if that is not possible."""
        make = self.rules.key_fields
        assert make is not None, "a call without a key is refused otherwise"
        try:
            key = make(Outgoing(self.path, request, metadata))
        except ValueError as error:
            raise Refused(Problem(Reason.KEY_REQUIRED, str(error))) from None
        if not keys.is_valid(key):
            raise Refused(Problem(Reason.KEY_INVALID, "the key that is made of the request is too long"))
        return key

    def check_stream(self) -> None:
        """Refuse a request stream whose messages will not have the fields to ignore, before its handler runs.

        Where no descriptor knows the method, an empty message shows what the handler's function makes.
        """
        if not self.rules.ignore or request_type(self.path) is not None:
            return
        try:
            request = b"" if self.parse is None else self.parse(b"")
        except Exception:
            return
        self.fingerprint(b"", request)


def metadata_of(details: grpc.HandlerCallDetails) -> tuple[Metadata, list[str | bytes]]:
    """The metadata of a call, as interceptors outside passed it on, and the keys among it.

    Details may be of any class, and name and value of an entry may be bytes. Raises Refused for
    entries that are no pairs.
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
            "%s is refused: an interceptor outside passed on details whose invocation_metadata is no"
            " sequence of pairs",
            details.method,
        )
        raise Refused(Problem(Reason.MISCONFIGURED)) from None
    return entries, [value for name, value in entries if name == METADATA_KEY]


def _pair(entry: Any) -> tuple[str, str | bytes]:
    name, value = (entry.key, entry.value) if hasattr(entry, "key") else entry
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    name = name.lower()  # as all names are on the wire, so that no other spelling hides beside one
    if isinstance(value, bytes) and not name.endswith("-bin"):
        value = value.decode("latin-1")
    return name, value


def previous_attempts(metadata: Metadata) -> int:
    """How often gRPC's own retries have sent this call before, by their own count."""
    value = dict(metadata).get("grpc-previous-rpc-attempts", "")
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 9 else 0


def key_in(given: list[str | bytes]) -> str:
    """The key of a call, of those in its metadata. Raises Refused if it is none, or if there are two."""
    key = given[0]
    if len(given) > 1 and any(other != key for other in given):
        raise Refused(Problem(Reason.KEY_INVALID, "the call has two different idempotency-keys"))
    if not isinstance(key, str) or VALID_KEY.fullmatch(key) is None:
        raise Refused(
            Problem(Reason.KEY_INVALID, "an idempotency-key has 1 to 255 characters, of 0x21 to 0x7E")
        )
    return key


def parsed(raw: bytes, parse: Parse) -> Any:
    """A request by the handler's own function. Raises Refused, as grpc does, where that fails."""
    try:
        return parse(raw)
    except Exception:
        logger.exception(NOT_PARSED)
        raise Refused(Outcome(Code.INTERNAL, NOT_PARSED)) from None


TOKEN_SERVICE = "/idem.v1.TokenService/"

_details: ContextVar[Any] = ContextVar("idem_grpc_details", default=None)


def with_details(handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
    """A handler of the TokenService for which ``metadata_here`` gives the metadata of ``details``."""
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
        _details.set(details)  # in the RPC's own task
        return await serve(request, context)

    return grpc.unary_unary_rpc_method_handler(
        async_behavior if is_async(serve) else behavior,
        handler.request_deserializer,
        handler.response_serializer,
    )


def metadata_here(context: Any) -> Metadata:
    """The metadata of the call being served: that of ``context`` where no interceptor of ours is.

    Raises Refused for metadata that is none.
    """
    details = _details.get()
    return tuple(context.invocation_metadata() or ()) if details is None else metadata_of(details)[0]
