"""What is built can be installed and used by somebody who has nothing else."""

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# Building and installing fetch packages.
pytestmark = pytest.mark.timeout(600)


def run(*command):
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    # Makes an sdist, and the wheel from that: so the sdist has all it needs.
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


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
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "idem_grpc").rglob("*.py")} <= names


def test_wheel_works_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
    script = f"""
import importlib.metadata, importlib.resources, pathlib, pkgutil, sys
import idem_grpc, idem_grpc.stores, idem_grpc_pb.v1.record_pb2 as record_pb2
assert all(pathlib.Path(m.__file__).is_relative_to(sys.prefix) for m in (idem_grpc.stores, record_pb2))
for module in pkgutil.walk_packages(idem_grpc.__path__, "idem_grpc."):
    if module.name != "idem_grpc.testing":  # which may want a test runner
        importlib.import_module(module.name)
assert (importlib.resources.files("idem_grpc.stores") / "swap.lua").read_text()
assert record_pb2.Record(attempt=1).SerializeToString()
assert importlib.metadata.version("idem-grpc") == {VERSION!r}
"""
    # Isolated: neither this folder nor PYTHONPATH may help.
    run(python, "-I", "-W", "error", "-c", script)
