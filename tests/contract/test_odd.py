"""Key fields that no key can be made of."""

from uuid import uuid4

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from idem_grpc_pb.v1 import options_pb2

from idem_grpc._core.methods import Methods
from idem_grpc._core.policy import Policy

REPEATED = FieldDescriptorProto(
    label=FieldDescriptorProto.LABEL_REPEATED, type=FieldDescriptorProto.TYPE_STRING
)
MESSAGE = FieldDescriptorProto(
    label=FieldDescriptorProto.LABEL_OPTIONAL,
    type=FieldDescriptorProto.TYPE_MESSAGE,
    type_name=".google.protobuf.MethodOptions",
)


@pytest.mark.parametrize("field", [REPEATED, MESSAGE], ids=["repeated", "message"])
def test_a_key_field_is_a_single_value(field):
    package = f"odd_{uuid4().hex}"
    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.dependency.append("google/protobuf/descriptor.proto")
    own = file.message_type.add(name="OddRequest").field.add()
    own.CopyFrom(field)
    own.name, own.number = "odd", 1
    own.options.Extensions[options_pb2.role] = options_pb2.ROLE_KEY
    name = f".{package}.OddRequest"
    file.service.add(name="OddService").method.add(name="Odd", input_type=name, output_type=name)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    with pytest.raises(ValueError, match=rf"{package}\.proto: .*OddService.Odd: .*'odd'"):
        Methods({}, Policy(), services=[f"{package}.OddService"])
