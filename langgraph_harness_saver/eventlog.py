"""Stores events in the background: whoever hands one over goes on at once."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.errors import StoreError, StoreNotOpenError, StoreUnavailableError
from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.rows import Noted
from langgraph_harness_saver.stores.base import door

logger = logging.getLogger(__name__)

MOST_EVENTS, MOST_BYTES = 10_000, 64 << 20
"""How much may wait, before what comes is dropped: a store that stands still is not to fill the memory."""
BATCH_EVENTS, BATCH_BYTES = 200, 4 << 20
"""How much is stored in one call."""
IDLE_SECONDS = 1.0
"""How long the thread waits for more before it ends."""


class Adder(Protocol):
    """What stores events, a `Core`."""

    async def add_events(self, events: Sequence[Noted]) -> None:
        """Store events, of any threads."""


class EventCounts(NamedTuple):
    """What became of the events that this process has noted through one saver.

    `recorded` were handed over; of these `stored` and `failed`, and `waiting` still wait. `dropped` came when
    too many were waiting, or the saver was closed, or couldn't be noted at all.
    """

    recorded: int = 0
    stored: int = 0
    failed: int = 0
    waiting: int = 0
    dropped: int = 0


class _Handed(NamedTuple):
    core: Adder
    owner: object
    """Kept until the event is stored: the saver, which would close its store when nobody holds it."""
    event: Noted


class EventLog(Forkable):
    """A bounded queue of events, and a thread that stores them while there are any.

    Nothing here raises for what a store can't do: that is logged and counted. At the process' end, and when
    its saver is closed, what is waiting is stored first.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._closed = False
        self._renew()
        renew_after_fork(self)
        _logs.add(self)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Handed] = deque()
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._handed = self._done = self._failed = self._told_failed = self._dropped = 0
        self._ending = self._hopeless = False
        self._waiters: list[tuple[int, Callable[[], None]]] = []

    def before_fork(self) -> None:
        """Let nobody be half-way through a change."""
        self._changed.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._changed.release()

    def after_fork(self) -> None:
        """Begin anew: what was waiting is the parent's to store."""
        self._renew()

    # --- handing over ------------------------------------------------------------------------------

    def add(self, core: Adder, event: Noted, owner: object = None) -> bool:
        """Take an event; False if it is dropped."""
        size = len(event.dumped[1])
        with self._changed:
            full = len(self._queue) >= MOST_EVENTS or self._bytes + size > max(MOST_BYTES, size)
            if not full and not self._closed:
                self._queue.append(_Handed(core, owner, event))
                self._bytes += size
                self._handed += 1
                self._start()
                self._changed.notify_all()
                return True
        self.drop("the saver is closed" if self._closed else f"{len(self._queue):,} events are waiting")
        return False

    def drop(self, why: str) -> None:
        """Count an event that can't be taken."""
        with self._changed:
            self._dropped += 1
            count = self._dropped
        # A store that stands still is told of, not each time.
        if count & (count - 1) == 0:
            logger.warning("an event is not recorded, %d in all so far: %s", count, why)

    @property
    def counts(self) -> EventCounts:
        """What became of events so far."""
        with self._changed:
            waiting = self._handed - self._done
            return EventCounts(self._handed, self._done - self._failed, self._failed, waiting, self._dropped)

    # --- waiting -----------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was handed over is stored; False if some of it isn't, after `timeout` seconds.

        What has failed is told of once.
        """
        with self._changed:
            ticket = self._handed
            return (
                bool(self._changed.wait_for(lambda: self._done >= ticket, timeout)) and not self._has_failed()
            )

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do what `flush` does, without holding up the event loop."""
        waiting = self._wait_for(self._handed)
        if waiting is not None:
            try:
                await asyncio.wait_for(waiting, timeout)
            except asyncio.TimeoutError:
                return False
        return not self._has_failed()

    def _has_failed(self) -> bool:
        before, self._told_failed = self._told_failed, self._failed
        return self._failed > before

    async def settle(self) -> None:
        """Wait as `flush` does, in a coroutine that the bridge may step by hand."""
        ticket = self._handed
        if self._done >= ticket:
            return
        if door.sync:
            self._wait()
        elif (waiting := self._wait_for(ticket)) is not None:
            await waiting

    def _wait(self) -> None:
        with self._changed:
            ticket = self._handed
            self._changed.wait_for(lambda: self._done >= ticket)

    def _wait_for(self, ticket: int) -> Awaitable[Any] | None:
        with self._changed:
            if self._done >= ticket:
                return None
            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))
                except RuntimeError:
                    # The loop has been closed: there is nobody left to tell.
                    logger.debug("an event loop was closed that waited for events")

            self._waiters.append((ticket, wake))
            return future

    def close(self) -> None:
        """Store what is waiting, and take nothing more."""
        self._end()
        self._wait()

    async def aclose(self) -> None:
        """Do what `close` does."""
        self._end()
        await self.settle()

    def _end(self) -> None:
        with self._changed:
            self._closed = self._ending = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Store what is waiting, at the end of the process."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            begun = self._thread is not None
        if begun:
            self._wait()
        else:
            self._drain()

    # --- storing -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin storing, if nobody does; the lock is held."""
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="harness-events", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending, and `finish` is still to come.
                return
            self._thread = thread

    def _serve(self) -> None:
        while True:
            self._drain()
            with self._changed:
                if not self._queue and not self._ending:
                    self._changed.wait_for(lambda: self._queue or self._ending, IDLE_SECONDS)
                if not self._queue:
                    self._thread = None
                    return

    def _drain(self) -> None:
        while batch := self._take():
            failed = self._store(batch)
            with self._changed:
                self._failed += failed
                self._done += len(batch)
                self._changed.notify_all()
                due = [wake for ticket, wake in self._waiters if ticket <= self._done]
                self._waiters = [each for each in self._waiters if each[0] > self._done]
            for wake in due:
                wake()

    def _take(self) -> list[_Handed]:
        """Take the next events that one core stores."""
        batch: list[_Handed] = []
        size = 0
        with self._changed:
            while self._queue and len(batch) < BATCH_EVENTS:
                more = len(self._queue[0].event.dumped[1])
                if batch and (size + more > BATCH_BYTES or self._queue[0].core is not batch[0].core):
                    break
                batch.append(self._queue.popleft())
                size += more
            self._bytes -= size
        return batch

    def _store(self, batch: Sequence[_Handed]) -> int:
        """Store events; return how many couldn't be."""
        if self._hopeless:
            return len(batch)
        try:
            self._bridge.run(batch[0].core.add_events([handed.event for handed in batch]))
        except Exception as error:
            if isinstance(error, (StoreUnavailableError, StoreNotOpenError)) or len(batch) == 1:
                # There is no caller; and the run goes on without its events.
                logger.warning("%d events could not be stored: %s", len(batch), error, exc_info=_odd(error))
                self._hopeless = self._ending
                return len(batch)
        else:
            return 0
        # One of them may be at fault; the others are not to suffer for it.
        return sum(self._store([handed]) for handed in batch)


def _odd(error: Exception) -> bool:
    """Tell whether an error is none that stores are known to raise."""
    return not isinstance(error, StoreError)


_logs: weakref.WeakSet[EventLog] = weakref.WeakSet()


def _finish_all() -> None:
    for log in list(_logs):
        log.finish()


# Connecting takes a thread, which there are none of once executors are told to end, before `atexit`. Whatever
# runs in these may still note something.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
atexit.register(_finish_all)
