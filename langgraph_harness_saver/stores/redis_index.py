"""What is known across families: which checkpoints there are, of which runs, and which threads expire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.redis_rows import (
    Home,
    Spot,
    entry_form,
    home_of,
    id_form,
    index_spot,
    place_of,
    run_form,
)
from langgraph_harness_saver.stores.redis_wires import Command, Reply, call

Ask = Callable[[Sequence[Command]], Awaitable[list[Reply]]]

CLEAN_ENTRIES = 500
"""How many entries are removed at a time."""


class Named(NamedTuple):
    """What the indexes say of a checkpoint."""

    key: CheckpointKey
    run_id: str | None


class Index:
    """Entries of checkpoints, runs and expiring threads; see `index_common.lua`."""

    def __init__(self, prefix: str, ask: Ask, new_stamp: Callable[[], bytes]) -> None:
        self.ask = ask
        self._prefix = prefix
        self._new_stamp = new_stamp

    def home(self, thread_id: str) -> Home:
        """Return where a thread's family lives."""
        return home_of(self._prefix, thread_id)

    def spot(self, shard: int) -> Spot:
        """Return where one shard of the indexes is."""
        return index_spot(self._prefix, shard)

    def entries(
        self, named: Iterable[Named], renewed: Iterable[str], ttl: bytes, expires: bytes
    ) -> dict[int, Command]:
        """Return the commands that enter checkpoints, and threads that expire then, by shard."""
        shards: dict[int, tuple[list[bytes], list[bytes], dict[bytes, bytes]]] = {}
        for key, run_id in named:
            ids, runs, _ = shards.setdefault(self.home(key.thread_id).shard, ([], [], {}))
            entry = entry_form(key)
            ids.append(entry)
            if run_id is not None:
                runs.append(run_form(run_id, entry))
        for thread_id in renewed:
            _, _, due = shards.setdefault(self.home(thread_id).shard, ([], [], {}))
            due[id_form(thread_id)] = expires
        found = {}
        for shard, (ids, runs, due) in shards.items():
            times = chain.from_iterable((time, member) for member, time in due.items())
            arguments = [ttl, b"%d" % len(ids), b"%d" % len(runs), *ids, *runs, *times]
            found[shard] = call(SCRIPTS["index_add"], self.spot(shard), arguments)
        return found

    async def due(self, shard: int, now: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return threads of a shard that may have expired, and the time that is entered for each."""
        [flat] = await self.ask([call(SCRIPTS["index_due"], self.spot(shard), (now, b"%d" % count))])
        return list(zip(flat[::2], flat[1::2], strict=True))

    async def settle(self, shard: int, settled: Sequence[bytes]) -> None:
        """Enter other times, or none, for threads: member, time that was seen, new time in turn."""
        await self.ask([call(SCRIPTS["index_settle"], self.spot(shard), settled)])

    async def clean(self, named: Iterable[Named]) -> None:
        """Remove the entries of checkpoints that aren't there; `index_common.lua` tells how it is safe."""
        by_shard: dict[int, list[Named]] = {}
        for each in named:
            by_shard.setdefault(self.home(each.key.thread_id).shard, []).append(each)
        for shard, some in by_shard.items():
            for start in range(0, len(some), CLEAN_ENTRIES):
                await self._clean(self.spot(shard), some[start : start + CLEAN_ENTRIES])

    async def _clean(self, spot: Spot, named: Sequence[Named]) -> None:
        stamp = self._new_stamp()
        by_home: dict[str, list[tuple[bytes, bytes, bytes]]] = {}
        for key, run_id in named:
            home = self.home(key.thread_id)
            entry, place = entry_form(key), place_of(home.family, key)
            found = by_home.setdefault(home.family, [])
            found.append((entry, place, b""))
            if run_id is not None:
                found.append((run_form(run_id, entry), place, id_form(run_id)))
        members = [member for some in by_home.values() for member, _, _ in some]
        await self.ask([call(SCRIPTS["index_mark"], spot, (stamp, *members))])
        asked = [
            call(SCRIPTS["absent"], self.home(family).spot, [item for each in some for item in each[1:]])
            for family, some in by_home.items()
        ]
        gone: set[bytes] = set()
        for some, absent in zip(by_home.values(), await self.ask(asked), strict=True):
            gone.update(some[number][0] for number in absent)
        stay = [member for member in members if member not in gone]
        arguments = (stamp, b"%d" % len(gone), *gone, *stay)
        await self.ask([call(SCRIPTS["index_remove"], spot, arguments)])
