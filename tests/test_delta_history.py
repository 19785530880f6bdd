"""The history of delta channels: what it must hold, and that no deletion changes it.

A `Line` is a thread put by hand, as LangGraph would put it, beside a plain model of what was put. The model
is never pruned, so it says what a survivor must still read.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DOORS, Door, examples, id_of, thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import _DeltaSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CHANNELS = ("a", "b")
Writer = tuple[str, str, list[tuple[str, Any]]]


@dataclass
class Node:
    """One checkpoint as it was put: its own values, and the writes of its tasks."""

    parent: str | None
    values: dict[str, Any]
    run_id: str
    counters: dict[str, tuple[int, int]]
    versions: dict[str, Any]
    rows: list[tuple[str, str, int, str, Any]] = field(default_factory=list)

    @property
    def writes(self) -> list[tuple[str, str, Any]]:
        ordered = sorted(self.rows, key=lambda row: row[:3])
        return [(task_id, channel, value) for _, task_id, _, channel, value in ordered]


@dataclass
class History:
    """`seed` and write values; `task_ids` apart, since an anchor may keep writes under ids of its own."""

    seed: Any
    values: list[Any]
    task_ids: list[str]


NO_SEED = "no seed"


class Line:
    """One namespace of one thread, put through a door, with its model."""

    def __init__(self, door: Door, saver: Any, *, ns: str = "", thread_id: str | None = None) -> None:
        self.door = door
        self.saver = saver
        self.ns = ns
        self.thread_id = thread_id or str(uuid.uuid4())
        self.nodes: dict[str, Node] = {}

    def put(
        self,
        parent: str | None = None,
        values: dict[str, Any] | None = None,
        writers: Iterable[Writer] = (),
        *,
        run_id: str = "",
        counted: bool = True,
    ) -> str:
        """Store a checkpoint under `parent`, then the writes of its tasks, in the order given."""
        node = self._follow(parent, values or {}, run_id)
        checkpoint_id = str(uuid6())
        moved = {k: v for k, v in node.versions.items() if v != self._versions(parent).get(k)}
        config = thread(self.thread_id, parent, ns=self.ns)
        stored = self.door.call(
            self.saver,
            "put",
            config,
            envelope(checkpoint_id, node),
            metadata_of(node, counted=counted),
            moved,
        )
        assert stored == thread(self.thread_id, checkpoint_id, ns=self.ns)
        self.nodes[checkpoint_id] = node
        for path, task_id, writes in writers:
            self.write(checkpoint_id, path, task_id, writes)
        return checkpoint_id

    def write(self, checkpoint_id: str, path: str, task_id: str, writes: Sequence[tuple[str, Any]]) -> None:
        config = thread(self.thread_id, checkpoint_id, ns=self.ns)
        self.door.call(self.saver, "put_writes", config, writes, task_id, path)
        rows = self.nodes[checkpoint_id].rows
        rows.extend((path, task_id, index, channel, value) for index, (channel, value) in enumerate(writes))

    def chain(self, length: int, *, snapshots: Sequence[int] = (), parent: str | None = None) -> list[str]:
        """Put a line in which every step writes its own number to channel a, snapshots holding it too."""
        ids: list[str] = []
        for step in range(length):
            values = {"a": _DeltaSnapshot([f"up to {step}"])} if step in snapshots else {}
            parent = self.put(parent, values, [writer(step)])
            ids.append(parent)
        return ids

    def _versions(self, checkpoint_id: str | None) -> dict[str, Any]:
        return {} if checkpoint_id is None else self.nodes[checkpoint_id].versions

    def _follow(self, parent: str | None, values: dict[str, Any], run_id: str) -> Node:
        """Make a node as LangGraph would: what its parent's tasks wrote gets a version and is counted."""
        before = self.nodes[parent] if parent else Node(None, {}, "", {}, {})
        written = {channel for _, channel, _ in before.writes}
        versions = dict(before.versions)
        counters = {}
        for channel in sorted({*CHANNELS, *written, *values}):
            if channel in written or channel in values:
                versions[channel] = self.saver.get_next_version(versions.get(channel), None)
            updates, steps = before.counters.get(channel, (0, 0))
            if channel not in values:
                counters[channel] = (updates + (channel in written), steps + 1)
        return Node(parent, values, run_id, counters, versions)

    def expected(self, checkpoint_id: str, channel: str) -> History:
        """Walk the model as the contract says."""
        found: list[list[tuple[str, Any]]] = []
        at = self.nodes[checkpoint_id].parent
        seed: Any = NO_SEED
        while at is not None:
            node = self.nodes[at]
            found.append([(task, value) for task, name, value in node.writes if name == channel])
            if channel in node.values:
                seed = node.values[channel]
                break
            at = node.parent
        writes = [write for step in reversed(found) for write in step]
        return History(seed, [value for _, value in writes], [task for task, _ in writes])

    def histories(self, checkpoint_id: str, channels: Sequence[str] = CHANNELS) -> Iterator[dict[str, Any]]:
        """Ask the saver, and ask the base class to walk the saver."""
        config = thread(self.thread_id, checkpoint_id, ns=self.ns)
        yield self.door.call(self.saver, "get_delta_channel_history", config=config, channels=channels)
        yield self.door.call(
            BaseWalk(self.saver), "get_delta_channel_history", config=config, channels=channels
        )

    def check(self, ids: Iterable[str], channels: Sequence[str] = CHANNELS, *, intact: bool = True) -> None:
        """Compare each checkpoint's history with the model's; `intact` compares task ids as well."""
        for checkpoint_id in ids:
            for history in self.histories(checkpoint_id, channels):
                assert list(history) == list(channels)
                for channel in channels:
                    # A channel that has a value of its own is never replayed.
                    if not intact and channel in self.nodes[checkpoint_id].values:
                        continue
                    self._check_channel(
                        self.expected(checkpoint_id, channel), history[channel], channel, intact
                    )

    def _check_channel(self, expected: History, entry: dict[str, Any], channel: str, intact: bool) -> None:
        assert ("seed" in entry) == (expected.seed != NO_SEED)
        if "seed" in entry:
            assert type(entry["seed"]) is type(expected.seed)
            assert entry["seed"] == expected.seed
        assert [value for _, _, value in entry["writes"]] == expected.values
        assert {name for _, name, _ in entry["writes"]} <= {channel}
        if intact:
            assert [task for task, _, _ in entry["writes"]] == expected.task_ids

    def listed(self) -> list[str]:
        found = self.door.collect(self.saver, "list", thread(self.thread_id, ns=self.ns))
        return [id_of(item.config) for item in found]

    def latest(self) -> str | None:
        found = self.door.call(self.saver, "get_tuple", thread(self.thread_id, ns=self.ns))
        return id_of(found.config) if found else None

    def get(self, checkpoint_id: str) -> Any:
        return self.door.call(self.saver, "get_tuple", thread(self.thread_id, checkpoint_id, ns=self.ns))

    def check_deleted(self, ids: Iterable[str]) -> None:
        listed = self.listed()
        for checkpoint_id in ids:
            assert checkpoint_id not in listed
            assert self.get(checkpoint_id) is None

    def check_lineage(self, survivors: Sequence[str]) -> None:
        """Follow every parent_config to the end: all of it is readable, and no survivor is out of order."""
        assert self.listed() == sorted(survivors, reverse=True)
        assert self.latest() == max(survivors, default=None)
        for checkpoint_id in survivors:
            ancestors = [at for at in self._model_ancestors(checkpoint_id) if at in set(survivors)]
            walked = list(self._stored_ancestors(checkpoint_id))
            assert [at for at in walked if at in self.nodes] == ancestors
            assert set(walked).isdisjoint(set(self.nodes) - set(survivors))

    def _model_ancestors(self, checkpoint_id: str) -> Iterator[str]:
        while (checkpoint_id := self.nodes[checkpoint_id].parent) is not None:
            yield checkpoint_id

    def _stored_ancestors(self, checkpoint_id: str) -> Iterator[str]:
        item = self.get(checkpoint_id)
        while item.parent_config is not None:
            at = id_of(item.parent_config)
            item = self.door.call(self.saver, "get_tuple", item.parent_config)
            assert item is not None, f"parent_config leads to {at}, which is not there"
            yield at


