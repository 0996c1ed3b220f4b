"""The rows of a SQLite store: reading them, judging how long they have to live, replacing them."""

import math
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from idem_grpc.stores.boot_clock import Moment
from idem_grpc.swap import Swap

Row = tuple[Any, ...]
"""Value, ttl, boot, expiry, wall expiry; and the key, where it was read."""

UNREAD: Final[Row] = ()
"""In place of a row that has to be read."""

FOREIGN = b"\xff"
"""No record, in place of a row that no store wrote: without a value, or with times of text."""

_COLUMNS = "value, ttl, boot, expiry, wall_expiry"
_VALUE = "CAST(value AS BLOB)"  # which is text where a person wrote it
SELECT = f"SELECT {_VALUE}, ttl, boot, expiry, wall_expiry, key FROM records WHERE"
_SAME = f"key = ? AND {_VALUE} = ? AND boot = ? AND expiry = ?"
_INSERT = f"INSERT INTO records ({_COLUMNS}, key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_UPDATE = f"UPDATE records SET ({_COLUMNS}) = (?, ?, ?, ?, ?) WHERE {_SAME}"
_DELETE = f"DELETE FROM records WHERE {_SAME}"
_READ_AT_ONCE = 64  # keys
_TOLERANCE = 0.001  # seconds; what rounding may add


def read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Row]:
    """The rows of those keys that have one."""
    rows = dict[bytes, Row]()
    for first in range(0, len(keys), _READ_AT_ONCE):
        some = keys[first : first + _READ_AT_ONCE]
        query = f"{SELECT} key IN ({', '.join('?' * len(some))})"
        for row in connection.execute(query, some).fetchall():
            rows[row[5]] = row
    return rows


def look(row: Row | None, now: Moment) -> tuple[bytes | None, float]:
    """The value in a row, and how many seconds it has left; None and 0 if it has expired."""
    if row is None:
        return None, 0.0
    value, ttl, boot, expiry, wall_expiry = row[:5]
    if not (value and type(ttl) is type(expiry) is type(wall_expiry) is float):
        return FOREIGN, math.inf
    left = expiry - now.elapsed
    # On some machines a reboot keeps the boot's id: then the record seems to be written in the future.
    if boot != now.boot or left > ttl + _TOLERANCE:
        left = wall_expiry - now.wall
    # A wall clock that was set back must not make a record live longer than it was written for.
    return (value, min(left, ttl)) if left > 0 else (None, 0.0)


def write(connection: sqlite3.Connection, key: bytes, row: Row | None, swap: Swap, now: Moment) -> Row | None:
    """Replace ``row`` by what ``swap`` writes, in one statement.

    Returns the new row, UNREAD if there is none; None if the key has another row than ``row``.
    """
    if swap.new is None:
        is_gone = row is None or connection.execute(_DELETE, (key, row[0], row[2], row[3])).rowcount == 1
        return UNREAD if is_gone else None
    new = swap.new, swap.ttl, now.boot, now.elapsed + swap.ttl, now.wall + swap.ttl
    if row is None:
        written = connection.execute(_INSERT, (*new, key))
    else:
        written = connection.execute(_UPDATE, (*new, key, row[0], row[2], row[3]))
    return new if written.rowcount == 1 else None
