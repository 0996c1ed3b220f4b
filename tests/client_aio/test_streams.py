"""Streams are sent again whole, and gone on with where they broke off."""

import asyncio
from itertools import count

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import Reason, Retry, client_interceptors, keys
from tests.client_aio.scripted import (
    Step,
    answer,
    call,
    connected,
    error_of,
    fails,
    notes,
    parts,
    refuses,
    serving,
)
from tests.client_aio.serving import until
from tests.server.client import Kind
from tests.server.kinds import kinds

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
kind = kinds(Kind.SERVER_STREAM, Kind.BIDI)
upload = pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], ids=lambda kind: kind.value)


async def taken(rpc):
    """The parts that come before a stream fails, and its error."""
    came = []
    try:
        async for response in rpc:
            came.append((response.entry, response.part))
    except grpc.aio.AioRpcError as error:
        return came, error
    return came, None


async def test_a_stream_goes_on_where_it_broke_off(kind):
    steps = fails(responses=2, run="a"), fails(responses=1, run="a"), Step(responses=5, run="a")
    async with serving(*steps) as server, connected(server) as stub:
        came, error = await taken(call(stub, kind))
        assert error is None
        assert came == [("0", 0), ("0", 1), ("2", 2), ("2", 3), ("2", 4)]
        assert len(server.seen) == 3


async def test_it_may_break_off_again_further_on(kind):
    steps = [fails(responses=done, run="a") for done in range(1, 5)]
    async with serving(*steps, Step(responses=4, run="a")) as server, connected(server) as stub:
        came, error = await taken(call(stub, kind))
        assert error is None
        assert came == [("0", 0), ("1", 1), ("2", 2), ("3", 3)]


async def test_the_answer_of_another_run_is_not_mixed_in(kind):
    steps = fails(responses=2, run="a"), Step(responses=5, run="b")
    async with serving(*steps) as server, connected(server) as stub:
        rpc = call(stub, kind)
        came, error = await taken(rpc)
        assert came == [("0", 0), ("0", 1)]
        assert (error.code(), error.details()) == (UNAVAILABLE, "attempt 0 failed")
        assert await rpc.code() is UNAVAILABLE
        assert notes(error) == [
            "idem_grpc: 2 attempts were made",
            "idem_grpc: its stream could not be resumed, since the new answer is not of the same run",
        ]


@pytest.mark.parametrize("then", [Step(responses=5), Step(responses=0), Step(responses=1, run="a")])
async def test_an_answer_that_lacks_what_was_handed_over_does_not_end_the_stream_well(kind, then):
    async with serving(fails(responses=2, run="a"), then) as server, connected(server) as stub:
        came, error = await taken(call(stub, kind))
        assert len(came) == 2
        assert error.details() == "attempt 0 failed"


async def test_a_stream_of_no_known_run_is_not_retried_once_it_was_begun(kind):
    async with serving(fails(responses=2), Step()) as server, connected(server) as stub:
        came, error = await taken(call(stub, kind))
        assert len(came) == 2
        assert error.code() is UNAVAILABLE
        assert len(notes(error)) == 1
        assert "does not tell which run" in notes(error)[0]
        assert len(server.seen) == 1


async def test_a_run_that_is_not_over_is_waited_for_in_the_middle_of_a_stream(kind):
    waits = refuses(Reason.IN_PROGRESS)
    steps = fails(responses=2, run="a"), waits, waits, Step(responses=3, run="a")
    async with serving(*steps) as server, connected(server) as stub:
        came, error = await taken(call(stub, kind))
        assert error is None
        assert [part for _, part in came] == [0, 1, 2]


async def test_reading_one_by_one(kind):
    steps = fails(responses=1, run="a"), Step(responses=3, run="a")
    async with serving(*steps) as server, connected(server) as stub:
        rpc = call(stub, kind)
        assert [(await rpc.read()).part for _ in range(3)] == [0, 1, 2]
        assert await rpc.read() is grpc.aio.EOF
        assert await rpc.code() is grpc.StatusCode.OK