class BaseWalk:
    """The base class's own walk over another saver, as LangGraph's server does it."""

    def __init__(self, saver: BaseCheckpointSaver) -> None:
        self.saver = saver

    def get_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Any:
        return BaseCheckpointSaver.get_delta_channel_history(self.saver, config=config, channels=channels)

    async def aget_delta_channel_history(self, *, config: Any, channels: Sequence[str]) -> Any:
        return await BaseCheckpointSaver.aget_delta_channel_history(
            self.saver, config=config, channels=channels
        )


def envelope(checkpoint_id: str, node: Node) -> dict[str, Any]:
    return {
        "v": 2,
        "id": checkpoint_id,
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": node.values,
        "channel_versions": node.versions,
        "versions_seen": {},
        "updated_channels": None,
    }


def metadata_of(node: Node, *, counted: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"source": "loop", "step": 0, "parents": {}}
    if node.run_id:
        metadata["run_id"] = node.run_id
    if counted and node.counters:
        metadata["counters_since_delta_snapshot"] = node.counters
    return metadata


def writer(
    value: Any, channel: str = "a", *, path: str = "~__pregel_pull, work", task_id: str = ""
) -> Writer:
    return (path, task_id or str(uuid.uuid4()), [(channel, value)])


WAYS = [
    *itertools.product(("memory", "sqlite"), DOORS, ("root", "nested")),
    # Servers take longer, and what a history holds is decided above them.
    *((kind, *way) for kind in ("postgres", "redis") for way in (("sync", "nested"), ("async", "root"))),
]


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@pytest.fixture
def store_kind(way: tuple[str, str, str]) -> str:
    return way[0]


