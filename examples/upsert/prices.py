"""Prices in an SQLite file, written by one statement that may run any number of times.

A trigger records the actual writes, so that the example can check them.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS prices (
    article TEXT PRIMARY KEY, minor_units INTEGER NOT NULL, revision INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS writes (article TEXT NOT NULL, minor_units INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS inserted AFTER INSERT ON prices
    BEGIN INSERT INTO writes VALUES (new.article, new.minor_units); END;
CREATE TRIGGER IF NOT EXISTS updated AFTER UPDATE ON prices
    BEGIN INSERT INTO writes VALUES (new.article, new.minor_units); END;
"""

# The primary key prevents a second row. The condition prevents a second write of a duplicate, and keeps a
# late, older price from overwriting a newer one.
UPSERT = """
INSERT INTO prices (article, minor_units, revision) VALUES (?, ?, ?)
ON CONFLICT (article) DO UPDATE
    SET minor_units = excluded.minor_units, revision = excluded.revision
    WHERE excluded.revision > prices.revision
"""

# Without the condition, the last call to arrive wins, which may not be the last that was sent.
CARELESS = UPSERT.partition("    WHERE")[0]


@dataclass(frozen=True)
class Price:
    """The price of an article, in cents, and its revision."""

    article: str
    minor_units: int
    revision: int


class Prices:
    def __init__(self, path: Path, *, careless: bool = False) -> None:
        self._path = path
        self._statement = CARELESS if careless else UPSERT
        # Not in WAL mode: SQLite does not wait for a lock to switch to it, and two servers may start at once.
        with self._open() as database:
            database.executescript(_SCHEMA)

    def put(self, price: Price) -> Price:
        """Set a price, and return the current price."""
        with self._open() as database:
            database.execute(self._statement, (price.article, price.minor_units, price.revision))
            row = database.execute("SELECT * FROM prices WHERE article = ?", (price.article,)).fetchone()
            return Price(*row)

    def writes(self, article: str) -> list[int]:
        """Return the prices written for an article, oldest first."""
        with self._open() as database:
            rows = database.execute(
                "SELECT minor_units FROM writes WHERE article = ? ORDER BY rowid", (article,)
            )
            return [minor_units for (minor_units,) in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database
