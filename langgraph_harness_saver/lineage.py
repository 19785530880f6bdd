"""What a branch reads of the threads that it came from: its ancestors, nothing that came after."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.family import root_of
from langgraph_harness_saver.rows import Base, CheckpointKey, CheckpointRow, Entry, Page, Query, WriteRow
from langgraph_harness_saver.stores.base import Known, Store, all_known

FIRST_PAGE, LARGEST_PAGE = 8, 512
"""How many rows a walk reads at once at first, and later."""
MOST_LINES = 64
"""Of how many lines it is remembered which checkpoints lead to them."""
MOST_LONERS = 4096
"""Of how many threads it is remembered that they are nobody's branches."""


class HasRow(Protocol):
    """What a walk yields: a row with its writes, or all of it decoded."""

    @property
    def row(self) -> CheckpointRow:
        """The row."""


R = TypeVar("R", bound=HasRow)


Crossings = tuple[Base, ...]
"""The rows of a walk whose parents another thread holds, the branch's own first."""


class _Known(NamedTuple):
    """An ancestor's contents when it was met, and the way to it."""

    rev: int
    crossings: Crossings


class _Way(NamedTuple):
    """How far a walk has come: the row whose parent is next, and the crossings before it."""

    last: Base
    crossings: Crossings = ()


@dataclass(slots=True)
class _Line:
    """Ancestors of a branch on one line, as far as they have been walked, and where to go on."""

    known: dict[str, _Known] = field(default_factory=dict)
    waiting: dict[str, _Way] = field(default_factory=dict)


class Memory:
    """What all that use one store need not look up again."""

    def __init__(self) -> None:
        self._lines: OrderedDict[tuple[str, str], _Line] = OrderedDict()
        self._loners: OrderedDict[str, None] = OrderedDict()

    def line(self, thread_id: str, checkpoint_ns: str) -> _Line | None:
        """Return what is known of a line."""
        return self._lines.get((thread_id, checkpoint_ns))

    def set_line(self, thread_id: str, checkpoint_ns: str, line: _Line) -> None:
        """Remember a line."""
        self._lines[thread_id, checkpoint_ns] = line
        if len(self._lines) > MOST_LINES:
            self._lines.popitem(last=False)

    def is_loner(self, thread_id: str) -> bool:
        """Tell whether a thread is known to be no branch."""
        return thread_id in self._loners

    def add_loner(self, thread_id: str) -> None:
        """Remember that a thread is no branch, which it stays: a branch's thread begins as one."""
        self._loners[thread_id] = None
        if len(self._loners) > MOST_LONERS:
            self._loners.popitem(last=False)

    def begin(self, thread_id: str) -> None:
        """Forget what was known of a thread: it begins as a branch."""
        self._loners.pop(thread_id, None)


