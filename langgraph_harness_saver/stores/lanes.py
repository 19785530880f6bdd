"""Connections to a server, for every event loop that asks for one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from langgraph_harness_saver.errors import StoreError, StoreNotOpenError, StoreUnavailableError
from langgraph_harness_saver.forks import Forkable, leave_alone, renew_after_fork
from langgraph_harness_saver.stores.batches import Pauses

logger = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""How long to wait for one connection, where the URL doesn't say."""
STATEMENT_SECONDS = 5.0
"""What a statement has at least, however little is left of retry_seconds."""
PROBE_AFTER, PROBE_SECONDS = 15.0, 5.0
"""A connection that was idle for longer is asked whether it lives, and how long it has to answer."""
IDLE_SECONDS = 300.0
CLOSE_SECONDS = 2.0
ANSWER_SECONDS = 0.1
"""How long a loop has to part with a connection that it doesn't use."""


class Lane(Generic[C]):
    """The connections of one event loop.

    It ends with its loop: an event loop that shuts down closes the asynchronous generators that were
    started on it, and so this one's.
    """

    def __init__(self, pool: Lanes[C], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle: deque[tuple[C, float]] = deque()
        self.held: dict[int, C | None] = {}
        """The other seats, by whatever has them: a connection in use or being closed, or who awaits one."""
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
                await self._pool.close_one(self.idle.pop()[0])
            finally:
                self._pool.vacate()
        others = self.leaving - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)


class _Waiter(Generic[C]):
    __slots__ = ("future", "lane")

    def __init__(self, lane: Lane[C]) -> None:
        self.lane = lane
        self.future: asyncio.Future[C | None] = lane.loop.create_future()