async def test_the_end_shows_once_all_was_read(kind):
    async with serving() as server, connected(server) as stub:
        rpc = call(stub, kind)
        for _ in range(3):
            await rpc.read()
        assert await rpc.code() is grpc.StatusCode.OK


async def test_an_empty_stream(kind):
    async with serving(fails(), Step(responses=0)) as server, connected(server) as stub:
        assert await taken(call(stub, kind)) == ([], None)


async def test_no_more_is_read_than_is_wanted():
    """One message is fetched ahead; the others wait at the server."""
    made = count()

    class Endless(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, client_call_details, request):
            await continuation(client_call_details, request)

            async def responses():
                while True:
                    yield pb.LedgerResponse(part=next(made))

            return responses()

    ours = client_interceptors(keys=keys.unique)
    async with serving() as server, connected(server, interceptors=[*ours, Endless()]) as stub:
        rpc = stub.ServerStream(pb.LedgerRequest())
        assert (await rpc.read()).part == 0
        assert (await rpc.read()).part == 1
        await asyncio.sleep(0.01)
        assert next(made) <= 3


@upload
async def test_writing_one_by_one_is_retried_too(kind):
    async with serving(fails(reads=2), Step()) as server, connected(server) as stub:
        rpc = getattr(stub, kind.value)()
        for part in range(4):
            await rpc.write(pb.LedgerRequest(part=part))
        await rpc.done_writing()
        assert await answer(kind, rpc)
        assert [request.part for request in server.seen[1].requests] == [0, 1, 2, 3]
        assert server.seen[1].was_complete


@upload
async def test_a_server_that_ends_the_call_in_the_middle_of_an_upload_is_heard(kind):
    """grpc.aio calls it INTERNAL if it is just then sending."""

    async def requests():
        for part in range(200):
            yield pb.LedgerRequest(part=part, filler=b"x" * 1000)

    retry = Retry(initial_backoff=0.001, max_backoff=0.001, max_attempts=40, budget=None)
    steps = [fails(reads=reads) for reads in range(20)]
    not_found = fails(grpc.StatusCode.NOT_FOUND, reads=3)
    async with serving(*steps, not_found) as server, connected(server, retry=retry) as stub:
        error = await error_of(kind, getattr(stub, kind.value)(requests()))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "attempt 20 failed")


@upload
@pytest.mark.parametrize("make", [list, iter, parts], ids=["list", "iterator", "async"])
async def test_requests_come_from_any_iterable(kind, make):
    requests = parts(3) if make is parts else make([pb.LedgerRequest(part=part) for part in range(3)])
    async with serving(fails(reads=1), fails(), Step()) as server, connected(server) as stub:
        assert await answer(kind, getattr(stub, kind.value)(requests))
        assert [request.part for request in server.seen[2].requests] == [0, 1, 2]


@upload
async def test_one_message_may_serve_for_all_requests(kind):
    async def requests():
        request = pb.LedgerRequest()
        for part in range(3):
            request.part = part
            yield request

    async with serving(fails(), Step()) as server, connected(server) as stub:
        assert await answer(kind, getattr(stub, kind.value)(requests()))
        assert [request.part for request in server.seen[1].requests] == [0, 1, 2]


@upload
async def test_a_generator_runs_in_one_task_and_once(kind):
    tasks = set()

    async def requests():
        async with asyncio.timeout(20):
            for part in range(3):
                tasks.add(asyncio.current_task())
                yield pb.LedgerRequest(part=part)

    async with serving(fails(reads=1), fails(reads=2), Step()) as server, connected(server) as stub:
        assert await answer(kind, getattr(stub, kind.value)(requests()))
        assert len(tasks) == 1


