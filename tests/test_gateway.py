"""The HTTP gateway of the examples, with its real processes: what its clients get, and what is charged."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2

from examples.fastapi_gateway.check import PRICE, SCENES, Browser
from examples.fastapi_gateway.launch import Launched
from examples.fastapi_gateway.problems import BUSINESS, CODES, REFUSALS, problem
from idem_grpc import Reason, keys
from idem_grpc._core.problem import Problem
from tests.support.wait import until

GATEWAY = "examples.fastapi_gateway"


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """Where a slow card's bank waits for a file named for the order."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def gateway(gates):
    with Launched(GATEWAY, "--child", "--gates", str(gates)) as gateway:
        yield gateway.address
        assert gateway.stop() == 0


@pytest.fixture
def browser(gateway):
    browser = Browser(gateway)
    yield browser
    browser.close()


@pytest.fixture
def order():
    return f"order-{keys.unique()}"


@pytest.fixture
def post(gateway, order):
    """Posts a payment with just these headers, and fields in place of the usual ones."""

    def post(headers=(), **fields) -> httpx.Response:
        payment = {"order_id": order, "minor_units": PRICE, "card": "card-good"} | fields
        return httpx.post(f"{gateway}payments", json=payment, headers=list(headers), timeout=20)

    return post


def run(*options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", GATEWAY, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def key(value: str) -> list[tuple[str, str]]:
    return [("Idempotency-Key", value)]


def test_check():
    ran = run("--check")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line[0] for line in ran.stdout.splitlines()[1:-2]] == ["✓"] * len(SCENES)
    assert ran.stdout.endswith(f"All {len(SCENES)} scenes held.\n")
    assert not ran.stderr


def test_the_answer_to_a_payment(post, order, browser):
    first, second = (post(key(f'"{order}"')) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert first.json()["order_id"] == order
    assert first.json()["minor_units"] == PRICE
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["idempotency-run"] == first.headers["idempotency-run"]
    assert browser.books(order) == {"runs": 1, "charges": 1, "minor_units": PRICE}


def test_posts_at_once_pay_once(browser, order):
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda _: browser.pay(order), range(8))]
    assert sum(str(answer) == "201" for answer in answers) == 1
    assert {str(answer) for answer in answers} <= {"201", "201 replayed", "409 IN_PROGRESS"}
    assert browser.books(order) == {"runs": 1, "charges": 1, "minor_units": PRICE}


def test_a_payment_in_progress_is_409_with_retry_after(browser, order, gates):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(browser.pay, order, card="card-slow")
        until(lambda: browser.books(order)["runs"])
        busy = browser.pay(order, card="card-slow")
        assert str(busy) == "409 IN_PROGRESS"
        assert busy.retry_after is not None
        assert 1 <= busy.retry_after <= 10
        assert not first.done()
        (gates / order).touch()
        paid = first.result()
    assert str(paid) == "201"
    again = browser.pay(order, card="card-slow")
    assert (str(again), again.body) == ("201 replayed", paid.body)
    assert browser.books(order)["charges"] == 1


@pytest.mark.parametrize(
    "changed", [{"minor_units": 2 * PRICE}, {"card": "card-declined"}, {"currency": "CHF"}]
)
def test_a_key_with_another_payload_is_422(post, browser, order, changed):
    assert post(key(f'"{order}"')).status_code == 201
    refused = post(key(f'"{order}"'), **changed)
    assert refused.status_code == 422
    assert refused.json()["code"] == "KEY_REUSED"
    assert "retry-after" not in refused.headers
    assert browser.books(order)["charges"] == 1


def test_a_lost_reply_is_told_to_whoever_asks_again(browser, order):
    assert browser.pay(order, lose=True).status == 0
    assert browser.books(order)["charges"] == 1
    assert str(browser.pay(order)) == "201 replayed"
    assert browser.books(order) == {"runs": 1, "charges": 1, "minor_units": PRICE}


def test_a_declined_card_is_402_and_stays_so(browser, order):
    first, second = (browser.pay(order, card="card-declined") for _ in range(2))
    assert [str(first), str(second)] == ["402 CARD_DECLINED", "402 CARD_DECLINED replayed"]
    assert first.body == second.body
    assert browser.books(order) == {"runs": 1, "charges": 0, "minor_units": 0}


def test_without_a_key_it_is_400(post, browser, order):
    refused = post()
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "KEY_REQUIRED"
    assert refused.json()["type"].endswith("/problems.html#KEY_REQUIRED")
    assert browser.books(order)["runs"] == 0


