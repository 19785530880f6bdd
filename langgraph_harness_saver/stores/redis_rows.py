"""Rows as Redis holds them: members of sorted sets that are ordered by their bytes, and the names of keys.

Every form here ends itself, so that forms can be put one after the other, and sorts as what it stands for:

    text    its UTF-8, where 01 01 stands for NUL and 01 02 for 01, and 00 at the end
    id      17 bytes and 00 for a UUID; see `ids.id_key` for the others
    thread  00 for the thread that the family is named after, else 01 and an id
    line    thread, text of the namespace
    place   line, id of the checkpoint
"""

from __future__ import annotations

import re
import struct
from binascii import crc_hqx
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b, sha1
from typing import Any, NamedTuple

from langgraph_harness_saver.errors import CorruptCheckpointError
from langgraph_harness_saver.ids import id_key, id_of_key
from langgraph_harness_saver.rows import (
    Branch,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Keep,
    Kind,
    Node,
    Page,
    Span,
    Standing,
    Tag,
    WriteRow,
)
from langgraph_harness_saver.stores.packing import decode, encode, split_parts

SHARDS = 16
"""Over how many slots the indexes are spread; part of the format."""
SLOTS = 1 << 14
"""How many slots a cluster has."""
KIND, PARENT, RUN, CUT = 0x03, 0x04, 0x08, 0x10
"""What a row's flags tell: its kind, what follows, and whether all that follows the run is left out."""
OWN_SPAN, LINE_SPAN, ANY_SPAN = b"\x00", b"\x01", b"\x02"
"""A span on the row's own line up to the row itself; any on its own line; any."""
REGULAR = b"\x00"
_PLAIN = re.compile(r"[A-Za-z0-9_.@-]{1,64}\Z")
_INVERTED = bytes(range(255, -1, -1))
_COUNT = struct.Struct(">H")
_LENGTH = struct.Struct(">I")
_REV = struct.Struct(">Q")
_SEQ = struct.Struct(">I")
_TIME = struct.Struct(">d")


def text_form(text: str) -> bytes:
    """Return a text's form; see the module."""
    return _ended(encode(text))


def _ended(data: bytes) -> bytes:
    if b"\x01" in data or b"\x00" in data:
        data = data.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
    return data + b"\x00"


def _plain(data: bytes) -> bytes:
    """Undo `_ended`, the end being cut off already."""
    return data.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01") if b"\x01" in data else data


@lru_cache(4096)
def id_form(text: str) -> bytes:
    """Return an id's form; see the module."""
    key = id_key(text)
    if key[0] == 1:
        return key + b"\x00" if len(key) == 17 else key[:18] + _ended(key[18:])
    return key[:1] + _ended(key[1:])


def _id_end(data: bytes, at: int) -> int:
    """Return where what follows an id begins."""
    if data[at] == 1:
        return at + 18 if data[at + 17] == 0 else data.index(0, at + 18) + 1
    return data.index(0, at + 1) + 1


def _read_id(data: bytes, at: int) -> tuple[str, int]:
    """Return an id, and where what follows it begins."""
    end = _id_end(data, at)
    if data[at] == 1:
        key = data[at : at + 17] if end == at + 18 else data[at : at + 18] + _plain(data[at + 18 : end - 1])
    else:
        key = data[at : at + 1] + _plain(data[at + 1 : end - 1])
    return id_of_key(key), end


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return decode(_plain(data[at:end])), end + 1


def past(prefix: bytes) -> bytes:
    """Return what sorts right after everything that begins so."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Spot(NamedTuple):
    """The keys that a script works on, all in one slot; `packed` is how they are sent."""

    keys: tuple[bytes, ...]
    packed: bytes
    slot: int


class Home(NamedTuple):
    """Where a thread's family lives."""

    family: str
    spot: Spot
    """META, LIVE, REST, SPACES, WRITES, PARTS and EVENTS, as `common.lua` explains them."""
    shard: int
    """Which of the indexes names the thread."""


