"""Options in stubs just made by protoc, read in a process that knows no others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import idem_grpc

ROOT = Path(__file__).parent.parent.parent
READ = """
import importlib, json, sys
from google.protobuf import descriptor_pool
from idem_grpc._core.methods import Methods
from idem_grpc._core.policy import Policy

module, service = sys.argv[1:]
importlib.import_module(module)
methods = Methods({}, Policy(), services=[service])
found = {}
for method in descriptor_pool.Default().FindServiceByName(service).methods:
    rules = methods.rules(f"/{service}/{method.name}")
    found[method.name] = rules and [rules.key.name, rules.operation, rules.retention, bool(rules.key_fields)]
print(json.dumps(found))
"""


@pytest.fixture
def compiled(tmp_path):
    """Compile a proto as a user does: ``compiled(folder, file)`` returns the folder of stubs."""

    def compiled(folder, file):
        includes = [f"-I{ROOT / folder}", f"-I{idem_grpc.proto_path()}"]
        outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
        protoc = [sys.executable, "-m", "grpc_tools.protoc", *includes, *outputs, file]
        subprocess.run(protoc, check=True, cwd=tmp_path)
        return tmp_path

    return compiled


def read(stubs, module, service):
    """What a fresh process with those stubs makes of a service."""
    path = [str(stubs), str(ROOT), str(ROOT / "generated")]
    script = f"import sys; sys.path[:0] = {path!r}\n{READ}"
    command = [sys.executable, "-c", script, module, service]
    done = subprocess.run(command, cwd=stubs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_contract_that_says_all(compiled):
    stubs = compiled("tests/protos", "tests_pb/v1/contract.proto")
    service = "tests.v1.ContractService"
    assert read(stubs, "tests_pb.v1.contract_pb2", service) == {
        "Plain": ["REQUIRED", f"/{service}/Plain", 600, False],
        "Full": ["TOKEN", "tests.full", 900, False],
        "FromFields": ["REQUIRED", f"/{service}/FromFields", 600, True],
        "Read": None,
    }


def test_the_contract_of_an_example(compiled):
    stubs = compiled("examples/protos", "examples_pb/checkout/v1/payments.proto")
    assert read(stubs, "examples_pb.checkout.v1.payments_pb2", "examples.checkout.v1.CheckoutService") == {
        "Pay": ["TOKEN", "payments.charge", 86_400, False]
    }
