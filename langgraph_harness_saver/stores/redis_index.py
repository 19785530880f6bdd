"""What is known across families: which checkpoints there are, of which runs, and which threads expire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.redis_homes import Ask, Homes, Wanted
from langgraph_harness_saver.stores.redis_rows import (
    Home,
    Spot,
    entry_form,
    id_form,
    index_spot,
    place_of,
    run_form,
)
from langgraph_harness_saver.stores.redis_wires import Command, call

CLEAN_ENTRIES = 500
"""How many entries are removed at a time."""


class Named(NamedTuple):
    """What the indexes say of a checkpoint."""

    key: CheckpointKey
    run_id: str | None


class Index:
    """Entries of checkpoints, runs and expiring threads; see `index_common.lua`."""

    def __init__(self, prefix: str, ask: Ask, homes: Homes, new_stamp: Callable[[], bytes]) -> None:
        self.ask = ask
        self.homes = homes
        self._prefix = prefix
        self._new_stamp = new_stamp

    def shard(self, thread_id: str) -> int:
        """Return which shard names a thread."""
        return self.homes.own(thread_id).shard

    def spot(self, shard: int) -> Spot:
        """Return where one shard of the indexes is."""
        return index_spot(self._prefix, shard)

    def entries(
        self, named: Iterable[Named], renewed: Iterable[str], ttl: bytes, expires: bytes
    ) -> dict[int, Command]:
        """Return the commands that enter checkpoints, and threads that expire then, by shard."""
        shards: dict[int, tuple[list[bytes], list[bytes], dict[bytes, bytes]]] = {}
        for key, run_id in named:
            ids, runs, _ = shards.setdefault(self.shard(key.thread_id), ([], [], {}))
            entry = entry_form(key)
            ids.append(entry)
            if run_id is not None:
                runs.append(run_form(run_id, entry))
        for thread_id in renewed:
            _, _, due = shards.setdefault(self.shard(thread_id), ([], [], {}))
            due[id_form(thread_id)] = expires
        found = {}
        for shard, (ids, runs, due) in shards.items():
            times = chain.from_iterable((time, member) for member, time in due.items())
            arguments = [ttl, b"%d" % len(ids), b"%d" % len(runs), *ids, *runs, *times]
            found[shard] = call(SCRIPTS["index_add"], self.spot(shard), arguments)
        return found

    async def due(self, shard: int, now: bytes, start: int, count: int) -> list[tuple[bytes, bytes]]:
        """Return threads of a shard that may have expired, and the time that is entered for each."""
        arguments = (now, b"%d" % start, b"%d" % count)
        [flat] = await self.ask([call(SCRIPTS["index_due"], self.spot(shard), arguments)])
        return list(zip(flat[::2], flat[1::2], strict=True))

    async def settle(self, shard: int, settled: Sequence[bytes]) -> None:
        """Enter other times, or none, for threads: member, time that was seen, new time in turn."""
        await self.ask([call(SCRIPTS["index_settle"], self.spot(shard), settled)])

    async def forget(self, expiries: Mapping[str, bytes]) -> None:
        """Remove the entries of threads that have gone, by when they would have expired."""
        by_shard: dict[int, list[bytes]] = {}
        for thread_id, expiry in expiries.items():
            by_shard.setdefault(self.shard(thread_id), []).extend((id_form(thread_id), expiry, b""))
        for shard, settled in by_shard.items():
            await self.settle(shard, settled)

    async def clean(self, named: Iterable[Named]) -> None:
        """Remove the entries of checkpoints that aren't there; `index_common.lua` tells how it is safe."""
        by_shard: dict[int, list[Named]] = {}
        for each in named:
            by_shard.setdefault(self.shard(each.key.thread_id), []).append(each)
        for shard, some in by_shard.items():
            for start in range(0, len(some), CLEAN_ENTRIES):
                await self._clean(self.spot(shard), some[start : start + CLEAN_ENTRIES])

    async def _clean(self, spot: Spot, named: Sequence[Named]) -> None:
        stamp = self._new_stamp()
        by_thread: dict[str, list[tuple[bytes, CheckpointKey, bytes]]] = {}
        for key, run_id in named:
            entry = entry_form(key)
            entries = by_thread.setdefault(key.thread_id, [])
            entries.append((entry, key, b""))
            if run_id is not None:
                entries.append((run_form(run_id, entry), key, id_form(run_id)))
        members = [member for some in by_thread.values() for member, _, _ in some]
        await self.ask([call(SCRIPTS["index_mark"], spot, (stamp, *members))])
        # One that is about to begin will be there.
        asked = [Wanted(thread_id, partial(_absent, some), []) for thread_id, some in by_thread.items()]
        gone: set[bytes] = set()
        for some, found in zip(by_thread.values(), await self.homes.look(asked), strict=True):
            gone.update(some[number][0] for number in found.reply)
        stay = [member for member in members if member not in gone]
        arguments = (stamp, b"%d" % len(gone), *gone, *stay)
        await self.ask([call(SCRIPTS["index_remove"], spot, arguments)])


def _absent(named: Sequence[tuple[bytes, CheckpointKey, bytes]], home: Home) -> Command:
    arguments = chain.from_iterable((place_of(home.family, key), run) for _, key, run in named)
    return call(SCRIPTS["absent"], home.spot, list(arguments))