def _spot(prefix: str, tag: str, kinds: Sequence[str]) -> Spot:
    keys = tuple(f"{prefix}:{{{tag}}}:{kind}".encode() for kind in kinds)
    return Spot(keys, pack([b"%d" % len(keys), *keys]), crc_hqx(tag.encode(), 0) % SLOTS)


def pack(arguments: Iterable[bytes]) -> bytes:
    """Return the arguments of a command as they are sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


@lru_cache(4096)
def home_of(prefix: str, thread_id: str) -> Home:
    """Return where a thread lives that is its own family."""
    if _PLAIN.match(thread_id):
        tag = thread_id
    else:
        # No plain id begins so.
        tag = "~" + blake2b(encode(thread_id), digest_size=16, person=b"family").hexdigest()
    shard = blake2b(tag.encode(), digest_size=1, person=b"shard").digest()[0] % SHARDS
    return Home(thread_id, _spot(prefix, tag, "mcxswpe"), shard)


def home_within(prefix: str, family: str, thread_id: str) -> Home:
    """Return where a thread lives that is a branch of this family."""
    return home_of(prefix, thread_id)._replace(family=family, spot=home_of(prefix, family).spot)


@lru_cache(64)
def index_spot(prefix: str, shard: int) -> Spot:
    """Return one shard's indexes: IDS, RUNS, DUE and MARKS, as `index_common.lua` explains them."""
    # No family's tag begins so.
    return _spot(prefix, f":{shard}", ("ids", "runs", "due", "marks"))


def version_spot(prefix: str) -> Spot:
    """Return the key that tells which version of this format is in use."""
    return _spot(prefix, ":", ("version",))


def thread_form(family: str, thread_id: str) -> bytes:
    """Return a thread's form within its family; see the module."""
    return b"\x00" if thread_id == family else b"\x01" + id_form(thread_id)


def line_of(family: str, thread_id: str, checkpoint_ns: str) -> bytes:
    """Return a line's form; see the module."""
    return thread_form(family, thread_id) + (text_form(checkpoint_ns) if checkpoint_ns else b"\x00")


def place_of(family: str, key: CheckpointKey) -> bytes:
    """Return a place; see the module."""
    return line_of(family, key.thread_id, key.checkpoint_ns) + id_form(key.checkpoint_id)


def place_end(data: bytes) -> int:
    """Return where what follows a place begins."""
    thread_end = 1 if data[0] == 0 else _id_end(data, 1)
    return _id_end(data, data.index(0, thread_end) + 1)


def _read_thread(data: bytes, at: int, family: str) -> tuple[str, int]:
    return (family, at + 1) if data[at] == 0 else _read_id(data, at + 1)


def _read_line(data: bytes, at: int, family: str) -> tuple[str, str, int]:
    thread_id, end = _read_thread(data, at, family)
    checkpoint_ns, end = _read_text(data, end)
    return thread_id, checkpoint_ns, end


def read_place(data: bytes, family: str) -> tuple[CheckpointKey, int]:
    """Return the key that a place stands for, and where what follows it begins."""
    thread_id, checkpoint_ns, end = _read_line(data, 0, family)
    checkpoint_id, end = _read_id(data, end)
    return CheckpointKey(thread_id, checkpoint_ns, checkpoint_id), end


def rev_form(rev: int) -> bytes:
    """Return a rev as it stands in a row."""
    return _REV.pack(rev)


def row_form(family: str, row: CheckpointRow) -> tuple[bytes, bytes]:
    """Return a row's place, and what stands there."""
    key = row.key
    line, own_id = line_of(family, key.thread_id, key.checkpoint_ns), id_form(key.checkpoint_id)
    flags = int(row.kind)
    parent = run = b""
    if row.parent_id is not None:
        flags, parent = flags | PARENT, id_form(row.parent_id)
    if row.run_id is not None:
        flags, run = flags | RUN, id_form(row.run_id)
    form = b"".join(
        (
            _REV.pack(row.rev),
            bytes((flags,)),
            parent,
            run,
            _reach_form(family, row),
            _COUNT.pack(len(row.parts)),
            *row.parts,
            _LENGTH.pack(len(row.metadata)),
            row.metadata,
            row.body,
        )
    )
    return line + own_id, form


