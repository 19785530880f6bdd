"""Checkpoints in this process's memory, as bytes."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from langgraph_harness_saver.errors import HeadMovedError, StoreNotOpenError
from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.rows import (
    Base,
    CheckpointKey,
    CheckpointRow,
    Entry,
    Family,
    Kind,
    Page,
    PartRow,
    PutResult,
    Query,
    WriteRow,
)
from langgraph_harness_saver.stores.base import ANY_HEAD, Known, Plan, Store, Unconditional

_Writes = dict[tuple[str, str, int, bytes], WriteRow]
"""Writes in order of arrival, by what makes two of them the same."""


def _add_writes(rows: _Writes, writes: Sequence[WriteRow]) -> None:
    for write in writes:
        if write.call:
            same = (write.task_id, "", write.call, b"")
            rows.pop(same, None)
        else:
            same = (write.task_id, write.task_path, 0, write.body)
        rows.setdefault(same, write)


@dataclass(slots=True)
class _Line:
    """One namespace: rows by id, all ids in order, live ids in order."""

    rows: dict[str, CheckpointRow] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)

    def set(self, row: CheckpointRow) -> None:
        self.remove(row.key.checkpoint_id)
        self.rows[row.key.checkpoint_id] = row
        insort(self.ids, row.key.checkpoint_id)
        if row.kind == Kind.LIVE:
            insort(self.live, row.key.checkpoint_id)

    def remove(self, checkpoint_id: str) -> None:
        row = self.rows.pop(checkpoint_id, None)
        if row is not None:
            del self.ids[bisect_left(self.ids, checkpoint_id)]
            if row.kind == Kind.LIVE:
                del self.live[bisect_left(self.live, checkpoint_id)]

    def between(self, first: str, last: str) -> Iterator[CheckpointRow]:
        for position in range(bisect_left(self.ids, first), bisect_right(self.ids, last)):
            yield self.rows[self.ids[position]]


@dataclass(slots=True)
class _Thread:
    lines: dict[str, _Line] = field(default_factory=dict)
    writes: dict[tuple[str, str], _Writes] = field(default_factory=dict)
    parts: dict[bytes, bytes] = field(default_factory=dict)
    expires_at: float | None = None

    def rows(self) -> Iterator[CheckpointRow]:
        for line in self.lines.values():
            yield from line.rows.values()

    def row(self, key: CheckpointKey) -> CheckpointRow | None:
        line = self.lines.get(key.checkpoint_ns)
        return line.rows.get(key.checkpoint_id) if line else None

    def set(self, row: CheckpointRow) -> None:
        line = self.lines.get(row.key.checkpoint_ns)
        if line is None:
            line = self.lines[row.key.checkpoint_ns] = _Line()
        line.set(row)

    def head(self, checkpoint_ns: str) -> str | None:
        line = self.lines.get(checkpoint_ns)
        return line.live[-1] if line and line.live else None

    @property
    def live(self) -> int:
        return sum(len(line.live) for line in self.lines.values())


class MemoryStore(Store, Forkable):
    """Keeps everything in dictionaries, under one lock that is never held while waiting."""

    io: ClassVar[Literal["none", "blocking", "async"]] = "none"
    bare: ClassVar[bool] = True

    def __init__(self, *, ttl_seconds: float | None = None) -> None:
        self.ttl_seconds = ttl_seconds
        self._threads: dict[str, _Thread] = {}
        self._lock = threading.RLock()
        self._closed = False
        renew_after_fork(self)

    def before_fork(self) -> None:
        """Let no other thread be half-way through a change."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork(self) -> None:
        """Go on, with a lock that no thread of the parent waits for."""
        self._lock = threading.RLock()

    async def open(self) -> None:
        if self._closed:
            raise StoreNotOpenError("the memory store is closed and its contents are gone; make a new one")

    async def close(self) -> None:
        self._closed = True
        self._threads.clear()

    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
    ) -> PutResult:
        with self._lock:
            thread = self._thread(row.key.thread_id) or _Thread()
            stored = thread.row(row.key)
            if stored is None or stored.kind != row.kind or stored.rev != row.rev:
                refused = self._refusal(thread, row, base, head)
                if refused is not None:
                    return refused
                thread.set(row)
                thread.parts.update((part.part_id, part.data) for part in parts)
            self._touch(row.key.thread_id, thread)
            return PutResult.STORED

    def _refusal(
        self, thread: _Thread, row: CheckpointRow, base: Base | None, head: str | Unconditional | None
    ) -> PutResult | None:
        if not isinstance(head, Unconditional) and thread.head(row.key.checkpoint_ns) != head:
            raise HeadMovedError(head, thread.head(row.key.checkpoint_ns))
        if base is not None:
            there = self._row(base.key)
            if there is None or there.rev != base.rev:
                return PutResult.BASE_GONE
        return None if thread.row(row.key) is None else PutResult.OCCUPIED

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> None:
        with self._lock:
            thread = self._thread(key.thread_id) or _Thread()
            _add_writes(thread.writes.setdefault(key[1:], {}), writes)
            thread.parts.update((part.part_id, part.data) for part in parts)
            self._touch(key.thread_id, thread)

    async def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        known: Known,
        guess: Base | None = None,
    ) -> Page:
        with self._lock:
            thread = self._thread(thread_id)
            found = thread.head(checkpoint_ns) if thread and checkpoint_id is None else checkpoint_id
            row = (
                thread.row(CheckpointKey(thread_id, checkpoint_ns, found))
                if thread and found is not None
                else None
            )
            if row is None or row.kind == Kind.HIDDEN:
                return Page()
            return self._page([row], known)

    async def scan(self, query: Query, size: int, known: Known) -> Page:
        with self._lock:
            found: list[CheckpointRow] = []
            for row in self._matching(query):
                if len(found) == size:
                    break
                if query.matches is None or query.matches(row.metadata):
                    found.append(row)
            return self._page(found, known)

    async def load(self, thread_id: str) -> Family:
        with self._lock:
            return self._family(thread_id)

    async def revise(self, thread_id: str, plan: Plan) -> None:
        with self._lock:
            change = plan(self._family(thread_id))
            thread = self._thread(thread_id) or _Thread()
            for key in change.deletes:
                if key.checkpoint_ns in thread.lines:
                    thread.lines[key.checkpoint_ns].remove(key.checkpoint_id)
                thread.writes.pop(key[1:], None)
            for row in change.rows:
                thread.set(row)
            for key, writes in change.writes.items():
                thread.writes.pop(key[1:], None)
                if writes:
                    _add_writes(thread.writes.setdefault(key[1:], {}), writes)
            thread.parts.update((part.part_id, part.data) for part in change.parts)
            for part_id in change.drop_parts:
                thread.parts.pop(part_id, None)
            thread.lines = {ns: line for ns, line in thread.lines.items() if line.rows}
            if thread.lines or thread.writes:
                self._keep(thread_id, thread, renews=change.renews)
            else:
                self._threads.pop(thread_id, None)

    async def delete_thread(self, thread_id: str) -> int:
        with self._lock:
            thread = self._thread(thread_id)
            self._threads.pop(thread_id, None)
            return thread.live if thread else 0

    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        runs = set(run_ids)
        with self._lock:
            return [
                thread_id
                for thread_id in list(self._threads)
                if (thread := self._thread(thread_id))
                and any(row.run_id in runs for row in thread.rows() if row.kind == Kind.LIVE)
            ]

    async def sweep(self) -> int:
        with self._lock:
            expired = [thread_id for thread_id in self._threads if self._thread(thread_id) is None]
            for thread_id in expired:
                del self._threads[thread_id]
            return len(expired)

    def _thread(self, thread_id: str) -> _Thread | None:
        thread = self._threads.get(thread_id)
        if thread and thread.expires_at is not None and thread.expires_at <= self.clock():
            return None
        return thread

    def _touch(self, thread_id: str, thread: _Thread) -> None:
        if self.ttl_seconds is not None:
            thread.expires_at = self.clock() + self.ttl_seconds
        self._threads[thread_id] = thread

    def _keep(self, thread_id: str, thread: _Thread, *, renews: bool) -> None:
        # A thread that a revision made has its life before it; one that it changed keeps its expiry.
        if renews or thread_id not in self._threads or self._thread(thread_id) is None:
            self._touch(thread_id, thread)

    def _row(self, key: CheckpointKey) -> CheckpointRow | None:
        thread = self._thread(key.thread_id)
        return thread.row(key) if thread else None

    def _family(self, thread_id: str) -> Family:
        thread = self._thread(thread_id) or _Thread()
        writes = {
            CheckpointKey(thread_id, *place): tuple(rows.values()) for place, rows in thread.writes.items()
        }
        return Family({row.key: row for row in thread.rows()}, writes, dict(thread.parts))

    def _matching(self, query: Query) -> Iterable[CheckpointRow]:
        if query.thread_id is not None and query.checkpoint_ns is not None:
            thread = self._thread(query.thread_id)
            line = thread.lines.get(query.checkpoint_ns) if thread else None
            if line is not None:
                yield from self._newest_first(line, query)
            return
        threads = [query.thread_id] if query.thread_id is not None else list(self._threads)
        rows = [
            row
            for thread_id in threads
            if (thread := self._thread(thread_id))
            for ns, line in thread.lines.items()
            if query.checkpoint_ns in (None, ns)
            for row in self._newest_first(line, query)
        ]
        rows.sort(key=lambda row: row.key[:2])
        rows.sort(key=lambda row: row.key.checkpoint_id, reverse=True)
        yield from rows

    @staticmethod
    def _newest_first(line: _Line, query: Query) -> Iterator[CheckpointRow]:
        end = len(line.live)
        if query.before is not None:
            end = bisect_left(line.live, query.before)
        if query.after is not None:
            end = min(end, bisect_right(line.live, query.after.checkpoint_id))
        for position in range(end - 1, -1, -1):
            row = line.rows[line.live[position]]
            if query.checkpoint_id is not None and row.key.checkpoint_id != query.checkpoint_id:
                continue
            if (
                query.after is not None
                and row.key.checkpoint_id == query.after.checkpoint_id
                and row.key <= query.after
            ):
                continue
            yield row

    def _page(self, rows: Sequence[CheckpointRow], known: Known) -> Page:
        support: dict[CheckpointKey, bytes] = {}
        parts: dict[bytes, bytes] = {}
        entries = []
        for row in rows:
            thread = self._threads[row.key.thread_id]
            writes = tuple(thread.writes.get(row.key[1:], {}).values())
            entries.append(Entry(row, writes))
            wanted = [part for write in writes for part in write.parts]
            if not known(row.key, row.rev):
                wanted += row.parts
                for span in row.reach:
                    line = self._threads[span.thread_id].lines.get(span.checkpoint_ns)
                    for other in line.between(span.first, span.last) if line else ():
                        support[other.key] = other.body
            parts.update((part, thread.parts[part]) for part in wanted if part in thread.parts)
        return Page(entries, support, parts)
