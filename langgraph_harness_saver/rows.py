"""The rows that cross the border between the core and a `Store`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple


class CheckpointKey(NamedTuple):
    """Names one checkpoint: any strings, ordered by the bytes of their UTF-8."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str

    def __str__(self) -> str:
        where = f", namespace {self.checkpoint_ns!r}" if self.checkpoint_ns else ""
        return f"thread {self.thread_id!r}{where}, checkpoint {self.checkpoint_id!r}"


class Span(NamedTuple):
    """All checkpoints of one thread and namespace from id `first` to id `last`, both included."""

    thread_id: str
    checkpoint_ns: str
    first: str
    last: str


def merge_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same checkpoints in spans that don't overlap."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and merged[-1][:2] == span[:2] and span.first <= merged[-1].last:
            merged[-1] = merged[-1]._replace(last=max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


class Kind(IntEnum):
    """What a checkpoint row is to a reader."""

    LIVE = 0
    """A checkpoint as `put` stored it."""
    HIDDEN = 1
    """A deleted checkpoint that keeps bytes which others still need; never read as a checkpoint.

    One that was let go lately is as it was, with its writes, for a run that still stands on it: it is told by
    its metadata, which others don't have.
    """
    ANCHOR = 2
    """Stands for deleted ancestors: readable by id, never listed, never the latest."""


class CheckpointRow(NamedTuple):
    """One checkpoint.

    `rev` identifies the contents (a digest of body, metadata and parent), `reach` covers every other
    row that is needed to read this one, `parts` names every part that is.
    """

    key: CheckpointKey
    parent_id: str | None
    body: bytes
    metadata: bytes
    rev: int
    reach: tuple[Span, ...] = ()
    parts: tuple[bytes, ...] = ()
    run_id: str | None = None
    kind: Kind = Kind.LIVE


class PartRow(NamedTuple):
    """A large value, stored apart from the row that names it; ids are unique within a family."""

    part_id: bytes
    data: bytes


class WriteRow(NamedTuple):
    """What one `put_writes` call stored for one task: its regular writes, or one special write.

    `call` is the special write's negative index (`WRITES_IDX_MAP`), or 0 for regular writes. A special
    row replaces the one with the same task and call; regular rows are kept in order of arrival, and one
    that has just been stored, byte for byte, is not stored again.
    """

    task_id: str
    task_path: str
    call: int
    body: bytes
    parts: tuple[bytes, ...] = ()


def leans_on(writes: Iterable[WriteRow], parts: Sequence[PartRow]) -> list[bytes]:
    """Return the parts, in order, that writes name and that don't come with them."""
    named: set[bytes] = set()
    for write in writes:
        if write.parts:
            named.update(write.parts)
    return sorted(named.difference(part.part_id for part in parts)) if named else []


class EventRow(NamedTuple):
    """Something that happened inside a step, at the root checkpoint that this ran from.

    `event_id`, 16 bytes, tells it from the others of its checkpoint and orders them. `head` is what is shown
    in a list, `body` what is read by who looks at one.
    """

    thread_id: str
    checkpoint_id: str
    event_id: bytes
    head: bytes
    body: bytes


class Noted(NamedTuple):
    """An event on its way to a store: `facts` are plain data, `dumped` what a codec made of its values."""

    thread_id: str
    checkpoint_id: str
    event_id: bytes
    facts: Sequence[Any]
    dumped: tuple[str, bytes]


class Base(NamedTuple):
    """A row that must still be there, with these contents, for a put to be valid."""

    key: CheckpointKey
    rev: int


class Entry(NamedTuple):
    """A checkpoint and its pending writes, in order of arrival within each task and call."""

    row: CheckpointRow
    writes: Sequence[WriteRow]


@dataclass(frozen=True, slots=True)
class Page:
    """Some checkpoints with what is needed to read them: other rows' bodies, and parts."""

    entries: Sequence[Entry] = ()
    support: Mapping[CheckpointKey, bytes] = field(default_factory=dict)
    parts: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Writes:
    """The writes of some checkpoints, in order of arrival within each task and call, and parts they name."""

    rows: Mapping[CheckpointKey, Sequence[WriteRow]]
    parts: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """Selects live checkpoints, newest id first; None means any.

    `before` is exclusive. `after` is the last key of the page before (ties of id are ordered by thread
    and namespace, ascending). `matches` decides on a row's metadata bytes; `filter` is the same as data,
    for stores that can search by it.
    """

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    after: CheckpointKey | None = None
    matches: Callable[[bytes], bool] | None = None
    filter: Mapping[str, Any] | None = None


class Branch(NamedTuple):
    """Says that a thread began as a checkpoint of another one, `source`, of the same family.

    `family` is the thread that all of the family's branches come from, `created_at` in seconds since the
    epoch. Names are unique among the branches of one source.
    """

    thread_id: str
    family: str
    source: str
    checkpoint_id: str
    name: str
    created_at: float


def branches_below(records: Iterable[Branch], thread_id: str) -> list[Branch]:
    """Return the records of a thread's branches and of theirs, in the order in which they are given."""
    records = list(records)
    below, found = {thread_id}, 0
    while found < len(below):
        found = len(below)
        below.update(record.thread_id for record in records if record.source in below)
    return [record for record in records if record.source in below]


class Tag(NamedTuple):
    """A name for a checkpoint, unique within its thread."""

    name: str
    key: CheckpointKey


class Node(NamedTuple):
    """One checkpoint or anchor of a family without its body; `size` is in bytes, of body and metadata."""

    key: CheckpointKey
    parent_id: str | None
    rev: int
    kind: Kind
    metadata: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Outline:
    """Which checkpoints and anchors a family has, which of them have tags, and its branches' records.

    `last`: of a thread's newest root checkpoints, the last one that had been asked for; see `Store.outline`.
    """

    nodes: Sequence[Node] = ()
    tagged: frozenset[CheckpointKey] = frozenset()
    branches: Mapping[str, Branch] = field(default_factory=dict)
    last: str | None = None


class Needed(NamedTuple):
    """Which rows of a family a revision is about; if `readable`, what reading them takes is loaded too."""

    keys: Collection[CheckpointKey]
    readable: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """All that is stored of one family: a thread and all its branches, those that are deleted among them.

    `parts` may load on access.
    """

    rows: Mapping[CheckpointKey, CheckpointRow]
    writes: Mapping[CheckpointKey, Sequence[WriteRow]]
    parts: Mapping[bytes, bytes]
    branches: Mapping[str, Branch] = field(default_factory=dict)

    def written(self, key: CheckpointKey, reader: str) -> Sequence[WriteRow]:
        """Return what a thread reads as the writes of a checkpoint, which it or one that it came from holds.

        Those come first that were written where the checkpoint is.
        """
        keys = [key._replace(thread_id=reader)]
        while keys[-1] != key and (branch := self.branches.get(keys[-1].thread_id)) is not None:
            keys.append(key._replace(thread_id=branch.source))
        return [write for one in reversed(keys) for write in self.writes.get(one, ())]

    def find(
        self, key: CheckpointKey, rows: Mapping[CheckpointKey, CheckpointRow], *, retired: bool = False
    ) -> CheckpointKey | None:
        """Return under which key stands in `rows` what is read under this one, or with `retired` was."""
        while (row := rows.get(key)) is None or not (row.kind != Kind.HIDDEN or (retired and row.metadata)):
            branch = self.branches.get(key.thread_id)
            if branch is None or branch.source == key.thread_id:
                return None
            key = key._replace(thread_id=branch.source)
        return key


@dataclass(frozen=True, slots=True)
class Graft:
    """Live checkpoints that are added together, all or none, on one family's threads.

    `bases` must be there unchanged. `heads` says by thread and namespace which live checkpoint must be the
    latest, None: there must be none. With `branch`, its thread must not be there, and no other branch of its
    source have that name.
    """

    rows: Sequence[CheckpointRow]
    bases: Sequence[Base]
    heads: Mapping[tuple[str, str], str | None] = field(default_factory=dict)
    writes: Mapping[CheckpointKey, Sequence[WriteRow]] = field(default_factory=dict)
    parts: Sequence[PartRow] = ()
    branch: Branch | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision does to a family, all of it or nothing.

    `deletes` removes rows together with their writes. `rows` are inserted or replaced. `writes` replaces
    all writes of the keys in it. Parts are added, then dropped. With `renews` it is a sign of life, like a
    put. `drops` names threads that end: with their expiry, their events, and writes whose checkpoints have
    never come. `branches` says of threads whose branches they are now, None: nobody's. Tags go with what they
    name, events as `Store.add_events` says. An empty change does nothing.
    """

    rows: Sequence[CheckpointRow] = ()
    deletes: Sequence[CheckpointKey] = ()
    writes: Mapping[CheckpointKey, Sequence[WriteRow]] = field(default_factory=dict)
    parts: Sequence[PartRow] = ()
    drop_parts: frozenset[bytes] = frozenset()
    renews: bool = False
    drops: frozenset[str] = frozenset()
    branches: Mapping[str, Branch | None] = field(default_factory=dict)
    events: Sequence[EventRow] = ()

    def hides(self) -> set[CheckpointKey]:
        """Return the checkpoints that are not live afterwards, whether they were or not."""
        return {*self.deletes, *(row.key for row in self.rows if row.kind != Kind.LIVE)}


class Standing(NamedTuple):
    """A live root checkpoint, its writes in order of arrival, and a stamp by which its store knows these."""

    row: CheckpointRow
    writes: Sequence[WriteRow]
    stamp: str


class Leaving(NamedTuple):
    """A root checkpoint that is to go out of sight, told from what was read of it earlier.

    It becomes hidden, with the rev `hidden_rev`, and is else as it was; `heir_id`, its only child, gets its
    parent, `parent_id`, and with that the rev `heir_new_rev`. It may go if it and its heir have the revs
    `rev` and `heir_rev`, nothing was written to it since (`stamp`), it has no tag, the family is this thread
    alone, and that has no other namespaces. One without a parent has to be the thread's first.
    """

    checkpoint_id: str
    rev: int
    hidden_rev: int
    parent_id: str | None
    heir_id: str
    heir_rev: int
    heir_new_rev: int
    stamp: str


class Keep(NamedTuple):
    """What is to go with a put: these in turn, with `most` only while more live root checkpoints are left."""

    most: int | None = None
    leaving: Sequence[Leaving] = ()


class PutResult(IntEnum):
    """What became of a put."""

    STORED = 0
    """It is stored, or was stored before."""
    BASE_GONE = 1
    """The base is not there with those contents any more; nothing was stored."""
    OCCUPIED = 2
    """Another checkpoint, or bytes that others need, stands under this key; nothing was stored."""
    KEPT = 6
    """It is stored, all that was to go has gone, and no more live root checkpoints are left than may be."""
