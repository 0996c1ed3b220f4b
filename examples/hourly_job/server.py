"""Mail reports: started by ``python -m examples.hourly_job``. Every run of the handler is another mail."""

import argparse
import sqlite3
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import grpc
from examples_pb.hourly_job.v1 import reports_pb2 as pb
from examples_pb.hourly_job.v1 import reports_pb2_grpc as pb_grpc

from examples.processes import serve
from idem_grpc import SHARED, ServerInterceptor, current, open_store

SERVICE = "examples.hourly_job.v1.ReportService"
WINDOW = timedelta(hours=1)
"""The window of the keys. The server must keep answers for at least as long: see its contract."""


class Outbox:
    """The mails that were sent, in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(sqlite3.connect(path)) as mails, mails:
            mails.execute(
                "CREATE TABLE IF NOT EXISTS mails (number INTEGER PRIMARY KEY, customer TEXT, key TEXT)"
            )

    def send(self, customer: str, key: str) -> int:
        with closing(sqlite3.connect(self._path, timeout=10)) as mails, mails:
            cursor = mails.execute("INSERT INTO mails (customer, key) VALUES (?, ?)", (customer, key))
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def keys(self) -> list[str]:
        """Return the keys under which mails were sent, oldest first."""
        with closing(sqlite3.connect(self._path, timeout=10)) as mails, mails:
            return [key for (key,) in mails.execute("SELECT key FROM mails ORDER BY number")]


class ReportService(pb_grpc.ReportServiceServicer):
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def MailReport(
        self, request: pb.MailReportRequest, context: grpc.ServicerContext
    ) -> pb.MailReportResponse:
        execution = current()
        mail = self._outbox.send(request.customer, execution.key if execution else "unprotected")
        return pb.MailReportResponse(mail=mail)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mail reports.")
    parser.add_argument("folder", type=Path, help="folder of the store and the outbox")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out")
    options = parser.parse_args()
    interceptors: list[grpc.ServerInterceptor] = []
    with ExitStack() as stack:
        if not options.unprotected:
            store = stack.enter_context(open_store(f"sqlite:///{options.folder}/idem.db"))
            store.check()
            # The contract requires a key, and sets a retention that is longer than the window.
            interceptors.append(ServerInterceptor(store, scope=SHARED, services=[SERVICE]))
        service = ReportService(Outbox(options.folder / "outbox.db"))
        serve("reports", interceptors, lambda to: pb_grpc.add_ReportServiceServicer_to_server(service, to))


if __name__ == "__main__":
    main()
