"""Resolves the rules of a method, once, from the contract's options, patterns and policies.

The layers below use the result and never match names.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from idem_grpc_pb.v1 import options_pb2, record_pb2

from idem_grpc._core.fingerprint import check_ignored
from idem_grpc._core.keys import FromRequest
from idem_grpc._core.messages import message_type
from idem_grpc._core.policy import KeyRule, Policy, Rules
from idem_grpc._core.record import OnUnclear

_CACHE_SIZE = 4096  # bounded, because generic handlers accept any method name that a caller sends
_KEY_RULES = {
    options_pb2.KEY_RULE_UNSPECIFIED: None,
    options_pb2.KEY_RULE_OPTIONAL: KeyRule.OPTIONAL,
    options_pb2.KEY_RULE_REQUIRED: KeyRule.REQUIRED,
    options_pb2.KEY_RULE_TOKEN: KeyRule.TOKEN,
}
_ON_UNCLEAR = {
    record_pb2.ON_UNCLEAR_UNSPECIFIED: None,
    record_pb2.ON_UNCLEAR_RERUN: OnUnclear.RERUN,
    record_pb2.ON_UNCLEAR_FAIL: OnUnclear.FAIL,
}


def name_of(descriptor: MethodDescriptor) -> str:
    """Return a method's name as callers use it, in the form "/pkg.Service/Method"."""
    return f"/{descriptor.containing_service.full_name}/{descriptor.name}"


def declared_policies(method: MethodDescriptor) -> list[Policy]:
    """Return the policies that a contract declares for a method, the nearest first.

    Raises ValueError, naming file and method, for an invalid declaration.
    """
    service = method.containing_service
    own = method.GetOptions().Extensions[options_pb2.policy]
    default = service.GetOptions().Extensions[options_pb2.default_policy]
    try:
        policies = [_policy(own), _policy(default)]
        if key_fields(method) is not None:
            policies.append(Policy(key=KeyRule.REQUIRED))
    except ValueError as error:
        raise ValueError(f"{service.file.name}: {name_of(method)}: {error}") from error
    return policies


@lru_cache(_CACHE_SIZE)
def declared_key_rule(method: MethodDescriptor) -> KeyRule | None:
    """Return the key rule that a method's contract declares; None if it declares none."""
    return next((policy.key for policy in declared_policies(method) if policy.key is not None), None)


@lru_cache(_CACHE_SIZE)
def key_fields(method: MethodDescriptor) -> FromRequest | None:
    """Return a key source of the request's ROLE_KEY fields, in the order of their numbers, if it has any."""
    names = key_field_names(method)
    if not names:
        return None
    source = FromRequest(":".join(f"{{{name}}}" for name in names))
    source.check(method.input_type)
    return source


def key_field_names(method: MethodDescriptor) -> list[str]:
    """Return the fields of a method's request that have ROLE_KEY, in the order of their numbers.

    The order in the proto file may change without breaking clients, so keys do not depend on it.
    """
    fields = sorted(method.input_type.fields, key=lambda field: field.number)
    return [field.name for field in fields if _role(field) == options_pb2.ROLE_KEY]


def ignored_fields(descriptor: Descriptor) -> Iterator[str]:
    """Yield the dotted paths of the fields that have ROLE_IGNORED, including those in nested messages."""
    yield from _ignored(descriptor, "", (), _types_with_ignored(descriptor))


def _ignored(descriptor: Descriptor, prefix: str, above: tuple[str, ...], types: set[str]) -> Iterator[str]:
    for field in descriptor.fields:
        if _role(field) == options_pb2.ROLE_IGNORED:
            yield prefix + field.name
            continue
        inner = message_type(field)
        if inner is None or inner.full_name not in types:
            continue
        if inner.full_name not in (*above, descriptor.full_name):
            yield from _ignored(inner, f"{prefix}{field.name}.", (*above, descriptor.full_name), types)


def _types_with_ignored(root: Descriptor) -> set[str]:
    """Return the message types in ``root`` that have an ignored field, directly or in a nested message.

    Types that contain each other can have too many paths between them to walk, so only paths through
    these types are walked.
    """
    inside: dict[str, set[str]] = {}
    types: set[str] = set()
    left = [root]
    while left:
        descriptor = left.pop()
        if descriptor.full_name in inside:
            continue
        if any(_role(field) == options_pb2.ROLE_IGNORED for field in descriptor.fields):
            types.add(descriptor.full_name)
        inner = [found for found in map(message_type, descriptor.fields) if found is not None]
        inside[descriptor.full_name] = {found.full_name for found in inner}
        left += inner
    while more := {name for name, inner in inside.items() if inner & types} - types:
        types |= more
    return types


def _role(field: object) -> int:
    return int(field.GetOptions().Extensions[options_pb2.role])  # type: ignore[attr-defined]  # a FieldDescriptor of either runtime