def _reach_form(family: str, row: CheckpointRow) -> bytes:
    pieces = [_COUNT.pack(len(row.reach))]
    for span in row.reach:
        if span[:2] != row.key[:2]:
            line = line_of(family, span.thread_id, span.checkpoint_ns)
            pieces += [ANY_SPAN, line, id_form(span.first), id_form(span.last)]
        elif span.last != row.key.checkpoint_id:
            pieces += [LINE_SPAN, id_form(span.first), id_form(span.last)]
        else:
            pieces += [OWN_SPAN, id_form(span.first)]
    return b"".join(pieces)


def read_row(data: bytes, family: str) -> CheckpointRow:
    """Return the row that a member of LIVE or REST is, or the beginning of one."""
    key, at = read_place(data, family)
    try:
        return _read_row(data, key, at, family)
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptCheckpointError(
            f"{key} cannot be read, its row has been damaged or changed by hand ({error!r}). Restore the "
            "database from a backup, or delete the thread."
        ) from error


def read_node(data: bytes, size: int, family: str) -> Node:
    """Return the node in a row that ends with its metadata; see `outline.lua`."""
    row = read_row(data, family)
    return Node(row.key, row.parent_id, row.rev, row.kind, row.metadata, size)


def _read_row(data: bytes, key: CheckpointKey, at: int, family: str) -> CheckpointRow:
    (rev,), flags = _REV.unpack_from(data, at), data[at + 8]
    at += 9
    parent_id = run_id = None
    if flags & PARENT:
        parent_id, at = _read_id(data, at)
    if flags & RUN:
        run_id, at = _read_id(data, at)
    kind = Kind(flags & KIND)
    if flags & CUT:
        return CheckpointRow(key, parent_id, b"", b"", rev, run_id=run_id, kind=kind)
    reach, at = _read_reach(data, at, key, family)
    (count,) = _COUNT.unpack_from(data, at)
    at += 2
    parts = split_parts(data[at : at + 16 * count])
    at += 16 * count
    (length,) = _LENGTH.unpack_from(data, at)
    at += 4
    metadata = data[at : at + length]
    return CheckpointRow(key, parent_id, data[at + length :], metadata, rev, reach, parts, run_id, kind)


def _read_reach(data: bytes, at: int, key: CheckpointKey, family: str) -> tuple[tuple[Span, ...], int]:
    (count,) = _COUNT.unpack_from(data, at)
    at += 2
    spans = []
    for _ in range(count):
        what = data[at : at + 1]
        thread_id, checkpoint_ns, at = *key[:2], at + 1
        if what == ANY_SPAN:
            thread_id, checkpoint_ns, at = _read_line(data, at, family)
        first, at = _read_id(data, at)
        last = key.checkpoint_id
        if what != OWN_SPAN:
            last, at = _read_id(data, at)
        spans.append(Span(thread_id, checkpoint_ns, first, last))
    return tuple(spans), at


def write_forms(write: WriteRow) -> tuple[bytes, bytes]:
    """Return what a write stands under within its checkpoint, and what stands there.

    That of regular writes is followed by their number, which the server gives.
    """
    call = REGULAR if write.call == 0 else bytes((-write.call,))
    form = b"".join((_COUNT.pack(len(write.parts)), *write.parts, text_form(write.task_path), write.body))
    return id_form(write.task_id) + call, form


def members_of_writes(place: bytes, writes: Sequence[WriteRow]) -> list[bytes]:
    """Return the members that hold all writes of one checkpoint."""
    found: dict[bytes, list[bytes]] = {}
    for write in writes:
        under, form = write_forms(write)
        forms = found.setdefault(place + under, [])
        if under[-1:] != REGULAR:
            forms[:] = [form]
        elif form not in forms:
            forms.append(form)
    return [
        under + (_SEQ.pack(number) if under[-1:] == REGULAR else b"") + form
        for under, forms in found.items()
        for number, form in enumerate(forms, 1)
    ]


