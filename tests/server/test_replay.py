"""A duplicate gets the complete first answer, and the handler runs once."""

import grpc
import pytest

from idem_grpc import Policy, Reason
from tests.server.ledger import STATUS_DETAILS, order, run

BINARY = bytes(range(256))


@pytest.fixture
def server(start, url):
    return start(url, max_waiters=32)


def twice(server, kind, request, key):
    """Make a call and its duplicate, and return both answers, which are the same."""
    first = server.client.call(kind, request, key)
    second = server.client.call(kind, request, key)
    assert second.essence == first.essence
    assert (first.replayed, second.replayed) == (False, True)
    assert first.run
    assert len(server.ledger.runs(request)) == 1
    return first, second


def test_a_duplicate_gets_the_first_answer(server, kind, key):
    first, _ = twice(server, kind, order(), key)
    assert first.ok


def test_concurrent_duplicates_get_one_answer(server, kind, key):
    request = order(run(gate="at work"))
    calls = [server.client.begin(kind, request, key) for _ in range(20)]
    server.ledger.gate("at work").await_arrival()
    calls += [server.client.begin(kind, request, key) for _ in range(5)]
    server.ledger.gate("at work").open()
    answers = [call.answer() for call in calls]
    assert {answer.code for answer in answers} == {grpc.StatusCode.OK}
    assert len({answer.essence for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len(server.ledger.runs(request)) == 1


def test_other_keys_are_other_calls(server, kind):
    request = order()
    first = server.client.call(kind, request, "one")
    second = server.client.call(kind, request, "two")
    assert first.entry != second.entry
    assert first.run != second.run
    assert not second.replayed


def test_another_payload_is_refused(server, kind, key):
    first = server.client.call(kind, order(amount=1299), key)
    other = order(amount=2999)
    answer = server.client.call(kind, other, key)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REUSED)
    assert answer.run == first.run
    assert not answer.messages
    assert not server.ledger.runs(other)


def test_another_payload_is_refused_while_the_first_runs(server, kind, key):
    request, other = order(run(gate="at work")), order()
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    refused = server.client.begin(kind, other, key)
    if not kind.has_request_stream:  # which is compared with an answer, once there is one
        assert refused.answer().reason is Reason.KEY_REUSED
    server.ledger.gate("at work").open()
    assert first.answer().ok
    assert refused.answer().reason is Reason.KEY_REUSED
    assert not server.ledger.runs(other)


def test_a_business_error_is_replayed_byte_for_byte(server, kind, key):
    failing = run(
        "ABORT_WITH_STATUS",
        grpc.StatusCode.FAILED_PRECONDITION,
        details="the card was declined: zu wenig Geld für 1 €",
        trailing=[("bank-bin", BINARY), ("bank", "one"), ("bank", "two")],
    )
    first, _ = twice(server, kind, order(failing), key)
    assert first.code is grpc.StatusCode.FAILED_PRECONDITION
    assert first.details == failing.details
    assert first.error_info is not None
    assert first.error_info.domain == "ledger"
    assert [pair for pair in first.trailing if pair[0] != STATUS_DETAILS] == [
        ("bank-bin", BINARY),
        ("bank", "one"),
        ("bank", "two"),
    ]


def test_metadata_of_a_success_is_replayed_whole(server, kind, key):
    fees: list[tuple[str, str | bytes]] = [("fee", "12"), ("fee", "13"), ("note", "a b, c")]
    metadata = [*fees, ("seal-bin", BINARY), ("seal-bin", b"")]
    first, _ = twice(server, kind, order(run(initial=metadata, trailing=metadata)), key)
    assert first.ok
    assert list(first.trailing) == metadata
    own = [pair for pair in first.initial if pair[0] != "idempotency-run"]  # streams have it there as well
    assert own == metadata


def test_an_empty_message_is_an_answer(server, kind, key):
    first, second = twice(server, kind, order(run("EMPTY")), key)
    assert first.ok
    assert second.messages[-1] == b"" or kind.has_response_stream


def test_an_answer_over_the_limit_is_given_to_the_first_caller_only(start, url, kind, key):
    server = start(url, default=Policy(max_response_bytes=1000))
    request = order(run(filler_bytes=1001))
    first = server.client.call(kind, request, key)
    assert first.ok
    assert len(first.responses[0].filler) == 1001
    for _ in range(2):
        answer = server.client.call(kind, request, key)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.RESPONSE_NOT_KEPT,
        )
        assert answer.run == first.run
        assert not answer.messages
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("url", ["redis"], indirect=True)
def test_large_messages(start, url, kind, key):
    server = start(url, default=Policy(max_response_bytes=16 << 20))
    first, second = twice(server, kind, order(run(filler_bytes=3 << 20), filler=b"\x5a" * (3 << 20)), key)
    assert first.ok
    assert len(second.responses[0].filler) == 3 << 20


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_another_server_replays_the_answer(start, url, kind, key):
    request, one, other = order(), start(url), start(url)
    first = one.client.call(kind, request, key)
    one.stop(grace=0)
    second = other.client.call(kind, request, key)
    assert second.essence == first.essence
    assert second.replayed
    assert not other.ledger.all_runs
