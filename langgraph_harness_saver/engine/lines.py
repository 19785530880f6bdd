"""Checkpoints as rows: walked, listed and described without decoding what their channels hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import INTERRUPT

from langgraph_harness_saver.channels import TASKS
from langgraph_harness_saver.core import Core, Stored
from langgraph_harness_saver.engine.glance import Glance, Glances
from langgraph_harness_saver.engine.routing import interrupts, next_nodes
from langgraph_harness_saver.engine.tree import TreeItem
from langgraph_harness_saver.errors import CheckpointNotFoundError
from langgraph_harness_saver.rows import CheckpointKey, Entry, Kind, Query
from langgraph_harness_saver.stores.base import all_known
from langgraph_harness_saver.travel import Travel

PAGE = 500
HEADS_PAGE = 4096
"""How many keys are looked at together for threads."""
ASKS = WRITES_IDX_MAP[INTERRUPT]


class Lines:
    """Reads rows through a core."""

    def __init__(self, core: Core, travel: Travel) -> None:
        self._core = core
        self._travel = travel

    async def newest_first(
        self, thread_id: str | None, checkpoint_ns: str | None = "", before: str | None = None
    ) -> AsyncIterator[Entry]:
        """Yield live checkpoints of one thread, or of all."""
        query: Query | None = Query(thread_id, checkpoint_ns, before=before)
        while query is not None:
            page = await self._core.store.scan(query, PAGE, all_known)
            for entry in page.entries:
                yield entry
            last = page.entries[-1].row.key if len(page.entries) == PAGE else None
            query = Query(thread_id, checkpoint_ns, before=before, after=last) if last else None

    async def holding(self, checkpoint_id: str) -> list[CheckpointKey]:
        """Return the keys of all root checkpoints of that id."""
        page = await self._core.store.scan(Query(None, "", checkpoint_id), PAGE, all_known)
        return [entry.row.key for entry in page.entries]

    async def ancestry(self, key: CheckpointKey) -> AsyncIterator[Entry]:
        """Yield a checkpoint, its parent, and so on; those of the threads that a branch came from as well."""
        walk = self._core.lineage.walk(key)
        while (entry := await walk.next()) is not None:
            yield entry

    async def down(self, thread_id: str) -> AsyncIterator[Entry]:
        """Yield a thread's head and its ancestors, newest first."""
        [keys] = await self.keys([thread_id], 1)
        for head in keys:
            async for entry in self.ancestry(head):
                yield entry

    async def to_head(self, thread_id: str) -> list[Entry]:
        """Return a thread's head and its ancestors, newest first.

        Raises:
            CheckpointNotFoundError: The thread has no checkpoint.
        """
        line = [entry async for entry in self.down(thread_id)]
        if not line:
            raise CheckpointNotFoundError(
                f"thread {thread_id!r} has no checkpoint; list_threads() names the threads that there are"
            )
        return line

    async def keys(self, thread_ids: Sequence[str], size: int | None = None) -> list[list[CheckpointKey]]:
        """Return the live root checkpoints of each of a family's threads, or the newest `size`."""
        found = await self._core.store.lines(thread_ids, size)
        return [[CheckpointKey(name, "", one) for one in found.get(name, ())] for name in thread_ids]

    async def read(self, keys: Collection[CheckpointKey]) -> list[Entry]:
        """Return those of some live checkpoints that are still there, in this order."""
        found = {entry.row.key: entry for entry in await self._core.store.rows(keys)}
        return [found[key] for key in keys if key in found and found[key].row.kind == Kind.LIVE]

    async def heads(self, wanted: int | None) -> AsyncIterator[list[Entry]]:
        """Yield the head of each thread, newest first, some at a time: about so many as are wanted."""
        seen: set[str] = set()
        after: CheckpointKey | None = None
        size = HEADS_PAGE if wanted is None else min(max(wanted, PAGE), HEADS_PAGE)
        while True:
            keys = await self._core.store.newest(after, size)
            heads: dict[str, CheckpointKey] = {}
            for key in keys:
                if key.thread_id not in seen:
                    heads.setdefault(key.thread_id, key)
            seen |= heads.keys()
            yield await self.read(list(heads.values())[:wanted])
            if len(keys) < size:
                return
            after, size = keys[-1], HEADS_PAGE

    def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return a checkpoint's metadata."""
        return self._core.codec.unpack_metadata(entry.row.metadata, entry.row.key)

    async def items(
        self,
        entries: Sequence[Entry],
        tags: Mapping[CheckpointKey, Iterable[str]],
        heads: Collection[CheckpointKey] | None = None,
    ) -> list[TreeItem]:
        """Describe checkpoints, those of one line best together: what one's header leaves out is another's.

        Of `heads` it tells what is left to run, of others what ran, as `graph.get_state` does; without
        `heads` nothing of the kind.
        """
        glances = Glances(self._core)
        glances.add(entries)
        found: list[TreeItem] = []
        # Oldest first: each header is what differs from the one before.
        for start in range(0, len(entries), PAGE):
            found += await self._items(glances, entries[::-1][start : start + PAGE], tags, heads)
        return found[::-1]

    async def items_at(
        self,
        keys: Sequence[CheckpointKey],
        tags: Mapping[CheckpointKey, Iterable[str]],
        heads: Collection[CheckpointKey] | None = None,
    ) -> list[TreeItem]:
        """Describe those of some checkpoints that are there; see `items`."""
        glances = Glances(self._core)
        found: list[TreeItem] = []
        for start in range(0, len(keys), PAGE):
            # All rows together would keep the garbage collector busy.
            entries = await self.read(keys[::-1][start : start + PAGE])
            glances.add(entries)
            found += await self._items(glances, entries, tags, heads)
        return found[::-1]

    async def _items(
        self,
        glances: Glances,
        entries: Sequence[Entry],
        tags: Mapping[CheckpointKey, Iterable[str]],
        heads: Collection[CheckpointKey] | None,
    ) -> list[TreeItem]:
        keys = [entry.row.key for entry in entries]
        seen = glances.times(keys) if heads is None else glances.routes(keys)
        each = iter(entries)
        return [self._item(next(each), glance, tags, heads) async for glance in seen]

    def _item(
        self,
        entry: Entry,
        glance: Glance,
        tags: Mapping[CheckpointKey, Iterable[str]],
        heads: Collection[CheckpointKey] | None,
    ) -> TreeItem:
        row, metadata = entry.row, self.metadata(entry)
        runs: tuple[str, ...] = ()
        asks: tuple[str, ...] = ()
        if heads is not None:
            runs, asks = self._next(entry, glance, metadata, live=row.key in heads)
        named = tuple(tags.get(row.key, ()))
        return TreeItem(*row.key, row.parent_id, metadata, glance.time, runs, asks, named)

    def _next(
        self, entry: Entry, glance: Glance, metadata: Mapping[str, Any], *, live: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return what runs next at a checkpoint, or ran, and the ids of what it waits for."""
        asks = any(write.call == ASKS for write in entry.writes)
        writes = self._writes(entry) if live or asks else ()
        runs = next_nodes(
            glance.routes,
            writes if live else (),
            checkpoint_ns=entry.row.key.checkpoint_ns,
            # Only of tasks that may have finished it takes their ids, which are made of it.
            step=metadata.get("step") if live else None,
            task_paths={write.task_id: write.task_path for write in entry.writes},
        )
        return runs, tuple(i.id for i in interrupts(writes, live=live)) if writes else ()

    def writers(self, entry: Entry, stored: Stored, channel: str) -> tuple[str, ...]:
        """Return the nodes that ran on a checkpoint and wrote to a channel, as their tasks' paths name."""
        wrote = {item[0] for item in stored.writes if item[2] == channel}
        tasks = stored.image.blobs.get(TASKS)
        sent = self._core.codec.value(tasks, TASKS, entry.row.key.thread_id) if tasks else ()
        names = [_node(write.task_path, sent or ()) for write in entry.writes if write.task_id in wrote]
        return tuple(dict.fromkeys(name for name in names if name))

    def _writes(self, entry: Entry) -> list[tuple[str, str, Any]]:
        """Return what a checkpoint's tasks wrote, only interrupts with their values."""
        codec, key = self._core.codec, entry.row.key
        merged = codec.merge_writes(entry.writes, key)
        here = [item for item in merged if item[2] == INTERRUPT and len(item) < 6]
        loaded = iter(codec.load_writes(here, codec.written_parts({}), key))
        return [
            next(loaded) if item[2] == INTERRUPT and len(item) < 6 else (item[0], item[2], ())
            for item in merged
        ]


def _node(path: str, sent: Sequence[Any]) -> str:
    kind, _, rest = path.removeprefix("~").partition(", ")
    if kind == "__pregel_pull":
        return rest
    number = rest.partition(",")[0]
    if kind == "__pregel_push" and number.isdecimal() and int(number) < len(sent):
        return str(getattr(sent[int(number)], "node", ""))
    return ""