def _policy(message: options_pb2.Policy) -> Policy:
    """Convert a declared policy. Raises ValueError for values that are invalid or unknown to this release."""
    if message.key not in _KEY_RULES or message.on_unclear not in _ON_UNCLEAR:
        raise ValueError(
            f"key {message.key} or on_unclear {message.on_unclear} is not known to this release of idem-grpc"
        )
    return Policy(
        operation=message.operation or None,
        key=_KEY_RULES[message.key],
        retention=_duration(message, "retention"),
        lease=_duration(message, "lease"),
        wait=_duration(message, "wait"),
        on_unclear=_ON_UNCLEAR[message.on_unclear],
        replay_errors=tuple(message.replay_errors) or None,
        max_response_bytes=message.max_response_bytes if message.HasField("max_response_bytes") else None,
    )


def _duration(message: options_pb2.Policy, name: str) -> timedelta | None:
    if not message.HasField(name):  # type: ignore[arg-type]  # the stubs accept literal names only
        return None
    duration: Duration = getattr(message, name)
    try:
        return duration.ToTimedelta()
    except OverflowError:
        raise ValueError(f"{name} is {duration.seconds} s, which is longer than any store keeps") from None


PATTERN = re.compile(r"/[\w.]+/(\w+|\*)")
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.", "/idem.v1.TokenService/")
_STRENGTH = (KeyRule.OPTIONAL, KeyRule.REQUIRED, KeyRule.TOKEN)
_SIMILARITY = 0.85  # of names: matches one or two letters swapped or missing, and no other word


class Methods:
    """The rules of every method, from ``policies``, the contract and ``default``.

    ``policies`` maps "/pkg.Service/Method" or "/pkg.Service/*" to a Policy. ``services`` are names or
    descriptors of services to check completely now; if any are given, a pattern that matches none of
    their methods is an error. A pattern that names a method which its service lacks is an error as soon
    as the service's descriptor is known. Raises ValueError or TypeError that names the pattern or service
    at fault.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        default: Policy,
        services: Iterable[str | ServiceDescriptor] = (),
    ) -> None:
        for pattern, policy in policies.items():
            if not PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"policies: {pattern!r} is neither '/pkg.Service/Method' nor '/pkg.Service/*'"
                )
            if not isinstance(policy, Policy):
                raise TypeError(f"policies[{pattern!r}] is {policy!r}: give a Policy")
        self._policies = dict(policies)
        self._default = default
        self._resolved = lru_cache(_CACHE_SIZE)(self._resolve)
        self._checked = [
            _known_service(service) if isinstance(service, str) else service for service in services
        ]
        self._check()

    def rules(self, method: str) -> Rules | None:
        """Return the rules of a method; None if it passes through. Raises ValueError if they are invalid."""
        return self._resolved(method, find_method(method))

    def _resolve(self, method: str, descriptor: MethodDescriptor | None) -> Rules | None:
        service_wide = pattern_of_service(method)
        named = method in self._policies
        if is_infrastructure(method) and not (named or service_wide in self._policies):
            return None
        if has_no_side_effects(descriptor) and not named:
            return None
        if descriptor is not None:
            self._check_late(descriptor.containing_service)
        given = [self._policies.get(method), self._policies.get(service_wide)]
        in_code = [policy for policy in given if policy is not None]
        if descriptor is None:
            return Rules.of(method, [*in_code, self._default])
        return _with_contract(descriptor, in_code, self._default)

    def _check_late(self, service: ServiceDescriptor) -> None:
        """Check the patterns of a service whose module may have been imported after construction."""
        for pattern in self._policies:
            if service_of(pattern) == service.full_name:
                check_method("policies", pattern, service)

    def _check(self) -> None:
        methods = {name_of(method) for service in self._checked for method in service.methods}
        known = methods | {f"/{service.full_name}/*" for service in self._checked}
        unknown = sorted(self._policies.keys() - known)
        if known and unknown:
            meant = "".join(did_you_mean(pattern, known) for pattern in unknown)
            raise ValueError(
                f"policies: {unknown} match no method of services=…: fix the name, or list the service"
                f" too{meant}"
            )
        for pattern in unknown:
            if (service := find_service(service_of(pattern))) is not None:
                check_method("policies", pattern, service)
        for method in methods:
            self.rules(method)

    def check_operations(self, issued: Collection[str]) -> None:
        """Raise ValueError if an operation that tokens are issued for is misspelt.

        Methods that accept its tokens can be on other servers, so the operation need not be known here. It
        is an error if it resembles a known operation that no tokens are issued for.
        """
        in_code = {policy.operation for policy in (*self._policies.values(), self._default)}
        checked = [self.rules(name_of(method)) for service in self._checked for method in service.methods]
        known = {name for name in in_code if name} | {rules.operation for rules in checked if rules}
        for name in set(issued) - known:
            if (service := find_service(service_of(name))) is not None:
                check_method("operations", name, service)
            if meant := did_you_mean(name, known - set(issued), cutoff=_SIMILARITY):
                raise ValueError(f"operations: no policy names the operation {name!r}{meant}")


def _known_service(name: str) -> ServiceDescriptor:
    descriptor = find_service(name)
    if descriptor is None:
        raise ValueError(
            f"services: no service {name!r} is known: fix the name (as in 'pkg.Service'),"
            " or import its generated module first"
        )
    return descriptor


def declared_rules(descriptor: MethodDescriptor) -> Rules:
    """Return the rules of a method that has no policies in code.

    Raises ValueError, naming file and method, if its contract contradicts itself.
    """
    return _with_contract(descriptor, (), Policy())


def _with_contract(descriptor: MethodDescriptor, in_code: Iterable[Policy], default: Policy) -> Rules:
    """Combine policies in code with the contract. Raises ValueError if they contradict each other."""
    method = name_of(descriptor)
    where = f"{descriptor.containing_service.file.name}: {method}"
    policies = declared_policies(descriptor)
    try:
        rules = Rules.of(method, [*in_code, *policies, default])
    except ValueError as error:
        if all(policy == Policy() for policy in policies):
            raise
        raise ValueError(f"{descriptor.containing_service.file.name}: {error}") from error
    declared = declared_key_rule(descriptor)
    if declared is not None and _STRENGTH.index(rules.key) < _STRENGTH.index(declared):
        raise ValueError(
            f"{where} declares key {declared.name}, which code may not weaken to {rules.key.name}:"
            " change the contract, or leave the policy's key out"
        )
    fields = key_fields(descriptor)
    if fields is not None and (rules.key is not KeyRule.REQUIRED or descriptor.client_streaming):
        raise ValueError(
            f"{where} has ROLE_KEY fields, which make the key of a single request: use them only with"
            f" KEY_RULE_REQUIRED (here it is {rules.key.name}), and not with a request stream"
        )
    check_ignored(descriptor.input_type, rules.ignore)
    ignore = {*rules.ignore, *ignored_fields(descriptor.input_type)}
    return replace(rules, ignore=tuple(sorted(ignore)), key_fields=fields)


def find_service(name: str) -> ServiceDescriptor | None:
    """Return the descriptor of "pkg.Service"; None if its generated module is not imported yet."""
    try:
        return descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        return None


def find_method(method: str) -> MethodDescriptor | None:
    """Return the descriptor of "/pkg.Service/Method"; None if its generated module is not imported yet."""
    try:
        return _known_method(method)
    except KeyError:
        return None


@lru_cache(_CACHE_SIZE)  # exceptions are not cached: the module may be imported later
def _known_method(method: str) -> MethodDescriptor:
    return descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))


def request_type(method: str) -> type[Message] | None:
    """Return the class of a method's requests; None if its descriptor is not known yet."""
    descriptor = find_method(method)
    return None if descriptor is None else GetMessageClass(descriptor.input_type)


