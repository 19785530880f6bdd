"""Rows as Postgres holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from xxhash import xxh3_64_intdigest

from langgraph_harness_saver.ids import id_key, id_of_key, pack_id
from langgraph_harness_saver.rows import (
    Base,
    Branch,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Graft,
    Kind,
    Leaving,
    Node,
    Page,
    Span,
    WriteRow,
)
from langgraph_harness_saver.stores.base import Unconditional
from langgraph_harness_saver.stores.packing import decode, encode, split_parts

_HEX = re.compile(r"\\x([0-9a-f]*)")
ROW, SUPPORT, WRITE, PART = range(4)
"""What an item is that the reading functions return."""
ROW_COLUMNS = 13
"""How many of `harness_put`'s columns are the row's own."""
WRITE_COLUMNS = 8
EVENT_COLUMNS = 5
LEAVING_COLUMNS = 8


def is_uuid(thread_id: str) -> bool:
    """Tell whether a thread is stored under its own id; version 8 is for hashes of the others."""
    return isinstance(pack_id(thread_id), bytes) and thread_id[14] != "8"


@lru_cache(4096)
def thread_key(thread_id: str) -> str:
    """Return the UUID that a thread is stored under: its id, or a hash of that (RFC 9562, version 8)."""
    if is_uuid(thread_id):
        return thread_id
    number = int.from_bytes(blake2b(encode(thread_id), digest_size=16, person=b"thread").digest(), "big")
    number = number & ~(0xF << 76 | 0x3 << 62) | 0x8 << 76 | 0x2 << 62
    h = f"{number:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _text_of(thread_id: str) -> bytes | None:
    """Return what it takes to know a thread's id again, beside its key."""
    return None if is_uuid(thread_id) else encode(thread_id)


def _thread_id(key: Any, text: bytes | None) -> str:
    return str(key) if text is None else decode(text)


def key_values(key: CheckpointKey) -> tuple[str, bytes, bytes]:
    """Return the columns that a checkpoint is found by: thread, checkpoint_ns, checkpoint_id."""
    return thread_key(key.thread_id), encode(key.checkpoint_ns), id_key(key.checkpoint_id)


def put_values(row: CheckpointRow, base: Base | None, head: str | Unconditional | None) -> tuple[Any, ...]:
    """Return what `harness_put` takes of one call."""
    key, parent_id, run_id = row.key, row.parent_id, row.run_id
    thread = thread_key(key.thread_id)
    since, reach = _pack_reach(row)
    stands: tuple[Any, ...] = (None, None, None, None)
    if base is not None:
        # Without a thread it is on the row's own line.
        line: tuple[str | None, bytes | None] = (None, None)
        if base.key[:2] != key[:2]:
            line = (thread_key(base.key.thread_id), encode(base.key.checkpoint_ns))
        stands = (*line, id_key(base.key.checkpoint_id), base.rev)
    return (
        thread,
        encode(key.checkpoint_ns),
        id_key(key.checkpoint_id),
        None if parent_id is None else id_key(parent_id),
        None if run_id is None else id_key(run_id),
        row.rev,
        since,
        reach,
        b"".join(row.parts) or None,
        _text_of(key.thread_id),
        # `search`, which only earlier releases fill, and look into.
        None,
        row.metadata,
        row.body,
        *stands,
        None if isinstance(head, Unconditional) else b"" if head is None else id_key(head),
    )


def row_values(row: CheckpointRow) -> tuple[Any, ...]:
    """Return a row's columns, in the order of the queries `add_checkpoints` and `set_checkpoints`."""
    thread, ns, id_, parent, run, rev, since, reach, parts, name, _, metadata, body = put_values(
        row, None, None
    )[:ROW_COLUMNS]
    return (
        rev,
        int(row.kind),
        thread,
        ns,
        id_,
        parent,
        run,
        since,
        reach,
        parts,
        name,
        metadata,
        body,
    )


