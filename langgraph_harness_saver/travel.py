"""Rewinding and branching, told in rows: nothing is copied but names.

Both add *aliases*, rows that say "as that one there" (`Codec.alias`), so they cost the same whatever the
size of the state. What LangGraph needs of a copy is in ../docs/design.md, "Time travel".
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT

from langgraph_harness_saver.core import PAGE, Core
from langgraph_harness_saver.errors import (
    CheckpointNotFoundError,
    EntangledError,
    HeadMovedError,
    StoreError,
)
from langgraph_harness_saver.family import is_anchor_id, removal, under_roots
from langgraph_harness_saver.rows import (
    Base,
    Branch,
    Change,
    CheckpointKey,
    CheckpointRow,
    Entry,
    Family,
    Graft,
    Kind,
    Page,
    PutResult,
    Query,
)
from langgraph_harness_saver.stores.base import all_known

T = TypeVar("T")

UNFINISHED = (WRITES_IDX_MAP[ERROR], WRITES_IDX_MAP[INTERRUPT])

ATTEMPTS = 8
"""How often an operation begins again when others have written meanwhile."""


class Rewound(NamedTuple):
    """What a rewind made: the new head's id, and the old one's."""

    checkpoint_id: str
    old_head: str


class Carried(NamedTuple):
    """What is stored before a thread's new head, for subgraphs to go on from.

    That is the head's id, the rows and what they lean on, and the heads that there must still be.
    """

    root_id: str
    rows: list[CheckpointRow]
    bases: list[Base]
    heads: dict[tuple[str, str], str | None]


class _Changed(Exception):  # noqa: N818
    """What was read is not there any more."""


class Travel:
    """Adds checkpoints that are copies of others."""

    def __init__(self, core: Core, clock: Callable[[], float] = time.time) -> None:
        self._core = core
        self._store = core.store
        self._codec = core.codec
        self._clock = clock

    async def branch(self, thread_id: str, checkpoint_id: str, name: str, branch_id: str) -> Branch:
        """Begin the thread `branch_id` at a checkpoint of another.

        Raises:
            CheckpointNotFoundError: The thread has no such checkpoint.
            BranchExistsError: It has a branch of that name.
        """
        return await self._again(thread_id, lambda: self._branch(thread_id, checkpoint_id, name, branch_id))

    async def rewind(self, thread_id: str, checkpoint_id: str, discard: Sequence[str] = ()) -> Rewound:
        """Make a copy of a checkpoint the thread's latest, and delete the root checkpoints in `discard`.

        Raises:
            CheckpointNotFoundError: The thread has no such checkpoint.
        """
        return await self._again(thread_id, lambda: self._rewind(thread_id, checkpoint_id, set(discard)))

    async def _again(self, thread_id: str, attempt: Callable[[], Awaitable[T]]) -> T:
        await self._store.open()
        for _ in range(ATTEMPTS):
            try:
                return await attempt()
            except (_Changed, HeadMovedError):
                continue
            except EntangledError:
                # It has expired meanwhile.
                await self._core.end(thread_id, expired=True)
        raise StoreError(
            f"the thread was written to {ATTEMPTS} times in the meantime; try again when its run has paused"
        )

    async def delete(self, thread_id: str, roots: Collection[str]) -> int:
        """Delete root checkpoints, with what subgraphs made under them; return how many of the roots went."""
        count = 0

        def plan(family: Family) -> Change:
            nonlocal count
            gone = under_roots(self._codec, family, thread_id, roots)
            count = sum(not key.checkpoint_ns for key in gone)
            return removal(self._codec, family, gone) if gone else Change()

        await self._core.settle()
        await self._store.open()
        await self._store.revise(thread_id, plan)
        return count

    # --- branching ---------------------------------------------------------------------------------

    async def _branch(self, thread_id: str, checkpoint_id: str, name: str, branch_id: str) -> Branch:
        root = await self.entry(CheckpointKey(thread_id, "", checkpoint_id))
        # All branches of a family have one record each: they are read only where a thread isn't known.
        sources = await self._core.lineage.sources(thread_id)
        family = sources[-1] if sources else thread_id
        is_leaf = await self._is_leaf(thread_id, root)
        entries = [root]
        begins: dict[str, str] = {}
        since = checkpoint_id if is_leaf else None
        # Those within others come after them.
        for namespace in sorted(await self._store.namespaces(root.row.key.thread_id, since)):
            if ":" in namespace:
                entries += await self._pending_under(root.row.key, namespace)
            elif namespace:
                entries += await self._states(root, namespace, begins, is_leaf=is_leaf)
        rows = [self._branched(entry.row, branch_id) for entry in entries]
        writes = {
            row.key: entry.writes
            for row, entry in zip(rows, entries, strict=True)
            if is_leaf and entry.writes
        }
        record = Branch(branch_id, family, thread_id, checkpoint_id, name, self._clock())
        self._core.lineage.memory.begin(branch_id)
        await self._graft(Graft(rows, _bases(entries), writes=writes, branch=record))
        return record

    def _branched(self, row: CheckpointRow, branch_id: str) -> CheckpointRow:
        metadata = self._metadata_for(branch_id, row)
        return self._codec.alias(row.key._replace(thread_id=branch_id), row, row.parent_id, metadata)

    def _metadata_for(self, thread_id: str, row: CheckpointRow) -> dict[str, Any]:
        """Return the metadata that a copy of a checkpoint has in a thread."""
        metadata = self._codec.unpack_metadata(row.metadata, row.key)
        metadata.pop("run_id", None)
        if "thread_id" in metadata:
            metadata["thread_id"] = thread_id
        return metadata

    async def _is_leaf(self, thread_id: str, root: Entry) -> bool:
        """Tell whether nothing has come of a checkpoint: what its tasks have written is still to be used."""
        key = root.row.key
        for thread in {thread_id, key.thread_id}:
            if await self._store.has_child(key._replace(thread_id=thread)):
                return False
        # What came of it may have been deleted. Then all its tasks are finished, and the head is another.
        if await self._head(key.thread_id, "") == key.checkpoint_id:
            return True
        finished = {write.task_id for write in root.writes if write.call == 0}
        return any(
            write.call in UNFINISHED and write.task_id not in finished for write in root.writes
        ) and not await self._leads_to_an_anchor(key)

    async def _leads_to_an_anchor(self, key: CheckpointKey) -> bool:
        """Tell whether something came of a checkpoint by way of others that are gone.

        In durability "exit" nothing else tells that a question was answered.
        """
        async for entry, _ in self._line(key.thread_id, key.checkpoint_ns):
            parent_id = entry.row.parent_id
            if parent_id is not None and is_anchor_id(parent_id):
                anchor = await self._core.get(*key[:2], parent_id)
                if anchor is not None and anchor.row.parent_id == key.checkpoint_id:
                    return True
        return False

    async def _pending_under(self, key: CheckpointKey, namespace: str) -> list[Entry]:
        """Return the last checkpoint of a subgraph that was begun anew for a task of this checkpoint."""
        async for entry, metadata in self._line(key.thread_id, namespace):
            return [entry] if _root(metadata) == key.checkpoint_id else []
        return []

    async def _states(
        self, target: Entry, namespace: str, begins: dict[str, str], *, is_leaf: bool
    ) -> list[Entry]:
        """Return what a subgraph that remembers goes on from when its graph goes on from a checkpoint.

        That is the one with which it began there, or else the last that it made before. At a leaf it is the
        last that it made there, and the other comes second, for who rewinds to the leaf.

        One within others begins there only if it did so under what each of these goes on from, which
        `begins` says by namespace, and is told. It is given its input anew if they come to it later, or are
        begun anew themselves.
        """
        # A branch brought along all that its checkpoints need, so the target's own thread has it.
        at, floor = target.row.key.checkpoint_id, target.row.parent_id or ""
        lineage = _Lineage(self, target.row)
        last: Entry | None = None
        begun: Entry | None = None
        first: Entry | None = None
        before: Entry | None = None
        nearest = ""
        async for entry, metadata in self._line(target.row.key.thread_id, namespace):
            # Copies come later than what they are copies of, but never before the parent of their root.
            if entry.row.key.checkpoint_id < (floor if begun else nearest):
                break
            root = _root(metadata)
            if root == at:
                last = last or entry
                if _above(metadata).items() <= begins.items():
                    first = entry
                    begun = entry if metadata.get("source") == "input" else begun
            elif root is not None and root > nearest and await lineage.has(root):
                before, nearest = entry, root
        # In durability "exit" its input isn't stored, and it goes on from where it was interrupted.
        begun = begun or (first if first is not None and _waits(first) else None)
        goes_on = begun or before
        if goes_on is not None:
            begins[namespace] = goes_on.row.key.checkpoint_id
        found = [last if is_leaf else None, goes_on]
        return list({entry.row.key: entry for entry in found if entry is not None}.values())

    async def carried(self, target: Entry, thread_id: str) -> Carried:
        """Tell what a thread's subgraphs are to go on from when a copy of a checkpoint becomes its head."""
        threads = {thread_id, target.row.key.thread_id}
        namespaces = {ns for thread in threads for ns in await self._store.namespaces(thread)} - {""}
        heads = {(thread_id, ns): await self._head(thread_id, ns) for ns in ("", *namespaces)}
        begins: dict[str, str] = {}
        states = {ns: await self._states(target, ns, begins, is_leaf=False) for ns in sorted(namespaces)}
        target_id = target.row.key.checkpoint_id
        last = max(target_id, *(head for head in heads.values() if head is not None))
        new_ids: dict[str, str] = {}
        for ns in states:
            last = new_ids[ns] = following(last)
        root_id = following(last)
        renamed = {target_id: root_id}
        renamed.update((entry.row.key.checkpoint_id, new_ids[ns]) for ns in states for entry in states[ns])
        ts = now_text(self._clock())
        rows = []
        for ns, found in states.items():
            key = CheckpointKey(thread_id, ns, new_ids[ns])
            rows += [self._moved(entry.row, key, renamed, ts) for entry in found]
            rows += [] if found else [self._empty(key, root_id, ts)]
        bases = _bases([target, *(entry for found in states.values() for entry in found)])
        return Carried(root_id, rows, bases, heads)

    # --- rewinding ---------------------------------------------------------------------------------

    async def _rewind(self, thread_id: str, checkpoint_id: str, discard: set[str]) -> Rewound:
        target = await self.entry(CheckpointKey(thread_id, "", checkpoint_id))
        carried = await self.carried(target, thread_id)
        old_head = carried.heads[thread_id, ""]
        if old_head is None:
            raise CheckpointNotFoundError(f"thread {thread_id!r} has no checkpoint")
        root_id = carried.root_id
        root = self._moved(
            target.row,
            CheckpointKey(thread_id, "", root_id),
            {checkpoint_id: root_id},
            now_text(self._clock()),
            rewound_from=checkpoint_id,
        )
        graft = Graft([*carried.rows, root], carried.bases, carried.heads)
        if discard:
            await self._core.settle()
            await self._store.revise(
                thread_id, lambda family: self._discarding(family, graft, thread_id, discard)
            )
            for checkpoint in discard:
                self._core.cache.drop(CheckpointKey(thread_id, "", checkpoint))
        else:
            await self._graft(graft)
        await self._core.keep(CheckpointKey(thread_id, "", root_id))
        return Rewound(root_id, old_head)

    def _discarding(self, family: Family, graft: Graft, thread_id: str, discard: set[str]) -> Change:
        """Add a graft's rows and delete root checkpoints, with what subgraphs made under these."""
        live = [
            row for row in family.rows.values() if row.kind == Kind.LIVE and row.key.thread_id == thread_id
        ]
        for (_, namespace), expected in graft.heads.items():
            if (
                max((r.key.checkpoint_id for r in live if r.key.checkpoint_ns == namespace), default=None)
                != expected
            ):
                raise _Changed
        if any(base.key not in family.rows or family.rows[base.key].rev != base.rev for base in graft.bases):
            raise _Changed
        grown = replace(family, rows={**family.rows, **{row.key: row for row in graft.rows}})
        gone = under_roots(self._codec, grown, thread_id, discard)
        change = removal(self._codec, grown, gone)
        changed = {row.key for row in change.rows}
        return replace(
            change, rows=[*(r for r in graft.rows if r.key not in changed), *change.rows], renews=True
        )

    def _moved(
        self, row: CheckpointRow, key: CheckpointKey, renamed: Mapping[str, str], ts: str, **more: Any
    ) -> CheckpointRow:
        metadata = self._metadata_for(key.thread_id, row)
        if parents := metadata.get("parents"):
            metadata["parents"] = {ns: renamed.get(parent, parent) for ns, parent in parents.items()}
        metadata.update(more)
        # Which nodes run next is to be found out from all channels.
        return self._codec.alias(key, row, row.parent_id, metadata, ts, {"updated_channels": None})

    def _empty(self, key: CheckpointKey, root_id: str, ts: str) -> CheckpointRow:
        checkpoint = {
            "v": 4,
            "ts": ts,
            "id": key.checkpoint_id,
            "channel_values": {},
            "channel_versions": {},
            "versions_seen": {},
            "updated_channels": None,
        }
        metadata = {"source": "input", "step": -2, "parents": {"": root_id}}
        dump = self._codec.dump(checkpoint, metadata, {}, None, key.thread_id)
        return self._codec.encode(key, None, dump, None).row

    async def _head(self, thread_id: str, namespace: str) -> str | None:
        page = await self._store.get(thread_id, namespace, None, all_known)
        return page.entries[0].row.key.checkpoint_id if page.entries else None

    # --- reading -----------------------------------------------------------------------------------

    async def entry(self, key: CheckpointKey) -> Entry:
        """Return a live checkpoint's row and writes, without what reading its values takes.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        page = await self.page(key)
        if not page.entries or page.entries[0].row.kind != Kind.LIVE:
            raise CheckpointNotFoundError(
                f"there is no checkpoint {key.checkpoint_id!r} in thread {key.thread_id!r}; "
                "list_checkpoints(thread_id) names those that there are"
            )
        return page.entries[0]

    async def page(self, key: CheckpointKey) -> Page:
        """Return a checkpoint, or an anchor, without what reading its values takes."""
        return await self._core.page(key, all_known)

    def step(self, row: CheckpointRow) -> int | None:
        """Return LangGraph's number of a checkpoint."""
        step = self._codec.unpack_metadata(row.metadata, row.key).get("step")
        return step if isinstance(step, int) else None

    async def _line(self, thread_id: str, namespace: str) -> AsyncIterator[tuple[Entry, dict[str, Any]]]:
        """Yield a namespace's checkpoints, newest first, with their metadata."""
        query: Query | None = Query(thread_id, namespace)
        while query is not None:
            page = await self._store.scan(query, PAGE, all_known)
            for entry in page.entries:
                yield entry, self._codec.unpack_metadata(entry.row.metadata, entry.row.key)
            last = page.entries[-1].row.key if len(page.entries) == PAGE else None
            query = Query(thread_id, namespace, after=last) if last else None

    async def _graft(self, graft: Graft) -> None:
        if await self._store.graft(graft) != PutResult.STORED:
            raise _Changed


