"""Group commit: calls that arrive while others are under way leave together."""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
LONGEST_WATCH = 0.0006
"""Seconds that an answer may usually take for a loop to stay awake for it."""
MAX_FLIGHTS = 2
"""With two, the database works on one while this process makes the next."""


class Pauses:
    """Waits between attempts, ever longer; not before the second, which may find a sound connection."""

    def __init__(self) -> None:
        self._next = 0.0

    async def wait(self) -> None:
        """Wait."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1))
        self._next = min(max(2 * self._next, FIRST_PAUSE), LONGEST_PAUSE)


class Call(Generic[T]):
    """One caller's payload, and the future that it waits for; `size` is in bytes."""

    __slots__ = ("deadline", "future", "payload", "size")

    def __init__(self, payload: T, size: int, deadline: float, future: asyncio.Future[Any]) -> None:
        self.payload = payload
        self.size = size
        self.deadline = deadline
        self.future = future

    def resolve(self, value: Any) -> None:
        """Wake the caller, unless it was cancelled."""
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Raise in the caller, unless it was cancelled."""
        if not self.future.done():
            self.future.set_exception(error)


class Watch:
    """Keeps an event loop awake for an answer that comes sooner than waking it up would take.

    A process that goes to sleep for the 0.2 ms of a commit on a disk nearby is woken late and finds the
    processor's caches cold, which costs as much again. So where answers have come that soon lately, the
    loop looks for the next one without sleeping, for at most twice as long as they took, and leaves the
    processor to whoever else wants it. Where they take longer, or there is one processor, it sleeps.
    """

    __slots__ = ("_awake", "_began", "_loop", "_until", "_usual")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._usual = LONGEST_WATCH if _processors() > 1 else float("inf")
        self._began = self._until = 0.0
        self._awake = False

    def begin(self) -> None:
        """A call has been made."""
        self._began = now = self._loop.time()
        self._until = now + 2 * self._usual if self._usual < LONGEST_WATCH else now
        if self._until > now and not self._awake:
            self._awake = True
            self._loop.call_soon(self._look)

    def end(self) -> None:
        """It has been answered."""
        now = self._loop.time()
        # How much too long one took doesn't matter, or connecting would count for long.
        self._usual += (min(now - self._began, 2 * LONGEST_WATCH) - self._usual) / 8
        self._until = now

    def _look(self) -> None:
        self._awake = self._loop.time() < self._until
        if self._awake:
            os.sched_yield()
            self._loop.call_soon(self._look)


def _processors() -> int:
    """Return how many processors this process may use, 1 where it can't leave one to others."""
    if not hasattr(os, "sched_yield"):
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Flush = Callable[[Sequence[Call[T]]], Awaitable[Sequence[Call[T]]]]
"""Sends calls and answers them; returns those that are to be sent again."""


class Batches(Generic[T]):
    """The calls of one event loop.

    A lone call leaves at once. While calls are under way others wait for them to return, and then leave
    together; or, once there are `enough` of them, while the first are still under way, in at most
    `max_flights`.
    """

    def __init__(
        self,
        flush: Flush[T],
        max_calls: int,
        max_bytes: int,
        enough: int,
        max_flights: int = MAX_FLIGHTS,
    ) -> None:
        self._flush = flush
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._enough = enough
        self._max_flights = max_flights
        self._queue: deque[Call[T]] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._leads = 0
        self._aloft = 0
        self._watch = Watch()

    def submit(self, payload: T, size: int, seconds: float) -> Awaitable[Any]:
        """Return what to await, at once, for what becomes of a payload; it is tried for so many seconds."""
        loop = asyncio.get_running_loop()
        call = Call(payload, size, loop.time() + seconds, loop.create_future())
        if not self._flights and not self._leads:
            return self._lead(call)
        self._queue.append(call)
        if len(self._queue) >= self._enough:
            self._take_off()
        return call.future

    async def _lead(self, call: Call[T]) -> Any:
        """Send a call that found nothing under way, in its own caller's task."""
        self._leads = 1
        watch = self._watch
        watch.begin()
        try:
            self._queue.extend(await self._flush([call]))
        finally:
            watch.end()
            self._leads = 0
            if self._queue:
                self._take_off()
        return await call.future

    def _take_off(self) -> None:
        if len(self._flights) + self._leads < self._max_flights:
            flight = asyncio.get_running_loop().create_task(self._fly())
            self._flights.add(flight)

    async def finish(self) -> None:
        """Wait until everything has been sent."""
        while self._leads:  # noqa: ASYNC110
            await asyncio.sleep(FIRST_PAUSE)
        while self._flights:
            await asyncio.wait(self._flights)

    async def _fly(self) -> None:
        calls: Sequence[Call[T]] = ()
        pauses = Pauses()
        try:
            while self._queue and (len(self._flights) == 1 or len(self._queue) >= self._enough):
                calls = self._take()
                if len(self._queue) >= self._enough:
                    self._take_off()
                self._aloft += len(calls)
                try:
                    again = await self._flush(calls) if calls else ()
                finally:
                    self._aloft -= len(calls)
                self._queue.extendleft(reversed(again))
                if again:
                    await pauses.wait()
                else:
                    pauses = Pauses()
        except asyncio.CancelledError as error:
            self._abandon(calls, error)
            raise
        except Exception as error:
            self._abandon(calls, error)
        finally:
            # At once: the other one leaves what is queued to this one, or it takes it.
            self._flights.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> Sequence[Call[T]]:
        calls: list[Call[T]] = []
        size = 0
        # Of two flights half of all, so that there are as many for the next one while this is under way.
        share = max(self._enough, (len(self._queue) + self._aloft + 1) // self._max_flights)
        most = min(share, self._max_calls)
        while self._queue and len(calls) < most and size < self._max_bytes:
            call = self._queue.popleft()
            if not call.future.done():
                calls.append(call)
                size += call.size
        return calls

    def _abandon(self, calls: Sequence[Call[T]], error: BaseException) -> None:
        """Tell everybody: the loop ends, or there is a mistake in here."""
        for call in (*calls, *self._queue):
            if isinstance(error, asyncio.CancelledError):
                call.future.cancel()
            else:
                call.fail(error)
        self._queue.clear()
