"""One client for all servers and all kinds of method.

It is a plain grpc client without interceptors, and its messages are bytes: tests compare what was
sent over the wire.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Reason
from idem_grpc._core.problem import reason_in
from tests.server.ledger import DEADLINE, SERVICE, STATUS_DETAILS

RUN = "idempotency-run"
REPLAYED = "idempotency-replayed"
PUSHBACK = "grpc-retry-pushback-ms"
MESSAGE_SIZE = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Kind(Enum):
    """The kinds of method, by the name that each has in the ledger."""

    UNARY = "Unary"
    SERVER_STREAM = "ServerStream"
    CLIENT_STREAM = "ClientStream"
    BIDI = "Bidi"
    READ = "Read"

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.value}"

    @property
    def has_request_stream(self) -> bool:
        return self in (Kind.CLIENT_STREAM, Kind.BIDI)

    @property
    def has_response_stream(self) -> bool:
        return self in (Kind.SERVER_STREAM, Kind.BIDI)

    @property
    def arity(self) -> str:
        """The name of the kind in grpc, such as "unary_stream" for one request and many responses."""
        words = {False: "unary", True: "stream"}
        return f"{words[self.has_request_stream]}_{words[self.has_response_stream]}"


@dataclass(frozen=True)
class Answer:
    """Everything that a call returned."""

    code: grpc.StatusCode
    details: str
    messages: tuple[bytes, ...]
    initial: tuple[tuple[str, str | bytes], ...]
    all_trailing: tuple[tuple[str, str | bytes], ...]

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @property
    def trailing(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata that is the handler's own."""
        return tuple(pair for pair in self.all_trailing if pair[0] not in (RUN, REPLAYED))

    @property
    def run(self) -> Any:
        return dict(self.all_trailing).get(RUN)

    @property
    def replayed(self) -> bool:
        return dict(self.all_trailing).get(REPLAYED) == "true"

    @property
    def essence(self) -> tuple[Any, ...]:
        """The part of an answer that a replay repeats: all but the library's own trailers, and the run."""
        return self.code, self.details, self.messages, self.initial, self.trailing, self.run

    @property
    def responses(self) -> list[pb.LedgerResponse]:
        return [pb.LedgerResponse.FromString(message) for message in self.messages]

    @property
    def entry(self) -> str:
        return self.responses[0].entry

    @property
    def status(self) -> status_pb2.Status:
        """The rich status; an empty one if there is none."""
        details = dict(self.all_trailing).get(STATUS_DETAILS, b"")
        assert isinstance(details, bytes)
        return status_pb2.Status.FromString(details)

    @property
    def reason(self) -> Reason | None:
        return reason_in(self.status.SerializeToString())

    @property
    def pushback(self) -> float:
        """The seconds after which the server asks for a retry."""
        value = dict(self.all_trailing)[PUSHBACK]
        return int(value) / 1000

    def detail(self, kind: Any) -> Any:
        """The detail of the rich status that has this type, or None."""
        for detail in self.status.details:
            found = kind()
            if detail.Unpack(found):
                return found
        return None

    @property
    def error_info(self) -> error_details_pb2.ErrorInfo | None:
        info: error_details_pb2.ErrorInfo | None = self.detail(error_details_pb2.ErrorInfo)
        return info


class Pending:
    """A call in flight."""

    def __init__(self, rpc: Any, is_stream: bool) -> None:
        self._rpc = rpc
        self._is_stream = is_stream
        self._answer: Answer | None = None

    def cancel(self) -> None:
        self._rpc.cancel()

    def done(self) -> bool:
        return bool(self._rpc.done())

    def answer(self) -> Answer:
        """Wait for all of it, on this thread."""
        if self._answer is None:
            self._answer = self._wait()
        return self._answer

    def _wait(self) -> Answer:
        messages: list[bytes] = []
        try:
            if self._is_stream:
                messages.extend(self._rpc)
            else:
                messages.append(self._rpc.result())
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        return Answer(
            self._rpc.code(),
            self._rpc.details() or "",
            tuple(messages),
            tuple((m.key, m.value) for m in self._rpc.initial_metadata() or ()),
            tuple((m.key, m.value) for m in self._rpc.trailing_metadata() or ()),
        )


class Client:
    """A channel of its own. ``options`` are grpc's; retries are off unless they say otherwise."""

    def __init__(
        self,
        address: str,
        *options: tuple[str, Any],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        own = (("grpc.use_local_subchannel_pool", 1), *MESSAGE_SIZE)
        retries = () if any(name == "grpc.enable_retries" for name, _ in options) else (NO_RETRIES,)
        settings = (*own, *retries, *options)
        self._sent: list[Pending] = []  # grpc cancels a call without references
        self.channel = (
            grpc.insecure_channel(address, settings)
            if credentials is None
            else grpc.secure_channel(address, credentials, settings)
        )

    def begin(
        self,
        kind: Kind,
        request: pb.LedgerRequest | bytes,
        key: str | Sequence[str] | None = None,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: float | None = DEADLINE,
    ) -> Pending:
        """Send a call. A request stream is ``request`` and two parts more of the same order."""
        keys = [key] if isinstance(key, str) else key or []
        sent = (*(("idempotency-key", key) for key in keys), *metadata)
        requests = _requests(kind, request)
        method: Any = getattr(self.channel, kind.arity)(kind.path)
        send = method if kind.has_response_stream else method.future
        body = iter(requests) if kind.has_request_stream else requests[0]
        call = Pending(send(body, metadata=sent, timeout=timeout), kind.has_response_stream)
        self._sent.append(call)
        return call

    def call(self, kind: Kind, request: pb.LedgerRequest | bytes, key: Any = None, **options: Any) -> Answer:
        """Send a call and wait for its answer; the arguments are those of ``begin``."""
        return self.begin(kind, request, key, **options).answer()

    def persist(self, kind: Kind, request: pb.LedgerRequest, key: str, **options: Any) -> Answer:
        """Repeat the call while it is UNAVAILABLE, after the server's pushback."""
        while (answer := self.call(kind, request, key, **options)).code is grpc.StatusCode.UNAVAILABLE:
            threading.Event().wait(answer.pushback)  # as the server demands
        return answer


NO_RETRIES = ("grpc.enable_retries", 0)


def _requests(kind: Kind, request: pb.LedgerRequest | bytes) -> list[bytes]:
    if isinstance(request, bytes):
        return [request]
    parts = [pb.LedgerRequest(order=request.order, amount=request.amount, part=part) for part in (1, 2)]
    whole = [request, *parts] if kind.has_request_stream else [request]
    return [message.SerializeToString() for message in whole]