@upload
async def test_a_request_stream_that_is_too_large_is_sent_once(kind):
    retry = Retry(initial_backoff=0.01, max_request_bytes=1000)
    large = [pb.LedgerRequest(filler=b"x" * 600, part=part) for part in range(4)]
    async with serving(Step(), fails(), Step()) as server, connected(server, retry=retry) as stub:
        assert await answer(kind, getattr(stub, kind.value)(large))
        assert [request.part for request in server.seen[0].requests] == [0, 1, 2, 3]
        error = await error_of(kind, getattr(stub, kind.value)(large))
        assert error.code() is UNAVAILABLE
        assert len(server.seen) == 2
        (note,) = notes(error)
        assert "max_request_bytes" in note


@upload
async def test_it_may_be_sent_again_before_it_is_too_large(kind):
    retry = Retry(initial_backoff=0.01, max_request_bytes=1000)
    large = [pb.LedgerRequest(filler=b"x" * 600, part=part) for part in range(4)]
    async with serving(fails(reads=0), Step()) as server, connected(server, retry=retry) as stub:
        rpc = getattr(stub, kind.value)()
        await rpc.write(large[0])
        await server.attempts(2)
        for request in large[1:]:
            await rpc.write(request)
        await rpc.done_writing()
        assert await answer(kind, rpc)
        assert [request.part for request in server.seen[1].requests] == [0, 1, 2, 3]


@upload
async def test_a_request_iterator_that_raises_cancels_the_call(kind):
    """As grpc itself has it."""

    async def requests():
        yield pb.LedgerRequest(part=0)
        raise LookupError("no more paper")

    async with serving(Step(turns=kind is Kind.BIDI)) as server, connected(server) as stub:
        rpc = getattr(stub, kind.value)(requests())
        with pytest.raises(asyncio.CancelledError):
            await answer(kind, rpc)
        assert await rpc.code() is grpc.StatusCode.CANCELLED


@upload
async def test_an_answer_before_the_requests_are_over(kind):
    async with serving(Step(reads=1)) as server, connected(server) as stub:
        rpc = getattr(stub, kind.value)()
        await rpc.write(pb.LedgerRequest(part=0))
        assert await answer(kind, rpc)
        with pytest.raises(asyncio.InvalidStateError):
            await rpc.write(pb.LedgerRequest(part=1))


async def test_writing_after_the_end_is_refused():
    async with serving(Step(turns=True, hangs=True)) as server, connected(server) as stub:
        rpc = stub.Bidi()
        await rpc.write(pb.LedgerRequest(part=0))
        await rpc.read()
        await rpc.done_writing()
        await server.attempts(1)
        await until(lambda: server.seen[0].was_complete)
        with pytest.raises(asyncio.InvalidStateError):
            await rpc.write(pb.LedgerRequest(part=1))
        rpc.cancel()


async def test_turns_are_taken_across_a_retry():
    steps = Step(code=UNAVAILABLE, reads=2, turns=True, run="a"), Step(turns=True, run="a")
    async with serving(*steps) as server, connected(server) as stub:
        rpc = stub.Bidi()
        came = []
        for part in range(4):
            await rpc.write(pb.LedgerRequest(part=part))
            response = await rpc.read()
            came.append((response.entry, response.part))
        await rpc.done_writing()
        assert await rpc.read() is grpc.aio.EOF
        assert came == [("0", 0), ("0", 1), ("1", 2), ("1", 3)]
        assert [request.part for request in server.seen[1].requests] == [0, 1, 2, 3]


async def test_turns_of_an_iterator_are_taken_across_a_retry():
    steps = Step(code=UNAVAILABLE, reads=2, turns=True, run="a"), Step(turns=True, run="a")
    answered = asyncio.Semaphore(1)

    async def requests():
        for part in range(4):
            await answered.acquire()
            yield pb.LedgerRequest(part=part)

    async with serving(*steps) as server, connected(server) as stub:
        came = []
        async for response in stub.Bidi(requests()):
            came.append((response.entry, response.part))
            answered.release()
        assert came == [("0", 0), ("0", 1), ("1", 2), ("1", 3)]
