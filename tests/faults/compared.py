"""Servers with and without the interceptor: the same handlers must give the same statuses."""

from typing import Any

from tests.server.client import Answer, Client, Kind
from tests.streams.servers import Conversation


def ask(client: Client, kind: Kind, key: str | None, requests: int = 1, **options: Any) -> Answer:
    """Call a scripted handler with one request, or with a stream of ``requests``."""
    call = Conversation(client, kind, key, **options)
    if kind.has_request_stream:
        call.send(*[b"request"] * requests)
    return call.end().answer()


class Compared:
    """Two servers with the same handlers: ``ours``, and ``plain``, which has no idem_grpc."""

    def __init__(self, start: Any, **settings: Any) -> None:
        self.ours = start(**settings)
        self.plain = start(protected=False, **settings)

    def ask(self, kind: Kind, key: str, requests: int = 1) -> tuple[Answer, Answer]:
        """The answers of both servers."""
        ours, plain = (ask(server.client, kind, key, requests) for server in (self.ours, self.plain))
        return ours, plain


def status(answer: Answer) -> tuple[Any, ...]:
    """The part of an answer that is the same on both servers."""
    return answer.code, answer.details, answer.messages, answer.trailing
