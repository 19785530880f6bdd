"""The savers that are compared, each in its best public configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from langgraph_harness_saver import HarnessCheckpointer

POOL = 10
"""How many connections AsyncPostgresSaver has; ours has as many by default."""

Opener = Callable[[str], AbstractAsyncContextManager[Any]]


class Contender(NamedTuple):
    """A saver, the store that it is on, and whether it is ours."""

    name: str
    store: str
    opener: Opener
    ours: bool = False


@asynccontextmanager
async def in_memory(_: str) -> AsyncIterator[Any]:
    """Open LangGraph's saver in memory."""
    yield InMemorySaver()


@asynccontextmanager
async def on_a_pool(url: str) -> AsyncIterator[Any]:
    """Open LangGraph's saver on a pool."""
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=POOL, max_size=POOL, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


def ours(url: str) -> AbstractAsyncContextManager[Any]:
    """Open our saver."""
    return HarnessCheckpointer.from_conn_string(url)


def on_a_file(url: str) -> AbstractAsyncContextManager[Any]:
    """Open LangGraph's saver on a file."""
    return AsyncSqliteSaver.from_conn_string(url.removeprefix("sqlite:///"))


MEMORY, SQLITE, POSTGRES = "InMemorySaver", "AsyncSqliteSaver", "AsyncPostgresSaver"
CONTENDERS = [
    Contender(MEMORY, "memory", in_memory),
    Contender("ours, memory", "memory", ours, ours=True),
    Contender(SQLITE, "sqlite", on_a_file),
    Contender("ours, SQLite", "sqlite", ours, ours=True),
    Contender(POSTGRES, "postgres", on_a_pool),
    Contender("ours, Postgres", "postgres", ours, ours=True),
    Contender("ours, Redis", "redis", ours, ours=True),
]
STORES = tuple(dict.fromkeys(contender.store for contender in CONTENDERS))
PEERS = {
    "memory": (MEMORY,),
    "sqlite": (SQLITE, MEMORY),
    "postgres": (POSTGRES, MEMORY),
    "redis": (POSTGRES,),
}
"""By store: with what it is compared."""


def chosen(stores: Sequence[str]) -> list[Contender]:
    """Return ours on these stores, and those that they are compared with."""
    peers = {name for store in stores for name in PEERS[store]}
    return [one for one in CONTENDERS if (one.store in stores if one.ours else one.name in peers)]
