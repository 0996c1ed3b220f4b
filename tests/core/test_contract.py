"""What a contract declares, and whether code or contract decides where they differ."""

from datetime import timedelta

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from idem_grpc_pb.v1 import options_pb2
from tests_pb.v1 import contract_pb2, ledger_pb2

from idem_grpc._core.keys import Outgoing
from idem_grpc._core.methods import (
    Methods,
    declared_key_rule,
    declared_rules,
    find_method,
    ignored_fields,
    key_field_names,
    key_fields,
)
from idem_grpc._core.outcome import Code
from idem_grpc._core.policy import KeyRule, Policy
from idem_grpc._core.record import OnUnclear

CONTRACT = "/tests.v1.ContractService/"
CONTRADICTION = "/tests.v1.ContradictionService/"


def rules(method, policies=None, default=None):
    found = Methods(policies or {}, default or Policy()).rules(CONTRACT + method)
    assert found is not None
    return found


def test_a_method_without_options_has_the_options_of_its_service():
    plain = rules("Plain")
    assert (plain.key, plain.retention, plain.on_unclear) == (KeyRule.REQUIRED, 600, OnUnclear.FAIL)
    assert plain.operation == CONTRACT + "Plain"


def test_every_option_of_a_contract():
    full = rules("Full")
    assert full.operation == "tests.full"
    assert full.key is KeyRule.TOKEN
    assert (full.retention, full.lease, full.wait) == (900, 5, 1.5)
    assert full.on_unclear is OnUnclear.RERUN
    assert full.replay_errors == {Code.NOT_FOUND, Code.ABORTED}
    assert full.max_response_bytes == 0


def test_policies_in_code_override_the_contract_field_by_field():
    policies = {
        CONTRACT + "Full": Policy(wait=2),
        CONTRACT + "*": Policy(wait=3, lease=4, max_run=100),
    }
    full = rules("Full", policies, default=Policy(max_run=200, max_response_bytes=7))
    assert (full.wait, full.lease, full.max_run) == (2, 4, 100)
    assert (full.retention, full.max_response_bytes) == (900, 0)


def test_the_contract_overrides_the_default_policy():
    assert rules("Plain", default=Policy(retention=timedelta(hours=1))).retention == 600
    assert rules("Plain", default=Policy(wait=1)).wait == 1


@pytest.mark.parametrize(
    ("method", "weaker"),
    [("Plain", KeyRule.OPTIONAL), ("Full", KeyRule.REQUIRED), ("FromFields", KeyRule.OPTIONAL)],
)
def test_code_cannot_weaken_a_declared_key_rule(method, weaker):
    with pytest.raises(ValueError, match=rf"contract\.proto: {CONTRACT}{method} declares key .* weaken"):
        Methods({CONTRACT + method: Policy(key=weaker)}, Policy(), services=["tests.v1.ContractService"])


def test_code_can_strengthen_a_declared_key_rule():
    assert rules("Plain", {CONTRACT + "Plain": Policy(key=KeyRule.TOKEN)}).key is KeyRule.TOKEN


def test_a_key_is_made_of_the_fields_with_role_key():
    source = rules("FromFields").key_fields
    assert source is not None
    request = contract_pb2.FromFieldsRequest(request_id="a:b", amount=3)
    assert source(Outgoing(CONTRACT + "FromFields", request, ())) == "a%3Ab"
    with pytest.raises(ValueError, match="request_id"):
        source(Outgoing(CONTRACT + "FromFields", contract_pb2.FromFieldsRequest(), ()))


def test_ignored_fields_are_found_in_nested_and_recursive_messages():
    assert list(ignored_fields(contract_pb2.FromFieldsRequest.DESCRIPTOR)) == [
        "trace",
        "part.seen_by",
        "parts.seen_by",
    ]
    assert rules("FromFields", {CONTRACT + "FromFields": Policy(ignore=["amount"])}).ignore == (
        "amount",
        "part.seen_by",
        "parts.seen_by",
        "trace",
    )


def test_methods_without_side_effects_have_no_rules():
    assert Methods({}, Policy()).rules(CONTRACT + "Read") is None