def is_infrastructure(method: str) -> bool:
    """Return whether a method, such as a health check, passes through unless code names it."""
    return method.startswith(_INFRASTRUCTURE)


def has_no_side_effects(descriptor: MethodDescriptor | None) -> bool:
    """Return whether the contract declares a method NO_SIDE_EFFECTS, so that it needs no key."""
    return descriptor is not None and _level(descriptor) == MethodOptions.NO_SIDE_EFFECTS


def is_idempotent(descriptor: MethodDescriptor | None) -> bool:
    """Return whether the contract declares a method safe to send again without a key."""
    return descriptor is not None and _level(descriptor) != MethodOptions.IDEMPOTENCY_UNKNOWN


def _level(descriptor: MethodDescriptor) -> int:
    return int(descriptor.GetOptions().idempotency_level)


def service_of(pattern: str) -> str:
    """Return the service of a method or a pattern, in the form "pkg.Service"."""
    return pattern.lstrip("/").rpartition("/")[0]


def check_method(setting: str, pattern: str, service: ServiceDescriptor) -> None:
    """Raise ValueError, naming ``setting``, if a pattern names a method that its service does not have."""
    name = pattern.rpartition("/")[2]
    if name == "*" or name in service.methods_by_name:
        return
    known = [method.name for method in service.methods]
    raise ValueError(
        f"{setting}: there is no method {pattern!r}: {service.full_name} has {', '.join(known)}"
        f"{did_you_mean(name, known)}"
    )


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a hint with the known names that are close to a misspelt one; empty if none is."""
    close = get_close_matches(name, sorted(known), cutoff=cutoff)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def pattern_of_service(method: str) -> str:
    """Return the pattern that matches all methods of a method's service."""
    return method[: method.rfind("/")] + "/*"


_FILE = Path("idem_grpc_pb", "v1", "options.proto")


def proto_path() -> str:
    """Return the folder to give protoc as ``-I``, so that it finds "idem_grpc_pb/v1/options.proto".

    A wheel has the proto files in the same folder as their stubs; a checkout has them in ``protos/``. Raises
    FileNotFoundError if neither has them, because the installation is incomplete.
    """
    stubs = find_spec("idem_grpc_pb.v1.options_pb2")
    if stubs is None or stubs.origin is None:
        raise FileNotFoundError("the stubs of idem_grpc_pb are not installed: reinstall idem-grpc")
    root = Path(stubs.origin).parents[2]
    for folder in (root, root.parent / "protos"):
        if (folder / _FILE).is_file():
            return str(folder)
    raise FileNotFoundError(f"{_FILE} is not installed next to its stubs: reinstall idem-grpc")