class Lineage:
    """Reads what a branch has from before it began, which other threads hold."""

    def __init__(self, store: Store, codec: Codec, memory: Memory) -> None:
        self.memory = memory
        self._store = store
        self._codec = codec

    async def sources(self, thread_id: str) -> list[str]:
        """Return the threads that a branch reads what it doesn't hold itself from, nearest first."""
        if self.memory.is_loner(thread_id):
            return []
        records = {branch.thread_id: branch for branch in await self._store.branches(thread_id)}
        found: list[str] = []
        branch = records.get(thread_id)
        if branch is None:
            self.memory.add_loner(thread_id)
        elif not branch.name:
            # It has been deleted, and is still asked by its own branches only.
            return found
        while branch is not None:
            found.append(branch.source)
            branch = records.get(branch.source)
        return found

    async def page(self, key: CheckpointKey, known: Known) -> Page:
        """Return a checkpoint that a thread's sources hold, wherever it stands in these."""
        chain = [key.thread_id, *await self.sources(key.thread_id)]
        for number, source in enumerate(chain[1:], 1):
            page = await self._store.get(source, *key[1:], known, expired=True)
            if page.entries:
                return await self.joined(page, chain[:number])
        return Page()

    async def joined(self, page: Page, readers: Sequence[str]) -> Page:
        """Add to a source's checkpoints what was written to them as a branch's.

        `readers` are the threads that these writes may be under: who reads, and those on the way to the
        source.
        """
        written: dict[str, list[WriteRow]] = {}
        parts = dict(page.parts)
        for reader in reversed(readers):
            more = await self._store.writes([e.row.key._replace(thread_id=reader) for e in page.entries])
            parts.update(more.parts)
            for key, rows in more.rows.items():
                written.setdefault(key.checkpoint_id, []).extend(rows)
        if not written:
            return page
        entries = [Entry(e.row, (*e.writes, *written.get(e.row.key.checkpoint_id, ()))) for e in page.entries]
        return replace(page, entries=entries, parts=parts)

    async def latest(self, thread_id: str, checkpoint_ns: str, before: str | None, known: Known) -> Page:
        """Return what a subgraph made last under an ancestor of a branch, of a smaller id than `before`."""
        chain = [thread_id, *await self.sources(thread_id)]
        for number, source in enumerate(chain[1:], 1):
            query: Query | None = Query(source, checkpoint_ns, before=before)
            while query is not None:
                page = await self._store.scan(query, FIRST_PAGE, known)
                for entry in page.entries:
                    if await self._is_under(thread_id, entry.row):
                        # Others of the page may be needed to read it.
                        bodies = {e.row.key: e.row.body for e in page.entries if e is not entry}
                        found = replace(page, entries=[entry], support={**page.support, **bodies})
                        return await self.joined(found, chain[:number])
                last = page.entries[-1].row.key if len(page.entries) == FIRST_PAGE else None
                query = Query(source, checkpoint_ns, before=before, after=last) if last else None
        return Page()

    def walk(self, key: CheckpointKey) -> Walk[Entry]:
        """Walk from a checkpoint on to its ancestors, as its thread reads them."""

        async def scan(query: Query, size: int, readers: Sequence[str]) -> Sequence[Entry]:
            page = await self._store.scan(query, size, all_known)
            return (await self.joined(page, readers) if readers else page).entries

        return Walk(self, key, scan, self._one)

    async def _one(self, key: CheckpointKey) -> Entry | None:
        page = await self._store.get(*key, all_known)
        page = page if page.entries else await self.page(key, all_known)
        return page.entries[0] if page.entries else None

    async def leads_to(self, thread_id: str, row: CheckpointRow) -> bool:
        """Tell whether a checkpoint of a source is an ancestor of what a branch holds, or made under one."""
        return await self._is_ancestor(thread_id, row) or (
            bool(row.key.checkpoint_ns) and await self._is_under(thread_id, row)
        )

    async def _is_under(self, thread_id: str, row: CheckpointRow) -> bool:
        root = await self._one(CheckpointKey(thread_id, "", root_of(self._codec, row) or ""))
        return root is not None and await self._is_ancestor(thread_id, root.row)

    async def _is_ancestor(self, thread_id: str, row: CheckpointRow) -> bool:
        checkpoint_ns, checkpoint_id = row.key[1:]
        line = self.memory.line(thread_id, checkpoint_ns)
        if line is not None and await self._walks_to(thread_id, row, line):
            known = line.known[checkpoint_id]
            if known.rev == row.rev and await self._stand(thread_id, known.crossings):
                return True
        # What was known may not be so any more: others delete, and begin anew under the same ids.
        line = _Line(waiting=await self._beginnings(thread_id, checkpoint_ns))
        self.memory.set_line(thread_id, checkpoint_ns, line)
        return await self._walks_to(thread_id, row, line)

    async def _stand(self, thread_id: str, crossings: Crossings) -> bool:
        """Tell whether the way to an ancestor is the one that was walked.

        Whoever deletes what lies on it, within a thread, links its ends again; whoever ends a thread
        changes the row that its branch goes on to, which is the crossing.
        """
        for key, rev in crossings:
            page = await self._store.get(*key, all_known, expired=key.thread_id != thread_id)
            if not page.entries or page.entries[0].row.rev != rev:
                return False
        return True

    async def _beginnings(self, thread_id: str, checkpoint_ns: str) -> dict[str, _Way]:
        """Return the parents of what a branch holds that it doesn't hold itself, and whose they are."""
        own: dict[str, CheckpointRow] = {}
        query: Query | None = Query(thread_id, checkpoint_ns)
        while query is not None:
            page = await self._store.scan(query, LARGEST_PAGE, all_known)
            own.update((e.row.key.checkpoint_id, e.row) for e in page.entries)
            last = page.entries[-1].row.key if len(page.entries) == LARGEST_PAGE else None
            query = Query(thread_id, checkpoint_ns, after=last) if last else None
        return {
            row.parent_id: _Way(Base(row.key, row.rev))
            for row in own.values()
            if row.parent_id is not None and row.parent_id not in own
        }

    async def _walks_to(self, thread_id: str, row: CheckpointRow, line: _Line) -> bool:
        """Go on from where a line has been walked to until a checkpoint is met."""
        wanted = row.key.checkpoint_id
        if wanted in line.known:
            return True
        found: dict[str, _Known] = {}
        waiting = dict(line.waiting)
        while waiting and wanted not in found:
            first, (last, crossings) = waiting.popitem()
            walk = self.walk(CheckpointKey(thread_id, row.key.checkpoint_ns, first))
            while walk.next_id not in found and (wanted not in found or walk.is_at_hand):
                entry = await walk.next()
                if entry is None:
                    break
                if last.key.thread_id != entry.row.key.thread_id:
                    crossings = (*crossings, last)
                last = Base(entry.row.key, entry.row.rev)
                found[last.key.checkpoint_id] = _Known(last.rev, crossings)
            if walk.next_id is not None and walk.next_id not in found:
                waiting[walk.next_id] = _Way(last, crossings)
        # Others may have walked meanwhile; what either has found was so when it was found.
        line.known.update(found)
        line.waiting = waiting
        return wanted in found


