"""Snapshots around functions and blocks of code."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import inspect
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar

from langchain_core.messages import BaseMessage
from typing_extensions import Self

from langgraph_harness_saver.engine.arguments import thread_name
from langgraph_harness_saver.engine.incoming import MESSAGES, TOOLS_RESULT, listed, mapping_of
from langgraph_harness_saver.engine.places import current_place, stopped
from langgraph_harness_saver.engine.snapshot_config import SnapshotTrigger
from langgraph_harness_saver.engine.taking import Request, Snapshots
from langgraph_harness_saver.errors import InvalidConfigError

logger = logging.getLogger(__name__)

ERROR_LENGTH = 1000
_NOTHING = object()
"""The result of a call that has none yet."""
_RECORDED = (Exception, asyncio.CancelledError)
"""What ends a call and is worth a snapshot. A generator that is closed early may be so by the collector, amid
anything, and where a process is to end it shall."""
_scope: contextvars.ContextVar[SnapshotScope | None] = contextvars.ContextVar("harness_scope", default=None)


class _Around(ABC):
    """Takes a snapshot where a block of code begins and where it ends, for `with` and `async with`."""

    _phases: ClassVar[tuple[str, str]]

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    @abstractmethod
    def _request(self, phase: str, error: BaseException | None = None) -> Request | None:
        """Return what is to be taken, as it is now."""

    def __enter__(self) -> Self:
        self._snapshots.take_safely_waiting(lambda: self._request(self._phases[0]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, _RECORDED):
            self._snapshots.take_safely_waiting(lambda: self._ending(error))

    async def __aenter__(self) -> Self:
        await self._snapshots.take_safely(lambda: self._request(self._phases[0]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, _RECORDED):
            await self._snapshots.take_safely(lambda: self._ending(error))

    def _ending(self, error: BaseException | None) -> Request | None:
        asks = None if error is None else stopped(error)
        if asks is not None:
            request = self._request(self._phases[1])
            return dataclasses.replace(request, paused=asks) if request else None
        return self._request("error" if error else self._phases[1], error)


class SnapshotScope(_Around):
    """A block of code on a thread, see `CheckpointEngine.snapshot_scope`."""

    _phases = ("enter", "exit")

    def __init__(
        self, snapshots: Snapshots, thread_id: Any, state: Any = None, *, tags: str | Iterable[str] = ()
    ) -> None:
        super().__init__(snapshots)
        self.thread_id = thread_name(thread_id)
        self.state = state
        self._tags = tags
        self._outer: SnapshotScope | None = None
        self._inside = False
        self._timer: _Timer | _TimerTask | None = None

    def __enter__(self) -> Self:
        self._enter()
        super().__enter__()
        if seconds := self._interval:
            tick = functools.partial(self._request, "interval")
            self._timer = _Timer(seconds, lambda: self._snapshots.take_safely_waiting(tick))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._leave()
        if isinstance(timer, _Timer):
            timer.stop()
        super().__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        self._enter()
        await super().__aenter__()
        if seconds := self._interval:
            tick = functools.partial(self._request, "interval")
            self._timer = _TimerTask(seconds, lambda: self._snapshots.take_safely(tick))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._leave()
        if isinstance(timer, _TimerTask):
            await timer.stop()
        await super().__aexit__(kind, error, trace)

    def _request(self, phase: str, error: BaseException | None = None) -> Request:
        at = SnapshotTrigger.INTERVAL if phase == "interval" else SnapshotTrigger.TASK_BOUNDARY
        state = now(self.state)
        about = _about(phase, error)
        return Request(self.thread_id, None, state, trigger=at, tags=self._tags, about=about, aside=True)

    @property
    def _interval(self) -> float | None:
        wanted = self._snapshots.wants(SnapshotTrigger.INTERVAL)
        return self._snapshots.config.interval_seconds if wanted else None

    def _enter(self) -> None:
        if self._inside:
            raise InvalidConfigError(
                "this scope has been entered already: make another one for a block inside"
            )
        self._inside = True
        self._outer = _scope.get()
        _scope.set(self)

    def _leave(self) -> _Timer | _TimerTask | None:
        self._inside = False
        # No token: the end may come in another context than the beginning, as in a pytest fixture.
        _scope.set(self._outer)
        timer, self._timer = self._timer, None
        return timer


class _Timer:
    """Calls a function every so many seconds, in a thread."""

    def __init__(self, seconds: float, act: Callable[[], Any]) -> None:
        self._ended = threading.Event()
        # What is known of the scope and of a graph's run holds there, too.
        context = contextvars.copy_context()

        def serve() -> None:
            while not self._ended.wait(seconds):
                context.run(act)

        self._thread = threading.Thread(target=serve, name="harness-snapshots", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; a call that is under way is waited for."""
        self._ended.set()
        self._thread.join()


class _TimerTask:
    """Awaits a function every so many seconds, in a task."""

    def __init__(self, seconds: float, act: Callable[[], Any]) -> None:
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._serve(seconds, act))

    async def _serve(self, seconds: float, act: Callable[[], Any]) -> None:
        while True:
            try:
                await asyncio.wait_for(self._ended.wait(), seconds)
            except asyncio.TimeoutError:
                await act()
            else:
                return

    async def stop(self) -> None:
        """End it; a call that is under way is waited for."""
        self._ended.set()
        await self._task


