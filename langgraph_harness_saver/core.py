"""What a saver does, told in rows: async only, awaiting the store and nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from langgraph_harness_saver.cache import ImageCache
from langgraph_harness_saver.codec import Codec, EncodedWrites
from langgraph_harness_saver.errors import (
    CorruptCheckpointError,
    EntangledError,
    HeadMovedError,
    SerializationError,
)
from langgraph_harness_saver.eventlog import EventLog
from langgraph_harness_saver.family import (
    adoption,
    ending,
    kept_slots,
    reader_of,
    removal,
    standalone,
    unused_parts,
)
from langgraph_harness_saver.keeping import Keeping
from langgraph_harness_saver.lineage import Lineage, Memory, Walk
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import (
    Base,
    Change,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Family,
    Kind,
    Noted,
    Page,
    PartRow,
    PutResult,
    Query,
    Span,
    WriteRow,
    branches_below,
)
from langgraph_harness_saver.runs import Runs
from langgraph_harness_saver.slots import Dump, Image, revision
from langgraph_harness_saver.stores.base import ANY_HEAD, Known, Store, Unconditional
from langgraph_harness_saver.written import WrittenParts

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAGE, PAGE = 8, 64
EVENT_PAGE = 200


class Stored(NamedTuple):
    """One checkpoint as it is stored, decoded to bytes; values are made fresh from it."""

    row: CheckpointRow
    image: Image
    metadata: dict[str, Any]
    writes: Sequence[Sequence[Any]]
    parts: WrittenParts


class Selection(NamedTuple):
    """What `Core.list` is asked for."""

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    filter: Mapping[str, Any] | None = None
    limit: int | None = None


class Core:
    """Reads and writes checkpoints through a codec, a store and a cache."""

    def __init__(
        self,
        store: Store,
        codec: Codec,
        cache: ImageCache,
        memory: Memory,
        keeping: Keeping | None = None,
        log: EventLog | None = None,
        runs: Runs | None = None,
    ) -> None:
        self.log = log
        self.runs = runs or Runs()
        self.store = store
        self.codec = codec
        self.cache = cache
        self.lineage = Lineage(store, codec, memory)
        self.keeping = keeping

    # --- writing -----------------------------------------------------------------------------------

    def put(
        self,
        key: CheckpointKey,
        parent_id: str | None,
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        new_versions: Mapping[str, Any],
        done: T,
        head: str | Unconditional | None = ANY_HEAD,
    ) -> Coroutine[Any, Any, T]:
        """Store a checkpoint, as differences from its parent where these pay; return `done`.

        Values are taken here and now, before anything is awaited or handed to another thread: the graph
        goes on and changes them in place.
        """
        again = parent_id == key.checkpoint_id
        parent = None if parent_id is None or again else CheckpointKey(key[0], key[1], parent_id)
        base = self.cache.get(parent) if parent else None
        dump = self.codec.dump(checkpoint, metadata, new_versions, base, key.thread_id)
        if dump.run_id is not None:
            self.runs.made(dump.run_id, key)
        if again:
            return self._put_again(key, None, dump, done, head, keep_parent=True)
        return self.put_dump(key, parent, dump, base, done, head)

    # Few coroutines stand between a caller and the store, and those hold little: hundreds may wait there.
    async def put_dump(
        self,
        key: CheckpointKey,
        parent: CheckpointKey | None,
        dump: Dump,
        base: Image | None,
        done: T,
        head: str | Unconditional | None = ANY_HEAD,
        *,
        whole: bool = False,
    ) -> T:
        """Store what `Codec.dump` took, as `put` does; `whole`: so that reading it takes no other row."""
        await self.store.open()
        parent_id = parent.checkpoint_id if parent else None
        if base is None and parent is not None:
            base = await self._image(parent)
            if base is None:
                return await self._put_again(key, parent_id, dump, done, head)
        read_again = False
        while True:
            row, parts, image = self.codec.encode(key, parent_id, dump, None if whole else base)
            needed = Base(base.key, base.rev) if base else None
            keep = self.keeping.with_put(image) if self.keeping is not None else None
            try:
                result = await self.store.put(row, parts, base=needed, head=head, keep=keep)
            except EntangledError:
                await self.end(key.thread_id, expired=True)
                continue
            if result != PutResult.BASE_GONE or parent is None:
                break
            # Another process has pruned or deleted the parent since it was cached.
            self.cache.drop(parent)
            base = None if read_again else await self._image(parent)
            if base is None and not read_again:
                return await self._put_again(key, parent_id, dump, done, head)
            read_again = True
        if result == PutResult.OCCUPIED:
            return await self._put_again(key, parent_id, dump, done, head)
        self.cache.add(image)
        if self.keeping is not None:
            kept = keep if result == PutResult.KEPT else None
            await self.keeping.after_put(self, row, image, parts, kept)
        return done

    async def _put_again(
        self,
        key: CheckpointKey,
        given_parent: str | None,
        dump: Dump,
        done: T,
        head: str | Unconditional | None,
        *,
        keep_parent: bool = False,
    ) -> T:
        """Replace a checkpoint, leaving what others need of the one that was there.

        So is one added whose parent isn't there, for that may have been retired. With `keep_parent`, which a
        put under the checkpoint's own config wants, its parent stays too.
        """

        def plan(family: Family) -> Change:
            there = family.rows.get(key)
            parent_id = there.parent_id if keep_parent and there else given_parent
            parent = parent_id and family.find(key._replace(checkpoint_id=parent_id), family.rows)
            base = None
            if parent:
                base = reader_of(self.codec, family.rows, family).image(family.rows[parent])
            keep = kept_slots(self.codec, family, key)
            encoded = self.codec.encode(key, parent_id, dump, base, keep)
            if there is None or (there.kind, there.rev) != (Kind.LIVE, encoded.row.rev):
                # The same once more is what a repeated call is, whose answer was lost.
                _check_head(family, key, head)
            rows, parts = adoption(self.codec, family, encoded)
            unused = unused_parts(family, {**family.rows, **{row.key: row for row in rows}})
            return Change(
                rows,
                # Those of one that was retired aren't its.
                writes={key: ()} if there and there.kind == Kind.HIDDEN and there.metadata else {},
                parts=parts,
                drop_parts=unused - {part.part_id for part in parts},
                renews=True,
            )

        await self.store.open()
        self.cache.drop(key)
        await self.end(key.thread_id, expired=True)
        await self.store.revise(key.thread_id, plan)
        await self.keep(key)
        return done

    async def keep(self, key: CheckpointKey) -> None:
        """Let go what is to go now that a checkpoint was added otherwise than by `put`."""
        if self.keeping is not None:
            await self.keeping.keep(self, key)

    def put_writes(
        self,
        key: CheckpointKey,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Store writes of one task, as they are now; see `put`."""
        dumped = self.codec.dump_writes(writes, key.thread_id)
        encoded = self.codec.encode_writes(dumped, task_id, task_path, key, self.cache)
        return self._put_writes(key, encoded, dumped, task_id, task_path, run_id)

    async def _put_writes(
        self,
        key: CheckpointKey,
        encoded: EncodedWrites,
        dumped: Sequence[list[Any]],
        task_id: str,
        task_path: str,
        run_id: str | None,
    ) -> None:
        await self.store.open()
        while encoded.rows:
            rows, parts = encoded.rows, encoded.parts
            if run_id is not None:
                await self.runs.writes(run_id, key, rows, self.store)
            try:
                result = await self.store.put_writes(key, rows, parts)
            except EntangledError:
                # It has expired, and is to begin anew.
                await self.end(key.thread_id, expired=True)
                continue
            if result != PutResult.BASE_GONE:
                encoded.are_stored()
                if self.keeping is not None:
                    self.keeping.grew(key.thread_id, rows, parts)
                return
            # Another process has deleted what these would be differences from.
            encoded = self.codec.encode_writes(dumped, task_id, task_path, key, self.cache, whole=True)

    # --- reading -----------------------------------------------------------------------------------

    async def get(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Stored | None:
        """Return one checkpoint; without an id, the latest.

        Of what a branch doesn't hold itself it reads its ancestors, and what subgraphs made under these.
        """
        stored = await self._read(thread_id, checkpoint_ns, checkpoint_id)
        if stored is not None and stored.row.key.thread_id != thread_id:
            return stored if await self.lineage.leads_to(thread_id, stored.row) else None
        return stored

    async def _read(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Stored | None:
        await self.store.open()
        held = _Held(self.cache)
        guess = held.guess(thread_id, checkpoint_ns, checkpoint_id)
        page = await self.store.get(thread_id, checkpoint_ns, checkpoint_id, held.known, guess)
        if not page.entries and checkpoint_id is not None:
            page = await self.lineage.page(CheckpointKey(thread_id, checkpoint_ns, checkpoint_id), held.known)
        elif not page.entries and ":" in checkpoint_ns:
            # A task that goes on where a branch's ancestor was interrupted.
            page = await self.lineage.latest(thread_id, checkpoint_ns, None, held.known)
        for stored in self._decode(page, held):
            self.cache.add(stored.image)
            return stored
        return None

    async def page(self, key: CheckpointKey, known: Known) -> Page:
        """Return one checkpoint as the store has it, of a branch also what its sources hold."""
        page = await self.store.get(*key, known)
        return page if page.entries else await self.lineage.page(key, known)

    async def _image(self, key: CheckpointKey) -> Image | None:
        stored = await self._read(*key)
        return stored.image if stored else None

    async def pages(self, selection: Selection) -> AsyncIterator[list[Stored]]:
        """Yield pages of checkpoints, newest id first."""
        await self.store.open()
        left = selection.limit
        size = FIRST_PAGE
        query = self._query(selection)
        while left is None or left > 0:
            size = size if left is None else min(size, left)
            held = _Held(self.cache)
            page = await self.store.scan(query, size, held.known)
            if not page.entries and query.thread_id and query.checkpoint_ns and _looks_back(selection):
                line = (query.thread_id, query.checkpoint_ns, query.before)
                page = await self.lineage.latest(*line, held.known)
            yield self._decode(page, held)
            if len(page.entries) < size:
                return
            left = None if left is None else left - size
            query = replace(query, after=page.entries[-1].row.key)
            size = PAGE

    def _query(self, selection: Selection) -> Query:
        wanted = selection.filter
        matches: Callable[[bytes], bool] | None = None
        if wanted:

            def matches(data: bytes) -> bool:
                try:
                    return contains(self.codec.unpack_metadata(data), wanted)
                except SerializationError as error:
                    # One checkpoint that can't be read here must not hide all the others.
                    logger.warning("a checkpoint is left out of a filtered list: %s", error)
                    return False

        return Query(
            thread_id=selection.thread_id,
            checkpoint_ns=selection.checkpoint_ns,
            checkpoint_id=selection.checkpoint_id,
            before=selection.before,
            matches=matches,
            filter=wanted,
        )

    def _decode(self, page: Page, held: _Held) -> list[Stored]:
        if not page.entries:
            return []
        reader, parts = Reader(self.codec, page, held.images), self.codec.written_parts(page.parts)
        # Oldest first: each is rebuilt from the one before.
        return [self._stored(reader, entry, parts) for entry in reversed(page.entries)][::-1]

    def _stored(self, reader: Reader, entry: Entry, parts: WrittenParts) -> Stored:
        row = entry.row
        if row.body and revision(row.body, row.metadata, row.parent_id) != row.rev:
            raise CorruptCheckpointError(
                f"{row.key} is not what was stored: its row has been damaged or changed by hand. Restore the "
                "database from a backup, or delete the thread; its other checkpoints may still be readable."
            )
        image = reader.image(row)
        if not row.body:
            # The store has left out what the cache has.
            row = row._replace(metadata=image.metadata)
        is_anchor = row.kind == Kind.ANCHOR
        writes = image.history if is_anchor else self.codec.merge_writes(entry.writes, row.key)
        return Stored(row, image, self.codec.unpack_metadata(row.metadata, row.key), writes, parts)

    def values(self, stored: Stored) -> dict[str, Any]:
        """Return fresh channel values."""
        return self.codec.channel_values(stored.image)

    def pending_writes(
        self, stored: Stored, channels: Collection[str] | None = None
    ) -> list[tuple[str, str, Any]]:
        """Return fresh pending writes, of all channels or of some."""
        items = [item for item in stored.writes if channels is None or item[2] in channels]
        return self.codec.load_writes(items, stored.parts, stored.row.key)

    async def delta_history(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return per channel the writes, oldest first, and the seed; see `get_delta_channel_history`."""
        missing: CheckpointKey | None = None
        while True:
            target = await self.get(thread_id, checkpoint_ns, checkpoint_id)
            if target is None or target.row.parent_id is None:
                return {channel: {"writes": []} for channel in channels}
            key = CheckpointKey(thread_id, checkpoint_ns, target.row.parent_id)
            ancestors = Walk(self.lineage, key, self._scan, self._one)
            history = await self._gather(ancestors, thread_id, channels)
            # An ancestor may be pruned while the walk is on its way, which then has to be taken again.
            if ancestors.missing is None or ancestors.missing == missing:
                return history
            missing = ancestors.missing

    async def _gather(
        self, ancestors: Walk[Stored], thread_id: str, channels: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        writes: dict[str, list[tuple[str, str, Any]]] = {channel: [] for channel in channels}
        seeds: dict[str, Any] = {}
        while len(seeds) < len(writes) and (stored := await ancestors.next()) is not None:
            open_channels = writes.keys() - seeds.keys()
            for write in reversed(self.pending_writes(stored, open_channels)):
                writes[write[1]].append(write)
            for channel in open_channels & stored.image.blobs.keys():
                seeds[channel] = self.codec.value(stored.image.blobs[channel], channel, thread_id)
        return {
            channel: {"writes": found[::-1], **({"seed": seeds[channel]} if channel in seeds else {})}
            for channel, found in writes.items()
        }

    async def _scan(self, query: Query, size: int, readers: Sequence[str]) -> Sequence[Stored]:
        held = _Held(self.cache)
        page = await self.store.scan(query, size, held.known)
        return self._decode(await self.lineage.joined(page, readers) if readers else page, held)

    async def _one(self, key: CheckpointKey) -> Stored | None:
        return await self._read(*key)

    # --- events ------------------------------------------------------------------------------------

    async def add_events(self, events: Sequence[Noted]) -> None:
        """Store events, of any threads."""
        await self.store.open()
        rows = [self.codec.encode_event(event) for event in events]
        if not rows:
            return
        try:
            await self.store.add_events(rows)
        except EntangledError:
            # One of the threads has expired, and is to begin anew.
            for thread_id in {event.thread_id: None for event in events}:
                await self.end(thread_id, expired=True)
            await self.store.add_events(rows)
        if self.keeping is not None:
            for row in rows:
                self.keeping.grew(row.thread_id, [row])

    async def events(
        self,
        thread_id: str,
        checkpoint_ids: Collection[str] | None = None,
        *,
        bare: bool = False,
        expired: bool = False,
    ) -> list[EventRow]:
        """Return a thread's own events, of some root checkpoints or all; with `bare` without their bodies."""
        await self.settle()
        await self.store.open()
        return [row async for row in self._event_rows(thread_id, checkpoint_ids, bare=bare, expired=expired)]

    async def event_bytes(self, thread_id: str) -> dict[str, int]:
        """Return how many bytes the events of a thread take, by the checkpoint that they hang on."""
        sizes: dict[str, int] = {}
        async for row in self._event_rows(thread_id, None, bare=False):
            sizes[row.checkpoint_id] = sizes.get(row.checkpoint_id, 0) + len(row.head) + len(row.body)
        return sizes

    async def _event_rows(
        self, thread_id: str, checkpoint_ids: Collection[str] | None, *, bare: bool, expired: bool = False
    ) -> AsyncIterator[EventRow]:
        after: EventRow | None = None
        while True:
            page = await self.store.events(
                thread_id, checkpoint_ids, after=after, size=EVENT_PAGE, bare=bare, expired=expired
            )
            for row in page:
                yield row
            if len(page) < EVENT_PAGE:
                return
            after = page[-1]

    async def settle(self) -> None:
        """Store the events that were handed over and still wait: they are to be read, or to go."""
        if self.log is not None:
            await self.log.settle()

    # --- deleting ----------------------------------------------------------------------------------

    async def delete_thread(self, thread_id: str) -> int:
        """Delete a thread; return how many checkpoints it had."""
        await self.settle()
        await self.store.open()
        try:
            return await self.store.delete_thread(thread_id)
        except EntangledError:
            # Of what has expired, nothing counts.
            await self.end(thread_id, expired=True)
            return await self.end(thread_id)

    async def delete_with_branches(self, thread_id: str) -> int:
        """Delete a thread and all that came of it together; return how many checkpoints they had."""
        await self.settle()
        await self.store.open()
        records = await self.store.branches(thread_id)
        if not records:
            return await self.delete_thread(thread_id)
        known = {thread_id, *(branch.thread_id for branch in records)}
        lines = await self.store.lines(known, 1)
        live = 0

        def plan(family: Family) -> Change:
            nonlocal live
            ends = {thread_id, *(b.thread_id for b in branches_below(family.branches.values(), thread_id))}
            # Of what has expired, nothing counts.
            counted = {name for name in ends if lines.get(name) or name not in known}
            live = sum(k.thread_id in counted and r.kind == Kind.LIVE for k, r in family.rows.items())
            return ending(self.codec, family, *ends)

        await self.store.revise(thread_id, plan)
        return live

    async def end(self, thread_id: str, *, expired: bool = False) -> int:
        """Delete a thread, leaving what others of its family need; return how many live checkpoints it had.

        With `expired` only if it has, else the answer is -1: a store keeps what has expired for its family's
        sake, and a revision would take it for alive.
        """
        live = -1

        def plan(family: Family) -> Change:
            nonlocal live
            live = sum(k.thread_id == thread_id and r.kind == Kind.LIVE for k, r in family.rows.items())
            return ending(self.codec, family, thread_id)

        done = await self.store.revise(thread_id, plan, expired=expired)
        # The plan may have been made more than once, and another process have come first in the end.
        return live if done or not expired else -1

    async def sweep(self) -> int:
        """Delete what has expired; return how many threads went."""
        swept = await self.store.sweep()
        for thread_id in await self.store.entangled():
            # Another process may have come first.
            swept += await self.end(thread_id, expired=True) >= 0
        return swept

    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of runs, in all threads, and what they wrote to those that they began at."""
        await self.settle()
        await self.store.open()
        runs = set(run_ids)
        if not runs:
            return
        threads = {*await self.store.threads_of_runs(sorted(runs)), *self.runs.threads(runs)}
        for thread_id in sorted(threads):
            await self._remove(thread_id, lambda rows: [r.key for r in rows if r.run_id in runs], runs)
        self.runs.forget(runs)

    async def prune(self, thread_ids: Sequence[str]) -> None:
        """Delete all but the latest checkpoint of each namespace."""
        await self.settle()
        await self.store.open()
        for thread_id in thread_ids:
            await self._remove(thread_id, _all_but_latest)

    async def _remove(
        self,
        thread_id: str,
        choose: Callable[[list[CheckpointRow]], list[CheckpointKey]],
        runs: Collection[str] = (),
    ) -> None:
        def plan(family: Family) -> Change:
            rows = [r for k, r in family.rows.items() if k.thread_id == thread_id and r.kind == Kind.LIVE]
            gone = choose(rows)
            writes = self.runs.without(runs, family, set(gone))
            if not gone and not writes:
                return Change()
            change = removal(self.codec, replace(family, writes={**family.writes, **writes}), gone)
            return replace(change, writes={**change.writes, **writes})

        await self.store.revise(thread_id, plan)

    async def copy_thread(self, source: str, target: str) -> None:
        """Copy a thread's checkpoints, writes and events; what the target has already is left as it is."""
        await self.settle()
        await self.store.open()
        if source == target:
            return
        for thread_id in (source, target):
            await self.end(thread_id, expired=True)
        family = standalone(self.codec, await self.store.load(source), source)
        events = [row._replace(thread_id=target) async for row in self._event_rows(source, None, bare=False)]
        if family.rows:
            await self.store.revise(target, lambda there: self._copy(family, there, events, source, target))

    def _copy(
        self, family: Family, there: Family, events: Sequence[EventRow], source: str, target: str
    ) -> Change:
        rows = {k: self._copied(r, target) for k, r in family.rows.items() if k.thread_id == source}
        missing = {
            k: r
            for k, r in rows.items()
            if r.key not in there.rows or there.rows[r.key].kind == Kind.HIDDEN != r.kind
        }
        parts: list[PartRow] = []
        if any(r.key in there.rows and there.rows[r.key].body != r.body for r in rows.values()):
            # What is there has gone its own way, so nothing new may lean on it.
            missing, parts = self._whole(family, missing, there)
        writes = {
            k._replace(thread_id=target): _merged(there.writes.get(k._replace(thread_id=target), ()), some)
            for k, some in family.writes.items()
            # What was written to an ancestor of a branch may be to a checkpoint that the target holds.
            if k in missing or not (k in family.rows or k._replace(thread_id=target) in there.rows)
        }
        named = _parts(family, missing, writes)
        return Change(
            rows=list(missing.values()),
            writes=writes,
            parts=[*parts, *named],
            events=[e for e in events if _belongs(e, missing, family, source)],
            # A target that has expired may have left its place to its branches, so it isn't always new.
            renews=True,
        )

    def _copied(self, row: CheckpointRow, target: str) -> CheckpointRow:
        metadata = row.metadata
        if row.kind != Kind.HIDDEN:
            decoded = self._metadata_or_nothing(row)
            if "thread_id" in decoded:
                metadata = self.codec.pack_metadata({**decoded, "thread_id": target}, target)
        return row._replace(
            key=row.key._replace(thread_id=target),
            metadata=metadata,
            rev=revision(row.body, metadata, row.parent_id),
            reach=tuple(Span(target, *span[1:]) for span in row.reach),
        )

    def _metadata_or_nothing(self, row: CheckpointRow) -> dict[str, Any]:
        try:
            return self.codec.unpack_metadata(row.metadata, row.key)
        except SerializationError as error:
            logger.warning("metadata is copied as it stands: %s", error)
            return {}

    def _whole(
        self, family: Family, rows: Mapping[CheckpointKey, CheckpointRow], there: Family
    ) -> tuple[dict[CheckpointKey, CheckpointRow], list[PartRow]]:
        reader = reader_of(self.codec, family.rows, family)
        whole: dict[CheckpointKey, CheckpointRow] = {}
        parts: list[PartRow] = []
        for key, row in rows.items():
            if row.kind != Kind.HIDDEN:
                kept = there.rows.get(row.key)
                keep = self.codec.open_body(kept.body, kept.key).slots if kept else {}
                encoded = self.codec.rebase(row, reader.image(family.rows[key]), keep)
                whole[key] = encoded.row
                parts += encoded.parts
        return whole, parts


class _Held:
    """Cached images that a page relies on, kept from being evicted until it is decoded."""

    def __init__(self, cache: ImageCache) -> None:
        self._cache = cache
        self.images: dict[CheckpointKey, Image] = {}

    def guess(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Base | None:
        """Name what a look-up is likely to find, if it is cached."""
        key = CheckpointKey(thread_id, checkpoint_ns, checkpoint_id or "")
        image = (
            self._cache.latest(thread_id, checkpoint_ns) if checkpoint_id is None else self._cache.get(key)
        )
        if image is None or image.history:
            return None
        self.images[image.key] = image
        return Base(image.key, image.rev)

    def known(self, key: CheckpointKey, rev: int) -> bool:
        image = self._cache.get(key)
        if image is None or image.rev != rev or image.history:
            # An anchor's writes may name parts, which an image doesn't hold.
            return False
        self.images[key] = image
        return True


def _looks_back(selection: Selection) -> bool:
    """Tell whether LangGraph looks for what a subgraph goes on from at an earlier checkpoint."""
    line = (selection.thread_id, selection.checkpoint_ns)
    return selection.before is not None and selection == Selection(*line, before=selection.before, limit=1)


def contains(value: Any, wanted: Any) -> bool:
    """Tell whether a value holds all of another, as Postgres' `@>` does: dicts by key, lists by member."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and contains(value[name], item) for name, item in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(
            any(contains(candidate, item) for candidate in value) for item in wanted
        )
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    return bool(value == wanted) or (value != value and wanted != wanted)


def _check_head(family: Family, key: CheckpointKey, expected: str | Unconditional | None) -> None:
    if isinstance(expected, Unconditional):
        return
    live = (k.checkpoint_id for k, r in family.rows.items() if k[:2] == key[:2] and r.kind == Kind.LIVE)
    actual = max(live, default=None)
    if actual != expected:
        raise HeadMovedError(expected, actual)


def _all_but_latest(rows: list[CheckpointRow]) -> list[CheckpointKey]:
    latest: dict[str, str] = {}
    for row in rows:
        _, checkpoint_ns, checkpoint_id = row.key
        latest[checkpoint_ns] = max(checkpoint_id, latest.get(checkpoint_ns, checkpoint_id))
    return [row.key for row in rows if row.key.checkpoint_id != latest[row.key.checkpoint_ns]]


def _belongs(event: EventRow, copied: Collection[CheckpointKey], family: Family, source: str) -> bool:
    """Tell whether an event is copied: with its checkpoint, or as nobody knows one."""
    key = CheckpointKey(source, "", event.checkpoint_id)
    return key in copied or key not in family.rows


def _merged(there: Sequence[WriteRow], more: Sequence[WriteRow]) -> Sequence[WriteRow]:
    return [*there, *(write for write in more if write not in there)]


def _parts(
    family: Family,
    rows: Mapping[CheckpointKey, CheckpointRow],
    writes: Mapping[CheckpointKey, Sequence[WriteRow]],
) -> list[PartRow]:
    named = {part for row in rows.values() for part in row.parts}
    named.update(part for some in writes.values() for write in some for part in write.parts)
    return [PartRow(part_id, family.parts[part_id]) for part_id in sorted(named) if part_id in family.parts]
