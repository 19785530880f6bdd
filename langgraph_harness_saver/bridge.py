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
from langgraph_harness_saver.shared_loop import LoopEndedError, SharedLoop
from langgraph_harness_saver.stores.base import door

T = TypeVar("T")


class Bridge(Forkable):
    """Runs coroutines for callers that are not: by hand, or on an event loop that they share.

    Async callers need no bridge; they await the core on their own loop.
    """

    def __init__(self, io: Literal["none", "blocking", "async"]) -> None:
        self._by_hand = io != "async"
        # Reentrant: the collector may drop a saver in the middle of anything.
        self._lock = threading.RLock()
        self._shared: SharedLoop | None = None
        self._closed = False
        renew_after_fork(self)
        _bridges.add(self)

    def after_fork(self) -> None:
        """Forget the parent's loop."""
        leave_alone(self._shared)
        self._lock = threading.RLock()
        self._shared = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, with or without an event loop in this thread."""
        while (shared := self._loop()) is not None:
            try:
                return shared.run(work)
            except LoopEndedError:
                continue
            except (CancelledError, asyncio.CancelledError, RuntimeError) as error:
                if not self._closed:
                    raise
                work.close()
                raise StoreNotOpenError("the saver was closed while this call was under way") from error
        return step(work)

    def close(self) -> None:
        """End the loop, if there is one."""
        with self._lock:
            self._closed = True
            shared, self._shared = self._shared, None
        if shared is not None:
            shared.end()

    def let_go(self) -> None:
        """End the loop, and don't wait for it."""
        with self._lock:
            self._closed = True
            shared, self._shared = self._shared, None
        if shared is not None:
            shared.let_go()

    async def aclose(self) -> None:
        """Do what `close` does, which may wait, aside."""
        if self._shared is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.close)

    def _loop(self) -> SharedLoop | None:
        """Return the loop; None where none is needed, or after the end: a call then gets to be told so."""
        shared = self._shared
        if self._by_hand or (shared is not None and not shared.is_ending):
            return shared
        with self._lock:
            if self._closed:
                return None
            if self._shared is None or self._shared.is_ending:
                self._shared = SharedLoop()
            return self._shared


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
