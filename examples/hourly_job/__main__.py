"""Three schedulers request one report all the time: ``python -m examples.hourly_job``.

Exits with status 0 if the report was mailed once an hour.
"""

import argparse
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from examples_pb.hourly_job.v1 import reports_pb2 as pb
from examples_pb.hourly_job.v1 import reports_pb2_grpc as pb_grpc

from examples.hourly_job.server import WINDOW, Outbox
from examples.processes import Server
from idem_grpc import client_interceptors, keys, replayed

CUSTOMER = "uid123"
SCHEDULERS = 3
HOURS = 2
EVERY = timedelta(minutes=10)
START = datetime(2024, 3, 30, 10, tzinfo=UTC)
"""The start of the demonstration's simulated clock, on which two hours take a second."""


class Scheduler:
    """A scheduler without any state: it does not know the others, or its own earlier requests."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = pb_grpc.ReportServiceStub(channel)

    def ask(self, now: datetime) -> bool | None:
        """Request the report of this hour. Returns whether it had been mailed already."""
        # Without `at`, the hour is taken from the clock. All schedulers make the same key in one hour.
        key = keys.windowed("report", CUSTOMER, window=WINDOW, at=now)
        with keys.using(key):
            request = pb.MailReportRequest(customer=CUSTOMER)
            _, call = self._stub.MailReport.with_call(request, timeout=10)
        return replayed(call)


def main() -> int:
    parser = argparse.ArgumentParser(description="Show a job that runs once an hour.")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out, which fails")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: raise and clean up
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hourly-job-")))
        settings = [str(folder), *(["--unprotected"] if options.unprotected else [])]
        address = stack.enter_context(Server("examples.hourly_job.server", *settings)).ready()
        channels = [grpc.insecure_channel(address) for _ in range(SCHEDULERS)]
        schedulers = [
            Scheduler(stack.enter_context(grpc.intercept_channel(channel, *client_interceptors())))
            for channel in channels
        ]
        faults = play(schedulers, Outbox(folder / "outbox.db"))
    print(f"FAILED: {len(faults)} rules did not hold." if faults else "It was mailed once an hour.")
    return 1 if faults else 0


def play(schedulers: list[Scheduler], outbox: Outbox) -> list[str]:
    """Let all schedulers ask at once, every ten minutes for two hours. Returns the broken rules."""
    times = [START + number * EVERY for number in range(HOURS * (timedelta(hours=1) // EVERY))]
    reported: Counter[bool | None] = Counter()
    with ThreadPoolExecutor(SCHEDULERS) as pool:
        for now in times:
            replays = list(pool.map(lambda scheduler, now=now: scheduler.ask(now), schedulers))
            reported.update(replays)
            words = ", ".join("mailed already" if replay else "mailed" for replay in replays)
            print(f"{now:%H:%M}  {SCHEDULERS} ask: {words}")
    mailed = Counter(outbox.keys())
    for key, count in mailed.items():
        print(f"{key}: mailed {count}×")
    asked = SCHEDULERS * len(times)
    rules = {
        "each hour must have one mail": list(mailed.values()) == [1] * HOURS,
        "all other answers must be replays": reported == Counter({True: asked - HOURS, False: HOURS}),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    for rule in broken:
        print(f"✗ {rule}")
    return broken


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