@pytest.fixture
def door(way: tuple[str, str, str]) -> Iterator[Door]:
    with Door(way[1]) as door:
        yield door


@pytest.fixture
def ns(way: tuple[str, str, str]) -> str:
    return "memory|n:0d5f7b6e-6d3d-4a70-8d9c-0b5dbb5ee6a1" if way[2] == "nested" else ""


@pytest.fixture
def line(door: Door, saver: Any, ns: str) -> Line:
    return Line(door, saver, ns=ns)


# What the history holds


def test_writes_come_oldest_first_without_the_targets_own(line):
    ids = line.chain(5, snapshots=[0])
    for history in line.histories(ids[-1], ["a"]):
        assert history["a"]["seed"] == _DeltaSnapshot(["up to 0"])
        assert [value for _, _, value in history["a"]["writes"]] == [0, 1, 2, 3]
    line.check(ids)


def test_seed_is_the_nearest_value_and_its_own_writes_follow(line):
    ids = line.chain(7, snapshots=[0, 3])
    for history in line.histories(ids[-1], ["a"]):
        assert history["a"]["seed"] == _DeltaSnapshot(["up to 3"])
        assert [value for _, _, value in history["a"]["writes"]] == [3, 4, 5]
    line.check(ids)


def test_a_value_of_the_target_itself_is_no_seed(line):
    ids = line.chain(3, snapshots=[0, 2])
    for history in line.histories(ids[-1], ["a"]):
        assert history["a"]["seed"] == _DeltaSnapshot(["up to 0"])
        assert [value for _, _, value in history["a"]["writes"]] == [0, 1]


def test_root_and_thread_without_value_have_no_seed(line):
    ids = line.chain(3)
    for history in line.histories(ids[0], ["a"]):
        assert history == {"a": {"writes": []}}
    for history in line.histories(ids[-1], ["a"]):
        assert "seed" not in history["a"]
    line.check(ids)


@pytest.mark.parametrize("plain", [[10, 20], [], "", 0, None, {"k": [1]}, False], ids=repr)
def test_a_plain_value_is_a_seed(line, plain):
    first = line.put(None, {"a": ["older"]}, [writer("subsumed")])
    second = line.put(first, {"a": plain}, [writer("at the seed")])
    third = line.put(second, {}, [writer("after")])
    head = line.put(third, {}, [writer("pending")])
    for history in line.histories(head, ["a"]):
        assert history["a"]["seed"] == plain
        assert [value for _, _, value in history["a"]["writes"]] == ["at the seed", "after"]
    line.check([first, second, third, head])


