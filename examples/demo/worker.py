"""One process of the demo: starts the agent's thread, or resumes it, and runs it to the end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent import build_graph, task_for
from journal import Entry, Journal
from langchain_core.messages import ToolMessage
from tools import describe

from langgraph_harness_saver import HarnessCheckpointer

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig
    from langgraph.prebuilt.tool_node import ToolCallRequest, ToolCallWrapper
    from langgraph.types import Command

WAIT_FOR_KILL = 60


def main() -> None:
    """Run the agent on the thread, from its last checkpoint if it has one."""
    options = parse_options()
    journal = Journal(options.journal)
    config: RunnableConfig = {
        "configurable": {"thread_id": options.thread},
        "metadata": {"worker": options.number},
        "recursion_limit": 200,
    }
    with HarnessCheckpointer.from_conn_string(options.url) as saver:
        graph = build_graph(
            options.file,
            options.summary,
            saver,
            journaled(journal, options.number, options.pace, options.hold),
        )
        graph.invoke(None if options.resume else task_for(options.file), config, durability="sync")


def parse_options() -> argparse.Namespace:
    """Read the command line that the driver wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--thread", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--hold", help="the tool call that never comes back")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def journaled(journal: Journal, worker: int, pace: float, hold: str | None) -> ToolCallWrapper:
    """Log every tool call before and after it runs."""

    def wrapper(
        request: ToolCallRequest, execute: Callable[[ToolCallRequest], ToolMessage | Command[str]]
    ) -> ToolMessage | Command[str]:
        call_id = request.tool_call["id"] or ""
        journal.append(Entry(worker, "start", call_id))
        time.sleep(pace)
        if call_id == hold:
            # Stands for a slow service, so that the kill lands within a step and never beside it.
            time.sleep(WAIT_FOR_KILL)
            raise RuntimeError("nobody killed this process")
        result = execute(request)
        journal.append(
            Entry(worker, "done", call_id, describe(result) if isinstance(result, ToolMessage) else "")
        )
        return result

    return wrapper


if __name__ == "__main__":
    main()
