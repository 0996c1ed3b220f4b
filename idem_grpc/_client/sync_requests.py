"""A request stream that can be sent again: its caller's iterator is read once, whatever comes.

grpc reads the requests of every attempt on a thread of its own. That of an attempt which
is over may still wait for the caller's iterator; what it then gets is for the next one.
"""

import threading
from collections.abc import Iterable
from typing import Any

from idem_grpc._client.common import Sent


class Requests:
    """The requests of one call, kept up to ``limit`` bytes."""

    def __init__(self, source: Iterable[Any], limit: int) -> None:
        self._source = iter(source)
        self._sent = Sent(limit)
        self._changed = threading.Condition()
        self._live: Feed | None = None
        self._is_read = False
        self._end: BaseException | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all that was sent can be sent again."""
        return self._sent.is_whole

    def feed(self) -> "Feed":
        """The requests for a new attempt, from the first; those for the one before end here."""
        with self._changed:
            self._live = Feed(self)
            self._changed.notify_all()
            return self._live

    def close(self) -> None:
        """The call is over."""
        with self._changed:
            self._live = None
            self._sent.clear()
            self._changed.notify_all()

    def next(self, feed: "Feed", position: int) -> Any:
        """The request at ``position``, which is read if nobody has. Raises what the caller's iterator did."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._live is not feed or position < self._sent.count or not self._is_read
                )
                if self._live is not feed:
                    raise StopIteration
                if position < self._sent.count:
                    return self._sent.at(position)
                if self._end is not None:
                    raise self._end
                self._is_read = True
            self._read()

    def _read(self) -> None:
        request, end = None, None
        try:
            request = next(self._source)
        except BaseException as error:  # which is the caller's, and grpc has its own way with it
            end = error
        with self._changed:
            self._is_read, self._end = False, end
            if end is None and self._live is not None:
                self._sent.add(request)
            self._changed.notify_all()


class Feed:
    """The requests of one attempt."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._position = 0

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Any:
        request = self._requests.next(self, self._position)
        self._position += 1
        return request
