"""When a call is sent again, and when it is not."""

import asyncio
from collections import Counter
from time import monotonic

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import Budget, Reason, Retry, client_interceptors, keys, reason
from tests.client_aio.scripted import (
    NOWHERE,
    QUICK,
    Step,
    answer,
    call,
    connected,
    error_of,
    fails,
    notes,
    pushes_back,
    refuses,
    serving,
)
from tests.server.client import Kind

UNAVAILABLE, ABORTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SECONDS = 60.0  # longer than any test may take
FINAL = sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK, UNAVAILABLE}, key=lambda code: code.name)
REFUSALS = [reason for reason in Reason if not reason.retryable]


async def test_what_is_unavailable_is_sent_again(kind):
    async with serving(fails(), fails(), Step()) as server, connected(server) as stub:
        responses = await answer(kind, call(stub, kind))
        assert {response.entry for response in responses} == {"2"}
        assert len(responses) == (3 if kind.has_response_stream else 1)
        assert len(server.seen) == 3


async def test_a_request_stream_is_sent_again_whole():
    async with serving(fails(reads=1), fails(), Step()) as server, connected(server) as stub:
        await stub.ClientStream(call_parts(5))
        assert [request.part for request in server.seen[2].requests] == [0, 1, 2, 3, 4]
        assert server.seen[2].was_complete


async def call_parts(count):
    for part in range(count):
        yield pb.LedgerRequest(part=part)


@pytest.mark.parametrize("code", FINAL, ids=lambda code: code.name)
async def test_other_codes_end_the_call(kind, code):
    async with serving(fails(code), Step()) as server, connected(server) as stub:
        rpc = call(stub, kind)
        error = await error_of(kind, rpc)
        assert (error.code(), error.details()) == (code, "attempt 0 failed")
        assert await rpc.code() is code
        assert notes(error) == []
        assert len(server.seen) == 1


async def test_more_codes_are_retried_by_choice(kind):
    retry = Retry(initial_backoff=0.01, codes=[UNAVAILABLE, ABORTED])
    async with serving(fails(ABORTED), Step()) as server, connected(server, retry=retry) as stub:
        assert await answer(kind, call(stub, kind))


async def test_the_error_says_how_often_the_call_was_sent(kind):
    retry = Retry(initial_backoff=0.001, max_attempts=4)
    async with serving(fails()) as server, connected(server, retry=retry) as stub:
        error = await error_of(kind, call(stub, kind))
        assert (error.code(), error.details()) == (UNAVAILABLE, "attempt 3 failed")
        assert notes(error) == ["idem_grpc: 4 attempts were made"]
        assert len(server.seen) == 4


async def test_a_pushback_is_waited_for(kind):
    async with serving(pushes_back("300"), Step()) as server, connected(server) as stub:
        began = monotonic()
        await answer(kind, call(stub, kind))
        assert monotonic() - began >= 0.3


async def test_exhaustion_is_retried_if_the_server_says_when(kind):
    async with serving(pushes_back("1", EXHAUSTED), Step()) as server, connected(server) as stub:
        assert await answer(kind, call(stub, kind))


@pytest.mark.parametrize("milliseconds", ["-1", "soon", "1.5", "", "9" * 400])
async def test_a_pushback_that_is_negative_or_no_number_ends_the_call(kind, milliseconds):
    async with serving(pushes_back(milliseconds), Step()) as server, connected(server) as stub:
        assert (await error_of(kind, call(stub, kind))).code() is UNAVAILABLE
        assert len(server.seen) == 1


async def test_a_pushback_beyond_the_deadline_ends_the_call_at_once(kind):
    async with serving(pushes_back("50000"), Step()) as server, connected(server) as stub:
        assert (await error_of(kind, call(stub, kind, timeout=20))).code() is UNAVAILABLE
        assert len(server.seen) == 1


@pytest.mark.parametrize("why", REFUSALS)
async def test_refusals_that_cannot_be_helped_are_not_retried(kind, why):
    retry = Retry(initial_backoff=0.001, codes=set(grpc.StatusCode) - {grpc.StatusCode.OK})
    async with serving(refuses(why), Step()) as server, connected(server, retry=retry) as stub:
        error = await error_of(kind, call(stub, kind))
        assert reason(error) is why
        assert len(server.seen) == 1


@pytest.mark.parametrize("why", [Reason.IN_PROGRESS, Reason.OUTCOME_PENDING])
async def test_waiting_for_a_run_costs_neither_attempts_nor_budget(kind, why):
    retry = Retry(initial_backoff=0.001, max_backoff=0.002, max_attempts=2, budget=Budget(2, 0.1))
    async with serving(*[refuses(why)] * 20, Step()) as server, connected(server, retry=retry) as stub:
        assert await answer(kind, call(stub, kind))
        assert len(server.seen) == 21


