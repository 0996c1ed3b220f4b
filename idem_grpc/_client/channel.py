"""What the calls of one channel share: key sources, retry settings and the budget."""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from idem_grpc._client.answers import failure
from idem_grpc._client.engine import Engine
from idem_grpc._client.keying import Chosen, Keying, KeySource
from idem_grpc._client.retry import Bucket, Retry
from idem_grpc._core.keys import METADATA_KEY, Outgoing

Pairs = tuple[tuple[str, str | bytes], ...]

_NO_RETRY = Retry(max_attempts=1, budget=None)


class Channel:
    """The settings of a channel. With ``retry=None`` its calls only get their key."""

    def __init__(
        self, keys: KeySource | Mapping[str, KeySource] | None, retry: Retry | None, derive: bool
    ) -> None:
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry={retry!r}: give a Retry, or None to leave retries to gRPC")
        self._keying = Keying(keys, derive)
        self._bucket = Bucket(retry.budget if retry is not None else None)
        self.retry = retry

    @property
    def max_request_bytes(self) -> int:
        """How much of a request stream is kept to be sent again."""
        return self.retry.max_request_bytes if self.retry is not None else 0

    def choose(self, method: str, request: Any, metadata: Iterable[Any] | None) -> Chosen:
        """The key of a call; ``request`` is None for a request stream. Raises what Keying.choose does."""
        return self._keying.choose(Outgoing(method, request, pairs(metadata)))

    def will_retry(self, chosen: Chosen) -> bool:
        """Whether a call may be sent again. If not, nothing of it has to be kept."""
        return self.retry is not None and chosen.is_safe

    def watches(self, chosen: Chosen) -> bool:
        """Whether ``ended`` must be called for a call that is sent only once."""
        return self.retry is not None or chosen.source is not None

    def engine(self, chosen: Chosen, key: str | None, timeout: float | None) -> Engine:
        """The engine of a call. ``timeout`` is the call's own, in seconds."""
        return Engine(
            self.retry or _NO_RETRY,
            self._bucket,
            timeout=timeout,
            may_retry=self.will_retry(chosen),
            source=chosen.source,
            key=key,
            derived=chosen.derived,
        )

    def ended(
        self, chosen: Chosen, key: str | None, code: grpc.StatusCode, trailing_metadata: Iterable[Any] | None
    ) -> None:
        """Count a call that is sent only once in the budget, as A6 does, and report a refused key to its
        source."""
        engine = self.engine(chosen, key, None)
        engine.ended(engine.begin().attempt, failure(code, trailing_metadata))


def pairs(metadata: Iterable[Any] | None) -> Pairs:
    """Metadata as a tuple of pairs."""
    return tuple((key, value) for key, value in metadata or ())


def with_key(metadata: Iterable[Any] | None, key: str | None) -> Pairs | None:
    """The metadata to send: the call's own, and the key that was chosen for it."""
    if key is None:
        return None if metadata is None else pairs(metadata)
    return (*pairs(metadata), (METADATA_KEY, key))


def with_another_key(metadata: Pairs | None, key: str) -> Pairs:
    """The metadata that was sent, with ``key`` in place of the one chosen before."""
    return (*(metadata or ())[:-1], (METADATA_KEY, key))
