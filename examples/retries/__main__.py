"""Four failures that a retry fixes, and one that it cannot fix: ``python -m examples.retries``.

Exits with status 0 if every passenger has one seat, and every call one key.
"""

import argparse
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.retries.v1 import seats_pb2 as pb
from examples_pb.retries.v1 import seats_pb2_grpc as pb_grpc

from examples.processes import Server, until
from examples.retries.proxy import Proxy
from examples.retries.train import Train
from idem_grpc import Reason, Retry, client_interceptors, keys, reason, replayed

LEASE = 2
"""Seconds of silence after which a run counts as dead. In production, keep the default of 30."""

SCENES = {
    "busy": ("the server returns UNAVAILABLE before it has done anything", 2),
    "cut": ("the seat is reserved, and the connection is cut before the reply", 1),
    "killed": ("the seat is reserved, and the server is killed before the reply", 2),
    "slow": ("the server takes longer than one attempt may", 1),
}
"""The failure for each passenger, and how often the handler must run for it."""


def client(address: str) -> grpc.Channel:
    """Open a channel that retries calls. The interceptors are all that a client needs."""
    patient = Retry(
        initial_backoff=0.1,
        max_backoff=1,
        attempt_timeout=3,  # the deadline that the server sees; the call's own deadline covers all attempts
    )
    return grpc.intercept_channel(
        grpc.insecure_channel(address),
        *client_interceptors(keys=keys.unique, retry=patient),  # one key per call, not per attempt
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Show a client that retries, and takes one seat.")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out, which fails")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: raise and clean up
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retries-")))
        train = Train(folder / "train.db")
        settings = [str(folder), "--lease", str(LEASE), *(["--unprotected"] if options.unprotected else [])]
        servers = [stack.enter_context(Server("examples.retries.server", *settings)) for _ in range(2)]
        proxy = stack.enter_context(Proxy(*(server.ready() for server in servers)))
        stub = pb_grpc.SeatServiceStub(stack.enter_context(client(proxy.address)))
        proxy.lose_reply_once(lambda: train.seats("cut"))
        faults = [play(stub, train, passenger, folder) for passenger in SCENES]
        faults.append(refused(stub, train))
    failed = sum(map(bool, faults))
    print(f"FAILED: {failed} of {len(faults)} scenes did not hold." if failed else "All scenes held.")
    return 1 if failed else 0


def play(stub: pb_grpc.SeatServiceStub, train: Train, passenger: str, folder: Path) -> list[str]:
    """Reserve a seat while something fails. Returns the rules that did not hold."""
    trouble, runs = SCENES[passenger]
    print(f"{passenger}: {trouble}")
    before = len(train.arrivals())
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(reserve, stub, passenger)
        if passenger == "slow":
            until(lambda: len(train.arrivals()) > before + 1, "the client sends the call again")
            (folder / passenger).touch()  # lets the handler continue
        answer, was_replayed = calling.result()
    arrivals = train.arrivals()[before:]
    for number, arrival in enumerate(arrivals, 1):
        done = ", ".join(f"attempt {attempt}" for attempt in arrival.attempts) or "not run"
        print(f"  call {number}  key {arrival.key}  {done}")
    seats = train.seats(passenger)
    print(f"  the client has {answer}; reserved: {listing(seats)}")
    return check(
        {
            "the call must come more than once": len(arrivals) > 1,
            "all attempts must have one key": len({arrival.key for arrival in arrivals} | {""}) == 2,
            f"the handler must run {runs}×, and ran {train.runs(passenger)}×": train.runs(passenger) == runs,
            "the client must have its one seat": [answer.split(",")[0]] == [listing(seats)],
            f"replayed() must return {runs == 1}, and returns {was_replayed}": was_replayed is (runs == 1),
        }
    )


def reserve(stub: pb_grpc.SeatServiceStub, passenger: str) -> tuple[str, bool | None]:
    """Make one call, as an application does. The code does not depend on the number of attempts."""
    response, call = stub.Reserve.with_call(pb.ReserveRequest(passenger=passenger), timeout=20)
    was_replayed = replayed(call)  # None: the server does not protect this method
    return f"seat {response.seat}" + (", replayed" if was_replayed else ""), was_replayed


def refused(stub: pb_grpc.SeatServiceStub, train: Train) -> list[str]:
    """Send a key that was used with another request. No retry can fix that, so there is none."""
    print("reused: one key for two passengers, which no retry can fix")
    before = len(train.arrivals())
    why: Reason | None = None
    for passenger in ("first", "second"):
        try:
            with keys.using("seat:window:1"):
                stub.Reserve(pb.ReserveRequest(passenger=passenger), timeout=20)
        except grpc.RpcError as error:
            why = reason(error)
    arrivals = train.arrivals()[before:]
    print(f"  {len(arrivals)} calls came; the second was refused: {why}")
    return check(
        {
            "the second call must be refused": why is Reason.KEY_REUSED,
            "neither must be sent again": len(arrivals) == 2,
            "only the first must have a seat": not train.seats("second"),
        }
    )


def check(rules: dict[str, bool]) -> list[str]:
    """Print and return the rules that do not hold."""
    broken = [rule for rule, holds in rules.items() if not holds]
    for rule in broken:
        print(f"  ✗ {rule}")
    if not broken:
        print("  ✓ held")
    sys.stdout.flush()
    return broken


def listing(seats: list[int]) -> str:
    return ", ".join(f"seat {seat}" for seat in seats) or "nothing"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