class Walk(Generic[R]):
    """Walks from a checkpoint to its ancestors, fetching a page of older ones at a time.

    `next_id` is what comes next, None at the end; `missing` names what was not there, if it ended so.
    """

    def __init__(
        self,
        lineage: Lineage,
        key: CheckpointKey,
        scan: Callable[[Query, int, Sequence[str]], Awaitable[Sequence[R]]],
        one: Callable[[CheckpointKey], Awaitable[R | None]],
    ) -> None:
        """Begin at a checkpoint.

        Args:
            lineage: Tells where else to look.
            key: The first that `next` returns, in the thread whose ancestors they are.
            scan: Returns a page of a thread, and adds what was written to it as of those named.
            one: Returns what a thread reads under a key.
        """
        self.next_id: str | None = key.checkpoint_id
        self.missing: CheckpointKey | None = None
        self._lineage = lineage
        self._line = key
        self._scan = scan
        self._one = one
        self._seen: set[str] = set()
        self._page: dict[str, R] = {}
        self._size = FIRST_PAGE

    @property
    def is_at_hand(self) -> bool:
        """Whether the next one has been fetched already."""
        return self.next_id in self._page

    async def next(self) -> R | None:
        """Return the next ancestor, None at the end."""
        if self.next_id is None or self.next_id in self._seen:
            self.next_id = None
            return None
        self._seen.add(self.next_id)
        key = self._line._replace(checkpoint_id=self.next_id)
        found = self._page.get(self.next_id) or await self._fetch(key)
        self.next_id = found.row.parent_id if found else None
        self.missing = None if found else key
        return found

    async def _fetch(self, key: CheckpointKey) -> R | None:
        self._page = {}
        lowest = await self._add(key, (), "")
        if key.checkpoint_id not in self._page:
            readers = [key.thread_id]
            for source in await self._lineage.sources(key.thread_id):
                lowest = await self._add(key._replace(thread_id=source), readers, lowest)
                if key.checkpoint_id in self._page:
                    break
                readers.append(source)
        self._size = min(4 * self._size, LARGEST_PAGE)
        return self._page.get(key.checkpoint_id) or await self._one(key)

    async def _add(self, key: CheckpointKey, readers: Sequence[str], lowest: str) -> str:
        """Add a thread's page, down to the id below which it isn't known what nearer threads hold."""
        # No string sorts between an id and the same with a NUL behind it.
        query = Query(key.thread_id, key.checkpoint_ns, before=key.checkpoint_id + "\x00")
        found = await self._scan(query, self._size, readers)
        for each in found:
            if each.row.key.checkpoint_id >= lowest:
                self._page.setdefault(each.row.key.checkpoint_id, each)
        return lowest if len(found) < self._size else max(lowest, found[-1].row.key.checkpoint_id)
