"""Checkpoints in an SQLite file, or in a private database in memory."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, cast

from langgraph_harness_saver.errors import BranchExistsError, EntangledError
from langgraph_harness_saver.ids import id_key, id_of_key
from langgraph_harness_saver.rows import (
    Base,
    Branch,
    Change,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Family,
    Graft,
    Keep,
    Kind,
    Needed,
    Node,
    Outline,
    Page,
    PartRow,
    PutResult,
    Query,
    Span,
    Standing,
    Tag,
    WriteRow,
    Writes,
    leans_on,
    merge_spans,
)
from langgraph_harness_saver.stores.base import ANY_HEAD, Choice, Known, Plan, Store, Unconditional, door
from langgraph_harness_saver.stores.packing import decode, encode
from langgraph_harness_saver.stores.sqlite_file import SQL, SQLiteFile
from langgraph_harness_saver.stores.sqlite_rows import (
    STUB,
    Parts,
    Place,
    add_branch,
    add_events,
    add_parts,
    add_writes,
    branches_of,
    check_head,
    drop_writes,
    entries_of,
    events_of,
    find,
    has_parts,
    key_of,
    leave,
    line_of,
    nodes_of,
    place_or_stub,
    put_write,
    row_of,
    set_row,
    set_writes,
    stamp_of,
    tags_of,
    writes_of,
)

SWEEP_BATCH = 20
SWEEP_PAUSE = 0.01
"""Seconds between two batches of a sweep."""
SWEEP_VACUUM = 32
"""After so many batches free pages are given back, which takes as long as some batches."""


class SQLiteStore(Store):
    """Keeps rows in one file, which several processes may use at once.

    With `synchronous="full"` what is acknowledged survives a power failure; with "normal" a power
    failure, but no killed process, may cost the last commits.
    """

    io: ClassVar[Literal["none", "blocking", "async"]] = "blocking"

    def __init__(
        self,
        path: str | None,
        *,
        ttl_seconds: float | None = None,
        busy_timeout_seconds: float = 30.0,
        synchronous: Literal["full", "normal"] = "full",
        readers: int = 4,
    ) -> None:
        """Use the file at `path`; without one, a private database in memory."""
        self.ttl_seconds = ttl_seconds
        self._file = SQLiteFile(path, busy_timeout_seconds, synchronous, readers)
        self.path = self._file.path

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
        keep: Keep | None = None,
    ) -> PutResult:
        def work(connection: sqlite3.Connection) -> PutResult:
            result = self._put(connection, row, parts, base, head)
            if result == PutResult.STORED and keep is not None and self._keep(connection, row.key, keep):
                return PutResult.KEPT
            return result

        return await self._file.write(work)

    def _keep(self, connection: sqlite3.Connection, key: CheckpointKey, keep: Keep) -> bool:
        """Let go what goes with a put; tell whether nothing is left to be done."""
        thread = cast("int", self._thread(connection, key.thread_id))
        there, *_ = connection.execute(SQL["line_facts"], (None, thread)).fetchone()
        for leaving in keep.leaving:
            if keep.most is not None and there <= keep.most:
                return True
            if branches_of(connection, key.thread_id) or not leave(connection, thread, leaving):
                return False
            there -= 1
        return keep.most is None or there <= keep.most

    def _put(
        self,
        connection: sqlite3.Connection,
        row: CheckpointRow,
        parts: Sequence[PartRow],
        base: Base | None,
        head: str | Unconditional | None,
    ) -> PutResult:
        thread, place, base_rev = self._places(connection, row.key, base)
        if place is None or place[1:] != (row.kind, row.rev):
            if not isinstance(head, Unconditional):
                check_head(connection, thread, row.key, head)
            if base is not None and base_rev != base.rev and not self._may_lean(connection, row, base):
                return PutResult.BASE_GONE
            if place is not None and place[1] != STUB:
                return PutResult.OCCUPIED
        thread = self._enter(connection, row.key.thread_id, thread)
        set_row(connection, thread, row, place)
        add_parts(connection, thread, parts)
        return PutResult.STORED

    def _places(
        self, connection: sqlite3.Connection, key: CheckpointKey, base: Base | None
    ) -> tuple[int | None, Place | None, int | None]:
        """Return a put's thread, what stands under its key, and its base's rev, as far as these are there."""
        thread_id, checkpoint_ns, checkpoint_id = key
        below: tuple[bytes | None, bytes | None] = (None, None)
        if base is not None and base.key.thread_id == thread_id:
            below = (encode(base.key.checkpoint_ns), id_key(base.key.checkpoint_id))
        values = (encode(thread_id), encode(checkpoint_ns), id_key(checkpoint_id), *below)
        found = connection.execute(SQL["put_places"], values).fetchone()
        if found is None or (found[1] is not None and found[1] <= self.clock()):
            return None, None, None
        thread, _, number, kind, rev, base_rev = found
        return thread, None if number is None else (number, kind, rev), base_rev

    def _may_lean(self, connection: sqlite3.Connection, row: CheckpointRow, base: Base) -> bool:
        return base.key.thread_id != row.key.thread_id and (
            self._stands(connection, base) and self._are_related(connection, base.key, row.key)
        )

    def _stands(self, connection: sqlite3.Connection, base: Base) -> bool:
        place = find(connection, self._thread(connection, base.key.thread_id), base.key)
        return place is not None and place[2] == base.rev

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> PutResult:
        return await self._file.write(lambda connection: self._put_writes(connection, key, writes, parts))

    def _put_writes(
        self,
        connection: sqlite3.Connection,
        key: CheckpointKey,
        writes: Sequence[WriteRow],
        parts: Sequence[PartRow],
    ) -> PutResult:
        if self.ttl_seconds is None and put_write(connection, key, writes, self.clock()):
            return PutResult.STORED
        there = self._thread(connection, key.thread_id)
        if not has_parts(connection, there, leans_on(writes, parts)):
            return PutResult.BASE_GONE
        thread = self._enter(connection, key.thread_id, there)
        add_writes(connection, place_or_stub(connection, thread, key), writes)
        add_parts(connection, thread, parts)
        return PutResult.STORED

    async def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        known: Known,
        guess: Base | None = None,
        *,
        expired: bool = False,
    ) -> Page:
        def work(connection: sqlite3.Connection) -> Page:
            thread = self._thread(connection, thread_id, expired=expired)
            if thread is None:
                return Page()
            if checkpoint_id is None:
                found = connection.execute(SQL["head"], (thread, encode(checkpoint_ns))).fetchone()
            else:
                found = find(connection, thread, CheckpointKey(thread_id, checkpoint_ns, checkpoint_id))
                found = found if found and found[1] in (Kind.LIVE, Kind.ANCHOR) else None
            return self._page(connection, [found[0]] if found else [], known)

        return await self._file.read(work)

    async def scan(self, query: Query, size: int, known: Known) -> Page:
        def work(connection: sqlite3.Connection) -> Page:
            ids = []
            for number, metadata in self._matching(connection, query, size):
                if query.matches is None or query.matches(metadata):
                    ids.append(number)
                    if len(ids) == size:
                        break
            return self._page(connection, ids, known)

        return await self._file.read(work)

    def _matching(
        self, connection: sqlite3.Connection, query: Query, size: int
    ) -> Iterator[tuple[int, bytes]]:
        thread = None
        if query.thread_id is not None:
            thread = self._thread(connection, query.thread_id)
            if thread is None:
                return iter(())
        name = "scan_all" if thread is None else "scan_thread" if query.checkpoint_ns is None else "scan_line"
        after = query.after
        values = {
            "thread": thread,
            "ns": None if query.checkpoint_ns is None else encode(query.checkpoint_ns),
            "id": None if query.checkpoint_id is None else id_key(query.checkpoint_id),
            "before": None if query.before is None else id_key(query.before),
            "after": after and id_key(after.checkpoint_id),
            "after_ns": after and encode(after.checkpoint_ns),
            "after_thread": after and encode(after.thread_id),
            "now": self.clock(),
            "limit": size if query.matches is None else -1,
        }
        return connection.execute(SQL[name], values)

    def _page(self, connection: sqlite3.Connection, ids: Sequence[int], known: Known) -> Page:
        entries = []
        spans: set[Span] = set()
        parts: dict[bytes, bytes] = {}
        for number in ids:
            row, thread = row_of(connection.execute(SQL["checkpoint"], (number,)).fetchone())
            writes = writes_of(connection, number)
            wanted = [part for write in writes for part in write.parts]
            if not known(row.key, row.rev):
                spans.update(row.reach)
                wanted += row.parts
            entries.append(Entry(row, writes))
            parts.update(self._parts(connection, thread, [part for part in wanted if part not in parts]))
        return Page(entries, self._support(connection, spans), parts)

    @staticmethod
    def _parts(
        connection: sqlite3.Connection, thread: int | None, wanted: Sequence[bytes]
    ) -> dict[bytes, bytes]:
        found = {part: connection.execute(SQL["part"], (thread, part)).fetchone() for part in wanted}
        return {part: row[0] for part, row in found.items() if row}

    def _support(self, connection: sqlite3.Connection, spans: set[Span]) -> dict[CheckpointKey, bytes]:
        support = {}
        for span in merge_spans(spans):
            # A thread that has expired holds what its branches need.
            thread = self._thread(connection, span.thread_id, expired=True)
            line = (thread, encode(span.checkpoint_ns))
            limits = (id_key(span.first), id_key(span.last))
            for key, body in connection.execute(SQL["bodies"], (*line, *limits)):
                support[CheckpointKey(*span[:2], id_of_key(key))] = body
        return support

    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        def work(connection: sqlite3.Connection) -> Writes:
            rows: dict[CheckpointKey, Sequence[WriteRow]] = {}
            parts: dict[bytes, bytes] = {}
            for key in keys:
                thread = self._thread(connection, key.thread_id)
                place = find(connection, thread, key)
                written = writes_of(connection, place[0]) if place else ()
                if written:
                    rows[key] = written
                    named = [part for write in written for part in write.parts]
                    parts.update(self._parts(connection, thread, named))
            return Writes(rows, parts)

        return await self._file.read(work)

    async def load(self, thread_id: str) -> Family:
        def work(connection: sqlite3.Connection) -> Family:
            family = self._family(connection, thread_id)
            return replace(family, parts=dict(family.parts))

        return await self._file.read(work)

    async def first(self, thread_id: str, size: int) -> Sequence[Standing]:
        def work(connection: sqlite3.Connection) -> Sequence[Standing]:
            thread = self._thread(connection, thread_id)
            found = connection.execute(SQL["first_roots"], (thread, size)).fetchall()
            rows = [(row_of(one)[0], one[11]) for one in found]
            return [Standing(row, writes_of(connection, n), stamp_of(connection, n)) for row, n in rows]

        return await self._file.read(work)

    async def outline(self, thread_id: str, newest: int | None = None) -> Outline:
        return await self._file.read(lambda connection: self._outline(connection, thread_id, newest))

    def _outline(self, connection: sqlite3.Connection, thread_id: str, newest: int | None) -> Outline:
        records = branches_of(connection, thread_id)
        threads = self._members(connection, thread_id, records)
        last = None
        if newest is not None:
            found = connection.execute(SQL["nth_root"], (threads[thread_id], newest - 1)).fetchall()
            if len(found) < 2:
                return Outline()
            last = found[0][0]
        nodes: list[Node] = []
        tagged: list[CheckpointKey] = []
        for name, thread in threads.items():
            nodes += nodes_of(connection, name, thread, last)
            tagged += [tag.key for tag in tags_of(connection, name, thread)]
        named = {branch.thread_id: branch for branch in records}
        return Outline(nodes, frozenset(tagged), named, None if last is None else id_of_key(last))

    async def revise(
        self,
        thread_id: str,
        plan: Plan,
        *,
        expired: bool = False,
        choose: Choice | None = None,
        newest: int | None = None,
    ) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            there = self._thread(connection, thread_id, expired=True)
            if expired and (there is None or self._thread(connection, thread_id) is not None):
                return False
            needed = choose(self._outline(connection, thread_id, newest)) if choose else None
            if needed is not None and not needed.keys:
                return False
            change = plan(self._family(connection, thread_id, needed))
            if change == Change():
                return False
            threads = self._members(connection, thread_id)
            if threads[thread_id] is None and not (change.rows or change.writes or change.deletes):
                return False
            if threads[thread_id] is None or change.renews:
                threads[thread_id] = self._enter(connection, thread_id, threads[thread_id])
            self._apply(connection, thread_id, threads, change)
            return True

        return await self._file.write(work)

    def _apply(
        self, connection: sqlite3.Connection, thread_id: str, threads: dict[str, int | None], change: Change
    ) -> None:
        thread = cast("int", threads[thread_id])
        for key in change.deletes:
            place = find(connection, threads[key.thread_id], key)
            if place is not None:
                drop_writes(connection, place[0])
                connection.execute(SQL["drop_checkpoint"], place[:1])
        for row in change.rows:
            number = cast("int", threads[row.key.thread_id])
            set_row(connection, number, row, find(connection, number, row.key))
        for key, writes in change.writes.items():
            set_writes(connection, cast("int", threads[key.thread_id]), key, writes)
        add_parts(connection, thread, change.parts)
        connection.executemany(SQL["drop_part"], [(thread, part_id) for part_id in change.drop_parts])
        for name in change.drops:
            self._end(connection, threads[name])
        add_events(connection, thread, change.events)
        for name, branch in change.branches.items():
            connection.execute(SQL["drop_branch"], (encode(name),))
            if branch is not None:
                add_branch(connection, branch)
        self._tidy(connection, threads)
        if change.deletes or change.drop_parts:
            self._file.vacuum()

    @staticmethod
    def _end(connection: sqlite3.Connection, thread: int | None) -> None:
        connection.execute(SQL["no_expiry"], (thread,))
        connection.execute(SQL["drop_events"], (thread,))
        for place in connection.execute(SQL["early_writes"], (thread,)).fetchall():
            drop_writes(connection, place[0])
            connection.execute(SQL["drop_checkpoint"], place)

    def _tidy(self, connection: sqlite3.Connection, threads: dict[str, int | None]) -> None:
        """Drop the threads of a family that nothing is left of; the one that holds its parts last."""
        for name, thread in reversed(threads.items()):
            connection.execute(SQL["drop_tags"], (thread,))
            empty = connection.execute(SQL["is_empty"], (thread,)).fetchone()[0]
            if thread is not None and empty and not self._holds_parts(connection, name):
                self._drop(connection, thread)

    @staticmethod
    def _holds_parts(connection: sqlite3.Connection, thread_id: str) -> bool:
        return any(branch.family == thread_id for branch in branches_of(connection, thread_id))

    async def graft(self, graft: Graft) -> PutResult:
        return await self._file.write(lambda connection: self._graft(connection, graft))

    def _graft(self, connection: sqlite3.Connection, graft: Graft) -> PutResult:
        if all(self._stands(connection, Base(row.key, row.rev)) for row in graft.rows):
            return PutResult.STORED
        for (thread_id, checkpoint_ns), expected in graft.heads.items():
            thread = self._thread(connection, thread_id)
            check_head(connection, thread, CheckpointKey(thread_id, checkpoint_ns, ""), expected)
        if not all(self._stands(connection, base) for base in graft.bases):
            return PutResult.BASE_GONE
        if graft.branch is not None:
            self._begin(connection, graft.branch)
        for row in graft.rows:
            thread = self._enter(connection, row.key.thread_id, self._thread(connection, row.key.thread_id))
            set_row(connection, thread, row, find(connection, thread, row.key))
            add_parts(connection, thread, graft.parts)
        for key, writes in graft.writes.items():
            thread = cast("int", self._thread(connection, key.thread_id))
            add_writes(connection, place_or_stub(connection, thread, key), writes)
        return PutResult.STORED

    def _begin(self, connection: sqlite3.Connection, branch: Branch) -> None:
        if self._thread(connection, branch.thread_id, expired=True) is not None:
            raise BranchExistsError(f"there is a thread {branch.thread_id!r} already")
        taken = connection.execute(
            SQL["branch_named"], (encode(branch.source), encode(branch.name))
        ).fetchone()
        if taken is not None:
            raise BranchExistsError(
                f"thread {branch.source!r} has a branch {branch.name!r} already, thread {decode(taken[0])!r}"
            )
        family = self._thread(connection, branch.family, expired=True)
        if family is None:
            family = connection.execute(SQL["add_thread"], (encode(branch.family), None)).lastrowid
        thread = self._enter(connection, branch.thread_id, None)
        connection.execute(SQL["set_family"], (family, thread))
        add_branch(connection, branch)

    async def branches(self, thread_id: str) -> Sequence[Branch]:
        return await self._file.read(lambda connection: branches_of(connection, thread_id))

    async def has_child(self, key: CheckpointKey) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            thread = self._thread(connection, key.thread_id)
            place = (thread, encode(key.checkpoint_ns), id_key(key.checkpoint_id))
            return bool(connection.execute(SQL["has_child"], place).fetchone()[0])

        return await self._file.read(work)

    async def namespaces(self, thread_id: str, since: str | None = None) -> Sequence[str]:
        def work(connection: sqlite3.Connection) -> Sequence[str]:
            values = {
                "thread": self._thread(connection, thread_id),
                "since": None if since is None else id_key(since),
            }
            return [decode(ns) for (ns,) in connection.execute(SQL["namespaces"], values)]

        return await self._file.read(work)

    async def tag(self, tag: Tag) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            thread = self._thread(connection, tag.key.thread_id)
            place = find(connection, thread, tag.key)
            if place is None or place[1] != Kind.LIVE:
                return False
            named = (encode(tag.key.checkpoint_ns), id_key(tag.key.checkpoint_id))
            connection.execute(SQL["tag"], (thread, encode(tag.name), *named))
            return True

        return await self._file.write(work)

    async def untag(self, thread_id: str, name: str) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            place = (self._thread(connection, thread_id), encode(name))
            return connection.execute(SQL["untag"], place).rowcount > 0

        return await self._file.write(work)

    async def tags(self, *thread_ids: str) -> Sequence[Tag]:
        def work(connection: sqlite3.Connection) -> Sequence[Tag]:
            threads = self._threads(connection, thread_ids).items()
            return [tag for name, thread in threads for tag in tags_of(connection, name, thread)]

        return await self._file.read(work)

    async def lines(
        self, thread_ids: Collection[str], size: int | None = None
    ) -> Mapping[str, Sequence[str]]:
        def work(connection: sqlite3.Connection) -> Mapping[str, Sequence[str]]:
            threads = self._threads(connection, thread_ids).items()
            return {name: line_of(connection, thread, size) for name, thread in threads}

        return await self._file.read(work)

    async def newest(self, after: CheckpointKey | None, size: int) -> Sequence[CheckpointKey]:
        def work(connection: sqlite3.Connection) -> Sequence[CheckpointKey]:
            last = (b"\xff", b"") if after is None else (id_key(after.checkpoint_id), encode(after.thread_id))
            found = connection.execute(SQL["newest"], (*last, self.clock(), size))
            return [CheckpointKey(decode(name), "", id_of_key(id_)) for name, id_ in found]

        return await self._file.read(work)

    async def rows(self, keys: Collection[CheckpointKey]) -> Sequence[Entry]:
        def work(connection: sqlite3.Connection) -> Sequence[Entry]:
            lines: dict[tuple[str, str], list[str]] = {}
            for key in keys:
                lines.setdefault(key[:2], []).append(key.checkpoint_id)
            return [
                entry
                for line, ids in lines.items()
                for entry in entries_of(
                    connection, line, self._thread(connection, line[0], expired=True), ids
                )
            ]

        return await self._file.read(work)

    async def eventful(self, thread_ids: Collection[str]) -> Collection[str]:
        def work(connection: sqlite3.Connection) -> Collection[str]:
            threads = self._threads(connection, thread_ids).items()
            return {n for n, thread in threads if connection.execute(SQL["has_events"], (thread,)).fetchone()}

        return await self._file.read(work)

    async def add_events(self, events: Sequence[EventRow]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for thread_id in {event.thread_id: None for event in events}:
                thread = self._enter(connection, thread_id, self._thread(connection, thread_id))
                add_events(connection, thread, [event for event in events if event.thread_id == thread_id])

        await self._file.write(work)

    async def events(
        self,
        thread_id: str,
        checkpoint_ids: Collection[str] | None = None,
        *,
        after: EventRow | None = None,
        size: int = 200,
        bare: bool = False,
        expired: bool = False,
    ) -> Sequence[EventRow]:
        def work(connection: sqlite3.Connection) -> Sequence[EventRow]:
            thread = self._thread(connection, thread_id, expired=expired)
            found = events_of(connection, thread, checkpoint_ids, after, size, bare=bare)
            return [EventRow(thread_id, *event) for event in found]

        return await self._file.read(work)

    async def entangled(self) -> Sequence[str]:
        def work(connection: sqlite3.Connection) -> Sequence[str]:
            return [decode(name) for (name,) in connection.execute(SQL["entangled"], (self.clock(),))]

        return await self._file.read(work)

    async def delete_thread(self, thread_id: str) -> int:
        def work(connection: sqlite3.Connection) -> int:
            self._check_alone(connection, thread_id)
            thread = self._thread(connection, thread_id)
            if thread is None:
                return 0
            live: int = connection.execute(SQL["count_live"], (thread,)).fetchone()[0]
            self._drop(connection, thread)
            return live

        return await self._file.write(work)

    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        def work(connection: sqlite3.Connection) -> Sequence[str]:
            now = self.clock()
            found: dict[str, None] = {}
            for run_id in run_ids:
                rows = connection.execute(SQL["threads_of_run"], (id_key(run_id), now))
                found.update((decode(thread_id), None) for (thread_id,) in rows)
            return list(found)

        return await self._file.read(work)

    async def threads(self, after: str | None, size: int) -> Sequence[str]:
        def work(connection: sqlite3.Connection) -> Sequence[str]:
            values = (b"" if after is None else encode(after), after is None, self.clock(), size)
            return [decode(thread_id) for (thread_id,) in connection.execute(SQL["threads"], values)]

        return await self._file.read(work)

    async def sweep(self) -> int:
        def work(connection: sqlite3.Connection) -> int:
            expired = connection.execute(SQL["expired"], (self.clock(), SWEEP_BATCH)).fetchall()
            for (thread,) in expired:
                self._empty(connection, thread)
            if expired and (len(expired) < SWEEP_BATCH or batches % SWEEP_VACUUM == 0):
                self._file.vacuum()
            return len(expired)

        swept = batches = 0
        while batch := await self._file.write(work):
            swept += batch
            batches += 1
            # Whoever waits for the file looks only from time to time, and would hardly ever find it free.
            if door.sync:
                time.sleep(SWEEP_PAUSE)  # noqa: ASYNC251
            else:
                await asyncio.sleep(SWEEP_PAUSE)
        return swept

    # --- threads -----------------------------------------------------------------------------------

    def _thread(self, connection: sqlite3.Connection, thread_id: str, *, expired: bool = False) -> int | None:
        found = connection.execute(SQL["thread"], (encode(thread_id),)).fetchone()
        if found is None or (not expired and found[1] is not None and found[1] <= self.clock()):
            return None
        return int(found[0])

    def _threads(self, connection: sqlite3.Connection, thread_ids: Collection[str]) -> dict[str, int]:
        """Return the numbers of those threads that are there."""
        found = ((name, self._thread(connection, name)) for name in thread_ids)
        return {name: thread for name, thread in found if thread is not None}

    def _enter(self, connection: sqlite3.Connection, thread_id: str, thread: int | None) -> int:
        """Return the number of a thread that is written to, which renews it."""
        expires_at = None if self.ttl_seconds is None else self.clock() + self.ttl_seconds
        if thread is None:
            left = connection.execute(SQL["thread"], (encode(thread_id),)).fetchone()
            if left is not None:
                self._check_alone(connection, thread_id)
                self._drop(connection, left[0])
            return connection.execute(SQL["add_thread"], (encode(thread_id), expires_at)).lastrowid or 0
        if expires_at is not None:
            connection.execute(SQL["renew_thread"], (expires_at, thread))
        return thread

    @staticmethod
    def _are_related(connection: sqlite3.Connection, one: CheckpointKey, other: CheckpointKey) -> bool:
        if one.thread_id == other.thread_id:
            return True
        records = branches_of(connection, one.thread_id)
        names = {one.thread_id, *(name for record in records for name in (record.thread_id, record.family))}
        return other.thread_id in names

    @staticmethod
    def _check_alone(connection: sqlite3.Connection, thread_id: str) -> None:
        if branches_of(connection, thread_id):
            raise EntangledError(f"thread {thread_id!r} shares bytes with others of its family")

    def _members(
        self, connection: sqlite3.Connection, thread_id: str, records: Sequence[Branch] | None = None
    ) -> dict[str, int | None]:
        """Return a family's threads by id, the one that it is called by first, and also those expired."""
        records = branches_of(connection, thread_id) if records is None else records
        names = [records[0].family, *(branch.thread_id for branch in records)] if records else [thread_id]
        return {name: self._thread(connection, name, expired=bool(records)) for name in names}

    def _drop(self, connection: sqlite3.Connection, thread: int) -> None:
        self._empty(connection, thread)
        self._file.vacuum()

    @staticmethod
    def _empty(connection: sqlite3.Connection, thread: int) -> None:
        for (number,) in connection.execute(SQL["thread_checkpoints"], (thread,)).fetchall():
            drop_writes(connection, number)
        for name in ("drop_thread_checkpoints", "drop_thread_parts", "drop_tags", "drop_thread"):
            connection.execute(SQL[name], (thread,))

    def _family(self, connection: sqlite3.Connection, thread_id: str, needed: Needed | None = None) -> Family:
        """Return a family, or the part of it that a revision is about."""
        threads = self._members(connection, thread_id)
        rows: dict[CheckpointKey, CheckpointRow] = {}
        writes: dict[CheckpointKey, Sequence[WriteRow]] = {}
        for number in self._numbers(connection, threads, needed):
            found = connection.execute(SQL["checkpoint"], (number,)).fetchone()
            key = key_of(found)
            if found[3] != STUB:
                rows[key] = row_of(found)[0]
            if stored := writes_of(connection, number):
                writes[key] = stored
        if needed is not None and needed.readable:
            for span in merge_spans(span for row in rows.values() for span in row.reach):
                limits = (id_key(span.first), id_key(span.last))
                line = (threads.get(span.thread_id), encode(span.checkpoint_ns))
                for (number,) in connection.execute(SQL["numbers_between"], (*line, *limits)).fetchall():
                    row, _ = row_of(connection.execute(SQL["checkpoint"], (number,)).fetchone())
                    rows.setdefault(row.key, row)
        records = {branch.thread_id: branch for branch in branches_of(connection, thread_id)}
        return Family(rows, writes, Parts(connection, next(iter(threads.values()))), records)

    @staticmethod
    def _numbers(
        connection: sqlite3.Connection, threads: Mapping[str, int | None], needed: Needed | None
    ) -> Iterator[int]:
        if needed is not None:
            places = (find(connection, threads.get(key.thread_id), key) for key in needed.keys)
            yield from [place[0] for place in places if place is not None]
            return
        for thread in threads.values():
            for (number,) in connection.execute(SQL["thread_checkpoints"], (thread,)).fetchall():
                yield number
