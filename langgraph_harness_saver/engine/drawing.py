"""Draws a `CheckpointTree`: as text for a terminal, and as a Mermaid flowchart."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from langgraph_harness_saver.engine.terminal import printable, short_ids
from langgraph_harness_saver.rows import CheckpointKey

if TYPE_CHECKING:
    from langgraph_harness_saver.engine.events import Event
    from langgraph_harness_saver.engine.tree import CheckpointTree, TreeEdge, TreeNode

_ASCII = str.maketrans(
    {
        "●": "*",
        "│": "|",
        "⋮": ":",
        "─": "-",
        "├": "|",
        "┤": "|",
        "┼": "+",
        "╮": ".",
        "╭": ".",
        "╯": "'",
        "╰": "'",
        "…": "...",
        "·": "-",
    }
)
_PLAIN, _ID, _HEAD, _BRANCH, _TAG, _DIM = "", "33", "1;36", "32", "1;33", "2"
_LANE_COLOURS = ("31", "32", "33", "34", "35", "36")


class Step(NamedTuple):
    """A place in the drawing: one checkpoint, or a run of them that is left out."""

    nodes: Sequence[TreeNode]
    parents: Sequence[CheckpointKey]
    """The nodes that lines lead to, all of them farther down."""

    @property
    def key(self) -> CheckpointKey:
        """The node that lines from above lead to."""
        return self.nodes[0].key


class _Piece(NamedTuple):
    text: str
    style: str = _PLAIN


# --- what is drawn, and in which order -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Links:
    """Which nodes are joined by lines: everything but rewinds, which are told in words."""

    parents: Mapping[CheckpointKey, Sequence[CheckpointKey]]
    children: Mapping[CheckpointKey, Sequence[CheckpointKey]]

    @classmethod
    def of(cls, edges: Iterable[TreeEdge]) -> _Links:
        parents: dict[CheckpointKey, list[CheckpointKey]] = defaultdict(list)
        children: dict[CheckpointKey, list[CheckpointKey]] = defaultdict(list)
        # The line that a checkpoint is on comes before the one merged into it.
        for edge in sorted(edges, key=lambda edge: edge.kind == "merge"):
            source, target = edge.source_key, edge.target_key
            if edge.kind != "rewind" and source not in parents[target]:
                parents[target].append(source)
                children[source].append(target)
        return cls(parents, children)


def _steps(tree: CheckpointTree, run: int | None) -> list[Step]:
    nodes = {node.key: node for node in tree.nodes}
    links = _Links.of(tree.edges)
    order = _order(tree, links)
    at = {key: place for place, key in enumerate(order)}
    # Damaged data may lead in circles; no line leads upwards.
    below = {key: [p for p in links.parents.get(key, ()) if at[p] > at[key]] for key in order}
    noted = _noted(tree, links)
    steps: list[Step] = []
    for chain in _chains(order, below, noted):
        steps += _shortened([Step([nodes[key]], below[key]) for key in chain], run)
    return steps


def _order(tree: CheckpointTree, links: _Links) -> list[CheckpointKey]:
    """Order nodes so that each comes after all that came of it, and each line stays together."""
    newest: dict[CheckpointKey, str] = {node.key: node.id for node in tree.nodes}
    for node in tree.nodes:
        for parent in links.parents.get(node.key, ())[:1]:
            if parent.thread_id == node.thread:
                newest[parent] = max(newest[parent], newest[node.key])

    def first(key: CheckpointKey, thread_id: str) -> tuple[bool, bool, str, CheckpointKey]:
        return key.thread_id == thread_id, key.checkpoint_ns == "", newest[key], key

    order: list[CheckpointKey] = []
    reached: set[CheckpointKey] = set()

    def children(key: CheckpointKey) -> Iterator[CheckpointKey]:
        found = links.children.get(key, ())
        return iter(sorted(found, key=lambda child: first(child, key.thread_id), reverse=True))

    def visit(start: CheckpointKey) -> None:
        # By hand, as a line may be longer than Python's stack.
        reached.add(start)
        path = [(start, children(start))]
        while path:
            key, rest = path[-1]
            child = next((one for one in rest if one not in reached), None)
            if child is None:
                order.append(key)
                path.pop()
            else:
                reached.add(child)
                path.append((child, children(child)))

    keys = sorted((node.key for node in tree.nodes), key=lambda key: first(key, tree.thread_id), reverse=True)
    for key in (*(key for key in keys if not links.parents.get(key)), *keys):
        if key not in reached:
            visit(key)
    return order


def _noted(tree: CheckpointTree, links: _Links) -> set[CheckpointKey]:
    """Return the nodes at which something happens, so that they are never left out."""
    noted = {edge.source_key for edge in tree.edges if edge.kind == "rewind"}
    noted |= {edge.target_key for edge in tree.edges if edge.kind != "parent"}
    for node in tree.nodes:
        key = node.key
        single = len(links.parents.get(key, ())) == len(links.children.get(key, ())) == 1
        if not single or node.tags or node.head or node.interrupts:
            noted.add(key)
    return noted


def _chains(
    order: Sequence[CheckpointKey],
    below: Mapping[CheckpointKey, Sequence[CheckpointKey]],
    noted: set[CheckpointKey],
) -> Iterator[list[CheckpointKey]]:
    """Part nodes into runs in which nothing happens, each node that is noted by itself."""
    chain: list[CheckpointKey] = []
    for key in order:
        if chain and (key in noted or chain[-1] in noted or below[chain[-1]] != [key]):
            yield chain
            chain = []
        chain.append(key)
    if chain:
        yield chain


def _shortened(chain: list[Step], run: int | None) -> list[Step]:
    if run is None or len(chain) <= run + 1:
        return chain
    top = (run + 1) // 2
    bottom = len(chain) - run // 2
    left_out = [step.nodes[0] for step in chain[top:bottom]]
    return [*chain[:top], Step(left_out, chain[bottom - 1].parents), *chain[bottom:]]


# --- text ------------------------------------------------------------------------------------------------


def text(tree: CheckpointTree, width: int | None, *, colour: bool, ascii: bool, run: int | None) -> str:
    """Draw the tree for a terminal; see `CheckpointTree.render`."""
    pen = _Pen(width, colour, ascii)
    labels = _Labels(tree)
    lines = []
    for graph, step in _lanes(_steps(tree, run)):
        lines.append(pen.line(graph, labels.pieces(step) if step else []))
        if step and len(step.nodes) == 1:
            under = graph.replace("●", "│" if step.parents else " ")
            told = labels.events(step.nodes[0], run)
            lines += [pen.line(under, [_Piece("  "), _Piece(event, _DIM)]) for event in told]
    if tree.next_page is not None:
        more = tree.total_checkpoints - len(tree.nodes)
        lines.append(pen.line("⋮", [_Piece(f"… {more:,} more on other pages", _DIM)]))
    return "\n".join(lines)


def _lanes(steps: Iterable[Step]) -> Iterator[tuple[str, Step | None]]:
    """Yield the lines of the graph, and with each that stands for a step the step."""
    lanes: list[CheckpointKey | None] = []
    for step in steps:
        column = _lane(lanes, step.key)
        lanes[column] = step.key
        mark = "●" if len(step.nodes) == 1 else "⋮"
        yield " ".join(mark if i == column else _bar(lane) for i, lane in enumerate(lanes)), step
        lanes[column] = None
        joins = [parent for parent in step.parents if parent in lanes]
        # What leads to no lane goes on in this one, or in a new one.
        for parent in step.parents:
            if parent in joins:
                continue
            if lanes[column] is None:
                lanes[column] = parent
            else:
                new = _lane(lanes, parent)
                yield _connector(lanes, column, new), None
                lanes[new] = parent
        for parent in joins:
            ends = parent == joins[-1] and lanes[column] is None
            yield _connector(lanes, column, lanes.index(parent), ends=ends), None
        while lanes and lanes[-1] is None:
            lanes.pop()


def _lane(lanes: list[CheckpointKey | None], key: CheckpointKey) -> int:
    """Return the lane that leads to a node, else a free one."""
    for wanted in (key, None):
        if wanted in lanes:
            return lanes.index(wanted)
    lanes.append(None)
    return len(lanes) - 1


def _bar(lane: CheckpointKey | None) -> str:
    return " " if lane is None else "│"


def _connector(lanes: Sequence[CheckpointKey | None], column: int, to: int, *, ends: bool = False) -> str:
    """Draw a line from one lane to another; it `ends` there, or a new one begins where there is none yet."""
    cells = [_bar(lane) for lane in lanes]
    low, high = sorted((column, to))
    cells[low + 1 : high] = ["─" if cell == " " else "┼" for cell in cells[low + 1 : high]]
    is_new = lanes[to] is None
    if column < to:
        cells[column], cells[to] = "╰" if ends else "├", "╮" if is_new else "┤"
    else:
        cells[column], cells[to] = "╯" if ends else "┤", "╭" if is_new else "├"
    drawn = "".join(f"{cell}{'─' if low <= i < high else ' '}" for i, cell in enumerate(cells))
    return drawn.rstrip()


@dataclass(frozen=True, slots=True)
class _Pen:
    width: int | None
    colour: bool
    ascii: bool

    def line(self, graph: str, pieces: Sequence[_Piece]) -> str:
        drawn = [_Piece(self._glyphs(cell), _lane_colour(place)) for place, cell in enumerate(graph)]
        told = [
            piece._replace(text=self._glyphs(piece.text)) if piece.style == _DIM else piece
            for piece in pieces
        ]
        if told:
            told.insert(0, _Piece(" "))
        if self.width is not None:
            # However many lanes there are, the words keep half of the width.
            drawn = self._cut(drawn, self.width // 2 if told else self.width)
            told = self._cut(told, self.width - len(drawn))
        return "".join(self._inked(piece.text, piece.style) for piece in (*drawn, *told))

    def _inked(self, shown: str, style: str) -> str:
        return f"\x1b[{style}m{shown}\x1b[0m" if self.colour and style and shown.strip() else shown

    def _glyphs(self, shown: str) -> str:
        return shown.translate(_ASCII) if self.ascii else shown

    def _cut(self, pieces: list[_Piece], room: int) -> list[_Piece]:
        """Return as much as there is room for, the end marked where some is lacking."""
        if sum(_columns(piece.text) for piece in pieces) <= room:
            return pieces
        kept: list[_Piece] = []
        room -= 1
        for piece in pieces:
            shown = _beginning(piece.text, room)
            room -= _columns(shown)
            kept.append(piece._replace(text=shown))
            if shown != piece.text:
                break
        return [*kept, _Piece("~" if self.ascii else "…")] if room >= 0 else []


def _lane_colour(place: int) -> str:
    return _LANE_COLOURS[place // 2 % len(_LANE_COLOURS)]


def _columns(shown: str) -> int:
    if shown.isascii():
        return len(shown)
    return sum(_columns_of(character) for character in shown)


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _beginning(shown: str, room: int) -> str:
    used = 0
    for end, character in enumerate(shown):
        used += _columns_of(character)
        if used > room:
            return shown[:end]
    return shown


# --- words -----------------------------------------------------------------------------------------------


class _Labels:
    """Says what there is to say of each step, in words that are safe to print."""

    def __init__(self, tree: CheckpointTree) -> None:
        self._ids = short_ids({node.id for node in tree.nodes})
        self._names = {node.thread: printable(node.branch or node.thread) for node in tree.nodes}
        self._kinds: dict[CheckpointKey, dict[str, TreeEdge]] = defaultdict(dict)
        for edge in tree.edges:
            self._kinds[edge.target_key][edge.kind] = edge

    def name(self, thread_id: str) -> str:
        """Return a thread's name: of a branch what it is called, else its id."""
        return self._names[thread_id]

    def id(self, node: TreeNode) -> str:
        """Return as much of an id as tells it from all others."""
        return self._ids[node.id]

    def refs(self, node: TreeNode) -> list[_Piece]:
        """Return what points to a node."""
        where = f" {printable(node.ns)}" if node.ns else ""
        refs = [_Piece(f"HEAD {self.name(node.thread)}{where}", _HEAD)] if node.head else []
        if "branch" in self._kinds[node.key]:
            refs.append(_Piece(f"branch: {self.name(node.thread)}{where}", _BRANCH))
        return refs + [_Piece(f"tag: {printable(tag)}", _TAG) for tag in node.tags]

    def facts(self, node: TreeNode) -> list[str]:
        """Return all else, most important first."""
        kinds = self._kinds[node.key]
        facts = [
            "" if node.step is None else f"step {printable(str(node.step))}",
            printable(node.source or ""),
            f"rewound from {self._ids[kinds['rewind'].source]}" if "rewind" in kinds else "",
            f"merged from {self.name(kinds['merge'].source_thread)}" if "merge" in kinds else "",
            f"next: {', '.join(map(printable, node.next))}" if node.next else "",
            _count(len(node.interrupts), "interrupt") if node.interrupts else "",
            printable(node.summary or ""),
            printable(node.created_at or "")[:19].replace("T", " "),
        ]
        return [fact for fact in facts if fact]

    def events(self, node: TreeNode, run: int | None) -> list[str]:
        """Return what happened in the step that ran from a node."""
        told = [_happened(event) for event in node.events[:run]]
        left = len(node.events) - len(told)
        return [*told, f"… {_count(left, 'more event')}"] if left else told

    def pieces(self, step: Step) -> list[_Piece]:
        """Return a step's line, piece by piece."""
        if len(step.nodes) > 1:
            return [_Piece(f"… {len(step.nodes):,} more", _DIM)]
        node = step.nodes[0]
        pieces = [_Piece(self.id(node), _ID)]
        for place, ref in enumerate(self.refs(node)):
            pieces += [_Piece(", " if place else " ("), ref]
        if len(pieces) > 1:
            pieces.append(_Piece(")"))
        for place, fact in enumerate(self.facts(node)):
            pieces += [_Piece(" · ", _DIM) if place else _Piece(" "), _Piece(fact)]
        return pieces


