"""Where a handler's responses go over from its thread to that of its RPC."""

import threading


class Outlet:
    """Hands over one message at a time, as long as somebody takes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._message: bytes | None = None
        self._is_closed = False

    def put(self, message: bytes) -> None:
        """Hand over a message: returns once the last one was taken. Dropped if the outlet is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._message is None or self._is_closed)
            self._message = message
            self._changed.notify_all()

    def take(self) -> bytes | None:
        """The next message; None once the outlet is closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._message is not None or self._is_closed)
            message, self._message = self._message, None
            self._changed.notify_all()
            return message

    def close(self) -> None:
        """There are no more messages, or nobody takes them any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
