"""A generated module that a test imports when it wants to."""

from uuid import uuid4

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from idem_grpc_pb.v1 import options_pb2


class LateModule:
    """A service that is in the descriptor pool only after ``load``, as if its module was imported then."""

    def __init__(self) -> None:
        self.package = f"tests.late_{uuid4().hex}"

    def method(self, name: str) -> str:
        return f"/{self.package}.Late/{name}"

    def load(self) -> None:
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
