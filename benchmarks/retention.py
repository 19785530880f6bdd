"""What retention costs: puts of a thread that is kept short, and sweeps of threads that have expired.

python benchmarks/retention.py [STORE ...] [--puts 10000] [--threads 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from places import Places

from langgraph_harness_saver import HarnessCheckpointer

STORES = ("memory", "sqlite", "postgres", "redis")
KEPT = 100
WINDOW = 60
"""How many messages a state holds."""
WRITERS = 64


def step(saver: Any, messages: list[Any], number: int, version: str | None) -> tuple[dict[str, Any], str]:
    """Return the next checkpoint of a chat whose state is trimmed."""
    messages.append(HumanMessage(f"message {number}, and what it says", id=str(number)))
    del messages[:-WINDOW]
    version = saver.get_next_version(version, None)
    values = {"messages": list(messages), "turn": number}
    checkpoint = {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, version),
    }
    return checkpoint, version


def puts(url: str, retention: str, count: int) -> None:
    """Put checkpoints on one thread, one after the other, and show how long a put takes as it grows."""
    with HarnessCheckpointer.from_conn_string(url, retention=retention) as saver:
        config: Any = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
        thread_id = config["configurable"]["thread_id"]
        messages: list[Any] = []
        version: str | None = None
        times: list[float] = []
        most = 0
        for number in range(count):
            checkpoint, version = step(saver, messages, number, version)
            begin = time.perf_counter()
            config = saver.put(
                config,
                checkpoint,
                {"source": "loop", "step": number, "parents": {}},
                dict.fromkeys(checkpoint["channel_values"], version),
            )
            times.append(time.perf_counter() - begin)
            saver.put_writes(config, [("messages", messages[-1]), ("turn", number)], str(uuid.uuid4()))
            if retention != "keep_all" and number % 7 == 0:
                outline = saver.run_sync(saver.backend.outline(thread_id))
                most = max(most, len(outline.nodes))
        family = saver.run_sync(saver.backend.load(thread_id))
        stored = sum(len(row.body) + len(row.metadata) for row in family.rows.values())
        stored += sum(len(write.body) for some in family.writes.values() for write in some)
        stored += sum(len(data) for data in family.parts.values())
        tenths = [statistics.mean(times[i : i + count // 5]) for i in range(0, count, count // 5)]
        shown = " ".join(f"{1e6 * tenth:6.0f}" for tenth in tenths)
        p99 = sorted(times)[int(0.99 * count)]
        print(
            f"  {retention:16} us a put, by fifths: {shown}   median {1e6 * statistics.median(times):5.0f}  "
            f"p99 {1e6 * p99:6.0f}   at most seen {most or count:6}  rows {len(family.rows):6}  "
            f"{stored / 1000:8.0f} KB"
        )


async def fill(saver: Any, count: int) -> None:
    """Begin threads of one checkpoint each, many at once."""
    left = iter(range(count))
    checkpoint = {**empty_checkpoint(), "channel_values": {"turn": 1}, "channel_versions": {"turn": "1"}}

    async def write() -> None:
        for _ in left:
            config = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
            made = {**checkpoint, "id": str(uuid6())}
            await saver.aput(config, made, {"source": "loop", "step": 0, "parents": {}}, {"turn": "1"})

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def sweep(url: str, count: int) -> None:
    """Let threads expire, and delete them in two savers at once, while a third one writes."""
    async with HarnessCheckpointer.from_conn_string(url, ttl_seconds=1e6) as saver:
        # Not by themselves.
        saver._sweeper.stop()
        await fill(saver, count)
        others = [HarnessCheckpointer.from_conn_string(url, ttl_seconds=1e6) for _ in range(2)]
        for other in others:
            other._sweeper.stop()
            other.backend.clock = lambda: time.time() + 2e6
        begin = time.perf_counter()
        done = asyncio.Event()
        waits: list[float] = []

        async def write() -> None:
            while not done.is_set():
                at = time.perf_counter()
                await fill(saver, 1)
                waits.append(time.perf_counter() - at)
                await asyncio.sleep(0.01)

        writing = asyncio.create_task(write())
        swept = await asyncio.gather(*(other._core.sweep() for other in others))
        took = time.perf_counter() - begin
        done.set()
        await writing
        for other in others:
            await other.aclose()
        median, longest = 1e3 * statistics.median(waits), 1e3 * max(waits)
        print(
            f"  {sum(swept)} threads swept ({' + '.join(map(str, swept))}) in {took:.1f} s: "
            f"{sum(swept) / took:,.0f} a second; a put meanwhile takes {median:.1f} ms, {longest:.1f} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", default=STORES)
    parser.add_argument("--puts", type=int, default=10_000, help="how many, 0 for none")
    parser.add_argument("--threads", type=int, default=100_000, help="how many expire, 0 for none")
    parser.add_argument("--url", help="a Postgres or Redis of yours")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = Places(Path(folder), stack, wanted.url)
        for store in wanted.stores:
            print(store)
            if wanted.puts:
                for retention in ("keep_all", f"keep_last_n:{KEPT}"):
                    puts(places.new(store), retention, wanted.puts)
            if wanted.threads:
                asyncio.run(sweep(places.new(store), wanted.threads))


if __name__ == "__main__":
    main()
