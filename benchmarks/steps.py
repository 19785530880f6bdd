"""Steps per second, ours beside LangGraph's savers in one run: python benchmarks/steps.py [STORE ...]."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import redis.asyncio as aioredis
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from places import durable_redis, peer, postgres, redis, servers
from rich.console import Console
from rich.table import Table
from workloads import steps

from langgraph_harness_saver import HarnessCheckpointer

ROUNDS, STEPS = 3, 1280
CLIENTS = (1, 64)

Opener = Callable[[str], AbstractAsyncContextManager[Any]]


class Contender(NamedTuple):
    """A saver, where it stores things, and with which it is compared."""

    name: str
    place: str
    opener: Opener
    peer: str | None = None


@asynccontextmanager
async def in_memory(_: str) -> AsyncIterator[Any]:
    """Open LangGraph's saver in memory."""
    yield InMemorySaver()


def ours(url: str) -> AbstractAsyncContextManager[Any]:
    """Open our saver."""
    return HarnessCheckpointer.from_conn_string(url)


CONTENDERS = [
    Contender("InMemorySaver", "memory", in_memory),
    Contender("HarnessCheckpointer, memory", "memory", ours, "InMemorySaver"),
    Contender("AsyncSqliteSaver", "sqlite", lambda url: AsyncSqliteSaver.from_conn_string(url[10:])),
    Contender("HarnessCheckpointer, SQLite", "sqlite", ours, "AsyncSqliteSaver"),
    Contender("AsyncPostgresSaver, pool of 10", "postgres", peer),
    Contender("HarnessCheckpointer, Postgres", "postgres", ours, "AsyncPostgresSaver, pool of 10"),
    Contender("HarnessCheckpointer, Redis", "redis", ours, "AsyncPostgresSaver, pool of 10"),
    Contender("HarnessCheckpointer, Redis with fsync", "redis-fsync", ours, "AsyncPostgresSaver, pool of 10"),
]
SERVERS = {"postgres": postgres, "redis": redis, "redis-fsync": durable_redis}


class Places:
    """Gives a fresh database for each measurement."""

    def __init__(self, folder: str, running: dict[str, Any]) -> None:
        self.folder = folder
        self.running = running

    def new(self, place: str) -> str:
        """Return the URL of an empty database."""
        if place == "memory":
            return "memory://"
        if place == "sqlite":
            return f"sqlite:///{self.folder}/{uuid.uuid4()}.db"
        server = self.running[place]
        if place == "postgres":
            return servers.new_schema_url(server)
        return server.url(key_prefix=servers.new_name())


async def measure(contender: Contender, url: str, clients: int) -> float:
    """Return steps per second on a fresh database."""
    async with contender.opener(url) as saver:
        await steps(saver, clients, 2)
        return await steps(saver, clients, STEPS // clients)


async def bare(server: servers.PostgresServer, url: str) -> tuple[float, float]:
    """Return what asyncpg alone does with one client, and the seconds that a commit takes.

    It stores rows of the sizes that ours stored at `url`, as many and in as many commits.
    """
    schema = servers.schema_of(url)
    tables = [f"{schema}.harness_{table}" for table in ("checkpoint", "write")]
    sizes = [server.execute(f"SELECT avg(pg_column_size(t.*))::int FROM {table} t")[0][0] for table in tables]
    connection = await asyncpg.connect(server.url())
    await connection.execute("DROP TABLE IF EXISTS bare; CREATE TABLE bare (id uuid PRIMARY KEY, data bytea)")
    insert = "INSERT INTO bare VALUES ($1, $2)"
    seconds = {}
    for wait in ("on", "off"):
        await connection.execute(f"SET synchronous_commit = {wait}")
        start = time.perf_counter()
        for _ in range(STEPS):
            for size in sizes:
                await connection.fetch(insert, uuid.uuid4(), os.urandom(size))
        seconds[wait] = time.perf_counter() - start
    await connection.close()
    return STEPS / seconds["on"], (seconds["on"] - seconds["off"]) / STEPS / len(sizes)


async def bare_redis(server: servers.RedisServer, url: str, clients: int) -> float:
    """Return what pipelines of redis-py's alone do: as many values of the sizes that ours stored at `url`."""
    prefix = url.rpartition("=")[2]
    sizes = []
    with server.client() as client:
        for kind in ("c", "w"):
            keys = [key for key in server.keys(prefix) if key.endswith(f":{kind}".encode())]
            members = [len(member) for key in keys for member in client.zrange(key, 0, -1)]
            sizes.append(sum(members) // len(members))
    async with aioredis.Redis.from_url(server.url()) as bare:
        start = time.perf_counter()
        for _ in range(STEPS // clients):
            # A step's two calls come one after the other, those of all clients at once.
            for size in sizes:
                pipe = bare.pipeline(transaction=False)
                for _ in range(clients):
                    pipe.set(uuid.uuid4().bytes, os.urandom(size))
                await pipe.execute()
        return STEPS / (time.perf_counter() - start)


def measure_all(contenders: list[Contender], places: Places) -> dict[tuple[str, int], list[float]]:
    """Return steps per second by contender and number of clients, one for each round."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for contender in contenders:
            for clients in CLIENTS:
                url = places.new(contender.place)
                speed = asyncio.run(measure(contender, url, clients))
                found.setdefault((contender.name, clients), []).append(speed)
                if contender.place == "redis":
                    speed = asyncio.run(bare_redis(places.running["redis"], url, clients))
                    found.setdefault(("bare redis-py", clients), []).append(speed)
            if contender.place == "postgres" and contender.peer:
                speed, commit = asyncio.run(bare(places.running["postgres"], url))
                found.setdefault(("bare asyncpg", 1), []).append(speed)
                found.setdefault(("commit", 1), []).append(commit)
    return found


def main(wanted: list[str]) -> None:
    """Print the table: medians of interleaved rounds, and the ratio to the peer."""
    chosen = [contender for contender in CONTENDERS if not wanted or contender.place in wanted]
    peers = {contender.peer for contender in chosen}
    contenders = [contender for contender in CONTENDERS if contender in chosen or contender.name in peers]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = {contender.place for contender in contenders}
        running = {place: stack.enter_context(start()) for place, start in SERVERS.items() if place in places}
        found = measure_all(contenders, Places(folder, running))
    median = {key: statistics.median(speeds) for key, speeds in found.items()}
    table = Table("saver", *(f"{clients} clients" for clients in CLIENTS), title="steps per second")
    for name, _, _, peer_name in contenders:
        cells = []
        for clients in CLIENTS:
            ratio = f" ({median[name, clients] / median[peer_name, clients]:.2f}x)" if peer_name else ""
            cells.append(f"{median[name, clients]:,.0f}{ratio}")
        table.add_row(name, *cells)
    if ("bare redis-py", 1) in median:
        speeds = (f"{median['bare redis-py', clients]:,.0f}" for clients in CLIENTS)
        table.add_row("redis-py's pipelines alone, as many bytes", *speeds)
    if ("commit", 1) in median:
        table.add_row("asyncpg alone, as many bytes and commits", f"{median['bare asyncpg', 1]:,.0f}", "")
        table.caption = f"a commit takes {median['commit', 1] * 1e6:,.0f} µs to reach the disk"
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
