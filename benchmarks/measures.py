"""What is measured, in groups: each runs every contender once a round, so that rounds interleave."""

from __future__ import annotations

import asyncio
import functools
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import limits
import memory
import workloads
from contenders import MEMORY, POSTGRES, SQLITE, Contender
from places import Places

LIMIT = "limit"
FULL_COPIES = "full copies, compressed"
DICT = "bytes of a dict of 2,000 entries, 500 steps"


class Sizes(NamedTuple):
    """How much is done; the tests do next to nothing."""

    steps: int = 1280
    clients: tuple[int, ...] = (1, 8, 64)
    turns: int = 200
    at_once: tuple[int, int] = (40, 8)
    lengths: tuple[int, ...] = (50, 100, 150)
    reads: int = 30
    long_turns: tuple[int, ...] = (200, 1000, 5000)
    peer_turns: int = 200
    document: tuple[int, int] = (5_000_000, 500)
    entries: tuple[int, int] = (2000, 500)
    edits: tuple[int, int] = (60, 100)
    threads: int = 10_000
    checkpoints: int = 100
    probes: int = 40
    served: int = 2000
    calls: int = 300


FULL = Sizes()
QUICK = FULL._replace(threads=1000, long_turns=(200, 1000))
"""What takes minutes is left out."""


