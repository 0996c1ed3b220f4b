"""Metadata names given as bytes, and context variables that a handler sets."""

from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.server.kinds import ALL, kinds
from tests.streams.scripts import Do, Read, Send
from tests.streams.servers import Conversation, say

kind = kinds(*ALL)

NAMED_IN_BYTES: list[tuple[Any, Any]] = [
    (b"fee", "12"),
    (b"fee", b"13"),
    ("note", b"a b"),
    (b"seal-bin", b"\x00\xff"),
]
AS_SENT = (("fee", "12"), ("fee", "13"), ("note", "a b"), ("seal-bin", b"\x00\xff"))


@dataclass
class Ending(grpc.Status):
    trailing_metadata: Any
    code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND
    details: str = "no such order"


WAYS = {
    "initial": lambda context: context.send_initial_metadata(tuple(NAMED_IN_BYTES)),
    "trailing": lambda context: context.set_trailing_metadata(tuple(NAMED_IN_BYTES)),
    "status": lambda context: context.abort_with_status(Ending(tuple(NAMED_IN_BYTES))),
    "abort": lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "no", tuple(NAMED_IN_BYTES)),
}


def ask(server, kind, key):
    if kind.has_request_stream:
        return say(server.client, kind, key, [b"one"])
    return Conversation(server.client, kind, key).answer()


def doing(kind, act):
    """Scripts of a handler that reads a request, acts, and answers."""

    def script(context):
        yield Read()
        yield Do(lambda: act(context))
        if kind.has_response_stream:
            yield Send(b"answer")
        return b"answer"

    return {kind: script}


def is_answered_twice(server, kind, key, way):
    first, second = (ask(server, kind, key) for _ in range(2))
    assert first.code is (grpc.StatusCode.NOT_FOUND if way in ("status", "abort") else grpc.StatusCode.OK)
    sent = first.initial if way == "initial" else first.trailing
    assert tuple(pair for pair in sent if pair[0] != "idempotency-run") == AS_SENT
    assert second.essence == first.essence
    assert second.replayed


@pytest.mark.parametrize("way", ["initial", "trailing", "status"])
def test_metadata_names_may_be_bytes(start_scripted, kind, key, way):
    is_answered_twice(start_scripted(scripts=doing(kind, WAYS[way])), kind, key, way)


@pytest.mark.parametrize("style", ["aio", "aio-read-write"], indirect=True)
def test_metadata_names_may_be_bytes_in_an_abort(start_scripted, kind, key):
    is_answered_twice(start_scripted(scripts=doing(kind, WAYS["abort"])), kind, key, "abort")