class _Lineage:
    """Tells which checkpoints are ancestors of one, looking no further back than it must."""

    def __init__(self, travel: Travel, row: CheckpointRow) -> None:
        self._travel = travel
        self._next = row
        self._line = [row]
        self._seen = {row.key.checkpoint_id}

    async def has(self, checkpoint_id: str) -> bool:
        while checkpoint_id < self._line[-1].key.checkpoint_id and await self._goes_back():
            pass
        if checkpoint_id in self._seen:
            return True
        first = self._line[0].key.checkpoint_id
        if checkpoint_id > first or await self._found(checkpoint_id):
            return False
        # What has been deleted was on the line, unless none is missing there: mostly, what had been made
        # elsewhere has gone with it.
        return self._lacks_one(checkpoint_id)

    async def _goes_back(self) -> bool:
        """Go to the parent, be it an anchor; tell whether there is one."""
        parent_id = self._next.parent_id
        parent = await self._found(parent_id) if parent_id and parent_id not in self._seen else None
        if parent is None:
            return False
        self._next = parent
        self._seen.add(parent.key.checkpoint_id)
        if parent.kind == Kind.LIVE:
            self._line.append(parent)
        return True

    async def _found(self, checkpoint_id: str) -> CheckpointRow | None:
        page = await self._travel.page(self._next.key._replace(checkpoint_id=checkpoint_id))
        return page.entries[0].row if page.entries else None

    def _lacks_one(self, checkpoint_id: str) -> bool:
        """Tell whether one that is gone may have been where it would be by its id."""
        for child, parent in pairwise(self._line):
            if parent.key.checkpoint_id < checkpoint_id < child.key.checkpoint_id:
                before, after = self._travel.step(parent), self._travel.step(child)
                return before is None or after is None or after != before + 1
        return True


def _root(metadata: Mapping[str, Any]) -> str | None:
    """Return the id of the root checkpoint that a subgraph's was made under."""
    return (metadata.get("parents") or {}).get("")


def _above(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the checkpoints of the subgraphs that a subgraph's was made within, by namespace."""
    return {ns: parent for ns, parent in (metadata.get("parents") or {}).items() if ns}


def _waits(entry: Entry) -> bool:
    """Tell whether tasks of a checkpoint were interrupted or failed."""
    return any(write.call in UNFINISHED for write in entry.writes)


def following(checkpoint_id: str) -> str:
    """Return an id greater than one that may be of a clock ahead of ours, or no UUID at all."""
    now = str(uuid6())
    if now > checkpoint_id:
        return now
    try:
        after = str(UUID(int=UUID(checkpoint_id).int + 1))
    except ValueError:
        after = ""
    return after if after > checkpoint_id else checkpoint_id + "~"


def now_text(seconds: float | None = None) -> str:
    """Return a time, now by default, as LangGraph writes it."""
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat()


def _bases(entries: Sequence[Entry]) -> list[Base]:
    return [Base(entry.row.key, entry.row.rev) for entry in entries]
