"""What the README shows is run as it stands there, and what the pages name is there."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from examples_pb.checkout.v1 import payments_pb2, payments_pb2_grpc

from examples.checkout.demo import row
from examples.checkout.scenes import SCENES
from idem_grpc import SHARED, OnUnclear, Policy, Reason, ServerInterceptor
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import BUILT_IN
from idem_grpc._core.steps import Ending, ending_of
from tests.support.pages import blocks
from tests.support.wait import until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]

RUN_ELSEWHERE = {
    "make test": "is what runs this",
    "make demo": "test_examples.py",
    "pip install .": "test_package.py",
}


def name(path):
    return str(path.relative_to(ROOT))


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    _, _, after = README.partition(f"\n{heading}\n")
    table = re.search(r"(^\|.*\n)+", after, re.MULTILINE)
    assert table, f"there is no table under {heading!r}"
    lines = table.group().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


class Reader:
    """One who pastes the python blocks one after the other into one session."""

    def __init__(self) -> None:
        self.names = {"provider": SimpleNamespace(is_closed=lambda: True)}
        self._left = blocks("README.md")

    def __getattr__(self, name):
        return self.names[name]

    def paste(self, beginning: str) -> None:
        """The next block, which begins with or defines ``beginning``."""
        block = self._left.pop(0)
        assert beginning in block, f"this block is not the one that was looked for:\n{block}"
        exec(compile(block, "README.md", "exec"), self.names)

    def is_done(self) -> bool:
        return not self._left


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its store goes
    return Reader()


def test_python_blocks(reader):
    with ExitStack() as cleanup:
        reader.paste("server = grpc.server(")
        cleanup.callback(reader.server.stop, None)
        reader.paste("payment_id, replayed = pay(stub)")
        cleanup.callback(reader.channel.close)
        reader.paste("async def serve(")
        asyncio.run(duplicate_on_aio(reader))
        reader.paste("client_interceptors(")
        cleanup.callback(reader.reliable.close)
        reader.paste("service_config(")
        cleanup.callback(reader.patient.close)
        reader.paste("class Refunds(")
        keeps_and_releases(reader, cleanup)
        reader.paste("class MyStore(")
        reader.paste("class MyAsyncStore(")
        reader.paste("class TestMyStore(")
        run_the_tests_of(reader.TestMyStore)
        run_the_tests_of(reader.TestMyAsyncStore)
        reader.paste("idempotency.drain(")
        assert reader.left == 0
        reader.paste("class Metrics(")
        counts(reader, cleanup)
    assert reader.is_done()


async def duplicate_on_aio(reader):
    """The asyncio server shares the store, so it knows the call that the other one answered."""
    address, stop = "unix:aio.sock", asyncio.Event()
    serving = asyncio.create_task(reader.serve(address, stop))
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        charge = payments_pb2_grpc.PaymentServiceStub(channel).Charge
        for key, replayed in ((reader.key, "true"), ("pay:another", None)):
            call = charge(reader.order, metadata=[("idempotency-key", key), ("x-tenant-id", "shop")])
            payment = (await call).payment
            assert dict(await call.trailing_metadata()).get("idempotency-replayed") == replayed
            assert (payment.id == reader.payment_id) is (replayed is not None)
    stop.set()
    await serving


def keeps_and_releases(reader, cleanup):
    strict = Policy(on_unclear=OnUnclear.FAIL)  # under which a key that was not given back is used up
    interceptor = ServerInterceptor(reader.store, scope=SHARED, default=strict)
    with grpc.insecure_channel(another_server(reader, interceptor, cleanup)) as channel:
        for minor_units, code, runs in ((500_00, "PERMISSION_DENIED", 1), (5_00, "UNAVAILABLE", 2)):
            answers = [refund(reader, channel, minor_units) for _ in range(2)]
            assert {answer.code().name for answer in answers} == {code}
            assert len({trailer(answer, "idempotency-run") for answer in answers}) == runs
        reader.provider.is_closed = lambda: False
        assert refund(reader, channel, 5_00).code() is grpc.StatusCode.OK


def counts(reader, cleanup):
    """The reporter gets the call, although it fails: the store is closed by now."""
    with grpc.insecure_channel(another_server(reader, reader.idempotency, cleanup)) as channel:
        refund(reader, channel, 5_00)
    until(lambda: reader.answers)
    assert dict(reader.answers) == {(f"/{reader.SERVICE}/Refund", "INTERNAL", "MISCONFIGURED", False): 1}


def another_server(reader, interceptor, cleanup) -> str:
    """A server with the refunds of the README. Returns its address."""
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[interceptor])
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(reader.Refunds(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    cleanup.callback(lambda: server.stop(None).wait())
    return f"127.0.0.1:{port}"


def refund(reader, channel, minor_units):
    request = payments_pb2.RefundRequest(payment_id="p", minor_units=minor_units)
    metadata = [("idempotency-key", f"refund:{minor_units}"), ("x-tenant-id", "shop")]
    call = payments_pb2_grpc.PaymentServiceStub(channel).Refund.future(request, metadata=metadata)
    call.exception()
    return call


def trailer(call, name):
    return dict(call.trailing_metadata()).get(name)


def run_the_tests_of(contract):
    tests = [test for test in dir(contract) if test.startswith("test_")]
    assert len(tests) > 10
    for test in tests:
        getattr(contract(), test)()


def test_shell_commands_are_run_somewhere():
    commands = re.findall(
        r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    assert set(commands) == set(RUN_ELSEWHERE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^ {4}|`)make ((?:[a-z-]+[ `\n])*)", page.read_text(), re.MULTILINE)
    assert {target for each in named for target in each.replace("`", " ").split()} <= targets


def test_the_proto_is_an_excerpt():
    def lines(text):
        return {line.partition("//")[0].strip() for line in text.splitlines()}

    (shown,) = blocks("README.md", "proto")
    proto = ROOT / "examples/protos/examples_pb/checkout/v1/payments.proto"
    assert lines(shown) <= lines(proto.read_text())


def test_the_table_of_the_demo_is_the_demos():
    (shown,) = blocks("README.md", "text")
    printed = [line for line in shown.splitlines() if line.startswith("✓")]
    for number, (scene, line) in enumerate(zip(SCENES, printed, strict=True), 1):
        assert line.startswith(row("✓", f"{number} {scene.title}", scene.sent, "", "", "").rstrip())


def test_the_table_of_policies_has_the_defaults():
    shown = {field.strip("`"): default for field, default, _ in rows("## Policies")}
    assert list(shown) == [field.name for field in fields(Policy)]
    del shown["operation"]
    assert shown == {field: words(getattr(BUILT_IN, field)) for field in shown}


def words(value) -> str:
    match value:
        case Enum():
            return f"`{value.name}`"
        case timedelta():
            seconds = int(value.total_seconds())
            return f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds} s"
        case int():
            return f"{value // 2**20} MiB"
    return ", ".join(words(each) for each in value) or "none"


def test_the_table_of_reasons_is_whole():
    shown = {reason.strip("`"): status.strip("`") for reason, status, _ in rows("## Answers on the wire")}
    assert shown == {reason.name: reason.code.name for reason in Reason}


def test_the_table_of_endings_is_right():
    kept = {Code[code if isinstance(code, str) else code.name] for code in BUILT_IN.replay_errors or ()}
    decided, fixable, not_now, _ = (
        {Code[code] for code in re.findall(r"`([A-Z_]+)`", status)}
        for status, *_ in rows("### How a run ends")
    )
    classes = {
        Ending.DECIDED: decided | kept,
        Ending.FIXABLE: fixable,
        Ending.NOT_NOW: not_now,
        Ending.UNCLEAR: set(Code) - decided - kept - fixable - not_now,
    }
    for ending, codes in classes.items():
        assert {ending_of(Outcome(code), kept) for code in codes} == {ending}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
