"""The service behind the tests: its handlers do what the request says, and count their runs.

The request holds the behaviour, which may differ between runs of the same order. So the same test
drives a handler in this process or in another one.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Execution, current

DEADLINE = 30.0  # seconds to wait for what must happen
SERVICE = "tests.v1.LedgerService"
STATUS_DETAILS = "grpc-status-details-bin"


def run(
    end: str = "UNSPECIFIED",
    code: grpc.StatusCode | None = None,
    *,
    mark: str = "UNSPECIFIED",
    initial: Sequence[tuple[str, str | bytes]] = (),
    trailing: Sequence[tuple[str, str | bytes]] = (),
    **fields: Any,
) -> pb.LedgerRun:
    """Describe what one run does: ``run("ABORT", ABORTED, gate="a")``; a code alone means an abort."""
    if code is not None and end == "UNSPECIFIED":
        end = "ABORT"
    return pb.LedgerRun(
        end=pb.LedgerEnd.Value(f"LEDGER_END_{end}"),
        code=0 if code is None else code.value[0],
        mark=pb.LedgerMark.Value(f"LEDGER_MARK_{mark}"),
        initial_metadata=_metadata(initial),
        trailing_metadata=_metadata(trailing),
        **fields,
    )


def order(*runs: pb.LedgerRun, name: str = "", amount: int = 1299, filler: bytes = b"") -> pb.LedgerRequest:
    """A request for a new order, whose nth attempt does the nth of ``runs``."""
    return pb.LedgerRequest(order=name or uuid4().hex, amount=amount, runs=runs, filler=filler)


def _metadata(pairs: Sequence[tuple[str, str | bytes]]) -> list[pb.LedgerMetadatum]:
    return [
        pb.LedgerMetadatum(key=key, value=value.encode() if isinstance(value, str) else value)
        for key, value in pairs
    ]


def pairs(metadata: Iterable[pb.LedgerMetadatum]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((m.key, m.value if m.key.endswith("-bin") else m.value.decode()) for m in metadata)


class Gate:
    """A gate at which handlers wait for the test, and the test for handlers."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened: Future[None] = Future()
        self._opened.set_running_or_notify_cancel()  # a handler that is cancelled does not take it along

    def await_arrival(self) -> None:
        """Wait until a handler is at the gate."""
        assert self.reached.wait(DEADLINE), "no handler reached the gate"

    def open(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def cross(self) -> None:
        self.reached.set()
        self._opened.result(DEADLINE)

    async def cross_async(self) -> None:
        self.reached.set()
        await asyncio.wait_for(asyncio.wrap_future(self._opened), DEADLINE)


@dataclass(slots=True)
class Run:
    """One run of a handler, for the test to look at."""

    request: pb.LedgerRequest
    plan: pb.LedgerRun
    context: Any
    execution: Execution | None
    entry: str
    derived: str = ""
    is_active: bool | None = None
    time_remaining: float | None = None
    is_over: bool = False

    def response(self, part: int = 0) -> pb.LedgerResponse:
        filler = b"\xa5" * self.plan.filler_bytes
        return pb.LedgerResponse(entry=self.entry, order=self.request.order, part=part, filler=filler)

    def look_around(self) -> None:
        """Record what the handler sees of its caller."""
        context = self.context
        self.is_active = context.is_active() if hasattr(context, "is_active") else not context.cancelled()
        self.time_remaining = context.time_remaining()

    def rich_status(self) -> "RichStatus":
        code = next(code for code in grpc.StatusCode if code.value[0] == self.plan.code)
        status = status_pb2.Status(code=self.plan.code, message=self.plan.details)
        info = error_details_pb2.ErrorInfo(reason="BOUNCED", domain="ledger", metadata={"run": self.entry})
        status.details.add().Pack(info)
        trailing = pairs(self.plan.trailing_metadata)
        return RichStatus(code, status.message, (*trailing, (STATUS_DETAILS, status.SerializeToString())))


@dataclass(frozen=True)
class RichStatus(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


class Ledger:
    """The runs of all handlers, and the gates that they wait at.

    ``report`` is called with every event that a test in another process waits for.
    """

    def __init__(self, report: Callable[[str], None] = lambda event: None) -> None:
        self.all_runs: list[Run] = []
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()
        self._report = report

    def gate(self, name: str) -> Gate:
        with self._lock:
            return self._gates.setdefault(name, Gate())

    def open_all(self) -> None:
        """Open all gates, so that no server waits for a handler at the end of the test."""
        with self._lock:
            gates = list(self._gates.values())
        for gate in gates:
            gate.open()

    def runs(self, request: pb.LedgerRequest) -> list[Run]:
        """The runs of one order."""
        return [run for run in self.all_runs if run.request.order == request.order]

    def start(self, request: pb.LedgerRequest, context: Any) -> Run:
        """Record a run, and do the first part of it. The caller sends the initial metadata."""
        execution = current()
        with self._lock:
            number = len(self.runs(request)) if execution is None else execution.attempt - 1
            runs = request.runs or [pb.LedgerRun()]
            plan = runs[min(number, len(runs) - 1)]
            run = Run(request, plan, context, execution, uuid4().hex)
            self.all_runs.append(run)
        attempt = 0
        if execution is not None:
            attempt, run.derived = execution.attempt, execution.derive("provider")
            if plan.mark == pb.LEDGER_MARK_KEEP:
                execution.keep()
            elif plan.mark == pb.LEDGER_MARK_RELEASE:
                execution.release()
        run.look_around()
        self._report(f"run {request.order} {attempt}")
        return run

    def at(self, run: Run, responses: int) -> Gate | None:
        """The gate to wait at after this number of responses, or None."""
        if not run.plan.gate or run.plan.responses_before_gate != responses:
            return None
        self._report(f"gate {run.plan.gate}")
        return self.gate(run.plan.gate)

    def finish(self, run: Run) -> Any:
        """Record the end of a run. Returns its response, unless it ends with an abort."""
        run.look_around()
        run.is_over = True
        trailing = pairs(run.plan.trailing_metadata)
        if trailing:
            run.context.set_trailing_metadata(trailing)
        code = next(code for code in grpc.StatusCode if code.value[0] == run.plan.code)
        match run.plan.end:
            case pb.LEDGER_END_EMPTY:
                return pb.LedgerResponse()
            case pb.LEDGER_END_SET_CODE:
                run.context.set_code(code)
                run.context.set_details(run.plan.details)
            case pb.LEDGER_END_RAISE:
                raise RuntimeError(run.plan.details or "the ledger broke")
            case pb.LEDGER_END_NONE:
                return None
            case pb.LEDGER_END_WRONG_TYPE:
                return "not a message"
            case pb.LEDGER_END_ABORT:
                return run.context.abort(code, run.plan.details)
            case pb.LEDGER_END_ABORT_WITH_STATUS:
                return run.context.abort_with_status(run.rich_status())
        return run.response()
