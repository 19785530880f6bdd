"""One async core, a sync and an async door."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.stores.base import door

T = TypeVar("T")


class Bridge(Forkable):
    """Runs coroutines for callers that are not: by hand, or on a loop of its own thread.

    Async callers need no bridge; they await the core on their own loop.
    """

    def __init__(self, io: Literal["none", "blocking", "async"]) -> None:
        self._by_hand = io != "async"
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's thread."""
        self._lock = threading.Lock()
        self._loop = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, with or without an event loop in this thread."""
        if self._by_hand:
            return step(work)
        return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()

    def close(self) -> None:
        """End the thread, if there is one."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="harness-loop", daemon=True).start()
            return self._loop


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
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
