"""What checkpoints tell of themselves without their state: when they were made, what they were routed by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.core import Core
from langgraph_harness_saver.errors import CheckpointNotFoundError, CorruptCheckpointError
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import CheckpointKey, Entry, Page
from langgraph_harness_saver.slots import ALIAS, Blob, Ref, Slot

AT_ONCE = 64
"""Of how many checkpoints the headers are decoded together."""
SHORT_BYTES = 64
"""Values of up to this size are mostly the same few, and are decoded once."""


class Glance(NamedTuple):
    """What was seen of a checkpoint.

    `routes` is what `next_nodes` takes for a checkpoint: the names of its channels, the values of those alone
    that say what runs next. Empty, unless it was asked for.
    """

    time: Any
    routes: Mapping[str, Any]


class Glances:
    """Looks at checkpoints whose rows have been read, and reads what their headers lean on besides."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._reader = Reader(core.codec, Page())
        self._values: dict[tuple[str, bytes], Any] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Know rows that have been read."""
        self._reader.add({entry.row.key: entry.row.body for entry in entries})

    async def times(self, keys: Sequence[CheckpointKey]) -> AsyncIterator[Glance]:
        """Look when checkpoints were made."""
        await self._begin(keys, _is_alias)
        for key in keys:
            yield self._time(key) or await self._anew(key)

    async def routes(self, keys: Sequence[CheckpointKey]) -> AsyncIterator[Glance]:
        """Look what runs next at checkpoints; those of one line best oldest first."""
        await self._begin(keys, _is_difference)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            # The headers of all would keep the garbage collector busy.
            self._reader.forget(bodies=False)
            await self._fetch((ref for key in some for ref in self._routing(key)), _is_difference)
            for key in some:
                yield self._route(key) or await self._anew(key)

    async def _begin(self, keys: Sequence[CheckpointKey], leans: Callable[[Slot], bool]) -> None:
        self._reader.forget()
        await self._fetch(map(self._reader.head, keys), leans)

    async def _fetch(self, refs: Iterable[Ref], leans: Callable[[Slot], bool]) -> None:
        """Read the rows of slots and of those below them that aren't among the ones that have been read."""
        wanted, seen = set(refs), set[Ref]()
        while wanted:
            missing = {ref.key for ref in wanted if not self._reader.has(ref.key)}
            if missing:
                self.add(await self._core.store.rows(missing))
            seen |= wanted
            slots = [slot for ref in wanted if (slot := self._slot(ref)) is not None and leans(slot)]
            wanted = {slot.base for slot in slots if slot.base is not None} - seen

    def _slot(self, ref: Ref) -> Slot | None:
        try:
            return self._reader.slot(ref)
        except CorruptCheckpointError:
            # Others have changed it since; what needs it is read anew.
            return None

    def _routing(self, key: CheckpointKey) -> list[Ref]:
        try:
            _, refs = self._reader.header(self._reader.head(key))
        except CorruptCheckpointError:
            return []
        return [ref for channel, ref in refs.items() if is_routing(channel)]

    def _time(self, key: CheckpointKey) -> Glance | None:
        try:
            return Glance(self._reader.time(key), {})
        except CorruptCheckpointError:
            return None

    def _route(self, key: CheckpointKey) -> Glance | None:
        try:
            header, refs = self._reader.header(self._reader.head(key))
            return self._made(key, header, refs, self._reader.blob)
        except CorruptCheckpointError:
            return None

    async def _anew(self, key: CheckpointKey) -> Glance:
        """Look at a checkpoint that can't be read from what was read at different times, or without parts."""
        stored = await self._core.get(*key)
        if stored is None:
            raise CheckpointNotFoundError(f"{key} has just been deleted; list again")
        return self._made(key, stored.image.header, stored.image.blobs, lambda blob: blob)

    def _made(
        self, key: CheckpointKey, header: Header, places: Mapping[str, Any], blob: Callable[[Any], Blob]
    ) -> Glance:
        values = dict.fromkeys(places)
        for channel, place in places.items():
            if is_routing(channel):
                values[channel] = self._value(blob(place), channel, key.thread_id)
        routes = {
            "id": key.checkpoint_id,
            "channel_values": values,
            "channel_versions": header.versions,
            "versions_seen": header.seen,
        }
        return Glance(header.ts, routes)

    def _value(self, blob: Blob, channel: str, thread_id: str) -> Any:
        if len(blob.data) > SHORT_BYTES:
            return self._core.codec.value(blob, channel, thread_id)
        known = blob[:2]
        if known not in self._values:
            self._values[known] = self._core.codec.value(blob, channel, thread_id)
        return self._values[known]


def _is_alias(slot: Slot) -> bool:
    return slot.kind == ALIAS


def _is_difference(slot: Slot) -> bool:
    return slot.base is not None
