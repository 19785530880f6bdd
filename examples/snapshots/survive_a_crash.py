"""A harness without any graph dies amid a tool call; a new process goes on from its last snapshot.

Run it: python examples/snapshots/survive_a_crash.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langgraph_harness_saver import CheckpointEngine, HarnessCheckpointer, SnapshotConfig, SnapshotTrigger

TASKS = ["fetch", "clean", "count"]


def work(url: str, *, dies_at: str = "") -> None:
    """Run the tasks that a thread hasn't finished yet, each as a tool call."""
    with HarnessCheckpointer.from_conn_string(url) as saver:
        engine = CheckpointEngine(saver, config=SnapshotConfig(triggers=["tool_call", "task_boundary"]))
        state: dict[str, Any] = {"messages": [("user", "prepare the report")], "done": []}
        if last := engine.sync.get_latest("report"):
            state = {**last.state, "messages": last.messages}
            print("going on after", state["done"])

        @engine.snapshot_on(SnapshotTrigger.TOOL_CALL)
        def tool(name: str) -> str:
            if name == dies_at:
                # As a process dies that the system kills: nothing is closed, nothing said.
                os._exit(9)
            state["done"].append(name)
            state["messages"].append(("ai", f"{name} is done"))
            return f"result of {name}"

        with engine.snapshot_scope("report", state, tags=["finished"]):
            for name in TASKS:
                if name not in state["done"]:
                    print(tool(name))


def main() -> None:
    """Work in a process that dies, then in one that doesn't, then look at what is stored."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'agents.db'}"
        first = subprocess.run([sys.executable, __file__, url, "count"], check=False)  # noqa: S603
        print("the first process ended with", first.returncode)
        subprocess.run([sys.executable, __file__, url], check=True)  # noqa: S603
        with HarnessCheckpointer.from_conn_string(url) as saver:
            engine = CheckpointEngine(saver).sync
            for item in reversed(engine.list_checkpoints("report")):
                print(f"{item.step:>2}  {item.trigger:13}  {item.summary}")
            print("finished:", engine.get_tagged("finished", "report").state)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    if len(sys.argv) > 1:
        work(sys.argv[1], dies_at=sys.argv[2] if len(sys.argv) > 2 else "")
    else:
        main()
