"""What differs between two checkpoints' channel values, by channel, message and path."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.engine.compare import (
    ABSENT,
    DEEPEST,
    Path,
    Step,
    Unresolved,
    align,
    are_messages,
    content_of,
    entries,
    fingerprint,
    is_message,
    kept_in_order,
    match_items,
    match_messages,
    message_id,
    path_text,
    placed,
    role_of,
    safe_repr,
    same,
    stretches,
    told,
    why_not_compared,
)
from langgraph_harness_saver.engine.terminal import (
    BOLD,
    CYAN,
    DIM,
    GREEN,
    MAGENTA,
    RED,
    YELLOW,
    Ink,
    lines_of,
    printable,
)

ChannelKind: TypeAlias = Literal["added", "removed", "changed", "unresolved", "unchanged"]
ChangeKind: TypeAlias = Literal["added", "removed", "changed", "edited", "moved", "unresolved"]

_MOST_WORDS = 2_000
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


class Piece(NamedTuple):
    """A stretch of text that both have (` `), only the earlier (`-`) or only the later one (`+`)."""

    kind: Literal[" ", "-", "+"]
    text: str


# Values may have an `==` that raises or returns arrays, so what holds them compares by identity.
@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One difference, at `path`.

    `edited` is a message that has the same id, or stands in the same place without one: its `parts` say what
    became of it, with paths that start at the message. `moved` tells of a message that it stands elsewhere
    among those that stayed, whether its kind is `edited` or `moved`. `text` is there where two texts differ:
    words within the lines that changed. `note` says why two values couldn't be compared.
    """

    kind: ChangeKind
    path: Path
    before: Any = ABSENT
    after: Any = ABSENT
    text: tuple[Piece, ...] = ()
    moved: bool = False
    parts: tuple[Change, ...] = ()
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it; see `CheckpointDiff.to_dict`."""
        result: dict[str, Any] = {
            "kind": self.kind,
            "path": told(path_text(self.path)),
            "steps": [step.to_dict() for step in self.path],
        }
        if self.before is not ABSENT:
            result["before"] = told(self.before)
        if self.after is not ABSENT:
            result["after"] = told(self.after)
        if self.text:
            result["text"] = [[piece.kind, told(piece.text)] for piece in self.text]
        if self.moved:
            result["moved"] = True
        if self.parts:
            result["parts"] = [part.to_dict() for part in self.parts]
        if self.note:
            result["note"] = self.note
        return result


@dataclass(frozen=True, slots=True, eq=False)
class ChannelDiff:
    """What became of one channel; `routing` where it only says what runs next.

    An added, removed or unresolved channel has one change, with an empty path. An unchanged one has none.
    """

    channel: str
    kind: ChannelKind
    changes: tuple[Change, ...] = ()
    routing: bool = False

    @property
    def messages(self) -> tuple[Change, ...]:
        """The changes that are whole messages: added, removed, edited, moved."""
        return tuple(change for change in self.changes if change.path and change.path[-1].kind == "message")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it; see `CheckpointDiff.to_dict`."""
        changes = [change.to_dict() for change in self.changes]
        return {"kind": self.kind, "routing": self.routing, "changes": changes}


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointDiff:
    """What differs between two checkpoints; false if nothing does.

    `channels` tells of each by name, unchanged ones and those that route included. `added`, `removed`,
    `changed`, `unresolved` and `unchanged` are the names of those that hold state. An unresolved channel
    counts as a difference: whether it is one can't be known without the graph.
    """

    channels: Mapping[str, ChannelDiff]

    def __bool__(self) -> bool:
        """Tell whether anything differs, routing included."""
        return any(channel.kind != "unchanged" for channel in self.channels.values())

    @property
    def added(self) -> tuple[str, ...]:
        """Channels that only the later checkpoint holds."""
        return self._named("added")

    @property
    def removed(self) -> tuple[str, ...]:
        """Channels that only the earlier checkpoint holds."""
        return self._named("removed")

    @property
    def changed(self) -> tuple[str, ...]:
        """Channels whose values differ."""
        return self._named("changed")

    @property
    def unresolved(self) -> tuple[str, ...]:
        """Channels whose values aren't known without their reducers."""
        return self._named("unresolved")

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Channels that hold the same in both."""
        return self._named("unchanged")

    def _named(self, kind: ChannelKind) -> tuple[str, ...]:
        return tuple(name for name, one in self.channels.items() if one.kind == kind and not one.routing)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it.

        Keys: `added`, `removed`, `changed`, `unresolved`, `unchanged` (names of state channels) and
        `channels`: by name, for each that differs, kind, routing and changes. A change has kind, path (text),
        steps, and where it has them before, after, text (pairs of ` `, `-` or `+` and a stretch), moved,
        parts and note. Values are told as `CheckpointRecord` tells them, what JSON has no form for as text,
        unresolved ones as `{"unresolved": "seed + n writes", "seed_step": …, "writes": n}`.
        """
        return {
            "added": [told(name) for name in self.added],
            "removed": [told(name) for name in self.removed],
            "changed": [told(name) for name in self.changed],
            "unresolved": [told(name) for name in self.unresolved],
            "unchanged": [told(name) for name in self.unchanged],
            "channels": {
                told(name): one.to_dict() for name, one in self.channels.items() if one.kind != "unchanged"
            },
        }

    def __str__(self) -> str:
        """Return `render()`."""
        return self.render()

    def render(self, *, colour: bool = False, width: int = 100, routing: bool = False) -> str:
        """Return it for a terminal: a line for each channel that differs, then what differs in each.

        Args:
            colour: Use ANSI colours, instead of `[-…-]` and `{+…+}` around words.
            width: Columns; longer lines are cut. Long values are shortened.
            routing: Show the channels that only say what runs next, too.
        """
        differing = [one for one in self.channels.values() if one.kind != "unchanged"]
        visible = [one for one in differing if routing or not one.routing]
        lines = [*_stat_lines(visible), _total_line(self, len(differing) - len(visible))]
        for one in visible:
            lines += [[], [Ink(one.channel, BOLD)], *_first(_channel_lines(one, colour), _MOST_LINES)]
        return lines_of(lines, colour=colour, width=width)


