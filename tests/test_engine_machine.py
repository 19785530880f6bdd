"""The saver's machine with everything that an engine does in it, and processes killed amid that."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from schemas import schemas_of
from servers import redis_of, server_of
from test_machine import (
    PLAIN,
    TASKS,
    WRITTEN,
    MemoryMachine,
    Model,
    Name,
    Node,
    Op,
    PostgresMachine,
    RedisMachine,
    SaverMachine,
    SqliteMachine,
    config_of,
    indexes,
    name_of,
    newest_first,
    ops,
    run_machine,
    show,
    spaces,
    threads,
    writes,
)
from test_stores import count_file, count_memory, count_redis, count_server

from langgraph_harness_saver import CheckpointerConfig, HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine, MergeConflict
from langgraph_harness_saver.errors import BranchExistsError, CheckpointNotFoundError, InvalidConfigError
from langgraph_harness_saver.serde import HarnessSerializer
from langgraph_harness_saver.travel import UNFINISHED, Travel

KEY = b"0123456789abcdef"
TTL = 10_000
MOST_BRANCHES = 6
FIRST = ("sweep", "put", "put writes", "put again", "copy", "prune", "delete", "branch")


@dataclass
class Origin:
    """Where a branch began; `name` is empty once it has been deleted."""

    source: str
    checkpoint_id: str
    name: str


class FamilyModel(Model):
    """What a saver should hold, with branches, which read what their sources have."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, Origin] = {}
        self.tags: dict[tuple[str, str], str] = {}

    def find(self, name: Name) -> Name | None:
        origin = self.origins.get(name[0])
        if origin is not None and not origin.name:
            return None
        while name not in self.nodes:
            if origin is None:
                return None
            name = (origin.source, *name[1:])
            origin = self.origins.get(origin.source)
        return name

    def node_of(self, name: Name) -> Node | None:
        """Return what is read under a name: of an ancestor also what was written to it as a branch's."""
        found = self.find(name)
        if found is None or found == name:
            return super().node_of(name)
        readers = [name[0]]
        while self.origins[readers[-1]].source != found[0]:
            readers.append(self.origins[readers[-1]].source)
        node = replace(self.nodes[found], writes=dict(self.nodes[found].writes))
        for reader in reversed(readers):
            for at, write in self.early.get((reader, *name[1:]), {}).items():
                if at[1] < 0 or at not in node.writes:
                    node.writes[at] = write
        return node

    def is_readable(self, name: Name) -> bool:
        """Tell whether a thread reads a checkpoint: its own, an ancestor, or what was made under one."""
        node = self.node_of(name)
        if node is None or name in self.nodes or name in self.came_from(*name[:2]):
            return node is not None
        root = node.metadata.get("parents", {}).get("")
        return bool(name[1]) and (name[0], "", root) in self.came_from(name[0], "")

    def came_from(self, thread_id: str, ns: str) -> set[Name]:
        """Return what leads to a thread's checkpoints from before the first of a line."""
        own = self.of(thread_id, ns)
        parents = {(*name[:2], self.nodes[name].parent or "") for name in own} - set(own)
        return {one for parent in parents for one in self.line(parent)}

    def line(self, name: Name) -> list[Name]:
        """Return a checkpoint and its ancestors, as its thread reads them."""
        found = []
        parent: str | None = name[2]
        while parent is not None and self.find((*name[:2], parent)) is not None:
            found.append((*name[:2], parent))
            parent = self.node_of(found[-1]).parent  # type: ignore[union-attr]
        return found

    def readable(self, thread_id: str, ns: str) -> list[Name]:
        """Return a thread's checkpoints and all of their ancestors, newest first."""
        found = {one for name in self.of(thread_id, ns) for one in self.line(name)}
        return newest_first(list(found))

    def leads_back(self, name: Name, parent: str | None) -> bool:
        return any(
            super(FamilyModel, self).leads_back((thread, *name[1:]), parent) for thread in self.under(name[0])
        )

    def under(self, thread_id: str) -> list[str]:
        """Return a thread and all that came of it."""
        found = [thread_id]
        for thread in found:
            found += [t for t, origin in self.origins.items() if origin.source == thread]
        return found

    def branches(self, thread_id: str) -> dict[str, Origin]:
        return {t: self.origins[t] for t in self.under(thread_id)[1:] if self.origins[t].name}

    def is_leaf(self, name: Name) -> bool:
        own = self.find(name) or name
        if any(
            other[0] in (name[0], own[0])
            and other[1] == name[1]
            and other[2] > name[2]
            and node.parent == name[2]
            for other, node in self.nodes.items()
        ):
            return False
        # Of one that isn't the head, what came of it may have been deleted: its tasks are all finished then.
        writes = self.node_of(name).writes  # type: ignore[union-attr]
        finished = {task_id for task_id, index in writes if index >= 0}
        return self.of(*own[:2])[0] == own or any(
            index in UNFINISHED and task_id not in finished for task_id, index in writes
        )

    def remove(self, names: set[Name]) -> None:
        super().remove(names)
        self.tags = {at: one for at, one in self.tags.items() if (at[0], "", one) in self.nodes}

    def delete_thread(self, thread_id: str) -> int:
        names = self.of(thread_id)
        self.remove(set(names))
        super().delete_thread(thread_id)
        if thread_id in self.origins:
            self.origins[thread_id].name = ""
        return len(names)

    def copied(self, source: str, target: str) -> dict[Name, Node]:
        alone = FamilyModel()
        alone.nodes = {name: replace(node) for name, node in self.nodes.items()}
        alone.origins, alone.early = self.origins, self.early
        alone.remove({name for name in alone.nodes if name[0] != source})
        alone.nodes.update({name: node for name, node in self.nodes.items() if name[0] == target})
        return Model.copied(alone, source, target)

    def has_cycle(self, added: dict[Name, Node]) -> bool:
        trial = FamilyModel()
        trial.origins = self.origins
        trial.nodes = {**self.nodes, **added}
        return any(trial.leads_back(name, node.parent) for name, node in trial.nodes.items())


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


