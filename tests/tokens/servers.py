"""Servers with the ledger and a TokenService, whose tokens the ledger requires."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from idem_grpc_pb.v1 import token_pb2

import idem_grpc
import idem_grpc.aio
from idem_grpc import KeyRule, Operation, Policy
from tests.server.client import Answer, Client, Kind, Pending
from tests.server.harness import AsyncServer, Server, SyncServer
from tests.server.ledger import DEADLINE

CHARGE = "tests.charge"
REFUND = "tests.refund"
TTL, RETENTION = 900.0, 3600.0
OPERATIONS = {CHARGE: Operation(ttl=TTL, issue_rate=(100_000, 900)), REFUND: Operation()}
TENANT = "x-tenant-id"


class _WithTokens(Server):
    """``operations`` are the TokenService's. Every method takes tokens of CHARGE, ServerStream of REFUND."""

    _add: Any

    def __init__(
        self, store: Any, *, operations: Mapping[str, Operation] = OPERATIONS, **settings: Any
    ) -> None:
        self._operations = operations
        default = Policy(operation=CHARGE, key=KeyRule.TOKEN, retention=RETENTION)
        policies = {Kind.SERVER_STREAM.path: Policy(operation=REFUND)}
        super().__init__(store, **{"default": default, "policies": policies, **settings})

    def _add_everything(self, server: Any, servicer: Any) -> None:
        self._add(server, self.interceptor, operations=self._operations)
        super()._add_everything(server, servicer)


class OnSync(_WithTokens, SyncServer):
    _add = staticmethod(idem_grpc.add_token_service)


class OnAio(_WithTokens, AsyncServer):
    _add = staticmethod(idem_grpc.aio.add_token_service)


FACES = {"sync": OnSync, "aio": OnAio}


class Clock:
    """A clock for a store, which a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tenant(name: str) -> tuple[tuple[str, str]]:
    """The metadata of a caller, for servers whose scope is TENANT."""
    return ((TENANT, name),)


def ask(client: Client, method: str, request: Message, metadata: Any = ()) -> Answer:
    """Call a method of the TokenService, and return the answer or failure."""
    call: Any = client.channel.unary_unary(f"/idem.v1.TokenService/{method}")
    sent = call.future(request.SerializeToString(), metadata=metadata, timeout=DEADLINE)
    return Pending(sent, is_stream=False).answer()


def wanted(operation: str = CHARGE, count: int = 0, ttl: float | None = None) -> token_pb2.IssueTokensRequest:
    request = token_pb2.IssueTokensRequest(operation=operation, count=count)
    if ttl is not None:
        request.ttl.CopyFrom(Duration(seconds=int(ttl), nanos=round(ttl % 1 * 1e9) if ttl > 0 else 0))
    return request


def issue_many(
    client: Client, operation: str = CHARGE, count: int = 0, ttl: float | None = None, metadata: Any = ()
) -> list[token_pb2.Token]:
    answer = ask(client, "IssueTokens", wanted(operation, count, ttl), metadata)
    assert answer.ok, answer
    return list(token_pb2.IssueTokensResponse.FromString(answer.messages[0]).tokens)


def issue(client: Client, operation: str = CHARGE, ttl: float | None = None, metadata: Any = ()) -> str:
    """One token."""
    (token,) = issue_many(client, operation, ttl=ttl, metadata=metadata)
    return token.token


def get(client: Client, token: str, metadata: Any = ()) -> Answer:
    return ask(client, "GetToken", token_pb2.GetTokenRequest(token=token), metadata)


def shown(client: Client, token: str, metadata: Any = ()) -> token_pb2.Token:
    """What GetToken returns for a token that exists."""
    answer = get(client, token, metadata)
    assert answer.ok, answer
    return token_pb2.Token.FromString(answer.messages[0])


def state(client: Client, token: str) -> str:
    return token_pb2.TokenState.Name(shown(client, token).state).removeprefix("TOKEN_STATE_")


def revoke(client: Client, token: str, metadata: Any = ()) -> Answer:
    return ask(client, "RevokeToken", token_pb2.RevokeTokenRequest(token=token), metadata)
