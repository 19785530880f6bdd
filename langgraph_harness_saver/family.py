"""What a deletion takes away and what it has to leave: pure functions over a family."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, cast
from uuid import UUID

from langgraph_harness_saver.channels import is_rebuilt
from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import (
    Branch,
    Change,
    CheckpointKey,
    CheckpointRow,
    Family,
    Kind,
    Node,
    Outline,
    Page,
    PartRow,
)
from langgraph_harness_saver.slots import RAW, Blob, Body, Encoded, Image, Ref, Slot, revision

REBASE_FACTOR = 4
"""Survivors are stored whole again if their values are at most this many times what that frees."""

ROW_BYTES = 128
"""What a row costs beside its body."""

Rows = dict[CheckpointKey, CheckpointRow]


def removal(codec: Codec, family: Family, gone: Iterable[CheckpointKey]) -> Change:
    """Delete checkpoints so that every survivor reads back as before.

    A survivor's parent becomes its nearest surviving ancestor, or an anchor where a channel is rebuilt
    from what deleted ancestors held. Bytes that survivors need stay in hidden rows, or the survivors
    are stored whole again, whichever takes less.
    """
    plan = _Removal(codec, family, set(gone))
    plan.relink()
    plan.drop_anchors()
    plan.rebase_or_hide()
    return plan.change()


def retirement(
    codec: Codec, family: Family, outline: Outline, gone: Collection[CheckpointKey], *, readable: bool
) -> Change:
    """Take checkpoints out of sight, at the cost of these and their neighbours however long the thread is.

    They stay as they are, for whoever needs them, until `collection` drops what nobody does. `family` holds
    them, all that have one of them as their parent, and their ancestors up to the nearest survivors; unless
    it is `readable`, no channel of theirs is rebuilt from what ancestors hold.
    """
    plan = _Removal(codec, family, set(gone))
    plan.relink(anchors=readable)
    named = {plan.rows.get(node.key, node).parent_id for node in outline.nodes if node.key not in plan.gone}
    plan.gone.update(
        k for k, r in plan.rows.items() if r.kind == Kind.ANCHOR and k.checkpoint_id not in named
    )
    for key in plan.gone:
        plan.rows[key] = _retired(plan.rows[key])
    return Change([row for k, row in plan.rows.items() if family.rows.get(k) is not row], parts=plan.parts)


def collection(
    codec: Codec,
    family: Family,
    gone: Collection[CheckpointKey] = (),
    spared: Collection[CheckpointKey] = (),
) -> Change:
    """Delete checkpoints, and what was left of others, so that no survivor is stored anew but its parent.

    What survivors need of a deleted one stays in a hidden row. Where that is the end of a long chain of
    differences, it is stored whole, in its place, if that takes less than the chain. Those that are `spared`,
    of the ones that go now or were retired, are retired, so that `adoption` finds them.
    """
    plan = _Removal(codec, family, set(gone), spared=set(spared))
    plan.relink()
    plan.retire()
    plan.drop_anchors()
    plan.shorten_or_hide()
    return plan.change()


def adoption(codec: Codec, family: Family, encoded: Encoded) -> tuple[list[CheckpointRow], list[PartRow]]:
    """Return the rows and parts of a checkpoint that is added, and of the anchor that it may need.

    If its parent has been retired, it gets the parent that it would have if it had been there before.
    """
    row = encoded.row
    plan = _Removal(codec, family, set(), rows={**family.rows, row.key: row})
    path, parent_id = plan.path(row, retired=True)
    if all(step.kind != Kind.HIDDEN for step in path):
        return [row], encoded.parts
    anchor = plan.anchor(row, encoded.image, path, parent_id)
    if anchor is None:
        return [_moved(row, parent_id)], encoded.parts
    return [anchor.row, _moved(row, anchor.row.key.checkpoint_id)], [*anchor.parts, *encoded.parts]


def ending(codec: Codec, family: Family, *thread_ids: str) -> Change:
    """Delete threads, leaving what others of their family need, hidden."""
    ended = frozenset(thread_ids)
    kept = {k: some for k, some in family.writes.items() if k in family.rows or k.thread_id not in ended}
    gone = [k for k, r in family.rows.items() if k.thread_id in ended and r.kind != Kind.HIDDEN]
    change = removal(codec, replace(family, writes=kept), gone)
    left = (family.rows.keys() | {row.key for row in change.rows}) - set(change.deletes)
    # Writes may be there before their checkpoint.
    left |= kept.keys() - family.rows.keys()
    return replace(change, drops=ended, branches=_records(family, ended, {k.thread_id for k in left}))


def under_roots(codec: Codec, family: Family, thread_id: str, roots: Collection[str]) -> list[CheckpointKey]:
    """Return what goes with a thread's root checkpoints: these, and what subgraphs made under them.

    A subgraph with a memory of its own goes on from the last checkpoint that it made before a survivor. That
    stays, whichever root it was made under.
    """
    own = [row for key, row in family.rows.items() if key.thread_id == thread_id]
    live = [row for row in own if row.kind == Kind.LIVE]
    parents = {key.checkpoint_id: one for key, one in parents_of(own).items() if not key.checkpoint_ns}
    made: dict[str, dict[str, CheckpointRow]] = {}
    gone = [CheckpointKey(thread_id, "", root) for root in roots if root in parents]
    for row in live:
        root = root_of(codec, row) if row.key.checkpoint_ns else None
        if root is not None and root in roots:
            gone.append(row.key)
            if ":" not in row.key.checkpoint_ns:
                line = made.setdefault(row.key.checkpoint_ns, {})
                line[root] = max(line.get(root, row), row, key=lambda one: one.key.checkpoint_id)
    kept: set[CheckpointKey] = set()
    for root, parent in parents.items():
        if root in roots or parent not in roots:
            continue
        waiting, seen = set(made), set()
        while parent is not None and parent in roots and parent not in seen and waiting:
            seen.add(parent)
            for ns in [ns for ns in waiting if parent in made[ns]]:
                kept.add(made[ns][parent].key)
                waiting.discard(ns)
            parent = parents.get(parent)
    return [key for key in gone if key not in kept]


def parents_of(rows: Sequence[CheckpointRow | Node]) -> dict[CheckpointKey, str | None]:
    """Return the nearest ancestor of each live checkpoint that isn't an anchor."""
    anchors = {row.key: row for row in rows if row.kind == Kind.ANCHOR}
    return {row.key: _beyond(row, anchors) for row in rows if row.kind == Kind.LIVE}


