"""What a contract declares about keys: the options of options.proto, read from descriptors."""

from collections.abc import Iterator
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from idem_grpc_pb.v1 import options_pb2, record_pb2

from idem_grpc.policy import KeyRule, Policy
from idem_grpc.record import OnUnclear
from idem_grpc.sources import FromRequest

_REMEMBERED = 4096
_KEY_RULES = {
    options_pb2.KEY_RULE_OPTIONAL: KeyRule.OPTIONAL,
    options_pb2.KEY_RULE_REQUIRED: KeyRule.REQUIRED,
    options_pb2.KEY_RULE_TOKEN: KeyRule.TOKEN,
}
_ON_UNCLEAR = {
    record_pb2.ON_UNCLEAR_RERUN: OnUnclear.RERUN,
    record_pb2.ON_UNCLEAR_FAIL: OnUnclear.FAIL,
}


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
        raise ValueError(f"{service.file.name}: {method.full_name}: {error}") from error
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
    yield from _ignored(descriptor, "", ())


def _ignored(descriptor: Descriptor, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    for field in descriptor.fields:
        if _role(field) == options_pb2.ROLE_IGNORED:
            yield prefix + field.name
            continue
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and inner.full_name not in (*above, descriptor.full_name):
            yield from _ignored(inner, f"{prefix}{field.name}.", (*above, descriptor.full_name))


def _role(field: object) -> int:
    return int(field.GetOptions().Extensions[options_pb2.role])  # type: ignore[attr-defined]  # a FieldDescriptor of either runtime


def _policy(message: options_pb2.Policy) -> Policy:
    return Policy(
        operation=message.operation or None,
        key=_KEY_RULES.get(message.key),
        retention=message.retention.ToTimedelta() if message.HasField("retention") else None,
        lease=message.lease.ToTimedelta() if message.HasField("lease") else None,
        wait=message.wait.ToTimedelta() if message.HasField("wait") else None,
        on_unclear=_ON_UNCLEAR.get(message.on_unclear),
        replay_errors=tuple(message.replay_errors) or None,
        max_response_bytes=message.max_response_bytes if message.HasField("max_response_bytes") else None,
    )
