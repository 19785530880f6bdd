"""Events as they are read: a thread's own, and of a branch those that led to where it began."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from langgraph_harness_saver.core import Core
from langgraph_harness_saver.engine.events import Event, event_of
from langgraph_harness_saver.engine.lines import Lines
from langgraph_harness_saver.rows import Branch, CheckpointKey, EventRow


class EventLists:
    """Reads events through a core."""

    def __init__(self, core: Core, lines: Lines) -> None:
        self._core = core
        self._lines = lines

    async def of(
        self, thread_id: str, checkpoint_id: str | None = None, *, values: bool = True
    ) -> list[Event]:
        """Return a thread's events, of one checkpoint or all, in the order in which they began."""
        wanted = None if checkpoint_id is None else {checkpoint_id}
        rows = await self._core.events(thread_id, wanted, bare=not values)
        rows += await self._inherited(thread_id, wanted, bare=not values)
        if checkpoint_id is not None and not rows:
            # Those of a subgraph's checkpoint hang on the root's.
            whole = await self.of(thread_id, values=values)
            return [event for event in whole if event.checkpoint_id == checkpoint_id]
        return self._decoded(rows)

    async def shown(self, keys: Iterable[CheckpointKey]) -> dict[CheckpointKey, list[Event]]:
        """Return the events of root checkpoints, each thread's own, without their values."""
        by_thread: dict[str, set[str]] = {}
        for key in keys:
            by_thread.setdefault(key.thread_id, set()).add(key.checkpoint_id)
        await self._core.settle()
        found: dict[CheckpointKey, list[Event]] = {}
        for thread_id in await self._core.store.eventful(by_thread):
            for event in self._decoded(await self._core.events(thread_id, by_thread[thread_id], bare=True)):
                found.setdefault(CheckpointKey(thread_id, "", event.root_checkpoint_id), []).append(event)
        return found

    def _decoded(self, rows: Iterable[EventRow]) -> list[Event]:
        ordered = sorted(rows, key=lambda row: row.event_id)
        return [event_of(row, *self._core.codec.decode_event(row)) for row in ordered]

    async def _inherited(
        self, thread_id: str, wanted: Collection[str] | None, *, bare: bool
    ) -> list[EventRow]:
        """Return what had happened on a branch's line when it was made."""
        chain = await self._chain(thread_id)
        made = {record.source: record for record in chain}
        on_line: set[str] = set()
        found: list[EventRow] = []
        for record in chain:
            point = CheckpointKey(record.source, "", record.checkpoint_id)
            line = [entry.row.key async for entry in self._lines.ancestry(point)]
            if not on_line:
                on_line = {key.checkpoint_id for key in line}
                for source in {key.thread_id for key in line[1:]}:
                    ids = {key.checkpoint_id for key in line[1:] if key.thread_id == source}
                    found += await self._before(made[source], ids, wanted, bare=bare)
            if line and record.checkpoint_id in on_line and await self._was_leaf(record, line[0]):
                found += await self._before(
                    made[line[0].thread_id], {record.checkpoint_id}, wanted, bare=bare
                )
        return found

    async def _chain(self, thread_id: str) -> list[Branch]:
        """Return a branch's record, its source's, and so on; of a thread that is no branch none."""
        records = {record.thread_id: record for record in await self._core.store.branches(thread_id)}
        chain: list[Branch] = []
        record = records.get(thread_id)
        # One that has been deleted has no name, and is still asked by its own branches.
        while record is not None and (chain or record.name):
            chain.append(record)
            record = records.get(record.source)
        return chain

    async def _before(
        self, record: Branch, ids: set[str], wanted: Collection[str] | None, *, bare: bool
    ) -> list[EventRow]:
        """Return what had happened at checkpoints of a branch's source when it was made."""
        if wanted is not None:
            ids = ids & set(wanted)
        if not ids:
            return []
        rows = await self._core.events(record.source, ids, bare=bare, expired=True)
        return [row for row in rows if _began_at(row) <= record.created_at]

    async def _was_leaf(self, record: Branch, point: CheckpointKey) -> bool:
        """Tell whether nothing had come of a checkpoint when a branch was made of it.

        What had happened there was then still to lead on, for the branch as well.
        """
        children = [
            entry
            async for entry in self._lines.newest_first(point.thread_id)
            if entry.row.parent_id == point.checkpoint_id
        ]
        made = [item.created_at for item in await self._lines.items(children, {})]
        return not any(_seconds(ts) <= record.created_at for ts in made if ts is not None)


def _began_at(row: EventRow) -> float:
    """Return when an event began, in seconds since the epoch, as its id tells."""
    return int.from_bytes(row.event_id[:8], "big") / 1e9


def _seconds(ts: str) -> float:
    return datetime.fromisoformat(ts).timestamp()