def diff_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> CheckpointDiff:
    """Compare the channel values of two checkpoints; either may be of any thread.

    A channel whose value can't be known without its reducer is given as an `Unresolved`.
    """
    names = sorted({**before, **after})
    return CheckpointDiff(
        {name: _channel_diff(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names}
    )


def _channel_diff(channel: str, before: Any, after: Any) -> ChannelDiff:
    before, after = _plain(before), _plain(after)
    kind: ChannelKind
    changes: Sequence[Change]
    if before is ABSENT:
        kind, changes = "added", [Change("added", (), after=after)]
    elif after is ABSENT:
        kind, changes = "removed", [Change("removed", (), before)]
    elif isinstance(before, Unresolved) or isinstance(after, Unresolved):
        kind, changes = "unresolved", [Change("unresolved", (), before, after)]
        if same(before, after):
            kind, changes = "unchanged", []
    else:
        changes = _Walk().changes(before, after, ())
        kind = "changed" if changes else "unchanged"
    return ChannelDiff(channel, kind, tuple(changes), is_routing(channel))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _DeltaSnapshot) else value


# --- the walk ------------------------------------------------------------------------------------------


class _Walk:
    """Finds what differs within two values; remembers where it is, as values may hold themselves."""

    def __init__(self) -> None:
        self.open: set[tuple[int, int]] = set()

    def changes(self, before: Any, after: Any, path: Path) -> list[Change]:
        """Return the differences, none if the values are the same."""
        here = (id(before), id(after))
        if before is after or here in self.open or fingerprint(before) == fingerprint(after):
            return []
        found: list[Change] = []
        if len(path) < DEEPEST and type(before) is type(after):
            self.open.add(here)
            found += self._inside(before, after, path)
            self.open.remove(here)
        return found if found or same(before, after) else [_replaced(before, after, path)]

    def _inside(self, before: Any, after: Any, path: Path) -> Iterator[Change]:
        if are_messages(before, after):
            return self._messages(before, after, path)
        if isinstance(before, (list, deque)) or type(before) is tuple:
            return self._items(before, after, path)
        old, new = entries(before), entries(after)
        return iter(()) if old is None or new is None else self._entries(old, new, path)

    def _entries(
        self,
        old: Mapping[Hashable, tuple[Step, Any]],
        new: Mapping[Hashable, tuple[Step, Any]],
        path: Path,
    ) -> Iterator[Change]:
        for name, (step, item) in old.items():
            if name in new:
                yield from self.changes(item, new[name][1], (*path, step))
            else:
                yield Change("removed", (*path, step), before=item)
        for name, (step, item) in new.items():
            if name not in old:
                yield Change("added", (*path, step), after=item)

    def _items(self, before: Sequence[Any], after: Sequence[Any], path: Path) -> Iterator[Change]:
        pairs = match_items([*map(fingerprint, before)], [*map(fingerprint, after)])
        for i, j in placed(pairs, len(before), len(after)):
            step = Step("index", None, i, j)
            if i is None and j is not None:
                yield Change("added", (*path, step), after=after[j])
            elif j is None and i is not None:
                yield Change("removed", (*path, step), before=before[i])
            elif i is not None and j is not None:
                yield from self.changes(before[i], after[j], (*path, step))

    def _messages(self, before: Sequence[Any], after: Sequence[Any], path: Path) -> Iterator[Change]:
        pairs = match_messages(before, after)
        kept = kept_in_order(pairs, before, after)
        for i, j in placed(pairs, len(before), len(after)):
            if i is None and j is not None:
                yield Change("added", (*path, Step("message", message_id(after[j]), i, j)), after=after[j])
            elif j is None and i is not None:
                yield Change("removed", (*path, Step("message", message_id(before[i]), i, j)), before[i])
            elif i is not None and j is not None:
                id_ = message_id(after[j])
                step = Step("message", message_id(before[i]) if id_ is None else id_, i, j)
                yield from self._message(before[i], after[j], (*path, step), (i, j) not in kept)

    def _message(self, before: Any, after: Any, path: Path, moved: bool) -> Iterator[Change]:
        parts = tuple(self.changes(before, after, ()))
        if parts:
            yield Change("edited", path, before, after, moved=moved, parts=parts)
        elif moved:
            yield Change("moved", path, before, after, moved=True)


