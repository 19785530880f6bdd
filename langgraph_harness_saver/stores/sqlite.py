"""Checkpoints in an SQLite file, or in a private database in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from langgraph_harness_saver.ids import id_key, id_of_key
from langgraph_harness_saver.rows import (
    Base,
    Change,
    CheckpointKey,
    CheckpointRow,
    Entry,
    Family,
    Kind,
    Page,
    PartRow,
    PutResult,
    Query,
    Span,
    WriteRow,
    merge_spans,
)
from langgraph_harness_saver.stores.base import ANY_HEAD, Known, Plan, Store, Unconditional
from langgraph_harness_saver.stores.packing import decode, encode
from langgraph_harness_saver.stores.sqlite_file import SQL, SQLiteFile
from langgraph_harness_saver.stores.sqlite_rows import (
    STUB,
    Parts,
    add_parts,
    add_writes,
    check_head,
    drop_writes,
    find,
    key_of,
    place_or_stub,
    row_of,
    set_row,
    set_writes,
    writes_of,
)

SWEEP_BATCH = 100


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
    ) -> PutResult:
        return await self._file.write(lambda connection: self._put(connection, row, parts, base, head))

    def _put(
        self,
        connection: sqlite3.Connection,
        row: CheckpointRow,
        parts: Sequence[PartRow],
        base: Base | None,
        head: str | Unconditional | None,
    ) -> PutResult:
        thread = self._thread(connection, row.key.thread_id)
        place = find(connection, thread, row.key)
        if place is None or place[1:] != (row.kind, row.rev):
            if not isinstance(head, Unconditional):
                check_head(connection, thread, row.key, head)
            if base is not None and not self._stands(connection, base):
                return PutResult.BASE_GONE
            if place is not None and place[1] != STUB:
                return PutResult.OCCUPIED
        thread = self._enter(connection, row.key.thread_id, thread)
        set_row(connection, thread, row, place)
        add_parts(connection, thread, parts)
        return PutResult.STORED

    def _stands(self, connection: sqlite3.Connection, base: Base) -> bool:
        place = find(connection, self._thread(connection, base.key.thread_id), base.key)
        return place is not None and place[2] == base.rev

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> None:
        await self._file.write(lambda connection: self._put_writes(connection, key, writes, parts))

    def _put_writes(
        self,
        connection: sqlite3.Connection,
        key: CheckpointKey,
        writes: Sequence[WriteRow],
        parts: Sequence[PartRow],
    ) -> None:
        thread = self._enter(connection, key.thread_id, self._thread(connection, key.thread_id))
        add_writes(connection, place_or_stub(connection, thread, key), writes)
        add_parts(connection, thread, parts)

    async def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        known: Known,
        guess: Base | None = None,
    ) -> Page:
        def work(connection: sqlite3.Connection) -> Page:
            thread = self._thread(connection, thread_id)
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
            for part in wanted:
                found = parts.get(part) or connection.execute(SQL["part"], (thread, part)).fetchone()
                if found:
                    parts[part] = found if isinstance(found, bytes) else found[0]
        return Page(entries, self._support(connection, spans), parts)

    def _support(self, connection: sqlite3.Connection, spans: set[Span]) -> dict[CheckpointKey, bytes]:
        support = {}
        for span in merge_spans(spans):
            thread = self._thread(connection, span.thread_id)
            line = (thread, encode(span.checkpoint_ns))
            limits = (id_key(span.first), id_key(span.last))
            for key, body in connection.execute(SQL["bodies"], (*line, *limits)):
                support[CheckpointKey(*span[:2], id_of_key(key))] = body
        return support

    async def load(self, thread_id: str) -> Family:
        def work(connection: sqlite3.Connection) -> Family:
            family = self._family(connection, thread_id)
            return Family(family.rows, family.writes, dict(family.parts))

        return await self._file.read(work)

    async def revise(self, thread_id: str, plan: Plan) -> None:
        def work(connection: sqlite3.Connection) -> None:
            change = plan(self._family(connection, thread_id))
            thread = self._thread(connection, thread_id)
            if thread is None and not change.rows and not change.writes:
                return
            if thread is None or change.renews:
                thread = self._enter(connection, thread_id, thread)
            self._apply(connection, thread, change)

        await self._file.write(work)

    def _apply(self, connection: sqlite3.Connection, thread: int, change: Change) -> None:
        for key in change.deletes:
            place = find(connection, thread, key)
            if place is not None:
                drop_writes(connection, place[0])
                connection.execute(SQL["drop_checkpoint"], place[:1])
        for row in change.rows:
            set_row(connection, thread, row, find(connection, thread, row.key))
        for key, writes in change.writes.items():
            set_writes(connection, thread, key, writes)
        add_parts(connection, thread, change.parts)
        connection.executemany(SQL["drop_part"], [(thread, part_id) for part_id in change.drop_parts])
        if connection.execute(SQL["is_empty"], (thread,)).fetchone()[0]:
            self._drop(connection, thread)
        if change.deletes or change.drop_parts:
            self._file.vacuum()

    async def delete_thread(self, thread_id: str) -> int:
        def work(connection: sqlite3.Connection) -> int:
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

    async def sweep(self) -> int:
        def work(connection: sqlite3.Connection) -> int:
            expired = connection.execute(SQL["expired"], (self.clock(), SWEEP_BATCH)).fetchall()
            for (thread,) in expired:
                self._drop(connection, thread)
            return len(expired)

        swept = 0
        while batch := await self._file.write(work):
            swept += batch
        return swept

    # --- threads -----------------------------------------------------------------------------------

    def _thread(self, connection: sqlite3.Connection, thread_id: str) -> int | None:
        found = connection.execute(SQL["thread"], (encode(thread_id),)).fetchone()
        if found is None or (found[1] is not None and found[1] <= self.clock()):
            return None
        return int(found[0])

    def _enter(self, connection: sqlite3.Connection, thread_id: str, thread: int | None) -> int:
        """Return the number of a thread that is written to, which renews it."""
        expires_at = None if self.ttl_seconds is None else self.clock() + self.ttl_seconds
        if thread is None:
            left = connection.execute(SQL["thread"], (encode(thread_id),)).fetchone()
            if left is not None:
                self._drop(connection, left[0])
            return connection.execute(SQL["add_thread"], (encode(thread_id), expires_at)).lastrowid or 0
        if expires_at is not None:
            connection.execute(SQL["renew_thread"], (expires_at, thread))
        return thread

    def _drop(self, connection: sqlite3.Connection, thread: int) -> None:
        for (number,) in connection.execute(SQL["thread_checkpoints"], (thread,)).fetchall():
            drop_writes(connection, number)
        for name in ("drop_thread_checkpoints", "drop_thread_parts", "drop_thread"):
            connection.execute(SQL[name], (thread,))
        self._file.vacuum()

    def _family(self, connection: sqlite3.Connection, thread_id: str) -> Family:
        thread = self._thread(connection, thread_id)
        rows: dict[CheckpointKey, CheckpointRow] = {}
        writes: dict[CheckpointKey, Sequence[WriteRow]] = {}
        for (number,) in connection.execute(SQL["thread_checkpoints"], (thread,)).fetchall():
            found = connection.execute(SQL["checkpoint"], (number,)).fetchone()
            key = key_of(found)
            if found[3] != STUB:
                rows[key] = row_of(found)[0]
            if stored := writes_of(connection, number):
                writes[key] = stored
        return Family(rows, writes, Parts(connection, thread))
