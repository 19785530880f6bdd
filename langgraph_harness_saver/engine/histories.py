"""What led to a checkpoint, over all the lines that were merged into its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from langgraph_harness_saver.engine.lines import Lines
from langgraph_harness_saver.errors import CheckpointNotFoundError
from langgraph_harness_saver.rows import CheckpointKey, Entry
from langgraph_harness_saver.travel import Travel


class History:
    """A head and what led to it.

    `entries` come oldest first, what was merged in before the merge. `names` leads from a checkpoint's id,
    and from those that it is a copy of, to the id under which it is here; what was merged in has a name even
    if it has been deleted since.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.names: dict[str, str] = {}
        self._merges: set[str] = set()

    @property
    def head(self) -> Entry:
        return self.entries[next(reversed(self.entries))]

    def add(self, entry: Entry, copied: Collection[str], merged: str | None) -> None:
        """Add what came of those that are there."""
        own = entry.row.key.checkpoint_id
        self.entries[own] = entry
        self.names[own] = own
        for name in copied:
            self.names.setdefault(name, own)
        if merged is not None:
            self._merges.add(own)
            self.names.setdefault(merged, merged)

    def since(self, common: Collection[str]) -> list[list[Entry]]:
        """Return what came after what is common, as stretches in which each is the parent of the next.

        The first of each is where it goes on from. What a merge itself did isn't told: that is what the two
        sides brought.
        """
        old = {self.names[name] for name in common}
        found: list[list[Entry]] = []
        for own, entry in self.entries.items():
            parent = self.entries.get(entry.row.parent_id or "")
            if own in old or own in self._merges or parent is None:
                continue
            if not found or found[-1][-1] is not parent:
                found.append([parent])
            found[-1].append(entry)
        return found


class Histories:
    """Reads histories."""

    def __init__(self, travel: Travel, lines: Lines) -> None:
        self._travel = travel
        self._lines = lines

    async def of(self, thread_id: str) -> History:
        """Return the history of a thread's head.

        Raises:
            CheckpointNotFoundError: The thread has no checkpoint.
        """
        history = History()
        await self._add(history, await self._lines.to_head(thread_id))
        return history

    async def _add(self, history: History, line: list[Entry]) -> None:
        for entry in reversed(line):
            metadata = self._lines.metadata(entry)
            merged = metadata.get("merged_from")
            if merged is not None:
                await self._add(history, await self._merged(history, merged))
            copied = await self._copied(entry.row.key, metadata)
            history.add(entry, copied, merged and merged["checkpoint_id"])

    async def _merged(self, history: History, merged: dict[str, Any]) -> list[Entry]:
        """Return what a merge brought that isn't there yet, newest first."""
        found: list[Entry] = []
        key = CheckpointKey(merged["thread_id"], "", merged["checkpoint_id"])
        async for entry in self._lines.ancestry(key):
            if entry.row.key.checkpoint_id in history.entries:
                break
            found.append(entry)
        return found

    async def _copied(self, key: CheckpointKey, metadata: dict[str, Any]) -> list[str]:
        """Return the checkpoints that a rewind's is a copy of: one may be rewound to as well."""
        found: list[str] = []
        while (name := metadata.get("rewound_from")) is not None:
            found.append(name)
            try:
                source = await self._travel.entry(key._replace(checkpoint_id=name))
            except CheckpointNotFoundError:
                break
            metadata = self._lines.metadata(source)
        return found
