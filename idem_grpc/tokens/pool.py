"""Tokens fetched ahead: each is given out once, and none near its end."""

from collections import deque
from collections.abc import Iterable
from threading import Lock

_LAST_PART = 0.25
_LONGEST_MARGIN = 30.0


class Token(str):
    """A token, which remembers the generation of the pool that it was fetched for."""

    generation = 0


class TokenPool:
    """Up to ``size`` tokens. ``now`` is a monotonic time in seconds. For threads.

    ``generation`` counts how often the pool was dropped.
    """

    def __init__(self, size: int, refresh: float = 0.5) -> None:
        self._size = size
        self._refresh = refresh
        self._lock = Lock()
        self._tokens: deque[tuple[Token, float]] = deque()
        self.generation = 0

    def add(self, tokens: Iterable[tuple[str, float]], now: float, generation: int = 0) -> None:
        """Add tokens that live so many seconds from ``now``, the time at which they were asked for.

        The last quarter of a token's life, at most 30 s, is left to the call that uses it. Tokens
        that were asked for in an earlier generation are left out.
        """
        with self._lock:
            if generation != self.generation:
                return
            for name, ttl in tokens:
                token = Token(name)
                token.generation = generation
                self._tokens.append((token, now + ttl - min(ttl * _LAST_PART, _LONGEST_MARGIN)))

    def drop(self, token: str) -> None:
        """Drop all tokens if ``token`` is of this generation; those of earlier ones were dropped before."""
        with self._lock:
            if isinstance(token, Token) and token.generation == self.generation:
                self.generation += 1
                self._tokens.clear()

    def take(self, now: float) -> Token | None:
        """The oldest token that is still good; None if there is none."""
        with self._lock:
            while self._tokens:
                token, good_until = self._tokens.popleft()
                if now < good_until:
                    return token
            return None

    def missing(self) -> int:
        """How many tokens would fill the pool, if it is worth asking: the part ``refresh`` or more."""
        with self._lock:
            missing = self._size - len(self._tokens)
            return missing if missing >= self._refresh * self._size else 0
