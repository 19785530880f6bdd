"""Merging a branch into a thread: which checkpoints, and what is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.core import Core
from langgraph_harness_saver.engine.compare import Unresolved
from langgraph_harness_saver.engine.histories import Histories
from langgraph_harness_saver.engine.lines import Lines
from langgraph_harness_saver.engine.merge import check_strategy, merge
from langgraph_harness_saver.engine.routing import next_of
from langgraph_harness_saver.engine.sides import MergeConflict, Merged, MergeResult, Side, Strategy
from langgraph_harness_saver.engine.taking import DESCRIBED
from langgraph_harness_saver.engine.values import Values
from langgraph_harness_saver.engine.written import writes_since
from langgraph_harness_saver.errors import InvalidConfigError, StoreError
from langgraph_harness_saver.rows import Base, CheckpointKey, Entry, Graft, PutResult
from langgraph_harness_saver.travel import Carried, Travel, following, now_text
from langgraph_harness_saver.versions import next_version

_NOT_MERGED = DESCRIBED | {"run_id", "writes", "rewound_from"}
"""What of a head's metadata doesn't hold for what it is merged into."""


class _Parted(NamedTuple):
    """Two heads, where they parted, and what each has that the other hasn't."""

    ours: Entry
    theirs: Entry
    base: CheckpointKey
    our_steps: list[list[Entry]]
    their_steps: list[list[Entry]]
    moved: bool
    """Whether ours has come further than the base."""