def _replaced(before: Any, after: Any, path: Path) -> Change:
    text = text_pieces(before, after) if type(before) is str and type(after) is str else ()
    return Change("changed", path, before, after, text=text, note=why_not_compared(before, after))


# --- text ----------------------------------------------------------------------------------------------


def text_pieces(before: str, after: str) -> tuple[Piece, ...]:
    """Return what two texts share and don't: by line, and within the lines that differ by word.

    Those of kind ` ` and `-` joined are `before`, those of kind ` ` and `+` are `after`.
    """
    return tuple(
        Piece(kind, "".join(piece.text for piece in some))
        for kind, some in groupby(_line_pieces(before, after), key=lambda piece: piece.kind)
    )


def _line_pieces(before: str, after: str) -> Iterator[Piece]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for at in stretches(align(old, new), len(old), len(new)):
        differing = (
            "".join(old[at.before : at.equal_before]),
            "".join(new[at.after : at.equal_after]),
        )
        yield from _word_pieces(*differing)
        yield from _pieces("".join(old[at.equal_before : at.end_before]), "", "")


def _word_pieces(before: str, after: str) -> Iterator[Piece]:
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(old), len(new)) > _MOST_WORDS:
        yield from _pieces("", before, after)
        return
    gone = came = ""
    for at in stretches(align(old, new), len(old), len(new)):
        gone += "".join(old[at.before : at.equal_before])
        came += "".join(new[at.after : at.equal_after])
        both = "".join(old[at.equal_before : at.end_before])
        ends = at.end_before == len(old) and at.end_after == len(new)
        if gone and came and both.isspace() and not ends:
            # Words that are replaced one by one read better together.
            gone, came = gone + both, came + both
            continue
        yield from _pieces("", gone, came)
        yield from _pieces(both, "", "")
        gone = came = ""


def _pieces(both: str, gone: str, came: str) -> Iterator[Piece]:
    if both:
        yield Piece(" ", both)
    if gone:
        yield Piece("-", gone)
    if came:
        yield Piece("+", came)


# --- how it is shown -----------------------------------------------------------------------------------

_MOST_LINES, _MOST_TEXT_LINES = 200, 40
"""Of a channel, and of one text."""
_CONTEXT = 2
_EDGE = 24
"""How many characters of what two texts share are shown beside what they don't."""
_SIGNS: Final[Mapping[str, str]] = {
    "added": "+",
    "removed": "-",
    "changed": "~",
    "edited": "~",
    "moved": ">",
    "unresolved": "?",
}
_STYLES: Final[Mapping[str, str]] = {"+": GREEN, "-": RED, "~": YELLOW, ">": CYAN, "?": MAGENTA, "@": DIM}
_MARKS: Final[Mapping[str, tuple[str, str]]] = {" ": ("", ""), "-": ("[-", "-]"), "+": ("{+", "+}")}

Line: TypeAlias = list[Ink]

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 4


def shown(value: Any) -> str:
    """Return a value in a few words, on one line."""
    if isinstance(value, Unresolved):
        return str(value)
    if is_message(value):
        return f"{role_of(value)}: {_few_words(content_of(value))}{_calls(value)}"
    return _few_words(value)


def _few_words(value: Any) -> str:
    try:
        text = _short.repr(value)
    except Exception:
        text = safe_repr(value)
    return " ".join(text.split())


def _calls(message: Any) -> str:
    calls = message.get("tool_calls") if isinstance(message, dict) else getattr(message, "tool_calls", None)
    names = [call.get("name") for call in calls or () if isinstance(call, dict)]
    return f" calls {', '.join(map(str, names))}" if names else ""