def scope_of(snapshots: Snapshots) -> SnapshotScope | None:
    """Return the innermost scope of these snapshots that this code is in."""
    scope = _scope.get()
    while scope is not None and scope._snapshots is not snapshots:
        scope = scope._outer
    return scope


def snapshotting(snapshots: Snapshots, trigger: SnapshotTrigger, function: Any) -> Any:
    """Return a function that does the same, and of which snapshots are taken before and after.

    Raises:
        InvalidConfigError: It is no function.
    """
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(snapshotting(snapshots, trigger, function.__func__))
    if not callable(function) or isinstance(function, type) or hasattr(function, "ainvoke"):
        raise InvalidConfigError(
            f"snapshot_on takes a function, not {function!r}: write it right above the function's def, "
            "below @tool and the like"
        )
    calls = _Calls(snapshots, trigger, function)
    is_object = not inspect.isroutine(function) and not isinstance(function, functools.partial)
    body = function.__call__ if is_object else function
    for is_such, wrapped in (
        (inspect.isasyncgenfunction, _async_generator),
        (inspect.iscoroutinefunction, _coroutine),
        (inspect.isgeneratorfunction, _generator),
    ):
        if is_such(body):
            return wrapped(function, calls)
    return _plain(function, calls)


def _plain(function: Any, calls: _Calls) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with calls(kwargs) as call:
            call.result = function(*args, **kwargs)
            return call.result

    return wrapper


def _coroutine(function: Any, calls: _Calls) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with calls(kwargs) as call:
            call.result = await function(*args, **kwargs)
            return call.result

    return wrapper


def _generator(function: Any, calls: _Calls) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with calls(kwargs) as call:
            call.result = yield from function(*args, **kwargs)
            return call.result

    return wrapper


def _async_generator(function: Any, calls: _Calls) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with calls(kwargs) as call:
            inner = function(*args, **kwargs)
            step = inner.__anext__
            try:
                while True:
                    try:
                        item = await step()
                    except StopAsyncIteration:
                        call.result = None
                        return
                    try:
                        step = functools.partial(inner.asend, (yield item))
                    except Exception as error:
                        # Thrown in by who iterates, and meant for what is wrapped.
                        step = functools.partial(inner.athrow, error)
            finally:
                await inner.aclose()

    return wrapper


class _Calls:
    """The calls of one function."""

    def __init__(self, snapshots: Snapshots, trigger: SnapshotTrigger, function: Any) -> None:
        self.snapshots = snapshots
        self.trigger = trigger
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._warned = False

    def __call__(self, kwargs: dict[str, Any]) -> _Call:
        """Begin a call; what is meant for snapshots is taken out of `kwargs`."""
        thread_id, state = kwargs.pop("_checkpoint_thread_id", None), kwargs.pop("_checkpoint_state", None)
        scope = scope_of(self.snapshots)
        if scope is not None and (thread_id is None or str(thread_id) == scope.thread_id):
            thread_id, state = scope.thread_id, scope.state if state is None else state
        if thread_id is None and (place := current_place()) is not None:
            thread_id = place.thread_id
        if thread_id is None and not self._warned:
            self._warned = True
            logger.warning(
                "no snapshots of %r: it is called outside of a scope and without _checkpoint_thread_id",
                self.name,
            )
        return _Call(self, thread_id, state)


class _Call(_Around):
    """One call of a function, on a thread or on none."""

    _phases = ("before", "after")

    def __init__(self, calls: _Calls, thread_id: Any, state: Any) -> None:
        super().__init__(calls.snapshots)
        self._calls, self._thread_id, self._state = calls, thread_id, state
        self.result: Any = _NOTHING

    def _request(self, phase: str, error: BaseException | None = None) -> Request | None:
        trigger = self._calls.trigger
        if self._thread_id is None or not self._snapshots.wants(trigger):
            return None
        state = mapping_of(now(self._state))
        answered = error is not None or self.result is not _NOTHING
        if answered and trigger == SnapshotTrigger.TOOL_CALL and TOOLS_RESULT not in state:
            state[TOOLS_RESULT] = [self._answer(error)]
        if phase == "after" and trigger == SnapshotTrigger.LLM_CALL and _is_message(self.result):
            messages = listed(state.get(MESSAGES))
            state[MESSAGES] = messages if self.result in messages else [*messages, self.result]
        about = {"call": self._calls.name, **_about(phase, error)}
        return Request(self._thread_id, None, state, trigger=trigger, about=about, aside=True)

    def _answer(self, error: BaseException | None) -> dict[str, Any]:
        """Return what a tool has answered, in the form of `Snapshot.tools_result`."""
        content = _told(error) if error else self._snapshots.storable(self.result)
        return {
            "tool_call_id": None,
            "name": self._calls.name,
            "args": None,
            "content": content,
            "status": "error" if error else "success",
        }


def now(state: Any) -> Any:
    """Return a state, as it is now where it is a function."""
    return state() if callable(state) else state


def _is_message(value: Any) -> bool:
    return isinstance(value, BaseMessage) or (
        isinstance(value, Mapping) and {"role", "content"} <= value.keys()
    )


def _about(phase: str, error: BaseException | None) -> dict[str, Any]:
    return {"phase": phase, **({"error": _told(error)} if error else {})}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
