"""The examples do what they say, run as their readers run them."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest
from examples_pb.checkout.v1 import payments_pb2 as pb

from examples.checkout.client import Client
from examples.checkout.ledger import Ledger
from examples.checkout.scenes import SCENES
from examples.checkout.shop import Server
from tests.support.groups import group_lives, run, started
from tests.support.wait import until

DEMO = "examples.checkout.demo"


def ticks(printed: str) -> list[str]:
    return [line[0] for line in printed.splitlines() if line[:1] in {"✓", "✗"}]


def test_demo():
    status, printed = run(DEMO)
    assert status == 0, printed
    assert ticks(printed) == ["✓"] * len(SCENES)
    for text in (
        "OK, 49 OK replayed",
        "OK, KEY_REUSED",
        "CARD_DECLINED, CARD_DECLINED replayed",
        f"All {len(SCENES)} scenes held",
    ):
        assert text in printed
    assert re.findall(r"attempt (.) ran on (server-.)(?: .* later)? and (did not )?charge", printed) == [
        ("1", "server-2", "did not "),
        ("2", "server-1", ""),
        ("1", "server-2", ""),
        ("2", "server-1", "did not "),
    ]
    assert "Traceback" not in printed


def test_demo_on_redis(redis_server):
    status, printed = run(DEMO, "--store", redis_server.url)
    assert status == 0, printed
    assert ticks(printed) == ["✓"] * len(SCENES)
    with redis_server.client() as client:
        assert any(key.startswith(b"demo-") for key in client.scan_iter())


def test_demo_fails_without_protection():
    status, printed = run(DEMO, "--unprotected")
    assert status == 1, printed
    assert ticks(printed) == ["✗"] * len(SCENES)
    assert "the handler must run 1×, and ran 50×" in printed
    assert f"FAILED: {len(SCENES)} of {len(SCENES)} scenes did not hold" in printed


def test_demo_fails_without_a_store():
    status, printed = run(DEMO, "--store", "sqlite:///no/such/folder/idem.db")
    assert status == 1, printed
    assert printed.splitlines()[-1].startswith("FAILED: server-"), printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_stopped_ends_its_servers(number):
    with started(DEMO) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("✓"):
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode != 0
        until(lambda: not group_lives(process.pid))


@pytest.fixture
def start(tmp_path):
    """Starts servers of one shop; their slow cards wait for a file in the folder of the test."""
    servers = []

    def start():
        store, ledger = f"sqlite:///{tmp_path}/idem.db", str(tmp_path / "ledger.db")
        servers.append(Server("server", "--store", store, "--ledger", ledger, "--gates", str(tmp_path)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(signal.SIGKILL)


@pytest.fixture
def server(start):
    return start()


def order(card="card-good"):
    return pb.ChargeRequest(order_id="o", card=card, amount=pb.Money(minor_units=500, currency="EUR"))


def test_refunds_and_reads(server, tmp_path):
    with closing(Client(server.ready())) as client:
        paid = pb.ChargeResponse.FromString(client.charge(order(), "k").body).payment
        refund = pb.RefundRequest(payment_id=paid.id, minor_units=300)
        first, second = client.refund(refund, "k"), client.refund(refund, "k")
        assert (first.code, first.replayed) == (grpc.StatusCode.OK, False)
        assert (second.code, second.replayed) == (grpc.StatusCode.OK, True)
        assert second.body == first.body
        assert client.get_payment(paid.id).refunded.minor_units == 300
        assert client.refund(refund, "k2").code is grpc.StatusCode.FAILED_PRECONDITION
        missing = client.refund(pb.RefundRequest(payment_id="none", minor_units=1), "k3")
        assert missing.code is grpc.StatusCode.NOT_FOUND
    assert [run.attempt for run in Ledger(tmp_path / "ledger.db").runs("o")] == [1]
    assert server.stop(signal.SIGTERM) == 0


def test_the_front_end_pays_with_tokens_alone(server, tmp_path):
    address = server.ready()
    with closing(Client(address)) as client, closing(Client(address, tenant="another")) as other:
        token = client.issue_token()
        assert other.pay(order(), token).reason == "TOKEN_MISMATCH"
        assert client.pay(order(), "pay:order-1").reason == "TOKEN_UNKNOWN"
        assert not Ledger(tmp_path / "ledger.db").runs("o")
        first, second = client.pay(order(), token), client.pay(order(), token)
    assert (first.code, first.replayed) == (grpc.StatusCode.OK, False)
    assert (second.body, second.replayed) == (first.body, True)
    assert len(Ledger(tmp_path / "ledger.db").payments("o")) == 1
    assert server.stop(signal.SIGTERM) == 0


def test_server_that_stops_ends_what_it_began(server, start, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    with closing(Client(server.ready())) as client, ThreadPoolExecutor() as pool:
        while not ledger.runs("o"):  # unless the deadline passed before the handler began
            late = client.charge(order("card-slow"), "k", timeout=1)
            # The second may find the first in progress, and be refused just before its own deadline.
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED or late.reason == "IN_PROGRESS"
        stopping = pool.submit(server.stop, signal.SIGTERM)
        # Until its port is closed, it refuses this: the key stands for another card. A connection
        # that the closing port had still taken is not answered at all.
        closed = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        until(lambda: client.charge(order(), "k", timeout=1).code in closed)
        assert not stopping.done()
        assert not ledger.payments("o")
        (tmp_path / "o").touch()
        assert stopping.result() == 0
    assert len(ledger.payments("o")) == 1
    with closing(Client(start().ready())) as client:
        answer = client.charge(order("card-slow"), "k")
    assert (answer.code, answer.replayed) == (grpc.StatusCode.OK, True)
    assert len(ledger.runs("o")) == 1


def test_client_by_hand(server, tmp_path):
    client = [sys.executable, "-m", "examples.checkout.client", server.ready(), "order-1"]

    def charge(amount: str) -> str:
        command = [*client, amount, "--key", "pay:order-1"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert charge("12.99").startswith("OK\n")
    assert charge("12.99").startswith("OK replayed\n")
    assert charge("99.99").startswith("KEY_REUSED\n")
    for amount in ("twelve", "nan"):
        ended = subprocess.run([*client, amount], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert f"invalid cents value: '{amount}'" in ended.stderr