def _beyond(row: CheckpointRow | Node, anchors: Mapping[CheckpointKey, CheckpointRow | Node]) -> str | None:
    parent_id, seen = row.parent_id, set()
    while parent_id is not None and parent_id not in seen:
        anchor = anchors.get(row.key._replace(checkpoint_id=parent_id))
        if anchor is None:
            break
        seen.add(parent_id)
        parent_id = anchor.parent_id
    return parent_id


def root_of(codec: Codec, row: CheckpointRow) -> str | None:
    """Return the id of the root checkpoint that a subgraph's was made under; a root's own."""
    if not row.key.checkpoint_ns:
        return row.key.checkpoint_id
    metadata = codec.unpack_metadata(row.metadata, row.key)
    return cast("str | None", (metadata.get("parents") or {}).get(""))


def standalone(codec: Codec, family: Family, thread_id: str) -> Family:
    """Return what a thread would be if all others of its family were deleted."""
    others = [k for k, r in family.rows.items() if k.thread_id != thread_id and r.kind != Kind.HIDDEN]
    if not family.branches:
        return family
    plan = _Removal(codec, family, set(others))
    plan.relink()
    plan.drop_anchors()
    leaving = {k for k, r in plan.rows.items() if r.kind == Kind.HIDDEN} | plan.gone
    for key in plan.dependents(leaving):
        plan.rebase(key)
    rows = {k: r for k, r in plan.rows.items() if k.thread_id == thread_id and k not in leaving}
    writes = {k: some for k, some in family.writes.items() if k.thread_id == thread_id}
    parts = {**family.parts, **{part.part_id: part.data for part in plan.parts}}
    return Family(rows, writes, parts)


