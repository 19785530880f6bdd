"""What the demo prints: with colours on a terminal, plain elsewhere."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from journal import Entry, started_twice
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from tools import plural

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from history import Cost, Step
    from rich.status import Status

WORKER_STYLES = {1: "cyan", 2: "magenta"}
LABEL = 22
WIDEST = 110


class Report:
    """Write the demo's story to the terminal."""

    def __init__(self) -> None:
        # A terminal that cannot show a tick should show a question mark, not a traceback.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self.console = Console(highlight=False, markup=False, soft_wrap=False)
        self.console.width = min(self.console.width, WIDEST)

    def opening(self, file: Path, parts: int, database: Path) -> None:
        """Say what is about to happen."""
        self._heading("An agent is killed, and resumes")
        self._line(f"It reads {file} in {plural(parts, 'part')}, with its state in {database}.")

    def started(self, number: int, pid: int, call: str) -> None:
        """Introduce a worker process."""
        self.console.print()
        self._line(
            (f"Worker {number}", f"bold {WORKER_STYLES[number]}"), f", process {pid}: ", (call, "bold")
        )

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show tool calls as they happen."""
        with self.console.status(Text("starting"), spinner="dots") as status:
            yield Progress(self, status)

    def killed(self, victim: str, sibling: str | None, step: int) -> None:
        """Say what the kill cut off, and what is safe."""
        self.call("✗", victim, "SIGKILL in the middle of it", "bold red")
        safe = f"Steps up to {step} are on disk"
        half = f", and of step {step + 1} the finished {sibling}." if sibling else "."
        self._line((safe + half, "dim"), indent=4)

    def answer(self, text: str, file: Path, summary: Path) -> None:
        """Print the agent's answer."""
        self._heading(f"Answer: {file.name}")
        self.console.print(Padding(Markdown(text), (0, 1)))
        self._line((f"Also in {summary}", "dim"))

    def history(self, steps: list[Step]) -> None:
        """Print a line for every checkpoint."""
        self._heading("History: graph.get_state_history(config)")
        table = Table(box=None, pad_edge=False, header_style="dim", expand=True, padding=(0, 2, 0, 0))
        table.add_column("step", justify="right", width=4)
        table.add_column("node", width=5)
        table.add_column("what it did", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("id", width=6, style="dim")
        table.add_column("worker", justify="right", width=6)
        for step in steps:
            table.add_row(
                str(step.number),
                step.node,
                step.deed,
                "…" + step.checkpoint_id[-5:],
                Text(str(step.worker), WORKER_STYLES[step.worker]),
            )
        self.console.print(table)

    def cost(self, cost: Cost, database: Path) -> None:
        """Print what the thread takes, beside full copies."""
        self._heading("Cost")
        count = f"{plural(cost.checkpoints, 'checkpoint')} with {plural(cost.writes, 'write')}"
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(justify="right", no_wrap=True, style="bold")
        table.add_column(ratio=1)
        table.add_row(f"{cost.on_disk:,} bytes", f"on disk for {count}: all of {database}")
        table.add_row(
            f"{cost.full_copies:,} bytes",
            "as full copies: each of these checkpoints and writes whole, as LangGraph's JsonPlusSerializer "
            "writes it, with no database around it yet",
        )
        self.console.print(table)
        self._line((_ratio(cost), "bold green" if cost.on_disk < cost.full_copies else "yellow"))

    def verdict(self, entries: list[Entry], journal: Path) -> None:
        """Say how often each tool call ran."""
        again = started_twice(entries)
        done = [entry for entry in entries if entry.event == "done"]
        self._heading("Nothing finished was redone")
        self._line(
            ("✓ ", "green"), f"{plural(len(done), 'tool call')} finished, each of them once: {journal}"
        )
        self._line(
            ("↻ ", "yellow"),
            f"{', '.join(again)} began twice: the kill cut it off in flight; only what finished is stored",
        )

    def failed(self, message: str, code: int) -> int:
        """Print one line to stderr and hand back the exit code."""
        print(f"demo: {message}", file=sys.stderr)
        return code

    def _heading(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(title, "bold"), align="left", style="dim"))

    def _line(self, *parts: str | tuple[str, str], indent: int = 0) -> None:
        self.console.print(Padding(Text.assemble(*parts), (0, 0, 0, indent), expand=False))

    def call(self, sign: str, call_id: str, detail: str, style: str) -> None:
        """Print one line about a tool call."""
        line = Text.assemble(
            "  ", (sign, style), f" {call_id:<{LABEL}} ", (detail, "dim" if sign == "✓" else style)
        )
        self.console.print(line, no_wrap=True, overflow="ellipsis")


class Progress:
    """The tool calls of one worker, and which of them are under way."""

    def __init__(self, report: Report, status: Status) -> None:
        self._report = report
        self._status = status
        self._running: list[str] = []

    def show(self, entry: Entry, *, again: bool) -> None:
        """Print a finished call; keep a begun one beside the spinner."""
        if entry.event == "start":
            self._running.append(entry.call_id)
            if again:
                self._report.call("↻", entry.call_id, "started again", "yellow")
        else:
            self._running.remove(entry.call_id)
            self._report.call("✓", entry.call_id, entry.detail, "green")
        self._status.update(Text(", ".join(self._running) or "thinking"))


def _ratio(cost: Cost) -> str:
    if cost.on_disk < cost.full_copies:
        return f"Full copies would have taken {cost.full_copies / cost.on_disk:.1f} times as much."
    return "On so short a run a database's own pages and indexes outweigh what differences save."
