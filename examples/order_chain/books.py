"""The effects and answers of a service, in an SQLite file.

This module does not prevent a second effect: each run of a handler adds one. Only the interceptor keeps the
handler from running again.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from idem_grpc import Replied, Reporter

_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (number INTEGER PRIMARY KEY, order_id TEXT NOT NULL, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replies (number INTEGER PRIMARY KEY, reply TEXT NOT NULL);
"""


class Books(Reporter):
    """A Reporter that stores how each call was answered, and the effects of the service."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Not in WAL mode: SQLite does not wait for a lock to switch to it, and two servers start at once.
        with self._open() as books:
            books.executescript(_SCHEMA)

    def note_effect(self, order_id: str, key: str) -> str:
        """Record that money or goods have moved. Returns the id of the effect."""
        with self._open() as books:
            cursor = books.execute("INSERT INTO effects (order_id, key) VALUES (?, ?)", (order_id, key))
            return f"{self._path.stem}-{cursor.lastrowid}"

    def replied(self, event: Replied) -> None:
        with self._open() as books:
            reply = (event.reason or event.code).name + (" replayed" if event.replayed else "")
            books.execute("INSERT INTO replies (reply) VALUES (?)", (reply,))

    def effects(self, order_id: str) -> list[str]:
        """Return the keys under which effects happened for an order."""
        with self._open() as books:
            rows = books.execute("SELECT key FROM effects WHERE order_id = ? ORDER BY number", (order_id,))
            return [key for (key,) in rows]

    def replies(self) -> list[str]:
        """Return how each call was answered, oldest first."""
        with self._open() as books:
            return [reply for (reply,) in books.execute("SELECT reply FROM replies ORDER BY number")]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10)) as books, books:
            yield books
