"""An endless response stream whose caller left does not block the event loop."""

import asyncio
import threading

import grpc
import pytest

from tests.server.client import Kind
from tests.streams.scripts import Read, Send
from tests.streams.servers import Conversation
from tests.support.wait import until

KIND = Kind.SERVER_STREAM
TURNS = 100  # of the loop


class Departures(grpc.aio.ServerInterceptor):
    """Sets ``gone`` once grpc reports that a caller is gone."""

    def __init__(self):
        self.gone = threading.Event()

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def behavior(request, context):
            context.add_done_callback(lambda _: self.gone.set())
            async for response in handler.unary_stream(request, context):
                yield response

        return grpc.unary_stream_rpc_method_handler(behavior)


@pytest.mark.parametrize("style", ["aio", "aio-read-write"], indirect=True)
def test_a_handler_that_yields_without_end_lets_the_loop_run_other_tasks(start, key):
    enough = threading.Event()
    departures = Departures()

    def script(context):
        yield Read()
        while not enough.is_set():
            yield Send(b"more")

    server = start(scripts={KIND: script}, before=[departures])
    call = Conversation(server.client, KIND, key, timeout=None)
    try:
        assert call.receive() == b"more"
        call.cancel()
        assert departures.gone.wait(30)
        for _ in range(TURNS):
            server.run(asyncio.sleep(0))
        assert server.drain(0) == 1
    finally:
        enough.set()
    until(lambda: server.drain(0) == 0)
