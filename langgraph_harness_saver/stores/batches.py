"""Group commit: calls that arrive while others are under way leave together."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
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


Flush = Callable[[Sequence[Call[T]]], Awaitable[Sequence[Call[T]]]]
"""Sends calls and answers them; returns those that are to be sent again."""


class Batches(Generic[T]):
    """The calls of one event loop.

    A lone call leaves at once. While calls are under way others wait for them to return, and then leave
    together; or, once there are `enough` of them, while the first are still under way.
    """

    def __init__(self, flush: Flush[T], max_calls: int, max_bytes: int, enough: int) -> None:
        self._flush = flush
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._enough = enough
        self._queue: deque[Call[T]] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._leads = 0

    async def submit(self, payload: T, size: int, seconds: float) -> Any:
        """Return what becomes of a payload, which is tried for so many seconds."""
        loop = asyncio.get_running_loop()
        call = Call(payload, size, loop.time() + seconds, loop.create_future())
        if not self._flights and not self._leads:
            await self._lead(call)
        else:
            self._queue.append(call)
            if len(self._queue) >= self._enough:
                self._take_off()
        return await call.future

    async def _lead(self, call: Call[T]) -> None:
        """Send a call that found nothing under way, in its own caller's task."""
        self._leads = 1
        try:
            self._queue.extend(await self._flush([call]))
        finally:
            self._leads = 0
            if self._queue:
                self._take_off()

    def _take_off(self) -> None:
        if len(self._flights) + self._leads < MAX_FLIGHTS:
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
                again = await self._flush(calls) if calls else ()
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
        while self._queue and len(calls) < self._max_calls and size < self._max_bytes:
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
