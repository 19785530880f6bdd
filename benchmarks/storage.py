"""Bytes on disk of one chat, ours beside LangGraph's SqliteSaver: python benchmarks/storage.py."""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver
from rich.console import Console
from rich.table import Table
from workloads import chat, chat_graph

from langgraph_harness_saver import HarnessCheckpointer

TURNS = (20, 100, 200)


def ours(folder: Path) -> Any:
    """Return our saver on a file."""
    return HarnessCheckpointer.from_conn_string(f"sqlite:///{folder}/chat.db")


def theirs(folder: Path) -> Any:
    """Return LangGraph's saver on a file."""
    return SqliteSaver(sqlite3.connect(folder / "chat.db", check_same_thread=False))


def close(saver: Any) -> None:
    """Close a saver so that everything is in its file."""
    (saver.conn if isinstance(saver, SqliteSaver) else saver).close()


def measure(open_saver: Any) -> list[float]:
    """Return the bytes of all files per turn, at each of TURNS, with the database closed."""
    rng, thread_id = random.Random(1), str(uuid.uuid4())
    found = []
    with tempfile.TemporaryDirectory() as name:
        done = 0
        for turns in TURNS:
            saver = open_saver(Path(name))
            chat(chat_graph(saver, rng), rng, turns - done, thread_id)
            close(saver)
            done = turns
            found.append(sum(file.stat().st_size for file in Path(name).iterdir()) / turns)
    return found


def main() -> None:
    """Print the table."""
    table = Table("saver", *(f"{turns} turns" for turns in TURNS), title="bytes per turn, everything counted")
    rows = {"HarnessCheckpointer, SQLite": measure(ours), "SqliteSaver": measure(theirs)}
    for name, found in rows.items():
        table.add_row(name, *(f"{size:,.0f}" for size in found))
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
