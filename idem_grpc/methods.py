"""Which rules a method has: patterns, layers and the contract, resolved once.

Code below this never matches names.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from idem_grpc.fingerprint import check_ignored
from idem_grpc.policy import Policy, Rules

PATTERN = re.compile(r"/[\w.]+/(\w+|\*)")
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.", "/idem.v1.TokenService/")
_REMEMBERED = 4096  # generic handlers take any name, so a caller could have us remember without end


class Methods:
    """The rules of every method, from ``policies``, the contract and ``default``.

    ``policies`` maps "/pkg.Service/Method" or "/pkg.Service/*". ``services`` are names
    or descriptors of services to check whole now; with any given, a pattern that
    matches none of their methods is an error. Raises ValueError or TypeError, saying
    which pattern or service is at fault.
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
        self.rules = lru_cache(_REMEMBERED)(self._rules)
        self._check(services)

    def _rules(self, method: str) -> Rules | None:
        """The rules of a method; None if it passes through. Raises ValueError at a fault."""
        service_wide = pattern_of_service(method)
        named = method in self._policies
        if method.startswith(_INFRASTRUCTURE) and not (named or service_wide in self._policies):
            return None
        descriptor = find_method(method)
        if has_no_side_effects(descriptor) and not named:
            return None
        given = (self._policies.get(method), self._policies.get(service_wide), self._default)
        rules = Rules.of(method, [policy for policy in given if policy is not None])
        if descriptor is not None:
            check_ignored(descriptor.input_type, rules.ignore)
        return rules

    def _check(self, services: Iterable[str | ServiceDescriptor]) -> None:
        known: set[str] = set()
        for service in services:
            descriptor = _find_service(service) if isinstance(service, str) else service
            methods = {f"/{descriptor.full_name}/{method.name}" for method in descriptor.methods}
            known |= methods | {f"/{descriptor.full_name}/*"}
            for method in methods:
                self.rules(method)
        unknown = self._policies.keys() - known
        if known and unknown:
            raise ValueError(
                f"policies: {sorted(unknown)} match no method of services=…: mend the name,"
                " or list the service too"
            )


def _find_service(name: str) -> ServiceDescriptor:
    try:
        return descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        raise ValueError(
            f"services: no service {name!r} is known: mend the name (as in 'pkg.Service'),"
            " or import its generated module first"
        ) from None


@lru_cache(_REMEMBERED)
def find_method(method: str) -> MethodDescriptor | None:
    """The descriptor of "/pkg.Service/Method", if its generated module is imported."""
    try:
        return descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
    except KeyError:
        return None


def has_no_side_effects(descriptor: MethodDescriptor | None) -> bool:
    """Whether the contract declares a method NO_SIDE_EFFECTS: it needs no key."""
    return descriptor is not None and _level(descriptor) == MethodOptions.NO_SIDE_EFFECTS


def is_idempotent(descriptor: MethodDescriptor | None) -> bool:
    """Whether the contract declares a method safe to send again without a key."""
    return descriptor is not None and _level(descriptor) != MethodOptions.IDEMPOTENCY_UNKNOWN


def _level(descriptor: MethodDescriptor) -> int:
    return int(descriptor.GetOptions().idempotency_level)


def pattern_of_service(method: str) -> str:
    """The pattern that stands for all methods of a method's service."""
    return method[: method.rfind("/")] + "/*"
