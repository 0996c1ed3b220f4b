"""The TokenService, for grpc and grpc.aio: it issues, describes and revokes tokens."""

from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

from idem_grpc._core.durations import LONGEST, in_seconds
from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import Problem, Reason, status_outcome
from idem_grpc._core.record import Binding, State
from idem_grpc._core.steps import Outage
from idem_grpc._server.admission import Refused, metadata_here, previous_attempts
from idem_grpc._server.aio import ServerInterceptor as AsyncServerInterceptor
from idem_grpc._server.protection import Protection
from idem_grpc._server.replies import status
from idem_grpc._server.sync import ServerInterceptor
from idem_grpc._tokens.issuing import (
    MAX_COUNT,
    Declined,
    Operation,
    StoreReplies,
    StoreRequest,
    Subject,
    issue,
    look_up,
    revoke,
)

T = TypeVar("T")
Work = Generator[StoreRequest, StoreReplies, T]

_STATES = {
    State.OPEN: token_pb2.TOKEN_STATE_OPEN,
    State.RUNNING: token_pb2.TOKEN_STATE_RUNNING,
    State.DONE: token_pb2.TOKEN_STATE_DONE,
    State.UNKNOWN: token_pb2.TOKEN_STATE_UNKNOWN,
}


class _Tokens:
    """The I/O-free service. ``operations`` maps names of operations to their settings."""

    def __init__(self, protection: Protection, operations: Mapping[str, Operation]) -> None:
        if not isinstance(operations, Mapping):
            raise TypeError(
                f"operations={operations!r}: give a mapping, as in {{'payments.charge': Operation()}}"
            )
        if not operations:
            raise ValueError("operations: name at least one, as in {'payments.charge': Operation()}")
        given: Iterable[tuple[object, object]] = operations.items()
        for name, operation in given:
            if not isinstance(name, str) or not isinstance(operation, Operation):
                raise TypeError(f"operations[{name!r}] is {operation!r}: map a string to an Operation")
            if not name:
                raise ValueError("operations: a name is empty: give one such as 'payments.charge'")
        protection.check_operations(operations)
        self._protection = protection
        self._operations = dict(operations)
        self._names = {Binding.of(name, "").operation: name for name in operations}

    def subject(self, context: Any) -> Subject:
        """Return the caller. Raises Refused if the scope cannot be determined."""
        protection = self._protection
        scope = protection.scope_of(_SERVICE, metadata_here(context), context)
        return Subject(protection.namespace, scope)

    def issue(
        self, subject: Subject, request: token_pb2.IssueTokensRequest
    ) -> Work[token_pb2.IssueTokensResponse]:
        operation = self._operations.get(request.operation)
        if operation is None:
            shown = request.operation[:_MAX_SHOWN]
            raise _declined(Code.NOT_FOUND, f"the operation {shown!r} does not exist")
        count = request.count or 1
        if not 1 <= count <= MAX_COUNT:
            raise _declined(Code.INVALID_ARGUMENT, f"count is {count}: request 1 to {MAX_COUNT} tokens")
        ttl = in_seconds(operation.ttl)
        if request.HasField("ttl"):
            ttl = min(request.ttl.ToMilliseconds() / 1000, in_seconds(operation.max_ttl))
        if ttl <= 0:
            raise _declined(Code.INVALID_ARGUMENT, "ttl must be positive")
        names = yield from issue(subject, request.operation, operation, count, ttl)
        return token_pb2.IssueTokensResponse(
            tokens=[_token(name, request.operation, State.OPEN, 0, ttl) for name in names]
        )

    def get(self, subject: Subject, request: token_pb2.GetTokenRequest) -> Work[token_pb2.Token]:
        found = yield from look_up(subject, request.token)
        record = found.record
        name = self._names.get(record.binding.operation, "") if record.binding is not None else ""
        return _token(request.token, name, record.state, record.attempt, found.held.ttl_left)

    def revoke(self, subject: Subject, request: token_pb2.RevokeTokenRequest) -> Work[Empty]:
        yield from revoke(subject, request.token)
        return Empty()


class TokenServicer(token_pb2_grpc.TokenServiceServicer):
    """The TokenService for a ``grpc.server``; see ``add_token_service``."""

    def __init__(self, interceptor: ServerInterceptor, operations: Mapping[str, Operation]) -> None:
        if not isinstance(interceptor, ServerInterceptor):
            raise TypeError(
                f"{interceptor!r} is not an idem_grpc.ServerInterceptor: for grpc.aio, use idem_grpc.aio"
            )
        self._store = interceptor._store
        self._availability = interceptor._protection.availability
        self._tokens = _Tokens(interceptor._protection, operations)

    def IssueTokens(
        self, request: token_pb2.IssueTokensRequest, context: Any
    ) -> token_pb2.IssueTokensResponse:
        return self._serve(self._tokens.issue, request, context)

    def GetToken(self, request: token_pb2.GetTokenRequest, context: Any) -> token_pb2.Token:
        return self._serve(self._tokens.get, request, context)

    def RevokeToken(self, request: token_pb2.RevokeTokenRequest, context: Any) -> Empty:
        return self._serve(self._tokens.revoke, request, context)

    def _serve(self, work: Callable[[Subject, Any], Work[T]], request: Any, context: Any) -> T:
        try:
            steps = work(self._tokens.subject(context), request)
            seen = self._ask(next(steps))
            while not isinstance(seen, Outage):
                seen = self._ask(steps.send(seen))
        except StopIteration as end:
            result: T = end.value
            return result
        except (Refused, Declined) as error:
            refusal = _refusal(error, context)
        else:
            refusal = _refusal(seen, context)
        context.abort_with_status(refusal)
        raise AssertionError("abort raises")

    def _ask(self, asked: StoreRequest) -> StoreReplies | Outage:
        store = self._store
        return self._availability.ask(
            lambda: [store.read(asked)] if isinstance(asked, bytes) else store.swap_many(asked)
        )