@dataclass
class Bench:
    """One run: where, who, how much, and what has been found so far."""

    places: Places
    contenders: list[Contender]
    sizes: Sizes = FULL
    found: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda what: None

    def record(self, case: str, name: str, value: float) -> None:
        """Keep a figure."""
        self.found.setdefault(case, {}).setdefault(name, []).append(value)

    def on(self, *stores: str) -> Iterator[Contender]:
        """Yield the contenders on these stores, or all, and tell who is next."""
        for contender in self.contenders:
            if not stores or contender.store in stores:
                self.tell(contender.name)
                gc.collect()
                yield contender

    def run(self, contender: Contender, work: Callable[[Any], Awaitable[Any]]) -> tuple[Any, str]:
        """Return what `work` makes of a saver on a fresh database, and that database, closed."""
        url = self.places.new(contender.store)
        return self.again(contender, url, work), url

    def again(self, contender: Contender, url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Return what `work` makes of a saver on a database."""

        async def opened() -> Any:
            async with contender.opener(url) as saver:
                return await work(saver)

        return asyncio.run(opened())


def steps(bench: Bench) -> None:
    """Steps per second: one aput and one aput_writes of 20 messages of 300 bytes, one replaced a step."""
    for contender in bench.on():
        for clients in bench.sizes.clients:
            each = max(2, bench.sizes.steps // clients)

            async def work(saver: Any, clients: int = clients, each: int = each) -> float:
                await workloads.steps(saver, clients, 2)
                return await workloads.steps(saver, clients, each)

            speed, url = bench.run(contender, work)
            case = f"steps/s, {clients} client{'s' if clients > 1 else ''}"
            bench.record(case, contender.name, speed)
            if contender.ours and contender.store != "memory":
                sizes = bench.places.rows_of(url)
                seconds = limits.seconds_to_write(bench.places, contender.store, sizes, len(sizes) // clients)
                bench.record(case, f"{LIMIT}, {contender.store}", len(sizes) / 2 / seconds)


def chat(bench: Bench) -> None:
    """One chat through a real graph, a turn of 200 and 800 bytes after the other."""
    turns = bench.sizes.turns
    case = f"seconds for a chat of {turns} turns"
    for contender in bench.on("memory", "sqlite", "postgres"):
        seconds, url = bench.run(contender, lambda saver: workloads.chat(saver, turns))
        bench.record(case, contender.name, seconds)
        if contender.ours and contender.store != "memory":
            sizes = bench.places.rows_of(url)
            limit = limits.seconds_to_write(bench.places, contender.store, sizes, len(sizes))
            bench.record(case, f"{LIMIT}, {contender.store}", limit)


def graphs(bench: Bench) -> None:
    """Many graphs at once."""
    at_once, turns = bench.sizes.at_once
    case = f"turns/s of {at_once} graphs at once"
    for contender in bench.on():
        speed, url = bench.run(contender, lambda saver: workloads.graphs(saver, at_once, turns))
        bench.record(case, contender.name, speed)
        if contender.ours and contender.store != "memory":
            sizes = bench.places.rows_of(url)
            seconds = limits.seconds_to_write(bench.places, contender.store, sizes, len(sizes) // at_once)
            bench.record(case, f"{LIMIT}, {contender.store}", at_once * turns / seconds)


def reads(bench: Bench) -> None:
    """The latest state and the whole history of a thread that grows."""
    sizes = bench.sizes
    for contender in bench.on():
        config = workloads.new_thread()

        async def work(saver: Any, contender: Contender = contender, config: Any = config) -> None:
            done = 0
            for turns in sizes.lengths:
                await workloads.chat(saver, turns - done, config, done)
                done = turns
                listed = [await workloads.history(saver, config, 3 * turns) for _ in range(3)]
                bench.record(f"seconds to list {3 * turns} checkpoints", contender.name, sorted(listed)[1])
            seconds = await workloads.latest(saver, config, sizes.reads)
            bench.record(f"seconds for the latest of {2 * done} messages, warm", contender.name, seconds)

        _, url = bench.run(contender, work)
        if contender.store != "memory":
            first = functools.partial(_first_read, config=config)
            cold = [bench.again(contender, url, first) for _ in range(5)]
            case = f"seconds for the latest of {2 * sizes.lengths[-1]} messages, nothing cached"
            bench.record(case, contender.name, sorted(cold)[2])


async def _first_read(saver: Any, config: Any) -> float:
    # Connected, but nothing is known of the thread.
    await saver.aget_tuple(workloads.new_thread())
    return await workloads.latest(saver, config, 1)


def doors(bench: Bench) -> None:
    """What a call through the sync door costs more than one through the async door."""
    calls = bench.sizes.calls
    for contender in bench.on():
        if contender.ours:
            waited, url = bench.run(contender, lambda saver: workloads.put_async(saver, calls))
            saver = contender.opener(url)
            with saver as opened:  # type: ignore[attr-defined]
                stepped = workloads.put_sync(opened, calls)
            # Of a put and a get together, which are two calls.
            bench.record("seconds a call, async door", contender.name, waited / 2)
            bench.record("seconds a call, sync door", contender.name, stepped / 2)


def space(bench: Bench) -> None:
    """Bytes per turn of one chat, everything counted, with the saver closed."""
    for contender in bench.on("sqlite", "postgres", "redis"):
        config, url, done = workloads.new_thread(), bench.places.new(contender.store), 0
        all_turns = bench.sizes.long_turns if contender.ours else (bench.sizes.peer_turns,)
        for turns in sorted({max(1, all_turns[0] // 10), max(1, all_turns[0] // 2), *all_turns}):
            if contender.store == "redis" and turns > bench.sizes.peer_turns:
                continue

            def grow(
                saver: Any, turns: int = turns, done: int = done, config: Any = config
            ) -> Awaitable[float]:
                return workloads.chat(saver, turns - done, config, done)

            bench.again(contender, url, grow)
            done = turns
            bench.record(f"bytes a turn at {turns} turns", contender.name, bench.places.bytes_of(url) / turns)


def large(bench: Bench) -> None:
    """A large document, a dict with many entries, and lists that do more than grow."""
    (size, turns), (length, count) = bench.sizes.document, bench.sizes.edits
    for contender in bench.on("sqlite", "postgres", "redis"):
        if contender.name != SQLITE:
            # It stores every channel with every checkpoint: 2.5 GB.
            _, url = bench.run(contender, lambda saver: workloads.document(saver, size, turns))
            bench.record(
                "bytes of a 5 MB document and 500 small steps", contender.name, bench.places.bytes_of(url)
            )
        for case, whole in ((DICT, False), (f"{DICT}, returned whole", True)):
            work = functools.partial(
                workloads.entries, size=bench.sizes.entries[0], turns=bench.sizes.entries[1], whole=whole
            )
            _, url = bench.run(contender, work)
            bench.record(case, contender.name, bench.places.bytes_of(url))
        for kind, edit in workloads.EDITS.items():
            case = f"bytes of a list {kind}"
            work = functools.partial(workloads.edits, edit=edit, length=length, count=count)
            _, url = bench.run(contender, work)
            if contender.ours:
                bench.record(case, contender.name, sum(bench.places.rows_of(url)))
            else:
                bench.record(case, contender.name, bench.places.bytes_of(url))
            copies = limits.full_copies(workloads.versions_of_list(edit, length, count))
            bench.found[case][FULL_COPIES] = [copies]


def scale(bench: Bench) -> None:
    """A put, a get and a list in a database of a million checkpoints, beside one of two thousand."""
    sizes = bench.sizes
    total = sizes.threads * sizes.checkpoints
    for contender in bench.on("sqlite", "postgres", "redis"):
        if not contender.ours:
            continue
        databases = []
        for threads in (sizes.probes, sizes.threads):

            async def filled(saver: Any, threads: int = threads) -> list[Any]:
                configs = await workloads.fill(saver, threads, sizes.checkpoints)
                return configs[:: max(1, threads // sizes.probes)][: sizes.probes]

            databases.append(bench.run(contender, filled))
        for _ in range(3):
            for place, (configs, url) in zip(
                ("nearly empty", f"{total:,} checkpoints"), databases, strict=True
            ):
                seconds = bench.again(contender, url, functools.partial(workloads.probe, configs=configs))
                for call, value in seconds.items():
                    bench.record(f"seconds for {call}, {place}", contender.name, value)


def in_memory(bench: Bench) -> None:
    """What a chat takes of this process's memory, and a process that serves many threads, in all."""
    for contender in bench.on("memory"):
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()

            async def work(saver: Any, before: int = before) -> int:
                await workloads.chat(saver, bench.sizes.turns)
                gc.collect()
                return tracemalloc.get_traced_memory()[0] - before

            taken, _ = bench.run(contender, work)
        finally:
            tracemalloc.stop()
        bench.record(f"bytes of memory after {bench.sizes.turns} turns", contender.name, taken)
    if any(contender.ours and contender.store == "sqlite" for contender in bench.contenders):
        for megabytes in (4, 16):
            bench.tell(f"{bench.sizes.served} threads, cache_bytes={megabytes} MB")
            taken = memory.grown(bench.places.new("sqlite"), bench.sizes.served, megabytes << 20)
            case = f"bytes a process grows by that serves {bench.sizes.served:,} threads"
            bench.record(case, f"cache_bytes={megabytes} MB", taken)


class Group(NamedTuple):
    """A measurement, and whether it is worth repeating."""

    work: Callable[[Bench], None]
    repeated: bool = True


GROUPS = {
    "steps": Group(steps),
    "chat": Group(chat),
    "graphs": Group(graphs),
    "reads": Group(reads),
    "doors": Group(doors),
    "space": Group(space, repeated=False),
    "large": Group(large, repeated=False),
    "footprint": Group(in_memory, repeated=False),
    "scale": Group(scale, repeated=False),
}
__all__ = ["FULL", "GROUPS", "LIMIT", "MEMORY", "POSTGRES", "QUICK", "SQLITE", "Bench", "Group", "Sizes"]