@pytest.mark.parametrize("value", [None, [], {}, 0, "", b"\0", float("inf"), "nul \0, lone \ud800"], ids=repr)
def test_any_value_comes_back_as_a_write_and_inside_a_snapshot(line, value):
    first = line.put(None, {"a": _DeltaSnapshot(value)}, [writer(value)])
    second = line.put(first, {}, [writer(value)])
    line.check([first, second, line.put(second)])


def test_channels_end_their_walks_apart(line):
    parent = None
    ids = []
    for step in range(6):
        values = {channel: _DeltaSnapshot([channel]) for channel, at in (("a", 1), ("b", 3)) if at == step}
        parent = line.put(parent, values, [writer(step), writer(step, "b")])
        ids.append(parent)
    for history in line.histories(ids[-1], ["a", "b", "never written"]):
        assert [value for _, _, value in history["a"]["writes"]] == [1, 2, 3, 4]
        assert [value for _, _, value in history["b"]["writes"]] == [3, 4]
        assert history["never written"] == {"writes": []}
    line.check(ids, ["b", "a"])


def test_no_channels_and_no_checkpoint_give_nothing(line):
    ids = line.chain(2)
    for history in line.histories(ids[-1], []):
        assert history == {}
    for history in line.histories(str(uuid6()), ["a"]):
        assert history == {"a": {"writes": []}}


def test_without_an_id_the_latest_is_meant(line):
    ids = line.chain(3, snapshots=[1])
    for config in (thread(line.thread_id, ns=line.ns), thread(line.thread_id, ids[-1], ns=line.ns)):
        history = line.door.call(line.saver, "get_delta_channel_history", config=config, channels=["a"])
        assert [value for _, _, value in history["a"]["writes"]] == [1]


def test_forks_follow_their_own_parents(line):
    trunk = line.chain(3, snapshots=[0])
    # Put in turns, so that neither fork's ids are consecutive.
    left, right = [trunk[-1]], [trunk[1]]
    for step in range(3):
        left.append(line.put(left[-1], {}, [writer(f"left {step}")]))
        right.append(line.put(right[-1], {}, [writer(f"right {step}")]))
    for history in line.histories(right[-1], ["a"]):
        assert [value for _, _, value in history["a"]["writes"]] == [0, 1, "right 0", "right 1"]
    line.check(line.nodes)


def test_writes_of_one_step_come_by_task_path_task_id_and_index(line):
    root = line.put(None, {"a": _DeltaSnapshot([])})
    for path, task_id, value in [
        ("~__pregel_push, 10", "1", "push 10"),
        ("~__pregel_pull, b", "0", "b"),
        ("~__pregel_pull, a", "9", "a"),
        ("", "7", "no path, 7"),
        ("~__pregel_push, 2", "00", "push 2"),
        ("", "3", "no path, 3"),
    ]:
        line.write(root, path, task_id, [("b", None), ("a", f"{value}, 0"), ("a", f"{value}, 1")])
    head = line.put(root)
    names = ["no path, 3", "no path, 7", "a", "b", "push 10", "push 2"]
    for history in line.histories(head, ["a"]):
        expected = [f"{name}, {index}" for name in names for index in range(2)]
        assert [value for _, _, value in history["a"]["writes"]] == expected
    line.check([head])


def test_more_than_ten_writes_of_one_task_keep_their_order(line):
    root = line.put()
    line.write(root, "~p", "task", [("a", number) for number in range(25)])
    line.check([line.put(root)])


def test_writes_that_were_there_before_their_checkpoint_count(line):
    ids = line.chain(2)
    early = str(uuid6())
    config = thread(line.thread_id, early, ns=line.ns)
    line.door.call(line.saver, "put_writes", config, [("a", "early")], "task", "~p")
    node = line._follow(ids[-1], {}, "")
    parent = thread(line.thread_id, ids[-1], ns=line.ns)
    line.door.call(
        line.saver, "put", parent, envelope(early, node), metadata_of(node, counted=True), node.versions
    )
    line.nodes[early] = node
    node.rows = [("~p", "task", 0, "a", "early")]
    line.check([line.put(early)])


