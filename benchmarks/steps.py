"""Steps per second, ours beside LangGraph's savers in one run: python benchmarks/steps.py."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from rich.console import Console
from rich.table import Table
from workloads import steps

from langgraph_harness_saver import HarnessCheckpointer

ROUNDS, STEPS = 3, 1280
CLIENTS = (1, 64)

Opener = Callable[[Path], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[Any]:
    """Open LangGraph's saver in memory."""
    yield InMemorySaver()


SAVERS: dict[str, tuple[Opener, str]] = {
    "InMemorySaver": (in_memory, ""),
    "HarnessCheckpointer, memory": (lambda _: HarnessCheckpointer(), "InMemorySaver"),
    "AsyncSqliteSaver": (lambda folder: AsyncSqliteSaver.from_conn_string(f"{folder}/peer.db"), ""),
    "HarnessCheckpointer, SQLite": (
        lambda folder: HarnessCheckpointer.from_conn_string(f"sqlite:///{folder}/ours.db"),
        "AsyncSqliteSaver",
    ),
}


async def measure(opener: Opener, clients: int) -> float:
    """Return steps per second on a fresh database."""
    with tempfile.TemporaryDirectory() as name:
        async with opener(Path(name)) as saver:
            await steps(saver, clients, 2)
            return await steps(saver, clients, STEPS // clients)


def main() -> None:
    """Print the table: medians of interleaved rounds, and the ratio to the peer."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, (opener, _) in SAVERS.items():
            for clients in CLIENTS:
                found.setdefault((name, clients), []).append(asyncio.run(measure(opener, clients)))
    table = Table("saver", *(f"{clients} clients" for clients in CLIENTS), title="steps per second")
    for name, (_, peer) in SAVERS.items():
        cells = []
        for clients in CLIENTS:
            median = statistics.median(found[name, clients])
            ratio = f" ({median / statistics.median(found[peer, clients]):.2f}x)" if peer else ""
            cells.append(f"{median:,.0f}{ratio}")
        table.add_row(name, *cells)
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
