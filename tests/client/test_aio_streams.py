"""What only streams of ``grpc.aio`` have: reading and writing one by one, and async iterators of requests."""

import asyncio
from itertools import count

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc.aio import Retry, client_interceptors, keys
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.support.aio_calls import arrived, begin, connected, error_of, parts, responses_of, until
from tests.support.scripted import UNAVAILABLE, answer, fail, turns

kind = kinds(Kind.SERVER_STREAM, Kind.BIDI)
upload = pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], ids=lambda kind: kind.value)


async def test_reading_one_by_one(script, kind):
    server = script(answer(0, run="a", then=UNAVAILABLE), answer(0, 1, 2, run="a"))
    async with connected(server) as stub:
        rpc = begin(stub, kind)
        assert [(await rpc.read()).part for _ in range(3)] == [0, 1, 2]
        assert await rpc.read() is grpc.aio.EOF
        assert await rpc.code() is grpc.StatusCode.OK


async def test_the_status_shows_once_all_was_read(script, kind):
    async with connected(script(answer(0, 1, 2))) as stub:
        rpc = begin(stub, kind)
        for _ in range(3):
            await rpc.read()
        assert await rpc.code() is grpc.StatusCode.OK


async def test_no_more_is_read_than_is_wanted(script):
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
    async with connected(script(answer()), interceptors=[*ours, Endless()]) as stub:
        rpc = stub.ServerStream(pb.LedgerRequest())
        assert (await rpc.read()).part == 0
        assert (await rpc.read()).part == 1
        for _ in range(20):  # more rounds of the loop than reading ahead would take
            await asyncio.sleep(0)
        assert next(made) <= 3


@upload
async def test_writing_one_by_one_is_retried_too(script, kind):
    server = script(fail(reads=2), answer())
    async with connected(server) as stub:
        rpc = getattr(stub, kind.value)()
        for part in range(4):
            await rpc.write(pb.LedgerRequest(part=part))
        await rpc.done_writing()
        assert await responses_of(kind, rpc)
    assert server.seen[1].parts == [0, 1, 2, 3]
    assert server.seen[1].was_complete


@upload
@pytest.mark.parametrize("make", [list, iter, parts], ids=["list", "iterator", "async"])
async def test_requests_come_from_any_iterable(script, kind, make):
    requests = parts(3) if make is parts else make([pb.LedgerRequest(part=part) for part in range(3)])
    server = script(fail(reads=1), fail(), answer())
    async with connected(server) as stub:
        assert await responses_of(kind, getattr(stub, kind.value)(requests))
    assert server.seen[2].parts == [0, 1, 2]


@upload
async def test_a_server_that_ends_the_call_in_the_middle_of_an_upload_is_heard(script, kind):
    """grpc.aio calls it INTERNAL if it is just then sending."""

    async def requests():
        for part in range(200):
            yield pb.LedgerRequest(part=part, filler=b"x" * 1000)

    retry = Retry(initial_backoff=0.001, max_backoff=0.001, max_attempts=40, budget=None)
    not_found = fail(grpc.StatusCode.NOT_FOUND, reads=3, details="gone")
    server = script(*[fail(reads=reads) for reads in range(20)], not_found)
    async with connected(server, retry=retry) as stub:
        error = await error_of(kind, getattr(stub, kind.value)(requests()))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")


@upload
async def test_a_generator_runs_in_one_task_and_once(script, kind):
    tasks = set()

    async def requests():
        async with asyncio.timeout(20):
            for part in range(3):
                tasks.add(asyncio.current_task())
                yield pb.LedgerRequest(part=part)

    async with connected(script(fail(reads=1), fail(reads=2), answer())) as stub:
        assert await responses_of(kind, getattr(stub, kind.value)(requests()))
    assert len(tasks) == 1


@upload
async def test_requests_may_be_sent_again_before_they_are_too_large(script, kind):
    large = [pb.LedgerRequest(filler=b"x" * 600, part=part) for part in range(4)]
    server = script(fail(), answer())
    async with connected(server, retry=Retry(initial_backoff=0.01, max_request_bytes=1000)) as stub:
        rpc = getattr(stub, kind.value)()
        await rpc.write(large[0])
        await arrived(server, 2)
        for request in large[1:]:
            await rpc.write(request)
        await rpc.done_writing()
        assert await responses_of(kind, rpc)
    assert server.seen[1].parts == [0, 1, 2, 3]


@upload
async def test_a_request_iterator_that_raises_cancels_the_call(script, kind):
    """As in grpc itself."""

    async def requests():
        yield pb.LedgerRequest(part=0)
        raise LookupError("no more paper")

    async with connected(script(turns("r") if kind is Kind.BIDI else answer())) as stub:
        rpc = getattr(stub, kind.value)(requests())
        with pytest.raises(asyncio.CancelledError):
            await responses_of(kind, rpc)
        assert await rpc.code() is grpc.StatusCode.CANCELLED


@upload
async def test_an_answer_before_the_requests_are_over(script, kind):
    async with connected(script(answer(reads=1))) as stub:
        rpc = getattr(stub, kind.value)()
        await rpc.write(pb.LedgerRequest(part=0))
        assert await responses_of(kind, rpc)
        with pytest.raises(asyncio.InvalidStateError):
            await rpc.write(pb.LedgerRequest(part=1))


async def test_writing_after_the_end_is_refused(script):
    server = script(turns("r"))
    async with connected(server) as stub:
        rpc = stub.Bidi()
        await rpc.write(pb.LedgerRequest(part=0))
        await rpc.read()
        await rpc.done_writing()
        await until(lambda: server.seen[0].was_complete)
        with pytest.raises(asyncio.InvalidStateError):
            await rpc.write(pb.LedgerRequest(part=1))
        rpc.cancel()


async def test_turns_of_reads_and_writes_are_taken_across_a_retry(script):
    server = script(turns("a", breaks_off_after=2), turns("a"))
    async with connected(server) as stub:
        rpc = stub.Bidi()
        found = []
        for part in range(4):
            await rpc.write(pb.LedgerRequest(part=part))
            response = await rpc.read()
            found.append((response.entry, response.part))
        await rpc.done_writing()
        assert await rpc.read() is grpc.aio.EOF
    assert found == [("0", 0), ("0", 1), ("1", 2), ("1", 3)]
    assert server.seen[1].parts == [0, 1, 2, 3]
