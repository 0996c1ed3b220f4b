"""The outcome that a person gives for a call is checked, and can be corrected."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToJson
from tests_pb.v1 import envelope_proto2_pb2, order_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import OnUnclear, Policy, Reason
from idem_grpc._core.outcome import Code
from idem_grpc._core.record import State
from tests.cli.conftest import place, run, store
from tests.cli.conftest import start as command
from tests.cli.records import DONE, KEY, OPERATION, RUNNING, UNKNOWN, write
from tests.server.client import Kind
from tests.server.harness import FACES, open_store
from tests.server.kinds import ALL
from tests.server.ledger import order
from tests.server.ledger import run as plan

__all__ = ["place", "run", "store"]  # pytest finds fixtures by name

RESPONSES = [pb.LedgerResponse(entry="given by hand", part=part) for part in range(3)]
PROTOS = Path(__file__).parents[1] / "protos"


@pytest.fixture
def contract(tmp_path) -> Path:
    """A descriptor set that has the ledger."""
    found = descriptor_pb2.FileDescriptorSet()
    descriptor_pool.Default().FindFileByName("tests_pb/v1/ledger.proto").CopyToProto(found.file.add())
    path: Path = tmp_path / "ledger.binpb"
    path.write_bytes(found.SerializeToString())
    return path


class Settling:
    """A call that ended unclear, and the command that settles it."""

    def __init__(self, run: Any, server: Any, place: tuple[str, ...], kind: Kind) -> None:
        self._run, self._place = run, place
        self.server, self.kind, self.key = server, kind, uuid4().hex
        failing = plan("ABORT", grpc.StatusCode.INTERNAL)
        self.request = order(failing, failing, plan())
        assert self.call().code is grpc.StatusCode.INTERNAL
        assert self.call().reason is Reason.OUTCOME_UNKNOWN

    def call(self) -> Any:
        return self.server.client.call(self.kind, self.request, self.key)

    def resolve(self, *how: object, operation: bool = True) -> Any:
        named = (self.key, "--operation", self.kind.path, "--scope", "")
        return self._run("resolve", *self._place, *named, *how, "--yes")

    def record(self) -> Any:
        return self.server.record(self.key, self.kind)


@pytest.fixture
def settling(run, face, kind, place):
    store = open_store(face, place[1], place[3])
    server = FACES[face](store, default=Policy(on_unclear=OnUnclear.FAIL))
    yield Settling(run, server, place, kind)
    server.close()


def files(tmp_path: Path, *contents: bytes, suffix: str = ".bin") -> list[object]:
    options: list[object] = []
    for number, content in enumerate(contents):
        path = tmp_path / f"response-{number}{suffix}"
        path.write_bytes(content)
        options += ["--response-file", path]
    return options


def given(kind: Kind) -> list[pb.LedgerResponse]:
    return RESPONSES if kind.has_response_stream else RESPONSES[:1]


def in_form(form: str, kind: Kind, tmp_path: Path) -> list[object]:
    """The options that give the responses of a method in one of the forms."""
    match form:
        case "serialized":
            return files(tmp_path, *(one.SerializeToString() for one in given(kind)))
        case "JSON in files":
            return files(tmp_path, *(MessageToJson(one).encode() for one in given(kind)), suffix=".json")
        case _:
            return [part for one in given(kind) for part in ("--response-json", MessageToJson(one))]


@pytest.mark.parametrize("form", ["serialized", "JSON in files", "JSON"])
def test_clients_get_the_responses_that_were_given(settling, form, kind, tmp_path, contract):
    done = settling.resolve(*in_form(form, kind, tmp_path), "--contract", contract)
    assert done.exit_code == 0, done.stderr
    for _ in range(2):
        answer = settling.call()
        assert (answer.ok, answer.replayed, answer.responses) == (True, True, given(kind))
    assert len(settling.server.ledger.runs(settling.request)) == 1


WRONG = {
    "junk": b"\xff\xff",
    "text": b"charged, says the provider",
    "JSON in a file of another name": MessageToJson(RESPONSES[0]).encode(),
    "a message of another type": order_pb2.Order(
        lines=[order_pb2.OrderLine(article="tea")]
    ).SerializeToString(),
    "a field that the contract does not know": RESPONSES[0].SerializeToString() + b"\xf8\x07\x01",
}
WRONG_JSON = ["", "{", "null", "[]", '"entry"', '{"unknown": 1}', '{"part": "many"}', '{"entry": "\udcff"}']


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_bytes_that_are_no_response_of_the_method_are_refused(settling, content, tmp_path):
    before = settling.record()
    refused = settling.resolve(*files(tmp_path, content))
    assert (refused.exit_code, "is not a tests.v1.LedgerResponse" in refused.stderr) == (2, True), (
        refused.stderr
    )
    assert settling.record() == before
    assert settling.call().reason is Reason.OUTCOME_UNKNOWN


@pytest.mark.parametrize("text", WRONG_JSON)
def test_json_that_is_no_response_of_the_method_is_refused(run, place, store, text, tmp_path):
    write(store, "k", UNKNOWN)
    for how in (("--response-json", text), files(tmp_path, text.encode(errors="replace"), suffix=".json")):
        if text == '{"entry": "\udcff"}' and how[0] == "--response-file":
            continue  # which is text by now
        refused = run("resolve", *place, "k", *KEY, "--method", Kind.UNARY.path, *how, "--yes")
        assert (refused.exit_code, "is not a tests.v1.LedgerResponse" in refused.stderr) == (2, True), how
        assert "Traceback" not in refused.output


@pytest.mark.parametrize("count", [0, 2])
def test_a_method_without_a_response_stream_has_one_response(run, place, store, tmp_path, count):
    write(store, "k", UNKNOWN)
    for kind in (Kind.UNARY, Kind.CLIENT_STREAM):
        how = files(tmp_path, *[b""] * count)
        named = ("--outcome-code", "OK", "--method", kind.path)
        refused = run("resolve", *place, "k", *KEY, *how, *named, "--yes")
        assert (refused.exit_code, "has one response" in refused.stderr) == (2, True)


def test_a_response_stream_may_be_empty(run, place, store):
    write(store, "k", UNKNOWN)
    for kind in (Kind.SERVER_STREAM, Kind.BIDI):
        named = ("--outcome-code", "OK", "--method", kind.path)
        assert run("resolve", *place, "k", *KEY, *named, "--yes").exit_code == 0


def test_a_response_that_cannot_be_checked_needs_unchecked(place, store, tmp_path):
    """The command runs in a process that has not imported the generated module."""
    write(store, "k", UNKNOWN)
    resolve = ("resolve", *place, "k", *KEY)
    junk = files(tmp_path, b"\xff\xff")
    refused = command(*resolve, *junk, "--yes")
    assert refused.returncode == 2
    assert f"{OPERATION} is not known" in refused.stderr
    assert "--contract" in refused.stderr
    assert "--unchecked" in refused.stderr
    assert command(*resolve, *junk, "--unchecked", "--yes").returncode == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (("--response-json", "{}", "--unchecked"), "JSON needs the method's contract"),
        (("--outcome-code", "OK", "--unchecked"), "OK needs a response file"),
        (("--outcome-code", "ABORTED", "--response-json", "{}"), "Only OK takes a response"),
        (("--rerun", "--response-json", "{}"), "Choose how to resolve it"),
        (("--outcome-code", "ABORTED", "--details", "\udcff"), "--details is not valid UTF-8"),
        (("--response-json", "{}", "--method", "pay"), "Name the response's method"),
        (("--response-json", "{}", "--method", "/tests.v1.LedgerService/*"), "is not known, so its response"),
        (("--response-json", "{}", "--retention", "nan"), ""),
        (("--response-json", "{}", "--retention", "1e300"), ""),
    ],
)
def test_wrong_options_are_refused_with_the_reason(run, place, store, how, says):
    write(store, "k", UNKNOWN)
    refused = run("resolve", *place, "k", *KEY, "--method", Kind.UNARY.path, *how, "--yes")
    assert (refused.exit_code, says in refused.stderr) == (2, True), refused.stderr
    assert "UNKNOWN" in run("inspect", *place, "k", *KEY).stdout


def test_an_operation_that_is_no_method_needs_the_method_of_the_response(run, place, store, contract):
    name = write(store, "k", UNKNOWN)
    for named in (("--raw", name), ("--token", "idt_a")):
        refused = run("resolve", *place, *named, "--response-json", "{}", "--contract", contract, "--yes")
        assert (refused.exit_code, "--method /pkg.Service/Method" in refused.stderr) == (2, True)
    other = ("--contract", contract, "--method", OPERATION)
    refused = run("resolve", *place, "--raw", name, "--response-json", "{}", *other, "--yes")
    assert (refused.exit_code, f"{OPERATION} is not in" in refused.stderr) == (2, True)
    right = ("--contract", contract, "--method", Kind.UNARY.path)
    assert run("resolve", *place, "--raw", name, "--response-json", "{}", *right, "--yes").exit_code == 0


def test_a_contract_may_be_a_folder_of_protos(run, place, store):
    write(store, "k", UNKNOWN)
    how = ("--response-json", '{"entry": "e"}', "--method", Kind.UNARY.path, "--contract", PROTOS)
    done = run("resolve", *place, "k", *KEY, *how, "--yes")
    assert done.exit_code == 0, done.stderr


def test_required_fields_and_anys_are_checked_by_the_contract(run, place, store, tmp_path):
    """The types of the contract are unknown to this process, and are found in a pool of their own."""
    pool, found = descriptor_pool.Default(), descriptor_pb2.FileDescriptorSet()
    for file in (
        "google/protobuf/any.proto",
        "google/protobuf/timestamp.proto",
        "tests_pb/v1/order.proto",
        "tests_pb/v1/envelope_proto2.proto",
    ):
        pool.FindFileByName(file).CopyToProto(found.file.add())
    service = found.file.add(name="s.proto", package="s", dependency=[found.file[3].name])
    method = service.service.add(name="Folders").method.add(name="Get")
    method.input_type = method.output_type = ".tests.v1.Folder"
    (tmp_path / "set").write_bytes(found.SerializeToString())
    write(store, "k", UNKNOWN)
    named = ("--contract", tmp_path / "set", "--method", "/s.Folders/Get")
    for how in (("--response-json", "{}"), files(tmp_path, b"")):
        refused = run("resolve", *place, "k", *KEY, *how, *named, "--yes")
        assert (refused.exit_code, "lacks a required field" in refused.stderr) == (2, True)
    folder = envelope_proto2_pb2.Folder(title="a")
    packed = AnyMessage()
    packed.Pack(order_pb2.Order(customer="c"))
    folder.sheet.content.CopyFrom(packed)
    text = MessageToJson(folder)
    done = run("resolve", *place, "k", *KEY, "--response-json", text, *named, "--yes")
    assert done.exit_code == 0, done.stderr


# -- corrections


def test_an_outcome_given_by_a_person_can_be_corrected(settling, kind, tmp_path):
    wrong = settling.resolve(*files(tmp_path, b"\xff\xff"), "--unchecked")
    assert wrong.exit_code == 0
    assert settling.call().messages == (b"\xff\xff",)
    assert settling.resolve("--outcome-code", "ABORTED", "--details", "not charged").exit_code == 0
    assert (settling.call().code, settling.call().details) == (grpc.StatusCode.ABORTED, "not charged")
    assert settling.resolve(*in_form("JSON", kind, tmp_path)).exit_code == 0
    assert settling.call().responses == given(kind)
    assert settling.record().by_hand
    assert len(settling.server.ledger.runs(settling.request)) == 1


def test_a_correction_may_allow_another_run_whose_outcome_stays(settling):
    assert settling.resolve("--outcome-code", "ABORTED").exit_code == 0
    assert settling.resolve("--rerun").exit_code == 0
    record = settling.record()
    assert (record.state, record.outcome, record.by_hand) == (State.OPEN, None, False)
    assert settling.call().code is grpc.StatusCode.INTERNAL  # the second run, which is unclear too
    assert settling.resolve("--rerun").exit_code == 0
    answer = settling.call()
    assert answer.ok
    for how in (("--rerun",), ("--outcome-code", "ABORTED")):
        refused = settling.resolve(*how)
        assert (refused.exit_code, "by a run, whose outcome cannot be replaced" in refused.stderr) == (
            1,
            True,
        )
    assert settling.call().essence == answer.essence


def test_more_responses_than_the_method_has_are_not_sent_and_can_be_corrected(settling, kind, tmp_path):
    twice = files(tmp_path, *(one.SerializeToString() for one in RESPONSES[:2]))
    assert settling.resolve(*twice, "--unchecked").exit_code == 0
    answer = settling.call()
    if kind.has_response_stream:
        assert answer.responses == RESPONSES[:2]
    else:
        assert answer.reason is Reason.OUTCOME_UNKNOWN
    assert settling.resolve("--rerun").exit_code == 0


def test_the_outcome_of_a_run_cannot_be_replaced(run, place, store):
    for record in (DONE, replace(DONE, state=State.OPEN, outcome=None), RUNNING):
        write(store, "k", record)
        for how in (("--rerun",), ("--outcome-code", "ABORTED"), ("--response-json", "{}")):
            named = ("--method", Kind.UNARY.path) if how[0] == "--response-json" else ()
            assert run("resolve", *place, "k", *KEY, *how, *named, "--yes").exit_code == 1
        assert run("forget", *place, "k", *KEY, "--force", "--yes").exit_code == 0


def test_the_command_shows_who_gave_an_outcome_and_asks_before_it_replaces_one(run, place, store):
    write(store, "k", DONE)
    assert "given by    a run" in run("inspect", *place, "k", *KEY).stdout
    assert "by_hand" not in run("inspect", *place, "k", *KEY, "--json").stdout
    run("forget", *place, "k", *KEY, "--yes")
    write(store, "k", replace(UNKNOWN, state=State.DONE, outcome=DONE.outcome, by_hand=True))
    assert "given by    a person" in run("inspect", *place, "k", *KEY).stdout
    assert '"by_hand": true' in run("inspect", *place, "k", *KEY, "--json").stdout
    asked = run("resolve", *place, "k", *KEY, "--outcome-code", "ABORTED", input="n\n")
    assert "Duplicates may already have received the previous outcome" in asked.stdout
    assert '"code": "NOT_FOUND"' in run("inspect", *place, "k", *KEY, "--json").stdout


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_failure_can_be_given_and_is_sent(run, place, store, face, code):
    server = FACES[face](open_store(face, place[1], place[3]), default=Policy(on_unclear=OnUnclear.FAIL))
    try:
        settling = Settling(run, server, place, Kind.UNARY)
        assert settling.resolve("--outcome-code", code.name, "--details", "é\n\0 …").exit_code == 0
        answer = settling.call()
        assert (answer.code.value[0], answer.details) == (code, "é\n\0 …")
    finally:
        server.close()


def test_every_kind_of_method_is_tested():
    assert set(ALL) == {kind for kind in Kind if kind is not Kind.READ}
