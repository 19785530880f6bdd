"""Pages of checkpoints, of one thread or of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from langgraph_harness_saver.rows import CheckpointKey, Entry, Page, Query, Writes
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.packing import encode
from langgraph_harness_saver.stores.redis_homes import Wanted
from langgraph_harness_saver.stores.redis_index import Index, Named
from langgraph_harness_saver.stores.redis_rows import (
    SHARDS,
    Home,
    entry_form,
    grouped_writes,
    id_form,
    line_of,
    page_of,
    pairs_of,
    past,
    place_of,
    read_entry,
    read_run,
    space_form,
    thread_form,
)
from langgraph_harness_saver.stores.redis_wires import Command, call, command

SCAN_ROWS = 256
"""How many rows are looked at together, at most, where a filter chooses among them."""
RUN_ENTRIES, RUNS_AT_ONCE = 100, 500
ALL, ROWS, BARE, HEAD = b"all", b"rows", b"bare", b"head"
"""How much is read of a row; see `read.lua`."""
NO_ROWS: Sequence[Sequence[bytes]] = ((), (), (), ())
"""What `read.lua` returns where nothing is."""


class _Step(NamedTuple):
    """Some checkpoints of a query, in order, and where to go on; None at its end."""

    page: Page
    after: CheckpointKey | None


class Scanner:
    """Looks for checkpoints by what a query says."""

    def __init__(self, index: Index, now: Callable[[], bytes]) -> None:
        self._index = index
        self._now = now
        self._walked: tuple[int, bytes] = (0, b"-")

    async def scan(self, query: Query, size: int, wholly: bytes = ALL) -> Page:
        """Return the next `size` checkpoints, fewer only at the end; `wholly`: how much of each."""
        pages: list[Page] = []
        found = 0
        wanted = size
        while found < size:
            step = await self._step(query, wanted, wholly)
            pages.append(await self._matching(query, step.page, size - found, wholly))
            found += len(pages[-1].entries)
            if step.after is None:
                break
            query = replace(query, after=step.after)
            wanted = min(2 * wanted, max(size, SCAN_ROWS))
        return _joined(pages)

    async def _step(self, query: Query, count: int, wholly: bytes) -> _Step:
        wanted = BARE if query.matches else wholly
        if query.thread_id is None:
            return await self._step_of_all(query, count, wanted)
        ask = partial(_ask_thread, query, count, wanted, self._now())
        home, reply = await self._index.homes.look_once(query.thread_id, ask, NO_ROWS)
        page = page_of(reply, home.family)
        return _Step(page, page.entries[-1].row.key if len(page.entries) == count else None)

    async def _matching(self, query: Query, page: Page, count: int, wholly: bytes) -> Page:
        """Read all of those that match, where the metadata alone has been read so far."""
        if not query.matches:
            return replace(page, entries=page.entries[:count])
        found = [entry.row.key for entry in page.entries if query.matches(entry.row.metadata)]
        read = await self.read(found[:count], wholly)
        # They may have changed since.
        entries = [entry for entry in read.entries if query.matches(entry.row.metadata)]
        return Page(entries, read.support, read.parts)

    async def read(self, keys: Sequence[CheckpointKey], wanted: bytes) -> Page:
        """Read those of some live checkpoints that are there, in this order."""
        by_thread: dict[str, list[CheckpointKey]] = {}
        for key in keys:
            by_thread.setdefault(key.thread_id, []).append(key)
        now = self._now()
        asked = [
            Wanted(thread_id, partial(_ask_keys, some, wanted, now), NO_ROWS)
            for thread_id, some in by_thread.items()
        ]
        pages = [page_of(reply, home.family) for home, reply in await self._index.homes.look(asked)]
        joined = _joined(pages)
        found = {entry.row.key: entry for entry in joined.entries}
        return Page([found[key] for key in keys if key in found], joined.support, joined.parts)

    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        """Read the writes of one thread's checkpoints."""

        def ask(home: Home) -> Command:
            places = [place_of(home.family, key) for key in keys]
            return call(SCRIPTS["read"], home.spot, (self._now(), ALL, b"writes", *places))

        home, (_, members, _, parts) = await self._index.homes.look_once(keys[0].thread_id, ask, NO_ROWS)
        return Writes(grouped_writes(members, home.family), pairs_of(parts))

    async def threads(self) -> set[str]:
        """Return all threads that have a checkpoint."""
        names: set[str] = set()
        query = Query()
        while True:
            step = await self._step_of_all(query, SCAN_ROWS, BARE)
            names.update(entry.row.key.thread_id for entry in step.page.entries)
            if step.after is None:
                return names
            query = Query(after=step.after)

    # --- over all threads --------------------------------------------------------------------------

    async def _step_of_all(self, query: Query, count: int, wanted: bytes) -> _Step:
        upper, lower = _entry_bounds(query)
        members, is_all = await self._entries(upper, lower, count)
        keys = [read_entry(member) for member in members][:count]
        after = None if is_all and len(members) <= count else keys[-1]
        if query.checkpoint_ns is not None:
            keys = [key for key in keys if key.checkpoint_ns == query.checkpoint_ns]
        page = await self.read(keys, wanted)
        await self._clean(keys, page)
        return _Step(page, after)

    async def _entries(self, upper: bytes, lower: bytes, count: int) -> tuple[list[bytes], bool]:
        """Return entries of all shards, greatest first, and whether these are all there are."""
        each = 2 * count // SHARDS + 2
        commands = [
            command(spot, b"ZREVRANGEBYLEX", spot.keys[0], upper, lower, b"LIMIT", b"0", b"%d" % each)
            for spot in map(self._index.spot, range(SHARDS))
        ]
        replies = await self._index.ask(commands)
        cut = [members[-1] for members in replies if len(members) == each]
        # Below it there may be others that have not been read.
        floor = max(cut, default=b"")
        found = sorted((m for members in replies for m in members if m >= floor), reverse=True)
        return found, not cut

    async def _clean(self, keys: Iterable[CheckpointKey], page: Page) -> None:
        """Remove the entries of checkpoints that were looked for in vain."""
        found = {entry.row.key for entry in page.entries}
        await self._index.clean(Named(key, None) for key in keys if key not in found)

    async def threads_of_runs(self, run_ids: Sequence[str]) -> list[str]:
        """Return the threads that have a live checkpoint of one of these runs."""
        found: dict[str, None] = {}
        for start in range(0, len(run_ids), RUNS_AT_ONCE):
            left = {
                (shard, run_id): b"" for shard in range(SHARDS) for run_id in run_ids[start:][:RUNS_AT_ONCE]
            }
            while left:
                left = await self._next_of_runs(left, found)
        return list(found)

    async def _next_of_runs(
        self, left: dict[tuple[int, str], bytes], found: dict[str, None]
    ) -> dict[tuple[int, str], bytes]:
        """Look at the next entries of runs, each of one shard after a member; return what is left."""
        by_shard: dict[int, list[str]] = {}
        for shard, run_id in left:
            by_shard.setdefault(shard, []).append(run_id)
        commands: list[Command] = []
        for shard, runs in by_shard.items():
            arguments = [b"%d" % RUN_ENTRIES]
            for run_id in runs:
                arguments += (id_form(run_id), left[shard, run_id])
            commands.append(call(SCRIPTS["index_runs"], self._index.spot(shard), arguments))
        members: list[bytes] = []
        after: dict[tuple[int, str], bytes] = {}
        for (shard, runs), reply in zip(by_shard.items(), await self._index.ask(commands), strict=True):
            for run_id, some in zip(runs, reply, strict=True):
                members += some
                if len(some) == RUN_ENTRIES:
                    after[shard, run_id] = some[-1]
        named = [Named(key, run_id) for run_id, key in map(read_run, members)]
        page = await self.read([each.key for each in named if each.key.thread_id not in found], HEAD)
        runs_of = {entry.row.key: entry.row.run_id for entry in page.entries}
        found.update((key.thread_id, None) for key, run_id in named if runs_of.get(key) == run_id)
        stale = [each for each in named if each.key.thread_id not in found]
        await self._index.clean(stale)
        return after

    async def walk(self, count: int) -> None:
        """Look at the next entries of one index, and remove those that name nothing."""
        number, after = self._walked
        spot = self._index.spot(number // 2)
        key = spot.keys[number % 2]
        looking = command(spot, b"ZRANGEBYLEX", key, after, b"+", b"LIMIT", b"0", b"%d" % count)
        [members] = await self._index.ask([looking])
        named = [
            Named(read_entry(member), None) if number % 2 == 0 else Named(*read_run(member)[::-1])
            for member in members
        ]
        page = await self.read([each.key for each in named], HEAD)
        runs_of = {entry.row.key: entry.row.run_id for entry in page.entries}
        await self._index.clean(
            each
            for each in named
            if each.key not in runs_of or (each.run_id is not None and runs_of[each.key] != each.run_id)
        )
        if len(members) == count:
            self._walked = (number, b"(" + members[-1])
        else:
            self._walked = ((number + 1) % (2 * SHARDS), b"-")


def _ask_keys(keys: Sequence[CheckpointKey], wanted: bytes, now: bytes, home: Home) -> Command:
    places = [place_of(home.family, key) for key in keys]
    return call(SCRIPTS["read"], home.spot, (now, wanted, b"live", *places))


def _ask_thread(query: Query, count: int, wanted: bytes, now: bytes, home: Home) -> Command:
    what = b"thread" if query.checkpoint_ns is None else b"line"
    arguments = (now, wanted, what, b"%d" % count, *_bounds(query, home.family))
    return call(SCRIPTS["read"], home.spot, arguments)


def _joined(pages: Sequence[Page]) -> Page:
    if len(pages) == 1:
        return pages[0]
    entries: list[Entry] = []
    support: dict[CheckpointKey, bytes] = {}
    parts: dict[bytes, bytes] = {}
    for page in pages:
        entries += page.entries
        support.update(page.support)
        parts.update(page.parts)
    return Page(entries, support, parts)


def _bounds(query: Query, family: str) -> list[bytes]:
    """Return the bounds of a thread's query, as `read.lua` takes them."""
    assert query.thread_id is not None
    bounds: list[bytes] = []
    after, thread_id = query.after, query.thread_id
    line = line_of(family, thread_id, query.checkpoint_ns or "")
    prefixes = [line] if query.checkpoint_ns is not None else [line, thread_form(family, thread_id)]
    for number, prefix in enumerate(prefixes):
        uppers, lower = [past(prefix)], prefix
        if query.checkpoint_id is not None:
            lower = prefix + id_form(query.checkpoint_id)
            uppers.append(past(lower))
        if query.before is not None:
            uppers.append(prefix + id_form(query.before))
        if after is not None:
            here, there = encode(thread_id), encode(after.thread_id)
            if here == there and number == 1:
                uppers.append(space_form(after, family))
            else:
                ns = query.checkpoint_ns or ""
                comes_later = (here, encode(ns)) > (there, encode(after.checkpoint_ns))
                at_id = prefix + id_form(after.checkpoint_id)
                uppers.append(past(at_id) if comes_later or (number == 1 and here > there) else at_id)
        bounds += (b"(" + min(uppers), b"[" + lower)
    return bounds


def _entry_bounds(query: Query) -> tuple[bytes, bytes]:
    """Return the bounds of a query over all threads."""
    uppers, lower = [], b"-"
    if query.checkpoint_id is not None:
        prefix = id_form(query.checkpoint_id)
        lower = b"[" + prefix
        uppers.append(past(prefix))
    if query.before is not None:
        uppers.append(id_form(query.before))
    if query.after is not None:
        uppers.append(entry_form(query.after))
    return (b"(" + min(uppers) if uppers else b"+"), lower
