"""Prices in an SQLite file: one statement that may be run as often as it likes.

A trigger counts what really was written, so that the example can tell.
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

# All that it takes. The key makes a second row impossible; the condition keeps a duplicate from
# being written again, and an old price that comes late from undoing a newer one.
UPSERT = """
INSERT INTO prices (article, minor_units, revision) VALUES (?, ?, ?)
ON CONFLICT (article) DO UPDATE
    SET minor_units = excluded.minor_units, revision = excluded.revision
    WHERE excluded.revision > prices.revision
"""

# Without the condition: the last to arrive wins, which need not be the last that was sent.
CARELESS = UPSERT.partition("    WHERE")[0]


@dataclass(frozen=True)
class Price:
    """What an article costs, in cents, and which decision that was."""

    article: str
    minor_units: int
    revision: int


class Prices:
    def __init__(self, path: Path, *, careless: bool = False) -> None:
        self._path = path
        self._statement = CARELESS if careless else UPSERT
        # Not in WAL mode: SQLite does not wait to switch to that, and two servers may start at once.
        with self._open() as database:
            database.executescript(_SCHEMA)

    def put(self, price: Price) -> Price:
        """Set a price, and return the one that stands."""
        with self._open() as database:
            database.execute(self._statement, (price.article, price.minor_units, price.revision))
            row = database.execute("SELECT * FROM prices WHERE article = ?", (price.article,)).fetchone()
            return Price(*row)

    def writes(self, article: str) -> list[int]:
        """What was written of an article's price, and in which order."""
        with self._open() as database:
            rows = database.execute(
                "SELECT minor_units FROM writes WHERE article = ? ORDER BY rowid", (article,)
            )
            return [minor_units for (minor_units,) in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database