async def test_one_attempt_waits_for_a_run(kind):
    retry = Retry(initial_backoff=0.001, max_backoff=0.002, max_attempts=1)
    steps = [refuses(Reason.IN_PROGRESS)] * 3
    async with serving(*steps, Step()) as server, connected(server, retry=retry) as stub:
        assert await answer(kind, call(stub, kind))


async def test_calls_that_are_never_sent_again_feed_the_budget_too(kind):
    retry = Retry(initial_backoff=0.001, max_attempts=3, budget=Budget(max_tokens=4, ratio=1))
    steps = fails(), fails(), *[Step()] * 6, fails()
    async with serving(*steps) as server, connected(server, retry=retry, keys=None) as stub:
        with keys.using("k"):
            await error_of(Kind.UNARY, call(stub, Kind.UNARY))
        assert len(server.seen) == 2  # the budget is used up
        for _ in range(6):
            await answer(kind, call(stub, kind))
        assert server.keys[2:] == [None] * 6
        with keys.using("k"):
            await error_of(Kind.UNARY, call(stub, Kind.UNARY))
        assert len(server.seen) == 2 + 6 + 2  # there is another retry


async def test_the_budget_is_that_of_the_channel():
    retry = Retry(initial_backoff=0.001, max_attempts=3, budget=Budget(max_tokens=6, ratio=0.1))
    async with serving(fails()) as server, connected(server, retry=retry) as stub:
        made = []
        for kind in (Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM):
            before = len(server.seen)
            await error_of(kind, call(stub, kind))
            made.append(len(server.seen) - before)
        assert made == [3, 1, 1]
        async with connected(server, retry=retry) as another:
            before = len(server.seen)
            await error_of(Kind.UNARY, call(another, Kind.UNARY))
            assert len(server.seen) - before == 3


async def test_an_attempt_has_a_deadline_of_its_own(kind):
    retry = Retry(initial_backoff=0.01, attempt_timeout=0.2)
    hangs = Step(hangs=True, responses=0)
    async with serving(hangs, Step(run="r")) as server, connected(server, retry=retry) as stub:
        assert await answer(kind, call(stub, kind, timeout=SECONDS))
        assert len(server.seen) >= 2  # it may have passed for another attempt
        assert all(seen.time_remaining < 1 for seen in server.seen)
        assert len(set(server.keys)) == 1


async def test_without_one_an_attempt_has_the_deadline_of_the_call(kind):
    async with serving(fails(), Step()) as server, connected(server) as stub:
        assert await answer(kind, call(stub, kind, timeout=SECONDS))
        assert [abs(seen.time_remaining - SECONDS) < 10 for seen in server.seen] == [True, True]


async def test_the_deadline_of_the_call_wins(kind):
    retry = Retry(initial_backoff=0.001, attempt_timeout=0.15, budget=None)
    async with serving(Step(hangs=True, responses=0)) as server, connected(server, retry=retry) as stub:
        attempts, timeout = 0, 0.2
        while attempts < 2:  # unless it passed before the second
            timeout *= 2
            began = monotonic()
            error = await error_of(kind, call(stub, kind, timeout=timeout))
            assert error.code() is DEADLINE_EXCEEDED
            assert monotonic() - began < timeout + 5
            attempts = max(Counter(server.keys).values(), default=0)


async def test_an_attempt_timeout_is_not_for_calls_that_are_not_sent_again(kind):
    retry = Retry(attempt_timeout=0.05)
    async with serving() as server, connected(server, retry=retry, keys=None) as stub:
        assert await answer(kind, call(stub, kind, timeout=SECONDS))
        assert server.seen[0].time_remaining > 1


async def test_a_call_that_cannot_connect_is_retried_until_it_can(kind):
    interceptors = client_interceptors(keys=keys.unique, retry=QUICK)
    async with grpc.aio.insecure_channel(NOWHERE, interceptors=interceptors) as channel:
        body = call_parts(1) if kind.has_request_stream else b""
        rpc = getattr(channel, kind.arity)(kind.path, pb.LedgerRequest.SerializeToString)
        error = await error_of(kind, rpc(body if kind.has_request_stream else pb.LedgerRequest()))
        assert error.code() is UNAVAILABLE
        assert notes(error) == ["idem_grpc: 10 attempts were made"]


async def test_calls_at_once_are_retried_each_for_itself(kind):
    async with serving(*[fails()] * 20, Step()) as server, connected(server) as stub:
        answers = await asyncio.gather(*(answer(kind, call(stub, kind)) for _ in range(20)))
        assert all(answers)
        assert len(set(server.keys)) == 20
