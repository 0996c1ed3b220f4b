"""A key source for tests of the engine."""

from idem_grpc._core.keys import SingleUse


class Source(SingleUse):
    """A source of single-use keys that records which ones were dropped."""

    def __init__(self):
        self.dropped: list[str] = []

    def __call__(self, outgoing, /):
        raise NotImplementedError

    def drop(self, key):
        self.dropped.append(key)

    def another(self):
        raise NotImplementedError
