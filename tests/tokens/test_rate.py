"""The rate of tokens that one caller gets, across threads and servers."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2

import idem_grpc
from idem_grpc import Operation
from idem_grpc._core.durations import in_seconds
from idem_grpc._tokens.issuing import Declined, Subject, issue
from idem_grpc.stores._memory import MemoryStore
from tests.server.harness import open_store
from tests.tokens.servers import CHARGE, REFUND, TENANT, Clock, ask, issue_many, tenant, wanted
from tests.tokens.stores import Counted

RATE = Operation(ttl=900, max_ttl=3600, issue_rate=(600, 900))
ALICE, BOB = tenant("alice"), tenant("bob")


@pytest.fixture
def settings():
    operations = {name: Operation(issue_rate=(10, 60)) for name in (CHARGE, REFUND)}
    return {"operations": operations, "scope": idem_grpc.metadata(TENANT)}


def had(client, caller, operation=CHARGE, at_once=1):
    """How many tokens a caller gets until it is refused, and the refusal."""
    count = 0
    while (answer := ask(client, "IssueTokens", wanted(operation, at_once), caller)).ok:
        count += at_once
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return count, answer


def issued_until_declined(store, count, *, caller="alice", operation=RATE):
    """The same without a server."""
    had = 0
    while True:
        steps = issue(Subject(store.namespace, caller), CHARGE, operation, count, in_seconds(operation.ttl))
        try:
            batch = next(steps)
            while True:
                batch = steps.send(store.swap_many(batch))
        except StopIteration as end:
            had += len(end.value)
        except Declined:
            return had


def test_a_refusal_says_when_to_retry(start, clocked, clock, settings):
    client = start(store=clocked, **settings).client
    issue_many(client, metadata=ALICE)
    clock.now += 20
    assert had(client, ALICE)[0] == 9
    _, refused = had(client, ALICE)
    delay = refused.detail(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() == round(refused.pushback * 1000)
    assert refused.pushback == 40, "the window began with the first"


def test_the_window_renews(start, clocked, clock, settings):
    client = start(store=clocked, **settings).client
    assert had(client, ALICE)[0] == 10
    clock.now += 59.9
    assert had(client, ALICE)[0] == 0, "being refused makes it neither shorter nor longer"
    clock.now += 0.1
    assert had(client, ALICE)[0] == 10


def test_each_caller_and_each_operation_has_its_own_rate(start, url, settings):
    client = start(url, **settings).client
    assert had(client, ALICE)[0] == 10
    assert had(client, BOB)[0] == 10
    assert had(client, ALICE, REFUND)[0] == 10


def test_a_batch_that_is_too_large_costs_nothing(start, settings):
    client = start(**settings).client
    none, refused = had(client, ALICE, at_once=11)
    assert none == 0
    assert "11 at once are never issued" in refused.details, "who comes back with the same is refused again"
    assert had(client, ALICE, at_once=4)[0] == 8
    assert had(client, ALICE)[0] == 2


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_the_rate_holds_across_servers_on_one_store(start, url, settings):
    clients = [start(url, **settings).client for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda client: had(client, ALICE)[0], clients)
    assert sum(counts) == 10


@pytest.mark.parametrize("face", ["sync"], indirect=True)
@pytest.mark.parametrize("count", [1, 7])
def test_concurrent_requests_never_exceed_the_rate(face, url, count):
    operation = Operation(issue_rate=(100, 900))
    with open_store(face, url, "rate") as store, ThreadPoolExecutor(16) as pool:
        caller = f"caller-{id(store)}"
        issuers = [
            pool.submit(issued_until_declined, store, count, caller=caller, operation=operation)
            for _ in range(16)
        ]
        assert sum(issuer.result() for issuer in issuers) == 100 // count * count


def test_a_million_requests_keep_no_more_tokens_than_the_rate(own_redis_server):
    """In one window: the tokens of the rate are issued, and nothing else is kept."""
    with open_store("sync", own_redis_server.url, "rate") as store, own_redis_server.client() as client:
        assert sum(issued_until_declined(store, 100) for _ in range(10_000)) == 600
        assert client.dbsize() == 601


def test_requests_over_a_day_keep_no_more_tokens_than_can_live():
    """Tokens of the longest life are requested in each window."""
    clock = Clock()
    store = Counted(MemoryStore(clock=clock))
    longest = Operation(ttl=3600, max_ttl=3600, issue_rate=(600, 900))
    for window in range(96):
        assert issued_until_declined(store, 100, operation=longest) == 600
        store.swaps = store.swaps[-5 * 607 :]  # more than can live
        if window % 12 == 11:
            assert store.living() <= 600 * 3600 / 900 + 1
        clock.now += 900


def test_a_window_that_is_too_long_or_without_an_end_is_renewed():
    """The setting was longer before, or somebody removed the TTL of the record."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    assert issued_until_declined(store, 1, operation=Operation(issue_rate=(1, 100_000))) == 1
    assert issued_until_declined(store, 1, operation=RATE) == 599
    clock.now += 900
    assert issued_until_declined(store, 1, operation=RATE) == 600
