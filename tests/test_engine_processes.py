"""Processes that are killed amid an engine's operations: the state is the one before or the one after."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, RedisPlace, SqlitePlace
from helpers import CLEAN, thread
from test_engine_travel import rows_left
from test_processes import (
    Acks,
    arguments_of,
    kill_amid,
    open_file,
    pytestmark,  # noqa: F401
    values_of,
    writes_of,
)

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine

LENGTH = 6
TARGET = LENGTH - 2
KILLS = 2
UNDER_WAY_SECONDS = 30.0
MOST_BRANCHES = 8


def put_line(saver: Any, thread_id: str) -> None:
    """Put some checkpoints, and under each what a subgraph with a memory made."""
    for number in range(LENGTH):
        config, checkpoint, metadata, versions = arguments_of(thread_id, number)
        stored = saver.put(config, checkpoint, metadata, versions)
        if number < LENGTH - 1:
            saver.put_writes(stored, writes_of(number), "task")
        _, inner, _, _ = arguments_of("sub", number)
        inner["id"] = inner_id(number)
        described = {"step": number, "source": "input", "parents": {"": checkpoint["id"]}}
        saver.put(thread(thread_id, ns="sub"), inner, described, inner["channel_versions"])


def inner_id(number: int) -> str:
    return f"{number:07d}s"


def begun(url: str) -> tuple[HarnessCheckpointer, Any]:
    saver = open_file(url)
    if saver.get_tuple(thread("line")) is None:
        put_line(saver, "line")
    return saver, CheckpointEngine(saver).sync


def branch(url: str, acks: Acks) -> None:
    (_, engine), ack = begun(url), acks.opened()
    for number in count(len(acks.read())):
        made = engine.list_branches("line")
        if len(made) == MOST_BRANCHES:
            ack(["deleting", made[0].thread_id])
            engine.delete_thread(made[0].thread_id)
        ack(["made", engine.branch(f"{TARGET:08d}", f"branch {number}", "line")])


def check_branches(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    made = [record.thread_id for record in engine.list_branches("line")]
    told = acks.read()
    going = {branch_id for what, branch_id in told if what == "deleting"}
    assert {branch_id for _, branch_id in told} - going <= set(made)
    rows = list(saver.list(None))
    assert {item.config["configurable"]["thread_id"] for item in rows} == {"line", *made}
    assert len(rows) == 2 * LENGTH + 2 * len(made)
    for branch_id in made:
        check_states(saver, "line", branch_id, range(TARGET + 1))


def rewind(url: str, acks: Acks) -> None:
    (_, engine), ack = begun(url), acks.opened()
    while True:
        ack(engine.rewind(f"{TARGET:08d}", "line").checkpoint.metadata.checkpoint_id)


def check_rewinds(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    check_states(saver, "line", "line", range(LENGTH))
    copies = check_copies(saver)
    assert set(acks.read()) <= copies
    assert len(list(saver.list(thread("line", ns="")))) == LENGTH + len(copies)


def check_copies(saver: HarnessCheckpointer) -> set[str]:
    """Check what rewinds have made: the root's copy and the subgraph's, never one alone."""
    roots = {
        item.checkpoint["id"]: item
        for item in saver.list(thread("line", ns=""))
        if item.metadata.get("rewound_from") is not None
    }
    under = [
        item.metadata["parents"][""]
        for item in saver.list(thread("line", ns="sub"))
        if item.metadata["parents"][""] not in {f"{number:08d}" for number in range(LENGTH)}
    ]
    for item in roots.values():
        assert item.checkpoint["channel_values"] == values_of("line", TARGET)
    assert sorted(under) == sorted(roots)
    return set(roots)


def rewind_and_discard(url: str, acks: Acks) -> None:
    (saver, engine), ack = begun(url), acks.opened()
    while True:
        head = saver.get_tuple(thread("line"))
        for number in range(3):
            config, checkpoint, _, versions = arguments_of("later", number)
            # Ids of now follow those that the file began with, and `_` whatever they are.
            checkpoint["id"] = head.checkpoint["id"] + "_"
            config["configurable"].update(thread_id="line", checkpoint_id=head.checkpoint["id"])
            saver.put(config, checkpoint, {"step": 100 + number}, versions)
            head = saver.get_tuple(thread("line"))
        # Only what came of the target goes, and after a rewind that comes of its copy.
        target = head
        while target.checkpoint["id"] != f"{TARGET:08d}" and "rewound_from" not in target.metadata:
            target = saver.get_tuple(target.parent_config)
        result = engine.rewind(target.checkpoint["id"], "line", discard_later=True)
        ack(result.checkpoint.metadata.checkpoint_id)


def check_discards(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    check_states(saver, "line", "line", range(TARGET + 1))
    roots = {item.checkpoint["id"]: item for item in saver.list(thread("line", ns=""))}
    copies = check_copies(saver)
    line = []
    head = saver.get_tuple(thread("line"))
    while head is not None:
        line.append(head.checkpoint["id"])
        head = saver.get_tuple(head.parent_config) if head.parent_config else None
    left = roots.keys() - {f"{number:08d}" for number in range(LENGTH)}
    assert left - copies <= set(line), "what was discarded came of what is left"
    for checkpoint_id in left - copies:
        number = roots[checkpoint_id].metadata["step"] - 100
        assert roots[checkpoint_id].checkpoint["channel_values"] == values_of("later", number)


def merge(url: str, acks: Acks) -> None:
    (saver, engine), ack = begun(url), acks.opened()
    while True:
        head = saver.get_tuple(thread("line"))
        assert head is not None
        # One that was killed may have left its branch.
        made = engine.branch(head.checkpoint["id"], f"{head.checkpoint['id']} in {os.getpid()}", "line")
        config, checkpoint, _, versions = arguments_of("branch", head.metadata["step"] + 1)
        checkpoint["id"] = head.checkpoint["id"] + "_"
        config["configurable"].update(thread_id=made, checkpoint_id=head.checkpoint["id"])
        saver.put(config, checkpoint, {"step": head.metadata["step"] + 1}, versions)
        ack(engine.merge_branch(made, "line").checkpoint_id)
        engine.delete_thread(made)


def check_merges(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    roots = {item.checkpoint["id"]: item for item in saver.list(thread("line", ns=""))}
    assert set(acks.read()) <= roots.keys()
    merged = [item for item in roots.values() if "merged_from" in item.metadata]
    assert len(merged) == len(roots) - LENGTH
    for item in merged:
        number = item.metadata["step"] - 1
        assert item.checkpoint["channel_values"] == values_of("branch", number)
    check_states(saver, "line", "line", range(LENGTH - 1))


def delete_source(url: str, acks: Acks) -> None:
    (saver, engine), ack = begun(url), acks.opened()
    for number in count(len(acks.read()) + 1):
        source = f"source {number} of {len(acks.read())}"
        put_line(saver, source)
        made = engine.branch(f"{TARGET:08d}", "branch", source)
        ack(["branched", source, made])
        engine.delete_thread(source)
        ack(["deleted", source, made])


def check_deletions(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    deleted = {source for what, source, _ in acks.read() if what == "deleted"}
    for _, source, made in acks.read():
        there = list(saver.list(thread(source)))
        assert len(there) == 2 * LENGTH if there else True
        assert source not in deleted or not there
        first = TARGET if not there else 0
        check_states(saver, source, made, range(first, TARGET + 1))
        found = {item.checkpoint["id"] for item in saver.list(thread(made))}
        assert found == {f"{TARGET:08d}", inner_id(TARGET)}
        assert (saver.get_tuple(thread(made)).parent_config is None) == (not there)


def check_states(saver: HarnessCheckpointer, of: str, thread_id: str, numbers: range) -> None:
    """Check checkpoints that `put` made in one thread, and another may read."""
    for number in numbers:
        item = saver.get_tuple(thread(thread_id, f"{number:08d}", ns=""))
        assert item is not None
        assert item.checkpoint["channel_values"] == values_of(of, number)
        inner = saver.get_tuple(thread(thread_id, inner_id(number), ns="sub"))
        assert inner is not None
        assert inner.checkpoint["channel_values"] == values_of("sub", number)


def tag(url: str, acks: Acks) -> None:
    (_, engine), ack = begun(url), acks.opened()
    for number in count(len(acks.read())):
        engine.tag(f"{number % LENGTH:08d}", "here", "line")
        ack(number)


def check_tags(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    last = acks.read()[-1]
    assert engine.list_tags("line")["here"] in {f"{number % LENGTH:08d}" for number in (last, last + 1)}
    check_states(saver, "line", "line", range(LENGTH))


def delete_before(url: str, acks: Acks) -> None:
    (saver, engine), ack = begun(url), acks.opened()
    for number in count(len(acks.read())):
        source = f"source {number}"
        put_line(saver, source)
        made = engine.branch(f"{TARGET - 1:08d}", "branch", source)
        ack([source, made, False])
        assert engine.delete_before(source, TARGET) == TARGET
        ack([source, made, True])


def check_shortened(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    for source, made, is_done in acks.read():
        found = {item.checkpoint["id"] for item in saver.list(thread(source, ns=""))}
        assert found == {f"{number:08d}" for number in range(LENGTH) if number >= TARGET} or (
            not is_done and len(found) == LENGTH
        )
        first = TARGET if len(found) < LENGTH else 0
        for number in range(first, LENGTH):
            item = saver.get_tuple(thread(source, f"{number:08d}", ns=""))
            assert item is not None
            assert item.checkpoint["channel_values"] == values_of(source, number)
        check_states(saver, source, made, range(TARGET - 1, TARGET))


def delete_family(url: str, acks: Acks) -> None:
    (saver, engine), ack = begun(url), acks.opened()
    for number in count(len(acks.read())):
        source = f"source {number} of {os.getpid()}"
        put_line(saver, source)
        first = engine.branch(f"{TARGET:08d}", "first", source)
        threads = [source, first, engine.branch(f"{TARGET:08d}", "second", first)]
        ack([threads, False])
        assert engine.delete_thread(source, branches=True) == 2 * LENGTH + 4
        ack([threads, True])


def check_families(saver: HarnessCheckpointer, engine: Any, acks: Acks) -> None:
    """All of them are there, or none."""
    for threads, is_done in acks.read():
        left = [one for one in threads if list(saver.list(thread(one)))]
        assert left in (([],) if is_done else ([], threads))
        for one in left:
            check_states(saver, threads[0], one, range(TARGET + 1))


OPERATIONS = {
    branch: check_branches,
    rewind: check_rewinds,
    rewind_and_discard: check_discards,
    merge: check_merges,
    delete_source: check_deletions,
    tag: check_tags,
    delete_before: check_shortened,
    delete_family: check_families,
}


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("operate", OPERATIONS)
def test_an_operation_that_is_killed_happens_or_does_not(
    operate: Callable[[str, Acks], None], place: Place, tmp_path: Path
) -> None:
    url, acks = place.url, Acks(tmp_path / "acks")
    for seed in range(KILLS if isinstance(place, SqlitePlace) else 1):
        kill_amid(CLEAN.Process(target=operate, args=(url, acks)), acks, seed)
        with open_file(url) as saver:
            OPERATIONS[operate](saver, CheckpointEngine(saver).sync, acks)
    with open_file(url) as saver:
        for thread_id in {item.config["configurable"]["thread_id"] for item in saver.list(None)}:
            saver.delete_thread(thread_id)
        # A killed process may leave entries of Redis' indexes, which sweeps find, those of a branch that may
        # still be under way only when its time is over.
        deadline = time.monotonic() + (UNDER_WAY_SECONDS if isinstance(place, RedisPlace) else 0)
        while rows_left(place, saver) and time.monotonic() < deadline:
            saver.run_sync(saver._core.sweep())
        assert rows_left(place, saver) == 0
