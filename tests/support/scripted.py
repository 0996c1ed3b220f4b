"""A server that does what the test says at every attempt, and records what it was sent.

It does not have the interceptors of the library: it stands for servers that misbehave, and for
servers that behave as the library's do, but at a time of the test's choosing. Clients of both faces
can call it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
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
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
NOWHERE = "127.0.0.1:1"
"""An address where nobody listens. A port that was free a moment ago may be another test's by now."""


@dataclass
class Seen:
    """One attempt, as it arrived."""

    method: str
    metadata: dict[str, str | bytes]
    time_remaining: float
    requests: list[Any] = field(default_factory=list)
    """The requests that the step has read."""
    was_complete: bool = False
    """The step has read the end of the requests."""
    is_gone: threading.Event = field(default_factory=threading.Event)
    """The attempt is over."""

    @property
    def key(self) -> Any:
        return self.metadata.get("idempotency-key")

    @property
    def parts(self) -> list[int]:
        return [request.part for request in self.requests]


class Scripted(grpc.GenericRpcHandler):
    """The nth call does the nth of ``steps``; the last step serves for all calls that follow.

    The ``entry`` of a response is the number of its attempt, from "0".
    """

    def __init__(self, *steps: Step, credentials: grpc.ServerCredentials | None = None) -> None:
        self.steps = steps or (answer(),)
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
            if not context.add_callback(seen.is_gone.set):
                seen.is_gone.set()
            with self._arrived:
                number = len(self.seen)
                step = self.steps[min(number, len(self.steps) - 1)]
                self.seen.append(seen)
                self._arrived.notify_all()
            requests = request if kind.has_request_stream else iter([request])
            for response in step(_recorded(requests, seen), context):
                response.entry = str(number)
                yield response

        def response(request: Any, context: Any) -> Any:
            return next(iter(list(responses(request, context))), None)

        behavior = responses if kind.has_response_stream else response
        make: Any = getattr(grpc, f"{kind.arity}_rpc_method_handler")
        return make(behavior, pb.LedgerRequest.FromString, pb.LedgerResponse.SerializeToString)


def _recorded(requests: Iterator[Any], seen: Seen) -> Iterator[Any]:
    for request in requests:
        seen.requests.append(request)
        yield request
    seen.was_complete = True


def answer(
    *parts: int,
    run: str | None = None,
    then: grpc.StatusCode | None = None,
    details: str = "as the script says",
    initial: Pairs = (),
    trailing: Pairs = (),
    reads: int | None = None,
    until: threading.Event | None = None,
) -> Step:
    """Answer with responses of these parts, and end with the code ``then``.

    Without parts and without ``then``, there is one response, of part 0. The step reads so many
    requests first, by default all of them; before it ends, it waits for ``until``, which is set
    once the caller is gone. ``run`` is in the initial and in the trailing metadata.
    """
    ours = () if run is None else ((RUN, run),)

    def step(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for _ in islice(requests, reads):
            pass
        if initial or ours:
            context.send_initial_metadata((*initial, *ours))
        for part in parts if parts or then else (0,):
            yield pb.LedgerResponse(part=part)
        if until is not None:
            _wait(until, context)
        context.set_trailing_metadata((*trailing, *ours))
        if then not in (None, OK):
            context.abort(then, details)

    return step


def fail(
    code: grpc.StatusCode = UNAVAILABLE,
    *,
    trailing: Pairs = (),
    pushback: object = None,
    reads: int | None = 0,
    **settings: Any,
) -> Step:
    """Fail before anything was answered. The other settings are those of ``answer``."""
    hint = () if pushback is None else ((PUSHBACK, str(pushback)),)
    return answer(then=code, trailing=(*trailing, *hint), reads=reads, **settings)


def status(code: grpc.StatusCode, reason: Reason | None = None, delay: float | None = None) -> Step:
    """Fail with a rich status: a refusal, or a RetryInfo of so many seconds, or both."""
    return fail(code, trailing=_rich(code, reason, delay))


def refuse(reason: Reason, *, pushback: object = None) -> Step:
    """Refuse as the interceptor of the library's server does."""
    code = grpc.StatusCode[reason.code.name]
    return fail(code, trailing=_rich(code, reason, None), pushback=pushback)


def hang(until: threading.Event | None = None) -> Step:
    """Answer only once the caller is gone or ``until`` is set."""

    def step(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        _wait(until or threading.Event(), context)
        yield pb.LedgerResponse()

    return step


def turns(run: str, *, breaks_off_after: int | None = None) -> Step:
    """Answer every request as it comes, with a response of the same part."""

    def step(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.send_initial_metadata(((RUN, run),))
        for number, request in enumerate(requests, 1):
            yield pb.LedgerResponse(part=request.part)
            if number == breaks_off_after:
                context.abort(UNAVAILABLE, "broken off")

    return step


def _wait(event: threading.Event, context: Any) -> None:
    if not context.add_callback(event.set):
        event.set()
    assert event.wait(DEADLINE)


def _rich(code: grpc.StatusCode, reason: Reason | None, delay: float | None) -> Pairs:
    """Trailing metadata with a status that has a reason, a RetryInfo, or both."""
    rich = status_pb2.Status(code=code.value[0])
    if reason is not None:
        rich.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="idem_grpc"))
    if delay is not None:
        wait = duration_pb2.Duration()
        wait.FromMilliseconds(round(delay * 1000))
        rich.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=wait))
    return ((STATUS_DETAILS, rich.SerializeToString()),)
