"""What a method's contract makes of a call that is sent twice."""

from dataclasses import dataclass
from enum import Enum

from google.protobuf.descriptor import MethodDescriptor
from idem_grpc_pb.v1 import options_pb2

from idem_grpc.contract import declared_key_rule, key_field_names, name_of
from idem_grpc.methods import (
    declared_rules,
    has_no_side_effects,
    is_idempotent,
    is_infrastructure,
)
from idem_grpc.policy import KeyRule, Rules


class Class(Enum):
    """The classes of methods, as lint shows them."""

    NO_SIDE_EFFECTS = "no side effects"
    INFRASTRUCTURE = "infrastructure"
    IDEMPOTENT = "idempotent"
    OPTIONAL = "keyed (optional)"
    REQUIRED = "keyed (required)"
    TOKEN = "token"
    FROM_FIELDS = "from fields"
    UNPROTECTED = "unprotected"
    CONTRADICTORY = "contradictory"


_BY_RULE = {
    KeyRule.OPTIONAL: Class.OPTIONAL,
    KeyRule.REQUIRED: Class.REQUIRED,
    KeyRule.TOKEN: Class.TOKEN,
}
_RETRYABLE = {
    Class.NO_SIDE_EFFECTS,
    Class.IDEMPOTENT,
    Class.REQUIRED,
    Class.TOKEN,
    Class.FROM_FIELDS,
}


@dataclass(frozen=True, slots=True)
class Classified:
    """A method with its class; ``rules`` are those of a method that takes keys."""

    name: str
    file: str
    group: Class
    rules: Rules | None = None
    fields: tuple[str, ...] = ()
    problem: str = ""

    @property
    def retryable(self) -> bool:
        """Whether a client that knows no more than the contract may send a call again.

        Not where the key is optional: a call that has none would run twice.
        """
        return self.group in _RETRYABLE


def classify(method: MethodDescriptor) -> Classified:
    """The class of a method, by its contract alone."""
    name, file = name_of(method), method.containing_service.file.name
    reads = has_no_side_effects(method)
    try:
        if reads and method.GetOptions().HasExtension(options_pb2.policy):
            raise ValueError(
                f"{file}: {name} is NO_SIDE_EFFECTS, which needs no key, and has an (idem.v1.policy):"
                " keep one of the two"
            )
        if reads:
            return Classified(name, file, Class.NO_SIDE_EFFECTS)
        if is_infrastructure(name):
            return Classified(name, file, Class.INFRASTRUCTURE)
        rules, rule = declared_rules(method), declared_key_rule(method)
    except ValueError as error:
        return Classified(name, file, Class.CONTRADICTORY, problem=str(error))
    if fields := key_field_names(method):
        return Classified(name, file, Class.FROM_FIELDS, rules, tuple(fields))
    if rule is not None:
        return Classified(name, file, _BY_RULE[rule], rules)
    return Classified(name, file, Class.IDEMPOTENT if is_idempotent(method) else Class.UNPROTECTED)
