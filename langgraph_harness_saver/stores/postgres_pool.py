"""Connections to a Postgres server, for every event loop that asks for one."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg

from langgraph_harness_saver.errors import (
    HarnessError,
    InvalidConfigError,
    StoreError,
    StoreNotOpenError,
    StoreUnavailableError,
)
from langgraph_harness_saver.forks import Forkable, leave_alone, renew_after_fork
from langgraph_harness_saver.stores.batches import Pauses
from langgraph_harness_saver.stores.postgres_errors import (
    DRIVER_ERRORS,
    is_lost,
    is_never_there,
    is_transient,
    is_without_tls,
    translate,
)
from langgraph_harness_saver.stores.postgres_url import ConnectOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connection = Any
Work = Callable[["Statements"], Awaitable[T]]

CONNECT_SECONDS = 10.0
"""How long to wait for one connection, where the URL has no connect_timeout."""
STATEMENT_SECONDS = 5.0
"""What a statement has at least, however little is left of retry_seconds."""
PROBE_AFTER, PROBE_SECONDS = 15.0, 5.0
"""A connection that was idle for longer is asked whether it lives, and how long it has to answer."""
IDLE_SECONDS = 300.0
CLOSE_SECONDS = 2.0
ANSWER_SECONDS = 0.1
"""How long a loop has to part with a connection that it doesn't use."""


