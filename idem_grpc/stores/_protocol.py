"""The protocol of a store: compare-and-swap, for threads and for asyncio."""

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
_CHECK_EVERY = 1.0  # seconds between checks whether an event loop still runs
MAX_TTL = 100 * 365 * 86_400.0  # seconds; far below the overflow of any store's clock


class StoreError(Exception):
    """The store is misconfigured or misused. The message says what to correct."""


class StoreUnavailable(StoreError):
    """The store failed for now; a later try may succeed. The swap may have taken effect.

    ``answered`` is true if the store answered, but with an error: it is out of memory, loading its
    data, a replica, or locked by another process. It is false, the default, if no answer came: the
    connection failed or broke, or the wait for the answer timed out.
    """

    def __init__(self, *args: object, answered: bool = False) -> None:
        super().__init__(*args)
        self.answered = answered


def _note_fork() -> None:
    global _forks
    _forks += 1


_forks = 0
"""The number of forks between the process that imported this module and this one."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class OpeningProcess:
    """The process that opened a store. Only this process may use the store, and only until it is closed.

    Connections, locks and the data of a memory store cannot be used safely after a fork.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._forks = _forks  # cheaper to compare than the process id
        self.closed = False

    def is_here(self) -> bool:
        """Return whether this is that process, rather than one forked from it."""
        return self._forks == _forks

    def require(self) -> None:
        """Raise StoreError in any other process, and after the store was closed."""
        if self._forks != _forks:
            raise StoreError(
                f"this store was opened in process {self._pid}, before a fork, and is used in process"
                f" {os.getpid()}: call open_store in each worker process, after the fork"
            )
        if self.closed:
            raise StoreError("this store is closed: open a new one, or close it later")


class _AnyStore:
    """State shared by the built-in stores, sync and asyncio.

    ``_place`` is the URL or path without its secrets, for the repr.
    """

    namespace: str = "idem"
    is_in_process: bool = False
    """Whether a read is as fast as one from a cache in this process, so that no cache is needed."""
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

    ``namespace`` separates the keys of services that share a server: 1 to 100 letters, digits, or
    any of '.', '_', '/', '-'. It is "idem" unless a subclass sets it. Methods must be thread-safe.
    """

    @abstractmethod
    def swap(self, swap: Swap) -> Swapped | Held:
        """Write ``swap.new`` if the key holds ``swap.expected``, in one atomic step.

        The swap takes effect in two cases. Either ``swap.key`` holds ``expected`` (None: the key is
        absent) and, if ``max_left`` is set, expires in at most ``max_left`` seconds; or the key already
        holds ``new``, and then its remaining life is set to ``ttl`` again. Otherwise nothing is changed,
        and the value that the key holds is returned. ``new=None`` deletes the key.

        Values are never empty. ``ttl`` is positive and at most 100 years. Durations are in seconds,
        exact to a millisecond or better. ``ttl_left`` is measured on the store's own clock, before the
        write.

        Raises ValueError for an empty value or a ``ttl`` out of range (which a deletion ignores);
        StoreUnavailable if the store did not answer, after which the same swap may be sent again;
        StoreError if the store is misconfigured or misused.
        """

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Send several swaps in as few round trips as the store allows, and return their results in order.

        Each swap is atomic; the batch is not. Raises as ``swap`` does, and then any of the swaps may
        have taken effect. By default it calls ``swap`` for each.
        """
        return [self.swap(swap) for swap in swaps]

    def read(self, key: bytes) -> Held:
        """Return the value of a key; ``Held(None, 0.0)`` if it is absent. Raises as ``swap`` does.

        By default it sends a swap that changes nothing.
        """
        return require_held(self, self.swap(read_swap(key)))

    @abstractmethod
    def check(self) -> None:
        """Raise StoreError unless the store is reachable, configured safely and keeps the contract.

        The built-in stores send some swaps of a temporary key, which expires.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the store's connections and files. Further calls have no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStore(_AnyStore, ABC):
    """A key-value store with compare-and-swap, for asyncio.

    A store whose connections belong to one event loop, the first that uses it, raises StoreError
    in any other.
    """

    def __init__(self, namespace: str = "idem") -> None:
        super().__init__(namespace)
        self._loop = UsingLoop()

    @cached_property
    def blocking(self) -> Store:
        """A store for threads with the same data, through which leases are renewed.

        By default it runs this store's methods on the server's event loop. A handler that blocks the
        loop can then lose its lease. A store that can use a separate connection in threads should set
        this to a store that does; ``aclose`` must close it too.
        """
        return OnLoop(self)

    @abstractmethod
    async def swap(self, swap: Swap) -> Swapped | Held:
        """Write ``swap.new`` if the key holds ``swap.expected``, as Store.swap does."""

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        """Send several swaps and return their results, as Store.swap_many does."""
        return [await self.swap(swap) for swap in swaps]

    async def read(self, key: bytes) -> Held:
        """Return the value of a key, as Store.read does."""
        return require_held(self, await self.swap(read_swap(key)))

    @abstractmethod
    async def check(self) -> None:
        """Raise StoreError unless the store can be used, as Store.check does."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the store's connections and files, as Store.close does."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class OnLoop(Store):
    """A store for threads that runs the methods of an AsyncStore on its event loop."""

    def __init__(self, store: AsyncStore) -> None:
        self.namespace = store.namespace
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self.use_running_loop()

    def use_running_loop(self) -> None:
        """Use the running event loop from now on. Raises RuntimeError if none runs."""
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
        """Have no effect: the AsyncStore is closed by its own ``aclose``."""

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop. Raises StoreUnavailable if the loop does not run, or stops meanwhile."""
        loop = self._loop
        if loop is None or not loop.is_running():
            work.close()
            raise StoreUnavailable("the event loop of this store is not running")
        with suppress(RuntimeError):  # raised if this thread has no running loop
            if asyncio.get_running_loop() is loop:
                work.close()
                raise StoreError("call blocking from a thread only: on the event loop it would deadlock")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        while not wait([future], _CHECK_EVERY).done:
            if not loop.is_running():
                future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise StoreUnavailable("the event loop of this store has stopped") from None


class UsingLoop:
    """The event loop that used a store first. The store's connections cannot be used from another."""

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