def test_namespaces_and_threads_are_apart(door, saver):
    lines = [
        Line(door, saver, ns=ns, thread_id=name)
        for ns in ("", "a", "a|b", "a:1")
        for name in ("t", "t:a", "T")
    ]
    shared = [line.chain(3, snapshots=[1]) for line in lines]
    for line, ids in zip(lines, shared, strict=True):
        line.put(ids[-1], {}, [writer(f"only in {line.ns} of {line.thread_id}")])
        line.check(line.nodes)


def test_the_same_id_in_two_namespaces_has_two_histories(door, saver, monkeypatch):
    ids = [str(uuid6()) for _ in range(3)]
    lines = [Line(door, saver, ns=ns, thread_id="t") for ns in ("", "sub")]
    for line in lines:
        pending = iter(ids)
        monkeypatch.setattr("test_delta_history.uuid6", lambda pending=pending: next(pending))
        parent = None
        for step in range(3):
            parent = line.put(parent, {}, [writer(f"{line.ns} {step}", task_id="task")])
    for line in lines:
        line.check(ids)


# What deletions leave


def test_prune_leaves_the_heads_history(line):
    ids = line.chain(6, snapshots=[1, 3])
    prune(line)
    line.check_lineage(ids[-1:])
    line.check_deleted(ids[:-1])
    line.check(ids[-1:], intact=False)


def test_what_prune_keeps_for_histories_is_in_no_list(line):
    ids = line.chain(4, snapshots=[1])
    prune(line)
    for config in (None, thread(line.thread_id), thread(line.thread_id, ns=line.ns)):
        for options in ({}, {"filter": {"source": "loop"}}, {"limit": 5}):
            found = line.door.collect(line.saver, "list", config, **options)
            assert [id_of(item.config) for item in found] == ids[-1:]
    before = thread(line.thread_id, ids[-1], ns=line.ns)
    found = line.door.collect(line.saver, "list", thread(line.thread_id, ns=line.ns), before=before)
    assert found == []


def test_prune_of_a_line_without_snapshot_leaves_the_heads_history(line):
    ids = line.chain(4)
    prune(line)
    line.check_lineage(ids[-1:])
    line.check(ids[-1:], intact=False)


def test_prune_keeps_the_heads_own_pending_writes(line):
    ids = line.chain(3, snapshots=[0])
    before = line.get(ids[-1])
    prune(line)
    after = line.get(ids[-1])
    assert after.pending_writes == before.pending_writes
    assert after.checkpoint == before.checkpoint
    assert after.metadata == before.metadata


def test_prune_where_the_head_has_its_own_snapshot_needs_nothing_else(line):
    ids = line.chain(4, snapshots=[3])
    prune(line)
    assert line.get(ids[-1]).checkpoint["channel_values"]["a"] == _DeltaSnapshot(["up to 3"])
    head = line.put(ids[-1], {}, [writer("next")])
    line.check([head])


def test_prune_where_only_the_parent_goes(line):
    ids = line.chain(2, snapshots=[0])
    prune(line)
    line.check_lineage(ids[-1:])
    line.check(ids[-1:], intact=False)


@pytest.mark.parametrize("length", [1, 0])
def test_prune_of_a_short_thread_changes_nothing(line, length):
    ids = line.chain(length, snapshots=[0])
    prune(line)
    prune(line)
    line.check_lineage(ids)
    line.check(ids)


def test_prune_continue_prune_again(line):
    ids = line.chain(4, snapshots=[1])
    for turn in range(4):
        prune(line)
        prune(line)
        line.check_lineage(ids[-1:])
        line.check(ids[-1:], intact=False)
        for step in range(3):
            snapshot = {"a": _DeltaSnapshot([turn, step])} if (turn, step) == (2, 1) else {}
            ids.append(line.put(ids[-1], snapshot, [writer(f"{turn}.{step}"), writer(turn, "b")]))
        line.check(ids[-3:], intact=False)


