"""The root of a call tree as a process: ``python -m tests.client.call_tree FACE STORE B C``.

Its handlers call B, then C, through our client interceptors. Where the request's run for this
attempt names a gate, "between" or "after", it stands there until it is killed; any other gate is
for the first run of B and of C. It says its port,
then the attempts that ran and the gates it stands at, one a line; it ends with its standard input.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from tests.server.ledger import DEADLINE, Ledger
from tests.server.servicers import AsyncServicer, Servicer

TENANT = "x-tenant"
POLICY = idem_grpc.Policy(lease=1, retention=600)
SCOPE = idem_grpc.metadata(TENANT)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def begin(request: pb.LedgerRequest) -> str:
    """Say that a run begins. Returns the gate that it shall stand at."""
    execution = idem_grpc.current()
    assert execution is not None
    say(f"run {request.order} {execution.attempt}")
    runs = request.runs[execution.attempt - 1 :]
    return runs[0].gate if runs else ""


def downstream(request: pb.LedgerRequest) -> pb.LedgerRequest:
    """What B and C are asked, which is the same in every attempt at ``request``."""
    gates = {run.gate for run in request.runs} - {"", "between", "after"}
    runs = [pb.LedgerRun(gate=gate) for gate in gates]
    return pb.LedgerRequest(order=request.order, amount=request.amount, runs=runs)


def response(request: pb.LedgerRequest, *answers: Any) -> pb.LedgerResponse:
    return pb.LedgerResponse(order=request.order, entry=" ".join(answer.entry for answer in answers))


class Root(Servicer):
    """Its other methods are those of any ledger."""

    def __init__(self, *channels: grpc.Channel) -> None:
        super().__init__(Ledger())
        self._stubs = [ledger_pb2_grpc.LedgerServiceStub(channel) for channel in channels]

    def Unary(self, request: pb.LedgerRequest, context: Any) -> pb.LedgerResponse:
        gate = begin(request)
        answers = []
        for stub, place in zip(self._stubs, ("between", "after"), strict=True):
            answers.append(stub.Unary(downstream(request), timeout=DEADLINE))
            if gate == place:
                say(f"gate {gate}")
                threading.Event().wait()
        if request.amount < 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the amount must be more than nothing")
        return response(request, *answers)

    def ServerStream(self, request: pb.LedgerRequest, context: Any) -> Iterator[pb.LedgerResponse]:
        yield self.Unary(request, context)


class AsyncRoot(AsyncServicer):
    def __init__(self, *channels: grpc.aio.Channel) -> None:
        super().__init__(Ledger())
        self._stubs: list[Any] = [ledger_pb2_grpc.LedgerServiceStub(channel) for channel in channels]

    async def Unary(self, request: pb.LedgerRequest, context: Any) -> pb.LedgerResponse:
        gate = begin(request)
        answers = []
        for stub, place in zip(self._stubs, ("between", "after"), strict=True):
            answers.append(await stub.Unary(downstream(request), timeout=DEADLINE))
            if gate == place:
                say(f"gate {gate}")
                await asyncio.Event().wait()
        if request.amount < 0:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the amount must be more than nothing")
        return response(request, *answers)

    async def ServerStream(self, request: pb.LedgerRequest, context: Any) -> AsyncIterator[pb.LedgerResponse]:
        yield await self.Unary(request, context)


def serve(url: str, *addresses: str) -> None:
    channels = [
        grpc.intercept_channel(grpc.insecure_channel(address), *idem_grpc.client_interceptors())
        for address in addresses
    ]
    interceptor = idem_grpc.ServerInterceptor(idem_grpc.open_store(url), scope=SCOPE, default=POLICY)
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[interceptor])
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(Root(*channels), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(f"port {port}")
    sys.stdin.read()


async def serve_async(url: str, *addresses: str) -> None:
    channels = [
        grpc.aio.insecure_channel(address, interceptors=idem_grpc.aio.client_interceptors())
        for address in addresses
    ]
    async with idem_grpc.aio.open_store(url) as store:
        interceptor = idem_grpc.aio.ServerInterceptor(store, scope=SCOPE, default=POLICY)
        server = grpc.aio.server(interceptors=[interceptor])
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(AsyncRoot(*channels), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        say(f"port {port}")
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(None)


def main(face: str, url: str, *addresses: str) -> None:
    if face == "sync":
        serve(url, *addresses)
    else:
        asyncio.run(serve_async(url, *addresses))


if __name__ == "__main__":
    main(*sys.argv[1:])
