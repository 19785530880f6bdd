"""A Hypothesis machine that drives the saver's public methods beside a plain dict model.

HYPOTHESIS_PROFILE=deep runs it longer; a failing example prints the calls that lead to it.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import servers
from helpers import OTHER_VERSIONS, STORES, examples, url_of_prefix
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from schemas import Schemas, schemas_of
from servers import redis_of, server_of

from langgraph_harness_saver import CheckpointerConfig, HarnessCheckpointer
from langgraph_harness_saver.stores.memory import MemoryStore

HISTORIES = 8
"""Of how many checkpoints, more or less, the history is read when all is done."""

THREADS = ("thread", "thr\x00ad\ud800", 42)
SPACES = ("", "sub", "sub:\U0001f600|in\x00ner")
RUNS = ("run 1", "run 2", "run 3")
PLAIN = ("messages", "document", "x", "\ud800é\x00", "branch:to:n", "__start__")
DELTA = ("d1", "d2")
CHANNELS = (*PLAIN, *DELTA)
NODES = ("agent", "\udfff", "__input__")
SCALARS = (
    None, "", 0, 1, 1.0, True, False, -0.0, float("nan"), float("inf"), 1e300, [], {}, b"", b"\x00\xff",
    "\x00", "\ud800", "e\u0301\U0001f600", {"\udfff": ["\ud800"], "": None}, {1: {"a": [float("nan")]}},
    [[[]]], (1 << 64) - 1, -(1 << 63), "plain " * 60,
)  # fmt: skip
TASKS = ("task 1", "1f0a3c5e-7b9d-6e2f-8a4b-6c8d0e2f4a6b", "\ud800")
PATHS = ("", "~__pregel_pull, b", "~__pregel_pull, a", "~__pregel_push, 10\udfff")
ODD_IDS = ("a", "a\x00", "\ud800", "\U0001f600", "Z", "1ef", "0" * 40, "x" * 500)

Name = tuple[str, str, str]
Op = tuple[str, str, int]


@dataclass
class Node:
    """One checkpoint; `ghosts` are the deleted ones between it and its parent, nearest first."""

    parent: str | None
    values: dict[str, Any]
    versions: dict[str, Any]
    seen: dict[str, dict[str, Any]]
    metadata: dict[str, Any]
    extra: dict[str, Any]
    writes: dict[tuple[str, int], tuple[str, str, Any]] = field(default_factory=dict)
    ghosts: list[Node] = field(default_factory=list)

    @property
    def pending(self) -> list[tuple[str, str, Any]]:
        ordered = sorted(self.writes, key=lambda at: (self.writes[at][0], *at))
        return [(at[0], *self.writes[at][1:]) for at in ordered]


class Model:
    """What a saver should hold."""

    def __init__(self) -> None:
        self.nodes: dict[Name, Node] = {}
        self.early: dict[Name, dict[tuple[str, int], tuple[str, str, Any]]] = {}
        self.gone: set[Name] = set()

    def find(self, name: Name) -> Name | None:
        """Return under which name a checkpoint is stored that is read under this one."""
        return name if name in self.nodes else None

    def node_of(self, name: Name) -> Node | None:
        """Return what is read under a name."""
        found = self.find(name)
        return None if found is None else self.nodes[found]

    def put(self, name: Name, node: Node) -> None:
        there = self.nodes.get(name)
        node.writes = there.writes if there else self.early.pop(name, {})
        self.nodes[name] = node
        self.gone.discard(name)

    def write(self, name: Name, writes: Sequence[tuple[str, Any]], task_id: str, path: str) -> None:
        node = self.nodes.get(name)
        rows = node.writes if node else self.early.setdefault(name, {})
        for position, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, position)
            if index < 0 or (task_id, index) not in rows:
                rows[task_id, index] = (path, channel, value)

    def remove(self, names: set[Name]) -> None:
        for name in self.nodes.keys() - names:
            self._relink(name, self.nodes[name], names)
        for name in names:
            del self.nodes[name]
        self.gone |= names

    def _relink(self, name: Name, node: Node, going: set[Name]) -> None:
        while node.parent is not None and self.find((*name[:2], node.parent)) in going:
            ghost = self.node_of((*name[:2], node.parent))
            assert ghost is not None
            node.ghosts = [*node.ghosts, ghost, *ghost.ghosts]
            node.parent = ghost.parent
            if node.parent is not None and self.find((*name[:2], node.parent)) is None:
                node.parent = None

    def prune(self, thread_id: str) -> None:
        latest: dict[str, str] = {}
        for _, ns, checkpoint_id in self.of(thread_id):
            latest[ns] = max(latest.get(ns, ""), checkpoint_id, key=as_bytes)
        self.remove({name for name in self.of(thread_id) if latest[name[1]] != name[2]})

    def delete_runs(self, runs: Sequence[str]) -> None:
        self.remove({name for name, node in self.nodes.items() if node.metadata.get("run_id") in runs})

    def delete_thread(self, thread_id: str) -> int:
        names = self.of(thread_id)
        self.gone |= set(names)
        for name in names:
            del self.nodes[name]
        self.early = {name: rows for name, rows in self.early.items() if name[0] != thread_id}
        return len(names)

    def copied(self, source: str, target: str) -> dict[Name, Node]:
        """Return what copying would add."""
        added = {}
        for name in self.of(source):
            there = (target, *name[1:])
            if there not in self.nodes:
                node = copy.deepcopy(self.nodes[name])
                if "thread_id" in node.metadata:
                    node.metadata["thread_id"] = target
                added[there] = node
        return added

    def of(self, thread_id: str, ns: str | None = None) -> list[Name]:
        """Return names, newest first, ties by namespace."""
        names = [name for name in self.nodes if name[0] == thread_id and ns in (None, name[1])]
        return newest_first(names)

    def leads_back(self, name: Name, parent: str | None) -> bool:
        """Tell whether a parent has this checkpoint among its ancestors: LangGraph would walk for ever."""
        while parent is not None:
            if parent == name[2]:
                return True
            node = self.node_of((*name[:2], parent))
            parent = node.parent if node else None
        return False

    def has_cycle(self, added: dict[Name, Node]) -> bool:
        trial = Model()
        trial.nodes = {**self.nodes, **added}
        return any(trial.leads_back(name, node.parent) for name, node in trial.nodes.items())

    def history(self, name: Name, channel: str) -> tuple[dict[str, Any], bool]:
        """Return a channel's history, and whether deleted checkpoints are part of it."""
        steps: list[list[tuple[str, str, Any]]] = []
        entry: dict[str, Any] = {}
        through_ghosts = False
        for ancestor, is_ghost in self._ancestors(name):
            through_ghosts |= is_ghost
            steps.append([write for write in ancestor.pending if write[1] == channel])
            if channel in ancestor.values:
                entry["seed"] = ancestor.values[channel]
                break
        entry["writes"] = [write for step in reversed(steps) for write in step]
        return entry, through_ghosts

    def _ancestors(self, name: Name) -> Iterator[tuple[Node, bool]]:
        node = self.node_of(name)
        while node is not None:
            for ghost in node.ghosts:
                yield ghost, True
            node = None if node.parent is None else self.node_of((*name[:2], node.parent))
            if node is not None:
                yield node, False


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def newest_first(names: Sequence[Name]) -> list[Name]:
    by_line = sorted(names, key=lambda name: (as_bytes(name[0]), as_bytes(name[1])))
    return sorted(by_line, key=lambda name: as_bytes(name[2]), reverse=True)


