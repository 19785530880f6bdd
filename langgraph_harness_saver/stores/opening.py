"""What stores with a server do once, or once for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from langgraph_harness_saver.stores.batches import MAX_FLIGHTS, Batches, Flush
from langgraph_harness_saver.stores.lanes import Lane

T = TypeVar("T")

FLUSH_CALLS, FLUSH_BYTES = 256, 4 << 20
ENOUGH_CALLS = 16
"""How many calls need not wait for others that are under way."""


class Opening:
    """Sets a store up, once; anew after it has failed."""

    def __init__(self, set_up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.is_done = False
        self._set_up = set_up
        self._under_way: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    async def wait(self) -> None:
        """Set up, together with whoever else asks for it on this loop; one who is cancelled harms nobody."""
        loop = asyncio.get_running_loop()
        opening = self._under_way.get(loop)
        if opening is None:
            opening = self._under_way[loop] = loop.create_task(self._set_up())
            opening.add_done_callback(self._done)
        await asyncio.shield(opening)

    def _done(self, opening: asyncio.Task[None]) -> None:
        self._under_way = {loop: task for loop, task in self._under_way.items() if task is not opening}
        # Asking for the error, in case that all who waited for it have gone.
        self.is_done = self.is_done or (not opening.cancelled() and opening.exception() is None)


class Queues(Generic[T]):
    """The `Batches` of every event loop that makes calls; what is queued is sent before a loop ends."""

    def __init__(
        self,
        flush: Flush[T],
        lane: Callable[[], Awaitable[Lane[Any]]],
        enough: int = ENOUGH_CALLS,
        max_flights: int = MAX_FLIGHTS,
    ) -> None:
        self._flush = flush
        self._lane = lane
        self._enough = enough
        self._max_flights = max_flights
        self._batches: dict[asyncio.AbstractEventLoop, Batches[T]] = {}

    def submit(self, payload: T, size: int, seconds: float) -> Awaitable[Any]:
        """Do what `Batches.submit` does on the running loop."""
        batches = self._batches.get(asyncio.get_running_loop())
        if batches is None:
            return self._submit_first(payload, size, seconds)
        return batches.submit(payload, size, seconds)

    async def _submit_first(self, payload: T, size: int, seconds: float) -> Any:
        batches = await self._begin(asyncio.get_running_loop())
        return await batches.submit(payload, size, seconds)

    async def _begin(self, loop: asyncio.AbstractEventLoop) -> Batches[T]:
        batches: Batches[T] = Batches(self._flush, FLUSH_CALLS, FLUSH_BYTES, self._enough, self._max_flights)
        self._batches = {other: b for other, b in self._batches.items() if not other.is_closed()}
        self._batches[loop] = batches

        async def finish() -> None:
            await batches.finish()
            self._batches.pop(loop, None)

        (await self._lane()).finish.append(finish)
        return batches
