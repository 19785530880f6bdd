"""The side effects of the agent's tools: one line in a file for every start and every end."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One line: a tool call began, or was done."""

    worker: int
    event: Literal["start", "done"]
    call_id: str
    detail: str = ""


class Journal:
    """Append to the file, and read it from any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        """Add a line in one write, so that parallel tools cannot mix theirs."""
        line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def entries(self) -> list[Entry]:
        """Read every whole line."""
        if not self.path.exists():
            return []
        # The last piece is empty, or a line that is being written.
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [Entry(**json.loads(line)) for line in lines]


def redone(entries: list[Entry]) -> list[str]:
    """List the calls that ran again although they had finished."""
    finished: set[str] = set()
    again: list[str] = []
    for entry in entries:
        if entry.event == "start" and entry.call_id in finished:
            again.append(entry.call_id)
        if entry.event == "done":
            finished.add(entry.call_id)
    return again


def unfinished(entries: list[Entry]) -> list[str]:
    """List the calls that began and were never done."""
    done = {entry.call_id for entry in entries if entry.event == "done"}
    return sorted({entry.call_id for entry in entries} - done)


def started_twice(entries: list[Entry]) -> list[str]:
    """List the calls that began more than once."""
    starts = Counter(entry.call_id for entry in entries if entry.event == "start")
    return sorted(call_id for call_id, count in starts.items() if count > 1)