class EngineMachine(SaverMachine):
    """Two savers on one store, with an engine each, whose every answer has to be the model's."""

    model: FamilyModel

    def __init__(self) -> None:
        super().__init__()
        self.model = FamilyModel()
        self.clock = Clock()
        self.options: dict[str, Any] = {}

    @initialize(
        sizes=st.tuples(*[st.sampled_from((0, 20_000, 64 << 20))] * 2),
        secret=st.sampled_from((False, False, True)),
        expiring=st.booleans(),
    )
    def start(self, sizes: tuple[int, int], secret: bool, expiring: bool) -> None:
        if expiring:
            self.options["ttl_seconds"] = TTL
        self.secret = secret
        self.savers = [self.open(cache_bytes=size) for size in sizes]

    def opened(self, saver: HarnessCheckpointer) -> HarnessCheckpointer:
        saver.backend.clock = self.clock
        return saver

    def serde(self) -> dict[str, Any]:
        if not self.secret:
            return {}
        return {"serde": EncryptedSerializer.from_pycryptodome_aes(HarnessSerializer(), key=KEY)}

    def count(self) -> int:
        """Count everything that is stored."""
        raise NotImplementedError

    def teardown(self) -> None:
        if self.savers:
            try:
                for saver in self.savers:
                    saver._cache.clear()
                    self.check_everything(saver)
                    self.check_everything(saver)
                self.delete_everything(self.savers[self.tick % len(self.savers)])
            finally:
                self.finish()

    def adopt_copies(self, added: dict[Name, Node], source: str, target: str) -> None:
        written = {name: dict(rows) for name, rows in self.model.early.items() if name[0] == source}
        super().adopt_copies(added, source, target)
        for name, rows in written.items():
            there = (target, *name[1:])
            if there not in self.model.nodes:
                known = self.model.early.setdefault(there, {})
                known.update({at: row for at, row in rows.items() if at[1] < 0 or at not in known})

    def delete_everything(self, saver: HarnessCheckpointer) -> None:
        """Delete one thread after the other: those that are left stay whole, and nothing stays of any."""
        left = sorted(map(str, self.threads))
        while left:
            thread = left.pop(self.tick % 7919 % len(left))
            self.tick += 1
            expected = self.model.delete_thread(thread)
            assert self.call(saver, "delete_thread", thread) == expected
            for other in left:
                self.check_thread(self.other(saver), other)
        assert self.count() == 0

    # --- calls -------------------------------------------------------------------------------------

    def engine(self, saver: HarnessCheckpointer, method: str, *args: Any, **kwargs: Any) -> Any:
        engine = CheckpointEngine(saver)
        if self.use_loop:
            return self.loop.run_until_complete(getattr(engine, method)(*args, **kwargs))
        return getattr(engine.sync, method)(*args, **kwargs)

    def of_core(self, saver: HarnessCheckpointer, work: Any) -> Any:
        """Wait for what only the core has."""
        return self.loop.run_until_complete(work) if self.use_loop else saver.run_sync(work)

    def check_all(self, saver: HarnessCheckpointer) -> None:
        for thread in self.threads:
            self.check_thread(self.other(saver), thread)

    def chosen(self, thread: Any, at: int) -> Name | None:
        """Choose a root checkpoint that a thread reads: one of its own, or one from before it began."""
        names = self.model.readable(str(thread), "")
        return names[at % len(names)] if names else None

    # --- rules -------------------------------------------------------------------------------------

    doors = SaverMachine.doors

    @precondition(lambda self: len(self.threads) < 3 + MOST_BRANCHES)
    @rule(which=doors, thread=threads, at=indexes, name=st.sampled_from(("one", "two", "\ud800")))
    def branch(self, which: int, thread: Any, at: int, name: str) -> None:
        saver = self.door(which)
        chosen = self.chosen(thread, at)
        if chosen is None:
            return
        if any(o.source == str(thread) and o.name == name for o in self.model.origins.values()):
            with pytest.raises(BranchExistsError):
                self.engine(saver, "branch", chosen[2], name, thread)
        else:
            made = self.begin_branch(saver, chosen, name)
            self.check_thread(self.other(saver), made)
        self.check_thread(self.other(saver), thread)

    @rule(which=doors, thread=threads, ns=spaces, at=indexes, chosen=writes(), task=st.sampled_from(TASKS))
    def put_writes_to_an_ancestor(
        self, which: int, thread: Any, ns: str, at: int, chosen: list[tuple[str, int]], task: str
    ) -> None:
        """Write to what a branch reads and its source holds, as a run does that goes on from there."""
        names = [one for one in self.model.readable(str(thread), ns) if one not in self.model.nodes]
        if not names:
            return
        saver = self.door(which)
        name = names[at % len(names)]
        written = [(channel, WRITTEN[index]) for channel, index in chosen]
        self.call(saver, "put_writes", config_of(thread, *name[1:]), written, task, "")
        self.model.write(name, written, task, "")
        self.check_checkpoint(self.other(saver), name)
        self.check_all(saver)

    @rule(which=doors, into=threads, other=threads, strategy=st.sampled_from(("ours", "theirs", "three_way")))
    def merge(self, which: int, into: Any, other: Any, strategy: str) -> None:
        saver = self.door(which)
        before = set(self.model.of(str(into)))
        try:
            made = self.engine(saver, "merge_branch", other, into, strategy)
        except (InvalidConfigError, MergeConflict, CheckpointNotFoundError):
            assert {name_of(item.config) for item in self.collect(saver, config_of(into))} == before
        else:
            head, theirs = (self.model.of(str(one), "")[0] for one in (into, other))
            name = (str(into), "", made.checkpoint_id)
            found = {name_of(item.config): item for item in self.collect(saver, config_of(into))}
            assert found.keys() > before
            # Where the head is theirs, so is what subgraphs remember.
            for one in found.keys() - {*before, name}:
                assert one[1]
                assert made.fast_forward
                self.adopt_copy(one, found[one], theirs)
            self.adopt_merged(self.call(saver, "get_tuple", config_of(*name)), name, head, other)
        self.check_all(saver)

    def adopt_merged(self, item: Any, name: Name, head: Name, other: Any) -> None:
        """Take a merged head: each of its values is that of a side, or lists put together."""
        theirs = self.model.of(str(other), "")[0]
        assert item.metadata["merged_from"] == {"thread_id": str(other), "checkpoint_id": theirs[2]}
        values, sides = item.checkpoint["channel_values"], (self.model.nodes[head], self.model.nodes[theirs])
        for channel in values.keys() & PLAIN:
            known = [show(side.values[channel]) for side in sides if channel in side.values]
            assert show(values[channel]) in known or isinstance(values[channel], list)
        extra = {"ts": item.checkpoint["ts"], "updated_channels": item.checkpoint.get("updated_channels")}
        told = (item.checkpoint["channel_versions"], item.checkpoint["versions_seen"], item.metadata, extra)
        self.model.nodes[name] = Node(head[2], values, *copy.deepcopy(told))

    @precondition(lambda self: len(self.threads) < 3 + MOST_BRANCHES)
    @rule(
        which=doors, thread=threads, theirs=ops(), ours=st.none() | ops(),
        strategy=st.sampled_from(("ours", "theirs", "three_way")),
    )  # fmt: skip
    def branch_and_merge(
        self, which: int, thread: Any, theirs: list[Op], ours: list[Op] | None, strategy: str
    ) -> None:
        """Merge a branch that has gone on, where nothing waits, into what has stood still or gone on too."""
        saver = self.door(which)
        self.put_next(saver, thread, [])
        made = self.begin_branch(saver, self.model.of(str(thread), "")[0], f"to merge {self.tick}")
        self.put_next(saver, made, theirs)
        if ours is not None:
            self.put_next(saver, thread, ours)
        self.merge(which, thread, made, strategy)

    def begin_branch(self, saver: HarnessCheckpointer, chosen: Name, name: str) -> str:
        is_leaf = self.model.is_leaf(chosen)
        made: str = self.engine(saver, "branch", chosen[2], name, chosen[0])
        self.adopt_branch(saver, chosen, made, is_leaf)
        self.model.origins[made] = Origin(chosen[0], chosen[2], name)
        self.threads.append(made)
        return made

    def adopt_branch(self, saver: HarnessCheckpointer, chosen: Name, made: str, is_leaf: bool) -> None:
        """Take what a branch has begun with: of which subgraphs it has a checkpoint is tested elsewhere."""
        found = [name_of(item.config) for item in self.collect(saver, config_of(made))]
        assert (made, *chosen[1:]) in found
        for name in found:
            node = copy.deepcopy(self.model.node_of((chosen[0], *name[1:])))
            assert node is not None
            node.metadata.pop("run_id", None)
            if "thread_id" in node.metadata:
                node.metadata["thread_id"] = made
            self.model.nodes[name] = node if is_leaf else replace(node, writes={})
            self.model.nodes[name].writes.update(self.model.early.pop(name, {}))

    @rule(which=doors, thread=threads, at=indexes, discard=st.booleans())
    def rewind(self, which: int, thread: Any, at: int, discard: bool) -> None:
        saver = self.door(which)
        chosen = self.chosen(thread, at)
        if chosen is None:
            return
        before = set(self.model.of(str(thread)))
        head = self.model.of(str(thread), "")[0]
        kept = self.model.line(chosen)
        later = {name for name in self.model.line(head) if name not in kept}
        # Not by the engine's own method, which also describes the new head: no graph would make such a one.
        travel = Travel(saver._core)
        going = [name[2] for name in later] if discard else []
        made = self.of_core(saver, travel.rewind(str(thread), chosen[2], going))
        assert made.old_head == head[2]
        found = {name_of(item.config): item for item in self.collect(saver, config_of(str(thread)))}
        for name in found.keys() - before:
            self.adopt_copy(name, found[name], chosen)
        new_head = self.model.of(str(thread), "")[0]
        assert new_head[2] == made.checkpoint_id
        assert new_head not in before
        gone = before - found.keys()
        expected = {name for name in later if name in before} if discard else set()
        assert {name for name in gone if not name[1]} == expected
        self.check_taken_along(gone)
        self.model.remove(gone)
        self.check_all(saver)

    def check_taken_along(self, gone: set[Name]) -> None:
        """Check that of subgraphs only went what was made under checkpoints that went."""
        for name in gone:
            root = self.model.nodes[name].metadata["parents"].get("")
            assert not name[1] or (name[0], "", root) in gone

    def adopt_copy(self, name: Name, item: Any, chosen: Name) -> None:
        """Take a checkpoint that a rewind has made, which has to be a copy of one that is there."""
        extra = {"ts": item.checkpoint["ts"], "updated_channels": None}
        if name[1] and item.metadata["step"] == -2:
            node = Node(None, {}, {}, {}, dict(item.metadata), extra)
        else:
            origin = self.model.node_of(chosen) if not name[1] else self.model_of_copy(name, item, chosen[0])
            assert origin is not None
            node = replace(copy.deepcopy(origin), writes={}, extra=extra)
            node.metadata.pop("run_id", None)
            if "thread_id" in node.metadata:
                # What is copied may be a branch's source's.
                node.metadata["thread_id"] = name[0]
            if not name[1]:
                node.metadata["rewound_from"] = chosen[2]
        assert item.metadata.keys() == node.metadata.keys()
        node.metadata["parents"] = item.metadata["parents"]
        self.model.nodes[name] = node

    def model_of_copy(self, name: Name, item: Any, thread_id: str) -> Node:
        step = item.metadata["step"]
        line = self.model.of(thread_id, name[1])
        return next(self.model.nodes[one] for one in line if self.model.nodes[one].metadata["step"] == step)

    @rule(which=doors, thread=threads, at=indexes, name=st.sampled_from(("good", "\x00")))
    def tag(self, which: int, thread: Any, at: int, name: str) -> None:
        saver = self.door(which)
        chosen = self.chosen(thread, at)
        if chosen is None:
            return
        if chosen in self.model.nodes:
            self.engine(saver, "tag", chosen[2], name, thread)
            self.model.tags[str(thread), name] = chosen[2]
        else:
            with pytest.raises(CheckpointNotFoundError):
                self.engine(saver, "tag", chosen[2], name, thread)
        self.check_tags(self.other(saver), thread)

    @rule(which=doors, thread=threads, name=st.sampled_from(("good", "\x00")))
    def untag(self, which: int, thread: Any, name: str) -> None:
        saver = self.door(which)
        was_there = self.model.tags.pop((str(thread), name), None) is not None
        assert self.engine(saver, "untag", name, thread_id=str(thread)) == was_there
        self.check_tags(self.other(saver), thread)

    @rule(which=doors, thread=threads, at=indexes)
    def delete_before(self, which: int, thread: Any, at: int) -> None:
        saver = self.door(which)
        before = set(self.model.of(str(thread)))
        roots = self.model.of(str(thread), "")
        if not roots:
            return
        step = self.model.nodes[roots[at % len(roots)]].metadata["step"]
        tagged = {one for (of, _), one in self.model.tags.items() if of == str(thread)}
        expected = {
            name
            for name in roots[1:]
            if self.model.nodes[name].metadata["step"] < step and name[2] not in tagged
        }
        assert self.engine(saver, "delete_before", str(thread), step) == len(expected)
        found = {name_of(item.config) for item in self.collect(saver, config_of(str(thread)))}
        gone = before - found
        assert {name for name in gone if not name[1]} == expected
        self.check_taken_along(gone)
        self.model.remove(gone)
        self.check_all(saver)

    @rule(which=doors, thread=threads, branches=st.booleans())
    def delete_with_engine(self, which: int, thread: Any, branches: bool) -> None:
        saver = self.door(which)
        going = [str(thread), *(self.model.branches(str(thread)) if branches else ())]
        expected = sum(self.model.delete_thread(one) for one in reversed(going))
        assert self.engine(saver, "delete_thread", str(thread), branches=branches) == expected
        self.check_all(saver)
        self.forget_branches(going)

    @rule(which=doors, thread=threads, by_prune=st.booleans())
    def delete_thread(self, which: int, thread: Any, by_prune: bool) -> None:
        super().delete_thread(which, thread, by_prune)
        self.check_all(self.savers[0])
        self.forget_branches([str(thread)])

    @rule(which=doors, thread=threads, ours=st.booleans())
    def begin_again(self, which: int, thread: Any, ours: bool) -> None:
        # A deleted branch's id doesn't come again.
        if str(thread) not in self.model.origins:
            super().begin_again(which, thread, ours)

    def forget_branches(self, gone: list[str]) -> None:
        """Never use a deleted branch's id again: it is a UUID."""
        self.threads = [t for t in self.threads if str(t) not in gone or str(t) not in self.model.origins]

    @precondition(lambda self: self.options)
    @rule(
        which=doors, kept=st.lists(st.tuples(threads, ops()), max_size=3),
        first=st.sampled_from(FIRST),
    )  # fmt: skip
    def expire(self, which: int, kept: list[tuple[Any, list[Op]]], first: str) -> None:
        """Let the time pass: what nobody has written to expires, whatever its branches are."""
        saver = self.door(which)
        self.clock.now += TTL * 0.6
        alive = {str(thread) for thread, _ in kept}
        for thread, changes in kept:
            self.put_next(saver, thread, changes)
        self.clock.now += TTL * 0.6
        lapsed = [thread for thread in self.threads if str(thread) not in alive]
        found = [name_of(item.config) for item in self.collect(saver, None)]
        assert found == newest_first([name for name in self.model.nodes if name[0] in alive])
        for thread in lapsed:
            assert self.call(self.other(saver), "get_tuple", config_of(thread)) is None
        for thread, _ in kept:
            self.check_thread(self.other(saver), thread)
        if kept and first != "sweep":
            self.do_before_sweep(saver, first, kept[0][0], lapsed)
        for thread in lapsed:
            self.model.delete_thread(str(thread))
        self.of_core(saver, saver._core.sweep())
        self.forget_branches([str(thread) for thread in lapsed])
        for thread in alive - set(map(str, lapsed)):
            # All that is left shall be there for as long as what is put next.
            self.put_next(saver, thread, [])
        self.check_all(saver)

    def put_next(self, saver: HarnessCheckpointer, thread: Any, changes: list[Op]) -> None:
        call = self.prepare(saver, thread, "", -1, "new", changes, "ours", "right", None)
        self.call(saver, "put", *call.arguments)
        self.model.put(call.name, call.node)

    def do_before_sweep(self, saver: Any, first: str, thread: Any, lapsed: list[Any]) -> None:
        """Work on a family of which some threads have expired and are still stored."""
        if first.startswith(("put", "copy")):
            begun = next((one for one in lapsed if str(one) not in self.model.origins), None)
            if begun is not None:
                lapsed.remove(begun)
                self.begin_anew(saver, first, begun, thread)
        elif first == "prune":
            self.call(saver, "prune", [thread])
            self.model.prune(str(thread))
        elif first == "delete":
            self.call(saver, "delete_thread", thread)
            self.model.delete_thread(str(thread))
            lapsed.append(thread)
        elif first == "branch" and len(self.threads) < 3 + MOST_BRANCHES:
            self.branch(self.tick % 4, thread, self.tick, f"late {self.tick}")

    def begin_anew(self, saver: Any, first: str, thread: Any, alive: Any) -> None:
        """Write to a thread that has expired: of what it was nothing comes back."""
        names = self.model.of(str(thread), "")
        self.model.delete_thread(str(thread))
        if first == "copy":
            added = self.model.copied(str(alive), str(thread))
            self.call(saver, "copy_thread", alive, thread)
            self.model.nodes.update(added)
            self.model.gone -= added.keys()
        elif first == "put writes":
            name = (str(thread), "", f"early {thread} {self.tick}")
            self.call(saver, "put_writes", config_of(*name), [("d1", self.tick)], "task", "")
            self.model.write(name, [("d1", self.tick)], "task", "")
        elif first == "put again" and names:
            node = Node(None, {"x": "anew"}, {"x": 1}, {}, {"source": "loop", "step": 0, "parents": {}}, {})
            node.extra = {"ts": "anew", "updated_channels": None}
            _, *arguments = self.arguments(thread, names[0], node, {})
            self.call(saver, "put", config_of(*names[0]), *arguments)
            self.model.put(names[0], node)
        else:
            self.put_next(saver, thread, [("messages", "append", 3)])
        self.check_thread(saver, thread)

    # --- making a put ------------------------------------------------------------------------------

    def parents(self, thread_id: str, ns: str) -> list[Name]:
        return self.model.readable(thread_id, ns)

    def new_id(self, thread_id: str, ns: str, at: str, names: Any) -> str:
        made = super().new_id(thread_id, ns, at, names)
        # A rewind makes ids of the present time, which what is put next has to follow.
        return made.replace("1ef", "2ef", 1) if at != "below" and made.startswith("1ef0") else made

    def metadata(self, thread: Any, ns: str, run: str | None) -> dict[str, Any]:
        metadata = super().metadata(thread, ns, run)
        roots = self.model.readable(str(thread), "")
        if ns and roots:
            metadata["parents"] = {"": roots[self.tick % 3 % len(roots)][2]}
            metadata["source"] = ("loop", "input")[self.tick % 2]
        return metadata

    # --- checks ------------------------------------------------------------------------------------

    def check_thread(self, saver: HarnessCheckpointer, thread: Any) -> None:
        super().check_thread(saver, thread)
        for ns in ("", "sub"):
            names = [one for one in self.model.readable(str(thread), ns) if one not in self.model.nodes]
            for name in names[self.tick % 3 :: 3]:
                self.check_checkpoint(saver, name)
                self.check_history(saver, name)
        self.check_tags(saver, thread)
        self.check_branches(saver, thread)
        self.check_what_came_later(saver, str(thread), 2)

    def check_head(self, found: Name | None, line: list[Name]) -> None:
        if line or found is None or ":" not in found[1]:
            super().check_head(found, line)
        else:
            # What a task left that an ancestor of the branch began.
            assert self.model.is_readable(found)

    def check_what_came_later(self, saver: HarnessCheckpointer, thread: str, step: int) -> None:
        """Check that a branch doesn't read what came after it began, or on other lines of its source."""
        origin = self.model.origins.get(thread)
        for ns in ("", "sub") if origin is not None else ():
            others = [(thread, *name[1:]) for name in self.model.of(origin.source, ns)]  # type: ignore[union-attr]
            for name in others[self.tick % step :: step]:
                read = self.call(saver, "get_tuple", config_of(*name)) is not None
                assert read == self.model.is_readable(name), name

    def check_everything(self, saver: HarnessCheckpointer) -> None:
        super().check_everything(saver)
        for thread in self.threads:
            self.check_tags(saver, thread)
            self.check_branches(saver, thread)
            self.check_what_came_later(saver, str(thread), 1)
            self.check_each(saver, self.model.readable(str(thread), ""))

    def check_tags(self, saver: HarnessCheckpointer, thread: Any) -> None:
        expected = {name: one for (of, name), one in self.model.tags.items() if of == str(thread)}
        assert self.engine(saver, "list_tags", str(thread)) == expected

    def check_branches(self, saver: HarnessCheckpointer, thread: Any) -> None:
        found = {
            branch.thread_id: Origin(branch.source, branch.checkpoint_id, branch.name)
            for branch in self.engine(saver, "list_branches", str(thread))
        }
        assert found == self.model.branches(str(thread))


