"""Rows as SQLite holds them, read and written on a connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import ormsgpack

from langgraph_harness_saver.errors import HeadMovedError
from langgraph_harness_saver.ids import id_key, id_of_key
from langgraph_harness_saver.rows import (
    Branch,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Kind,
    Leaving,
    Node,
    PartRow,
    Span,
    Tag,
    WriteRow,
)
from langgraph_harness_saver.stores.packing import decode, encode, split_parts
from langgraph_harness_saver.stores.parts import SizedParts
from langgraph_harness_saver.stores.sqlite_file import SQL

STUB = 3
"""The kind of a row that only writes have named so far."""
WRITE_BITS = 20
"""A write's number is its checkpoint's, shifted by so much, and a running one: no index is needed."""

ROWS_AT_ONCE = 500
"""How many rows one statement asks for: SQLite takes 999 values at least."""

Place = tuple[int, int, int]
"""Number, kind and rev of a checkpoint row."""


class Parts(SizedParts):
    """The parts of a thread, read when asked for."""

    def __init__(self, connection: sqlite3.Connection, thread: int | None) -> None:
        self._connection = connection
        self._thread = thread

    @cached_property
    def _ids(self) -> set[bytes]:
        return {part_id for (part_id,) in self._connection.execute(SQL["part_ids"], (self._thread,))}

    def __getitem__(self, part_id: bytes) -> bytes:
        found = self._connection.execute(SQL["part"], (self._thread, part_id)).fetchone()
        if found is None:
            raise KeyError(part_id)
        return bytes(found[0])

    def size(self, part_id: bytes) -> int:
        found = self._connection.execute(SQL["part_size"], (self._thread, part_id)).fetchone()
        return int(found[0])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def check_head(
    connection: sqlite3.Connection, thread: int | None, key: CheckpointKey, expected: str | None
) -> None:
    """Raise `HeadMovedError` unless the latest live checkpoint has the expected id."""
    found = connection.execute(SQL["head"], (thread, encode(key.checkpoint_ns))).fetchone()
    actual = None if found is None else id_of_key(found[1])
    if actual != expected:
        raise HeadMovedError(expected, actual)


def find(connection: sqlite3.Connection, thread: int | None, key: CheckpointKey) -> Place | None:
    """Return number, kind and rev of what stands under a key."""
    values = (thread, encode(key.checkpoint_ns), id_key(key.checkpoint_id))
    return connection.execute(SQL["place"], values).fetchone()  # type: ignore[no-any-return]


def place_or_stub(connection: sqlite3.Connection, thread: int, key: CheckpointKey) -> int:
    """Return the number under a key, which is reserved if there is none."""
    place = find(connection, thread, key)
    if place is not None:
        return place[0]
    values = (thread, encode(key.checkpoint_ns), id_key(key.checkpoint_id))
    return connection.execute(SQL["add_stub"], values).lastrowid or 0


def set_row(connection: sqlite3.Connection, thread: int, row: CheckpointRow, place: Place | None) -> None:
    """Insert or replace a row."""
    values = (
        int(row.kind),
        None if row.parent_id is None else id_key(row.parent_id),
        None if row.run_id is None else id_key(row.run_id),
        row.rev,
        _pack_reach(row),
        b"".join(row.parts) or None,
        row.metadata,
        row.body,
    )
    if place is None:
        key = (thread, encode(row.key.checkpoint_ns), id_key(row.key.checkpoint_id))
        connection.execute(SQL["add_checkpoint"], (*key, *values))
    elif place[1:] != (row.kind, row.rev):
        connection.execute(SQL["set_checkpoint"], (*values, place[0]))


def add_writes(connection: sqlite3.Connection, number: int, writes: Sequence[WriteRow]) -> None:
    """Add writes to a checkpoint; see `WriteRow`."""
    first, last = number << WRITE_BITS, (number + 1 << WRITE_BITS) - 1
    for write in writes:
        task_id, path = id_key(write.task_id), encode(write.task_path) or None
        if write.call:
            connection.execute(SQL["replace_write"], (number, task_id, write.call))
        parts = b"".join(write.parts) or None
        values = (first, last, task_id, path, write.call, write.body, parts)
        connection.execute(SQL["add_write"], values)


def put_write(
    connection: sqlite3.Connection, key: CheckpointKey, writes: Sequence[WriteRow], now: float
) -> bool:
    """Add the regular writes of one call in one statement; False if it takes more, or they are there."""
    if len(writes) != 1 or writes[0].call or writes[0].parts:
        return False
    thread_id, checkpoint_ns, checkpoint_id = key
    write = writes[0]
    at = (encode(thread_id), encode(checkpoint_ns), id_key(checkpoint_id))
    values = (id_key(write.task_id), encode(write.task_path) or None, write.body, now)
    return connection.execute(SQL["put_write"], (*at, *values)).rowcount == 1


def drop_writes(connection: sqlite3.Connection, number: int) -> None:
    """Delete all writes of a checkpoint."""
    places = (number << WRITE_BITS, (number + 1 << WRITE_BITS) - 1)
    connection.execute(SQL["drop_writes"], places)


def set_writes(
    connection: sqlite3.Connection, thread: int, key: CheckpointKey, writes: Sequence[WriteRow]
) -> None:
    """Replace all writes of a checkpoint."""
    if writes:
        number = place_or_stub(connection, thread, key)
        drop_writes(connection, number)
        add_writes(connection, number, writes)
        return
    place = find(connection, thread, key)
    if place is not None:
        drop_writes(connection, place[0])
        if place[1] == STUB:
            connection.execute(SQL["drop_checkpoint"], place[:1])


def add_parts(connection: sqlite3.Connection, thread: int, parts: Sequence[PartRow]) -> None:
    """Add parts that are not there yet."""
    if parts:
        connection.executemany(SQL["add_part"], [(thread, part.part_id, part.data) for part in parts])


def has_parts(connection: sqlite3.Connection, thread: int | None, wanted: Sequence[bytes]) -> bool:
    """Tell whether a thread's family has all of these parts."""
    return all(connection.execute(SQL["has_part"], (thread, part)).fetchone() for part in wanted)


