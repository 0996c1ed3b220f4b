"""The extension number of the options is one constant, and is documented as unregistered."""

import os
import re
import shutil
import sys
from pathlib import Path

from idem_grpc_pb.v1 import options_pb2

from tests.support.wheel import run

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "protos/idem_grpc_pb/v1/options.proto"
(NUMBER,) = (
    int(found) for found in re.findall(r"^EXTENSION_NUMBER := (\d+)$", (ROOT / "Makefile").read_text(), re.M)
)
OURS = (options_pb2.policy, options_pb2.default_policy, options_pb2.role)


def test_all_extensions_have_the_same_number():
    assert {extension.number for extension in OURS} == {NUMBER}
    extensions = [*options_pb2.DESCRIPTOR.extensions_by_name.values()]
    assert sorted(each.name for each in extensions) == sorted(each.name for each in OURS)
    assert len({each.containing_type for each in extensions}) == len(OURS), "one for each kind of option"


FOLDERS = ("idem_grpc", "protos", "docs", "examples", "tests", "benchmarks", ".ci")


def test_no_other_file_has_the_number():
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    number = re.compile(rb"\b%d\b" % NUMBER)
    found = {path for path in files if number.search(path.read_bytes())}
    written = {path for path in found if path.suffix != ".pyc" and not path.stem.endswith("_pb2")}
    assert written == {ROOT / "Makefile", OPTIONS}


def test_the_proto_documents_the_range_of_the_number():
    comment = " ".join(line.strip("/ ") for line in OPTIONS.read_text().splitlines() if line.startswith("//"))
    assert 50000 <= NUMBER <= 99999, "once it is registered, the proto and the docs say so"
    assert "use within one organisation (50000 to 99999)" in comment
    assert "not registered yet" in comment
    assert "use within one organisation" in (ROOT / "docs/contract.md").read_text().replace("\n", " ")


READS = """
from tests_pb.v1 import contract_pb2
from idem_grpc_pb.v1 import options_pb2
from idem_grpc._core.methods import declared_key_rule, ignored_fields, key_field_names
methods = contract_pb2.DESCRIPTOR.services_by_name["ContractService"].methods_by_name
fields = methods["FromFields"]
print(options_pb2.policy.number, options_pb2.default_policy.number, options_pb2.role.number)
print(declared_key_rule(methods["Full"]).name, declared_key_rule(methods["Plain"]).name)
print(*key_field_names(fields), "trace" in list(ignored_fields(fields.input_type)))
"""


def test_the_number_is_changed_in_one_place(tmp_path):
    """By EXTENSION_NUMBER and ``make proto``, on a copy; code and contracts use the name."""
    for folder in "protos", "tests/protos":
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "stubs").mkdir()
    run("make", "extension-number", "EXTENSION_NUMBER=1234", cwd=tmp_path)
    protos = [*(tmp_path / "protos").rglob("*.proto"), tmp_path / "tests/protos/tests_pb/v1/contract.proto"]
    roots = (f"-I{tmp_path}/protos", f"-I{tmp_path}/tests/protos")
    run(sys.executable, "-m", "grpc_tools.protoc", *roots, f"--python_out={tmp_path}/stubs", *protos)
    path = f"{tmp_path}/stubs{os.pathsep}{ROOT}"
    said = run(sys.executable, "-c", READS, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert said.splitlines() == ["1234 1234 1234", "TOKEN REQUIRED", "request_id True"]