def _stat_lines(channels: Sequence[ChannelDiff]) -> list[Line]:
    widest = max((len(printable(one.channel)) for one in channels), default=0)
    return [[Ink(f" {printable(one.channel):<{widest}} | "), *_stat(one)] for one in channels]


def _stat(one: ChannelDiff) -> Line:
    if one.kind != "changed":
        return [_ink(_SIGNS[one.kind], one.kind)]
    counts = Counter(_SIGNS[change.kind] for change in one.changes)
    return [_ink(sign, f"{sign}{counts[sign]} ") for sign in "+-~>" if counts[sign]]


def _total_line(diff: CheckpointDiff, hidden: int) -> Line:
    kinds = ("changed", "added", "removed", "unresolved", "unchanged")
    counts = [f"{len(names)} {kind}" for kind in kinds if (names := getattr(diff, kind))]
    if hidden:
        counts.append(f"{hidden} of routing not shown")
    return [Ink(f" {', '.join(counts) or 'no channels'}")]


def _channel_lines(one: ChannelDiff, colour: bool) -> Iterator[Line]:
    for change in one.changes:
        yield from _change_lines(change, "  ", colour)


def _change_lines(change: Change, indent: str, colour: bool) -> Iterator[Line]:
    sign = _SIGNS[change.kind]
    start = f"{indent}{sign} {_place(change)}"
    if change.kind in ("added", "removed"):
        value = change.after if change.kind == "added" else change.before
        if are_messages(value, []):
            for number, message in enumerate(value):
                yield [_ink(sign, f"{start}[{number}] {shown(message)}")]
        else:
            yield [_ink(sign, f"{start}{shown(value)}")]
    elif change.path and change.path[-1].kind == "message":
        yield [
            _ink(sign, f"{start}{shown(change.after) if change.kind == 'moved' else role_of(change.after)}")
        ]
        for part in change.parts:
            yield from _change_lines(part, f"{indent}    ", colour)
    elif change.text and _worth_showing(change):
        yield from _text_lines(change, start, f"{indent}    ", colour)
    else:
        yield [_ink(sign, start), Ink(f"{shown(change.before)} -> {shown(change.after)}")]
    if change.note:
        yield [Ink(f"{indent}    {change.note}", DIM)]


def _place(change: Change) -> str:
    """Return where it is, with a space behind it, or nothing for the whole value."""
    if not change.path:
        return ""
    last = change.path[-1]
    if last.kind != "message":
        return f"{path_text(change.path)} "
    came = f"{last.before} -> " if change.moved else ""
    name = "" if last.key is None else f"{last.key} "
    return f"{path_text(change.path[:-1])}[{came}{last.position}] {name}"


def _worth_showing(change: Change) -> bool:
    """Tell whether a text's difference says more than the two texts, which may have nothing in common."""
    shared = any(piece.kind == " " and not piece.text.isspace() for piece in change.text)
    return shared or "\n" in change.before or "\n" in change.after


def _text_lines(change: Change, start: str, indent: str, colour: bool) -> Iterator[Line]:
    """Yield words where both texts are of one line, else hunks of lines."""
    if "\n" in change.before or "\n" in change.after:
        hunks = _hunks(change.before, change.after)
        if hunks:
            yield [_ink("~", start)]
            yield from _first(([_ink(line[0], f"{indent}{line}")] for line in hunks), _MOST_TEXT_LINES)
            return
    yield [_ink("~", start), *(_marked(piece, colour) for piece in _shortened(change.text))]


def _hunks(before: str, after: str) -> list[str]:
    old, new = before.splitlines(), after.splitlines()
    return list(islice(difflib.unified_diff(old, new, n=_CONTEXT, lineterm=""), 2, None))


def _shortened(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for index, piece in enumerate(pieces):
        if piece.kind == " " and len(piece.text) > 2 * _EDGE:
            head = piece.text[:_EDGE] if index else ""
            tail = piece.text[-_EDGE:] if index < len(pieces) - 1 else ""
            piece = piece._replace(text=f"{head}…{tail}")
        yield piece


def _marked(piece: Piece, colour: bool) -> Ink:
    opening, closing = ("", "") if colour else _MARKS[piece.kind]
    return _ink(piece.kind, f"{opening}{piece.text}{closing}")


def _ink(sign: str, text: str) -> Ink:
    return Ink(text, _STYLES.get(sign, ""))


def _first(lines: Iterable[Line], most: int) -> Iterator[Line]:
    """Yield so many lines, and tell how many more there are."""
    rest = iter(lines)
    yield from islice(rest, most)
    more = sum(1 for _ in rest)
    if more:
        yield [Ink(f"  … {more:,} more line{'' if more == 1 else 's'}", DIM)]
