"""The engine's machine with retention in it: what stays is told by a definition of a few lines."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import INTERRUPT
from test_engine_machine import EngineMachine, MemoryEngineMachine, SqliteEngineMachine
from test_machine import Name, config_of, name_of, run_machine, threads

from langgraph_harness_saver import Retention
from langgraph_harness_saver.keeping import Keeping


class KeepingMachine(EngineMachine):
    """Threads are kept to a policy at any time, each in the way of a put or of a collection."""

    @rule(
        which=EngineMachine.doors,
        thread=threads,
        retention=st.sampled_from(
            (
                "keep_last_n:1",
                "keep_last_n:1",
                "keep_last_n:2",
                "keep_last_n:4",
                "keep_milestones:2",
                "keep_milestones:3",
                "max_bytes:3000",
                "max_bytes:90000",
                "keep_all",
            )
        ),
        whole=st.booleans(),
    )
    def keep(self, which: int, thread: Any, retention: str, whole: bool) -> None:
        saver = self.door(which)
        before = set(self.model.of(str(thread)))
        told = self.keep_to(saver, str(thread), Retention.of(retention), whole=whole)
        gone = before - {name_of(item.config) for item in self.collect(saver, config_of(str(thread)))}
        roots = {name for name in gone if not name[1]}
        safe = self.safe(str(thread))
        if told is not None:
            assert set(told) == {name[2] for name in roots}
        assert not roots & safe
        if retention == "keep_all":
            assert not gone
        if retention.startswith("keep_last_n"):
            wanted = set(self.model.of(str(thread), "")[: Retention.of(retention).newest])
            assert roots == set(self.model.of(str(thread), "")) - self.closed(wanted | safe)
        self.check_taken_along(gone, before)
        self.model.remove(gone)
        self.check_all(saver)

    def keep_to(
        self, saver: Any, thread: str, retention: Retention, *, whole: bool
    ) -> list[str] | tuple[str, ...] | None:
        if whole:
            foretold = self.engine(saver, "gc", thread, retention=retention, dry_run=True)
            done = self.engine(saver, "gc", thread, retention=retention)
            assert foretold.details == done.details
            return done.details[thread].removed
        if retention.keeps_all or retention.policy == "max_bytes":
            return None
        self.of_core(saver, self.opened_keeping(saver, retention, thread))
        return None

    async def opened_keeping(self, saver: Any, retention: Retention, thread: str) -> None:
        await saver.backend.open()
        await Keeping(retention)._retire(saver._core, thread)

    # --- what stays whatever the policy ------------------------------------------------------------

    def ancestors(self, name: Name) -> list[Name]:
        found: list[Name] = []
        while (parent := self.model.nodes[name].parent) is not None and (
            *name[:2],
            parent,
        ) in self.model.nodes:
            name = (*name[:2], parent)
            found.append(name)
        return found

    def safe(self, thread: str) -> set[Name]:
        roots = self.model.of(thread, "")
        above = {name: self.ancestors(name) for name in roots}
        children = {name: [n for n in roots if above[n][:1] == [name]] for name in roots}
        forks = {name for name in roots if len(children[name]) > 1}
        tagged = {(thread, "", one) for (of, _), one in self.model.tags.items() if of == thread}
        branched = {
            (thread, "", o.checkpoint_id)
            for o in self.model.origins.values()
            if o.source == thread and o.name
        }
        return {
            name
            for name in roots
            if name == roots[0]
            or (not children[name] and forks & set(above[name]))
            or name in tagged | branched
            or self.asks(name)
        }

    def closed(self, kept: set[Name]) -> set[Name]:
        """Add where lines part that both lead to something kept."""
        reached: dict[Name, set[Name]] = {}
        for name in kept:
            path = [name, *self.ancestors(name)]
            for child, parent in itertools.pairwise(path):
                reached.setdefault(parent, set()).add(child)
        return kept | {name for name, below in reached.items() if len(below) > 1}

    def asks(self, name: Name) -> bool:
        writes = self.model.nodes[name].writes
        finished = {task_id for task_id, index in writes if index >= 0}
        return any(i == WRITES_IDX_MAP[INTERRUPT] and t not in finished for t, i in writes)

    def check_taken_along(self, gone: set[Name], before: set[Name] | None = None) -> None:
        """Check that of subgraphs only went what was made under checkpoints that went, now or earlier."""
        for name in gone:
            root = self.model.nodes[name].metadata["parents"].get("")
            there = (name[0], "", root)
            assert not name[1] or there in gone or (before is not None and there not in before)


class MemoryKeepingMachine(KeepingMachine, MemoryEngineMachine):
    pass


class SqliteKeepingMachine(KeepingMachine, SqliteEngineMachine):
    pass


MACHINES: dict[str, type[KeepingMachine]] = {"memory": MemoryKeepingMachine, "sqlite": SqliteKeepingMachine}


@pytest.mark.parametrize("kind", MACHINES)
def test_survivors_of_any_policy_read_back_as_before(kind: str) -> None:
    run_machine(MACHINES[kind], 12)
