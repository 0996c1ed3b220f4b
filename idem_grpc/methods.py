"""Which rules a method has: patterns, layers and the contract, resolved once.

Code below this never matches names.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from idem_grpc.contract import declared_key_rule, declared_policies, ignored_fields, key_fields, name_of
from idem_grpc.fingerprint import check_ignored
from idem_grpc.policy import KeyRule, Policy, Rules

PATTERN = re.compile(r"/[\w.]+/(\w+|\*)")
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.", "/idem.v1.TokenService/")
_STRENGTH = (KeyRule.OPTIONAL, KeyRule.REQUIRED, KeyRule.TOKEN)
_ALIKE = 0.85  # of names: one of two letters swapped or missing, and not another word


class Methods:
    """The rules of every method, from ``policies``, the contract and ``default``.

    ``policies`` maps "/pkg.Service/Method" or "/pkg.Service/*". ``services`` are names
    or descriptors of services to check whole now; with any given, a pattern that
    matches none of their methods is an error. A pattern that names no method of its
    service is one as soon as the service's descriptor is known. Raises ValueError or
    TypeError, saying which pattern or service is at fault.
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
        self._resolved = lru_cache(_REMEMBERED)(self._resolve)
        self._checked = [
            _known_service(service) if isinstance(service, str) else service for service in services
        ]
        self._check()

    def rules(self, method: str) -> Rules | None:
        """The rules of a method; None if it passes through. Raises ValueError at a fault."""
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
        """Judge the patterns of a service whose module may have been imported since construction."""
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
        """Raise ValueError if an operation that tokens are issued for is a misspelt one.

        Methods that take its tokens can be on other servers, so it need not be known here; but
        then it is not all but the name of one that is, and that no tokens are issued for.
        """
        in_code = {policy.operation for policy in (*self._policies.values(), self._default)}
        checked = [self.rules(name_of(method)) for service in self._checked for method in service.methods]
        known = {name for name in in_code if name} | {rules.operation for rules in checked if rules}
        for name in set(issued) - known:
            if (service := find_service(service_of(name))) is not None:
                check_method("operations", name, service)
            if meant := did_you_mean(name, known - set(issued), cutoff=_ALIKE):
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
    """The rules of a method of which code says nothing.

    Raises ValueError, naming file and method, where its contract contradicts itself.
    """
    return _with_contract(descriptor, (), Policy())


def _with_contract(descriptor: MethodDescriptor, in_code: Iterable[Policy], default: Policy) -> Rules:
    """Rules as the contract completes them. Raises ValueError where the two contradict each other."""
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
            f"{where} has fields of ROLE_KEY, which make the key of a single request: they go with"
            f" KEY_RULE_REQUIRED alone (here it is {rules.key.name}), and not with a request stream"
        )
    check_ignored(descriptor.input_type, rules.ignore)
    ignore = {*rules.ignore, *ignored_fields(descriptor.input_type)}
    return replace(rules, ignore=tuple(sorted(ignore)), key_fields=fields)


def find_service(name: str) -> ServiceDescriptor | None:
    """The descriptor of "pkg.Service", if its generated module is imported by now."""
    try:
        return descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        return None


def find_method(method: str) -> MethodDescriptor | None:
    """The descriptor of "/pkg.Service/Method", if its generated module is imported by now."""
    try:
        return _known_method(method)
    except KeyError:
        return None


@lru_cache(_REMEMBERED)  # which forgets what raised: the module may yet be imported
def _known_method(method: str) -> MethodDescriptor:
    return descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))


def request_type(method: str) -> type[Message] | None:
    """The class of a method's requests, if its descriptor is known by now."""
    descriptor = find_method(method)
    return None if descriptor is None else GetMessageClass(descriptor.input_type)


def is_infrastructure(method: str) -> bool:
    """Whether "/pkg.Service/Method" passes through unless code names it: health checks and the like."""
    return method.startswith(_INFRASTRUCTURE)


def has_no_side_effects(descriptor: MethodDescriptor | None) -> bool:
    """Whether the contract declares a method NO_SIDE_EFFECTS: it needs no key."""
    return descriptor is not None and _level(descriptor) == MethodOptions.NO_SIDE_EFFECTS


def is_idempotent(descriptor: MethodDescriptor | None) -> bool:
    """Whether the contract declares a method safe to send again without a key."""
    return descriptor is not None and _level(descriptor) != MethodOptions.IDEMPOTENCY_UNKNOWN


def _level(descriptor: MethodDescriptor) -> int:
    return int(descriptor.GetOptions().idempotency_level)


def service_of(pattern: str) -> str:
    """The service that a method or a pattern belongs to: "pkg.Service"."""
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
    """The names that a misspelt one may stand for, as a part of a sentence; empty if none is close."""
    close = get_close_matches(name, sorted(known), cutoff=cutoff)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def pattern_of_service(method: str) -> str:
    """The pattern that stands for all methods of a method's service."""
    return method[: method.rfind("/")] + "/*"
