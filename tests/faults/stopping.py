"""A process with an asyncio server whose handler ends the process.

Run as ``python -m tests.faults.stopping STYLE KIND HOW URL PROTECTED ON_CANCEL``. It prints its port; the
exit status is that of ``asyncio.run``.
"""

import asyncio
import os
import signal
import sys
from typing import Any

import grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import OnCancel, OnUnclear, Policy
from tests.server.client import Kind
from tests.streams.scripts import Read, Send, handlers

STATUS = 7


def script_of(kind: Kind, how: str) -> Any:
    def script(context: Any) -> Any:
        request = yield Read()
        while kind.has_request_stream and request is not None:
            request = yield Read()
        if kind.has_response_stream:
            yield Send(b"first")
        if how == "exit":
            sys.exit(STATUS)
        elif how == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000_000):  # the signal comes in here
            pass
        return b"answer"

    return script


async def main(style: str, kind: Kind, how: str, url: str, protected: bool, on_cancel: OnCancel) -> None:
    store = idem_grpc.aio.open_store(url, namespace="stopping")
    ours = idem_grpc.aio.ServerInterceptor(
        store, scope=idem_grpc.SHARED, default=Policy(on_unclear=OnUnclear.FAIL, on_cancel=on_cancel)
    )
    server = grpc.aio.server(interceptors=[ours] if protected else [])
    server.add_generic_rpc_handlers((handlers(style, {kind: script_of(kind, how)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    style, kind, how, url, protected, on_cancel = sys.argv[1:]
    loop = asyncio.new_event_loop()  # not of asyncio.run, which makes another thing of the first SIGINT
    loop.run_until_complete(main(style, Kind(kind), how, url, protected == "True", OnCancel[on_cancel]))
