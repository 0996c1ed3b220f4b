"""What a store must be able to do: compare-and-swap, and little else."""

import asyncio
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from idem_grpc._core.swap import Held, Swap, Swapped

T = TypeVar("T")
_LOOK_EVERY = 1.0  # seconds between looks at whether an event loop still runs
MAX_TTL = 100 * 365 * 86_400.0  # seconds; far below what any store's clock overflows at


class StoreError(Exception):
    """The store was set up or used wrongly; the message says what to correct."""


class StoreUnavailable(StoreError):
    """The store did not do what it was asked, and may do it later; the swap may have taken effect.

    ``answered`` is true where the store did answer, though not with what was wanted: it is out of
    memory, loading its data, a replica, locked by another process. It is false, the default, for
    silence: a connection that failed or broke, an answer that did not come in time.
    """

    def __init__(self, *args: object, answered: bool = False) -> None:
        super().__init__(*args)
        self.answered = answered


def _note_fork() -> None:
    global _forks
    _forks += 1


_forks = 0
"""How many forks lie between this process and the one that imported this module."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class OpeningProcess:
    """The process that opened a store; no other may use it, and it only until it closes it.

    Connections, locks and an in-memory store do not survive a fork in one piece.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._forks = _forks  # which costs less to compare than the process id
        self.closed = False

    def is_here(self) -> bool:
        """Whether this is that process, and not one forked from it."""
        return self._forks == _forks

    def require(self) -> None:
        """Raise StoreError in any other process, or once the store is closed."""
        if self._forks != _forks:
            raise StoreError(
                f"this store was opened in process {self._pid}, before a fork, and is used in process"
                f" {os.getpid()}: call open_store in each worker process, after the fork"
            )
        if self.closed:
            raise StoreError("this store is closed: open another, or close it later")


class _AnyStore:
    """The state that the stores of this library have in common, sync and asyncio.

    ``_place`` is what they were opened with, as it may be shown.
    """

    namespace: str = "idem"
    is_in_process: bool = False
    """Whether it is as quick to ask as a cache in this process, and needs none."""
    _place: str | None = None

    def __init__(self, namespace: str = "idem") -> None:
        self._prefix = key_prefix(namespace)
        self.namespace = namespace
        self._opener = OpeningProcess()

    def __repr__(self) -> str:
        place = "" if self._place is None else f"{self._place!r}, "
        return f"{type(self).__name__}({place}namespace={self.namespace!r})"


