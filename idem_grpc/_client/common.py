"""What the clients of both faces share, and is no I/O.

A channel has one ``Channel``: its key sources, its retry settings and what is left of its
budget. A call has one ``Trial``, which says when to send it and, of each failure, whether
and when to send it again; where it has a request stream, one ``Sent``; and where it has a
response stream, one ``Handed``. None of them waits, and none is for use by two threads at
a time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import grpc
from google.protobuf.message import Message

from idem_grpc._client.answers import failure, run_in
from idem_grpc._client.keying import Chosen, Keying, KeySource
from idem_grpc._client.retry import Attempt, Backoff, Renewal, Retry, Tokens, attempts
from idem_grpc._core.keys import METADATA_KEY, Outgoing, SingleUse
from idem_grpc._core.messages import message_of

T = TypeVar("T")
P = ParamSpec("P")
Pairs = tuple[tuple[str, str | bytes], ...]


class Channel:
    """The settings that the calls of one channel share. ``retry=None``: calls only get their key."""

    def __init__(
        self, keys: KeySource | Mapping[str, KeySource] | None, retry: Retry | None, derive: bool
    ) -> None:
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry={retry!r}: give a Retry, or None to leave retries to gRPC")
        self._keying = Keying(keys, derive)
        self._tokens = Tokens(retry.budget if retry is not None else None)
        self.retry = retry

    def choose(self, method: str, request: Any, metadata: Iterable[Any] | None) -> Chosen:
        """The key of a call; ``request`` is None for a request stream. Raises what Keying.choose does."""
        return self._keying.choose(Outgoing(method, request, pairs(metadata)))

    def will_retry(self, chosen: Chosen) -> bool:
        """Whether a call may ever be sent again: if not, nothing has to be kept of it."""
        return self.retry is not None and chosen.is_safe

    def attends_to(self, chosen: Chosen) -> bool:
        """Whether ``ended`` is to know how a call ends that is never sent again."""
        return self.retry is not None or chosen.source is not None

    def ended(
        self,
        code: grpc.StatusCode,
        trailing_metadata: Iterable[Any] | None,
        source: SingleUse | None,
        key: str | None,
    ) -> None:
        """A call that is never sent again is over: the budget has to know of it, as in A6, and so has
        the ``source`` of its ``key``."""
        if self.retry is not None or source is not None:
            trial = Trial(self.retry or _SINGLE, self._tokens, False, None, source=source, key=key)
            trial.attempt()
            if code is grpc.StatusCode.OK:
                trial.succeeded()
            else:
                trial.failed(code, trailing_metadata)

    def trial(
        self,
        chosen: Chosen,
        key: str | None,
        timeout: float | None,
        clock: Callable[[], float] = monotonic,
    ) -> "Trial":
        """The course of a call, if this channel retries. ``timeout`` is the call's own, in seconds."""
        assert self.retry is not None
        return Trial(self.retry, self._tokens, chosen.is_safe, timeout, clock, source=chosen.source, key=key)


def single(timeout: float | None) -> "Trial":
    """The course of a call that is never sent again."""
    return Trial(_SINGLE, Tokens(None), False, timeout)


_SINGLE = Retry(max_attempts=1, budget=None)


