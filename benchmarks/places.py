"""Where the benchmarks store things: folders, and servers that they start and stop."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import servers

POOL = 10
"""How many connections the peer has, in its best configuration."""


@contextmanager
def postgres() -> Iterator[servers.PostgresServer]:
    """Run a server that waits for the disk at every commit, as one in earnest does."""
    with servers.PostgresServer(fsync=True) as server:
        yield server


@contextmanager
def redis() -> Iterator[servers.RedisServer]:
    """Run a server as Redis comes: it keeps everything in memory."""
    with servers.RedisServer() as server:
        yield server


@contextmanager
def durable_redis() -> Iterator[servers.RedisServer]:
    """Run a server that waits for the disk before it answers."""
    with servers.RedisServer(durable=True) as server:
        yield server


@asynccontextmanager
async def peer(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    """Open LangGraph's saver on a pool."""
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=POOL, max_size=POOL, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver
