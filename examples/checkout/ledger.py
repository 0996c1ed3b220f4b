"""The shop's ledger, in an SQLite file that all its servers share.

This module does not use gRPC. A payment or a refund is one transaction, under an id that the caller
chooses. An existing row is not changed, so the same id never counts twice.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, attempt INTEGER NOT NULL,
    server TEXT NOT NULL, began REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS payments (
    id TEXT PRIMARY KEY, order_id TEXT NOT NULL, minor_units INTEGER NOT NULL,
    currency TEXT NOT NULL, card TEXT NOT NULL, run INTEGER NOT NULL REFERENCES runs
);
CREATE TABLE IF NOT EXISTS refunds (
    id TEXT PRIMARY KEY, payment_id TEXT NOT NULL REFERENCES payments, minor_units INTEGER NOT NULL
);
"""


class LedgerError(Exception):
    """The ledger does not allow the operation."""


@dataclass(frozen=True)
class Run:
    """A run of a handler: its attempt number, its server and its start time."""

    id: int
    attempt: int
    server: str
    began: float


@dataclass(frozen=True)
class Payment:
    """A charge, and the run that made it."""

    id: str
    order_id: str
    minor_units: int
    currency: str
    run: int
    refunded: int


class Ledger:
    """The ledger in the file at ``path``, used by the server called ``server``."""

    def __init__(self, path: Path, server: str = "") -> None:
        self._path = path
        self._server = server
        # Not in WAL mode: SQLite does not wait for a lock to switch to it, and two servers may start at once.
        with self._open() as books:
            books.executescript(_SCHEMA)

    def note_run(self, order_id: str, attempt: int) -> int:
        """Record the start of a run, before the handler does anything else. Returns the run's id."""
        with self._open() as books:
            cursor = books.execute(
                "INSERT INTO runs (order_id, attempt, server, began) VALUES (?, ?, ?, ?)",
                (order_id, attempt, self._server, time.time()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def runs(self, order_id: str) -> list[Run]:
        with self._open() as books:
            rows = books.execute(
                "SELECT id, attempt, server, began FROM runs WHERE order_id = ? ORDER BY id", (order_id,)
            )
            return [Run(*row) for row in rows]

    def charge(
        self, payment_id: str, order_id: str, minor_units: int, currency: str, card: str, run: int
    ) -> Payment:
        """Book a payment, once per ``payment_id``."""
        with self._open() as books:
            books.execute(
                "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (payment_id, order_id, minor_units, currency, card, run),
            )
            return _payments(books, "id", payment_id)[0]

    def refund(self, refund_id: str, payment_id: str, minor_units: int) -> Payment:
        """Book a refund, once per ``refund_id``. Raises LedgerError if less is left of the payment."""
        with self._open() as books:
            books.execute("BEGIN IMMEDIATE")
            if not books.execute("SELECT 1 FROM refunds WHERE id = ?", (refund_id,)).fetchone():
                payment = _payments(books, "id", payment_id)[0]
                left = payment.minor_units - payment.refunded
                if minor_units > left:
                    raise LedgerError(
                        f"only {left} {payment.currency} (minor units) are left of {payment_id}"
                    )
                books.execute("INSERT INTO refunds VALUES (?, ?, ?)", (refund_id, payment_id, minor_units))
            return _payments(books, "id", payment_id)[0]

    def payment(self, payment_id: str) -> Payment | None:
        with self._open() as books:
            return next(iter(_payments(books, "id", payment_id)), None)

    def payments(self, order_id: str) -> list[Payment]:
        with self._open() as books:
            return _payments(books, "order_id", order_id)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one transaction: handlers run on many threads, and opening is cheap."""
        with closing(sqlite3.connect(self._path, timeout=10)) as books, books:
            yield books


def _payments(books: sqlite3.Connection, column: str, value: str) -> list[Payment]:
    rows = books.execute(
        "SELECT id, order_id, minor_units, currency, run,"
        " (SELECT coalesce(sum(minor_units), 0) FROM refunds WHERE payment_id = payments.id)"
        f" FROM payments WHERE {column} = ? ORDER BY rowid",
        (value,),
    )
    return [Payment(*row) for row in rows]