def write_values(key: CheckpointKey, write: WriteRow) -> tuple[Any, ...]:
    """Return what `harness_put_writes` takes of one write."""
    body = write.body
    return (
        *key_values(key),
        id_key(write.task_id),
        write.call or _call(write.task_path, body),
        encode(write.task_path) or None,
        # Not null: a row without nulls is eight bytes shorter.
        b"".join(write.parts),
        body,
    )


def branch_values(branch: Branch) -> tuple[Any, ...]:
    """Return a record's columns, in the order of the table."""
    ids = (branch.thread_id, branch.family, branch.source)
    return (
        branch.created_at,
        *map(thread_key, ids),
        id_key(branch.checkpoint_id),
        encode(branch.name),
        *map(_text_of, ids),
    )


def branch_of(item: Mapping[str, Any]) -> Branch:
    """Return a row of the table of branches."""
    return Branch(
        _thread_id(item["thread"], item["thread_id"]),
        _thread_id(item["family"], item["family_id"]),
        _thread_id(item["source"], item["source_id"]),
        id_of_key(item["checkpoint_id"]),
        decode(item["name"]),
        item["created_at"],
    )


def graft_values(graft: Graft, heads: Sequence[tuple[tuple[str, str], str | None]]) -> list[Any]:
    """Return what `harness_graft` takes, beside the time."""
    rows = [put_values(row, None, None)[:ROW_COLUMNS] for row in graft.rows]
    bases = [(*key_values(base.key), base.rev) for base in graft.bases]
    lines = [
        (thread_key(thread_id), encode(ns), b"" if head is None else id_key(head))
        for (thread_id, ns), head in heads
    ]
    writes = [write_values(key, write) for key, some in graft.writes.items() for write in some]
    return [
        *columns(rows, ROW_COLUMNS),
        *columns(bases, 4),
        *columns(lines, 3),
        *columns(writes, WRITE_COLUMNS),
        *((None,) * 9 if graft.branch is None else branch_values(graft.branch)),
    ]


def event_values(event: EventRow) -> tuple[Any, ...]:
    """Return what `harness_add_events` takes of one event."""
    place = (thread_key(event.thread_id), id_key(event.checkpoint_id), event.event_id)
    return (*place, event.head, event.body)


def leaving_values(leaving: Leaving) -> tuple[Any, ...]:
    """Return what `harness_keep` takes of one that leaves."""
    own, rev, hidden_rev, parent, heir, heir_rev, heir_new_rev, stamp = leaving
    ids = (id_key(own), None if parent is None else id_key(parent), id_key(heir))
    return (ids[0], rev, hidden_rev, ids[1], ids[2], heir_rev, heir_new_rev, stamp)


def columns(values: Sequence[tuple[Any, ...]], width: int) -> list[Sequence[Any] | None]:
    """Turn rows into columns; None for an empty one, which spares the driver a look at each item."""
    if not values:
        return [()] * width
    nulls = (None,) * len(values)
    return [None if column == nulls else column for column in zip(*values, strict=True)]


def page_of(items: Sequence[Any]) -> Page:
    """Put together what the reading functions return."""
    rows: list[CheckpointRow] = []
    writes: dict[CheckpointKey, list[WriteRow]] = {}
    support: dict[CheckpointKey, bytes] = {}
    parts: dict[bytes, bytes] = {}
    for item in items:
        what = item["what"]
        if what == PART:
            parts[item["task"]] = item["body"]
            continue
        key = _key(item)
        if what == ROW:
            rows.append(_row(item, key))
            writes[key] = []
        elif what == SUPPORT:
            support[key] = item["body"]
        else:
            writes[key].append(write_of(item, item["number"], item["task"], item["note"]))
    return Page([Entry(row, tuple(writes[row.key])) for row in rows], support, parts)


def write_of(item: Mapping[str, Any], call: int, task_id: bytes, path: bytes | None) -> WriteRow:
    """Return a write that was stored."""
    return WriteRow(
        id_of_key(task_id), decode(path or b""), min(call, 0), item["body"], split_parts(item["parts"])
    )


