"""The tree of a thread's checkpoints and of its branches': as data, as text, as a diagram.

No state is needed for it, and nothing here reads any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from typing_extensions import Self

from langgraph_harness_saver.engine import drawing
from langgraph_harness_saver.engine.events import Event
from langgraph_harness_saver.engine.snapshot import text_of
from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.rows import Branch, CheckpointKey

EdgeKind = Literal["parent", "branch", "merge", "rewind"]


class TreeItem(NamedTuple):
    """What is known of a checkpoint without decoding its state; `interrupts` are the pending ones' ids."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None = None
    metadata: Mapping[str, Any] = {}
    created_at: str | None = None
    next: tuple[str, ...] = ()
    interrupts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def key(self) -> CheckpointKey:
        """What identifies it: a branch begins with an id that its source has too."""
        return CheckpointKey(self.thread_id, self.checkpoint_ns, self.checkpoint_id)


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A checkpoint in the tree.

    A branch's first checkpoint has the id of the one that it came from, so only `thread` and `id` together
    (and `ns`, where subgraphs are shown) identify a node.
    """

    id: str
    thread: str
    ns: str = ""
    parent: str | None = None
    """Its parent's id, also where that is on another page."""
    branch: str | None = None
    """The name of the branch that `thread` is, None for a thread that is no branch."""
    step: int | None = None
    tags: tuple[str, ...] = ()
    summary: str | None = None
    created_at: str | None = None
    """ISO 8601."""
    source: str | None = None
    next: tuple[str, ...] = ()
    head: bool = False
    """Whether it is the latest of its thread and namespace."""
    interrupts: tuple[str, ...] = ()
    """The ids of interrupts that wait for an answer."""
    events: tuple[Event, ...] = ()
    """What happened in the step that ran from it, in order, without inputs and outputs."""

    @property
    def key(self) -> CheckpointKey:
        """What identifies it."""
        return CheckpointKey(self.thread, self.ns, self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**plain, "events": [event.to_dict() for event in self.events]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
        return cls(**{**values, "events": tuple(map(Event.from_dict, data.get("events", ())))})


@dataclass(frozen=True, slots=True)
class TreeEdge:
    """Leads from the older checkpoint to the newer one that came of it; both are nodes of the tree.

    parent: from a checkpoint to the next of its thread. branch: to the first of another thread. merge: from
    the merged branch's head to the checkpoint that took it in. rewind: from the checkpoint that was gone back
    to, to the copy that has become the head.
    """

    source: str
    target: str
    kind: EdgeKind
    source_thread: str
    target_thread: str
    ns: str = ""

    @property
    def source_key(self) -> CheckpointKey:
        """Identify the older node."""
        return CheckpointKey(self.source_thread, self.ns, self.source)

    @property
    def target_key(self) -> CheckpointKey:
        """Identify the newer node."""
        return CheckpointKey(self.target_thread, self.ns, self.target)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it; `source` and `target` are called `from` and `to`."""
        return {
            "from": self.source,
            "to": self.target,
            "kind": self.kind,
            "from_thread": self.source_thread,
            "to_thread": self.target_thread,
            "ns": self.ns,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`."""
        from_, to = data["from"], data["to"]
        return cls(from_, to, data["kind"], data["from_thread"], data["to_thread"], data.get("ns", ""))


@dataclass(frozen=True, slots=True)
class CheckpointTree:
    """A thread's checkpoints and its branches', newest id first, and how one came of another.

    `total_checkpoints` counts those on other pages too. `next_page` is what to ask for the next page with,
    None on the last.
    """

    thread_id: str
    total_checkpoints: int
    nodes: tuple[TreeNode, ...] = field(repr=False)
    edges: tuple[TreeEdge, ...] = field(repr=False)
    next_page: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "thread_id": self.thread_id,
            "total_checkpoints": self.total_checkpoints,
            "nodes": [node.to_dict() for node in self.nodes],
            "edges": [edge.to_dict() for edge in self.edges],
            "next_page": self.next_page,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`.

        Raises:
            SerializationError: It isn't what `to_dict` returns.
        """
        try:
            return cls(
                data["thread_id"],
                data["total_checkpoints"],
                tuple(TreeNode.from_dict(node) for node in data["nodes"]),
                tuple(TreeEdge.from_dict(edge) for edge in data["edges"]),
                data.get("next_page"),
            )
        except (KeyError, TypeError) as error:
            raise SerializationError(
                f"this is not a tree ({type(error).__name__}: {error}); "
                "pass what CheckpointTree.to_dict returned"
            ) from error

    def to_json(self, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text, in ASCII."""
        return json.dumps(self.to_dict(), indent=indent)

    def render(
        self, width: int | None = None, *, colour: bool = False, ascii: bool = False, run: int | None = 8
    ) -> str:
        """Draw it for a terminal, like `git log --graph`: each line above what it came of.

        Under a checkpoint stand the events of the step that ran from it, in order.

        Args:
            width: Columns; longer lines are cut. None: as long as they get, else for example
                `shutil.get_terminal_size().columns`.
            colour: Use ANSI colours.
            ascii: Draw with ASCII only; names and summaries stay as they are.
            run: How many checkpoints to show of a line in which nothing happens: no tag, branch, merge,
                rewind, head or interrupt; and how many events of a step. None: all.
        """
        return drawing.text(self, width, colour=colour, ascii=ascii, run=run)

    def to_mermaid(self, run: int | None = 8) -> str:
        """Draw it as a Mermaid flowchart, oldest first, a box around each thread; `run` as in `render`.

        Mermaid refuses more than 500 arrows unless its `maxEdges` is raised.
        """
        return drawing.mermaid(self, run)


def build_tree(
    thread_id: str,
    items: Iterable[TreeItem],
    *,
    branches: Iterable[Branch] = (),
    heads: Iterable[CheckpointKey] | None = None,
    total: int | None = None,
    next_page: str | None = None,
) -> CheckpointTree:
    """Make the tree of some checkpoints, in any order.

    Args:
        thread_id: The thread whose tree it is; it is drawn leftmost.
        items: The checkpoints of this page. Where metadata has `rewound_from` (a checkpoint_id) or
            `merged_from` (thread_id and checkpoint_id), rewinds and merges show. An edge to a checkpoint that
            isn't among them is left out.
        branches: Which threads are branches of which, at least for all threads in `items`.
        heads: The latest checkpoint of each thread, for pages that lack it. None: the largest ids of `items`.
        total: How many checkpoints there are on all pages. None: as many as `items`.
        next_page: The cursor of the page after this.
    """
    known = {item.key: item for item in items}
    lines = {branch.thread_id: branch for branch in branches}
    latest = set(_heads(known) if heads is None else heads)
    newest_first = sorted(known, key=lambda key: (key.checkpoint_id, key), reverse=True)
    return CheckpointTree(
        thread_id=thread_id,
        total_checkpoints=len(known) if total is None else total,
        nodes=tuple([_node(known[key], lines, head=key in latest) for key in newest_first]),
        edges=tuple([edge for key in newest_first for edge in _edges(key, known[key], known, lines)]),
        next_page=next_page,
    )


def _heads(keys: Iterable[CheckpointKey]) -> Iterable[CheckpointKey]:
    heads: dict[tuple[str, str], CheckpointKey] = {}
    for key in keys:
        heads[key[:2]] = max(key, heads.get(key[:2], key))
    return heads.values()


def _node(item: TreeItem, lines: Mapping[str, Branch], *, head: bool) -> TreeNode:
    metadata = item.metadata
    line = lines.get(item.thread_id)
    return TreeNode(
        id=item.checkpoint_id,
        thread=item.thread_id,
        ns=item.checkpoint_ns,
        parent=item.parent_id,
        branch=line.name if line else None,
        step=metadata.get("step"),
        tags=tuple(item.tags),
        summary=text_of(metadata.get("summary")),
        created_at=item.created_at,
        source=text_of(metadata.get("source")),
        next=tuple(item.next),
        head=head,
        interrupts=tuple(item.interrupts),
        events=tuple(item.events),
    )


def _edges(
    key: CheckpointKey,
    item: TreeItem,
    known: Mapping[CheckpointKey, TreeItem],
    lines: Mapping[str, Branch],
) -> Iterator[TreeEdge]:
    line = lines.get(key.thread_id)
    origin = _find(CheckpointKey(line.source, *key[1:]), known, lines) if line else None
    if (came_of := _came_of(key, item, origin, known, lines)) and came_of != key:
        yield _edge(came_of, key, "parent" if came_of.thread_id == key.thread_id else "branch")
    if origin:
        # What its metadata says happened to the checkpoint that it is a copy of.
        return
    for kind, other in _told(key, item.metadata):
        if (found := _find(other, known, lines)) and found != key:
            yield _edge(found, key, kind)


def _came_of(
    key: CheckpointKey,
    item: TreeItem,
    origin: CheckpointKey | None,
    known: Mapping[CheckpointKey, TreeItem],
    lines: Mapping[str, Branch],
) -> CheckpointKey | None:
    """Return its parent in its own thread, else what it is a copy of, else its parent in another thread."""
    if item.parent_id is None:
        return origin
    parent = CheckpointKey(*key[:2], item.parent_id)
    return parent if parent in known else origin or _find(parent, known, lines)


def _told(key: CheckpointKey, metadata: Mapping[str, Any]) -> Iterator[tuple[EdgeKind, CheckpointKey]]:
    """Yield what its metadata says that a checkpoint came of."""
    rewound, merged = metadata.get("rewound_from"), metadata.get("merged_from")
    if isinstance(rewound, str):
        yield "rewind", CheckpointKey(*key[:2], rewound)
    if isinstance(merged, Mapping):
        thread_id, checkpoint_id = merged.get("thread_id"), merged.get("checkpoint_id")
        yield "merge", CheckpointKey(str(thread_id), key.checkpoint_ns, str(checkpoint_id))


def _edge(source: CheckpointKey, target: CheckpointKey, kind: EdgeKind) -> TreeEdge:
    ids = source.checkpoint_id, target.checkpoint_id
    return TreeEdge(*ids, kind, source.thread_id, target.thread_id, target.checkpoint_ns)


def _find(
    key: CheckpointKey, known: Mapping[CheckpointKey, TreeItem], lines: Mapping[str, Branch]
) -> CheckpointKey | None:
    """Return under which key a checkpoint that a thread can read is known: its own, or its source's."""
    passed: set[str] = set()
    while key not in known:
        line = lines.get(key.thread_id)
        if line is None or key.thread_id in passed:
            return None
        passed.add(key.thread_id)
        key = key._replace(thread_id=line.source)
    return key
