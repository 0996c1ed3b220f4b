"""Logs contain no tokens, since anyone who has a token can use it."""

import logging

import grpc
import pytest

import idem_grpc
from tests.server.client import Kind
from tests.server.ledger import order, run
from tests.support.wait import until
from tests.tokens.servers import TENANT, get, issue_many, revoke, tenant

ALICE, BOB = tenant("alice"), tenant("bob")


@pytest.fixture
def everything(caplog):
    """All messages of all loggers, at the lowest level."""
    caplog.set_level(logging.DEBUG)
    for name in ("idem_grpc", "grpc", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def test_no_token_is_logged(start, own_redis_server, everything):
    server = start(own_redis_server.url, scope=idem_grpc.metadata(TENANT))
    client = server.client
    tokens = [token.token for token in issue_many(client, count=20, metadata=ALICE)]
    rest = iter(tokens)

    def use(*runs, caller=ALICE, token=None, kind=Kind.UNARY):
        request, token = order(*runs), token or next(rest)
        answers = [client.call(kind, request, token, metadata=caller) for _ in range(2)]
        get(client, token, caller)
        revoke(client, token, caller)
        return answers

    use()
    use(run("RAISE"))
    use(run("NONE"))
    use(run(code=grpc.StatusCode.INVALID_ARGUMENT))
    use(run(code=grpc.StatusCode.ABORTED))
    use(kind=Kind.BIDI)
    use(kind=Kind.SERVER_STREAM)
    use(caller=BOB)
    use(caller=())
    revoke(client, tokens[-1], ALICE)
    use(token=tokens[-1])
    client.call(Kind.UNARY, order(), [next(rest), next(rest)], metadata=ALICE)
    client.call(Kind.UNARY, b"\xff\xff no message", next(rest), metadata=ALICE)
    own_redis_server.kill()
    use()
    own_redis_server.restart()
    assert server.drain(30) == 0
    until(lambda: "did not answer" in everything.text)
    for token in tokens:
        assert token not in everything.text
        assert token.removeprefix("idt_") not in everything.text