def stored_row(item: Mapping[str, Any], thread_id: str) -> CheckpointRow:
    """Return a row of the table of checkpoints."""
    return _made(item, stored_key(item, thread_id), item["rev"], item["metadata"])


def node_of(item: Mapping[str, Any], thread_id: str) -> Node:
    """Return the node in a result of the `outline` query."""
    parent_id = item["parent_id"]
    return Node(
        stored_key(item, thread_id),
        None if parent_id is None else id_of_key(parent_id),
        item["rev"],
        Kind(item["kind"]),
        item["metadata"],
        item["size"],
    )


def stored_key(item: Mapping[str, Any], thread_id: str) -> CheckpointKey:
    """Return the key of a row of a table, whose thread is known."""
    return CheckpointKey(thread_id, decode(item["checkpoint_ns"]), id_of_key(item["checkpoint_id"]))


def _key(item: Mapping[str, Any]) -> CheckpointKey:
    return CheckpointKey(
        decode(item["thread_id"]), decode(item["checkpoint_ns"]), id_of_key(item["checkpoint_id"])
    )


def _row(item: Mapping[str, Any], key: CheckpointKey) -> CheckpointRow:
    return _made(item, key, item["number"], item["note"])


def bare_row(item: Mapping[str, Any], key: CheckpointKey) -> CheckpointRow:
    """Return a row without what tells what reading it takes."""
    parent_id, run_id = item["parent_id"], item["run_id"]
    return CheckpointRow(
        key,
        None if parent_id is None else id_of_key(parent_id),
        item["body"],
        item["metadata"],
        item["rev"],
        run_id=None if run_id is None else id_of_key(run_id),
        kind=Kind(item["kind"]),
    )


def _made(item: Mapping[str, Any], key: CheckpointKey, rev: int, metadata: bytes | None) -> CheckpointRow:
    parent_id, run_id = item["parent_id"], item["run_id"]
    return CheckpointRow(
        key,
        None if parent_id is None else id_of_key(parent_id),
        item["body"] or b"",
        metadata or b"",
        rev,
        _unpack_reach(key, item["since"], item["reach"]),
        split_parts(item["parts"]),
        None if run_id is None else id_of_key(run_id),
        Kind(item["kind"]),
    )


def _call(task_path: str, body: bytes) -> int:
    """Return what tells one call's regular writes from another's: 63 bits, and never 0."""
    return xxh3_64_intdigest(encode(task_path) + b"\x00" + body) >> 1 or 1


def _array(items: Sequence[bytes]) -> str | None:
    """Return a bytea[] as text, for which the driver needs to ask the server nothing."""
    return "{" + ",".join(f'"\\\\x{item.hex()}"' for item in items) + "}" if items else None


def _pack_reach(row: CheckpointRow) -> tuple[bytes | None, str | None]:
    """Return where the span on the row's own line begins, and all other spans."""
    since, others = None, []
    for span in row.reach:
        if span[:2] == row.key[:2] and span.last == row.key.checkpoint_id and since is None:
            since = id_key(span.first)
        else:
            thread = bytes.fromhex(thread_key(span.thread_id).replace("-", ""))
            ends = (id_key(span.first), id_key(span.last))
            others += [thread, encode(span.thread_id), encode(span.checkpoint_ns), *ends]
    return since, _array(others)


def _unpack_reach(key: CheckpointKey, since: bytes | None, others: str | None) -> tuple[Span, ...]:
    spans = []
    if since is not None:
        spans.append(Span(*key[:2], id_of_key(since), key.checkpoint_id))
    items = [bytes.fromhex(digits) for digits in _HEX.findall(others or "")]
    for at in range(0, len(items), 5):
        _, thread_id, ns, first, last = items[at : at + 5]
        spans.append(Span(decode(thread_id), decode(ns), id_of_key(first), id_of_key(last)))
    return tuple(spans)