class Store(_AnyStore, ABC):
    """A key-value store with compare-and-swap, for threads.

    ``namespace`` keeps apart the keys of services that share a server: 1 to 100 letters, digits, or
    any of '.', '_', '/', '-'. A subclass that does not set it has "idem". An implementation may be
    called by many threads at once.
    """

    @abstractmethod
    def swap(self, swap: Swap) -> Swapped | Held:
        """Write ``swap.new`` if the key holds ``swap.expected``, in one atomic step.

        It takes effect when ``swap.key`` holds ``expected`` (None: nothing) and, with
        ``max_left``, has no more than so many seconds left to live; *or* when it
        already holds ``new`` (then its life is set to ``ttl`` again). Otherwise it
        changes nothing and returns what is there. ``new=None`` deletes. Values are
        never empty, and ``ttl`` is positive and finite, a century at most. Durations are
        seconds, kept to the millisecond at least, and ``ttl_left`` is measured on the
        store's own clock before the write.

        Raises ValueError for an empty value or such a ttl as it cannot keep (it is not
        looked at when deleting); StoreUnavailable when the store did not answer, after which the
        same swap may be sent again; StoreError when the store is misused.
        """

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Send several swaps, each atomic in itself, in as few round trips as the store can.

        Raises as ``swap`` does; then some of them may have taken effect.
        """
        return [self.swap(swap) for swap in swaps]

    def read(self, key: bytes) -> Held:
        """What the key holds; ``Held(None, 0.0)`` if it is absent. Raises as ``swap`` does.

        By default a swap that changes nothing.
        """
        return require_held(self, self.swap(looking(key)))

    @abstractmethod
    def check(self) -> None:
        """Raise StoreError unless the store can be reached, is set up safely, and answers as it must.

        The stores of this library send some swaps of a key of their own, which expires.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the store holds open. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStore(_AnyStore, ABC):
    """The same for asyncio.

    A store whose connections belong to the event loop that used it first raises StoreError
    in any other.
    """

    def __init__(self, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self._loop = UsingLoop()

    @cached_property
    def blocking(self) -> Store:
        """The same data for threads: leases are renewed through it.

        By default it has this store do the work, on the event loop of the server. A handler that
        blocks the loop can then lose its lease, so a store that can have a connection of its own
        for threads sets this to one; ``aclose`` closes it too.
        """
        return OnLoop(self)

    @abstractmethod
    async def swap(self, swap: Swap) -> Swapped | Held:
        """As Store.swap."""

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """As Store.swap_many."""
        return [await self.swap(swap) for swap in swaps]

    async def read(self, key: bytes) -> Held:
        """As Store.read."""
        return require_held(self, await self.swap(looking(key)))

    @abstractmethod
    async def check(self) -> None:
        """As Store.check."""

    @abstractmethod
    async def aclose(self) -> None:
        """As Store.close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class OnLoop(Store):
    """An AsyncStore for threads: its work is done on the event loop that uses it."""

    def __init__(self, store: AsyncStore) -> None:
        self.namespace = store.namespace
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self.use_running_loop()

    def use_running_loop(self) -> None:
        """Have the work done on the running event loop from now on. Raises RuntimeError if none runs."""
        self._loop = asyncio.get_running_loop()

    def swap(self, swap: Swap) -> Swapped | Held:
        return self._run(self._store.swap(swap))

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return self._run(self._store.swap_many(swaps))

    def read(self, key: bytes) -> Held:
        return self._run(self._store.read(key))

    def check(self) -> None:
        self._run(self._store.check())

    def close(self) -> None:
        """Nothing: the store is closed by ``aclose``."""

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have it done on the loop. Raises StoreUnavailable if that does not run, or stops meanwhile."""
        loop = self._loop
        if loop is None or not loop.is_running():
            work.close()
            raise StoreUnavailable("the event loop of this store does not run")
        with suppress(RuntimeError):  # which no running loop raises
            if asyncio.get_running_loop() is loop:
                work.close()
                raise StoreError("blocking is for threads, and would wait for itself on the event loop")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        while not wait([future], _LOOK_EVERY).done:
            if not loop.is_running():
                future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise StoreUnavailable("the event loop of this store has stopped") from None


class UsingLoop:
    """The event loop that used a store first; its connections belong to no other."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def require(self) -> None:
        """Raise StoreError in any other event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise StoreError(
                "this store is used from a second event loop: call idem_grpc.aio.open_store once"
                " for each event loop (for each asyncio.run)"
            )


_NOBODYS = uuid4().bytes
"""A value that no key holds: it is written only where it already is."""


def looking(key: bytes) -> Swap:
    """A swap that changes nothing, and so returns what ``key`` holds."""
    return Swap(key, _NOBODYS, _NOBODYS, 1.0)


def require_held(store: object, seen: Swapped | Held) -> Held:
    """The answer to ``looking``. Raises StoreError if the store took it for a swap."""
    if isinstance(seen, Held):
        return seen
    raise StoreError(f"{store!r} answered a swap of a value that nobody has written with {seen!r}")


def check_swap(swap: Swap) -> None:
    """Raise ValueError if no store could do what ``swap`` asks."""
    if swap.expected == b"" or swap.new == b"":
        raise ValueError("a value in a store is never empty: None stands for nothing")
    if swap.new is not None and not 0 < swap.ttl <= MAX_TTL:
        raise ValueError(f"ttl is {swap.ttl!r}, and must be a positive number of seconds, a century at most")


def key_prefix(namespace: str) -> bytes:
    """What keeps the keys of one namespace apart from those of any other.

    Raises ValueError for a namespace that could not: the colon ends it, so that
    none is a prefix of another, and braces would gather all of a Redis cluster's
    keys on one node.
    """
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", str(namespace)) or namespace != str(namespace):
        raise ValueError(
            f"namespace is {namespace!r}, and must be 1 to 100 letters, digits, or any of '.', '_', '/', '-'"
        )
    return f"{namespace}:".encode()


_TTL = 60.0  # seconds; far longer than the swaps take, and what is left behind expires
_MOST = _TTL + 1  # seconds that can be left of it; a store may round, but not by a second

Probes = Generator[Swap, Swapped | Held, None]


def check_swaps(store: Store) -> None:
    """Raise StoreError unless ``store`` answers some swaps as its contract says."""
    probes = _probes(store)
    try:
        sent = next(probes)
        while True:
            sent = probes.send(store.swap(sent))
    except StopIteration:
        pass


async def check_swaps_async(store: AsyncStore) -> None:
    """As check_swaps, for an AsyncStore."""
    probes = _probes(store)
    try:
        sent = next(probes)
        while True:
            sent = probes.send(await store.swap(sent))
    except StopIteration:
        pass


def _probes(store: Store | AsyncStore) -> Probes:
    def require(answer: bool, otherwise: str) -> None:
        if not answer:
            raise StoreError(
                f"{store!r} does not keep the contract of a store: {otherwise}. It must be one place that all"
                " servers share, such as one Redis server and not several behind a proxy; a store of your own"
                " must pass idem_grpc.testing.StoreContract"
            )

    key = b"check:" + uuid4().bytes
    mine, other, third = (b"%d %s" % (number, uuid4().bytes) for number in range(3))
    seen = yield Swap(key, None, mine, _TTL)
    require(seen == Swapped(0.0), "it did not write a new key, or found one where there was none")
    seen = yield Swap(key, other, third, _TTL)
    is_mine = isinstance(seen, Held) and seen.value == mine
    require(is_mine, "it did not refuse a swap of a value that the key does not hold, or lost what it held")
    require(0 < seen.ttl_left <= _MOST, "what it writes does not expire after the time asked for")
    seen = yield Swap(key, None, other, _TTL)
    require(isinstance(seen, Held), "it gave one key to two owners")
    seen = yield Swap(key, None, mine, _TTL)
    require(isinstance(seen, Swapped), "it refused a swap that was sent again")
    seen = yield Swap(key, mine, mine, 2 * _TTL)
    require(isinstance(seen, Swapped) and 0 < seen.ttl_left <= _MOST, "it did not renew what a key holds")
    seen = yield Swap(key, mine, other, _TTL, _MOST)
    is_kept = isinstance(seen, Held) and seen.value == mine and _MOST < seen.ttl_left <= _TTL + _MOST
    require(is_kept, "it let a renewed key be taken over, or its renewal did not last")
    seen = yield Swap(key, mine, other, _TTL)
    require(isinstance(seen, Swapped) and seen.ttl_left > _MOST, "it did not replace what a key holds")
    seen = yield Swap(key, other, None, _TTL)
    require(isinstance(seen, Swapped), "it did not delete a key")
    seen = yield Swap(key, other, third, _TTL)
    require(seen == Held(None, 0.0), "a key that was deleted is still there")
