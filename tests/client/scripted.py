"""A server that does what the test says at every attempt, and notes what it was sent.

It has none of our interceptors: it stands for servers that misbehave, and for those that
behave as ours but at a time of the test's choosing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Reason
from tests.server.client import PUSHBACK, RUN, Kind
from tests.server.ledger import DEADLINE, STATUS_DETAILS

Pairs = Sequence[tuple[str, str | bytes]]
Step = Callable[[Iterator[Any], Any], Iterator[Any]]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass
class Seen:
    """One attempt, as it arrived."""

    method: str
    metadata: dict[str, str | bytes]
    time_remaining: float
    requests: list[Any] = field(default_factory=list)
    is_gone: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> Any:
        return self.metadata.get("idempotency-key")

    @property
    def parts(self) -> list[int]:
        return [request.part for request in self.requests]


class Scripted(grpc.GenericRpcHandler):
    """The nth call does the nth of ``steps``; the last of them serves for all that follow."""

    def __init__(self, *steps: Step, credentials: grpc.ServerCredentials | None = None) -> None:
        self.steps = steps
        self.seen: list[Seen] = []
        self._arrived = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(64), handlers=[self])
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    @property
    def keys(self) -> list[Any]:
        """The key of every attempt."""
        return [seen.key for seen in self.seen]

    def await_calls(self, number: int) -> None:
        """Wait until so many attempts have arrived."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.seen) >= number, DEADLINE):
                raise AssertionError(f"{len(self.seen)} calls have come, and not {number}")

    def close(self) -> None:
        self._server.stop(0).wait(DEADLINE)

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        kind = next((kind for kind in Kind if kind.path == method), None)
        if kind is None:
            return None

        def responses(request: Any, context: Any) -> Iterator[Any]:
            seen = Seen(method, dict(context.invocation_metadata()), context.time_remaining())
            context.add_callback(seen.is_gone.set)
            with self._arrived:
                step = self.steps[min(len(self.seen), len(self.steps) - 1)]
                self.seen.append(seen)
                self._arrived.notify_all()
            requests = request if kind.has_request_stream else iter([request])
            yield from step(_noting(requests, seen), context)

        def response(request: Any, context: Any) -> Any:
            return next(iter(list(responses(request, context))), None)

        behavior = responses if kind.has_response_stream else response
        make: Any = getattr(grpc, f"{kind.arity}_rpc_method_handler")
        return make(behavior, pb.LedgerRequest.FromString, pb.LedgerResponse.SerializeToString)


def _noting(requests: Iterator[Any], seen: Seen) -> Iterator[Any]:
    for request in requests:
        seen.requests.append(request)
        yield request


def answer(
    *parts: int,
    run: str | None = None,
    then: grpc.StatusCode | None = None,
    trailing: Pairs = (),
    read: bool = True,
) -> Step:
    """Answer with responses of these parts (0 unless given), and end with the code ``then``, or OK."""

    def step(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        if read:
            for _ in requests:
                pass
        if run is not None:
            context.send_initial_metadata(((RUN, run),))
        for part in parts if parts or then else (0,):
            yield pb.LedgerResponse(part=part)
        context.set_trailing_metadata((*trailing, *(((RUN, run),) if run else ())))
        if then is not None:
            context.abort(then, "as the script says")

    return step


def fail(
    code: grpc.StatusCode = UNAVAILABLE,
    *,
    trailing: Pairs = (),
    pushback: object = None,
    read: bool = False,
) -> Step:
    """Fail before anything was answered."""
    hint = () if pushback is None else ((PUSHBACK, str(pushback)),)
    return answer(then=code, trailing=(*trailing, *hint), read=read)


def status(code: grpc.StatusCode, reason: Reason | None = None, delay: float | None = None) -> Step:
    """Fail with a rich status: a refusal, or a RetryInfo of so many seconds, or both."""
    rich = status_pb2.Status(code=code.value[0])
    if reason is not None:
        rich.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="idem_grpc"))
    if delay is not None:
        wait = duration_pb2.Duration()
        wait.FromMilliseconds(round(delay * 1000))
        rich.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=wait))
    return fail(code, trailing=((STATUS_DETAILS, rich.SerializeToString()),))


def refuse(reason: Reason, *, pushback: object = None) -> Step:
    """Refuse as our interceptor does."""
    code = grpc.StatusCode[reason.code.name]
    rich = status_pb2.Status(code=code.value[0])
    rich.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="idem_grpc"))
    return fail(code, trailing=((STATUS_DETAILS, rich.SerializeToString()),), pushback=pushback)


def hang(until: threading.Event) -> Step:
    """Answer only once ``until`` is set, or the caller is gone."""

    def step(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(until.set)
        assert until.wait(DEADLINE)
        yield pb.LedgerResponse()

    return step