def _records(family: Family, ended: Collection[str], left: set[str]) -> dict[str, Branch | None]:
    """Return what changes in the records of a family when threads have ended and rows of some are `left`."""
    # Whose branch one was is still asked by its own branches. Its name is free.
    records = {t: b._replace(name="") if t in ended else b for t, b in family.branches.items()}
    while idle := [t for t in records if t not in left and all(b.source != t for b in records.values())]:
        for thread_id in idle:
            del records[thread_id]
    return {t: records.get(t) for t, record in family.branches.items() if records.get(t) != record}


def needs(reader: Reader, keys: Iterable[CheckpointKey]) -> set[Ref]:
    """Return every slot that reading these checkpoints takes."""
    needed: set[Ref] = set()
    for key in keys:
        head = reader.head(key)
        for ref in (head, *reader.header(head)[1].values()):
            _follow(reader, ref, needed)
    return needed


def kept_slots(codec: Codec, family: Family, key: CheckpointKey) -> dict[int, Slot]:
    """Return the slots of one row that other checkpoints need."""
    row = family.rows.get(key)
    if row is None:
        return {}
    reader = reader_of(codec, family.rows, family)
    readable = [k for k, r in family.rows.items() if r.kind != Kind.HIDDEN and k != key]
    needed = needs(reader, readable)
    return {n: slot for n, slot in reader.body(key).slots.items() if Ref(key, n) in needed}


def unused_parts(family: Family, rows: Mapping[CheckpointKey, CheckpointRow]) -> frozenset[bytes]:
    """Return the parts that neither these rows nor the writes of their checkpoints name."""
    used = {part for row in rows.values() for part in row.parts}
    for key, writes in family.writes.items():
        # Writes may be there before their checkpoint.
        if key in rows or key not in family.rows:
            used.update(part for write in writes for part in write.parts)
    return frozenset(family.parts) - used


def reader_of(codec: Codec, rows: Mapping[CheckpointKey, CheckpointRow], family: Family) -> Reader:
    """Return a reader of everything in a family."""
    return Reader(codec, Page((), {key: row.body for key, row in rows.items()}, family.parts))


def anchor_key(row: CheckpointRow) -> CheckpointKey:
    """Return the key of the anchor that comes between a checkpoint and its present parent.

    Another parent makes another anchor: what is there already may have been built on.
    """
    named = blake2b(digest_size=16, person=b"anchor")
    for checkpoint_id in (row.key.checkpoint_id, row.parent_id or ""):
        named.update(blake2b(checkpoint_id.encode("utf-8", "surrogatepass")).digest())
    return row.key._replace(checkpoint_id=str(UUID(bytes=named.digest(), version=5)))


def is_anchor_id(checkpoint_id: str) -> bool:
    """Tell whether an id is such as anchors have."""
    try:
        return UUID(checkpoint_id).version == 5
    except ValueError:
        return False


def _follow(reader: Reader, ref: Ref | None, needed: set[Ref]) -> None:
    while ref is not None and ref not in needed:
        needed.add(ref)
        ref = reader.slot(ref).base


def _leans(reader: Reader, ref: Ref, leaving: set[CheckpointKey], leaning: dict[Ref, bool]) -> bool:
    """Tell whether a slot or one below it is in a row that leaves; `leaning` remembers."""
    path = [ref]
    while path[-1] not in leaning and path[-1].key not in leaving:
        base = reader.slot(path[-1]).base
        if base is None:
            break
        path.append(base)
    answer = leaning.get(path[-1], path[-1].key in leaving)
    leaning.update((step, answer) for step in path)
    return answer


