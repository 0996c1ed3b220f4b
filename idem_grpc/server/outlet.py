"""Where a handler's responses go over from its thread to that of its RPC."""

import threading

from idem_grpc.server.replies import Part


class Outlet:
    """Hands over one response at a time, as long as somebody takes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._part: Part | None = None
        self._is_closed = False

    def put(self, part: Part) -> None:
        """Hand one over: returns once the last one was taken. Dropped if the outlet is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._part is None or self._is_closed)
            self._part = part
            self._changed.notify_all()

    def take(self) -> Part | None:
        """The next one; None once the outlet is closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._part is not None or self._is_closed)
            part, self._part = self._part, None
            self._changed.notify_all()
            return part

    def close(self) -> None:
        """There are no more of them, or nobody takes them any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
