"""A method that is asked for before its generated module is imported has its contract after that."""

from uuid import uuid4

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from idem_grpc_pb.v1 import options_pb2

from idem_grpc._core.methods import Methods, find_method, has_no_side_effects
from idem_grpc._core.policy import KeyRule, Policy


class LateModule:
    """What a generated module does to the descriptor pool, when ``load`` is called."""

    def __init__(self):
        self.package = f"tests.late_{uuid4().hex}"

    def method(self, name):
        return f"/{self.package}.Late/{name}"

    def load(self):
        file = FileDescriptorProto(name=f"{self.package}.proto", package=self.package, syntax="proto3")
        file.dependency.append(options_pb2.DESCRIPTOR.name)
        file.message_type.add(name="Message")
        service = file.service.add(name="Late")
        for name in ("Pay", "Look"):
            message = f".{self.package}.Message"
            service.method.add(name=name, input_type=message, output_type=message)
        service.method[0].options.Extensions[options_pb2.policy].key = options_pb2.KEY_RULE_REQUIRED
        service.method[1].options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@pytest.fixture
def late():
    return LateModule()


def test_a_method_is_found_once_its_module_is_there(late):
    assert find_method(late.method("Look")) is None
    late.load()
    assert has_no_side_effects(find_method(late.method("Look")))
    assert find_method(late.method("None")) is None


def test_rules_follow_the_contract_once_it_is_there(late):
    methods = Methods({}, Policy())
    before = methods.rules(late.method("Pay"))
    assert before is not None
    assert before.key is KeyRule.OPTIONAL
    assert methods.rules(late.method("Look")) is not None
    late.load()
    after = methods.rules(late.method("Pay"))
    assert after is not None
    assert after.key is KeyRule.REQUIRED
    assert methods.rules(late.method("Look")) is None


def test_what_is_known_is_resolved_once(late):
    methods = Methods({}, Policy())
    for _ in range(2):
        assert methods.rules(late.method("Pay")) is methods.rules(late.method("Pay"))
        if find_method(late.method("Pay")) is None:
            late.load()
