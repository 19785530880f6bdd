"""What the engine's operations take: branches of a large state, and looking at a long thread.

`python benchmarks/engine.py [store…]`: memory, sqlite, postgres, redis; all if none is named.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from places import Places
from workloads import english, next_put

from langgraph_harness_saver import CheckpointEngine, HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointTree

STORES = ("memory", "sqlite", "postgres", "redis")
STATE_BYTES = 10 << 20
BRANCHES = 1000
CHECKPOINTS, LONG_BRANCHES, OWN = 10_000, 500, 2


async def seconds(work: Callable[[], Awaitable[Any]], times: int = 3) -> float:
    """Return the median of how long a call takes."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        await work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


async def put_line(saver: HarnessCheckpointer, thread_id: str, length: int, values: dict[str, Any]) -> None:
    """Put checkpoints one after the other, each with what a node wrote, behind those that a thread has."""
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    head = await saver.aget_tuple(config)
    config, version = (head.config, head.checkpoint["channel_versions"]["count"]) if head else (config, None)
    for step in range(length):
        checkpoint, metadata, new = next_put(saver, version, step, {**values, "count": step}, "count")
        version = new["count"]
        config = await saver.aput(config, checkpoint, metadata, new)
        await saver.aput_writes(config, [("count", step + 1)], "task", "~__pregel_pull, chat")


async def large_state(places: Places, store: str) -> None:
    """Print what branches of a thread take whose state has 10 MB."""
    url = places.new(store)
    saver = HarnessCheckpointer.from_conn_string(url)
    engine = CheckpointEngine(saver)
    rng = random.Random(1)
    paragraphs = [english(rng, 1000) for _ in range(500)]
    text = "".join(rng.choice(paragraphs) for _ in range(STATE_BYTES // 1000))
    await put_line(saver, "large", 3, {"document": text})
    head = await engine.get_latest("large")
    assert head is not None
    at = head.metadata.checkpoint_id
    config: Any = {"configurable": {"thread_id": "other", "checkpoint_ns": ""}}
    round_trip = await seconds(
        lambda: saver.aput_writes(
            {**config, "configurable": {**config["configurable"], "checkpoint_id": at}},
            [("n", time.time())],
            "t",
        ),
        51,
    )
    await engine.branch(at, "first", "large")
    before = await size(places, store, url, saver)
    names = iter(range(BRANCHES))
    taken = await seconds(lambda: engine.branch(at, f"branch {next(names)}", "large"), BRANCHES)
    grown = await size(places, store, url, saver) - before
    print(
        f"{store}: a branch of 10 MB {taken * 1000:.2f} ms (one write {round_trip * 1000:.2f} ms); "
        f"{grown / BRANCHES:,.0f} bytes each, {BRANCHES} of them {grown / 1e6:.1f} MB"
    )
    await saver.aclose()


async def size(places: Places, store: str, url: str, saver: HarnessCheckpointer) -> int:
    """Return the bytes that a store takes."""
    if store == "memory":
        threads = saver.backend._threads.values()  # type: ignore[attr-defined]
        lines = [line for thread in threads for line in thread.lines.values()]
        return sum(len(row.body) + len(row.metadata) for line in lines for row in line.rows.values())
    return places.bytes_of(url)


async def long_thread(places: Places, store: str) -> None:
    """Print what looking at a thread of 10,000 checkpoints and 500 branches takes, and deleting all of it."""
    saver = HarnessCheckpointer.from_conn_string(places.new(store))
    engine = CheckpointEngine(saver)
    await put_line(saver, "long", CHECKPOINTS, {"text": "a state " * 200})
    ids = [one.checkpoint_id for one in await engine.list_checkpoints("long")]
    for number in range(LONG_BRANCHES):
        branch = await engine.branch(ids[number * 20], f"branch {number}", "long")
        await put_line(saver, branch, OWN, {"text": "a state " * 200})
    await engine.tag(ids[5], "good", "long")

    async def pages() -> None:
        before: str | None = ""
        while before is not None:
            tree: CheckpointTree = await engine.get_checkpoint_tree("long", before=before or None)
            before = tree.next_page

    looks: dict[str, Callable[[], Awaitable[Any]]] = {
        "list_threads": engine.list_threads,
        "list_threads(20)": lambda: engine.list_threads(20),
        "list_checkpoints": lambda: engine.list_checkpoints("long"),
        "list_checkpoints(20)": lambda: engine.list_checkpoints("long", 20),
        "list_branches": lambda: engine.list_branches("long"),
        "list_tags": lambda: engine.list_tags("long"),
        "list_time_travel_points": lambda: engine.list_time_travel_points("long"),
        "list_time_travel_points(20)": lambda: engine.list_time_travel_points("long", 20),
        "get_checkpoint_tree(limit=50)": lambda: engine.get_checkpoint_tree("long", 50),
        "get_checkpoint_tree": lambda: engine.get_checkpoint_tree("long"),
        "get_checkpoint_tree(limit=None)": lambda: engine.get_checkpoint_tree("long", None),
        "all pages of it": pages,
    }
    for name, look in looks.items():
        print(f"{store}: {name} {await seconds(look):.3f} s")
    deleting = await seconds(lambda: engine.delete_thread("long", branches=True), 1)
    print(f"{store}: delete_thread(branches=True) {deleting:.3f} s")
    await saver.aclose()


async def main(stores: list[str]) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = Places(Path(folder), stack)
        for store in stores or STORES:
            await large_state(places, store)
            await long_thread(places, store)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