def key_of(found: Sequence[Any]) -> CheckpointKey:
    """Return the key in a result of the `checkpoint` query."""
    return CheckpointKey(decode(found[0]), decode(found[1]), id_of_key(found[2]))


def row_of(found: Sequence[Any]) -> tuple[CheckpointRow, int]:
    """Return the row in a result of the `checkpoint` query, and its thread's number."""
    kind, parent_id, run_id, rev, reach, parts, metadata, body = found[3:11]
    key = key_of(found)
    row = CheckpointRow(
        key,
        None if parent_id is None else id_of_key(parent_id),
        body,
        metadata,
        rev,
        _unpack_reach(reach, key),
        split_parts(parts),
        None if run_id is None else id_of_key(run_id),
        Kind(kind),
    )
    return row, found[12]


def nodes_of(
    connection: sqlite3.Connection, thread_id: str, thread: int | None, last: bytes | None
) -> list[Node]:
    """Return a thread's checkpoints and anchors without their bodies; `last`: see `Store.outline`."""
    name, values = ("nodes", (thread,)) if last is None else ("nodes_until", (thread, last))
    return [
        Node(
            CheckpointKey(thread_id, decode(ns) if ns else "", id_of_key(id_)),
            None if parent_id is None else id_of_key(parent_id),
            rev,
            Kind(kind),
            metadata,
            size,
        )
        for ns, id_, parent_id, rev, kind, metadata, size in connection.execute(SQL[name], values)
    ]


def tags_of(connection: sqlite3.Connection, thread_id: str, thread: int | None) -> list[Tag]:
    """Return a thread's tags, by name."""
    return [
        Tag(decode(name), CheckpointKey(thread_id, decode(ns), id_of_key(id_)))
        for name, ns, id_ in connection.execute(SQL["tags"], (thread,))
    ]


def line_of(connection: sqlite3.Connection, thread: int, size: int | None) -> list[str]:
    """Return the ids of a thread's live root checkpoints, newest first; `size`: see `Store.lines`."""
    found = connection.execute(SQL["line"], (thread, -1 if size is None else size))
    return [id_of_key(id_) for (id_,) in found]


def entries_of(
    connection: sqlite3.Connection, line: tuple[str, str], thread: int | None, ids: Sequence[str]
) -> Iterator[Entry]:
    """Yield those of a line's rows that are there, with their writes; see `Store.rows`."""
    for start in range(0, len(ids), ROWS_AT_ONCE):
        some = [id_key(one) for one in ids[start : start + ROWS_AT_ONCE]]
        marks, place = ", ".join("?" * len(some)), (thread, encode(line[1]), *some)
        writes: dict[int, list[WriteRow]] = {}
        for number, *write in connection.execute(SQL["writes_of_rows"].replace("{ids}", marks), place):
            writes.setdefault(number, []).append(_write_of(*write))
        for number, id_, parent_id, run_id, rev, kind, metadata, body in connection.execute(
            SQL["rows"].replace("{ids}", marks), place
        ):
            row = CheckpointRow(
                CheckpointKey(*line, id_of_key(id_)),
                None if parent_id is None else id_of_key(parent_id),
                body,
                metadata,
                rev,
                run_id=None if run_id is None else id_of_key(run_id),
                kind=Kind(kind),
            )
            yield Entry(row, tuple(writes.get(number, ())))


def writes_of(connection: sqlite3.Connection, number: int) -> tuple[WriteRow, ...]:
    """Return the writes of a checkpoint in order of arrival."""
    places = (number << WRITE_BITS, (number + 1 << WRITE_BITS) - 1)
    return tuple(_write_of(*write) for write in connection.execute(SQL["writes"], places))


