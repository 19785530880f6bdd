"""Which rows of a family go when root checkpoints do, told from its outline alone: pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from langgraph_harness_saver.family import parents_of
from langgraph_harness_saver.retention import Retention, Root, Why, staying
from langgraph_harness_saver.rows import CheckpointKey, Kind, Node, Outline


class Facts(NamedTuple):
    """What the metadata of a checkpoint tells: the root it was made under, its step and its source."""

    root: str | None = None
    step: int | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stays of a thread's root checkpoints, and why; `gone` is what goes, of all namespaces."""

    stays: Mapping[str, Why] = field(default_factory=dict)
    gone: frozenset[CheckpointKey] = frozenset()

    @property
    def roots(self) -> list[str]:
        """The root checkpoints that go."""
        return sorted(key.checkpoint_id for key in self.gone if not key.checkpoint_ns)


class Threads:
    """One thread of a family, as policies look at it."""

    def __init__(self, outline: Outline, thread_id: str, facts: Callable[[Node], Facts]) -> None:
        self._outline = outline
        self._thread_id = thread_id
        self._facts = facts
        own = [n for n in outline.nodes if n.key.thread_id == thread_id]
        live = [n for n in own if n.kind == Kind.LIVE]
        self._parents = parents_of(own)
        self.roots = {node.key.checkpoint_id: node for node in live if not node.key.checkpoint_ns}
        self._below: list[tuple[Node, str]] = []
        for node in live:
            root = facts(node).root if node.key.checkpoint_ns else None
            if root is not None:
                self._below.append((node, root))

    def verdict(
        self,
        retention: Retention,
        now: float,
        *,
        interrupted: Collection[str] = (),
        times: Mapping[str, float] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> Verdict:
        """Return what stays and what goes.

        `interrupted`, `times` and `sizes` tell of root checkpoints, by id, what `Root` says of them.
        """
        holds = self._holds(interrupted)
        if self._outline.last is not None:
            # Of the newest ones most are left out.
            there = sum(one >= self._outline.last for one in self.roots)
            retention = replace(retention, param=there)
        stays = staying(
            retention,
            [
                Root(
                    one,
                    self._parents[node.key],
                    (times or {}).get(one, now),
                    self._facts(node).step,
                    (sizes or {}).get(one, node.size),
                    holds.get(one),
                )
                for one, node in self.roots.items()
            ],
            now,
        )
        gone = {node.key for one, node in self.roots.items() if one not in stays}
        gone.update(self._gone_below(stays))
        return Verdict(stays, frozenset(gone))

    def below(self, root: str) -> Iterator[Node]:
        """Yield what subgraphs made under a root checkpoint."""
        return (node for node, made_under in self._below if made_under == root)

    def _holds(self, interrupted: Collection[str]) -> dict[str, Why]:
        holds = dict.fromkeys(interrupted, Why.INTERRUPTED)
        for branch in self._outline.branches.values():
            if branch.source == self._thread_id and branch.name:
                holds[branch.checkpoint_id] = Why.BRANCHED
        for key in self._outline.tagged:
            if key.thread_id == self._thread_id and not key.checkpoint_ns:
                holds[key.checkpoint_id] = Why.TAGGED
        for node, root in self._below:
            if node.key in self._outline.tagged:
                holds[root] = Why.TAGGED
        return holds

    def _gone_below(self, stays: Collection[str]) -> Iterator[CheckpointKey]:
        """Yield what goes of what subgraphs made.

        A subgraph with a memory of its own goes on from the last checkpoint that it made before a survivor:
        that stays until a later one takes its place. What was made under a root that isn't there yet stays.
        """
        head = max(self.roots, default="")
        leaving = [(node, root) for node, root in self._below if root not in stays and root < head]
        if not leaving:
            return
        needed = self._needed(stays)
        survivors = sorted(stays)
        for node, root in leaving:
            if root in self.roots or ":" in node.key.checkpoint_ns:
                keeps = node.key in needed
            else:
                # Its root went earlier.
                keeps = not self._replaced(node, root, survivors, needed)
            if not keeps:
                yield node.key

    def _needed(self, stays: Collection[str]) -> set[CheckpointKey]:
        """Return what survivors need of what was made under roots that go now."""
        made: dict[str, dict[str, Node]] = {}
        for node, root in self._below:
            if ":" not in node.key.checkpoint_ns and root not in stays:
                line = made.setdefault(node.key.checkpoint_ns, {})
                line[root] = max(line.get(root, node), node, key=lambda one: one.key.checkpoint_id)
        needed: set[CheckpointKey] = set()
        for survivor in stays:
            parent = self._parents[self.roots[survivor].key]
            waiting, seen = set(made), set()
            while parent in self.roots and parent not in stays and parent not in seen and waiting:
                seen.add(parent)
                for ns in [ns for ns in waiting if parent in made[ns]]:
                    needed.add(made[ns][parent].key)
                    waiting.discard(ns)
                parent = self._parents[self.roots[parent].key]
        return needed

    def _replaced(
        self, node: Node, root: str, survivors: list[str], needed: Collection[CheckpointKey]
    ) -> bool:
        """Tell whether no survivor goes on any more from what was made under a root that went earlier.

        That is so if the subgraph went on from it under a later root, with no survivor in between.
        """
        at = bisect_right(survivors, root)
        following = survivors[at] if at < len(survivors) else None
        parents = {
            n.key.checkpoint_id: self._parents[n.key] for n, _ in self._below if n.key[:2] == node.key[:2]
        }
        for other, other_root in self._below:
            if other.key[:2] != node.key[:2] or other_root <= root:
                continue
            if following is not None and other_root > following:
                continue
            if other_root == following and self._facts(other).source != "input":
                # It goes on in the middle; whoever rewinds to its root needs what was before.
                continue
            if other_root != following and other_root in self.roots and other.key not in needed:
                continue
            if _comes_of(other.key.checkpoint_id, node.key.checkpoint_id, parents):
                return True
        return False


def _comes_of(one: str, ancestor: str, parents: Mapping[str, str | None]) -> bool:
    seen: set[str] = set()
    parent = parents.get(one)
    if parent is None:
        return True
    while parent is not None and parent not in seen:
        if parent == ancestor:
            return True
        seen.add(parent)
        parent = parents.get(parent)
    return False


def neighbours(outline: Outline, gone: Collection[CheckpointKey]) -> tuple[set[CheckpointKey], bool]:
    """Return what `family.retirement` has to be given, and whether an anchor is among it."""
    nodes = {node.key: node for node in outline.nodes}
    found = set(gone)
    gone_ids = {(key.checkpoint_ns, key.checkpoint_id) for key in gone}
    anchored = False
    # Whoever has an anchor as parent has its parent, too.
    for node in outline.nodes:
        if node.kind == Kind.ANCHOR and (node.key.checkpoint_ns, node.parent_id) in gone_ids:
            gone_ids.add((node.key.checkpoint_ns, node.key.checkpoint_id))
            found.add(node.key)
            anchored = True
    found |= {n.key for n in outline.nodes if (n.key.checkpoint_ns, n.parent_id) in gone_ids}
    for key in list(found):
        at: Node | None = nodes[key]
        while at is not None and at.parent_id is not None:
            above = at.key._replace(checkpoint_id=at.parent_id)
            at = _resolved(outline, nodes, above)
            if at is None or (at.key in found and at.key not in gone):
                break
            found.add(at.key)
            anchored |= at.kind == Kind.ANCHOR
            if at.kind == Kind.LIVE and at.key not in gone:
                break
    # A branch may have written to what it has from its source.
    found |= {key._replace(thread_id=branch) for key in gone for branch in outline.branches}
    return found, anchored


def _resolved(outline: Outline, nodes: Mapping[CheckpointKey, Node], key: CheckpointKey) -> Node | None:
    """Return what is read under a key: a branch has from its source what it doesn't hold itself."""
    while key not in nodes:
        branch = outline.branches.get(key.thread_id)
        if branch is None or branch.source == key.thread_id:
            return None
        key = key._replace(thread_id=branch.source)
    return nodes[key]