@pytest.mark.parametrize(
    ("method", "says"),
    [("Stream", "ROLE_KEY"), ("Short", "four leases"), ("Code", "NOT_A_CODE")],
)
def test_a_contradiction_in_a_contract_names_its_file_and_method(method, says):
    with pytest.raises(ValueError, match=rf"^tests_pb/v1/contract\.proto: {CONTRADICTION}{method}") as error:
        Methods({}, Policy()).rules(CONTRADICTION + method)
    assert says in str(error.value)


def test_a_contradiction_in_code_alone_does_not_name_a_proto_file():
    unary = "/tests.v1.LedgerService/Unary"
    with pytest.raises(ValueError, match=rf"^{unary}: .*four leases"):
        Methods({unary: Policy(retention=10, lease=5)}, Policy()).rules(unary)


def test_the_order_of_fields_in_a_proto_does_not_change_the_key():
    file = FileDescriptorProto(name="moved.proto", package="moved", syntax="proto3")
    message = file.message_type.add(name="Message")
    for number, name in ((2, "second"), (1, "first")):
        field = message.field.add(name=name, number=number, type="TYPE_STRING", label="LABEL_OPTIONAL")
        field.options.Extensions[options_pb2.role] = options_pb2.ROLE_KEY
    method = file.service.add(name="Service").method.add(name="Method")
    method.input_type = method.output_type = ".moved.Message"
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    assert key_field_names(pool.FindMethodByName("moved.Service.Method")) == ["first", "second"]


def declared(**policy):
    """A method with this policy, of a file that is compiled for the test."""
    file = FileDescriptorProto(name="made.proto", package="made", syntax="proto3")
    file.message_type.add(name="Message")
    method = file.service.add(name="Service").method.add(name="Method")
    method.input_type = method.output_type = ".made.Message"
    method.options.Extensions[options_pb2.policy].MergeFrom(options_pb2.Policy(**policy))
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindMethodByName("made.Service.Method")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"key": 99}, "not known to this release"),
        ({"on_unclear": 99}, "not known to this release"),
        ({"retention": Duration(seconds=2**62)}, "longer than any store keeps"),
        ({"lease": Duration(seconds=-1)}, "give between"),
    ],
)
def test_a_contract_with_invalid_values_is_refused_and_not_ignored(policy, says):
    with pytest.raises(ValueError, match=rf"made\.proto: .*{says}"):
        declared_rules(declared(**policy))


def test_recursive_types_are_searched_only_if_they_lead_to_ignored_fields():
    file = FileDescriptorProto(name="tangle.proto", package="tangle", syntax="proto3")
    names = [f"Type{number}" for number in range(12)]
    for name in names:  # 12! paths between them
        message = file.message_type.add(name=name)
        for number, other in enumerate(names, 1):
            field = message.field.add(name=other.lower(), number=number, type="TYPE_MESSAGE")
            field.type_name, field.label = f".tangle.{other}", field.LABEL_OPTIONAL
    root = file.message_type.add(name="Root")
    for number, name in ((1, "trace"), (2, "tangle"), (3, "leaf")):
        field = root.field.add(name=name, number=number, label="LABEL_OPTIONAL", type="TYPE_STRING")
        if name == "tangle":
            field.type, field.type_name = field.TYPE_MESSAGE, ".tangle.Type0"
    root.field[0].options.Extensions[options_pb2.role] = options_pb2.ROLE_IGNORED
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    assert list(ignored_fields(pool.FindMessageTypeByName("tangle.Root"))) == ["trace"]


def test_all_methods_of_a_listed_service_are_checked_at_the_start():
    with pytest.raises(ValueError, match=r"tests\.v1\.ContradictionService"):
        Methods({}, Policy(), services=["tests.v1.ContradictionService"])


def test_clients_read_key_rule_and_key_fields_from_the_contract():
    assert declared_key_rule(find_method(CONTRACT + "Plain")) is KeyRule.REQUIRED
    assert key_fields(find_method(CONTRACT + "Plain")) is None
    assert key_fields(find_method(CONTRACT + "FromFields")) is not None
    assert declared_key_rule(ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].methods[0]) is None