def _happened(event: Event) -> str:
    facts = [
        f"{printable(event.kind)} {printable(event.name)}",
        printable(event.phase or ""),
        "" if event.attempt == 1 else f"attempt {event.attempt}",
        "paused" if event.paused else "",
        f"error: {printable(event.error)}" if event.error else "",
        "" if event.duration is None else f"{event.duration:.3g} s",
        _tokens(event.usage or {}),
        printable(event.summary or ""),
    ]
    return " · ".join(fact for fact in facts if fact)


def _tokens(usage: Mapping[str, object]) -> str:
    total = usage.get("total_tokens")
    return f"{total:,} tokens" if isinstance(total, int) else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- Mermaid ---------------------------------------------------------------------------------------------

_ARROWS = {"parent": "-->", "branch": "-.->", "merge": "==>|merge|", "rewind": "-.->|rewind|"}


def mermaid(tree: CheckpointTree, run: int | None) -> str:
    """Draw the tree as a flowchart; see `CheckpointTree.to_mermaid`."""
    labels = _Labels(tree)
    names: dict[CheckpointKey, str] = {}
    boxes: dict[str, list[str]] = defaultdict(list)
    for number, step in enumerate(reversed(_steps(tree, run))):
        names.update(dict.fromkeys((node.key for node in step.nodes), f"n{number}"))
        boxes[step.key.thread_id].append(f"n{number}{_box(labels, step, run)}")
    lines = ["flowchart TD"]
    for number, (thread_id, nodes) in enumerate(boxes.items()):
        lines.append(f'  subgraph t{number}["{_escaped(labels.name(thread_id))}"]')
        lines += [f"    {node}" for node in nodes]
        lines.append("  end")
    arrows = ((names[e.source_key], _ARROWS[e.kind], names[e.target_key]) for e in reversed(tree.edges))
    lines += dict.fromkeys(f"  {a} {arrow} {b}" for a, arrow, b in arrows if a != b)
    return "\n".join(lines) + "\n"


def _box(labels: _Labels, step: Step, run: int | None) -> str:
    if len(step.nodes) > 1:
        return f'["… {len(step.nodes):,} more"]'
    node = step.nodes[0]
    refs = [ref.text for ref in labels.refs(node)]
    words = [labels.id(node), *refs, *labels.facts(node), *labels.events(node, run)]
    label = "<br/>".join(map(_escaped, words))
    return f'(["{label}"])' if node.head else f'["{label}"]'


def _escaped(shown: str) -> str:
    """Return text as Mermaid shows it within quotes, whatever it holds; it takes no empty one."""
    return "".join(c if c.isalnum() or c in " _,:" else f"#{ord(c)};" for c in shown or " ")