def read_write(data: bytes, at: int) -> WriteRow:
    """Return the write in a member of WRITES, whose place ends there."""
    task_id, at = _read_id(data, at)
    call = -data[at]
    at += 1 if call else 5
    (count,) = _COUNT.unpack_from(data, at)
    at += 2
    parts = split_parts(data[at : at + 16 * count])
    task_path, at = _read_text(data, at + 16 * count)
    return WriteRow(task_id, task_path, call, data[at:], parts)


def grouped_writes(members: Sequence[bytes], family: str) -> dict[CheckpointKey, list[WriteRow]]:
    """Return writes by their checkpoints."""
    found: dict[CheckpointKey, list[WriteRow]] = {}
    for member in members:
        key, at = read_place(member, family)
        found.setdefault(key, []).append(read_write(member, at))
    return found


def read_standing(row: bytes, writes: Sequence[bytes], family: str) -> Standing:
    """Return what `first.lua` tells of a root checkpoint; the stamp is as `put.lua` makes it."""
    written = [read_write(member, place_end(member)) for member in writes]
    # Not for secrecy: it is what Redis has.
    stamp = sha1(b"".join(writes), usedforsecurity=False).hexdigest()
    return Standing(read_row(row, family), written, stamp)


def keep_forms(keep: Keep | None) -> list[bytes]:
    """Return what `put.lua` takes of what is to go with a put."""
    if keep is None:
        return [b"-", b"0"]
    forms = [b"" if keep.most is None else b"%d" % keep.most, b"%d" % len(keep.leaving)]
    for own, rev, hidden_rev, parent, heir, heir_rev, heir_new_rev, stamp in keep.leaving:
        forms += [
            id_form(own),
            rev_form(rev),
            rev_form(hidden_rev),
            b"" if parent is None else id_form(parent),
        ]
        forms += [id_form(heir), rev_form(heir_rev), rev_form(heir_new_rev), stamp.encode()]
    return forms


def event_form(family: str, event: EventRow) -> tuple[bytes, bytes]:
    """Return an event's place with its id, and what stands there."""
    place = place_of(family, CheckpointKey(event.thread_id, "", event.checkpoint_id))
    return place + event.event_id + b"\x00", _LENGTH.pack(len(event.head)) + event.head + event.body


def read_event(member: bytes, family: str) -> EventRow:
    """Return the event that a member of EVENTS is, or the beginning of one."""
    key, at = read_place(member, family)
    head_at = at + 21
    body_at = head_at + _LENGTH.unpack_from(member, at + 17)[0]
    event_id, head = member[at : at + 16], member[head_at:body_at]
    return EventRow(key.thread_id, key.checkpoint_id, event_id, head, member[body_at:])


def event_ranges(
    family: str, thread_id: str, checkpoint_ids: Collection[str] | None, after: EventRow | None
) -> list[bytes]:
    """Return bounds in EVENTS, lower and upper in turn, of what comes after an event, in order."""
    line = line_of(family, thread_id, "")
    last_seen = None if after is None else event_form(family, after)[0]
    prefixes = (
        [line] if checkpoint_ids is None else sorted(line + id_form(one) for one in set(checkpoint_ids))
    )
    bounds = []
    for prefix in prefixes:
        if last_seen is None or prefix > last_seen:
            bounds += [b"[" + prefix, b"(" + past(prefix)]
        elif past(prefix) > last_seen:
            bounds += [b"[" + past(last_seen), b"(" + past(prefix)]
    return bounds


def record_form(branch: Branch) -> tuple[bytes, int]:
    """Return a branch's record, and the length of what no two of a family share: source and name."""
    named = thread_form(branch.family, branch.source) + text_form(branch.name)
    return named + id_form(branch.checkpoint_id) + _TIME.pack(branch.created_at), len(named)


