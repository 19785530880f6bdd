"""Run an agent over a file, kill it in the middle of a step, resume it in another process, and count.

python examples/demo README.md
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import document
from agent import build_graph
from history import Cost, bytes_on_disk, full_copies, tell
from journal import Entry, Journal, redone, started_twice, unfinished
from langchain_core.messages import ToolMessage
from model import AT_ONCE
from report import Report

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver

HERE = Path(__file__).parent
POLL = 0.02
PATIENCE = 60


class DemoError(Exception):
    """The demo did not show what it set out to show."""


class DirectoryError(Exception):
    """There is no place to keep the run."""


@dataclass(frozen=True)
class Demo:
    """Where everything of one run is."""

    file: Path
    directory: Path
    pace: float
    parts: int
    thread: str = "demo"

    @cached_property
    def journal(self) -> Journal:
        """The log of side effects."""
        return Journal(self.directory / "tool-calls.log")

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "agents.db"

    @property
    def url(self) -> str:
        """The same, as the saver wants it."""
        return f"sqlite:///{quote(str(self.database))}"

    @property
    def summary(self) -> Path:
        """The agent's product."""
        return self.directory / "summary.md"

    @property
    def config(self) -> RunnableConfig:
        """The thread that both workers run."""
        return {"configurable": {"thread_id": self.thread}}

    @cached_property
    def victim(self) -> str:
        """The tool call during which the first worker dies: the second of a pair, halfway through."""
        middle = (self.parts // 2 // AT_ONCE + 1) * AT_ONCE
        return f"read_part {min(middle, self.parts // AT_ONCE * AT_ONCE or 1)}"

    @cached_property
    def sibling(self) -> str | None:
        """The call that runs beside the victim and gets to finish."""
        number = int(self.victim.split()[-1])
        return f"read_part {number - 1}" if number > 1 else None


def main() -> int:
    """Run the demo and return its exit code."""
    options = parse_options()
    report = Report()
    try:
        text = document.load(options.file)
        demo = Demo(options.file, options.dir, options.pace, len(document.split(text)))
        clear(demo)
        run(demo, report)
    except (document.DocumentError, DirectoryError) as error:
        return report.failed(str(error), 2)
    except (DemoError, HarnessError) as error:
        return report.failed(str(error), 1)
    except KeyboardInterrupt:
        return report.failed("stopped", 130)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="demo", description="An agent is killed and resumes.")
    parser.add_argument("file", type=Path, help="a text file to read")
    parser.add_argument("--dir", type=Path, default=Path(".demo"), help="where to keep the run (.demo)")
    pace = float(os.environ.get("DEMO_PACE", "0.3"))
    parser.add_argument("--pace", type=float, default=pace, help="seconds that a tool call takes (0.3)")
    return parser.parse_args()


def clear(demo: Demo) -> None:
    """Remove what an earlier run left."""
    ours = (demo.database.name, demo.journal.path.name, demo.summary.name, "worker-")
    try:
        demo.directory.mkdir(parents=True, exist_ok=True)
        for path in demo.directory.iterdir():
            if path.name.startswith(ours):
                path.unlink()
        demo.journal.path.touch()
    except OSError as error:
        raise DirectoryError(
            f"cannot use {demo.directory} ({error.strerror}); choose another: make demo DEMO_DIR=/tmp/demo"
        ) from None


def run(demo: Demo, report: Report) -> None:
    """Kill one worker, let another finish, and show what happened."""
    report.opening(demo.file, demo.parts, demo.database)
    with HarnessCheckpointer.from_conn_string(demo.url) as saver:
        first_worker(demo, report, saver)
        second_worker(demo, report)
        check(demo.journal.entries())
        graph = build_graph(demo.file, demo.summary, saver)
        snapshots = list(graph.get_state_history(demo.config))
        counts = full_copies(saver, demo.config)
    report.answer(snapshots[0].values["messages"][-1].text, demo.file, demo.summary)
    report.history(tell(snapshots))
    checkpoints, writes, size = counts
    report.cost(Cost(checkpoints, writes, bytes_on_disk(demo.database), size), demo.database)
    report.verdict(demo.journal.entries(), demo.journal.path)


