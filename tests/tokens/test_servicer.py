"""The servicer alone, called through grpcio-testing, without a server."""

from typing import Any

import grpc
import grpc_testing  # type: ignore[import-untyped]  # it has no stubs
import pytest
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

import idem_grpc
from idem_grpc import Reason, ServerInterceptor, TokenServicer
from idem_grpc._core.problem import reason_in
from tests.tokens.servers import CHARGE, OPERATIONS, TENANT, tenant, wanted

SERVICE = token_pb2.DESCRIPTOR.services_by_name["TokenService"]
ALICE, BOB = tenant("alice"), tenant("bob")


class Context:
    """The context of grpcio-testing, with the methods that it lacks."""

    def __init__(self, context: Any, refusals: list[grpc.Status]) -> None:
        self._context = context
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50051"

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def abort_with_status(self, status: grpc.Status) -> None:
        self._refusals.append(status)  # as this abort loses the trailing metadata
        self._context.abort(status.code, status.details)


class Servicer(token_pb2_grpc.TokenServiceServicer):
    """Calls ``inner`` with the context that it would have on a server."""

    def __init__(self, inner: TokenServicer) -> None:
        self._inner = inner
        self.refusals: list[grpc.Status] = []

    def IssueTokens(self, request: Any, context: Any) -> Any:
        return self._inner.IssueTokens(request, Context(context, self.refusals))

    def GetToken(self, request: Any, context: Any) -> Any:
        return self._inner.GetToken(request, Context(context, self.refusals))

    def RevokeToken(self, request: Any, context: Any) -> Any:
        return self._inner.RevokeToken(request, Context(context, self.refusals))


@pytest.fixture
def call():
    """Call a method of the servicer. Returns its response, or the code and the reason of its refusal."""
    with idem_grpc.open_store("memory:") as store:
        interceptor = ServerInterceptor(store, scope=idem_grpc.metadata(TENANT))
        servicer = Servicer(TokenServicer(interceptor, OPERATIONS))
        server = grpc_testing.server_from_dictionary({SERVICE: servicer}, grpc_testing.strict_real_time())

        def call(method, request, metadata=ALICE):
            descriptor = SERVICE.methods_by_name[method]
            rpc = server.invoke_unary_unary(descriptor, metadata, request, None)
            response, _, code, _ = rpc.termination()
            if code is grpc.StatusCode.OK:
                return response
            details = dict(servicer.refusals[-1].trailing_metadata)["grpc-status-details-bin"]
            assert isinstance(details, bytes)
            return code, reason_in(details)

        yield call


def test_issue_get_and_revoke(call):
    issued = call("IssueTokens", wanted(count=3)).tokens
    assert len({token.token for token in issued}) == 3
    for token in issued:
        looked = call("GetToken", token_pb2.GetTokenRequest(token=token.token))
        assert (looked.operation, looked.state) == (CHARGE, token_pb2.TOKEN_STATE_OPEN)
    for _ in range(2):
        call("RevokeToken", token_pb2.RevokeTokenRequest(token=issued[0].token))
    gone = call("GetToken", token_pb2.GetTokenRequest(token=issued[0].token))
    assert gone == (grpc.StatusCode.NOT_FOUND, None)


def test_refusals(call):
    mismatch = (grpc.StatusCode.PERMISSION_DENIED, Reason.TOKEN_MISMATCH)
    (token,) = call("IssueTokens", wanted()).tokens
    assert call("GetToken", token_pb2.GetTokenRequest(token=token.token), BOB) == mismatch
    assert call("RevokeToken", token_pb2.RevokeTokenRequest(token=token.token), BOB) == mismatch
    assert call("IssueTokens", wanted("tests.unknown")) == (grpc.StatusCode.NOT_FOUND, None)
    assert call("IssueTokens", wanted(count=101)) == (grpc.StatusCode.INVALID_ARGUMENT, None)
    unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, Reason.SCOPE_UNKNOWN)
    assert call("IssueTokens", wanted(), metadata=()) == unauthenticated