class Lane:
    """The connections of one event loop.

    It ends with its loop: an event loop that shuts down closes the asynchronous generators that were
    started on it, and so this one's.
    """

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle: deque[tuple[Connection, float]] = deque()
        self.finish: list[Callable[[], Awaitable[None]]] = []
        self.leaving: set[asyncio.Task[Any]] = set()
        self._pool = pool
        self._keeper: AsyncGenerator[None, None] | None = None

    async def begin(self) -> None:
        """Tie this lane's end to the loop's."""
        self._keeper = self._keep()
        await self._keeper.__anext__()

    async def end(self) -> None:
        """Send what is queued, and close every connection."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await keeper.aclose()

    def end_on_its_loop(self) -> Future[None]:
        """Begin to end it, from any thread."""
        ended: Future[None] = Future()

        def done(_: asyncio.Task[None]) -> None:
            # Whoever waited for it may have given up.
            if not ended.done():
                ended.set_result(None)

        def begin() -> None:
            ending = self.loop.create_task(self.end())
            self.leaving.add(ending)
            ending.add_done_callback(done)
            ending.add_done_callback(self.leaving.discard)

        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:
            # It has been closed in the meantime.
            ended.set_result(None)
        return ended

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close()

    async def _close(self) -> None:
        for finish in self.finish:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(finish(), self._pool.retry_seconds + STATEMENT_SECONDS)
        self._pool.forget(self)
        while self.idle:
            try:
                await close(self.idle.pop()[0])
            finally:
                self._pool.vacate()
        others = self.leaving - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)


class _Waiter:
    __slots__ = ("future", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.future: asyncio.Future[Connection | None] = lane.loop.create_future()


class Pool(Forkable):
    """At most `size` connections over all event loops, each used on the loop that it was made on.

    With `given`, a pool of the caller's, its connections are used instead and it is not closed.
    """

    def __init__(
        self, options: ConnectOptions | None, given: asyncpg.Pool[Any] | None, size: int, retry_seconds: float
    ) -> None:
        self.where = "the given pool" if options is None else options.where
        self.retry_seconds = retry_seconds
        self.explicit = False
        """Whether every statement needs a transaction around it."""
        self.kind = "READ COMMITTED"
        """How a transaction begins."""
        self.cached = True
        """Whether a statement may stay prepared on its connection."""
        self._options = options
        self._given = given
        self._size = size
        self._reached = False
        self._skips = 0
        self._closed = False
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._lanes: dict[asyncio.AbstractEventLoop, Lane] = {}
        self._waiting: deque[_Waiter] = deque()
        self._open = 0
        # Reentrant: the collector may drop a saver, and so end this, in the middle of anything.
        self._lock = threading.RLock()

    def before_fork(self) -> None:
        """Let no other thread be half-way through a change."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork(self) -> None:
        """Leave the parent's connections alone."""
        leave_alone((self._lanes, self._waiting))
        self._renew()

    # --- calls -------------------------------------------------------------------------------------

    async def run(self, work: Work[T], *, fresh: bool = False) -> T:
        """Return what `work` makes of a connection; it may be called again, on another one.

        With `fresh` it is one that nobody has used, without prepared statements, and is closed afterwards.

        Raises:
            StoreError: It did not succeed within `retry_seconds`, or never would.
        """
        deadline = asyncio.get_running_loop().time() + self.retry_seconds
        pauses = Pauses()
        while True:
            try:
                return await self.attempt(work, deadline, fresh=fresh)
            except StoreError as error:
                if not self.is_worth_another(error, deadline):
                    raise
            await pauses.wait()

    async def attempt(self, work: Work[T], deadline: float, *, fresh: bool = False) -> T:
        """Do what `run` does, once."""
        try:
            if not fresh and self._given is None:
                return await self._with_own(work, deadline)
            async with self._fresh(deadline) if fresh else self._borrowed(deadline) as connection:
                return await work(Statements(connection, deadline, self, explicit=fresh))
        except HarnessError:
            raise
        except (*DRIVER_ERRORS, ValueError) as error:
            raise translate(error, self.where) from error

    def is_at_fault(self, error: StoreError) -> bool:
        """Tell whether an error is of the connection or the server, and not of what was sent."""
        return isinstance(error, StoreUnavailableError) or is_transient(error.__cause__)

    def is_worth_another(self, error: StoreError, deadline: float) -> bool:
        """Tell whether a failed attempt is to be repeated."""
        cause = error.__cause__
        if isinstance(cause, asyncpg.InterfaceError) and self._given is not None and self._given.is_closing():
            return False
        if self._closed or asyncio.get_running_loop().time() >= deadline or not is_transient(cause):
            return False
        # A server that has never answered is more likely misspelt than restarting.
        return self._reached or not is_never_there(cause)

    async def _with_own(self, work: Work[T], deadline: float) -> T:
        lane = self._lanes.get(asyncio.get_running_loop()) or await self.lane()
        connection = await self._acquire(lane, deadline)
        sound = False
        try:
            result = await work(Statements(connection, deadline, self))
            sound = True
            return result
        except Exception as error:
            sound = not is_lost(error)
            raise
        finally:
            # One that was cancelled or timed out may still be at work.
            self._release(lane, connection, sound=sound and not connection.is_in_transaction())

    @asynccontextmanager
    async def _fresh(self, deadline: float) -> AsyncIterator[Connection]:
        if self._given is not None:
            async with self._borrowed(deadline) as connection:
                yield connection
            return
        connection, _ = await self._get(await self.lane(), deadline)
        try:
            if connection is not None:
                await close(connection)
            connection = await self._connect(deadline, cached=False)
            yield connection
        finally:
            try:
                if connection is not None:
                    await close(connection)
            finally:
                self.vacate()

    @asynccontextmanager
    async def _borrowed(self, deadline: float) -> AsyncIterator[Connection]:
        given, loop = self._given, asyncio.get_running_loop()
        assert given is not None
        if getattr(given, "_loop", loop) is not loop:
            raise InvalidConfigError(
                "an asyncpg pool works on the event loop that it was made on, and this call is on another: "
                "call the saver's async methods there, or give it a URL: then it serves any thread and loop"
            )
        connection = await given.acquire(timeout=max(deadline - loop.time(), STATEMENT_SECONDS))
        try:
            yield connection
        finally:
            await given.release(connection)

    # --- lanes -------------------------------------------------------------------------------------

    async def lane(self) -> Lane:
        """Return the running loop's."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            with self._lock:
                if self._closed:
                    raise StoreNotOpenError(f"the store of {self.where} is closed; make a new saver")
                lane = self._lanes[loop] = Lane(self, loop)
            await lane.begin()
            self._bury()
        return lane

    def forget(self, lane: Lane) -> None:
        """Have no more to do with a lane that ends."""
        with self._lock:
            if self._lanes.get(lane.loop) is lane:
                del self._lanes[lane.loop]

    def _bury(self) -> None:
        """Drop the lanes of loops that were closed without being shut down."""
        with self._lock:
            dead = [lane for loop, lane in self._lanes.items() if loop.is_closed()]
            for lane in dead:
                del self._lanes[lane.loop]
        for lane in dead:
            self._hang_up(lane)

    def _hang_up(self, lane: Lane) -> None:
        """Close the connections of a loop that doesn't run."""
        while self._hang_one_up(lane):
            pass

    def _hang_one_up(self, lane: Lane) -> bool:
        """Close a connection that another loop doesn't use, whether that one answers or not."""
        with self._lock:
            if not lane.idle:
                return False
            connection, _ = lane.idle.popleft()
        self._discard(lane, connection)
        return True

    async def close(self) -> None:
        """Close every connection, on whichever loop it is."""
        self._closed = True
        here = asyncio.get_running_loop()
        for lane in list(self._lanes.values()):
            if lane.loop is here:
                await lane.end()
            elif await _answers(lane.loop):
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(lane.end_on_its_loop()), 2 * CLOSE_SECONDS)
            else:
                # Closed, or stopped, or it is its own thread that waits for us.
                self._hang_up(lane)

    def let_go(self) -> None:
        """Do what `close` does, as far as it can be done without waiting."""
        self._closed = True
        for lane in list(self._lanes.values()):
            if lane.loop.is_running():
                lane.end_on_its_loop()
            else:
                self._hang_up(lane)

    # --- connections -------------------------------------------------------------------------------

    async def _acquire(self, lane: Lane, deadline: float) -> Connection:
        connection, idle_since = await self._get(lane, deadline)
        try:
            if connection is not None and not await self._is_alive(connection, idle_since):
                hang_up(connection, lane.loop)
                connection = None
            return connection or await self._connect(deadline, cached=self.cached)
        except BaseException:
            self._discard(lane, connection)
            raise

    async def _get(self, lane: Lane, deadline: float) -> tuple[Connection | None, float]:
        """Return an idle connection and since when it is idle, or None: the right to open one."""
        now = lane.loop.time()
        with self._lock:
            if lane.idle and not self._waiting:
                return lane.idle.pop()
            if self._open < self._size:
                self._open += 1
                return None, now
            waiter = _Waiter(lane)
            self._waiting.append(waiter)
            if lane.idle:
                # Whoever came first is served first.
                connection, _ = lane.idle.pop()
            else:
                connection = None
        if connection is not None:
            self._hand_on(lane, connection)
        else:
            self._ask_the_others(lane)
        return await self._wait(waiter, deadline), now

    async def _wait(self, waiter: _Waiter, deadline: float) -> Connection | None:
        loop = waiter.lane.loop
        start = loop.time()
        end = max(deadline, start + STATEMENT_SECONDS)
        try:
            while not waiter.future.done() and loop.time() < end:
                await asyncio.wait([waiter.future], timeout=min(end - loop.time(), ANSWER_SECONDS))
                if not waiter.future.done():
                    self._help_oneself(waiter)
        except BaseException:
            self._return(waiter)
            raise
        if waiter.future.done():
            return waiter.future.result()
        self._return(waiter)
        raise StoreUnavailableError(
            f"{self.where}: all {self._size} connections were busy for {end - start:.0f} seconds; "
            "raise pool_size"
        )

    def _help_oneself(self, waiter: _Waiter) -> None:
        """Take the seat of a connection that is idle on a loop which doesn't answer: it may wait for us."""
        for other in list(self._lanes.values()):
            if other is not waiter.lane and self._hang_one_up(other):
                return
        with self._lock:
            # It was given up while our loop stood still.
            if self._open < self._size and waiter in self._waiting:
                self._waiting.remove(waiter)
                self._open += 1
                waiter.future.set_result(None)

    def _return(self, waiter: _Waiter) -> None:
        """Take back what a caller that has gone was given."""
        with self._lock, suppress(ValueError):
            self._waiting.remove(waiter)
        if not waiter.future.done():
            waiter.future.cancel()
        elif not waiter.future.cancelled():
            connection = waiter.future.result()
            if connection is None:
                self.vacate()
            else:
                self._hand_on(waiter.lane, connection)

    def _ask_the_others(self, lane: Lane) -> None:
        """Have another loop close a connection that it doesn't use."""
        for other in list(self._lanes.values()):
            if other is not lane and other.idle:
                if not other.loop.is_running():
                    self._hang_up(other)
                else:
                    with suppress(RuntimeError):
                        other.loop.call_soon_threadsafe(self._shed, other)
                return

    def _shed(self, lane: Lane) -> None:
        if lane.idle and self._waiting:
            self._retire(lane, lane.idle.popleft()[0])

    def _retire(self, lane: Lane, connection: Connection) -> None:
        """Make room for another connection once the server has seen the end of this one."""

        async def leave() -> None:
            try:
                await close(connection)
            finally:
                self.vacate()

        leaving = lane.loop.create_task(leave())
        lane.leaving.add(leaving)
        leaving.add_done_callback(lane.leaving.discard)

    def _release(self, lane: Lane, connection: Connection, *, sound: bool) -> None:
        if sound and not connection.is_closed() and self._lanes.get(lane.loop) is lane:
            self._hand_on(lane, connection)
        else:
            self._discard(lane, connection)

    def _discard(self, lane: Lane, connection: Connection | None) -> None:
        """End a connection at once, if there is one, and give its seat away."""
        try:
            if connection is not None:
                hang_up(connection, lane.loop)
        finally:
            self.vacate()

    def _hand_on(self, lane: Lane, connection: Connection) -> None:
        """Give a connection to whoever waits, or keep it."""
        with self._lock:
            waiter = self._waiting[0] if self._waiting else None
            if waiter is None:
                lane.idle.append((connection, lane.loop.time()))
            elif waiter.lane is lane:
                self._waiting.popleft()
        if waiter is None:
            self._thin_out(lane)
        elif waiter.lane is not lane:
            self._retire(lane, connection)
        elif waiter.future.done():
            self._hand_on(lane, connection)
        else:
            waiter.future.set_result(connection)

    def _thin_out(self, lane: Lane) -> None:
        """Close what has not been used for long: the oldest come first."""
        while lane.idle and lane.loop.time() - lane.idle[0][1] > IDLE_SECONDS:
            self._retire(lane, lane.idle.popleft()[0])

    def vacate(self) -> None:
        """Let somebody else open a connection instead of one that is closed."""
        while True:
            with self._lock:
                waiter = next((w for w in self._waiting if w.lane.loop.is_running()), None)
                if waiter is None:
                    self._open -= 1
                    return
                self._waiting.remove(waiter)
            with suppress(RuntimeError):
                # Fails if that loop has been closed.
                waiter.lane.loop.call_soon_threadsafe(self._offer, waiter)
                return

    def _offer(self, waiter: _Waiter) -> None:
        if waiter.future.done():
            self.vacate()
        else:
            waiter.future.set_result(None)

    async def _connect(self, deadline: float, *, cached: bool) -> Connection:
        """Open a connection, for which there has to be a seat."""
        assert self._options is not None
        loop = asyncio.get_running_loop()
        attempts = await loop.run_in_executor(None, self._options.attempts)
        connection = await self._first_of(attempts, deadline, cached=cached)
        with suppress(OSError):
            # If it has ended already, its user will notice.
            keep_alive(connection, self._options)
        self._reached = True
        return connection

    async def _first_of(
        self, attempts: Sequence[Mapping[str, Any]], deadline: float, *, cached: bool
    ) -> Connection:
        """Connect with TLS or without it, as the URL wants it tried."""
        assert self._options is not None
        each = (self._options.connect_timeout or CONNECT_SECONDS) * len(self._options.servers)
        errors: list[Exception] = []
        loop = asyncio.get_running_loop()
        end = max(deadline, loop.time() + STATEMENT_SECONDS)
        for attempt in attempts[self._skips :]:
            options = {**attempt, "timeout": max(min(end - loop.time(), each), 1)}
            if not cached:
                options["statement_cache_size"] = 0
            try:
                return await asyncpg.connect(**options)
            except DRIVER_ERRORS as error:
                errors.append(error)
                if isinstance(error, asyncio.TimeoutError):
                    break
                if is_without_tls(error) and len(attempts) > 1:
                    self._skips = 1
        # Without TLS a server may refuse whoever has just been refused for the password.
        told = [error for error in errors if isinstance(error, asyncpg.InvalidPasswordError)]
        raise (told or errors)[-1]

    async def _is_alive(self, connection: Connection, idle_since: float) -> bool:
        if connection.is_closed():
            return False
        if asyncio.get_running_loop().time() - idle_since < PROBE_AFTER:
            return True
        try:
            await connection.execute("SELECT 1", timeout=PROBE_SECONDS)
        except DRIVER_ERRORS as error:
            logger.debug("%s: an idle connection was dead: %s", self.where, error)
            return False
        return True


