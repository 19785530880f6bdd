"""Bytes on disk of one chat, ours beside LangGraph's savers: python benchmarks/storage.py."""

from __future__ import annotations

import random
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from places import postgres, servers
from rich.console import Console
from rich.table import Table
from workloads import chat, chat_graph

from langgraph_harness_saver import HarnessCheckpointer

TURNS = (20, 100, 200)

Opener = Callable[[str], AbstractContextManager[Any]]


def theirs_on_postgres(url: str) -> AbstractContextManager[Any]:
    """Open LangGraph's saver."""
    return PostgresSaver.from_conn_string(url)


def measure(opener: Opener, url: str, weigh: Callable[[], int]) -> list[float]:
    """Return the bytes per turn at each of TURNS, with the saver closed."""
    rng, thread_id = random.Random(1), str(uuid.uuid4())
    found = []
    done = 0
    for turns in TURNS:
        with opener(url) as saver:
            saver.setup()
            chat(chat_graph(saver, rng), rng, turns - done, thread_id)
        done = turns
        found.append(weigh() / turns)
    return found


def in_file(opener: Callable[[Path], tuple[Opener, str]]) -> list[float]:
    """Measure a saver that stores into files, of which all are counted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return measure(*opener(folder), lambda: sum(file.stat().st_size for file in folder.iterdir()))


def in_postgres(opener: Opener, server: servers.PostgresServer) -> list[float]:
    """Measure a saver in a schema of its own."""
    url = servers.new_schema_url(server)
    return measure(opener, url, lambda: server.size_of(url))


def main() -> None:
    """Print the table."""
    ours = HarnessCheckpointer.from_conn_string
    rows = {
        "HarnessCheckpointer, SQLite": in_file(lambda folder: (ours, f"sqlite:///{folder}/chat.db")),
        "SqliteSaver": in_file(lambda folder: (SqliteSaver.from_conn_string, f"{folder}/chat.db")),
    }
    with postgres() as server:
        rows["HarnessCheckpointer, Postgres"] = in_postgres(ours, server)
        rows["PostgresSaver"] = in_postgres(theirs_on_postgres, server)
    table = Table("saver", *(f"{turns} turns" for turns in TURNS), title="bytes per turn, everything counted")
    for name, found in rows.items():
        table.add_row(name, *(f"{each:,.0f}" for each in found))
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
