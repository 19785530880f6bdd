"""Checkpoints as rows: walked, listed and described without decoding what their channels hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.serde.types import INTERRUPT

from langgraph_harness_saver.channels import TASKS, is_routing
from langgraph_harness_saver.core import Core, Stored
from langgraph_harness_saver.engine.routing import interrupts, next_nodes
from langgraph_harness_saver.engine.tree import TreeItem
from langgraph_harness_saver.errors import CheckpointNotFoundError, CorruptCheckpointError
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import CheckpointKey, Entry, Page, Query
from langgraph_harness_saver.stores.base import all_known
from langgraph_harness_saver.travel import Travel

PAGE = 500


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

    async def to_head(self, thread_id: str) -> list[Entry]:
        """Return a thread's head and its ancestors, newest first.

        Raises:
            CheckpointNotFoundError: The thread has no checkpoint.
        """
        async for head in self.newest_first(thread_id):
            return [entry async for entry in self.ancestry(head.row.key)]
        raise CheckpointNotFoundError(
            f"thread {thread_id!r} has no checkpoint; list_threads() names the threads that there are"
        )

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
        bodies = {entry.row.key: entry.row.body for entry in entries}
        found: list[TreeItem] = []
        # Oldest first: each header is what differs from the one before.
        for number, entry in enumerate(reversed(entries)):
            if number % PAGE == 0:
                # One that remembers all of them would keep the garbage collector busy.
                reader = Reader(self._core.codec, Page((), bodies))
            found.append(await self._item(reader, entry, tuple(tags.get(entry.row.key, ())), heads))
        return found[::-1]

    async def _item(
        self, reader: Reader, entry: Entry, tags: tuple[str, ...], heads: Collection[CheckpointKey] | None
    ) -> TreeItem:
        row = entry.row
        if heads is None:
            time = await self._time(reader, row.key)
            return TreeItem(*row.key, row.parent_id, self.metadata(entry), time, tags=tags)
        header, values = await self._header(reader, entry)
        item = TreeItem(*row.key, row.parent_id, self.metadata(entry), header.ts, tags=tags)
        live = row.key in heads
        writes = self._writes(entry)
        checkpoint = {
            "id": row.key.checkpoint_id,
            "channel_values": values,
            "channel_versions": header.versions,
            "versions_seen": header.seen,
        }
        runs = next_nodes(
            checkpoint,
            writes if live else (),
            checkpoint_ns=row.key.checkpoint_ns,
            step=item.metadata.get("step"),
            task_paths={write.task_id: write.task_path for write in entry.writes},
        )
        asks = tuple(interrupt.id for interrupt in interrupts(writes, live=live))
        return item._replace(next=runs, interrupts=asks)

    async def _time(self, reader: Reader, key: CheckpointKey) -> Any:
        try:
            return reader.time(key)
        except CorruptCheckpointError:
            # It is a copy of what is not among these.
            return (await self._stored(key)).image.header.ts

    async def _header(self, reader: Reader, entry: Entry) -> tuple[Header, dict[str, Any]]:
        """Return a header, and the names of the channels with the values of those that route."""
        key = entry.row.key
        try:
            header, refs = reader.header(reader.head(key))
            names = list(refs)
            wanted = {c: ref for c, ref in refs.items() if is_routing(c)}
            blobs = {channel: reader.blob(ref) for channel, ref in wanted.items()}
        except (CorruptCheckpointError, KeyError):
            # What it leans on is not among these.
            stored = await self._stored(key)
            header, names = stored.image.header, list(stored.image.blobs)
            blobs = {c: blob for c, blob in stored.image.blobs.items() if is_routing(c)}
        values: dict[str, Any] = dict.fromkeys(names)
        values.update((c, self._core.codec.value(blob, c, key.thread_id)) for c, blob in blobs.items())
        return header, values

    async def _stored(self, key: CheckpointKey) -> Stored:
        stored = await self._core.get(*key)
        if stored is None:
            raise CheckpointNotFoundError(f"{key} has just been deleted; list again")
        return stored

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
        loaded = iter(
            codec.load_writes([item for item in merged if item[2] == INTERRUPT and len(item) < 6], {}, key)
        )
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