def read_facts(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return what META holds, from what `facts.lua` returns."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def read_records(facts: Mapping[bytes, bytes], family: str) -> dict[str, Branch]:
    """Return the records of a family's branches, oldest first, from what META holds."""
    found = []
    for name, data in facts.items():
        if name[:1] == b"b":
            thread_id, _ = _read_thread(name, 1, family)
            source, at = _read_thread(data, 0, family)
            branch_name, at = _read_text(data, at)
            checkpoint_id, at = _read_id(data, at)
            (created_at,) = _TIME.unpack_from(data, at)
            found.append(Branch(thread_id, family, source, checkpoint_id, branch_name, created_at))
    found.sort(key=lambda branch: (branch.created_at, branch.thread_id))
    return {branch.thread_id: branch for branch in found}


def read_tags(facts: Mapping[bytes, bytes], family: str, thread_id: str | None) -> list[Tag]:
    """Return a thread's tags, or with None its family's, by name, from what META holds."""
    begin = b"t" if thread_id is None else b"t" + thread_form(family, thread_id)
    return sorted(
        Tag(_read_text(name, _read_thread(name, 1, family)[1])[0], read_place(place, family)[0])
        for name, place in facts.items()
        if name.startswith(begin)
    )


def read_expired(facts: Mapping[bytes, bytes], family: str, now: float) -> list[str]:
    """Return the threads of a family that have expired, from what META holds."""
    return [name for name, expiry in read_expiries(facts, family).items() if float(expiry) <= now]


def read_expiries(facts: Mapping[bytes, bytes], family: str) -> dict[str, bytes]:
    """Return until when the threads of a family live that expire, from what META holds."""
    return {_read_thread(name, 1, family)[0]: at for name, at in facts.items() if name[:1] == b"e"}


def read_namespaces(found: Sequence[bytes], spaces: Iterable[bytes], thread_length: int) -> list[str]:
    """Return the namespaces that `namespaces.lua` has found."""
    names = {_read_text(text, 0)[0] for text in found}
    for space in spaces:
        names.add(_read_text(space[_id_end(space, thread_length) :].translate(_INVERTED), 0)[0])
    return sorted(names)


def read_text(form: bytes) -> str:
    """Return the text whose form this is."""
    return _read_text(form, 0)[0]


def page_of(reply: Sequence[Any], family: str) -> Page:
    """Put together what `read.lua` returns."""
    rows, writes, support, parts = reply
    found = grouped_writes(writes, family)
    entries = []
    for row in (read_row(member, family) for member in rows):
        entries.append(Entry(row, tuple(found.get(row.key, ()))))
    bodies = {row.key: row.body for row in (read_row(member, family) for member in support)}
    return Page(entries, bodies, pairs_of(parts))


def pairs_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return a dictionary of what names and values in turn tell; those without a value are left out."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name: value for name, value in pairs if value is not None}


# --- indexes -------------------------------------------------------------------------------------------


def entry_form(key: CheckpointKey) -> bytes:
    """Return a checkpoint's member of IDS: read backwards, ties of id come by thread and namespace."""
    thread_id, checkpoint_ns, checkpoint_id = key
    rest = id_form(thread_id) + text_form(checkpoint_ns)
    return id_form(checkpoint_id) + rest.translate(_INVERTED)


def run_form(run_id: str, entry: bytes) -> bytes:
    """Return a checkpoint's member of RUNS."""
    return id_form(run_id) + entry


def read_entry(member: bytes) -> CheckpointKey:
    """Return the key that a member of IDS names."""
    checkpoint_id, at = _read_id(member, 0)
    rest = member[at:].translate(_INVERTED)
    thread_id, at = _read_id(rest, 0)
    return CheckpointKey(thread_id, _read_text(rest, at)[0], checkpoint_id)


def read_run(member: bytes) -> tuple[str, CheckpointKey]:
    """Return the run and the key that a member of RUNS names."""
    run_id, at = _read_id(member, 0)
    return run_id, read_entry(member[at:])


def read_id(form: bytes) -> str:
    """Return the id whose form this is."""
    return _read_id(form, 0)[0]


def read_ids(forms: bytes) -> list[str]:
    """Return the ids whose forms stand one after the other."""
    found, at = [], 0
    while at < len(forms):
        text, at = _read_id(forms, at)
        found.append(text)
    return found


def space_form(key: CheckpointKey, family: str) -> bytes:
    """Return where a checkpoint of another namespace than the root's stands in SPACES."""
    thread = thread_form(family, key.thread_id)
    return thread + id_form(key.checkpoint_id) + text_form(key.checkpoint_ns).translate(_INVERTED)
