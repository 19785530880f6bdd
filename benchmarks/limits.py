"""What the drivers do alone: as many bytes in as many commits, and nothing else."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio as aioredis
from places import Places


def seconds_to_write(places: Places, store: str, sizes: Sequence[int], commits: int) -> float:
    """Return how long rows of these sizes take, in that many commits one after the other."""
    rows = [(uuid.uuid4(), os.urandom(size)) for size in sizes]
    each = max(1, round(len(rows) / commits))
    pieces = [rows[start : start + each] for start in range(0, len(rows), each)]
    if store == "sqlite":
        return _in_sqlite(places, pieces)
    work = {"postgres": _in_postgres, "redis": _in_redis}[store]
    return asyncio.run(work(places.server(store).url(), pieces))


Pieces = list[list[tuple[uuid.UUID, bytes]]]


def _in_sqlite(places: Places, pieces: Pieces) -> float:
    path = Path(places.new("sqlite").removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE bare (id BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")
        start = time.perf_counter()
        for piece in pieces:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO bare VALUES (?, ?)", [(id.bytes, data) for id, data in piece])
            connection.execute("COMMIT")
        return time.perf_counter() - start


async def _in_postgres(url: str, pieces: Pieces) -> float:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("DROP TABLE IF EXISTS harness_bench_bare")
        await connection.execute("CREATE TABLE harness_bench_bare (id uuid PRIMARY KEY, data bytea)")
        one = await connection.prepare("INSERT INTO harness_bench_bare VALUES ($1, $2)")
        many = await connection.prepare(
            "INSERT INTO harness_bench_bare SELECT * FROM unnest($1::uuid[], $2::bytea[])"
        )
        start = time.perf_counter()
        for piece in pieces:
            if len(piece) == 1:
                await one.fetch(*piece[0])
            else:
                await many.fetch([id for id, _ in piece], [data for _, data in piece])
        seconds = time.perf_counter() - start
        await connection.execute("DROP TABLE harness_bench_bare")
        return seconds
    finally:
        await connection.close()


async def _in_redis(url: str, pieces: Pieces) -> float:
    keys = [f"harness-bench-bare:{id}" for piece in pieces for id, _ in piece]
    async with aioredis.Redis.from_url(url) as client:
        start = time.perf_counter()
        for piece in pieces:
            pipe: Any = client.pipeline(transaction=False)
            for id, data in piece:
                pipe.set(f"harness-bench-bare:{id}", data)
            await pipe.execute()
        seconds = time.perf_counter() - start
        await client.unlink(*keys)
        return seconds


def full_copies(versions: Iterator[list[Any]]) -> int:
    """Return the bytes of every version of a list whole, compressed as ours are."""
    from langgraph_harness_saver.envelope import Envelope
    from langgraph_harness_saver.messages import pack_messages

    return sum(len(Envelope().seal(pack_messages(messages) or b"")) for messages in versions)
