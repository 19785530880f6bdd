"""Large writes as differences: of a value that a node returns whole, what is new is stored.

A write may be stored as a *log*: a base, which is a part that holds an earlier write whole, and differences
from it, applied in turn. The latest stand in the write's own row; what doesn't fit there any more goes into
parts of its own. So a row is read from its own bytes and the parts that it names, whatever becomes of others.

A new part takes along those before it that are less than twice as long. So each is at least twice as long as
the next, a row names few, and a difference is stored again only as often as the log doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph_harness_saver import difference as diff
from langgraph_harness_saver.difference import LINK_BYTES
from langgraph_harness_saver.envelope import pack, unpack
from langgraph_harness_saver.rows import PartRow
from langgraph_harness_saver.slots import digest, unique

INLINE_BYTES = 512
"""So many bytes of differences stand in the row itself: more would be stored again with each write."""
CURSORS = 4
"""How many values that were rebuilt are kept to rebuild others from."""

Entry = Sequence[Any]
"""A `Difference` as it is packed."""


class Piece:
    """A part that a log names: its base, or as many differences as it has `links`, `packed` in turn.

    `row` is what to bring along until it is known to be stored.
    """

    __slots__ = ("links", "packed", "part_id", "row")

    def __init__(self, row: PartRow, packed: bytes = b"", links: int = 0) -> None:
        self.part_id = row.part_id
        self.row: PartRow | None = row
        self.packed = packed
        self.links = links


class Log(NamedTuple):
    """What a channel was given last, and how that is stored.

    `packed` are the `links` differences that stand in the row itself, `weight` is what all of them cost.
    """

    type: str
    data: bytes
    base: Piece
    pieces: tuple[Piece, ...] = ()
    packed: bytes = b""
    links: int = 0
    weight: int = 0

    @property
    def named(self) -> tuple[Piece, ...]:
        """Return the parts that it takes to read it."""
        return (self.base, *self.pieces)

    @property
    def size(self) -> int:
        """Return about how many bytes of memory it holds."""
        rows = (piece.row for piece in self.named)
        brought = sum(len(row.data) for row in rows if row is not None)
        differences = sum(256 + len(piece.packed) for piece in self.named)
        return 1024 + len(self.data) + len(self.packed) + differences + brought

    def item(self, index: int, channel: str) -> list[Any]:
        """Return a write as it is packed."""
        if not self.weight:
            return [index, channel, self.type, None, self.base.part_id]
        names = [piece.part_id for piece in self.named]
        return [index, channel, self.type, None, digest(self.data), _array(self.packed, self.links), names]

    def then(
        self, type_: str, data: bytes, *, container: bool, chains: int, part: Callable[[bytes], PartRow]
    ) -> Log | None:
        """Return what is to be remembered with another value, None where that is better stored whole.

        `container`: both are msgpack, see `difference`. Differences may outweigh the value `chains` times.
        """
        if type_ != self.type:
            return None
        if data == self.data:
            return self
        change = diff.difference(self.data, data, container)
        cost = len(change.lead) + len(change.middle) + LINK_BYTES
        weight = self.weight + cost
        if cost >= len(data) or weight >= chains * len(data):
            return None
        packed, links, pieces = self.packed + pack(list(change)), self.links + 1, self.pieces
        if len(packed) > INLINE_BYTES:
            while pieces and len(pieces[-1].packed) < 2 * len(packed):
                *kept, last = pieces
                packed, links, pieces = last.packed + packed, last.links + links, tuple(kept)
            pieces = (*pieces, Piece(part(_array(packed, links)), packed, links))
            packed, links = b"", 0
        return Log(type_, data, self.base, pieces, packed, links, weight)


class WrittenParts:
    """The parts that some writes name, of which each is opened once where they share it."""

    def __init__(self, parts: Mapping[bytes, bytes], open_: Callable[[bytes], bytes]) -> None:
        self._parts = parts
        self._open = open_
        self._entries: dict[bytes, list[Entry]] = {}
        self._cursors: dict[bytes, _Cursor] = {}

    def data(self, item: Sequence[Any]) -> bytes:
        """Return the bytes of a write, as `Codec.merge_writes` gives it.

        Raises:
            ValueError, TypeError, KeyError, IndexError: They are damaged, or a part isn't there.
        """
        data, *rest = item[4:]
        if not rest:
            return data  # type: ignore[no-any-return]
        if len(rest) == 1:
            return self._open(self._parts[rest[0]])
        value_digest, packed, (base_id, *pieces) = rest
        entries = [entry for piece in pieces for entry in self._piece(piece)] + unpack(packed)
        # It is missing from here if what follows fails half-way.
        cursor = self._cursors.pop(base_id, None) or _Cursor(self._open(self._parts[base_id]))
        value = cursor.go_to(entries)
        if digest(value) != value_digest:
            raise ValueError("a write does not decode to what was stored")
        if len(self._cursors) >= CURSORS:
            del self._cursors[next(iter(self._cursors))]
        self._cursors[base_id] = cursor
        return value

    def _piece(self, part_id: bytes) -> list[Entry]:
        if part_id not in self._entries:
            self._entries[part_id] = unpack(self._open(self._parts[part_id]))
        return self._entries[part_id]


class _Cursor:
    """A value that is rebuilt, and how to go back: a listing goes from the newest to the oldest."""

    def __init__(self, base: bytes) -> None:
        self._value = bytearray(base)
        self._entries: list[Entry] = []
        self._back: list[diff.Difference] = []

    def go_to(self, entries: list[Entry]) -> bytes:
        """Return the value after these differences from the base."""
        for _ in range(len(self._entries) - _in_common(self._entries, entries)):
            self._entries.pop()
            diff.apply(self._value, self._back.pop())
        for entry in entries[len(self._entries) :]:
            change = diff.Difference(*entry)
            if not diff.fits(len(self._value), change):
                raise ValueError("a write is not a difference from its base")
            self._back.append(diff.inverse(self._value, change))
            diff.apply(self._value, change)
            self._entries.append(entry)
        return bytes(self._value)


def history_parts(items: Iterable[Sequence[Any]]) -> tuple[bytes, ...]:
    """Return the parts that writes name: they stand last, after an absent value."""
    named: list[bytes] = []
    for item in items:
        last = item[-1]
        if isinstance(last, list):
            named += last
        elif item[-2] is None and isinstance(last, bytes):
            named.append(last)
    return unique(named) if named else ()


def is_logged(item: Sequence[Any]) -> bool:
    """Tell whether a write is stored as a log."""
    return isinstance(item[-1], list)


def _array(packed: bytes, links: int) -> bytes:
    """Return packed differences as msgpack's array of so many."""
    return b"\xdd%s%s" % (links.to_bytes(4, "big"), packed)


def _in_common(some: list[Entry], others: list[Entry]) -> int:
    shorter = min(len(some), len(others))
    if some[:shorter] == others[:shorter]:
        return shorter
    return next(n for n in range(shorter) if some[n] != others[n])