def _write_of(task_id: bytes, path: bytes | None, call: int, body: bytes, parts: bytes | None) -> WriteRow:
    return WriteRow(id_of_key(task_id), decode(path or b""), call, body, split_parts(parts))


def stamp_of(connection: sqlite3.Connection, number: int) -> str:
    """Return what changes whenever the writes of a checkpoint do."""
    places = (number << WRITE_BITS, (number + 1 << WRITE_BITS) - 1)
    return " ".join(map(str, connection.execute(SQL["writes_stamp"], places).fetchone()))


def leave(connection: sqlite3.Connection, thread: int, leaving: Leaving) -> bool:
    """Take a root checkpoint out of sight, if it may go; see `Leaving`."""
    own, heir = id_key(leaving.checkpoint_id), id_key(leaving.heir_id)
    parent = None if leaving.parent_id is None else id_key(leaving.parent_id)
    place = connection.execute(SQL["place"], (thread, b"", own)).fetchone()
    heir_place = connection.execute(SQL["place"], (thread, b"", heir)).fetchone()
    if (
        place is None
        or heir_place is None
        or (*place[1:], *heir_place[1:]) != (Kind.LIVE, leaving.rev, Kind.LIVE, leaving.heir_rev)
        or stamp_of(connection, place[0]) != leaving.stamp
        or connection.execute(SQL["is_held"], (thread, own)).fetchone()[0]
    ):
        return False
    _, older, children = connection.execute(SQL["line_facts"], (own, thread)).fetchone()
    if children > 1 or (parent is None and older):
        return False
    connection.execute(SQL["hide_checkpoint"], (leaving.hidden_rev, place[0]))
    connection.execute(SQL["give_parent"], (parent, leaving.heir_new_rev, heir_place[0]))
    return True


def add_events(connection: sqlite3.Connection, thread: int, events: Sequence[EventRow]) -> None:
    """Add events that are not there yet."""
    connection.executemany(
        SQL["add_event"],
        [(thread, id_key(event.checkpoint_id), event.event_id, event.head, event.body) for event in events],
    )


def events_of(
    connection: sqlite3.Connection,
    thread: int | None,
    checkpoint_ids: Collection[str] | None,
    after: EventRow | None,
    size: int,
    *,
    bare: bool,
) -> list[tuple[str, bytes, bytes, bytes]]:
    """Return the next events of a thread, of some of its checkpoints or all: id, event_id, head, body."""
    first = id_key(after.checkpoint_id) if after else b""
    last_seen = after.event_id if after else b""
    values: dict[str, Any] = {"thread": thread, "bare": bare, "after_id": first, "after_event": last_seen}
    if checkpoint_ids is None:
        found = connection.execute(SQL["events"], {**values, "limit": size}).fetchall()
    else:
        found = []
        for key in sorted(key for key in map(id_key, set(checkpoint_ids)) if key >= first):
            if len(found) == size:
                break
            values.update(id=key, after_event=last_seen if key == first else b"", limit=size - len(found))
            found += connection.execute(SQL["events_of"], values)
    return [(id_of_key(checkpoint_id), *rest) for checkpoint_id, *rest in found]


def _pack_reach(row: CheckpointRow) -> bytes | None:
    """Pack each span as [first, last, thread, namespace], without what is the row's own."""
    if not row.reach:
        return None
    packed = []
    for span in row.reach:
        item = [id_key(span.first)]
        if span.last != row.key.checkpoint_id or span[:2] != row.key[:2]:
            item.append(id_key(span.last))
        if span[:2] != row.key[:2]:
            item += [encode(span.thread_id), encode(span.checkpoint_ns)]
        packed.append(item)
    return ormsgpack.packb(packed)


def _unpack_reach(packed: bytes | None, key: CheckpointKey) -> tuple[Span, ...]:
    if packed is None:
        return ()
    spans = []
    for first, *rest in ormsgpack.unpackb(packed):
        last = id_of_key(rest[0]) if rest else key.checkpoint_id
        line = (decode(rest[1]), decode(rest[2])) if len(rest) > 1 else key[:2]
        spans.append(Span(*line, id_of_key(first), last))
    return tuple(spans)


def add_branch(connection: sqlite3.Connection, branch: Branch) -> None:
    """Add the record of a branch, or replace it."""
    ids = (
        encode(branch.thread_id),
        encode(branch.family),
        encode(branch.source),
        id_key(branch.checkpoint_id),
    )
    connection.execute(SQL["set_branch"], (*ids, encode(branch.name), branch.created_at))


def branches_of(connection: sqlite3.Connection, thread_id: str) -> list[Branch]:
    """Return the records of a thread's family, oldest first."""
    return [
        Branch(decode(thread), decode(family), decode(source), id_of_key(id_), decode(name), created_at)
        for thread, family, source, id_, name, created_at in connection.execute(
            SQL["branches"], (encode(thread_id),)
        )
    ]