_UNUSED_VALUE = uuid4().bytes
"""A value that no key holds. A swap that expects and writes it never changes anything."""


def read_swap(key: bytes) -> Swap:
    """Return a swap that changes nothing, so that its result is the value of ``key``."""
    return Swap(key, _UNUSED_VALUE, _UNUSED_VALUE, 1.0)


def require_held(store: object, seen: Swapped | Held) -> Held:
    """Check the result of a ``read_swap``. Raises StoreError if the store reports it as swapped."""
    if isinstance(seen, Held):
        return seen
    raise StoreError(f"{store!r} answered a swap that expects a value it cannot hold with {seen!r}")


def check_swap(swap: Swap) -> None:
    """Raise ValueError if no store can execute ``swap``."""
    if swap.expected == b"" or swap.new == b"":
        raise ValueError("a value in a store must not be empty: use None for an absent key")
    if swap.new is not None and not 0 < swap.ttl <= MAX_TTL:
        raise ValueError(f"ttl is {swap.ttl!r}: give a positive number of seconds, 100 years at most")


def key_prefix(namespace: str) -> bytes:
    """Return the prefix that separates the keys of a namespace from all others.

    Raises ValueError for a namespace with other characters than allowed. A colon would let one
    namespace be a prefix of another, since it ends the prefix; braces would put all keys of a
    Redis cluster on one node.
    """
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", str(namespace)) or namespace != str(namespace):
        raise ValueError(
            f"namespace is {namespace!r}: give 1 to 100 letters, digits, or any of '.', '_', '/', '-'"
        )
    return f"{namespace}:".encode()


_TTL = 60.0  # seconds; far longer than the check takes, so that a key that it leaves behind still expires
_MAX_LEFT = _TTL + 1  # seconds; the most that may be left of _TTL if a store rounds by less than a second

Probes = Generator[Swap, Swapped | Held, None]


def check_swaps(store: Store) -> None:
    """Raise StoreError unless ``store`` answers a sequence of swaps according to the contract."""
    probes = _probes(store)
    try:
        sent = next(probes)
        while True:
            sent = probes.send(store.swap(sent))
    except StopIteration:
        pass


async def check_swaps_async(store: AsyncStore) -> None:
    """Check an AsyncStore as check_swaps does."""
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
                f"{store!r} breaks the contract of a store: {otherwise}. Use a single store that all servers"
                " share, such as one Redis server rather than several behind a proxy; a custom store must"
                " pass idem_grpc.testing.StoreContract"
            )

    key = b"check:" + uuid4().bytes
    mine, other, third = (b"%d %s" % (number, uuid4().bytes) for number in range(3))
    seen = yield Swap(key, None, mine, _TTL)
    require(seen == Swapped(0.0), "it did not write a new key, or reported a value for an absent one")
    seen = yield Swap(key, other, third, _TTL)
    is_mine = isinstance(seen, Held) and seen.value == mine
    require(is_mine, "it accepted a swap that expects another value, or lost the value of the key")
    require(0 < seen.ttl_left <= _MAX_LEFT, "a value does not expire after its ttl")
    seen = yield Swap(key, None, other, _TTL)
    require(isinstance(seen, Held), "it let two owners claim one key")
    seen = yield Swap(key, None, mine, _TTL)
    require(isinstance(seen, Swapped), "it refused a repeated swap")
    seen = yield Swap(key, mine, mine, 2 * _TTL)
    require(isinstance(seen, Swapped) and 0 < seen.ttl_left <= _MAX_LEFT, "it did not renew a value")
    seen = yield Swap(key, mine, other, _TTL, _MAX_LEFT)
    is_kept = isinstance(seen, Held) and seen.value == mine and _MAX_LEFT < seen.ttl_left <= _TTL + _MAX_LEFT
    require(is_kept, "it let a renewed key be taken over, or the renewal was lost")
    seen = yield Swap(key, mine, other, _TTL)
    require(isinstance(seen, Swapped) and seen.ttl_left > _MAX_LEFT, "it did not replace a value")
    seen = yield Swap(key, other, None, _TTL)
    require(isinstance(seen, Swapped), "it did not delete a key")
    seen = yield Swap(key, other, third, _TTL)
    require(seen == Held(None, 0.0), "a deleted key is still there")