def test_prune_keeps_seeds_of_several_channels_apart(line):
    first = line.put(None, {"a": _DeltaSnapshot(["a"])}, [writer("a0"), writer("b0", "b")])
    second = line.put(first, {"b": ["plain b"]}, [writer("a1"), writer("b1", "b"), writer("c1", "c")])
    third = line.put(second, {}, [writer("a2"), writer("b2", "b")])
    head = line.put(third)
    prune(line)
    line.check([head], ["a", "b", "c"], intact=False)


@pytest.mark.parametrize("seed", [None, [], {"k": 1}, _DeltaSnapshot(None), _DeltaSnapshot([])], ids=repr)
def test_prune_keeps_any_seed(line, seed):
    first = line.put(None, {"a": seed}, [writer(None), writer([])])
    head = line.put(line.put(first, {}, [writer({})]))
    prune(line)
    line.check([head], intact=False)


def test_prune_keeps_the_order_of_parallel_writers(line):
    root = line.put()
    for path in ("~p, 3", "~p, 1", "", "~p, 2"):
        line.write(root, path, str(uuid.uuid4()), [("a", f"{path}.{index}") for index in range(12)])
    middle = line.put(root, {}, [("~p, 0", "ffff", [("a", "later")]), ("~p, 9", "0000", [("a", "last")])])
    head = line.put(middle)
    prune(line)
    line.check([head], intact=False)


def test_prune_without_counters_in_the_metadata_leaves_the_history(line):
    """Threads of LangGraph before the counters have none, nor has whoever puts by hand."""
    first = line.put(None, {"a": _DeltaSnapshot([1])}, [writer("one")], counted=False)
    second = line.put(first, {}, [writer("two")], counted=False)
    head = line.put(second, {}, [writer("three")], counted=False)
    prune(line)
    line.check([head], ["a"], intact=False)


def test_prune_of_one_thread_leaves_other_threads_alone(door, saver):
    pruned, other = Line(door, saver), Line(door, saver)
    pruned.chain(3)
    ids = other.chain(3, snapshots=[1])
    prune(pruned)
    other.check_lineage(ids)
    other.check(ids)


def test_prune_keeps_the_latest_of_each_namespace(door, saver):
    lines = [Line(door, saver, ns=ns, thread_id="t") for ns in ("", "memory", "memory|inner", "n:1")]
    heads = [line.chain(4, snapshots=[1])[-1] for line in lines]
    prune(lines[0])
    for line, head in zip(lines, heads, strict=True):
        line.check_lineage([head])
        line.check([head], intact=False)


def test_prune_of_a_fork_keeps_the_latest_line(line):
    trunk = line.chain(3, snapshots=[0])
    left = line.put(trunk[-1], {}, [writer("left")])
    right = line.put(line.put(trunk[1], {}, [writer("right")]))
    prune(line)
    line.check_lineage([right])
    line.check_deleted([*trunk, left])
    line.check([right], intact=False)


def test_an_ordinary_thread_has_no_parent_after_prune(line):
    ids: list[str] = []
    for step in range(4):
        ids.append(put_ordinary(line, ids[-1] if ids else None, step))
    prune(line)
    kept = line.get(ids[-1])
    assert kept.parent_config is None
    assert kept.checkpoint["channel_values"] == {"total": 3}
    line.check_deleted(ids[:-1])