class MemoryEngineMachine(EngineMachine, MemoryMachine):
    def open(self, **options: Any) -> HarnessCheckpointer:
        self.store.ttl_seconds = self.options.get("ttl_seconds")
        return self.opened(
            HarnessCheckpointer(CheckpointerConfig(**options), backend=self.store, **self.serde())
        )

    def count(self) -> int:
        return count_memory(self.store)


class SqliteEngineMachine(EngineMachine, SqliteMachine):
    def open(self, **options: Any) -> HarnessCheckpointer:
        return self.opened(super().open(**options, **self.options, **self.serde()))

    def count(self) -> int:
        return count_file(self.savers[0].backend)


class PostgresEngineMachine(EngineMachine, PostgresMachine):
    def open(self, **options: Any) -> HarnessCheckpointer:
        return self.opened(super().open(**options, **self.options, **self.serde()))

    def count(self) -> int:
        return count_server(self.schemas.server, self.address)


class RedisEngineMachine(EngineMachine, RedisMachine):
    def open(self, **options: Any) -> HarnessCheckpointer:
        return self.opened(super().open(**options, **self.options, **self.serde()))

    def count(self) -> int:
        return count_redis(self.server, self.prefix)


MACHINES: dict[str, type[EngineMachine]] = {
    "memory": MemoryEngineMachine,
    "sqlite": SqliteEngineMachine,
    "postgres": PostgresEngineMachine,
    "redis": RedisEngineMachine,
}


@pytest.mark.parametrize("kind", MACHINES)
def test_an_engine_and_its_saver_answer_as_their_model(kind: str, request: pytest.FixtureRequest) -> None:
    machine = MACHINES[kind]
    if issubclass(machine, PostgresMachine):
        machine.schemas = schemas_of(server_of(kind, request), request)
    if issubclass(machine, RedisMachine):
        machine.server = redis_of(kind, request)
    run_machine(machine, 12 if kind in ("memory", "sqlite") else 3)
