"""Pipelined use of redis-py's connections, without its client, which costs more than a swap itself.

The two classes mirror each other. ``execute`` sends packed commands and returns their replies, and
commands of several callers share a write. Commands must be safe to send twice: if a connection breaks,
those without a reply are sent again, once, on a new one. Errors are redis-py's.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from contextvars import Context
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import AuthenticationError, AuthorizationError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_PAUSE = 0.05  # seconds before commands are sent again
_CHECKS = 4  # checks for silence in each socket_timeout
_LARGE = 65536  # bytes after which no further commands join a write
# ReadOnlyError: a replica keeps its connections after a failover, and a new one may reach the new primary.
_BROKEN = (RedisConnectionError, RedisTimeoutError, OSError, ReadOnlyError)
_REFUSED = (AuthenticationError, AuthorizationError)


class _Exchange:
    """The commands of one caller, and their replies or the error to raise instead."""

    __slots__ = ("count", "done", "error", "has_connection", "is_last_try", "packed", "replies")

    def __init__(self, packed: bytes, count: int, done: Any) -> None:
        self.packed = packed
        self.count = count
        self.done = done  # a lock that is released (threads), or a future (asyncio)
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.is_last_try = False
        self.has_connection = False  # used by threads only


def _next_batch(waiting: deque[_Exchange], size: int = 0) -> list[_Exchange]:
    """Take from ``waiting`` the exchanges that join a write of ``size`` bytes."""
    batch = []
    while waiting and size < _LARGE:
        batch.append(waiting.popleft())
        size += len(batch[-1].packed)
    return batch


def _joined(batch: Iterable[_Exchange]) -> list[bytes]:
    return [b"".join([exchange.packed for exchange in batch])]


def _to_send_again(unanswered: Iterable[_Exchange], error: Exception) -> list[_Exchange]:
    """Return the exchanges that get a second try after ``error``. The others fail with it."""
    again = []
    for exchange in unanswered:
        if exchange.is_last_try or not isinstance(error, _BROKEN) or isinstance(error, _REFUSED):
            exchange.error = error
        else:
            exchange.is_last_try = True
            exchange.replies = []
            again.append(exchange)
    return again


def _new(pool: Any) -> Any:
    """Create a connection that is not open yet."""
    return pool.connection_class(**pool.connection_kwargs)


def _no_connection(pool: Any) -> RedisConnectionError:
    return RedisConnectionError(f"No connection available within {pool.timeout:g} s.")


class Connections:
    """Connections for threads, at most ``pool.max_connections``.

    A thread sends its commands on an unused connection. If there is none, it waits for one, at most
    ``pool.timeout`` seconds; the next thread to get a connection sends the commands of all that
    wait. With many threads, this costs a third of the time of one connection for each thread.
    """

    def __init__(self, pool: redis.BlockingConnectionPool) -> None:
        self._pool = pool
        self._idle: list[Any] = []
        self._is_closed = False
        self._lock = threading.Lock()  # guards the next two
        self._unused = pool.max_connections
        self._waiting: deque[_Exchange] = deque()

    def execute(self, packed: bytes, count: int = 1) -> list[Any]:
        """Send ``count`` commands and return their replies, some of which may be errors."""
        if not count:
            return []
        exchange = _Exchange(packed, count, threading.Lock())
        exchange.done.acquire()
        with self._lock:
            if self._unused:
                self._unused -= 1
                exchange.has_connection = True
            else:
                self._waiting.append(exchange)
        if not exchange.has_connection:
            self._wait(exchange)
        if exchange.has_connection:
            self._serve(exchange)
        if exchange.error is not None:
            raise exchange.error
        return exchange.replies

    def close(self) -> None:
        """Close the connections; those in use as soon as their replies have arrived."""
        self._is_closed = True
        while (connection := self._pop_idle()) is not None:
            connection.disconnect()

    def _wait(self, exchange: _Exchange) -> None:
        """Wait until another thread has sent ``exchange``, or has passed its connection on."""
        try:
            if not exchange.done.acquire(timeout=self._pool.timeout):
                if self._withdraw(exchange):
                    raise _no_connection(self._pool)
                exchange.done.acquire()  # another thread has just sent it
        except KeyboardInterrupt:
            self._withdraw(exchange)
            if exchange.has_connection:
                self._pass_on([])
            raise

    def _withdraw(self, exchange: _Exchange) -> bool:
        """Remove ``exchange`` from the queue. Returns False if it is no longer there."""
        with self._lock:
            try:
                self._waiting.remove(exchange)
            except ValueError:
                return False
        return True

    def _serve(self, exchange: _Exchange) -> None:
        """Send ``exchange`` and others that wait, then pass the connection on."""
        with self._lock:
            batch = [exchange, *_next_batch(self._waiting, len(exchange.packed))]
        unanswered = deque(batch)
        try:
            while unanswered:
                try:
                    self._talk(unanswered)
                except (RedisError, OSError) as error:
                    unanswered = deque(_to_send_again(unanswered, error))
                    if unanswered:
                        time.sleep(_PAUSE)
        finally:
            left = [other for other in unanswered if other is not exchange]  # after a KeyboardInterrupt
            self._pass_on(left)
            for other in batch:
                if other not in left:
                    other.done.release()

    def _pass_on(self, unsent: list[_Exchange]) -> None:
        """Requeue ``unsent``, and pass the connection to the thread that has waited longest, if any."""
        with self._lock:
            self._waiting.extendleft(reversed(unsent))
            if not self._waiting:
                self._unused += 1
                return
            successor = self._waiting.popleft()
            successor.has_connection = True
        successor.done.release()

    def _talk(self, unanswered: deque[_Exchange]) -> None:
        """Send all exchanges in ``unanswered``, and remove each when its replies have arrived."""
        connection = self._open()
        try:
            connection.send_packed_command(_joined(unanswered), check_health=False)
            while unanswered:
                exchange = unanswered[0]
                exchange.replies = [_reply(connection) for _ in range(exchange.count)]
                unanswered.popleft()
        except BaseException:  # the next replies on this connection would belong to these commands
            connection.disconnect()
            raise
        self._idle.append(connection)
        if self._is_closed:
            self.close()

    def _open(self) -> Any:
        """Return the most recently used idle connection, or a new one."""
        while (connection := self._pop_idle()) is not None:
            try:
                if not connection.can_read(0):
                    return connection
            except RedisConnectionError:  # the server has closed it
                continue
            connection.disconnect()  # it has data that is not a reply to any command
        connection = _new(self._pool)
        connection.connect()
        return connection

    def _pop_idle(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ReadOnlyError:
        raise
    except ResponseError as error:
        return error


class AsyncConnection:
    """One connection shared by all tasks of an event loop, without waiting for each other's replies.

    Commands sent in the same iteration of the loop share a write, and the server answers in order.
    At most ``pool.max_connections`` exchanges are in flight; another one waits at most
    ``pool.timeout`` seconds for its turn. If no reply arrives for ``socket_timeout``, the connection is
    closed. Background tasks run only while replies are outstanding, so an idle connection does not keep
    the loop busy.
    """

    def __init__(self, pool: redis.asyncio.BlockingConnectionPool) -> None:
        self._pool = pool
        self._slots = asyncio.Semaphore(pool.max_connections)
        self._unsent: deque[_Exchange] = deque()
        self._sent: deque[_Exchange] = deque()
        self._outstanding = 0  # bytes of the exchanges in _sent
        self._connection: Any = None
        self._driver: Any = None  # a task
        self._sender: Any = None
        self._is_open = self._is_sending = False
        self._is_closed = False
        self._timeout: float = pool.connection_kwargs["socket_timeout"]
        self._silence: asyncio.Timeout  # ends the driver's reading
        self._silent_checks = 0
        self._timer: asyncio.TimerHandle | None = None

    async def execute(self, packed: bytes, count: int = 1) -> list[Any]:
        """Send ``count`` commands and return their replies, some of which may be errors.

        Replies to a cancelled task are dropped.
        """
        if not count:
            return []
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()  # does not wait
        exchange = _Exchange(packed, count, asyncio.get_running_loop().create_future())
        self._unsent.append(exchange)
        if _is_over(self._driver):
            self._driver = _started(self._drive())
        elif self._is_open and not self._is_sending:
            await self._send_soon(self._connection)
        await exchange.done
        if exchange.error is not None:
            raise exchange.error
        return exchange.replies

    async def aclose(self) -> None:
        """Close the connection. Exchanges in flight fail."""
        self._is_closed = True
        tasks = [task for task in (self._driver, self._sender) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            await self._connection.disconnect()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._pool.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise _no_connection(self._pool) from None
        if self._is_closed:
            self._slots.release()
            raise _closed()

    async def _drive(self) -> None:
        """Send exchanges and read their replies until none are left. Runs as a task."""
        try:
            while self._unsent:
                try:
                    await self._talk()
                except (RedisError, OSError) as error:
                    self._end_all(error)
                    if self._unsent:
                        await asyncio.sleep(_PAUSE)
        except BaseException:  # the store is closed, or the loop ends
            self._end_all(_closed())
            raise

    def _end_all(self, error: Exception) -> None:
        """End all exchanges with ``error``, except those that may be sent again."""
        unanswered = [*self._sent, *self._unsent]
        self._sent.clear()
        self._outstanding = 0
        self._unsent = deque(_to_send_again([each for each in unanswered if not each.done.done()], error))
        for exchange in unanswered:
            if exchange not in self._unsent:
                self._end(exchange)

    def _end(self, exchange: _Exchange) -> None:
        self._slots.release()
        if not exchange.done.done():  # its task was not cancelled
            exchange.done.set_result(None)

    async def _talk(self) -> None:
        """Open the connection, send the unsent exchanges, and read until no reply is outstanding."""
        connection = await self._open()
        self._is_open = True
        self._silent_checks = 0
        if self._timer is None:
            self._check_later()
        await self._send_soon(connection)
        try:
            async with asyncio.timeout(None) as self._silence:
                await self._read(connection)
        except BaseException as error:
            if self._sender is not None:
                self._sender.cancel()
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout reading from the server") from None
            raise
        finally:
            self._is_open = self._is_sending = False

    async def _open(self) -> Any:
        if (connection := self._connection) is not None:
            try:
                # Before redis-py 8, the method is called can_read_destructive.
                can_read = getattr(connection, "can_read", None) or connection.can_read_destructive
                if not await can_read():
                    return connection
            except RedisConnectionError:  # the server has closed it
                pass
            await connection.disconnect(nowait=True)
        self._connection = connection = _new(self._pool)
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        connection.socket_timeout = None  # else redis-py creates a timer for every reply
        return connection

    async def _send_soon(self, connection: Any) -> None:
        """Send the unsent exchanges: directly if they are small, otherwise in a task.

        A small write does not wait, so a cancellation of the caller cannot interrupt it.
        """
        self._is_sending = True
        unsent = sum(len(exchange.packed) for exchange in self._unsent)
        if self._outstanding + unsent < _LARGE:
            await self._send(connection)
        else:
            self._sender = _started(self._send(connection))

    async def _send(self, connection: Any) -> None:
        """Send the unsent exchanges, while the driver reads: a server may wait until its replies are read."""
        try:
            while self._unsent and connection.is_connected:
                batch = _next_batch(self._unsent)
                self._sent.extend(batch)
                self._outstanding += sum(len(exchange.packed) for exchange in batch)
                await connection.send_packed_command(_joined(batch), check_health=False)
        except (RedisError, OSError, RuntimeError):  # uvloop raises RuntimeError for a closed transport
            pass  # redis-py has closed the connection; the driver fails the exchanges or sends them again
        finally:
            self._is_sending = False

    async def _read(self, connection: Any) -> None:
        sent = self._sent
        while sent or self._unsent:
            try:
                reply = await connection.read_response(disable_decoding=True)
            except ReadOnlyError:
                raise
            except ResponseError as error:
                reply = error
            self._silent_checks = 0
            if not sent:
                raise RedisConnectionError("The server sent a reply without a command")
            exchange = sent[0]
            exchange.replies.append(reply)
            if len(exchange.replies) == exchange.count:
                sent.popleft()
                self._outstanding -= len(exchange.packed)
                self._end(exchange)

    def _watch(self) -> None:
        """Stop reading if no reply came for too long; otherwise schedule the next check.

        It counts checks rather than seconds: if the loop was blocked, a reply may be waiting to be read.
        """
        self._timer = None
        if self._is_open:
            self._silent_checks += 1
            if self._silent_checks > _CHECKS:
                self._silence.reschedule(asyncio.get_running_loop().time())
            else:
                self._check_later()

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout / _CHECKS, self._watch)


def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task without the caller's context variables, which belong to one call."""
    return Context().run(asyncio.get_running_loop().create_task, work)


def _is_over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()


def _closed() -> RedisError:
    return RedisError("The connection was closed before the reply came")