def test_an_ordinary_survivor_hangs_on_its_nearest_surviving_ancestor(line):
    runs = [str(uuid.uuid4()) for _ in range(3)]
    ids: list[str] = []
    for step in range(6):
        ids.append(put_ordinary(line, ids[-1] if ids else None, step, run_id=runs[step // 2]))
    line.door.call(line.saver, "delete_for_runs", [runs[1]])
    line.check_deleted(ids[2:4])
    assert id_of(line.get(ids[4]).parent_config) == ids[1]
    line.door.call(line.saver, "delete_for_runs", [runs[0]])
    assert line.get(ids[4]).parent_config is None
    assert [line.get(at).checkpoint["channel_values"]["total"] for at in ids[4:]] == [4, 5]


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_deleting_runs_leaves_the_survivors_histories(line, gone):
    runs = [str(uuid.uuid4()) for _ in range(4)]
    ids: list[str] = []
    for step in range(12):
        values = {"a": _DeltaSnapshot([step])} if step in (0, 4) else {}
        writers = [writer(step), writer(f"b{step}", "b")]
        ids.append(line.put(ids[-1] if ids else None, values, writers, run_id=runs[step // 3]))
    line.door.call(line.saver, "delete_for_runs", [runs[run] for run in gone])
    left = [at for step, at in enumerate(ids) if step // 3 not in gone]
    line.check_lineage(left)
    line.check_deleted(set(ids) - set(left))
    line.check(left, intact=False)


def test_deleting_runs_one_after_another_and_twice(line):
    runs = [str(uuid.uuid4()) for _ in range(5)]
    ids: list[str] = []
    for step in range(10):
        ids.append(line.put(ids[-1] if ids else None, {}, [writer(step)], run_id=runs[step // 2]))
    left = list(ids)
    for run in (2, 0, 0, 3, 1):
        line.door.call(line.saver, "delete_for_runs", [runs[run]])
        left = [at for at in left if line.nodes[at].run_id != runs[run]]
        line.check_lineage(left)
        line.check(left, intact=False)
    line.put(left[-1], {}, [writer("on")])
    prune(line)
    line.check(line.listed(), intact=False)


def test_deleting_the_run_that_two_forks_share(line):
    shared, kept = str(uuid.uuid4()), str(uuid.uuid4())
    root = line.put(None, {}, [writer("root")], run_id=kept)
    one = line.put(root, {"a": _DeltaSnapshot(["one"])}, [writer("one")], run_id=shared)
    two = line.put(one, {}, [writer("two")], run_id=shared)
    forks = [line.put(at, {}, [writer("fork")], run_id=kept) for at in (one, two, one, root)]
    line.door.call(line.saver, "delete_for_runs", [shared])
    line.check_lineage([root, *forks])
    line.check([root, *forks], intact=False)


def test_deleting_the_latest_run_leaves_the_one_before_as_head(line):
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    base = line.put(line.put(None, {}, [writer(0)], run_id=first), {}, [writer(1)], run_id=first)
    line.put(base, {}, [writer(2)], run_id=second)
    line.door.call(line.saver, "delete_for_runs", [second])
    assert line.latest() == base
    line.check([base, line.put(base, {}, [writer(3)])])


@pytest.mark.parametrize("pruned_first", [False, True])
def test_a_copied_thread_has_the_same_histories_and_stands_alone(line, pruned_first):
    ids = line.chain(6, snapshots=[2])
    if pruned_first:
        prune(line)
        ids = [*ids[-1:], line.put(ids[-1], {}, [writer("on")])]
    copy = copy_of(line)
    copy.check_lineage(ids)
    copy.check(ids, intact=not pruned_first)
    line.door.call(line.saver, "delete_thread", line.thread_id)
    line.check_deleted(ids)
    copy.check_lineage(ids)
    copy.check(ids, intact=not pruned_first)
    prune(copy)
    copy.check(ids[-1:], intact=False)


def test_a_copy_outlives_the_pruning_of_its_source_and_the_other_way_round(line):
    ids = line.chain(5, snapshots=[1])
    copy = copy_of(line)
    prune(line)
    copy.check_lineage(ids)
    copy.check(ids)
    head = copy.put(ids[-1], {}, [writer("only in the copy")])
    prune(copy)
    line.check_lineage(ids[-1:])
    line.check(ids[-1:], intact=False)
    copy.check([head], intact=False)


def test_histories_outlive_the_saver(line, place):
    ids = line.chain(5, snapshots=[1])
    prune(line)
    line.saver = place.restart(line.saver)
    line.check(ids[-1:], intact=False)
    line.check([line.put(ids[-1], {}, [writer("on")])], intact=False)


def test_a_large_seed_and_many_writes_survive_prune(line):
    root = line.put(
        None, {"a": _DeltaSnapshot([f"{number:0200d}" for number in range(500)])}, [writer("x" * 50_000)]
    )
    parent = root
    for step in range(60):
        parent = line.put(parent, {}, [writer(f"{step} " * 300), writer(step, "b")])
    prune(line)
    line.check([parent], intact=False)


# Any tree, any deletions

values = st.one_of(st.none(), st.integers(-9, 9), st.lists(st.integers(0, 9), max_size=3))
seeds = st.one_of(values, values.map(_DeltaSnapshot))
writers = st.lists(
    st.tuples(
        st.sampled_from(["", "~p, 1", "~p, 2", "~p, 10"]),
        st.lists(st.tuples(st.sampled_from(CHANNELS), values), min_size=1, max_size=3),
    ),
    max_size=3,
)
steps = st.tuples(st.integers(0, 30), st.dictionaries(st.sampled_from(CHANNELS), seeds, max_size=1), writers)
grow = st.tuples(st.just("grow"), st.lists(steps, min_size=1, max_size=6))
actions = st.one_of(
    grow,
    st.tuples(st.just("prune"), st.none()),
    st.tuples(st.just("delete_for_runs"), st.sets(st.integers(0, 3), min_size=1, max_size=2)),
    st.tuples(st.just("copy_thread"), st.none()),
)


@settings(
    max_examples=examples(15),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=grow, plan=st.lists(actions, max_size=6))
def test_no_deletion_changes_what_a_survivor_reads(door, saver, ns, first, plan):
    play = Play(Line(door, saver, ns=ns))
    for name, argument in (first, *plan):
        getattr(play, name)(argument)
        play.check()


class Play:
    """Does to a line what Hypothesis says, and knows who survives."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.left: list[str] = []
        self.deleted_any = False
        self.new_runs()

    def new_runs(self) -> None:
        self.runs = [str(uuid.uuid4()) for _ in range(4)]

    def grow(self, steps: list[Any]) -> None:
        for pick, values, writers in steps:
            # The last index means a new root; the newest is the likeliest parent, as in life.
            parents = [None, *self.left, *self.left[-1:] * 3]
            named = [(path, str(uuid.uuid4()), writes) for path, writes in writers]
            run_id = self.runs[pick % len(self.runs)]
            self.left.append(self.line.put(parents[pick % len(parents)], values, named, run_id=run_id))

    def prune(self, _: None) -> None:
        prune(self.line)
        self.left = self.left[-1:]
        self.deleted_any = True

    def delete_for_runs(self, picks: set[int]) -> None:
        gone = {self.runs[pick] for pick in picks}
        self.line.door.call(self.line.saver, "delete_for_runs", sorted(gone))
        self.left = [at for at in self.left if self.line.nodes[at].run_id not in gone]
        self.deleted_any = True

    def copy_thread(self, _: None) -> None:
        """Go on with the copy; its source is deleted, which must not matter."""
        source, self.line = self.line, copy_of(self.line)
        source.door.call(source.saver, "delete_thread", source.thread_id)

    def check(self) -> None:
        self.line.check_lineage(self.left)
        self.line.check(self.left, intact=not self.deleted_any)
        self.line.check_deleted(set(self.line.nodes) - set(self.left))


def prune(line: Line) -> None:
    line.door.call(line.saver, "prune", [line.thread_id], strategy="keep_latest")


def copy_of(line: Line) -> Line:
    copy = Line(line.door, line.saver, ns=line.ns)
    copy.nodes = dict(line.nodes)
    line.door.call(line.saver, "copy_thread", line.thread_id, copy.thread_id)
    return copy


def put_ordinary(line: Line, parent: str | None, total: int, *, run_id: str = "") -> str:
    """Put a checkpoint of a graph without delta channels: each one carries every value."""
    routing: list[tuple[str, Any]] = [("total", total + 1), ("branch:to:work", None)]
    writers: list[Writer] = [("~__pregel_pull, work", str(uuid.uuid4()), routing)]
    return line.put(parent, {"total": total}, writers, run_id=run_id, counted=False)