@dataclass(slots=True)
class _Removal:
    codec: Codec
    family: Family
    gone: set[CheckpointKey]
    rows: Rows = field(default_factory=dict)
    reader: Reader = field(init=False)
    parts: list[PartRow] = field(default_factory=list)
    spared: set[CheckpointKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rows = self.rows or dict(self.family.rows)
        self.reader = reader_of(self.codec, self.rows, self.family)

    def relink(self, *, anchors: bool = True) -> None:
        """Give every survivor a parent that survives, or an anchor where it needs one."""
        survivors = [r for k, r in self.rows.items() if r.kind == Kind.LIVE and k not in self.gone]
        for row in survivors:
            path, parent_id = self.path(row)
            if any(step.key in self.gone for step in path):
                self._relink(row, path, parent_id, anchors=anchors)

    def retire(self) -> None:
        """Take out of sight what is spared, each with a parent that stays or is spared, too."""
        for key in self.spared:
            row = self.rows[key]
            path, parent_id = self.path(row, retired=True)
            if any(step.key in self.gone or step.kind == Kind.HIDDEN for step in path):
                self._relink(row, path, parent_id)
        self.gone -= self.spared
        self.rows.update((key, _retired(self.rows[key])) for key in self.spared)

    def _relink(
        self,
        row: CheckpointRow,
        path: Sequence[CheckpointRow],
        parent_id: str | None,
        *,
        anchors: bool = True,
    ) -> None:
        anchor = self.anchor(row, self.reader.image(row), path, parent_id) if anchors else None
        if anchor is not None:
            self._take(anchor)
            parent_id = anchor.row.key.checkpoint_id
        self.rows[row.key] = _moved(row, parent_id)

    def drop_anchors(self) -> None:
        """Let anchors go that nobody has as parent."""
        parents = {self._parent(r) for _, r in self._surviving()}
        self.gone.update(k for k, r in self.rows.items() if r.kind == Kind.ANCHOR and k not in parents)

    def rebase_or_hide(self) -> None:
        """Make do without the rows that go."""
        leaving = self.gone | {k for k, r in self.rows.items() if r.kind == Kind.HIDDEN}
        needed = needs(self.reader, [k for k, _ in self._surviving()])
        wanted = {ref for ref in needed if ref.key in leaving}
        if wanted:
            dependents = self.dependents(leaving)
            whole = sum(self.reader.size(ref) for key in dependents for ref in self._refs(key)[1:])
            if whole <= REBASE_FACTOR * sum(len(self.rows[key].body) for key in {r.key for r in wanted}):
                for key in dependents:
                    self.rebase(key)
                self.reader = reader_of(self.codec, self.rows, self.family)
                needed = needs(self.reader, [k for k, _ in self._surviving()])
        for key in leaving:
            self._hide(key, {n: s for n, s in self.reader.body(key).slots.items() if Ref(key, n) in needed})

    def shorten_or_hide(self) -> None:
        """Make do without the rows that go, leaving those that stay as they are."""
        self.gone |= {k for k, r in self.rows.items() if r.kind == Kind.HIDDEN and k not in self.spared}
        heads: set[Ref] = set()
        needed: set[Ref] = set()
        ends: set[Ref] = set()
        known: dict[Ref, Ref | None] = {}
        for key, _ in self._surviving():
            head, *refs = self._refs(key)
            _follow(self.reader, head, heads)
            for ref in refs:
                end = self._end(ref, known)
                if end is not None:
                    ends.add(end)
                    _follow(self.reader, end, needed)
        short = {ref: self._whole(ref) for ref in ends if self.reader.slot(ref).base is not None}
        kept = self._left(heads | needed)
        if short:
            shortened = self._left(heads | ends)
            for ref, slot in short.items():
                shortened[ref.key][ref.slot] = slot
            freed = sum(
                ROW_BYTES + len(self.rows[key].body)
                for key in self.gone
                if kept[key] and len(shortened[key]) < len(kept[key])
            )
            if sum(len(slot.data) for slot in short.values()) <= REBASE_FACTOR * freed:
                kept = shortened
        for key, slots in kept.items():
            self._hide(key, slots)

    def _end(self, ref: Ref, known: dict[Ref, Ref | None]) -> Ref | None:
        """Return the first slot below a value that is in a row which goes; `known` remembers."""
        path: list[Ref] = []
        one: Ref | None = ref
        while one is not None and one.key not in self.gone and one not in known:
            path.append(one)
            one = self.reader.slot(one).base
        end = known.get(one, one) if one is not None else None
        known.update(dict.fromkeys(path, end))
        return end

    def _whole(self, ref: Ref) -> Slot:
        """Return a slot with its value whole: in the row, for survivors don't name a part that is new."""
        blob = self.reader.blob(ref)
        return Slot(RAW, blob.type, blob.digest, blob.data)

    def _left(self, needed: set[Ref]) -> dict[CheckpointKey, dict[int, Slot]]:
        """Return what stays of each row that goes."""
        left: dict[CheckpointKey, dict[int, Slot]] = {key: {} for key in self.gone}
        for ref in needed:
            if ref.key in left:
                left[ref.key][ref.slot] = self.reader.slot(ref)
        return {key: dict(sorted(slots.items())) for key, slots in left.items()}

    def change(self) -> Change:
        """Return what is to be done."""
        before = self.family.rows
        return Change(
            rows=[row for key, row in self.rows.items() if before.get(key) is not row],
            deletes=[key for key in before if key not in self.rows],
            writes={k: () for k in self.family.writes if k in self.rows and _is_left(self.rows[k])},
            parts=self.parts,
            drop_parts=unused_parts(self.family, {k: r for k, r in self.rows.items() if k not in self.gone})
            - {part.part_id for part in self.parts},
        )

    def _parent(self, row: CheckpointRow) -> CheckpointKey | None:
        if row.parent_id is None:
            return None
        return self.family.find(row.key._replace(checkpoint_id=row.parent_id), self.rows)

    def _surviving(self) -> list[tuple[CheckpointKey, CheckpointRow]]:
        return [
            (k, r)
            for k, r in self.rows.items()
            if (r.kind != Kind.HIDDEN or k in self.spared) and k not in self.gone
        ]

    def path(self, row: CheckpointRow, *, retired: bool = False) -> tuple[list[CheckpointRow], str | None]:
        """Return the ancestors up to the nearest survivor, nearest first, and that survivor's id.

        With `retired` they go on by way of those that were retired, up to one that is spared.
        """
        path: list[CheckpointRow] = []
        seen = {row.key}
        parent_id = row.parent_id
        while parent_id is not None:
            # A branch may hold what its source's line names, so it is always the branch that is asked.
            key = self.family.find(row.key._replace(checkpoint_id=parent_id), self.rows, retired=retired)
            if key is None or key in seen:
                return path, None if path else parent_id
            parent = self.rows[key]
            if (parent.kind == Kind.LIVE and key not in self.gone) or (retired and key in self.spared):
                return path, parent_id
            seen.add(key)
            path.append(parent)
            parent_id = parent.parent_id
        return path, None

    def anchor(
        self, row: CheckpointRow, image: Image, path: Sequence[CheckpointRow], parent_id: str | None
    ) -> Encoded | None:
        """Return what stands for the ancestors on a checkpoint's path, None if it needs none of them."""
        counters = self.codec.unpack_metadata(row.metadata).get("counters_since_delta_snapshot") or {}
        seeds, history = self._contributions(image, path, set(counters))
        if not seeds and not history:
            return None
        nearest = self.codec.unpack_metadata(path[0].metadata)
        return self.codec.anchor(
            anchor_key(row),
            parent_id,
            self.reader.image(path[0]),
            {"source": "fork", "step": nearest.get("step", -1), "parents": nearest.get("parents", {})},
            seeds,
            history,
        )

    def _contributions(
        self, image: Image, path: Sequence[CheckpointRow], counted: set[str]
    ) -> tuple[dict[str, Blob], list[Sequence[Any]]]:
        """Return what an ancestor walk from a survivor would find on the way: seeds, and writes in order."""
        own = {c for c, blob in image.blobs.items() if not self.codec.is_delta_snapshot(blob)}
        versions = image.header.versions
        seeds: dict[str, Ref] = {}
        history: list[Sequence[Any]] = []
        for step in path:
            before = self._writes(step, image.key.thread_id)
            found = [w for w in before if w[2] not in seeds and _replayed(w[2], own)]
            history[:0] = found
            earlier, refs = self.reader.header(self.reader.head(step.key))
            for channel, ref in refs.items():
                if channel not in seeds and _replayed(channel, own):
                    seeds[channel] = ref
                    # A channel that has kept its version has kept its value, wherever that is stored.
                    if channel in versions and versions[channel] == earlier.versions.get(channel):
                        counted.add(channel)
        written = {item[2] for item in history}
        blobs = {channel: self.reader.blob(ref) for channel, ref in seeds.items()}
        kept = {
            channel: blob
            for channel, blob in blobs.items()
            if channel in written or channel in counted or self.codec.is_delta_snapshot(blob)
        }
        return kept, history

    def _writes(self, row: CheckpointRow, reader: str) -> Sequence[Sequence[Any]]:
        history = self.reader.history(row.key) if row.kind != Kind.LIVE else ()
        if history or row.kind == Kind.ANCHOR:
            return history
        return self.codec.merge_writes(self.family.written(row.key, reader), row.key)

    def dependents(self, leaving: set[CheckpointKey]) -> list[CheckpointKey]:
        """Return the survivors that need a row which leaves."""
        leaning: dict[Ref, bool] = {}
        return [
            key
            for key, _ in self._surviving()
            if any(_leans(self.reader, ref, leaving, leaning) for ref in self._refs(key))
        ]

    def _refs(self, key: CheckpointKey) -> list[Ref]:
        head = self.reader.head(key)
        return [head, *self.reader.header(head)[1].values()]

    def rebase(self, key: CheckpointKey) -> None:
        """Store a survivor whole."""
        others = needs(self.reader, [k for k, _ in self._surviving() if k != key])
        keep = {n: slot for n, slot in self.reader.body(key).slots.items() if Ref(key, n) in others}
        self._take(self.codec.rebase(self.rows[key], self.reader.image(self.rows[key]), keep))

    def _hide(self, key: CheckpointKey, slots: Mapping[int, Slot]) -> None:
        if not slots:
            del self.rows[key]
            return
        row = self.rows[key]
        if _is_left(row) and slots == self.reader.body(key).slots:
            return
        body = self.codec.seal_body(Body(None, dict(slots)), key)
        if not _is_left(row) or body != row.body:
            self.rows[key] = CheckpointRow(key, None, body, b"", revision(body, b"", None), kind=Kind.HIDDEN)

    def _take(self, encoded: Encoded) -> None:
        self.rows[encoded.row.key] = encoded.row
        self.parts += encoded.parts
        self.reader = reader_of(self.codec, self.rows, self.family)


def _moved(row: CheckpointRow, parent_id: str | None) -> CheckpointRow:
    return row._replace(parent_id=parent_id, rev=revision(row.body, row.metadata, parent_id))


def _retired(row: CheckpointRow) -> CheckpointRow:
    """Return a checkpoint out of sight; its rev is another one, so that no difference is written on it."""
    return row._replace(kind=Kind.HIDDEN, rev=revision(row.body, b"", row.parent_id))


def _is_left(row: CheckpointRow) -> bool:
    """Tell whether a row is only what others need of a deleted one."""
    return row.kind == Kind.HIDDEN and not row.metadata


def _replayed(channel: str, own: set[str]) -> bool:
    return channel not in own and is_rebuilt(channel)
