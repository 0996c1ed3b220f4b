"""What is built can be installed and used by somebody who has nothing else."""

import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.wheel import environment, run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]

# Building and installing fetch packages.
pytestmark = pytest.mark.timeout(600)


def test_wheel_holds_both_packages_whole_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "idem_grpc",
        "idem_grpc_pb",
        f"idem_grpc-{VERSION}.dist-info",
    }
    assert {
        "idem_grpc/py.typed",
        "idem_grpc/stores/swap.lua",
        "idem_grpc_pb/py.typed",
        "idem_grpc_pb/v1/record_pb2.py",
        "idem_grpc_pb/v1/record_pb2.pyi",
    } <= names
    protos = ROOT / "protos"
    assert {str(path.relative_to(protos)) for path in protos.rglob("*.proto")} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "idem_grpc").rglob("*.py")} <= names


def test_wheel_works_in_an_empty_environment(wheel, tmp_path):
    commands = environment(tmp_path / "venv", wheel)
    script = f"""
import importlib.metadata, importlib.resources, pathlib, pkgutil, sys
import idem_grpc, idem_grpc.stores, idem_grpc_pb.v1.record_pb2 as record_pb2
assert all(pathlib.Path(m.__file__).is_relative_to(sys.prefix) for m in (idem_grpc.stores, record_pb2))
for module in pkgutil.walk_packages(idem_grpc.__path__, "idem_grpc."):
    # These may want a test runner, and the extra for the command.
    if module.name != "idem_grpc.testing" and not module.name.startswith("idem_grpc._cli."):
        importlib.import_module(module.name)
assert (importlib.resources.files("idem_grpc.stores") / "swap.lua").read_text()
assert record_pb2.Record(attempt=1).SerializeToString()
assert importlib.metadata.version("idem-grpc") == {VERSION!r}
assert pathlib.Path(idem_grpc.proto_path(), "idem_grpc_pb/v1/options.proto").is_relative_to(sys.prefix)
"""
    # Isolated: neither this folder nor PYTHONPATH may help.
    run(commands / "python", "-I", "-W", "error", "-c", script)
    command = commands / "idem-grpc"
    without_extra = subprocess.run([command, "lint"], capture_output=True, text=True, check=False)
    assert (without_extra.returncode, without_extra.stdout) == (2, "")
    says, _, advice = without_extra.stderr.partition(": ")
    assert says == "idem-grpc needs click, which is in its extra 'cli'"
    pip, install, click = shlex.split(advice)
    assert [click] == PROJECT["optional-dependencies"]["cli"]
    run(sys.executable, "-m", pip, "--python", commands / "python", install, "--quiet", click)
    assert VERSION in run(command, "--version")


@pytest.mark.parametrize("module", ["options", "record", "outcome", "fingerprint", "token"])
def test_stubs_load_nothing_but_protobuf(module):
    script = (
        f"import sys, idem_grpc_pb.v1.{module}_pb2; "
        "assert not {'grpc', 'redis', 'idem_grpc'} & sys.modules.keys()"
    )
    run(sys.executable, "-c", script)
