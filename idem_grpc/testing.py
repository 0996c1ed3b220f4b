"""Contract tests for custom stores.

    from idem_grpc.testing import StoreContract

    class TestMyStore(StoreContract):
        def make_store(self):
            return MyStore("host:port", namespace=uuid4().hex)

pytest collects the tests that the class inherits. AsyncStoreContract does the same for an
AsyncStore. For detailed messages of failed assertions, put
``pytest.register_assert_rewrite("idem_grpc.stores._contract", "idem_grpc.testing")``
at the top of conftest.py. The tests do not depend on pytest otherwise.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._contract import TTL, StoreChecks, raises
from idem_grpc.stores._protocol import AsyncStore, Store, StoreError

__all__ = ["AsyncStoreContract", "StoreContract"]

T = TypeVar("T")


class StoreContract(StoreChecks):
    """Contract tests of a Store. Subclass it and define ``make_store``.

    Each test calls ``make_store`` once, expects an empty store, and closes it.
    """

    def make_store(self) -> Store:
        """Return an empty store, such as one with an unused namespace. Subclasses must define it."""
        raise NotImplementedError

    def _open(self) -> Store:
        return self.make_store()


class AsyncStoreContract(StoreChecks):
    """Contract tests of an AsyncStore. Subclass it and define ``make_store``.

    It has the tests of StoreContract and some more. Each test runs its own event loop in a thread.
    """

    def make_store(self) -> AsyncStore:
        """Return an empty store. Called outside any event loop. Subclasses must define it."""
        raise NotImplementedError

    def _open(self) -> Store:
        return _OnALoop(self.make_store())

    def test_blocking_is_the_same_data(self) -> None:
        with _OnALoop(self.make_store()) as store:
            blocking = store.run(_blocking_of(store.inner))
            store.swap(Swap(b"key", None, b"one", TTL))
            assert isinstance(blocking.swap(Swap(b"key", b"one", b"two", TTL)), Swapped)
            assert store.read(b"key").value == b"two"
            blocking.check()
        raises(StoreError, lambda: blocking.swap(Swap(b"key", None, b"one", TTL)))

    def test_a_cancelled_swap_does_no_harm(self) -> None:
        with _OnALoop(self.make_store()) as store:
            inner = store.inner

            async def swap_and_cancel(steps: int) -> None:
                key = b"%d" % steps
                swap = Swap(key, None, b"cancelled " + key, TTL)
                is_many = steps % 2
                swapping = inner.swap_many([swap]) if is_many else inner.swap(Swap(key, None, swap.new, TTL))
                task = asyncio.ensure_future(swapping)
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                other = await inner.swap(Swap(b"other " + key, None, b"whole " + key, TTL))
                assert other == Swapped(0.0), "a swap must not get the result of a cancelled one"

            async def many() -> None:
                await asyncio.gather(*[swap_and_cancel(steps) for steps in range(60)])

            store.run(many())
            for steps in range(60):
                assert store.read(b"%d" % steps).value in (None, b"cancelled %d" % steps)
                assert store.read(b"other %d" % steps).value == b"whole %d" % steps

    def test_a_second_event_loop_has_the_same_data_or_is_refused(self) -> None:
        with _OnALoop(self.make_store()) as store:
            store.swap(Swap(b"key", None, b"one", TTL))
            with asyncio.Runner() as second, suppress(StoreError):
                held = second.run(store.inner.swap(Swap(b"key", None, b"two", TTL)))
                assert isinstance(held, Held)
                assert held.value == b"one"
            assert store.read(b"key").value == b"one"


async def _blocking_of(store: AsyncStore) -> Store:
    return store.blocking


class _OnALoop(Store):
    """A blocking store that runs an AsyncStore on an event loop, so that both share one set of tests."""

    def __init__(self, inner: AsyncStore) -> None:
        self.namespace = inner.namespace
        self.inner = inner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, from any other thread."""
        if self._loop.is_closed():
            coroutine.close()
            raise StoreError("this store is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def swap(self, swap: Swap) -> Swapped | Held:
        return self.run(self.inner.swap(swap))

    def read(self, key: bytes) -> Held:
        return self.run(self.inner.read(key))

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return self.run(self.inner.swap_many(swaps))

    def check(self) -> None:
        self.run(self.inner.check())

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self.run(self._close_twice())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _close_twice(self) -> None:
        await self.inner.aclose()
        await self.inner.aclose()
        try:
            await self.inner.swap(Swap(b"key", None, b"one", TTL))
        except StoreError:
            return
        raise AssertionError("a swap after aclose must raise StoreError")
