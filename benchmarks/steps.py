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
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from places import peer, postgres, servers
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
]


class Places:
    """Gives a fresh database for each measurement."""

    def __init__(self, folder: str, server: servers.PostgresServer | None) -> None:
        self.folder = folder
        self.server = server

    def new(self, place: str) -> str:
        """Return the URL of an empty database."""
        if place == "memory":
            return "memory://"
        if place == "sqlite":
            return f"sqlite:///{self.folder}/{uuid.uuid4()}.db"
        assert self.server is not None
        return servers.new_schema_url(self.server)


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


def run(contenders: list[Contender], places: Places) -> dict[tuple[str, int], list[float]]:
    """Return steps per second by contender and number of clients, one for each round."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for contender in contenders:
            for clients in CLIENTS:
                url = places.new(contender.place)
                speed = asyncio.run(measure(contender, url, clients))
                found.setdefault((contender.name, clients), []).append(speed)
            if contender.place == "postgres" and contender.peer and places.server:
                speed, commit = asyncio.run(bare(places.server, url))
                found.setdefault(("bare asyncpg", 1), []).append(speed)
                found.setdefault(("commit", 1), []).append(commit)
    return found


def main(wanted: list[str]) -> None:
    """Print the table: medians of interleaved rounds, and the ratio to the peer."""
    contenders = [contender for contender in CONTENDERS if not wanted or contender.place in wanted]
    with tempfile.TemporaryDirectory() as folder:
        if any(contender.place == "postgres" for contender in contenders):
            with postgres() as server:
                found = run(contenders, Places(folder, server))
        else:
            found = run(contenders, Places(folder, None))
    median = {key: statistics.median(speeds) for key, speeds in found.items()}
    table = Table("saver", *(f"{clients} clients" for clients in CLIENTS), title="steps per second")
    for name, _, _, peer_name in contenders:
        cells = []
        for clients in CLIENTS:
            ratio = f" ({median[name, clients] / median[peer_name, clients]:.2f}x)" if peer_name else ""
            cells.append(f"{median[name, clients]:,.0f}{ratio}")
        table.add_row(name, *cells)
    if ("commit", 1) in median:
        table.add_row("asyncpg alone, as many bytes and commits", f"{median['bare asyncpg', 1]:,.0f}", "")
        table.caption = f"a commit takes {median['commit', 1] * 1e6:,.0f} µs to reach the disk"
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
