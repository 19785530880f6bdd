"""Channel values as a graph would see them: those of a `DeltaChannel` put together from what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.core import Stored
from langgraph_harness_saver.engine.compare import ABSENT, Unresolved
from langgraph_harness_saver.errors import CheckpointNotFoundError
from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.versions import is_unique

if TYPE_CHECKING:
    from langgraph_harness_saver.checkpointer import HarnessCheckpointer


class Values:
    """Reads checkpoints through a saver, and resolves what a graph's reducers make."""

    def __init__(self, checkpointer: HarnessCheckpointer, graph: Any) -> None:
        self._saver = checkpointer
        self._graph = graph

    @property
    def channels(self) -> Mapping[str, Any] | None:
        """The graph's channels by name, None without a graph."""
        return None if self._graph is None else self._graph.channels

    @property
    def delta_channels(self) -> list[str]:
        """The names of the graph's `DeltaChannel`s."""
        return [c for c, channel in (self.channels or {}).items() if hasattr(channel, "replay_writes")]

    async def tuple(self, key: CheckpointKey) -> CheckpointTuple:
        """Return a checkpoint as the saver does.

        Raises:
            CheckpointNotFoundError: It isn't there.
        """
        found = await self._saver.aget_tuple(_config(key))
        if found is None:
            raise CheckpointNotFoundError(f"{key} has just been deleted")
        return found

    async def latest(self, thread_id: str) -> CheckpointTuple | None:
        """Return a thread's latest checkpoint."""
        return await self._saver.aget_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})

    async def of(self, key: CheckpointKey) -> dict[str, Any]:
        """Return a checkpoint's channel values, those that can't be known as `Unresolved`."""
        return (await self.resolved(await self.tuple(key))).checkpoint["channel_values"]

    async def one(self, stored: Stored, channel: str) -> Any:
        """Return one channel's value, `ABSENT` if there is none."""
        blob = stored.image.blobs.get(channel)
        if blob is not None:
            value = self._saver._core.codec.value(blob, channel, stored.row.key.thread_id)
            return value.value if isinstance(value, _DeltaSnapshot) else value
        counted = stored.metadata.get("counters_since_delta_snapshot") or {}
        if channel in counted or channel in self.delta_channels:
            return (await self.of(stored.row.key)).get(channel, ABSENT)
        return ABSENT

    async def resolved(self, found: CheckpointTuple) -> CheckpointTuple:
        """Return the checkpoint with the values of its `DeltaChannel`s.

        Without the graph, one that isn't stored as such is `Unresolved`: the seed and how many writes.
        """
        stored = found.checkpoint["channel_values"]
        values = {c: v.value if isinstance(v, _DeltaSnapshot) else v for c, v in stored.items()}
        missing = [c for c in self._delta_channels(found) if c not in values]
        if missing:
            history = await self._saver.aget_delta_channel_history(config=found.config, channels=missing)
            for channel in missing:
                values[channel] = self._rebuilt(channel, found, history[channel])
        return found._replace(checkpoint={**found.checkpoint, "channel_values": values})

    def _delta_channels(self, found: CheckpointTuple) -> list[str]:
        # LangGraph counts, in the metadata, what each has had since its last snapshot.
        counted: Mapping[str, Any] = found.metadata.get("counters_since_delta_snapshot") or {}
        versions = found.checkpoint["channel_versions"]
        return [c for c in dict.fromkeys([*self.delta_channels, *counted]) if c in versions]

    def _rebuilt(self, channel: str, found: CheckpointTuple, history: Mapping[str, Any]) -> Any:
        if channel not in self.delta_channels:
            version = found.checkpoint["channel_versions"][channel]
            # A version that repeats doesn't tell one value from another.
            return Unresolved(None, len(history["writes"]), version if is_unique(version) else None)
        # LangGraph's word for no value at all; with a DeltaChannel at hand, langgraph is.
        from langgraph.channels.base import MISSING  # type: ignore[attr-defined]

        made = (self.channels or {})[channel].from_checkpoint(history.get("seed", MISSING))
        made.replay_writes(history["writes"])
        return made.get()


def _config(key: CheckpointKey) -> Any:
    thread_id, checkpoint_ns, checkpoint_id = key
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }
