"""Lose replies on purpose. For the demonstration only; do not copy.

A request with the header ``X-Lose-Reply`` is served like any other, but its connection is cut before the
answer is sent. The payment is booked by then, and the client does not know it.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER = b"x-lose-reply"

_lines: MutableMapping[Any, asyncio.Transport] = {}  # by the client's address


class Line(H11Protocol):
    """A connection that can be cut. ASGI has no event for that, so the transport is stored."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        _lines[transport.get_extra_info("peername")] = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        _lines.pop(self.transport.get_extra_info("peername"), None)
        super().connection_lost(exc)


class LosesReplies:
    """Middleware that cuts the connection if a request asks for it. The connections must be of class Line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if HEADER not in dict(scope.get("headers", ())):
            await self._app(scope, receive, send)
            return

        async def swallow(message: Message) -> None:
            pass

        await self._app(scope, receive, swallow)
        if (line := _lines.get(scope["client"])) is not None:  # the client may have disconnected already
            line.abort()
        while (await receive())["type"] != "http.disconnect":
            pass
