"""Run the payments service and the gateway: ``python -m examples.fastapi_gateway``, and open the URL.

``--check`` runs a scripted HTTP client against them instead, and exits with status 0 if every scene held.
"""

import argparse
import signal
import socket
import sys
import tempfile

import uvicorn

from examples.fastapi_gateway.check import check
from examples.fastapi_gateway.gateway import DEADLINE, make_app
from examples.fastapi_gateway.launch import Launched, when_orphaned
from examples.fastapi_gateway.trouble import Line, LosesReplies


def main() -> int:
    options = parse()
    # Raise, as Ctrl-C does, so that the processes are stopped. For a server, this is a normal exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1 if options.check else 0))
    if options.check:
        return check()
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        gates = ["--gates", options.gates] if options.gates else []
        with Launched("examples.fastapi_gateway.server", "--folder", folder, *gates) as payments:
            serve(payments.address, options)
    return 0


def serve(payments: str, options: argparse.Namespace) -> None:
    app = LosesReplies(make_app(payments, options.deadline))
    # When it stops, the server waits up to 5 s for requests in progress.
    config = uvicorn.Config(app, http=Line, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    if options.child:
        when_orphaned(lambda: setattr(server, "should_exit", True))
    with socket.create_server(("127.0.0.1", options.port)) as listening:
        print(f"Open http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        server.run(sockets=[listening])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An HTTP gateway to a gRPC payments service.")
    parser.add_argument("--check", action="store_true", help="play the scenes by script and check them")
    parser.add_argument("--port", type=int, default=0, help="default: a free one, which is printed")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds that a payment may take")
    parser.add_argument("--gates", help="folder that makes slow cards slow; see checkout/provider.py")
    parser.add_argument("--child", action="store_true", help="stop when the parent process ends")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