def config_of(thread_id: Any, ns: str | None = None, checkpoint_id: str | None = None) -> dict[str, Any]:
    given = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {key: value for key, value in given.items() if value is not None}}


def name_of(config: dict[str, Any]) -> Name:
    assert config["configurable"].keys() == {"thread_id", "checkpoint_ns", "checkpoint_id"}
    at = config["configurable"]
    return str(at["thread_id"]), at["checkpoint_ns"], at["checkpoint_id"]


def change(value: Any, op: str, size: int, tick: int) -> Any:
    """Return a channel's next value: what graphs do to lists and texts, and what breaks savers."""
    items = value if isinstance(value, list) else []
    text = value if isinstance(value, str) else ""
    middle = len(items) // 2
    if op == "append":
        return [*items, *({"id": f"{tick}.{n}", "text": f"item {n} of {tick}. " * 9} for n in range(size))]
    if op == "trim":
        return items[size:]
    if op == "edit":
        return [*items[:middle], {"edited": tick}, *items[middle + 1 :]]
    if op == "append huge":
        return [*items, f"{tick:08}" * (4500 * size)]
    if op == "write":
        return f"{text}\nLine {tick}: " + "some text " * size
    if op == "insert":
        return text[: len(text) // 2] + f"<{tick}>" + text[len(text) // 2 :]
    if op == "huge":
        return "".join(f"{tick + n:08}" for n in range(4200))
    if op == "snapshot":
        return _DeltaSnapshot([f"up to {tick}", *items[:2]])
    return SCALARS[size * 7 % len(SCALARS)]


def table(tick: int) -> dict[str, str]:
    """Return what a node returns whole: of 60 entries another one changes with each tick."""
    return {f"key {n}": f"{n} as of {tick - (tick - n) % 60}, " + "some text " * 9 for n in range(60)}


OPS = (
    "append", "append", "append", "trim", "edit", "append huge", "write", "insert", "huge", "scalar",
    "scalar", "remove", "forget", "touch",
)  # fmt: skip
# A delta channel has a value in snapshots only.
DELTA_OPS = ("snapshot", "remove", "touch", "append")
VERSIONS = ("ours", "ours", "integer", "float", "text", "same")


def ops() -> st.SearchStrategy[list[Op]]:
    size = st.integers(0, 12)
    plain = st.tuples(st.sampled_from(PLAIN), st.sampled_from(OPS), size)
    delta = st.tuples(st.sampled_from(DELTA), st.sampled_from(DELTA_OPS), size)
    return st.lists(plain | plain | plain | delta, max_size=5)


WRITTEN = (
    *SCALARS, "w" * 40_000, "w" * 39_000 + "x", _DeltaSnapshot([1]), {"some": ["value"]}, table(1), table(9),
)  # fmt: skip


def writes() -> st.SearchStrategy[list[tuple[str, int]]]:
    """Draw channels, and positions in `WRITTEN`."""
    channels = st.sampled_from((*DELTA, *DELTA, "messages", "\ud800", *WRITES_IDX_MAP))
    return st.lists(st.tuples(channels, st.integers(0, len(WRITTEN) - 1)), min_size=1, max_size=4)


threads = st.runner().flatmap(lambda machine: st.sampled_from(machine.threads))
spaces = st.sampled_from(SPACES)
indexes = st.integers(0, 99)


class SaverMachine(RuleBasedStateMachine):
    """Two savers on one store, whose every answer has to be the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.loop = asyncio.new_event_loop()
        self.tick = 0
        self.use_loop = False
        self.savers: list[HarnessCheckpointer] = []
        self.threads: list[Any] = list(THREADS)

    def open(self, **options: Any) -> HarnessCheckpointer:
        """Open one more saver on the same data."""
        raise NotImplementedError

    def shut(self, saver: HarnessCheckpointer) -> None:
        """End a saver, not the data."""

    @initialize(sizes=st.tuples(*[st.sampled_from((0, 20_000, 64 << 20))] * 2))
    def start(self, sizes: tuple[int, int]) -> None:
        self.savers = [self.open(cache_bytes=size) for size in sizes]

    def teardown(self) -> None:
        try:
            for saver in self.savers:
                saver._cache.clear()
                self.check_everything(saver)
                # Once more, with what the first reading left in the cache.
                self.check_everything(saver)
        finally:
            self.finish()

    def finish(self) -> None:
        for saver in self.savers:
            self.shut(saver)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    # --- calls -------------------------------------------------------------------------------------

    def call(self, saver: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.use_loop:
            return self.loop.run_until_complete(getattr(saver, f"a{method}")(*args, **kwargs))
        return getattr(saver, method)(*args, **kwargs)

    def collect(self, saver: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not self.use_loop:
            return list(saver.list(*args, **kwargs))

        async def gather() -> list[Any]:
            return [item async for item in saver.alist(*args, **kwargs)]

        return self.loop.run_until_complete(gather())

    def door(self, which: int) -> HarnessCheckpointer:
        """Choose a saver and a door by one small number."""
        self.use_loop = which % 2 == 1
        return self.savers[which // 2 % len(self.savers)]

    # --- rules -------------------------------------------------------------------------------------

    doors = st.integers(0, 3)

    @rule(
        which=doors,
        thread=threads,
        ns=spaces,
        parent=indexes,
        at=st.sampled_from(("new", "new", "new", "new", "odd", "early", "gone", "again", "below")),
        ops=ops(),
        version=st.sampled_from(VERSIONS),
        told=st.sampled_from(("right", "right", "right", "nothing", "all")),
        run=st.sampled_from((*RUNS, None)),
    )
    def put(
        self, which: int, thread: Any, ns: str, parent: int, at: str, ops: list[Op], version: str,
        told: str, run: str | None,
    ) -> None:  # fmt: skip
        saver = self.door(which)
        call = self.prepare(saver, thread, ns, parent, at, ops, version, told, run)
        returned = self.call(saver, "put", *call.arguments)
        assert returned == config_of(thread, ns, call.name[2])
        self.model.put(call.name, call.node)
        self.check_thread(self.other(saver), thread)

    @rule(
        which=doors, thread=threads, ns=spaces, length=st.integers(2, 25), grow=st.sampled_from(OPS[:9]),
        whole=st.booleans(),
    )  # fmt: skip
    def put_chain(self, which: int, thread: Any, ns: str, length: int, grow: str, whole: bool) -> None:
        """Put what a run puts: each on the one before, most channels unchanged."""
        saver = self.door(which)
        for number in range(length):
            ops = [("messages", grow, 1), ("x", "scalar", number)][: 1 + number % 2]
            call = self.prepare(saver, thread, ns, -1, "new", ops, "ours", "right", RUNS[number % 3])
            self.call(saver, "put", *call.arguments)
            self.model.put(call.name, call.node)
            written = [(DELTA[number % 2], table(self.tick) if whole else f"write {self.tick}")]
            self.call(saver, "put_writes", config_of(thread, ns, call.name[2]), written, "task", "~path")
            self.model.write(call.name, written, "task", "~path")
        self.check_thread(self.other(saver), thread)

    @rule(which=doors, thread=threads, ns=spaces, at=indexes, ops=ops(), same=st.booleans())
    def put_again(self, which: int, thread: Any, ns: str, at: int, ops: list[Op], same: bool) -> None:
        """Put an id that is there: the same contents, as after a lost connection, or others."""
        names = self.model.of(str(thread), ns)
        if not names:
            return
        saver = self.door(which)
        name = names[at % len(names)]
        node = self.model.nodes[name]
        new = replace(copy.deepcopy(node), ghosts=[])
        if not same:
            self.evolve(saver, new, ops, "ours")
        told = {channel: v for channel, v in new.versions.items() if v != node.versions.get(channel)}
        arguments = self.arguments(thread, name, new, told)
        self.call(saver, "put", *arguments)
        self.model.put(name, new)
        self.check_thread(self.other(saver), thread)

    @rule(
        which=doors, thread=threads, ns=spaces, at=st.integers(-1, 99), chosen=writes(),
        task=st.sampled_from(TASKS), path=st.sampled_from(PATHS), twice=st.booleans(),
    )  # fmt: skip
    def put_writes(
        self, which: int, thread: Any, ns: str, at: int, chosen: list[tuple[str, int]], task: str,
        path: str, twice: bool,
    ) -> None:  # fmt: skip
        writes = [(channel, WRITTEN[index]) for channel, index in chosen]
        saver = self.door(which)
        names = self.model.of(str(thread), ns)
        self.tick += 1
        early = (str(thread), ns, f"early {thread} {self.tick}")
        name = names[at % len(names)] if names and at >= 0 else early
        for _ in range(1 + twice):
            self.call(saver, "put_writes", config_of(thread, ns, name[2]), writes, task, path)
            self.model.write(name, writes, task, path)
        self.check_thread(self.other(saver), thread)

    @rule(which=doors, threads=st.lists(threads, min_size=1, max_size=3))
    def prune(self, which: int, threads: list[Any]) -> None:
        saver = self.door(which)
        self.call(saver, "prune", threads)
        for thread in threads:
            self.model.prune(str(thread))
        for thread in self.threads:
            self.check_thread(self.other(saver), thread)

    @rule(which=doors, runs=st.lists(st.sampled_from((*RUNS, "none")), max_size=2))
    def delete_for_runs(self, which: int, runs: list[str]) -> None:
        saver = self.door(which)
        self.call(saver, "delete_for_runs", runs)
        self.model.delete_runs(runs)
        for thread in self.threads:
            self.check_thread(self.other(saver), thread)

    @rule(which=doors, thread=threads, by_prune=st.booleans())
    def delete_thread(self, which: int, thread: Any, by_prune: bool) -> None:
        saver = self.door(which)
        expected = self.model.delete_thread(str(thread))
        if by_prune:
            self.call(saver, "prune", [thread], strategy="delete")
        else:
            assert self.call(saver, "delete_thread", thread) == expected
        self.check_thread(self.other(saver), thread)

    @rule(which=doors, thread=threads, ours=st.booleans())
    def begin_again(self, which: int, thread: Any, ours: bool) -> None:
        """Delete a thread and put it again with the same ids and versions, some values being others."""
        saver = self.door(which)
        names = self.model.of(str(thread))
        nodes = {name: self.model.nodes[name] for name in names}
        assert self.call(saver, "delete_thread", thread) == self.model.delete_thread(str(thread))
        if ours:
            saver = self.savers[1 - self.savers.index(saver)]
        while nodes:
            name = next(n for n in nodes if (*n[:2], nodes[n].parent) not in nodes)
            node = replace(copy.deepcopy(nodes.pop(name)), ghosts=[])
            for channel in node.values.keys() & PLAIN:
                # Only versions without a random part can come again for another value.
                if not isinstance(node.versions.get(channel), str):
                    node.values[channel] = ["again", node.values[channel]]
            self.call(saver, "put", *self.arguments(thread, name, node, {}))
            self.model.put(name, node)
        for reader in self.savers:
            self.check_thread(reader, thread)

    @rule(which=doors, source=threads, onto=threads, twice=st.booleans())
    def copy_thread(self, which: int, source: Any, onto: Any, twice: bool) -> None:
        added = self.model.copied(str(source), str(onto))
        if self.model.has_cycle(added):
            return
        saver = self.door(which)
        for _ in range(1 + twice):
            self.call(saver, "copy_thread", source, onto)
        self.adopt_copies(added, str(source), str(onto))
        self.check_thread(self.other(saver), onto)
        self.check_thread(saver, source)

    def adopt_copies(self, added: dict[Name, Node], source: str, target: str) -> None:
        for name, node in added.items():
            node.writes.update(self.model.early.pop(name, {}))
            self.model.nodes[name] = node
            self.model.gone.discard(name)

    @rule(which=doors)
    def lose_cache(self, which: int) -> None:
        self.door(which)._cache.clear()

    @rule(which=doors, cache_bytes=st.sampled_from((0, 20_000, 64 << 20)))
    def reopen(self, which: int, cache_bytes: int) -> None:
        old = self.door(which)
        self.savers[self.savers.index(old)] = self.open(cache_bytes=cache_bytes)
        self.shut(old)

    @rule(
        which=doors, by_threads=st.booleans(), thread=threads, ns=spaces,
        parents=st.lists(indexes, min_size=2, max_size=6), ops=ops(),
    )  # fmt: skip
    def burst(
        self, which: int, by_threads: bool, thread: Any, ns: str, parents: list[int], ops: list[Op]
    ) -> None:
        """Put and write at once, through both savers."""
        self.door(which)
        calls = []
        for number, parent in enumerate(parents):
            saver = self.savers[number % 2]
            calls.append((saver, self.prepare(saver, thread, ns, parent, "new", ops, "ours", "right", None)))
        written = [("d1", "burst"), ("__error__", "burst")]
        if by_threads:
            self.burst_in_threads(thread, calls, written)
        else:
            self.burst_on_a_loop(thread, calls, written)
        for _, call in calls:
            self.model.put(call.name, call.node)
            self.model.write(call.name, written, "burst", "")
        for saver in self.savers:
            self.check_thread(saver, thread)

    def burst_in_threads(self, thread: Any, calls: Sequence[Any], written: list[tuple[str, Any]]) -> None:
        start = threading.Barrier(len(calls))

        def one(saver: HarnessCheckpointer, call: Put) -> None:
            start.wait()
            saver.put_writes(config_of(thread, *call.name[1:]), written, "burst", "")
            saver.put(*call.arguments)

        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(lambda pair: one(*pair), calls))

    def burst_on_a_loop(self, thread: Any, calls: Sequence[Any], written: list[tuple[str, Any]]) -> None:
        async def all_of_them() -> None:
            puts = [saver.aput(*call.arguments) for saver, call in calls]
            writes = [
                saver.aput_writes(config_of(thread, *call.name[1:]), written, "burst", "")
                for saver, call in calls
            ]
            await asyncio.gather(*puts, *writes)

        self.loop.run_until_complete(all_of_them())

    @precondition(lambda self: self.model.nodes)
    @rule(which=doors, at=indexes, limit=st.none() | st.integers(0, 12), how=st.integers(0, 5))
    def select(self, which: int, at: int, limit: int | None, how: int) -> None:
        """List by thread, namespace, id, `before`, metadata and limit."""
        saver = self.door(which)
        names = newest_first(list(self.model.nodes))
        chosen = names[at % len(names)]
        config: dict[str, Any] | None = [None, config_of(chosen[0]), config_of(*chosen[:2])][how % 3]
        scope = {1: chosen[:1], 2: chosen[:2]}.get(how % 3, ())
        wanted = {"run_id": self.model.nodes[chosen].metadata.get("run_id")} if how > 2 else None
        if wanted == {"run_id": None}:
            wanted = {"nested": {"\ud800": ["b\x00"]}}
        before = config_of(*chosen) if at % 2 else None
        expected = [
            name
            for name in names
            if name[: len(scope)] == scope
            and (before is None or as_bytes(name[2]) < as_bytes(chosen[2]))
            and self.fits(name, wanted)
        ][:limit]
        found = self.collect(saver, config, filter=wanted, before=before, limit=limit)
        assert [name_of(item.config) for item in found] == expected
        for item in found:
            self.check_tuple(saver, name_of(item.config), item)

    def fits(self, name: Name, wanted: dict[str, Any] | None) -> bool:
        metadata = self.model.nodes[name].metadata
        if wanted is None:
            return True
        return "nested" in metadata if "nested" in wanted else metadata.get("run_id") == wanted["run_id"]

    # --- making a put ------------------------------------------------------------------------------

    def prepare(
        self, saver: Any, thread: Any, ns: str, parent: int, at: str, ops: list[Op], version: str,
        told: str, run: str | None,
    ) -> Put:  # fmt: skip
        names = self.parents(str(thread), ns)
        name = (str(thread), ns, self.new_id(str(thread), ns, at, names))
        parent_id = names[parent % len(names)][2] if names else None
        if parent == -1:
            parent_id = names[0][2] if names else None
        elif parent % 11 == 10:
            parent_id = None
        elif parent % 11 == 9:
            parent_id = sorted(self.model.gone)[0][2] if self.model.gone else "unknown"
        elif parent % 11 == 8:
            parent_id = name[2]
        if parent_id != name[2] and self.model.leads_back(name, parent_id):
            parent_id = None
        before = self.model.node_of((*name[:2], parent_id or ""))
        node = copy.deepcopy(before) if before else Node(None, {}, {}, {}, {}, {})
        node = replace(node, parent=parent_id, ghosts=[], writes={})
        node.metadata = self.metadata(thread, ns, run)
        node.extra = {
            "ts": "2026-01-01T00:00:00.123456+00:00" if self.tick % 2 else f"at {self.tick}",
            "updated_channels": [None, [], ["messages", "\ud800"]][self.tick % 3],
        }
        self.evolve(saver, node, ops, version)
        new = {c: v for c, v in node.versions.items() if not before or before.versions.get(c) != v}
        new_versions = {"right": new, "nothing": {}, "all": dict(node.versions)}[told]
        put = Put(name, node, self.arguments(thread, name, node, new_versions))
        if node.parent == name[2]:
            # Put back under its own config, a checkpoint keeps the parent that it has.
            there = self.model.nodes.get(name)
            node.parent, node.ghosts = (there.parent, there.ghosts) if there else (None, [])
        return put

    def parents(self, thread_id: str, ns: str) -> list[Name]:
        """Return what a put may come of, newest first."""
        return self.model.of(thread_id, ns)

    def new_id(self, thread_id: str, ns: str, at: str, names: Sequence[Name]) -> str:
        self.tick += 1
        if at == "odd":
            free = [text for text in ODD_IDS if (thread_id, ns, text) not in self.model.nodes]
            if free:
                return free[self.tick % len(free)]
        if at in ("early", "gone"):
            known = self.model.early if at == "early" else self.model.gone
            waiting = sorted(name for name in known if name[:2] == (thread_id, ns))
            if waiting:
                return waiting[0][2]
        if at == "again" and names:
            return names[self.tick % len(names)][2]
        # As LangGraph makes them, or below them all.
        first = 0x0EF00000 if at == "below" else 0x1EF00000
        return f"{first + self.tick:08x}-0000-6000-8000-0123456789ab"

    def metadata(self, thread: Any, ns: str, run: str | None) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "source": "loop",
            "step": self.tick,
            "parents": {},
            "counters_since_delta_snapshot": {channel: [1, self.tick] for channel in DELTA},
        }
        if run is not None:
            metadata["run_id"] = run
        if self.tick % 4 == 0:
            metadata |= {"thread_id": str(thread), "nan": float("nan"), "nested": {"\ud800": ["a", "b\x00"]}}
        return metadata

    def evolve(self, saver: Any, node: Node, ops: list[Op], version: str) -> None:
        for channel, op, size in ops:
            self.tick += 1
            if op == "forget":
                node.versions.pop(channel, None)
            if op in ("remove", "forget"):
                node.values.pop(channel, None)
            elif op != "touch":
                node.values[channel] = change(node.values.get(channel), op, size, self.tick)
            if op != "forget":
                node.versions[channel] = self.next_version(saver, node.versions.get(channel), version)
        if ops:
            seen = {ops[0][0]: node.versions.get(ops[0][0], 0)}
            node.seen = {**node.seen, NODES[self.tick % 3]: seen}
        if len(ops) > 3:
            node.seen.pop(NODES[0], None)

    def next_version(self, saver: Any, current: Any, kind: str) -> Any:
        if kind == "ours":
            return saver.get_next_version(current if self.follows(current) else None, None)
        if kind == "text":
            return f"{self.tick:032}.{0.123456789012345 + self.tick}"
        return {"integer": self.tick, "float": self.tick + 0.5, "same": 1}[kind]

    def follows(self, current: Any) -> bool:
        return current is None or isinstance(current, (int, float)) or "." in current

    def arguments(self, thread: Any, name: Name, node: Node, told: dict[str, Any]) -> tuple[Any, ...]:
        checkpoint = {
            "v": 4,
            "id": name[2],
            "channel_values": node.values,
            "channel_versions": node.versions,
            "versions_seen": node.seen,
            **node.extra,
        }
        config = config_of(thread, name[1], node.parent)
        # The saver must not keep hold of what it was given.
        return copy.deepcopy((config, checkpoint, node.metadata, told))

    # --- checks ------------------------------------------------------------------------------------

    def other(self, saver: HarnessCheckpointer) -> HarnessCheckpointer:
        """Return a saver to read with: the one that wrote and the other, in turns."""
        return saver if self.tick % 2 else self.savers[1 - self.savers.index(saver)]

    def check_thread(self, saver: HarnessCheckpointer, thread: Any) -> None:
        """Compare a thread's lists, heads and some of its checkpoints."""
        names = self.model.of(str(thread))
        for ns in SPACES:
            line = self.model.of(str(thread), ns)
            head = self.call(saver, "get_tuple", config_of(thread, ns))
            self.check_head(head and name_of(head.config), line)
            if line:
                sampled = line[self.tick % len(line)]
                self.check_checkpoint(saver, sampled)
                self.check_tuple(saver, line[0], head)
                self.check_history(saver, sampled)
        if self.tick % 3 == 0:
            self.check_list(saver, thread, names)
        self.check_gone(saver, 1)

    def check_head(self, found: Name | None, line: list[Name]) -> None:
        assert found == (line[0] if line else None)

    def check_everything(self, saver: HarnessCheckpointer) -> None:
        found = self.collect(saver, None)
        assert [name_of(item.config) for item in found] == newest_first(list(self.model.nodes))
        for item in found:
            self.check_tuple(saver, name_of(item.config), item)
        for thread in self.threads:
            names = self.model.of(str(thread))
            assert [name_of(item.config) for item in self.collect(saver, config_of(thread))] == names
        self.check_each(saver, list(self.model.nodes))
        self.check_gone(saver, len(self.model.gone))

    def check_each(self, saver: HarnessCheckpointer, names: Sequence[Name]) -> None:
        # A history is as long as the line that leads there: all of a large family's would take minutes.
        apart = len(names) // HISTORIES + 1
        for number, name in enumerate(names, self.tick):
            self.check_checkpoint(saver, name)
            if number % apart == 0:
                self.check_history(saver, name)

    def check_list(self, saver: HarnessCheckpointer, thread: Any, names: list[Name]) -> None:
        found = self.collect(saver, config_of(thread))
        assert [name_of(item.config) for item in found] == names
        for item in found:
            self.check_tuple(saver, name_of(item.config), item)

    def check_checkpoint(self, saver: HarnessCheckpointer, name: Name) -> None:
        item = self.call(saver, "get_tuple", config_of(*name))
        assert item is not None, f"{name} is gone"
        assert name_of(item.config) == name
        self.check_tuple(saver, name, item)

    def check_tuple(self, saver: HarnessCheckpointer, name: Name, item: Any) -> None:
        node = self.expected(name)
        checkpoint = item.checkpoint
        assert checkpoint["id"] == name[2]
        check_alike(checkpoint["channel_values"], node.values)
        check_alike(checkpoint["channel_versions"], node.versions)
        check_alike(checkpoint["versions_seen"], node.seen)
        check_alike(item.metadata, node.metadata)
        check_alike({key: checkpoint[key] for key in node.extra}, node.extra)
        check_alike(item.pending_writes, node.pending)
        self.check_parent(saver, name, item.parent_config)

    def expected(self, name: Name) -> Node:
        node = self.model.node_of(name)
        assert node is not None, f"{name} should not be there"
        return node

    def check_parent(self, saver: HarnessCheckpointer, name: Name, parent: Any) -> None:
        node = self.expected(name)
        expected = None if node.parent is None else (*name[:2], node.parent)
        found = parent and name_of(parent)
        if found == expected:
            return
        assert node.ghosts, f"the parent of {name} is {found}, not {expected}"
        assert self.model.find(found) is None
        anchor = self.call(saver, "get_tuple", parent)
        assert anchor is not None, f"the parent of {name} is {found}, which is not there"
        assert (anchor.parent_config and name_of(anchor.parent_config)) == expected

    def check_history(self, saver: HarnessCheckpointer, name: Name) -> None:
        config = config_of(*name)
        found = self.call(saver, "get_delta_channel_history", config=config, channels=CHANNELS)
        walked = self.call(Walk(saver), "get_delta_channel_history", config=config, channels=CHANNELS)
        check_alike(found, walked)
        for channel in CHANNELS:
            expected, through_ghosts = self.model.history(name, channel)
            replayed = channel in DELTA and channel not in self.expected(name).values
            if replayed or not through_ghosts:
                check_alike(found[channel], expected)

    def check_gone(self, saver: HarnessCheckpointer, limit: int) -> None:
        for name in sorted(self.model.gone - self.model.nodes.keys())[-limit:]:
            assert self.model.find(name) or self.call(saver, "get_tuple", config_of(*name)) is None


@dataclass
class Put:
    name: Name
    node: Node
    arguments: tuple[Any, ...]


class Walk:
    """The base class's walk over a saver, which LangGraph's server does."""

    def __init__(self, saver: BaseCheckpointSaver) -> None:
        self.get_delta_channel_history: Callable[..., Any] = (
            BaseCheckpointSaver.get_delta_channel_history.__get__(saver)
        )
        self.aget_delta_channel_history: Callable[..., Any] = (
            BaseCheckpointSaver.aget_delta_channel_history.__get__(saver)
        )


def check_alike(found: Any, expected: Any) -> None:
    # The first is quick, and where only the order of a dict's keys differs, the second decides.
    if pickled(found) != pickled(expected):
        assert show(found) == show(expected)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    # Without it, what is twice the same object differs from what is only equal.
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def show(value: Any) -> str:
    """Return what tells 1 from 1.0 and True, and finds NaN equal to itself."""
    if isinstance(value, dict):
        pairs = [f"{show(key)}: {show(item)}" for key, item in value.items()]
        return "{" + ", ".join(sorted(pairs)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    return repr(value)


class MemoryMachine(SaverMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()

    def open(self, **options: Any) -> HarnessCheckpointer:
        return HarnessCheckpointer(CheckpointerConfig(**options), backend=self.store)


class SqliteMachine(SaverMachine):
    folders: ClassVar[str | None] = "/dev/shm" if os.path.isdir("/dev/shm") else None

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(dir=self.folders)

    def open(self, **options: Any) -> HarnessCheckpointer:
        url = f"sqlite:///{self.folder}/agents.db"
        return HarnessCheckpointer.from_conn_string(url, synchronous="normal", **options)

    def shut(self, saver: HarnessCheckpointer) -> None:
        saver.close()

    def finish(self) -> None:
        super().finish()
        shutil.rmtree(self.folder)


class PostgresMachine(SaverMachine):
    schemas: ClassVar[Schemas]

    def __init__(self) -> None:
        super().__init__()
        self.address = self.schemas.take()

    def open(self, **options: Any) -> HarnessCheckpointer:
        return HarnessCheckpointer.from_conn_string(self.address, **options)

    def shut(self, saver: HarnessCheckpointer) -> None:
        saver.close()

    def finish(self) -> None:
        super().finish()
        self.schemas.give_back(self.address)


class OldestPostgresMachine(PostgresMachine):
    pass


class RedisMachine(SaverMachine):
    server: ClassVar[servers.Redis]

    def __init__(self) -> None:
        super().__init__()
        self.prefix = servers.new_name()

    def open(self, **options: Any) -> HarnessCheckpointer:
        return HarnessCheckpointer.from_conn_string(url_of_prefix(self.server, self.prefix), **options)

    def shut(self, saver: HarnessCheckpointer) -> None:
        saver.close()

    def finish(self) -> None:
        super().finish()
        self.server.drop(self.prefix)


class OldestRedisMachine(RedisMachine):
    pass


class ValkeyMachine(RedisMachine):
    pass


class RedisClusterMachine(RedisMachine):
    pass


MACHINES: dict[str, type[SaverMachine]] = {
    "memory": MemoryMachine,
    "sqlite": SqliteMachine,
    "postgres": PostgresMachine,
    "postgres-oldest": OldestPostgresMachine,
    "redis": RedisMachine,
    "redis-oldest": OldestRedisMachine,
    "valkey": ValkeyMachine,
    "redis-cluster": RedisClusterMachine,
}


@pytest.fixture(params=list(MACHINES))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def machine(kind: str, request: pytest.FixtureRequest) -> type[SaverMachine]:
    """Give a store's machine, with its server running."""
    found = MACHINES[kind]
    if issubclass(found, PostgresMachine):
        found.schemas = schemas_of(server_of(kind, request), request)
    if issubclass(found, RedisMachine):
        found.server = redis_of(kind, request)
    return found


def run_machine(machine: type[RuleBasedStateMachine], count: int) -> None:
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples(count),
        stateful_step_count=30,
        suppress_health_check=list(HealthCheck),
        # Making a history shorter takes longer than a test may, and then nothing of it is told.
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )
    case("runTest").runTest()


def test_a_saver_answers_as_its_model(kind: str, machine: type[SaverMachine]) -> None:
    # The core is everyone's; what another version of a server does otherwise, the stores' contract finds out.
    run_machine(machine, 5 if kind in OTHER_VERSIONS else 20 if kind in ("memory", "sqlite") else 10)


# What a machine that makes one call at a time meets rarely or never


@pytest.fixture
def savers(machine: type[SaverMachine]) -> Iterator[list[HarnessCheckpointer]]:
    """Open two savers on one store."""
    opened = machine()
    opened.start((64 << 20, 64 << 20))
    yield opened.savers
    opened.finish()


def put_value(
    saver: Any, at: int, value: Any, *, versions: dict[str, Any] | None = None, thread: str = "race"
) -> None:
    checkpoint = {
        "v": 4,
        "ts": "2026-01-01T00:00:00.123456+00:00",
        "id": f"{at:06}",
        "channel_values": value,
        "channel_versions": versions or dict.fromkeys(value, at),
        "versions_seen": {},
    }
    parent = f"{at - 1:06}" if at else None
    metadata = {"source": "loop", "step": at, "counters_since_delta_snapshot": {"d1": [1, at]}}
    saver.put(config_of(thread, "", parent), checkpoint, metadata, checkpoint["channel_versions"])


def test_a_thread_deleted_and_put_again_is_not_taken_for_the_old_one(savers):
    """Rows that look the same may rest on others that don't."""
    first, second = savers
    for saver, text in ((first, "old " * 100), (second, "new " * 100)):
        saver.delete_thread("race")
        put_value(saver, 0, {"x": text, "n": 0}, versions={"x": 1, "n": 1})
        put_value(saver, 1, {"x": text, "n": 1}, versions={"x": 1, "n": 2})
    assert first.get_tuple(config_of("race", "", "000001")).checkpoint["channel_values"]["x"] == "new " * 100
    put_value(first, 2, {"x": "old " * 100, "n": 1}, versions={"x": 1, "n": 2})
    put_value(first, 3, {"x": "old " * 100 + "and more", "n": 1}, versions={"x": 2, "n": 2})
    first._cache.clear()
    for saver in savers:
        for at, text in ((2, "old " * 100), (3, "old " * 100 + "and more")):
            found = saver.get_tuple(config_of("race", "", f"{at:06}"))
            assert found.checkpoint["channel_values"]["x"] == text


def test_a_copy_does_not_lean_on_what_only_looks_like_its_base(savers):
    first, second = savers
    texts = ["some text " * 60]
    for at in range(4):
        texts = [*texts, f"item {at} " * 20]
        put_value(first, at, {"texts": texts, "same": "the same " * 60}, versions={"texts": at, "same": 1})
    put_value(second, 0, {"texts": ["ours " * 300], "same": "no more the same " * 60}, thread="copy")
    first.copy_thread("race", "copy")
    for saver in savers:
        assert read_values(saver, "copy", 0)["texts"] == ["ours " * 300]
        for at in range(1, 4):
            assert read_values(saver, "copy", at) == read_values(saver, "race", at)


def test_a_copy_brings_back_what_its_target_has_deleted(savers):
    first, second = savers
    texts = ["some text " * 600]
    for at in range(3):
        texts = [*texts, f"item {at} " * 20]
        put_value(first, at, {"texts": texts, "large": "l" * 50_000}, versions={"texts": at, "large": 1})
    first.copy_thread("race", "copy")
    second.prune(["copy"])
    first.copy_thread("race", "copy")
    for saver in savers:
        found = [name_of(item.config)[2] for item in saver.list(config_of("copy"))]
        assert found == ["000002", "000001", "000000"]
        for at in range(3):
            assert read_values(saver, "copy", at) == read_values(saver, "race", at)


def read_values(saver: Any, thread: str, at: int) -> dict[str, Any]:
    return saver.get_tuple(config_of(thread, "", f"{at:06}")).checkpoint["channel_values"]


@pytest.mark.parametrize("kind", STORES, indirect=True)
@pytest.mark.parametrize("deletion", ["prune", "delete_for_runs", "delete_thread"])
def test_puts_survive_deletions_by_another_saver(savers, deletion):
    """What a put leans on may go at any moment."""
    writer, remover = savers
    stop = threading.Event()

    def remove() -> None:
        while not stop.wait(0.002):
            argument = {"prune": ["race"], "delete_for_runs": ["run"], "delete_thread": "race"}[deletion]
            getattr(remover, deletion)(argument)

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        try:
            messages: list[str] = []
            for at in range(200):
                messages = [*messages, f"message {at} " * 20]
                put_value(writer, at, {"messages": messages, "large": "l" * 40_000 + str(at // 9)})
                check_head(writer, at, messages)
        finally:
            stop.set()
        removing.result()
    put_value(writer, 200, {"messages": messages})
    for saver in savers:
        saver._cache.clear()
        check_head(saver, 200, messages)


@pytest.mark.parametrize("losses", [1, 2, 3])
def test_a_put_whose_base_goes_again_and_again_is_stored(savers, monkeypatch, losses):
    writer, remover = savers
    put_value(writer, 0, {"text": "some text " * 50})
    put, left = writer.backend.put, [losses]

    async def lose_base(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            return await put(*args, **kwargs)
        with monkeypatch.context() as context, ThreadPoolExecutor(1) as pool:
            context.setattr(writer.backend, "put", put)
            pool.submit(remover.delete_thread, "race").result()
            result = await put(*args, **kwargs)
            pool.submit(put_value, remover, 0, {"text": f"other text {left} " * 50}).result()
            return result

    monkeypatch.setattr(writer.backend, "put", lose_base)
    put_value(writer, 1, {"text": "some text " * 50 + "and more"})
    for saver in savers:
        saver._cache.clear()
        found = saver.get_tuple(config_of("race", "", "000001"))
        assert found.checkpoint["channel_values"]["text"] == "some text " * 50 + "and more"


def check_head(saver: Any, at: int, messages: list[str]) -> None:
    head = saver.get_tuple(config_of("race"))
    if head is not None:
        assert head.config["configurable"]["checkpoint_id"] == f"{at:06}"
        assert head.checkpoint["channel_values"]["messages"] == messages


def test_a_history_is_whole_while_another_saver_prunes(savers, monkeypatch):
    reader, remover = savers
    for at in range(30):
        put_value(reader, at, {"d1": _DeltaSnapshot(["seed"])} if at == 0 else {"n": at})
        reader.put_writes(config_of("race", "", f"{at:06}"), [("d1", at)], "task", "")
    head = config_of("race", "", f"{29:06}")
    expected = reader.get_delta_channel_history(config=head, channels=["d1"])
    scan = reader.backend.scan

    async def prune_then_scan(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(reader.backend, "scan", scan)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(remover.prune, ["race"]).result()
        return await scan(*args, **kwargs)

    monkeypatch.setattr(reader.backend, "scan", prune_then_scan)
    assert reader.get_delta_channel_history(config=head, channels=["d1"]) == expected
