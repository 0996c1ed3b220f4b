"""Messages that are large, empty, compressed, or none at all."""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

import grpc
import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.record import State
from tests.server import harness
from tests.server.client import MESSAGE_SIZE, Client, Kind
from tests.server.ledger import order, run
from tests.streams.scripts import Do, Read, Send
from tests.streams.servers import Conversation, say
from tests.support.wait import until

LARGE = 3 << 20
GZIP = 2


def one_answer(kind, message):
    """A handler that reads all requests, and answers with one message."""

    def script(context):
        while (yield Read()) is not None:
            pass
        if kind.has_response_stream:
            yield Send(message)
        return message

    return {kind: script}


def ask(client, kind, key, *messages):
    if kind.has_request_stream:
        return say(client, kind, key, messages)
    return Conversation(client, kind, key, only=messages[0]).answer()


def test_large_messages_both_ways(start, kind, key):
    large = bytes(range(256)) * (LARGE // 256)
    server = start(scripts=one_answer(kind, large), default=Policy(max_response_bytes=2 * LARGE))
    first, second = (ask(server.client, kind, key, large) for _ in range(2))
    assert first.messages == (large,)
    assert second.essence == first.essence
    assert second.replayed
    assert not ask(server.client, kind, key, large[:-1] + b"!").ok


def test_an_empty_message_is_an_answer(start, kind, key):
    server = start(scripts=one_answer(kind, b""))
    first, second = (ask(server.client, kind, key, b"") for _ in range(2))
    assert first.messages == (b"",)
    assert second.essence == first.essence
    assert second.replayed


def test_empty_messages_in_streams_are_counted(start, key):
    def script(context):
        while (request := (yield Read())) is not None:
            yield Send(request)

    server = start(scripts={Kind.BIDI: script})
    first, second = (say(server.client, Kind.BIDI, key, [b"", b"a", b"", b""]) for _ in range(2))
    assert first.messages == (b"", b"a", b"", b"")
    assert second.essence == first.essence
    assert not say(server.client, Kind.BIDI, key, [b"", b"a", b""]).ok


@pytest.mark.parametrize("end", ["NONE", "WRONG_TYPE"])
def test_a_value_that_is_no_message_is_internal_and_not_kept(start, kind, key, end):
    server = start()
    request = order(run(end), run())
    first, second, third = (server.client.call(kind, request, key) for _ in range(3))
    assert first.code is grpc.StatusCode.INTERNAL
    assert second.ok
    assert not second.replayed
    assert third.essence == second.essence


def test_malformed_requests_are_internal(start, kind, key):
    server = start()
    assert server.client.call(kind, b"\xff\xff", key).code is grpc.StatusCode.INTERNAL
    assert not server.ledger.all_runs
    assert server.record(key, kind).state in (State.ABSENT, State.OPEN)
    assert server.client.call(kind, order(), key).ok


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_a_malformed_duplicate_is_not_answered(start, kind, key):
    server = start()
    request = order()
    first = server.client.call(kind, request, key)
    answer = server.client.call(kind, b"\xff\xff", key)
    assert not answer.ok
    assert not answer.messages
    assert server.client.call(kind, request, key).essence == first.essence


UNSENDABLE = [
    ("seal-bin", "text"),
    ("-bin", b"seal"),
    ("grpc-timeout", "1S"),
    ("grpclb_client_stats", "0"),
    ("Fee", "12"),
    ("a fee", "12"),
    ("", "12"),
    ("fee", "1\n2"),
    ("fee", "12 €"),
]


@dataclass
class Ending(grpc.Status):
    trailing_metadata: tuple[tuple[str, str | bytes], ...]
    code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND
    details: str = "no such order"


WAYS = {
    "initial": lambda context, pair: context.send_initial_metadata([pair]),
    "trailing": lambda context, pair: context.set_trailing_metadata([pair]),
    "abort": lambda context, pair: context.abort_with_status(Ending((pair,))),
}


@pytest.mark.parametrize("give", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("pair", UNSENDABLE, ids=repr)
def test_metadata_that_cannot_be_sent_fails_the_handler(start, kind, key, give, pair):
    """Otherwise the answer would be kept, and its own caller would never get it."""

    def script(context):
        yield Read()
        yield Do(lambda: give(context, pair))
        if kind.has_response_stream:
            yield Send(b"answer")
        return b"answer"

    server = start(scripts={kind: script})
    answer = ask(server.client, kind, key, b"one")
    assert answer.code is grpc.StatusCode.UNKNOWN
    assert repr(pair[0]) in answer.details
    assert not answer.messages
    assert server.record(key, kind).state is State.OPEN


class Relay:
    """Forwards one connection to a server, and counts the bytes that come back."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = (host, int(port))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.came_back = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        near, far = self._listener.accept()[0], socket.create_connection(self._target)
        threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
        self._pass(far, near, counts=True)

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.came_back += len(data) if counts else 0
                sink.sendall(data)
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("by", ["nobody", "server", "handler"])
def test_compressed_answers_are_replayed(start, monkeypatch, kind, key, by):
    if by == "server":  # as compression= does; the harness takes no options
        options = (*MESSAGE_SIZE, ("grpc.default_compression_algorithm", GZIP))
        monkeypatch.setattr(harness, "MESSAGE_SIZE", options)

    def script(context):
        yield Read()
        if by == "handler":
            yield Do(lambda: context.set_compression(grpc.Compression.Gzip))
            # grpc.aio itself forgets the compression of a unary answer that has none of these.
            yield Do(lambda: context.send_initial_metadata([("packed", "yes")]))
        answer = bytes(LARGE)
        if kind.has_response_stream:
            yield Send(answer)
        return answer

    server = start(scripts={kind: script}, default=Policy(max_response_bytes=LARGE))
    relay = Relay(server.address)
    client = Client(relay.address)
    try:
        first = ask(client, kind, key, b"one")
        assert first.messages == (bytes(LARGE),)
        assert (relay.came_back < LARGE / 10) is (by != "nobody")
        second = ask(client, kind, key, b"one")
        assert second.essence == first.essence
        if by == "server":
            assert relay.came_back < LARGE / 10
    finally:
        client.channel.close()
        relay.close()


def test_a_waiting_duplicate_gets_an_answer_over_the_limit_unless_it_is_a_stream(start, kind, key):
    server = start(default=Policy(max_response_bytes=1000))
    request = order(
        run(filler_bytes=1001, gate="at work", responses_before_gate=1 if kind.has_response_stream else 0)
    )
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    waiting = server.client.begin(kind, request, key)
    until(lambda: server.drain(0) == 2)
    server.ledger.gate("at work").open()
    assert first.answer().ok
    answer = waiting.answer()
    assert answer.ok is not kind.has_response_stream
    assert answer.ok or answer.reason is Reason.RESPONSE_NOT_KEPT


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("plain", [0, 1, 2])
def test_one_message_can_be_left_uncompressed(start, key, plain):
    sizes = [1 << 20, 1 << 21, 1 << 22]

    def script(context):
        yield Read()
        yield Do(lambda: context.set_compression(grpc.Compression.Gzip))
        for number, size in enumerate(sizes):
            if number == plain:
                yield Do(context.disable_next_message_compression)
            yield Send(bytes(size))

    server = start(scripts={Kind.SERVER_STREAM: script}, default=Policy(max_response_bytes=1 << 24))
    relay = Relay(server.address)
    client = Client(relay.address)
    try:
        answer = ask(client, Kind.SERVER_STREAM, key, b"one")
        assert [len(message) for message in answer.messages] == sizes
        assert sizes[plain] <= relay.came_back < 1.5 * sizes[plain]
    finally:
        client.channel.close()
        relay.close()
