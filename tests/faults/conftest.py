"""Real servers of both faces, on every store."""

from tests.server.conftest import face, key, kind, start, url

__all__ = ["face", "key", "kind", "start", "url"]  # pytest finds fixtures by name