async def close(connection: Connection) -> None:
    """Say goodbye to the server, if it listens."""
    try:
        await connection.close(timeout=CLOSE_SECONDS)
    except DRIVER_ERRORS:
        connection.terminate()


async def _answers(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether an event loop of another thread is at work."""
    answered = threading.Event()
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(answered.set)
        for _ in range(30 if loop.is_running() else 0):
            if answered.is_set():
                return True
            await asyncio.sleep(0.01)
    return answered.is_set()


def hang_up(connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
    """End a connection from anywhere: the server is to see it now, its loop when it runs again."""
    found = _socket(connection)
    if found is not None:
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)
    transport = getattr(connection, "_transport", None)
    try:
        if _running() is loop:
            connection.terminate()
        else:
            loop.call_soon_threadsafe(connection.terminate)
    except RuntimeError:
        _close_here(connection, transport)


def _close_here(connection: Connection, transport: Any) -> None:
    """Do what a transport would have its loop do, were that not closed."""
    with suppress(RuntimeError):
        connection.terminate()
    if getattr(transport, "_sock", None) is not None:
        transport._sock.close()
        transport._sock = None


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def keep_alive(connection: Connection, options: ConnectOptions) -> None:
    """Have the system find out when the other end is gone."""
    found = _socket(connection)
    if found is None or found.family == getattr(socket, "AF_UNIX", None):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(options.keepalives))
    for name, value in options.socket_options().items():
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _socket(connection: Connection) -> Any:
    # asyncpg has no public way to its socket.
    transport = getattr(connection, "_transport", None)
    return transport.get_extra_info("socket") if transport is not None else None


class Statements:
    """A connection on which each statement has a time limit, and a transaction of its own if need be."""

    def __init__(
        self, connection: Connection, deadline: float, pool: Pool, *, explicit: bool = False
    ) -> None:
        self.connection = connection
        self._deadline = deadline
        self._pool = pool
        self._explicit = explicit or pool.explicit

    @property
    def seconds(self) -> float:
        """What a statement that starts now has."""
        return max(self._deadline - asyncio.get_running_loop().time(), STATEMENT_SECONDS)

    async def fetch(self, query: str, *values: Any) -> list[Any]:
        """Return the rows of a statement, which is a transaction unless it stands in one."""
        if self._explicit and not self.connection.is_in_transaction():
            async with self.transaction():
                return await self.fetch(query, *values)
        rows: list[Any] = await self.connection.fetch(query, *values, timeout=self.seconds)
        return rows

    async def first(self, query: str, *values: Any) -> Any:
        """Return the first value of the first row, None if there is no row."""
        rows = await self.fetch(query, *values)
        return rows[0][0] if rows else None

    async def script(self, text: str) -> None:
        """Run several statements."""
        await self.connection.execute(text, timeout=self.seconds)

    @asynccontextmanager
    async def transaction(self, kind: str | None = None) -> AsyncIterator[None]:
        """Begin a transaction of that kind, whatever the server's default is, and end it.

        Unlike asyncpg's own it never waits longer than a statement may take.
        """
        await self.script(f"BEGIN ISOLATION LEVEL {kind or self._pool.kind}")
        try:
            yield
        except Exception as error:
            if not is_lost(error):
                await self.script("ROLLBACK")
            raise
        await self.script("COMMIT")
