"""The methods of an engine that take snapshots, and their twins for sync callers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from langgraph_harness_saver.engine.around import SnapshotScope, snapshotting
from langgraph_harness_saver.engine.snapshot_config import SnapshotConfig, SnapshotTrigger, Summarise
from langgraph_harness_saver.engine.taking import Request, Snapshots, trigger_of
from langgraph_harness_saver.errors import InvalidConfigError

if TYPE_CHECKING:
    from langgraph_harness_saver.checkpointer import HarnessCheckpointer
    from langgraph_harness_saver.engine.engine import CheckpointEngine

F = TypeVar("F", bound=Callable[..., Any])


class SnapshotMethods:
    """What `CheckpointEngine` does about snapshots."""

    _snapshots: Snapshots

    @property
    def config(self) -> SnapshotConfig:
        """Which snapshots are taken, and how they are stored."""
        return self._snapshots.config

    @property
    def snapshot_failures(self) -> int:
        """How many snapshots this engine has failed to take and logged instead of raising an error."""
        return self._snapshots.failures

    async def snapshot(
        self,
        thread_id: str,
        messages: Any = None,
        state: Any = None,
        tools_result: Any = None,
        trigger: SnapshotTrigger | str = SnapshotTrigger.MANUAL,
        parent_checkpoint_id: str | None = None,
        next_node: str = "",
        tags: str | Iterable[str] = (),
        summary: str | None = None,
        *,
        summarise: Summarise | None = None,
    ) -> str:
        """Store messages and state as a thread's next checkpoint; return its id.

        It is a checkpoint as a graph makes them, with a channel for each key of the state, and holds what it
        is given and nothing else: a graph with these keys goes on from it. What is stored is the state as it
        is when this is called, and whatever else is written to the thread meanwhile, it comes after that.

        Inside a run of a graph on the same thread it becomes an event of the step's checkpoint instead (see
        `events`), and that checkpoint's id is returned: a run and its thread's head stay as they are.

        Args:
            thread_id: A thread, which need not be there yet.
            messages: LangChain's, dicts with role and content, or (role, text): the channel `messages`. None
                if the state has a key of that name, or there are none.
            state: A mapping, a pydantic model or a dataclass, of what the saver's serializer can write.
            tools_result: The channel of that name; as with messages.
            trigger: What the snapshot is taken for; nothing is stored where the configuration doesn't have
                it, and an empty string returned.
            parent_checkpoint_id: The checkpoint that it follows, if that isn't the thread's head: a fork.
            next_node: The node that a graph goes on with.
            tags: Names to give it, as `tag` does; its metadata keeps them, too.
            summary: Its summary, instead of what is made of the last message or by `summarise`.
            summarise: Makes its summary of messages and state, instead of the configuration's: a function, or
                an async one. If it fails, that is logged, and the summary made as if there were none.

        Raises:
            InvalidConfigError: Something given can't be used; the graph has no such node; or the head is
                a graph's that has still something to run, and neither `next_node` nor `parent_checkpoint_id`
                says otherwise.
            SnapshotTooLargeError: It is larger than the configuration allows. Nothing is stored.
            SerializationError: The serializer can't write a value. Nothing is stored.
            CheckpointNotFoundError: There is no such parent.
        """
        return await self._snapshots.take(
            Request(
                thread_id,
                messages,
                state,
                tools_result,
                trigger,
                parent_checkpoint_id,
                next_node,
                tags,
                summary,
                summarise,
            )
        )

    async def snapshot_safe(self, *args: Any, **kwargs: Any) -> str:
        """Do what `snapshot` does; on an error, log it, count it and return an empty string."""
        request = Request(*args, **kwargs)
        return await self._snapshots.take_safely(lambda: request)

    def snapshot_on(self, trigger: SnapshotTrigger | str) -> Callable[[F], F]:
        """Take snapshots before and after each call of a function, and when it raises an error.

        For functions, async functions, generators of both kinds, and methods:

            @engine.snapshot_on(SnapshotTrigger.TOOL_CALL)
            async def search(query: str) -> str: ...

        The thread and the state are those of the scope that it is called in (`snapshot_scope`), or what its
        caller passes as `_checkpoint_thread_id` and `_checkpoint_state`, which the function doesn't see.
        Without either it is just called. What a tool returns, or the error, is the second snapshot's
        `tools_result`, unless the state has one; a message that an LLM call returns is added to the state's.

        The call comes first: a snapshot that can't be taken is logged and counted in `snapshot_failures`.
        Of a generator that isn't run to its end no second one is taken. Inside a run of a graph on the same
        thread, which is known without a scope, they become events, and so they do where a graph's checkpoint
        is the head of the thread.
        """
        if callable(trigger):
            raise InvalidConfigError(
                "snapshot_on is told for what: @engine.snapshot_on(SnapshotTrigger.TOOL_CALL)"
            )
        known = trigger_of(trigger)
        return functools.partial(snapshotting, self._snapshots, known)

    def snapshot_scope(
        self, thread_id: str, state: Any = None, *, tags: str | Iterable[str] = ()
    ) -> SnapshotScope:
        """Take a snapshot where a block of code begins and one where it ends, with the error if there is one.

        For `with` and `async with`; scopes may be nested. `state` is what `snapshot` takes, with the messages
        under `messages`, or a function that returns it; each snapshot takes it as it is at that time. With
        `interval_seconds` in the configuration there are some in between.

        The code comes first: a snapshot that can't be taken is logged and counted in `snapshot_failures`.
        As with `snapshot_on`, a graph's thread has events instead.
        """
        return SnapshotScope(self._snapshots, thread_id, state, tags=tags)


class SyncSnapshotMethods:
    """What `SyncEngine` does about snapshots otherwise than by waiting for the async method."""

    _engine: CheckpointEngine

    @property
    def config(self) -> SnapshotConfig:
        """See `CheckpointEngine.config`."""
        return self._engine.config

    @property
    def snapshot_failures(self) -> int:
        """See `CheckpointEngine.snapshot_failures`."""
        return self._engine.snapshot_failures

    def snapshot(self, *args: Any, **kwargs: Any) -> str:
        """Do what `CheckpointEngine.snapshot` does."""
        return self._engine._snapshots.take_waiting(Request(*args, **kwargs))

    def snapshot_safe(self, *args: Any, **kwargs: Any) -> str:
        """Do what `CheckpointEngine.snapshot_safe` does."""
        request = Request(*args, **kwargs)
        return self._engine._snapshots.take_safely_waiting(lambda: request)


def snapshots_of(checkpointer: HarnessCheckpointer, graph: Any, config: SnapshotConfig | None) -> Snapshots:
    """Return what takes an engine's snapshots.

    Raises:
        InvalidConfigError: The configuration is none.
    """
    if config is not None and not isinstance(config, SnapshotConfig):
        raise InvalidConfigError(
            f"an engine's config is a SnapshotConfig, not a {type(config).__name__}: "
            "CheckpointEngine(checkpointer, config=SnapshotConfig(triggers=['tool_call']))"
        )
    if config is not None and config.retention is not None:
        checkpointer.retention = config.retention
    return Snapshots(checkpointer, graph, config or SnapshotConfig())
