"""One async core, a sync and an async door."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, Literal, TypeVar

from langgraph_harness_saver.errors import StoreNotOpenError
from langgraph_harness_saver.forks import Forkable, leave_alone, renew_after_fork
from langgraph_harness_saver.stores.base import door

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long calls that are under way have to finish when the loop ends."""


class Bridge(Forkable):
    """Runs coroutines for callers that are not: by hand, or on a loop of its own thread.

    Async callers need no bridge; they await the core on their own loop.
    """

    def __init__(self, io: Literal["none", "blocking", "async"]) -> None:
        self._by_hand = io != "async"
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        renew_after_fork(self)
        _bridges.add(self)

    def after_fork(self) -> None:
        """Forget the parent's thread."""
        leave_alone(self._loop)
        self._lock = threading.RLock()
        self._loop = self._thread = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, with or without an event loop in this thread."""
        loop = None if self._by_hand else self._running_loop()
        if loop is None:
            return step(work)
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except (CancelledError, RuntimeError) as error:
            if not self._closed:
                raise
            work.close()
            raise StoreNotOpenError("the saver was closed while this call was under way") from error

    def close(self) -> None:
        """End the thread, if there is one."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            if thread is not threading.current_thread():
                thread.join()

    def let_go(self) -> None:
        """End the thread, and don't wait for it."""
        with self._lock:
            self._closed = True
            loop, self._loop, self._thread = self._loop, None, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    async def aclose(self) -> None:
        """Do what `close` does, which may wait, aside."""
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.close)

    def _running_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the thread's loop; None after the end, when a call gets no further than to be told so."""
        with self._lock:
            if self._loop is None and not self._closed:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="harness-loop", daemon=True
                )
                self._thread.start()
                if self._closed:
                    # The collector has come in between, and dropped whoever would have ended it.
                    self._loop.call_soon_threadsafe(self._loop.stop)
                    self._loop = None
            return self._loop


_bridges: weakref.WeakSet[Bridge] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let the loops close their connections before the process ends."""
    for bridge in list(_bridges):
        bridge.close()


def step(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, in this thread.

    Raises:
        RuntimeError: It suspended: the store is not of the kind that it says.
    """
    before, door.sync = door.sync, True
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        door.sync = before
    work.close()
    raise RuntimeError("a store that says it doesn't wait has suspended; its `io` should be 'async'")


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        # As `asyncio.run` ends: nothing that is still waiting is left behind.
        loop.run_until_complete(_end_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        loop.close()


async def _end_tasks() -> None:
    # Calls may still come in while others end.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, late = await asyncio.wait(others, timeout=CLOSE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
