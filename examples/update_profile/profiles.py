"""Profiles in an SQLite file, and the events that notify other services of changes.

A profile and its event are written in one transaction, so there is no change without an event.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from examples_pb.update_profile.v1 import profiles_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from idem_grpc import updates

_SCHEMA = """
CREATE TABLE IF NOT EXISTS profiles (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, name TEXT NOT NULL, changed TEXT NOT NULL);
"""


class Profiles:
    """The database. ``careless``: write every update, with a new time and an event, as most servers do."""

    def __init__(self, path: Path, *, careless: bool = False) -> None:
        self._path = path
        self._careless = careless
        # Not in WAL mode: SQLite does not wait for a lock to switch to it, and two servers may start at once.
        with self._open() as database:
            database.executescript(_SCHEMA)

    def update(self, patch: pb.Profile, mask: FieldMask) -> pb.Profile:
        """Apply an update. Returns the profile after it. Raises UpdateRefused."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")  # no other write between the read and the write
            stored = _profile(database, patch.name)
            update = updates.apply(stored, patch, mask) if not self._careless else _careless(stored, patch)
            if update.changed:  # the one place for the effects of a change
                body = update.message.SerializeToString()
                database.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?)", (patch.name, body))
                event = (patch.name, ",".join(update.changed.paths))
                database.execute("INSERT INTO events (name, changed) VALUES (?, ?)", event)
            return update.message

    def get(self, name: str) -> pb.Profile:
        with self._open() as database:
            return _profile(database, name)

    def events(self, name: str) -> list[str]:
        """Return the events of a profile's changes, oldest first."""
        with self._open() as database:
            rows = database.execute("SELECT changed FROM events WHERE name = ? ORDER BY id", (name,))
            return [changed for (changed,) in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database


def _profile(database: sqlite3.Connection, name: str) -> pb.Profile:
    """Return the profile, or an empty one, which the first update creates."""
    row = database.execute("SELECT body FROM profiles WHERE name = ?", (name,)).fetchone()
    return pb.Profile.FromString(row[0]) if row else pb.Profile()


def _careless(stored: pb.Profile, patch: pb.Profile) -> updates.Update[pb.Profile]:
    message = pb.Profile()
    message.CopyFrom(stored)
    message.MergeFrom(patch)
    now = Timestamp()
    now.GetCurrentTime()
    message.update_time.CopyFrom(now)
    everything = FieldMask(paths=["*"])
    return updates.Update(message, updates.Changes(everything))
