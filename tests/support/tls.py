"""A TLS proxy in front of a server that has no TLS."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue


@contextmanager
def terminating(target: int, context: ssl.SSLContext) -> Iterator[int]:
    """Accept TLS connections on a port, which is given, and forward their data to the port ``target``."""
    started = SimpleQueue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]]()

    async def serve() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            behind, beyond = await asyncio.open_connection("127.0.0.1", target)
            await asyncio.gather(_pass_on(reader, beyond), _pass_on(behind, writer))

        async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context) as server:
            is_over = asyncio.Event()
            started.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), is_over))
            await is_over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    port, loop, is_over = started.get(timeout=30)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
