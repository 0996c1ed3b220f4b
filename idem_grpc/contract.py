"""What a contract declares about keys: the options of options.proto, read from descriptors."""

from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from idem_grpc_pb.v1 import options_pb2, record_pb2

from idem_grpc.policy import KeyRule, Policy
from idem_grpc.record import OnUnclear
from idem_grpc.sources import FromRequest

_REMEMBERED = 4096  # generic handlers take any name, so a caller could have us remember without end
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
    """A method as it is called: "/pkg.Service/Method"."""
    return f"/{descriptor.containing_service.full_name}/{descriptor.name}"


def declared_policies(method: MethodDescriptor) -> list[Policy]:
    """The policies that a contract declares for a method, the nearest first.

    Raises ValueError, naming file and method, for a declaration that makes no sense.
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


@lru_cache(_REMEMBERED)
def declared_key_rule(method: MethodDescriptor) -> KeyRule | None:
    """Which calls of a method need a key, by its contract alone; None if that does not say."""
    return next((policy.key for policy in declared_policies(method) if policy.key is not None), None)


@lru_cache(_REMEMBERED)
def key_fields(method: MethodDescriptor) -> FromRequest | None:
    """A key source of the request's fields that have ROLE_KEY, in the order of their numbers."""
    names = key_field_names(method)
    if not names:
        return None
    source = FromRequest(":".join(f"{{{name}}}" for name in names))
    source.check(method.input_type)
    return source


def key_field_names(method: MethodDescriptor) -> list[str]:
    """The fields of a method's request that have ROLE_KEY, in the order of their numbers.

    Moving a field about in its proto breaks nobody, so it must not change a key either.
    """
    fields = sorted(method.input_type.fields, key=lambda field: field.number)
    return [field.name for field in fields if _role(field) == options_pb2.ROLE_KEY]


def ignored_fields(descriptor: Descriptor) -> Iterator[str]:
    """Dotted paths of the fields that have ROLE_IGNORED, those of messages inside too."""
    yield from _ignored(descriptor, "", (), _leading_to_ignored(descriptor))


def _ignored(descriptor: Descriptor, prefix: str, above: tuple[str, ...], worth: set[str]) -> Iterator[str]:
    for field in descriptor.fields:
        if _role(field) == options_pb2.ROLE_IGNORED:
            yield prefix + field.name
            continue
        inner = _inside(field)
        if inner is None or inner.full_name not in worth:
            continue
        if inner.full_name not in (*above, descriptor.full_name):
            yield from _ignored(inner, f"{prefix}{field.name}.", (*above, descriptor.full_name), worth)


def _leading_to_ignored(root: Descriptor) -> set[str]:
    """The message types in ``root`` that have an ignored field, or lead to one.

    Types that contain each other have more paths between them than anyone can walk, so
    only those that lead somewhere are.
    """
    inside: dict[str, set[str]] = {}
    worth: set[str] = set()
    left = [root]
    while left:
        descriptor = left.pop()
        if descriptor.full_name in inside:
            continue
        if any(_role(field) == options_pb2.ROLE_IGNORED for field in descriptor.fields):
            worth.add(descriptor.full_name)
        inner = [found for found in map(_inside, descriptor.fields) if found is not None]
        inside[descriptor.full_name] = {found.full_name for found in inner}
        left += inner
    while more := {name for name, inner in inside.items() if inner & worth} - worth:
        worth |= more
    return worth


def _inside(field: FieldDescriptor) -> Descriptor | None:
    """The message type of a field, or of the values of a map."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return inner.fields_by_name["value"].message_type
    return inner


def _role(field: object) -> int:
    return int(field.GetOptions().Extensions[options_pb2.role])  # type: ignore[attr-defined]  # a FieldDescriptor of either runtime


def _policy(message: options_pb2.Policy) -> Policy:
    """Raises ValueError for what makes no sense, or what a later release may know and this one does not."""
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
    if not message.HasField(name):  # type: ignore[arg-type]  # the stubs want the names themselves
        return None
    duration: Duration = getattr(message, name)
    try:
        return duration.ToTimedelta()
    except OverflowError:
        raise ValueError(f"{name} is {duration.seconds} s, which is longer than any store keeps") from None
