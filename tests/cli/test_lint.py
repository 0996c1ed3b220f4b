"""``idem-grpc lint`` and ``service-config``, on descriptor sets and on folders of protos."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import status_pb2

from idem_grpc import proto_path
from tests.cli.conftest import start

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "protos"
TESTS = ROOT / "tests" / "protos"
COMMON = Path(status_pb2.__file__).parents[2]  # where googleapis-common-protos put its files
SHOP = """
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "idem_grpc_pb/v1/options.proto";
service Shop {
  option (idem.v1.default_policy) = {key: KEY_RULE_OPTIONAL};
  rpc Look(Message) returns (Message) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Put(Message) returns (Message) {
    option (google.api.http) = {post: "/v1/put", body: "*"};
    option (idem.v1.policy) = {key: KEY_RULE_REQUIRED};
  }
  rpc Ask(Message) returns (Message);
}
service Plain {
  rpc Set(Message) returns (Message) { option idempotency_level = IDEMPOTENT; }
  rpc Half(Message) returns (Message) { option (idem.v1.policy) = {retention: {seconds: 600}}; }
  rpc Add(Message) returns (Message);
}
service Safe {
  rpc Get(Message) returns (Message) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Order(OrderRequest) returns (Message);
  rpc Pay(Message) returns (Message) { option (idem.v1.policy) = {operation: "pay", key: KEY_RULE_TOKEN}; }
}
message Message {}
message OrderRequest {
  string request_id = 1 [(idem.v1.role) = ROLE_KEY];
  string trace = 2 [(idem.v1.role) = ROLE_IGNORED];
}
"""


def compiled(folder, file, output, *options):
    """A descriptor set, as protoc writes it."""
    includes = [f"-I{place}" for place in (folder, proto_path(), COMMON)]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *options, "-o", str(output), file]
    subprocess.run(command, check=True, cwd=folder)
    return output


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "protos"
    folder.mkdir()
    (folder / "shop.proto").write_text(SHOP)
    return folder


@pytest.fixture
def contract(tmp_path):
    return compiled(TESTS, "tests_pb/v1/contract.proto", tmp_path / "set.binpb", "--include_imports")


def classes(result):
    return {one["method"].partition(".v1.")[2]: one["class"] for one in json.loads(result.stdout)}


def test_every_method_has_a_class(run, shop):
    result = run("lint", "--json", shop)
    assert classes(result) == {
        "Shop/Look": "no_side_effects",
        "Shop/Put": "required",
        "Shop/Ask": "optional",
        "Plain/Set": "idempotent",
        "Plain/Half": "unprotected",
        "Plain/Add": "unprotected",
        "Safe/Get": "no_side_effects",
        "Safe/Order": "from_fields",
        "Safe/Pay": "token",
    }
    assert result.exit_code == 1
    order = next(one for one in json.loads(result.stdout) if one["method"] == "/shop.v1.Safe/Order")
    assert order == {
        "method": "/shop.v1.Safe/Order",
        "file": "shop.proto",
        "class": "from_fields",
        "operation": "/shop.v1.Safe/Order",
        "retention_seconds": 86400.0,
        "on_unclear": "RERUN",
        "key_fields": ["request_id"],
        "ignored_fields": ["trace"],
    }


def test_a_table_without_json(run, shop):
    result = run("lint", shop)
    header, *lines = result.stdout.splitlines()
    column = header.index("CLASS")
    assert all(line[column - 1] == " " != line[column] for line in lines[:9])
    assert "key: request_id; kept 1 d" in result.stdout
    assert "operation pay" in result.stdout
    assert lines[-1].startswith("9 methods: 2 no side effects, 1 idempotent, 1 keyed (optional)")


def test_exceptions_are_allowed_by_name_or_pattern(run, shop):
    some = run("lint", shop, "--allow", "/shop.v1.Plain/Add")
    assert some.exit_code == 1
    for patterns in (["/shop.v1.Plain/*"], ["shop.v1.Plain/Add", "/shop.v1.Plain/Half"]):
        result = run("lint", shop, *(part for one in patterns for part in ("--allow", one)))
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.count("allowed") == 2


def test_an_exception_that_is_not_needed_is_reported(run, shop):
    result = run("lint", shop, "--allow", "*", "--allow", "/shop.v1.Gone/*")
    assert result.exit_code == 0
    assert "--allow /shop.v1.Gone/* is not needed" in result.stderr


def test_a_contradiction_names_file_and_method_and_cannot_be_allowed(run, contract):
    result = run("lint", contract, "--allow", "*")
    assert result.exit_code == 1
    problems = [line for line in result.stderr.splitlines() if line.startswith("Contradictory")]
    assert [line.split(": ")[1] for line in problems] == ["tests_pb/v1/contract.proto"] * 3
    for problem, says in zip(problems, ("Stream", "Short", "Code"), strict=True):
        assert f": /tests.v1.ContradictionService/{says}" in problem
    by_name = classes(run("lint", contract, "--json"))
    assert by_name["ContradictionService/Short"] == "contradictory"
    assert by_name["ContractService/Plain"] == "required"
    assert by_name["ContractService/Full"] == "token"
    assert by_name["ContractService/FromFields"] == "from_fields"
    assert by_name["ContractService/Read"] == "no_side_effects"


def test_a_method_cannot_both_read_only_and_have_a_policy(run, shop):
    both = "option idempotency_level = NO_SIDE_EFFECTS; option (idem.v1.policy) = {key: KEY_RULE_TOKEN};"
    (shop / "shop.proto").write_text(SHOP.replace("option idempotency_level = NO_SIDE_EFFECTS;", both, 1))
    result = run("lint", shop)
    assert "Contradictory: shop.proto: /shop.v1.Shop/Look is NO_SIDE_EFFECTS" in result.stderr


def test_the_protos_of_the_examples_and_of_the_library_pass():
    ended = start("lint", "--json", EXAMPLES)
    methods = {one["method"]: one["class"] for one in json.loads(ended.stdout)}
    assert methods["/examples.checkout.v1.PaymentService/GetPayment"] == "no_side_effects"
    assert methods["/examples.checkout.v1.PaymentService/Charge"] == "required"
    assert not {"contradictory", "infrastructure", "unprotected"} & set(methods.values())
    assert ended.returncode == 0
    ours = start("lint", "--json", proto_path())
    assert {one["class"] for one in json.loads(ours.stdout)} == {"infrastructure", "no_side_effects"}
    assert ours.returncode == 0


def test_options_are_read_without_the_stubs_and_in_every_runtime(contract):
    """The stubs of the contract are not imported; protobuf has a runtime in C and one in Python."""
    script = "from idem_grpc._cli import main; main()"
    for runtime in ("upb", "python"):
        ended = subprocess.run(
            [sys.executable, "-c", script, "lint", "--json", str(contract)],
            env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": runtime},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert classes(ended)["ContractService/Plain"] == "required", ended.stderr


def test_descriptor_sets_from_buf_and_in_any_order(run, contract, tmp_path):
    image = tmp_path / "image.binpb"
    buf = Path(sys.executable).with_name("buf")
    subprocess.run([buf, "build", TESTS, "--path", TESTS / "tests_pb", "-o", image], cwd=ROOT, check=True)
    assert classes(run("lint", image, "--json"))["ContractService/Plain"] == "required"
    files = FileDescriptorSet.FromString(contract.read_bytes())
    turned = FileDescriptorSet(file=reversed(files.file))
    image.write_bytes(turned.SerializeToString())
    assert classes(run("lint", image, "--json"))["ContractService/Plain"] == "required"


def test_contracts_may_be_several_and_disagree(run, shop, contract, tmp_path):
    older = compiled(shop, "shop.proto", tmp_path / "older.binpb", "--include_imports")
    (shop / "shop.proto").write_text(SHOP.replace("rpc Add", "rpc Append"))
    both = classes(run("lint", "--json", older, shop, contract))
    assert {"Plain/Add", "Plain/Append", "ContractService/Plain"} <= both.keys()


def test_an_unreadable_contract_is_refused_with_the_reason(run, shop, tmp_path):
    bare = compiled(shop, "shop.proto", tmp_path / "bare.binpb")
    (tmp_path / "text").write_text("not a descriptor set")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.proto").write_text('syntax = "proto3"; message {')
    for path, says in (
        (bare, "shop.proto imports google/api/annotations.proto, which is not in it"),
        (tmp_path / "text", "is not a descriptor set: make one with 'protoc --include_imports"),
        (tmp_path / "empty", "is not a descriptor set"),
        (tmp_path / "folder", "there is no .proto file in"),
        (shop / "shop.proto", "is a source file: give the root folder"),
        (broken, "broken.proto:1:28: Expected message name"),
        (tmp_path / "none", "does not exist"),
    ):
        result = run("lint", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr


def test_a_contract_without_a_method_fails(run, tmp_path):
    """It is probably the wrong folder, and CI must not pass then."""
    (tmp_path / "messages.proto").write_text('syntax = "proto3"; message M {} service S {}')
    messages = compiled(tmp_path, "messages.proto", tmp_path / "set.binpb")
    for contract in (tmp_path, messages):
        for options in ((), ("--json",), ("--allow", "*")):
            result = run("lint", contract, *options)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == f"Error: no method in {contract}: give the contract of a service\n"
    both = run("lint", tmp_path, messages)
    assert f"no method in {tmp_path}, {messages}: give" in both.stderr
    result = run("service-config", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")


def test_without_a_compiler_the_error_says_what_to_install(shop):
    script = "import sys; sys.modules['grpc_tools'] = None; from idem_grpc._cli import main; main()"
    command = [sys.executable, "-c", script, "lint", str(shop)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "pip install grpcio-tools; or give a descriptor set" in ended.stderr


def test_imports_may_be_in_other_folders(run, shop, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "common.proto").write_text('syntax = "proto3"; message Common {}')
    (shop / "more.proto").write_text(
        'syntax = "proto3"; import "common.proto"; service More { rpc Do(Common) returns (Common); }'
    )
    assert run("lint", shop).exit_code == 2
    assert '"/More/Do"' in run("lint", shop, "--json", "-I", other).stdout


def config(result):
    (method_config,) = json.loads(result.stdout)["methodConfig"]
    return [tuple(name.values()) for name in method_config["name"]], method_config["retryPolicy"]


def test_service_config_has_the_methods_that_may_be_retried(run, shop):
    names, policy = config(run("service-config", shop))
    assert names == [
        ("shop.v1.Shop", "Look"),
        ("shop.v1.Shop", "Put"),
        ("shop.v1.Plain", "Set"),
        ("shop.v1.Safe",),
    ]
    assert policy["maxAttempts"] == 5
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]
    names, policy = config(run("service-config", shop, "--optional", "--max-attempts", 3))
    assert ("shop.v1.Shop",) in names
    assert policy["maxAttempts"] == 3


def test_service_config_leaves_request_streams_out(run, shop):
    (shop / "streams.proto").write_text(
        """
        syntax = "proto3";
        package shop.v1;
        import "shop.proto";
        service Streams {
          rpc Get(Message) returns (stream Message) { option idempotency_level = NO_SIDE_EFFECTS; }
          rpc Sum(stream Message) returns (Message) { option idempotency_level = NO_SIDE_EFFECTS; }
        }
        """
    )
    names, _ = config(run("service-config", shop))
    assert ("shop.v1.Streams", "Get") in names
    assert ("shop.v1.Streams", "Sum") not in names
    assert ("shop.v1.Streams",) not in names


def test_service_config_fails_if_it_would_have_no_method(run, shop, contract):
    (shop / "shop.proto").write_text('syntax = "proto3"; message M {} service S { rpc Do(M) returns (M); }')
    for arguments, status, says in (
        ((shop,), 1, "no method's contract"),
        ((contract,), 1, "is contradictory: tests_pb/v1/contract.proto"),
        ((EXAMPLES, "--max-attempts", 9), 2, "gRPC takes 2 to 5"),
    ):
        result = run("service-config", *arguments)
        assert (result.exit_code, result.stdout) == (status, "")
        assert says in result.stderr
