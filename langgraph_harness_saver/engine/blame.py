"""Which checkpoint last set each part of a channel's value."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, islice
from typing import Any, TypeAlias

from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.engine.compare import (
    ABSENT,
    DEEPEST,
    Path,
    Step,
    are_messages,
    entries,
    fingerprint,
    is_message,
    match_items,
    match_messages,
    message_id,
    packed_items,
    path_text,
    token,
    told,
)
from langgraph_harness_saver.engine.diff import shown
from langgraph_harness_saver.engine.terminal import CYAN, DIM, YELLOW, Ink, lines_of, printable, short_ids

_WIDEST = 24
"""How many characters the names of nodes may take of a line."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint, and what led to it."""

    checkpoint_id: str
    step: int | None = None
    """LangGraph's count of supersteps: -1 for the first input."""
    nodes: tuple[str, ...] = ()
    """Those that wrote the channel in that step; none for an input."""
    source: str | None = None
    """`input`, `loop`, `update` or `fork`."""
    run_id: str | None = None
    created_at: str | None = None
    """ISO 8601."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        names = ("checkpoint_id", "step", "nodes", "source", "run_id", "created_at")
        return {name: told(getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class BlameStep(Origin):
    """A checkpoint on the line that leads to the one in question.

    `changed` tells whether the channel was written there; it may be true of a write that changed nothing. The
    `value` is what the channel holds from there on, ABSENT if nothing.
    """

    value: Any = ABSENT
    changed: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class BlamePart:
    """A part of the value, and where it was last set.

    With `boundary` it was set there or earlier: what came before wasn't given.
    """

    path: Path
    value: Any
    origin: Origin
    boundary: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it; see `Blame.to_dict`."""
        return {
            "path": told(path_text(self.path)),
            "steps": [step.to_dict() for step in self.path],
            "value": told(self.value),
            **self.origin.to_dict(),
            "boundary": self.boundary,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Blame:
    """Where each part of a channel's value was last set, in the value's own order.

    Parts are messages, items of lists, what mappings, sets and objects hold by key; else the value as a
    whole, under an empty path. A channel that holds nothing has none.
    """

    channel: str
    parts: tuple[BlamePart, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it.

        Keys: `channel` and `parts`, each with path (text), steps, value, checkpoint_id, step, nodes, source,
        run_id, created_at and boundary. Values are told as `CheckpointDiff.to_dict` tells them.
        """
        return {"channel": told(self.channel), "parts": [part.to_dict() for part in self.parts]}

    def __str__(self) -> str:
        """Return `render()`."""
        return self.render()

    def render(self, *, colour: bool = False, width: int = 100) -> str:
        """Return it for a terminal: a line for each part, the checkpoint first.

        Args:
            colour: Use ANSI colours.
            width: Columns; longer lines are cut. Long values are shortened.
        """
        ids = short_ids([part.origin.checkpoint_id for part in self.parts])
        rows = [_row(part, ids) for part in self.parts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(part, row, widths) for part, row in zip(self.parts, rows, strict=True)]
        return lines_of(lines or [[Ink("nothing", DIM)]], colour=colour, width=width)


def blame(
    history: Iterable[BlameStep], channel: str, *, depth: int | None = 3, complete: bool = True
) -> Blame:
    """Tell which checkpoint last set each part of the value that a channel has at the newest of a line.

    Writing what was there already sets nothing. A message that was edited was last set by its last edit.

    Args:
        history: The checkpoints of one line, oldest first or newest first; newest first it is read only as
            far as needed.
        channel: Its name.
        depth: How many levels of lists, mappings, sets and objects are told apart; None for all. Messages are
            always told as a whole.
        complete: Whether the oldest checkpoint given has no parent. If it has one, what is as old is marked
            as a boundary.
    """
    tracer = BlameTracer(channel, depth=depth)
    for step in _newest_first(history):
        if tracer.add(step):
            break
    return tracer.result(complete=complete)


class BlameTracer:
    """Follows a channel's value back from the newest checkpoint, one checkpoint at a time.

    For callers that read checkpoints as they go: `add` each, newest first, until it returns True. Where
    `needs_value` is False, the next one's value isn't looked at and may be left out.
    """

    def __init__(self, channel: str, *, depth: int | None = 3) -> None:
        self.channel = channel
        self.needs_value = True
        self._depth = depth
        self._leaves: list[_Leaf] = []
        self._root: _Node | None = None
        self._last: BlameStep | None = None
        self._left = 0

    def add(self, step: BlameStep) -> bool:
        """Take the next older checkpoint; return whether nothing is left to find out."""
        if self._last is None:
            self._root = self._node(_plain(step.value), (), ())
            self._left = len(self._leaves)
        elif self._last.changed and self._root is not None:
            self._root = self._kept(self._root, _plain(step.value))
        self._last = step
        self.needs_value = step.changed
        return not self._left

    def result(self, *, complete: bool = True) -> Blame:
        """Return what is known so far; see `blame`."""
        if self._last is None:
            return Blame(self.channel, ())
        boundary = not (complete and self._last.changed)
        return Blame(
            self.channel,
            tuple(
                BlamePart(leaf.path, leaf.value, _origin(self._last), boundary)
                if leaf.setter is None
                else BlamePart(leaf.path, leaf.value, _origin(leaf.setter))
                for leaf in self._leaves
            ),
        )

    def _node(self, value: Any, path: Path, above: tuple[int, ...]) -> _Node | None:
        """Return what to look for of a value: its parts, as far down as they are told apart."""
        if value is ABSENT:
            return None
        limit = DEEPEST if self._depth is None else min(self._depth, DEEPEST)
        parts: dict[Any, tuple[Step, Any]] | None = None
        is_list = isinstance(value, (list, deque)) or type(value) is tuple
        if len(path) < limit and not is_message(value) and id(value) not in above:
            parts = _numbered(value) if is_list else entries(value)
        if not parts:
            leaf = _Leaf(path, value)
            self._leaves.append(leaf)
            return leaf
        inside = (*above, id(value))
        children = {name: self._node(item, (*path, step), inside) for name, (step, item) in parts.items()}
        found = {name: child for name, child in children.items() if child is not None}
        return _Items(value, found) if is_list else _Entries(type(value), found)

    def _kept(self, node: _Node, older: Any) -> _Node | None:
        """Return what of a node an older value has, too; the last checkpoint has set the rest."""
        if isinstance(node, _Leaf):
            if node.holds(older):
                return node
        elif isinstance(node, _Entries):
            if type(older) is node.kind and (parts := entries(older)) is not None:
                return self._kept_entries(node, parts)
        elif type(older) is type(node.value):
            return self._kept_items(node, older)
        self._settle(node)
        return None

    def _kept_entries(self, node: _Entries, older: dict[Hashable, tuple[Step, Any]]) -> _Node | None:
        kept = (
            (name, self._kept(child, older[name][1] if name in older else ABSENT))
            for name, child in node.children.items()
        )
        node.children = {name: child for name, child in kept if child is not None}
        return node if node.children else None

    def _kept_items(self, node: _Items, older: Sequence[Any]) -> _Node | None:
        before = _Items(older, {})
        if before.packed is not None and node.packed is not None and node.packed.startswith(before.packed):
            # Most lists only grow.
            for index in range(len(older), len(node.value)):
                if index in node.children:
                    self._settle(node.children.pop(index))
            before.children = node.children
            return before if before.children else None
        for i, j in _matched(before, node):
            child = node.children.pop(j, None)
            kept = None if child is None else self._kept(child, older[i])
            if kept is not None:
                before.children[i] = kept
        self._settle(node)
        return before if before.children else None

    def _settle(self, node: _Node) -> None:
        """Note that the last checkpoint has set all of this."""
        if isinstance(node, _Leaf):
            node.setter = self._last
            self._left -= 1
            return
        for child in node.children.values():
            self._settle(child)


class _Leaf:
    """A part that is looked for as a whole."""

    def __init__(self, path: Path, value: Any) -> None:
        self.path = path
        self.value = value
        self.setter: BlameStep | None = None

    @cached_property
    def _print(self) -> Hashable:
        return fingerprint(self.value)

    @cached_property
    def _token(self) -> Hashable:
        return token(self.value)

    def holds(self, value: Any) -> bool:
        """Tell whether this is the value, as `same` would."""
        return self.value is value or self._print == fingerprint(value) or self._token == token(value)


@dataclass(slots=True)
class _Entries:
    """Parts of a mapping, a set or an object that are still looked for."""

    kind: type
    children: dict[Hashable, _Node]


class _Items:
    """Parts of a list that are still looked for, by where they stand in `value`."""

    def __init__(self, value: Sequence[Any], children: dict[Any, _Node]) -> None:
        self.value = value
        self.children = children

    @cached_property
    def packed(self) -> bytes | None:
        """The whole list's bytes, if it has any."""
        return packed_items(self.value)

    @cached_property
    def prints(self) -> list[Hashable]:
        """The items' fingerprints."""
        return [*map(fingerprint, self.value)]


_Node: TypeAlias = "_Leaf | _Entries | _Items"


def _matched(before: _Items, after: _Items) -> list[tuple[int, int]]:
    if are_messages(before.value, after.value):
        return match_messages(before.value, after.value)
    return match_items(before.prints, after.prints)


def _numbered(value: Sequence[Any]) -> dict[int, tuple[Step, Any]]:
    if are_messages(value, []):
        return {n: (Step("message", message_id(item), after=n), item) for n, item in enumerate(value)}
    return {n: (Step("index", after=n), item) for n, item in enumerate(value)}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _DeltaSnapshot) else value


def _origin(step: BlameStep) -> Origin:
    """Return a step without its value, which nobody needs any more."""
    return Origin(**{field.name: getattr(step, field.name) for field in fields(Origin)})


def _newest_first(history: Iterable[BlameStep]) -> Iterable[BlameStep]:
    rest = iter(history)
    two = list(islice(rest, 2))
    if len(two) == 2 and _order(two[0]) < _order(two[1]):
        return reversed([*two, *rest])
    return chain(two, rest)


def _order(step: BlameStep) -> tuple[int, str]:
    return -2 if step.step is None else step.step, step.checkpoint_id


# --- how it is shown -----------------------------------------------------------------------------------


def _row(part: BlamePart, ids: Mapping[str, str]) -> tuple[str, ...]:
    origin = part.origin
    return (
        f"{'^' if part.boundary else ''}{ids[origin.checkpoint_id]}",
        printable(", ".join(origin.nodes) or origin.source or "?")[:_WIDEST],
        "" if origin.step is None else f"step {origin.step}",
        printable(origin.created_at or "")[:19].replace("T", " "),
    )


def _line(part: BlamePart, row: Sequence[str], widths: Sequence[int]) -> list[Ink]:
    id_, *facts = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
    return [
        Ink(f"{id_} ", YELLOW),
        Ink(f"({' '.join(facts)}) ", DIM),
        Ink(f"{path_text(part.path)} " if part.path else "", CYAN),
        Ink(shown(part.value)),
    ]
