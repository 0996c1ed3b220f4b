"""A project of somebody else's: it compiles protos that import ours, against the wheel it installed.

Its proto, and what it is shown, are those of docs/contract.md.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.wheel import environment, run

# Building and installing fetch packages.
pytestmark = pytest.mark.timeout(600)

PAGE = (Path(__file__).parents[1] / "docs" / "contract.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

READ = """
import sys
sys.path.insert(0, "stubs")
from acme.billing.v1 import billing_pb2
from idem_grpc_pb.v1 import options_pb2, record_pb2
assert not {"grpc", "redis", "idem_grpc"} & sys.modules.keys()
service = billing_pb2.DESCRIPTOR.services_by_name["BillingService"]
default = service.GetOptions().Extensions[options_pb2.default_policy]
assert (default.retention.seconds, default.key) == (172800, options_pb2.KEY_RULE_REQUIRED)
policy = service.methods_by_name["Charge"].GetOptions().Extensions[options_pb2.policy]
assert (policy.operation, policy.on_unclear) == ("acme.charge", record_pb2.ON_UNCLEAR_FAIL)
fields = billing_pb2.ChargeRequest.DESCRIPTOR.fields
assert [field.GetOptions().Extensions[options_pb2.role] for field in fields] == [
    options_pb2.ROLE_KEY, options_pb2.ROLE_UNSPECIFIED, options_pb2.ROLE_IGNORED
]
"""

USE = """
from concurrent.futures import ThreadPoolExecutor

import grpc
from acme.billing.v1 import billing_pb2, billing_pb2_grpc
from idem_grpc_pb.v1 import options_pb2

from idem_grpc import SHARED, KeyRule, Policy, ServerInterceptor, current, open_store

SERVICE = "acme.billing.v1.BillingService"


class Billing(billing_pb2_grpc.BillingServiceServicer):
    def __init__(self) -> None:
        self.runs = 0

    def Charge(
        self, request: billing_pb2.ChargeRequest, context: grpc.ServicerContext
    ) -> billing_pb2.ChargeResponse:
        self.runs += 1
        run = current()
        assert run is not None and run.operation == "acme.charge"
        return billing_pb2.ChargeResponse(payment=run.derive("payment"))

    def Refund(
        self, request: billing_pb2.RefundRequest, context: grpc.ServicerContext
    ) -> billing_pb2.RefundResponse:
        return billing_pb2.RefundResponse()

    def GetCharge(
        self, request: billing_pb2.GetChargeRequest, context: grpc.ServicerContext
    ) -> billing_pb2.GetChargeResponse:
        return billing_pb2.GetChargeResponse()


def declared() -> options_pb2.Policy:
    method = billing_pb2.DESCRIPTOR.services_by_name["BillingService"].methods_by_name["Charge"]
    return method.GetOptions().Extensions[options_pb2.policy]


def main() -> None:
    number: int = declared().operation  # type: ignore[assignment]  # it is known to be a string
    assert number == "acme.charge"  # type: ignore[comparison-overlap]  # likewise
    with open_store("memory:") as store:
        try:
            weaker = {f"/{SERVICE}/Charge": Policy(key=KeyRule.OPTIONAL)}
            ServerInterceptor(store, scope=SHARED, policies=weaker, services=[SERVICE])
        except ValueError as error:
            assert "acme/billing/v1/billing.proto" in str(error), error
        else:
            raise AssertionError("code may not weaken what the contract declares")
        interceptor = ServerInterceptor(store, scope=SHARED, services=[SERVICE])
        server = grpc.server(ThreadPoolExecutor(4), interceptors=[interceptor])
        billing = Billing()
        billing_pb2_grpc.add_BillingServiceServicer_to_server(billing, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = billing_pb2_grpc.BillingServiceStub(channel)
            charge = billing_pb2.ChargeRequest(request_id="order-1", minor_units=1299, trace="a")
            first = stub.Charge(charge, timeout=30)
            charge.trace = "b"
            assert stub.Charge(charge, timeout=30).payment == first.payment
        server.stop(None).wait()
        assert billing.runs == 1


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The commands of an environment with the wheel and what its users compile and check with."""
    tools = ("grpcio-tools", "mypy-protobuf", "types-grpcio", "types-protobuf")
    return environment(tmp_path_factory.mktemp("foreign") / "venv", f"{wheel}[cli]", *tools)


@pytest.fixture
def project(tmp_path):
    proto = tmp_path / "protos" / "acme" / "billing" / "v1" / "billing.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text(BLOCKS["proto"])
    (tmp_path / "stubs").mkdir()
    return tmp_path


def compile_protos(project, commands, include):
    outputs = (f"--{kind}_out=stubs" for kind in ("python", "grpc_python", "mypy", "mypy_grpc"))
    protoc = (commands / "python", "-m", "grpc_tools.protoc", "-I", "protos", "-I", include)
    env = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    run(*protoc, *outputs, "acme/billing/v1/billing.proto", cwd=project, env=env)


def test_it_compiles_runs_and_type_checks(project, commands):
    include = run(commands / "idem-grpc", "proto-path").strip()
    assert Path(include).is_relative_to(commands.parent)
    compile_protos(project, commands, include)
    # Isolated: neither this folder nor PYTHONPATH may help.
    run(commands / "python", "-I", "-W", "error", "-c", READ, cwd=project)
    (project / "stubs" / "use.py").write_text(USE)
    run(commands / "python", "-W", "error", "stubs/use.py", cwd=project)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", commands / "python")
    run(*mypy, "--explicit-package-bases", "use.py", cwd=project / "stubs")


def test_it_is_linted(project, commands):
    command, _, table = BLOCKS["text"].partition("\n")
    assert command == "$ idem-grpc lint protos"
    assert run(commands / "idem-grpc", "lint", "protos", cwd=project) == table


def test_vendored_protos_compile_with_protoc_and_buf(project, commands):
    """A copy of our protos is compiled against, and not compiled."""
    include = run(commands / "idem-grpc", "proto-path").strip()
    shutil.copytree(
        Path(include, "idem_grpc_pb"),
        project / "third_party" / "idem_grpc_pb",
        ignore=lambda folder, names: [name for name in names if name.endswith((".py", ".pyi", ".typed"))],
    )
    compile_protos(project, commands, "third_party")
    assert not (project / "stubs" / "idem_grpc_pb").exists()
    run(commands / "python", "-I", "-c", READ, cwd=project)
    (project / "buf.yaml").write_text(BLOCKS["yaml"])
    buf = Path(sys.executable).with_name("buf")
    run(buf, "lint", "protos", cwd=project)
    run(buf, "build", "-o", "contract.binpb", cwd=project)
    shown = run(commands / "idem-grpc", "lint", "contract.binpb", cwd=project)
    assert "from fields" in shown
