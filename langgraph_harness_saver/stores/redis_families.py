"""What is read of many threads at once: one call for those of one family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from langgraph_harness_saver.rows import CheckpointKey, Entry, Tag
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.redis_homes import Facts, Homes, away, is_elsewhere
from langgraph_harness_saver.stores.redis_rows import (
    Home,
    grouped_writes,
    place_of,
    read_expired,
    read_facts,
    read_ids,
    read_row,
    read_tags,
    thread_form,
)
from langgraph_harness_saver.stores.redis_wires import Command, Reply, call

ROWS_AT_ONCE = 500
"""How many rows a script reads: nobody else is served meanwhile."""


class Families:
    """Reads of families what their threads have in common."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes

    async def tags(self, thread_ids: Sequence[str], now: float) -> list[Tag]:
        """Return the tags of threads; see `Store.tags`."""
        groups = self._grouped(thread_ids)
        replies = await self._homes.ask([call(SCRIPTS["facts"], home.spot, ()) for home, _ in groups])
        tags: dict[str, list[Tag]] = {}
        for (home, names), flat in zip(groups, replies, strict=True):
            facts = Facts(home, read_facts(flat))
            tags.update(_tags_of(facts, now))
            for name in names:
                if away(facts, name) is not None:
                    tags[name] = _tags_of(await self._homes.facts(name), now).get(name, [])
        return [tag for name in thread_ids for tag in tags.get(name, ())]

    async def lines(
        self, thread_ids: Collection[str], size: int | None, now: bytes
    ) -> dict[str, Sequence[str]]:
        """Return the ids of threads' root checkpoints; see `Store.lines`."""

        def make(home: Home, names: Sequence[str]) -> Command:
            newest = b"" if size is None else b"%d" % size
            threads = [thread_form(home.family, name) for name in names]
            return call(SCRIPTS["lines"], home.spot, (now, newest, *threads))

        found = await self._each(thread_ids, make, b"")
        return {name: read_ids(ids) for name, ids in found.items()}

    async def eventful(self, thread_ids: Collection[str], now: bytes) -> set[str]:
        """Return which threads have events."""

        def make(home: Home, names: Sequence[str]) -> Command:
            threads = [thread_form(home.family, name) for name in names]
            return call(SCRIPTS["eventful"], home.spot, (now, *threads))

        return {name for name, has_any in (await self._each(thread_ids, make, 0)).items() if has_any}

    async def rows(self, keys: Collection[CheckpointKey]) -> list[Entry]:
        """Return those of some rows that are there; see `Store.rows`."""
        by_thread: dict[str, list[CheckpointKey]] = {}
        for key in keys:
            by_thread.setdefault(key.thread_id, []).append(key)
        asked: list[tuple[Home, Sequence[CheckpointKey]]] = []
        for home, names in self._grouped(by_thread):
            asked += [(home, some) for some in _pieces([key for name in names for key in by_thread[name]])]
        replies = await self._homes.ask([_asking(home, some) for home, some in asked])
        entries: list[Entry] = []
        moved: dict[str, None] = {}
        for (home, some), (flat, members, written) in zip(asked, replies, strict=True):
            facts = Facts(home, read_facts(flat))
            moved.update((name, None) for name in {key[0] for key in some} if away(facts, name))
            writes = grouped_writes(written, home.family)
            rows = (read_row(member, home.family) for member in members)
            entries += [Entry(row, tuple(writes.get(row.key, ()))) for row in rows]
        there = await self._found(moved)
        return (
            entries + await self.rows([key for name in there for key in by_thread[name]])
            if there
            else entries
        )

    async def _each(
        self, thread_ids: Collection[str], make: Callable[[Home, Sequence[str]], Command], nothing: Reply
    ) -> dict[str, Reply]:
        """Return the reply for each thread, from one call for each family."""
        groups = self._grouped(thread_ids)
        replies = await self._homes.ask([make(home, names) for home, names in groups])
        found: dict[str, Reply] = {}
        for (_, names), answers in zip(groups, replies, strict=True):
            found.update(zip(names, answers, strict=True))
        moved = [name for name, answer in found.items() if is_elsewhere(answer)]
        found.update(dict.fromkeys(moved, nothing))
        there = await self._found(moved)
        return {**found, **await self._each(there, make, nothing)} if there else found

    async def _found(self, thread_ids: Collection[str]) -> list[str]:
        """Find out where threads live that aren't where they were believed to be; return those that are."""
        return [name for name in thread_ids if (await self._homes.facts(name)).meta]

    def _grouped(self, thread_ids: Collection[str]) -> list[tuple[Home, list[str]]]:
        """Return threads by the families that they are believed to be of, and where those live."""
        groups: dict[str, tuple[Home, list[str]]] = {}
        for name in thread_ids:
            home = self._homes.of(name)
            groups.setdefault(home.family, (home, []))[1].append(name)
        return list(groups.values())


def _asking(home: Home, keys: Sequence[CheckpointKey]) -> Command:
    return call(
        SCRIPTS["rows"], home.spot, (b"%d" % len(keys), *[place_of(home.family, key) for key in keys])
    )


def _pieces(keys: Sequence[CheckpointKey]) -> Iterator[Sequence[CheckpointKey]]:
    for start in range(0, len(keys), ROWS_AT_ONCE):
        yield keys[start : start + ROWS_AT_ONCE]


def _tags_of(facts: Facts, now: float) -> dict[str, list[Tag]]:
    """Return the tags of a family's threads, but those of threads that have expired."""
    family = facts.home.family
    expired = set(read_expired(facts.meta, family, now))
    found: dict[str, list[Tag]] = {}
    for tag in read_tags(facts.meta, family, None):
        if tag.key.thread_id not in expired:
            found.setdefault(tag.key.thread_id, []).append(tag)
    return found
