"""An event loop that callers who have none run themselves."""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, TypeVar

from langgraph_harness_saver.errors import StoreError

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long calls that are under way have to finish when the loop ends."""

# What `signal` puts enums around: these take 40 µs of a call that takes 300.
_signal: Any = import_module("_signal")
_SIGINT = int(signal.SIGINT)
_SIGNALS = [int(number) for number in signal.valid_signals()]
_HARMLESS = (None, _signal.SIG_DFL, _signal.SIG_IGN, _signal.default_int_handler)
"""What runs no Python code of anybody's, or, where it is `default_int_handler`, is taken care of."""


class LoopEndedError(Exception):
    """The loop takes no more calls; this one has not begun."""


class SharedLoop:
    """An event loop for callers that have none.

    Who finds nobody running it runs it, in its own thread and until its own call is done: to wake another
    thread, and to be woken by it, would take longer than most calls do. Who comes meanwhile is served by a
    thread, which runs the loop as long as there is somebody to serve. So is who has an event loop already, or
    signal handlers: these may raise in the middle of anything that the main thread does, and asyncpg has been
    seen to crash then. An interrupt from the keyboard cancels the call, and is raised when that has ended.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self._loop = asyncio.new_event_loop()
        # Reentrant: the collector may drop a saver, and so end this, in the middle of anything.
        self._lock = threading.RLock()
        self._holder: object = None
        """Who runs the loop, or is about to."""
        self._served = 0
        self._thread: threading.Thread | None = None
        self._due = threading.Semaphore(0)
        self._ended = threading.Event()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end.

        Raises:
            LoopEndedError: The loop takes no more calls.
            StoreError: The loop itself is calling, and would wait for itself.
        """
        here = running_loop()
        if here is self._loop:
            work.close()
            raise StoreError(
                "a sync call within one of the same saver, such as from a merge strategy that was given to "
                "engine.sync, would wait for itself: read before, or do the whole with the async methods"
            )
        drives = here is None and not _may_be_interrupted()
        done: Future[T] | None = None
        try:
            with self._lock:
                if self.is_ending:
                    raise LoopEndedError
                if drives and self._holder is None:
                    self._holder = work
                else:
                    done = self._hand_over(work)
            if done is None:
                with _interrupts_cancel(self._loop) as tasks:
                    task = self._drive(work, tasks)
                    self._pass_on()
        except BaseException:
            if done is None:
                self._retire(work)
            raise
        return task.result() if done is None else done.result()

    def _drive(self, work: Coroutine[Any, Any, T], tasks: list[asyncio.Task[Any]]) -> asyncio.Task[T]:
        """Run the loop until a call is done, or everything is to end."""
        loop = self._loop
        # First it is to see which connections have ended since somebody last ran it: a server's farewell is
        # one event, the end of the stream another.
        for _ in range(2):
            loop.call_soon(loop.stop)
            loop.run_forever()
        task = loop.create_task(work)
        tasks.append(task)
        task.add_done_callback(self._stop)
        # It may be told to stop by what the thread has left behind.
        while not (task.done() or self.is_ending):
            loop.run_forever()
        return task

    def _stop(self, _: object) -> None:
        self._loop.stop()

    def _pass_on(self) -> None:
        """Have the loop run by whoever is next."""
        with self._lock:
            if self._served and not self.is_ending:
                self._wake_thread()
                return
            if not self.is_ending:
                self._holder = None
                return
        self._finish()

    # --- the thread --------------------------------------------------------------------------------

    def _hand_over(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have a call served by the thread, or by who runs the loop until then; the lock is held."""
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._served += 1
        if self._holder is None:
            self._wake_thread()
        done.add_done_callback(self._is_served)
        return done

    def _is_served(self, _: object) -> None:
        with self._lock:
            self._served -= 1
            if self._served or self._holder is not self._thread:
                return
        if running_loop() is self._loop:
            # At once: whoever was served may call again, and is to find nobody here.
            self._loop.stop()
        else:
            self._interrupt()

    def _wake_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="harness-loop", daemon=True)
            self._thread.start()
        self._holder = self._thread
        self._due.release()

    def _serve(self) -> None:
        while self._due.acquire() and not self._ended.is_set():
            try:
                while self._has_to_serve():
                    self._loop.run_forever()
            except BaseException:
                # Only what ends a process gets here, and its caller has been told.
                self._retire(self._thread)
                raise

    def _has_to_serve(self) -> bool:
        with self._lock:
            if self._served and not self.is_ending:
                return True
        self._pass_on()
        return False

    # --- the end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """Let the calls that are under way finish, and close everything; safe to repeat."""
        here = running_loop()
        with self._lock:
            self.is_ending = True
            idle = self._holder is None
            if idle:
                self._holder = self
        if not idle:
            self._interrupt()
        elif here is None:
            self._finish()
        else:
            self._finish_aside()
        if here is not self._loop:
            self._ended.wait()

    def let_go(self) -> None:
        """Do what `end` does, and don't wait for it: this may be any thread, in the middle of anything."""
        with self._lock:
            self.is_ending = True
            idle = self._holder is None
            if idle:
                self._holder = self
        if idle:
            # A `Thread` takes locks that may be held right here, and so it is started by what is none.
            with suppress(RuntimeError):
                _thread.start_new_thread(self._finish_aside, ())
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _retire(self, holder: object) -> None:
        """Take no more calls, where the loop was run by one who has been interrupted."""
        with self._lock:
            if self._holder is not holder:
                return
            self.is_ending = True
            self._holder = self
        self._finish_aside()

    def _finish_aside(self) -> None:
        threading.Thread(target=self._finish, name="harness-loop", daemon=True).start()

    def _finish(self) -> None:
        """End as `asyncio.run` does: nothing that is still waiting is left behind."""
        loop, self._holder = self._loop, self
        try:
            for work in (_end_tasks, loop.shutdown_asyncgens, loop.shutdown_default_executor):
                last = loop.create_task(work())
                last.add_done_callback(self._stop)
                # It may be told to stop by what had begun before.
                while not last.done():
                    loop.run_forever()
                last.result()
        finally:
            loop.close()
            self._ended.set()
            self._due.release()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return this thread's event loop, if one is running."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _may_be_interrupted() -> bool:
    """Tell whether a signal handler that isn't Python's own may run, and raise, wherever this thread is."""
    return _is_main() and any(handler not in _HARMLESS for handler in map(_signal.getsignal, _SIGNALS))


@contextmanager
def _interrupts_cancel(loop: asyncio.AbstractEventLoop) -> Iterator[list[asyncio.Task[Any]]]:
    """Have an interrupt from the keyboard cancel tasks of a loop that runs here, and be raised after that."""
    tasks: list[asyncio.Task[Any]] = []
    if not _is_main() or _signal.getsignal(_SIGINT) is not signal.default_int_handler:
        yield tasks
        return
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        for task in tasks:
            loop.call_soon_threadsafe(task.cancel)

    _signal.signal(_SIGINT, interrupt)
    try:
        yield tasks
    finally:
        if _signal.getsignal(_SIGINT) is interrupt:
            _signal.signal(_SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt


def _is_main() -> bool:
    """Tell whether this is the thread that signal handlers run in."""
    return threading.get_ident() == threading.main_thread().ident


async def _end_tasks() -> None:
    # Calls may still come in while others end.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, late = await asyncio.wait(others, timeout=CLOSE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
