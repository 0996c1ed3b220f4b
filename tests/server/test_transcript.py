"""The limit of a kept response stream counts empty messages and turns too."""

from typing import Any

import grpc
import pytest

from idem_grpc._core.outcome import Outcome
from idem_grpc._core.policy import Rules
from idem_grpc._server.admission import Method
from idem_grpc._server.streams import Incoming, StreamedResponses

LIMIT = 1024


def outgoing(turns):
    handler: Any = grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
    method = Method("/t.T/Talk", handler, Rules.of("/t.T/Talk", []), "idem")
    incoming = Incoming(method) if turns else None
    return incoming, StreamedResponses(LIMIT, incoming)


@pytest.mark.parametrize(("turns", "most"), [(False, LIMIT // 16), (True, (LIMIT + 64) // (16 + 64))])
def test_empty_messages_and_turns_count_with_their_size_in_the_record(turns, most):
    for count, is_kept in ((most, True), (most + 1, False)):
        incoming, sent = outgoing(turns)
        for _ in range(count):
            if incoming is not None:
                incoming.take(b"ping")
            sent.add(b"")
        outcome = sent.outcome(Outcome())
        assert outcome.messages_dropped is not is_kept
        assert len(outcome.messages) == (count if is_kept else 0)
        assert len(outcome.turns) == (count if is_kept and turns else 0)


def test_responses_of_one_turn_are_counted_together():
    incoming, sent = outgoing(turns=True)
    incoming.take(b"ping")
    sent.add(b"pong")
    sent.add(b"pong")
    incoming.take(b"ping")
    sent.add(b"pong")
    assert [(turn.requests.messages, turn.responses) for turn in sent.outcome(Outcome()).turns] == [
        (1, 2),
        (2, 1),
    ]