def first_worker(demo: Demo, report: Report, saver: BaseCheckpointSaver[Any]) -> None:
    """Start the thread and kill the process in the middle of a step."""
    with worker(demo, 1, "--hold", demo.victim) as process:
        report.started(1, process.pid, "graph.invoke(task, config)")
        follow(demo, report, process, 1, until=lambda: in_mid_step(demo, saver))
        process.send_signal(signal.SIGKILL)
        process.wait()
    latest = saver.get_tuple(demo.config)
    if latest is None:
        raise DemoError("nothing was stored before the kill")
    report.killed(demo.victim, demo.sibling, latest.metadata["step"])


def in_mid_step(demo: Demo, saver: BaseCheckpointSaver[Any]) -> bool:
    """Tell whether the victim has begun and its sibling's result is on disk."""
    if demo.victim not in unfinished(demo.journal.entries()):
        return False
    latest = saver.get_tuple(demo.config)
    return demo.sibling is None or (
        latest is not None and demo.sibling in stored_results(latest.pending_writes)
    )


def stored_results(pending: list[tuple[str, str, Any]] | None) -> set[str]:
    """List the tool calls whose results are stored beside an unfinished step."""
    return {
        message.tool_call_id
        for _, channel, value in pending or []
        if channel == "messages"
        for message in value
        if isinstance(message, ToolMessage)
    }


def second_worker(demo: Demo, report: Report) -> None:
    """Resume the thread in a new process and let it finish."""
    with worker(demo, 2, "--resume") as process:
        report.started(2, process.pid, "graph.invoke(None, config)")
        follow(demo, report, process, 2, until=lambda: process.poll() is not None)
        if process.returncode:
            raise DemoError(last_words(demo, 2))


@contextmanager
def worker(demo: Demo, number: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker process, and leave none behind."""
    options = {
        "--url": demo.url,
        "--thread": demo.thread,
        "--number": number,
        "--file": demo.file,
        "--summary": demo.summary,
        "--journal": demo.journal.path,
        "--pace": demo.pace,
    }
    command = [
        sys.executable,
        str(HERE / "worker.py"),
        *(str(word) for pair in options.items() for word in pair),
    ]
    with (
        errors_of(demo, number).open("wb") as errors,
        subprocess.Popen([*command, *more], stderr=errors) as process,  # noqa: S603
    ):
        try:
            yield process
        finally:
            process.kill()


def follow(
    demo: Demo, report: Report, process: subprocess.Popen[bytes], number: int, until: Callable[[], bool]
) -> None:
    """Show a worker's tool calls as they come, until there is no more to see."""
    deadline = time.monotonic() + PATIENCE
    shown = 0
    with report.progress() as progress:
        while True:
            over = until()
            entries = [entry for entry in demo.journal.entries() if entry.worker == number]
            for entry in entries[shown:]:
                progress.show(entry, again=number > 1 and entry.call_id == demo.victim)
            shown = len(entries)
            if over:
                return
            if process.poll() is not None and number == 1:
                raise DemoError(last_words(demo, number))
            if time.monotonic() > deadline:
                raise DemoError(f"worker {number} has not come to an end in {PATIENCE} seconds")
            time.sleep(POLL)


def errors_of(demo: Demo, number: int) -> Path:
    """Name the file that a worker's errors go to."""
    return demo.directory / f"worker-{number}.err"


def last_words(demo: Demo, number: int) -> str:
    """Quote the end of what a failed worker said."""
    said = errors_of(demo, number).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = said[-1] if said else "it said nothing"
    return f"worker {number} failed: {reason} (more in {errors_of(demo, number)})"


def check(entries: list[Entry]) -> None:
    """Refuse a run in which anything that was finished ran again, or anything stayed undone."""
    if again := redone(entries):
        raise DemoError(f"finished, yet done again after the kill: {', '.join(again)}")
    if left := unfinished(entries):
        raise DemoError(f"never finished: {', '.join(left)}")
    if not started_twice(entries):
        raise DemoError("no tool call was in flight when the first worker was killed")


if __name__ == "__main__":
    sys.exit(main())