class Lanes(Forkable, ABC, Generic[C]):
    """At most `size` connections over all event loops, each used on the loop that it was made on."""

    def __init__(self, where: str, size: int, retry_seconds: float) -> None:
        self.where = where
        self.retry_seconds = retry_seconds
        self._size = size
        self._closed = False
        self._renew()
        renew_after_fork(self)

    @abstractmethod
    async def connect(self, deadline: float) -> C:
        """Open a connection, for which there has to be a seat."""

    @abstractmethod
    async def is_alive(self, connection: C, idle_since: float) -> bool:
        """Tell whether a connection that was idle can be used."""

    @abstractmethod
    def is_closed(self, connection: C) -> bool:
        """Tell whether a connection has ended."""

    @abstractmethod
    async def close_one(self, connection: C) -> None:
        """Say goodbye to the server, if it listens."""

    @abstractmethod
    def hang_up(self, connection: C, loop: asyncio.AbstractEventLoop) -> None:
        """End a connection from anywhere: the server is to see it now, its loop when it runs again."""

    @abstractmethod
    def is_worth_another(self, error: StoreError, deadline: float) -> bool:
        """Tell whether a failed attempt is to be repeated."""

    def _renew(self) -> None:
        self._lanes: dict[asyncio.AbstractEventLoop, Lane[C]] = {}
        self._waiting: deque[_Waiter[C]] = deque()
        self._offered: list[_Waiter[C]] = []
        self._taken = 0
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

    async def keep_trying(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """Return what `attempt` does by a deadline; it may be called again.

        Raises:
            StoreError: It did not succeed within `retry_seconds`, or never would.
        """
        deadline = asyncio.get_running_loop().time() + self.retry_seconds
        pauses = Pauses()
        while True:
            try:
                return await attempt(deadline)
            except StoreError as error:
                if not self.is_worth_another(error, deadline):
                    raise
            await pauses.wait()

    # --- lanes -------------------------------------------------------------------------------------

    async def lane(self) -> Lane[C]:
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

    def forget(self, lane: Lane[C]) -> None:
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

    def _hang_up(self, lane: Lane[C]) -> None:
        """Close the connections of a loop that doesn't run."""
        while self._hang_one_up(lane):
            pass

    def _hang_one_up(self, lane: Lane[C]) -> bool:
        """Close a connection that another loop doesn't use, whether that one answers or not.

        What was in use when that loop came to a stop, as it does between one `run_until_complete` and the
        next, is lost to it: its call is tried again.
        """
        connection: C | None
        with self._lock:
            if lane.idle:
                connection, _ = lane.idle.popleft()
            elif lane.held and not lane.loop.is_running():
                _, connection = lane.held.popitem()
            else:
                return False
        self._discard(lane, connection)
        return True

    def _is_held(self, lane: Lane[C], holder: object) -> bool:
        """Tell whether something still has its seat, and have it part with it."""
        with self._lock:
            return lane.held.pop(id(holder), self) is not self

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

    async def acquire(self, lane: Lane[C], deadline: float) -> C:
        connection, idle_since = await self.seat(lane, deadline)
        holder = object()
        lane.held[id(holder)] = None
        try:
            if connection is not None and not await self.is_alive(connection, idle_since):
                self.hang_up(connection, lane.loop)
                connection = None
            connection = connection or await self.connect(deadline)
        except BaseException:
            if self._is_held(lane, holder):
                self._discard(lane, connection)
            elif connection is not None:
                self.hang_up(connection, lane.loop)
            raise
        if not self._is_held(lane, holder):
            self.hang_up(connection, lane.loop)
            return await self.acquire(lane, deadline)
        lane.held[id(connection)] = connection
        return connection

    async def seat(self, lane: Lane[C], deadline: float) -> tuple[C | None, float]:
        """Return an idle connection and since when it is idle, or None: the right to open one."""
        now = lane.loop.time()
        with self._lock:
            if lane.idle and not self._waiting:
                return lane.idle.pop()
            if self._taken < self._size:
                self._taken += 1
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
        connection = await self._wait(waiter, deadline)
        return (connection, now) if self._is_held(lane, waiter) else await self.seat(lane, deadline)

    async def _wait(self, waiter: _Waiter[C], deadline: float) -> C | None:
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

    def _help_oneself(self, waiter: _Waiter[C]) -> None:
        """Take the seat of a connection that is idle on a loop which doesn't answer: it may wait for us."""
        for other in list(self._lanes.values()):
            if other is not waiter.lane and self._hang_one_up(other):
                return
        with self._lock:
            if waiter not in self._waiting:
                return
            if self._taken < self._size:
                # It was given up while our loop stood still.
                self._taken += 1
            elif not self._take_back():
                return
            self._waiting.remove(waiter)
            self._grant(waiter, None)

    def _grant(self, waiter: _Waiter[C], connection: C | None) -> None:
        waiter.lane.held[id(waiter)] = connection
        waiter.future.set_result(connection)

    def _take_back(self) -> bool:
        """Take a seat back that was offered on a loop which has come to a stop; the lock is held."""
        for waiter in self._offered:
            if not waiter.lane.loop.is_running():
                self._offered.remove(waiter)
                self._waiting.appendleft(waiter)
                return True
        return False

    def _return(self, waiter: _Waiter[C]) -> None:
        """Take back what a caller that has gone was given."""
        with self._lock, suppress(ValueError):
            self._waiting.remove(waiter)
        if not waiter.future.done():
            waiter.future.cancel()
        elif not waiter.future.cancelled() and self._is_held(waiter.lane, waiter):
            connection = waiter.future.result()
            if connection is None:
                self.vacate()
            else:
                self._hand_on(waiter.lane, connection)

    def _ask_the_others(self, lane: Lane[C]) -> None:
        """Have another loop close a connection that it doesn't use."""
        for other in list(self._lanes.values()):
            if other is not lane and other.idle:
                if not other.loop.is_running():
                    self._hang_up(other)
                else:
                    with suppress(RuntimeError):
                        other.loop.call_soon_threadsafe(self._shed, other)
                return

    def _shed(self, lane: Lane[C]) -> None:
        if lane.idle and self._waiting:
            self._retire(lane, lane.idle.popleft()[0])

    def _retire(self, lane: Lane[C], connection: C) -> None:
        """Make room for another connection once the server has seen the end of this one."""

        async def leave() -> None:
            try:
                await self.close_one(connection)
            finally:
                if self._is_held(lane, connection):
                    self.vacate()

        lane.held[id(connection)] = connection

        leaving = lane.loop.create_task(leave())
        lane.leaving.add(leaving)
        leaving.add_done_callback(lane.leaving.discard)

    def release(self, lane: Lane[C], connection: C, *, sound: bool) -> None:
        if not self._is_held(lane, connection):
            return
        if sound and not self.is_closed(connection) and self._lanes.get(lane.loop) is lane:
            self._hand_on(lane, connection)
        else:
            self._discard(lane, connection)

    def _discard(self, lane: Lane[C], connection: C | None) -> None:
        """End a connection at once, if there is one, and give its seat away."""
        try:
            if connection is not None:
                self.hang_up(connection, lane.loop)
        finally:
            self.vacate()

    def _hand_on(self, lane: Lane[C], connection: C) -> None:
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
            self._grant(waiter, connection)

    def _thin_out(self, lane: Lane[C]) -> None:
        """Close what has not been used for long: the oldest come first."""
        while lane.idle and lane.loop.time() - lane.idle[0][1] > IDLE_SECONDS:
            self._retire(lane, lane.idle.popleft()[0])

    def vacate(self) -> None:
        """Let somebody else open a connection instead of one that is closed."""
        while True:
            with self._lock:
                waiter = next((w for w in self._waiting if w.lane.loop.is_running()), None)
                if waiter is None:
                    self._taken -= 1
                    return
                self._waiting.remove(waiter)
                self._offered.append(waiter)
            try:
                waiter.lane.loop.call_soon_threadsafe(self._offer, waiter)
                return
            except RuntimeError:
                # That loop has been closed.
                with self._lock:
                    if waiter not in self._offered:
                        return
                    self._offered.remove(waiter)

    def _offer(self, waiter: _Waiter[C]) -> None:
        with self._lock:
            if waiter not in self._offered:
                # Somebody has taken it back while this loop stood still.
                return
            self._offered.remove(waiter)
        if waiter.future.done():
            self.vacate()
        else:
            self._grant(waiter, None)


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


def hang_up(transport: Any, terminate: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
    """End a transport from anywhere: the server is to see it now, its loop when it runs again."""
    found = None if transport is None else transport.get_extra_info("socket")
    if found is not None:
        with suppress(OSError):
            _shut_down(transport, found)
    try:
        if _running() is loop:
            terminate()
        else:
            loop.call_soon_threadsafe(terminate)
    except RuntimeError:
        _close_here(transport, terminate)


def _shut_down(transport: Any, found: Any) -> None:
    try:
        found.shutdown(socket.SHUT_RDWR)
    except TypeError:
        # uvloop shows a stand-in, which can't. Once it is closing, the number may be another socket's.
        if transport.is_closing():
            return
        with socket.socket(fileno=os.dup(found.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)


def _close_here(transport: Any, terminate: Callable[[], None]) -> None:
    """Do what a transport would have its loop do, were that not closed."""
    with suppress(RuntimeError):
        terminate()
    if getattr(transport, "_sock", None) is not None:
        transport._sock.close()
        transport._sock = None


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
