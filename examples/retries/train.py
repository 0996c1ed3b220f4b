"""The train's database, an SQLite file: the reserved seats, and the calls that arrived at the servers.

A reservation is one transaction, under an id that the caller chooses. The same id never takes two seats.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS arrivals (number INTEGER PRIMARY KEY, key TEXT NOT NULL, attempt INTEGER);
CREATE TABLE IF NOT EXISTS runs (passenger TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS seats (
    seat INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, passenger TEXT NOT NULL
);
"""


@dataclass
class Arrival:
    """A call that arrived at a server. ``attempts``: the handler runs that began before the next arrival."""

    key: str
    attempts: list[int] = field(default_factory=list)


class Train:
    def __init__(self, path: Path) -> None:
        self._path = path
        # Not in WAL mode: SQLite does not wait for a lock to switch to it, and two servers may start at once.
        with self._open() as books:
            books.executescript(_SCHEMA)

    def note_arrival(self, key: str) -> None:
        """Record the arrival of a call."""
        with self._open() as books:
            books.execute("INSERT INTO arrivals (key) VALUES (?)", (key,))

    def note_run(self, key: str, passenger: str, attempt: int) -> bool:
        """Record a run of the handler. Returns whether it is the first one for this passenger."""
        with self._open() as books:
            books.execute("INSERT INTO arrivals (key, attempt) VALUES (?, ?)", (key, attempt))
            books.execute("INSERT INTO runs VALUES (?)", (passenger,))
            (runs,) = books.execute("SELECT count(*) FROM runs WHERE passenger = ?", (passenger,)).fetchone()
            return bool(runs == 1)

    def reserve(self, reservation_id: str, passenger: str) -> int:
        """Take the next free seat, once per ``reservation_id``. Returns its number."""
        with self._open() as books:
            books.execute(
                "INSERT INTO seats (id, passenger) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (reservation_id, passenger),
            )
            row = books.execute("SELECT seat FROM seats WHERE id = ?", (reservation_id,)).fetchone()
            return int(row[0])

    def seats(self, passenger: str) -> list[int]:
        with self._open() as books:
            return [
                seat for (seat,) in books.execute("SELECT seat FROM seats WHERE passenger = ?", (passenger,))
            ]

    def runs(self, passenger: str) -> int:
        with self._open() as books:
            return int(
                books.execute("SELECT count(*) FROM runs WHERE passenger = ?", (passenger,)).fetchone()[0]
            )

    def arrivals(self) -> list[Arrival]:
        """Return the calls that arrived at any server."""
        found: list[Arrival] = []
        with self._open() as books:
            for key, attempt in books.execute("SELECT key, attempt FROM arrivals ORDER BY number"):
                if attempt is None:
                    found.append(Arrival(key))
                else:
                    next(each for each in reversed(found) if each.key == key).attempts.append(attempt)
        return found

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one transaction, so that any thread or process can use it."""
        with closing(sqlite3.connect(self._path, timeout=10)) as books, books:
            yield books