class Trial:
    """The attempts at one call, driven by its caller::

        timeout = trial.attempt()
        ... send the call with that timeout; if it fails:
        step = trial.failed(code, trailing_metadata)
        ... if None, the call is over; else wait or get another key, and begin again

    and ``trial.succeeded()`` once it succeeds. ``source`` is that of a ``key`` for one use only.
    """

    def __init__(
        self,
        retry: Retry,
        tokens: Tokens,
        may_retry: bool,
        timeout: float | None,
        clock: Callable[[], float] = monotonic,
        *,
        source: SingleUse | None = None,
        key: str | None = None,
    ) -> None:
        self._steps = attempts(
            retry, tokens, timeout=timeout, may_retry=may_retry, may_renew=source is not None, clock=clock
        )
        self._source = source
        self._key = key
        self.made = 0
        """How often the call was sent."""
        self.was_held_back = False
        """Whether another attempt was called for, and ``can_resend`` forbade it."""

    def attempt(self) -> float | None:
        """Begin the next attempt. Returns its timeout in seconds, or None for no deadline."""
        step = next(self._steps)
        assert isinstance(step, Attempt)
        self.made += 1
        return step.timeout

    def failed(
        self,
        code: grpc.StatusCode,
        trailing_metadata: Iterable[Any] | None,
        *,
        can_resend: bool = True,
    ) -> Backoff | Renewal | None:
        """What to do before the next attempt; None if the call is over."""
        failed = failure(code, trailing_metadata, can_resend=can_resend)
        if self._source is not None and self._key is not None and failed.refuses_token:
            self._source.drop(self._key)
        try:
            step = self._steps.send(failed)
        except StopIteration as end:
            self.was_held_back = end.value
            return None
        assert not isinstance(step, Attempt)
        return step

    def renewed(self, key: str) -> None:
        """The next attempt has another key."""
        self._key = key

    def succeeded(self) -> None:
        """The attempt came to an end that is OK."""
        next(self._steps, None)

    def note(self, error: BaseException, *more: str) -> None:
        """Tell in the notes of an error (PEP 678) how many attempts were made, if it was not one."""
        if self.made > 1:
            add_note(error, f"{self.made} attempts were made")
        for sentence in more:
            add_note(error, sentence)


class Sent:
    """What was taken off a request stream, kept up to ``limit`` bytes to be sent again.

    ``count`` is how many requests there were; ``is_whole`` tells that all are here still.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: deque[Any] = deque()
        self.count = 0
        self.is_whole = True

    def add(self, request: Any) -> None:
        """Keep another request, as it is now. The one that exceeds the limit is still here to be sent."""
        size = size_of(request)
        self._left -= self._left + 1 if size is None else size
        if self._left < 0:
            self.is_whole = False
        self._kept.append(snapshot(request) if self.is_whole else request)
        self.count += 1

    def at(self, position: int) -> Any:
        """The request at ``position``, from 0. Once the limit is exceeded, those before it are let go."""
        request = self._kept[position - self.count]
        if not self.is_whole:
            while len(self._kept) > self.count - position - 1:
                self._kept.popleft()
        return request

    def clear(self) -> None:
        """The call is over: let go of all."""
        self.is_whole = False
        self._kept.clear()


NO_TOKEN = "it was not sent again, since no new token could be had: "
TOO_LARGE = "it was not sent again, since its request stream is larger than Retry(max_request_bytes=…)"
NO_RUN = "it was not sent again, since the answer that was begun does not tell which run it is of"
ANOTHER_RUN = "its stream could not be resumed, since the new answer is not of the same run"


class Handed:
    """What was handed over of a response stream, and whether another attempt can go on from there."""

    def __init__(self) -> None:
        self.count = 0
        self._run = ""

    def add(self, initial_metadata: Callable[[], Iterable[Any] | None]) -> None:
        """A response is handed over. ``initial_metadata`` is called for the first one only."""
        if not self.count:
            self._run = run_in(initial_metadata())
        self.count += 1

    @property
    def can_resend(self) -> bool:
        """Whether another attempt could be of use."""
        return not self.count or bool(self._run)

    def to_skip(self, initial_metadata: Iterable[Any] | None) -> int | None:
        """How many responses of a new answer were handed over before; None if it cannot be told."""
        if not self.count:
            return 0
        return self.count if self._run and run_in(initial_metadata) == self._run else None


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


def snapshot(request: T) -> T:
    """A request that stays as it is, whatever its caller does to his meanwhile."""
    if not isinstance(request, Message):
        return request if message_of(request) is None else deepcopy(request)
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def size_of(request: Any) -> int | None:
    """The bytes that a request takes on the wire; None if it is neither protobuf nor bytes."""
    message = message_of(request)
    if message is not None:
        return message.ByteSize()
    return len(request) if isinstance(request, (bytes, bytearray, memoryview)) else None


def once(function: Callable[P, None]) -> Callable[P, None]:
    """A function that does it when it is called first, and nothing when it is called again."""
    pending = [function]

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            first = pending.pop()
        except IndexError:
            return
        first(*args, **kwargs)

    return call


def add_note(error: BaseException, sentence: str) -> None:
    """Add a note to an error (PEP 678), once."""
    text = f"idem_grpc: {sentence}"
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)