NO_KEYS = ("", '""', '"a b"', '"k', '"a", "b"', '"k";v=1', "a, b", "k" * 256, '"\\n"')


@pytest.mark.parametrize("headers", [*map(key, NO_KEYS), key('"a"') + key('"b"')])
def test_what_cannot_be_a_key_is_400(post, browser, order, headers):
    refused = post(headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "KEY_INVALID")
    assert browser.books(order)["runs"] == 0


def test_a_bare_key_is_the_same_as_one_in_quotes(post, order):
    assert post(key(f'"{order}"')).status_code == 201
    assert post(key(order)).headers["idempotency-replayed"] == "true"


def test_a_key_may_bear_quotes_that_are_escaped(post, order):
    assert post(key(f'"\\"{order}\\\\"')).status_code == 201


@pytest.mark.parametrize("changed", [{"minor_units": 0}, {"minor_units": "x"}, {"card": ""}, {"more": 1}])
def test_a_body_that_is_no_payment_is_400_and_not_422(post, changed):
    refused = post(key('"k-400"'), **changed)
    assert (refused.status_code, refused.json()["code"]) == (400, "BAD_REQUEST")


def test_a_payment_that_takes_too_long_is_504_and_goes_on(tmp_path, order):
    with Launched(GATEWAY, "--child", "--gates", str(tmp_path), "--deadline", "1") as gateway:
        browser = Browser(gateway.address)

        def booked(what):
            try:
                return browser.books(order)[what]
            except httpx.HTTPStatusError:  # the deadline is also that of the books
                return 0

        late = browser.pay(order, card="card-slow")
        assert (late.status, late.code, late.retry_after) == (504, "DEADLINE_EXCEEDED", 1)
        while not booked("runs"):  # unless it passed before the run began
            late = browser.pay(order, card="card-slow")
            assert str(late) in {"504 DEADLINE_EXCEEDED", "409 IN_PROGRESS"}
        (tmp_path / order).touch()
        until(lambda: booked("charges"))
        until(lambda: str(browser.pay(order, card="card-slow")) == "201 replayed")
        assert until(lambda: booked("runs")) == 1
        browser.close()


def refusal(reason: Reason) -> grpc.aio.AioRpcError:
    outcome = Problem(reason).outcome()
    code = next(code for code in grpc.StatusCode if code.value[0] == outcome.code)
    trailing = grpc.aio.Metadata(*outcome.trailing_metadata)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, outcome.details)


# Why updates are refused, which payments are not: their gRPC statuses say enough.
OF_UPDATES = {Reason.ETAG_MISMATCH: 409, Reason.MASK_INVALID: 400}


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_has_a_status_and_says_whether_to_come_back(reason):
    found = problem(refusal(reason))
    assert (found.status, found.code) == ((REFUSALS | OF_UPDATES)[reason], reason)
    assert (found.retry_after is not None) == (reason.retryable or reason is Reason.LEASE_LOST)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_other_failure_has_a_status(code):
    found = problem(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata()))
    assert (found.status, found.code) == (CODES.get(code, 500), code.name)


def test_a_reason_that_the_gateway_does_not_know_keeps_its_status():
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="OUT_OF_TEA", domain="tea"))
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    found = problem(grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing))
    assert (found.status, found.code) == (404, "OUT_OF_TEA")


def test_problems_lead_to_a_page_that_explains_them(gateway):
    page = httpx.get(f"{gateway}problems.html").raise_for_status().text
    for code, status in (REFUSALS | BUSINESS | {"BAD_REQUEST": 400}).items():
        assert f'id="{code}">{code}, {status}<' in page


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_gateway_that_ends_takes_its_service_with_it(number, status):
    gateway = subprocess.Popen(
        [sys.executable, "-m", GATEWAY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert gateway.stdout is not None
        httpx.get(gateway.stdout.readline().split()[-1]).raise_for_status()
        gateway.send_signal(number)
        # The service has the other end of its stderr too, so this ends with the last of them.
        _, said = gateway.communicate(timeout=30)
    finally:
        gateway.kill()
    assert gateway.returncode == status
    assert "Traceback" not in said


def test_a_check_that_is_stopped_has_not_held():
    check = subprocess.Popen([sys.executable, "-m", GATEWAY, "--check"], stdout=subprocess.PIPE, text=True)
    try:
        assert check.stdout is not None
        while "✓" not in check.stdout.readline():
            assert check.poll() is None
        check.terminate()
        check.communicate(timeout=30)
    finally:
        check.kill()
    assert check.returncode == 1