class Merging:
    """Merges lines of one family."""

    def __init__(self, core: Core, travel: Travel, lines: Lines, values: Values) -> None:
        self._core = core
        self._travel = travel
        self._lines = lines
        self._values = values

    async def merge(self, branch_thread_id: str, into_thread_id: str, strategy: Strategy) -> MergeResult:
        """Do what `CheckpointEngine.merge_branch` says."""
        check_strategy(strategy)
        parted = await self._parted(branch_thread_id, into_thread_id)
        ours = await self._values.tuple(parted.ours.row.key)
        theirs = await self._values.tuple(parted.theirs.row.key)
        for found in (ours, theirs):
            _check_nothing_pending(found)
        parents = (_id(ours), _id(theirs))
        base_id = parted.base.checkpoint_id
        if not parted.moved:
            merged = Merged(values=await self._resolved(theirs))
            new_id = await self._write(parted, ours, theirs, merged)
            return MergeResult(new_id, into_thread_id, True, base_id, parents)
        _check_finished(theirs)
        merged = merge(
            await self._side(await self._values.tuple(parted.base), None),
            await self._side(ours, parted.our_steps),
            await self._side(theirs, parted.their_steps),
            strategy=strategy,
            channels=self._values.channels,
        )
        if merged.conflicts:
            raise MergeConflict(merged.conflicts)
        new_id = await self._write(parted, ours, theirs, merged)
        return MergeResult(
            new_id, into_thread_id, False, base_id, parents, merged.how, tuple(merged.resolved)
        )

    async def _parted(self, branch_thread_id: str, into_thread_id: str) -> _Parted:
        """Find where two lines parted, or where either was last merged into the other."""
        histories = Histories(self._travel, self._lines)
        ours = await histories.of(into_thread_id)
        theirs = await histories.of(branch_thread_id)
        # What leads to another has the lesser id. One that has been deleted is nobody's base.
        common = ours.names.keys() & theirs.names.keys()
        base = max((name for name in common if theirs.names[name] in theirs.entries), default=None)
        if base is None:
            raise InvalidConfigError(
                f"threads {branch_thread_id!r} and {into_thread_id!r} have no checkpoint in common; "
                "merge_branch takes a branch and the thread that it came from, or another branch of that"
            )
        entry = theirs.entries[theirs.names[base]]
        if entry is theirs.head:
            raise InvalidConfigError(
                f"branch {branch_thread_id!r} has nothing that thread {into_thread_id!r} hasn't"
            )
        moved = ours.entries.get(ours.names[base]) is not ours.head
        steps = ours.since(common), theirs.since(common)
        return _Parted(ours.head, theirs.head, entry.row.key, *steps, moved=moved)

    async def _resolved(self, found: CheckpointTuple) -> dict[str, Any]:
        return (await self._values.resolved(found)).checkpoint["channel_values"]

    async def _side(self, found: CheckpointTuple, stretches: list[list[Entry]] | None) -> Side:
        steps = None
        if stretches is not None:
            paths = [[await self._values.tuple(entry.row.key) for entry in line] for line in stretches]
            steps = writes_since(*paths)
        return Side(await self._resolved(found), found.checkpoint["channel_versions"], steps)

    async def _write(
        self, parted: _Parted, ours: CheckpointTuple, theirs: CheckpointTuple, merged: Merged
    ) -> str:
        """Store the merged head."""
        key = parted.ours.row.key
        carried = await self._carried(parted)
        new_key = key._replace(checkpoint_id=carried.root_id)
        taken: Mapping[str, Any] = (ours if parted.moved else theirs).checkpoint
        checkpoint = dict(taken)
        stored = dict(checkpoint["channel_values"])
        versions = dict(checkpoint["channel_versions"])
        if parted.moved:
            self._apply(merged, stored, versions, theirs.checkpoint["channel_versions"])
        else:
            stored.update(self._snapshots(merged.values, stored))
        checkpoint.update(
            id=new_key.checkpoint_id,
            ts=now_text(),
            channel_values=stored,
            channel_versions=versions,
            updated_channels=None,
        )
        metadata = {k: v for k, v in dict(ours.metadata).items() if k not in _NOT_MERGED}
        metadata["step"] = max(one.metadata.get("step", -1) for one in (ours, theirs)) + 1
        metadata["source"] = "update"
        metadata["merged_from"] = {
            "thread_id": parted.theirs.row.key.thread_id,
            "checkpoint_id": _id(theirs),
        }
        await self._store(parted, carried, checkpoint, metadata)
        return new_key.checkpoint_id

    async def _carried(self, parted: _Parted) -> Carried:
        """Return what stands before the merged head: where it is theirs, so is what subgraphs remember."""
        ours, theirs = parted.ours.row, parted.theirs.row
        if not parted.moved:
            return await self._travel.carried(parted.theirs, ours.key.thread_id)
        root_id = following(max(ours.key.checkpoint_id, theirs.key.checkpoint_id))
        return Carried(root_id, [], [], {(ours.key.thread_id, ""): ours.key.checkpoint_id})

    def _apply(
        self, merged: Merged, stored: dict[str, Any], versions: dict[str, Any], others: Mapping[str, Any]
    ) -> None:
        changed = {channel: merged.values[channel] for channel in merged.changed}
        stored.update(changed)
        for channel in merged.deleted:
            stored.pop(channel, None)
        stored.update(self._snapshots(changed, stored))
        highest = max((str(v) for v in (*versions.values(), *others.values())), default=None)
        version = next_version(highest)
        for channel in {*merged.changed, *merged.deleted}:
            versions[channel] = version

    def _snapshots(self, values: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a `DeltaChannel` is stored as where the line before it doesn't tell its value."""
        unresolved = [c for c, value in values.items() if isinstance(value, Unresolved)]
        if unresolved:
            raise InvalidConfigError(
                f"channels {', '.join(map(repr, unresolved))} are DeltaChannels, whose values only their "
                "graph can tell: make the engine with CheckpointEngine(checkpointer, graph)"
            )
        return {
            channel: _DeltaSnapshot(values[channel])
            for channel in self._values.delta_channels
            if channel in values
            and (channel not in stored or not isinstance(stored[channel], _DeltaSnapshot))
        }

    async def _store(
        self, parted: _Parted, carried: Carried, checkpoint: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        codec, head = self._core.codec, parted.ours.row
        # Most of what the new head holds is one side's.
        near = head if parted.moved else parted.theirs.row
        changed = StoreError(f"thread {near.key.thread_id!r} has changed in the meantime; merge again")
        if carried.heads[head.key.thread_id, ""] != head.key.checkpoint_id:
            raise changed
        stored = await self._core.get(*near.key)
        if stored is None or stored.row.rev != near.rev:
            raise changed
        key = head.key._replace(checkpoint_id=carried.root_id)
        dump = codec.dump(checkpoint, metadata, checkpoint["channel_versions"], None, key.thread_id)
        row, parts, _ = codec.encode(key, head.key.checkpoint_id, dump, stored.image)
        bases = [Base(head.key, head.rev), Base(near.key, near.rev), *carried.bases]
        graft = Graft([*carried.rows, row], bases, carried.heads, parts=parts)
        if await self._core.store.graft(graft) != PutResult.STORED:
            raise changed


def _check_nothing_pending(found: CheckpointTuple) -> None:
    if found.pending_writes:
        raise InvalidConfigError(
            f"thread {_thread(found)!r} has unfinished tasks or waits at an interrupt; let it run on, or "
            "rewind it to a checkpoint where nothing is pending, and merge then"
        )


def _check_finished(found: CheckpointTuple) -> None:
    if waiting := next_of(found, live=True):
        raise InvalidConfigError(
            f"thread {_thread(found)!r} has still to run {', '.join(map(repr, waiting))}, and a merge takes "
            "what has come of its run, not where it goes on; let it run to its end, and merge then"
        )


def _thread(found: CheckpointTuple) -> str:
    return str(found.config["configurable"]["thread_id"])


def _id(found: CheckpointTuple) -> str:
    return str(found.config["configurable"]["checkpoint_id"])