class AsyncTokenServicer(token_pb2_grpc.TokenServiceServicer):
    """The TokenService for a ``grpc.aio.server``; see ``add_token_service``."""

    def __init__(self, interceptor: AsyncServerInterceptor, operations: Mapping[str, Operation]) -> None:
        if not isinstance(interceptor, AsyncServerInterceptor):
            raise TypeError(
                f"{interceptor!r} is not an idem_grpc.aio.ServerInterceptor: for grpc, use idem_grpc"
            )
        self._store = interceptor._store
        self._availability = interceptor._protection.availability
        self._tokens = _Tokens(interceptor._protection, operations)

    async def IssueTokens(
        self, request: token_pb2.IssueTokensRequest, context: Any
    ) -> token_pb2.IssueTokensResponse:
        return await self._serve(self._tokens.issue, request, context)

    async def GetToken(self, request: token_pb2.GetTokenRequest, context: Any) -> token_pb2.Token:
        return await self._serve(self._tokens.get, request, context)

    async def RevokeToken(self, request: token_pb2.RevokeTokenRequest, context: Any) -> Empty:
        return await self._serve(self._tokens.revoke, request, context)

    async def _serve(self, work: Callable[[Subject, Any], Work[T]], request: Any, context: Any) -> T:
        try:
            steps = work(self._tokens.subject(context), request)
            seen = await self._ask(next(steps))
            while not isinstance(seen, Outage):
                seen = await self._ask(steps.send(seen))
        except StopIteration as end:
            result: T = end.value
            return result
        except (Refused, Declined) as error:
            refusal = _refusal(error, context)
        else:
            refusal = _refusal(seen, context)
        await context.abort_with_status(refusal)
        raise AssertionError("abort raises")

    async def _ask(self, asked: StoreRequest) -> StoreReplies | Outage:
        async def work() -> StoreReplies:
            store = self._store
            return [await store.read(asked)] if isinstance(asked, bytes) else await store.swap_many(asked)

        return await self._availability.ask_async(work)


def add_token_service(
    server: grpc.Server, interceptor: ServerInterceptor, *, operations: Mapping[str, Operation]
) -> None:
    """Add the TokenService to ``server``.

    server: a ``grpc.server``.
    interceptor: the server's interceptor, whose store, namespace and scope function are used.
    operations: maps the names of operations to the settings of their tokens.

    A method accepts the tokens of an operation if its policy names it, as in
    ``Policy(operation="payments.charge", key=KeyRule.TOKEN)``. Raises ValueError or TypeError for
    invalid operations, and TypeError for a server or interceptor of grpc.aio.
    """
    given: object = server
    if isinstance(given, grpc.aio.Server):
        raise TypeError("add_token_service: for a server of grpc.aio, use idem_grpc.aio.add_token_service")
    token_pb2_grpc.add_TokenServiceServicer_to_server(TokenServicer(interceptor, operations), server)


def add_async_token_service(
    server: grpc.aio.Server, interceptor: AsyncServerInterceptor, *, operations: Mapping[str, Operation]
) -> None:
    """Add the TokenService to a ``grpc.aio.server``, as ``idem_grpc.add_token_service`` does for grpc."""
    given: object = server
    if isinstance(given, grpc.Server):
        raise TypeError("add_token_service: for a server of grpc, use idem_grpc.add_token_service")
    token_pb2_grpc.add_TokenServiceServicer_to_server(AsyncTokenServicer(interceptor, operations), server)


_MAX_SHOWN = 100  # characters; a client may reject the metadata of a longer status
_SERVICE = "/idem.v1.TokenService/*"


def _declined(code: Code, message: str) -> Declined:
    return Declined(status_outcome(code, message))


def _refusal(cause: Declined | Refused | Outage, context: Any) -> grpc.Status:
    if isinstance(cause, Declined):
        return status(cause.outcome)
    if isinstance(cause, Refused):
        given = cause.answer
    else:
        given = Problem(Reason.MISCONFIGURED if cause.misused else Reason.STORE_UNAVAILABLE)
    if isinstance(given, Problem):
        given = given.outcome(previous_attempts(context.invocation_metadata() or ()))
    return status(given)


def _token(token: str, operation: str, state: State, attempt: int, ttl: float) -> token_pb2.Token:
    message = token_pb2.Token(
        token=token,
        operation=operation,
        state=_STATES.get(state, token_pb2.TOKEN_STATE_UNKNOWN),
        attempt=attempt,
    )
    life = timedelta(seconds=min(ttl, LONGEST))  # another program may have removed the record's expiry
    message.ttl.FromTimedelta(life)
    message.expire_time.FromDatetime(datetime.now(UTC) + life)
    return message
