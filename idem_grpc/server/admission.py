"""From what arrives over the wire to what the state machine knows: metadata, key, scope and request."""

import logging
from collections.abc import Callable
from typing import Any

import grpc

from idem_grpc import keys
from idem_grpc.digest import StoreKeys, digest
from idem_grpc.fingerprint import Fingerprint, Fingerprinting
from idem_grpc.keytext import METADATA_KEY, VALID_KEY
from idem_grpc.messages import message_of
from idem_grpc.methods import request_type
from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.policy import KeyRule, Rules
from idem_grpc.problem import Problem, Reason
from idem_grpc.server.arities import Handler, behavior_of, is_async
from idem_grpc.sources import Outgoing
from idem_grpc.steps import Reply

logger = logging.getLogger("idem_grpc")

_TOKEN_REQUIRED = "this method needs a token of the TokenService as its idempotency-key"

Parse = Callable[[bytes], Any]

NOT_PARSED = "Exception deserializing request!"  # grpc's own words


class Refused(Exception):
    """The call gets this answer, and nothing was run or stored."""

    def __init__(self, answer: Outcome | Problem) -> None:
        super().__init__(answer)
        self.answer = answer


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
