"""The benchmarks run, on next to nothing; what they find on this machine now means nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import workloads
from langgraph.checkpoint.memory import InMemorySaver
from places import Places

from langgraph_harness_saver import HarnessCheckpointer

if TYPE_CHECKING:
    pass

Work = "Callable[[Any], Awaitable[Any]]"


async def reading(saver: Any) -> None:
    config = workloads.new_thread()
    await workloads.chat(saver, 2, config)
    assert await workloads.history(saver, config, 6) > 0
    assert await workloads.latest(saver, config, 3) > 0


async def crowd(saver: Any) -> None:
    configs = await workloads.fill(saver, 4, 3, clients=2)
    found = await workloads.probe(saver, configs)
    assert all(seconds > 0 for seconds in found.values())


WORK: dict[str, Work] = {
    "steps": lambda saver: workloads.steps(saver, 3, 4),
    "chat": lambda saver: workloads.chat(saver, 2),
    "graphs": lambda saver: workloads.graphs(saver, 3, 2),
    "document": lambda saver: workloads.document(saver, 20_000, 3),
    "entries": lambda saver: workloads.entries(saver, 50, 3),
    "serve": lambda saver: workloads.serve(saver, 3, 2),
    "calls": lambda saver: workloads.put_async(saver, 3),
    "reading": reading,
    "crowd": crowd,
} | {kind: partial(workloads.edits, edit=edit, length=20, count=15) for kind, edit in workloads.EDITS.items()}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "InMemorySaver"])
def test_workloads_run_over_any_saver(work: Work, ours: bool) -> None:
    async def run() -> None:
        if ours:
            async with HarnessCheckpointer() as saver:
                await work(saver)
        else:
            await work(InMemorySaver())

    asyncio.run(run())


def test_sync_calls() -> None:
    assert workloads.put_sync(HarnessCheckpointer(), 3) > 0


def test_edits_leave_what_they_say() -> None:
    first, *_, last = workloads.versions_of_list(workloads.summarised, 60, 30)
    assert (len(first), len(last) <= 110) == (70, True)
    assert len([*workloads.versions_of_list(workloads.removed, 10, 5)][-1]) == 10


def test_a_run_is_measured_merged_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra bench isn't installed")
    pytest.importorskip("langgraph.checkpoint.sqlite", reason="the extra bench isn't installed")
    import report
    from contenders import chosen
    from measures import FULL, GROUPS, Bench
    from plots import draw

    sizes = FULL._replace(
        steps=4,
        clients=(1, 2),
        turns=2,
        at_once=(2, 1),
        lengths=(1, 2),
        reads=2,
        long_turns=(2, 3),
        peer_turns=2,
        document=(9000, 2),
        entries=(5, 2),
        edits=(9, 2),
        threads=4,
        checkpoints=2,
        probes=2,
        served=2,
        calls=2,
    )
    about = {**report.machine(), "servers": {}}
    with ExitStack() as stack:
        bench = Bench(Places(tmp_path, stack), chosen(["memory", "sqlite"]), sizes)
        for name, group in GROUPS.items():
            bench.found.clear()
            group.work(bench)
            assert bench.found, name
            whole = report.save(tmp_path / "results.json", about, bench.found)
    assert json.loads((tmp_path / "results.json").read_text()) == whole
    assert {"steps/s, 1 client", "seconds to list 6 checkpoints"} <= whole["results"].keys()
    draw(whole, tmp_path)
    assert {file.name for file in tmp_path.glob("*.svg")} == {"bytes.svg", "steps.svg", "history.svg"}
    report.show(whole)
    report.write(tmp_path / "README.md", whole)
    assert "| seconds for get, 8 checkpoints |" in (tmp_path / "README.md").read_text()
