"""Checkpoints in this process's memory, as bytes."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge, nsmallest
from itertools import islice
from typing import ClassVar, Literal

from langgraph_harness_saver.errors import (
    BranchExistsError,
    EntangledError,
    HeadMovedError,
    StoreNotOpenError,
)
from langgraph_harness_saver.forks import Forkable, renew_after_fork
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
    Leaving,
    Needed,
    Node,
    Outline,
    Page,
    PartRow,
    PutResult,
    Query,
    Standing,
    Tag,
    WriteRow,
    Writes,
    leans_on,
    merge_spans,
)
from langgraph_harness_saver.stores.base import ANY_HEAD, Choice, Known, Plan, Store, Unconditional

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


def _stamp(writes: _Writes | None) -> str:
    return str(hash(tuple(writes or ())))


@dataclass(slots=True)
class _Line:
    """One namespace: rows by id, all ids in order, live ids in order."""

    rows: dict[str, CheckpointRow] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)

    def set(self, row: CheckpointRow) -> None:
        checkpoint_id = row.key.checkpoint_id
        if checkpoint_id in self.rows:
            self.remove(checkpoint_id)
        self.rows[checkpoint_id] = row
        insort(self.ids, checkpoint_id)
        if row.kind == Kind.LIVE:
            insort(self.live, checkpoint_id)

    def children(self, checkpoint_id: str) -> int:
        rows = self.rows.values()
        return sum(row.parent_id == checkpoint_id and row.kind != Kind.HIDDEN for row in rows)

    def hide(self, row: CheckpointRow) -> None:
        """Put a hidden row where a live one is."""
        self.rows[row.key.checkpoint_id] = row
        del self.live[bisect_left(self.live, row.key.checkpoint_id)]

    def remove(self, checkpoint_id: str) -> None:
        row = self.rows.pop(checkpoint_id, None)
        if row is not None:
            del self.ids[bisect_left(self.ids, checkpoint_id)]
            if row.kind == Kind.LIVE:
                del self.live[bisect_left(self.live, checkpoint_id)]

    def until(self, last: str, anchors: Collection[str]) -> Iterator[CheckpointRow]:
        """Yield what `Store.outline` is to have of this line."""
        rows = self.rows
        end = bisect_right(self.ids, last)
        yield from [rows[one] for one in self.ids[:end]]
        for one in self.ids[end:]:
            parent = rows[one].parent_id
            if (parent is not None and (parent <= last or parent in anchors)) or one in anchors:
                yield rows[one]

    def between(self, first: str, last: str) -> Iterator[CheckpointRow]:
        for position in range(bisect_left(self.ids, first), bisect_right(self.ids, last)):
            yield self.rows[self.ids[position]]


@dataclass(slots=True)
class _Thread:
    lines: dict[str, _Line] = field(default_factory=dict)
    writes: dict[tuple[str, str], _Writes] = field(default_factory=dict)
    tags: dict[str, CheckpointKey] = field(default_factory=dict)
    events: dict[str, dict[bytes, EventRow]] = field(default_factory=dict)
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

    def has(self, place: tuple[str, str]) -> bool:
        line = self.lines.get(place[0])
        return line is not None and place[1] in line.rows

    def is_live(self, key: CheckpointKey) -> bool:
        row = self.row(key)
        return row is not None and row.kind == Kind.LIVE

    def head(self, checkpoint_ns: str) -> str | None:
        line = self.lines.get(checkpoint_ns)
        return line.live[-1] if line and line.live else None

    def leave(self, leaving: Leaving) -> bool:
        """Take a root checkpoint out of sight, if it may go; see `Leaving`."""
        line, place = self.lines[""], ("", leaving.checkpoint_id)
        row, heir = line.rows.get(leaving.checkpoint_id), line.rows.get(leaving.heir_id)
        if (
            row is None
            or heir is None
            or (row.kind, row.rev, heir.kind, heir.rev)
            != (Kind.LIVE, leaving.rev, Kind.LIVE, leaving.heir_rev)
            or (leaving.parent_id is None and line.live[0] != leaving.checkpoint_id)
            or any(key[1:] == place for key in self.tags.values())
            or _stamp(self.writes.get(place)) != leaving.stamp
            or line.children(leaving.checkpoint_id) > 1
        ):
            return False
        line.hide(row._replace(rev=leaving.hidden_rev, kind=Kind.HIDDEN))
        line.rows[leaving.heir_id] = heir._replace(parent_id=leaving.parent_id, rev=leaving.heir_new_rev)
        if self.events:
            self.drop_events({leaving.checkpoint_id})
        return True

    def add_event(self, event: EventRow) -> None:
        self.events.setdefault(event.checkpoint_id, {}).setdefault(event.event_id, event)

    def drop_events(self, gone: Collection[str]) -> None:
        """Drop what goes with root checkpoints that are live no longer; see `Store.add_events`."""
        line = self.lines.get("")
        roots = sorted({*gone, *(line.live if line else ())})
        for checkpoint_id in list(self.events):
            at = bisect_left(roots, checkpoint_id)
            if at < len(roots) and roots[at] in gone:
                del self.events[checkpoint_id]

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
        self._parts: dict[str, dict[bytes, bytes]] = {}
        self._branches: dict[str, Branch] = {}
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
        for everything in (self._threads, self._parts, self._branches):
            everything.clear()

    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
        keep: Keep | None = None,
    ) -> PutResult:
        with self._lock:
            thread = self._entered(row.key.thread_id)
            stored = thread.row(row.key)
            if stored is None or stored.kind != row.kind or stored.rev != row.rev:
                refused = self._refusal(thread, row, base, head)
                if refused is not None:
                    return refused
                thread.set(row)
                self._add_parts(row.key.thread_id, parts)
            self._touch(row.key.thread_id, thread)
            is_kept = keep is not None and self._keep(row.key.thread_id, thread, keep)
            return PutResult.KEPT if is_kept else PutResult.STORED

    def _keep(self, thread_id: str, thread: _Thread, keep: Keep) -> bool:
        """Let go what goes with a put; tell whether nothing is left to be done."""
        line = thread.lines[""]
        for leaving in keep.leaving:
            if keep.most is not None and len(line.live) <= keep.most:
                return True
            if len(thread.lines) > 1 or self._records(thread_id) or not thread.leave(leaving):
                return False
        return keep.most is None or len(line.live) <= keep.most

    def _refusal(
        self, thread: _Thread, row: CheckpointRow, base: Base | None, head: str | Unconditional | None
    ) -> PutResult | None:
        if not isinstance(head, Unconditional) and thread.head(row.key.checkpoint_ns) != head:
            raise HeadMovedError(head, thread.head(row.key.checkpoint_ns))
        if base is not None and not self._may_lean(thread, row, base):
            return PutResult.BASE_GONE
        return None if thread.row(row.key) is None else PutResult.OCCUPIED

    def _may_lean(self, thread: _Thread, row: CheckpointRow, base: Base) -> bool:
        if base.key.thread_id == row.key.thread_id:
            there = thread.row(base.key)
            return there is not None and there.rev == base.rev
        return self._stands(base) and self._are_related(base.key, row.key)

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> PutResult:
        with self._lock:
            thread = self._entered(key.thread_id)
            needed = leans_on(writes, parts)
            if needed and not self._parts.get(self._family_of(key.thread_id), {}).keys() >= {*needed}:
                return PutResult.BASE_GONE
            _add_writes(thread.writes.setdefault(key[1:], {}), writes)
            self._add_parts(key.thread_id, parts)
            self._touch(key.thread_id, thread)
            return PutResult.STORED

    async def graft(self, graft: Graft) -> PutResult:
        with self._lock:
            missing = [row for row in graft.rows if not self._stands(Base(row.key, row.rev))]
            if not missing:
                return PutResult.STORED
            for (thread_id, checkpoint_ns), expected in graft.heads.items():
                thread = self._entered(thread_id)
                if thread.head(checkpoint_ns) != expected:
                    raise HeadMovedError(expected, thread.head(checkpoint_ns))
            if graft.branch is not None:
                self._check_branch(graft.branch)
            if not all(self._stands(base) for base in graft.bases):
                return PutResult.BASE_GONE
            if graft.branch is not None:
                self._branches[graft.branch.thread_id] = graft.branch
            for row in graft.rows:
                thread = self._entered(row.key.thread_id)
                thread.set(row)
                self._touch(row.key.thread_id, thread)
            if graft.rows:
                self._add_parts(graft.rows[0].key.thread_id, graft.parts)
            for key, writes in graft.writes.items():
                _add_writes(self._threads[key.thread_id].writes.setdefault(key[1:], {}), writes)
            return PutResult.STORED

    def _check_branch(self, branch: Branch) -> None:
        if branch.thread_id in self._threads:
            raise BranchExistsError(f"there is a thread {branch.thread_id!r} already")
        for other in self._branches.values():
            if (other.source, other.name) == (branch.source, branch.name):
                raise BranchExistsError(
                    f"thread {branch.source!r} has a branch {branch.name!r} already: {other.thread_id!r}"
                )

    async def branches(self, thread_id: str) -> Sequence[Branch]:
        with self._lock:
            return self._records(thread_id)

    async def has_child(self, key: CheckpointKey) -> bool:
        with self._lock:
            thread = self._thread(key.thread_id)
            line = thread.lines.get(key.checkpoint_ns) if thread else None
            return line is not None and any(
                line.rows[one].parent_id == key.checkpoint_id
                for one in line.live[bisect_right(line.live, key.checkpoint_id) :]
            )

    async def namespaces(self, thread_id: str, since: str | None = None) -> Sequence[str]:
        with self._lock:
            thread = self._thread(thread_id)
            return sorted(
                ns
                for ns, line in (thread.lines if thread else {}).items()
                if line.live and (":" not in ns or (since is not None and line.live[-1] > since))
            )

    async def tag(self, tag: Tag) -> bool:
        with self._lock:
            thread = self._thread(tag.key.thread_id)
            row = thread.row(tag.key) if thread else None
            if thread is None or row is None or row.kind != Kind.LIVE:
                return False
            thread.tags[tag.name] = tag.key
            return True

    async def untag(self, thread_id: str, name: str) -> bool:
        with self._lock:
            thread = self._thread(thread_id)
            return thread is not None and thread.tags.pop(name, None) is not None

    async def tags(self, *thread_ids: str) -> Sequence[Tag]:
        with self._lock:
            threads = [thread for name in thread_ids if (thread := self._thread(name))]
            return [Tag(name, key) for thread in threads for name, key in sorted(thread.tags.items())]

    async def lines(
        self, thread_ids: Collection[str], size: int | None = None
    ) -> Mapping[str, Sequence[str]]:
        with self._lock:
            found = {}
            for name in thread_ids:
                thread = self._thread(name)
                line = thread.lines.get("") if thread else None
                if line is not None:
                    found[name] = line.live[: -size - 1 : -1] if size is not None else line.live[::-1]
            return found

    async def newest(self, after: CheckpointKey | None, size: int) -> Sequence[CheckpointKey]:
        with self._lock:
            query = Query(None, "", after=after)
            threads = [thread for name in sorted(self._threads) if (thread := self._thread(name))]
            lines = [self._newest_first(t.lines[""], query) for t in threads if "" in t.lines]
            # Of equal ids the first thread's comes first.
            rows = merge(*lines, key=lambda row: row.key.checkpoint_id, reverse=True)
            return [row.key for row in islice(rows, size)]

    async def rows(self, keys: Collection[CheckpointKey]) -> Sequence[Entry]:
        with self._lock:
            found = []
            for key in keys:
                thread = self._threads.get(key.thread_id)
                row = thread.row(key) if thread else None
                if thread is not None and row is not None:
                    found.append(Entry(row, tuple(thread.writes.get(key[1:], {}).values())))
            return found

    async def eventful(self, thread_ids: Collection[str]) -> Collection[str]:
        with self._lock:
            return {name for name in thread_ids if (thread := self._thread(name)) and thread.events}

    async def add_events(self, events: Sequence[EventRow]) -> None:
        with self._lock:
            threads = {event.thread_id: self._entered(event.thread_id) for event in events}
            for event in events:
                threads[event.thread_id].add_event(event)
            for thread_id, thread in threads.items():
                self._touch(thread_id, thread)

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
        with self._lock:
            thread = self._threads.get(thread_id) if expired else self._thread(thread_id)
            known = thread.events if thread else {}
            wanted = known.keys() if checkpoint_ids is None else known.keys() & set(checkpoint_ids)
            found = sorted(event for checkpoint_id in wanted for event in known[checkpoint_id].values())
            start = 0 if after is None else bisect_right(found, after[1:3], key=lambda event: event[1:3])
            page = found[start : start + size]
            return [event._replace(body=b"") for event in page] if bare else page

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
        with self._lock:
            thread = self._threads.get(thread_id) if expired else self._thread(thread_id)
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

    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        with self._lock:
            found: dict[CheckpointKey, Sequence[WriteRow]] = {}
            for key in keys:
                thread = self._thread(key.thread_id)
                if thread is not None and key[1:] in thread.writes:
                    found[key] = tuple(thread.writes[key[1:]].values())
            there = self._parts.get(self._family_of(keys[0].thread_id), {}) if found else {}
            named = {part for rows in found.values() for row in rows for part in row.parts}
            return Writes(found, {part: there[part] for part in named if part in there})

    async def load(self, thread_id: str) -> Family:
        with self._lock:
            return self._family(thread_id)

    async def first(self, thread_id: str, size: int) -> Sequence[Standing]:
        with self._lock:
            thread = self._thread(thread_id)
            line = thread.lines.get("") if thread else None
            if thread is None or line is None:
                return []
            writes = [thread.writes.get(("", one)) for one in line.live[:size]]
            return [
                Standing(line.rows[one], tuple((some or {}).values()), _stamp(some))
                for one, some in zip(line.live, writes, strict=False)
            ]

    async def outline(self, thread_id: str, newest: int | None = None) -> Outline:
        with self._lock:
            return self._outline(thread_id, newest)

    def _outline(self, thread_id: str, newest: int | None) -> Outline:
        last = None
        if newest is not None:
            line = self._held(thread_id).lines.get("")
            if line is None or len(line.live) <= newest:
                return Outline()
            last = line.live[-newest]
        threads = [self._held(name) for name in self._members(thread_id)]
        lines = [line for thread in threads for line in thread.lines.values()]
        anchors = {r.key.checkpoint_id for line in lines for r in line.rows.values() if r.kind == Kind.ANCHOR}
        return Outline(
            [
                Node(r.key, r.parent_id, r.rev, r.kind, r.metadata, len(r.body) + len(r.metadata))
                for line in lines
                for r in (line.until(last, anchors) if last is not None else line.rows.values())
                if r.kind != Kind.HIDDEN
            ],
            frozenset(key for thread in threads for key in thread.tags.values()),
            {branch.thread_id: branch for branch in self._records(thread_id)},
            last,
        )

    async def revise(
        self,
        thread_id: str,
        plan: Plan,
        *,
        expired: bool = False,
        choose: Choice | None = None,
        newest: int | None = None,
    ) -> bool:
        with self._lock:
            if expired and thread_id not in self._expired():
                return False
            needed = choose(self._outline(thread_id, newest)) if choose else None
            if needed is not None and not needed.keys:
                return False
            if not self._records(thread_id):
                self._entered(thread_id)
            change = plan(self._family(thread_id) if needed is None else self._some(thread_id, needed))
            if change == Change():
                return False
            family = self._family_of(thread_id)
            threads = {name: self._held(name) for name in {thread_id, *self._members(thread_id)}}
            gone = {key for key in change.hides() if threads[key.thread_id].is_live(key)}
            for key in change.deletes:
                thread = threads[key.thread_id]
                if key.checkpoint_ns in thread.lines:
                    thread.lines[key.checkpoint_ns].remove(key.checkpoint_id)
                thread.writes.pop(key[1:], None)
            for row in change.rows:
                threads[row.key.thread_id].set(row)
            for key, writes in change.writes.items():
                thread = threads[key.thread_id]
                thread.writes.pop(key[1:], None)
                if writes:
                    _add_writes(thread.writes.setdefault(key[1:], {}), writes)
            self._add_parts(thread_id, change.parts)
            parts = self._parts.get(self._family_of(thread_id), {})
            for part_id in change.drop_parts:
                parts.pop(part_id, None)
            for name in change.drops:
                ended = threads[name]
                ended.expires_at = None
                ended.writes = {place: some for place, some in ended.writes.items() if ended.has(place)}
                ended.events = {}
            for event in change.events:
                threads[event.thread_id].add_event(event)
            for name, thread in threads.items():
                thread.drop_events({key.checkpoint_id for key in gone if key[:2] == (name, "")})
                self._tidy(name, thread, renews=change.renews and name == thread_id)
            for name, branch in change.branches.items():
                if branch is None:
                    del self._branches[name]
                else:
                    self._branches[name] = branch
            if not any(name in self._threads for name in threads):
                self._parts.pop(family, None)
            return True

    def _tidy(self, thread_id: str, thread: _Thread, *, renews: bool) -> None:
        thread.lines = {ns: line for ns, line in thread.lines.items() if line.rows}
        thread.tags = {name: key for name, key in thread.tags.items() if thread.is_live(key)}
        if not thread.lines and not thread.writes:
            self._threads.pop(thread_id, None)
        elif renews or thread_id not in self._threads:
            # A thread that a revision made has its life before it; one that it changed keeps its expiry.
            self._touch(thread_id, thread)

    async def delete_thread(self, thread_id: str) -> int:
        with self._lock:
            thread = self._thread(thread_id)
            self._drop(thread_id)
            return thread.live if thread else 0

    async def entangled(self) -> Sequence[str]:
        with self._lock:
            return [name for name in self._expired() if self._records(name)]

    def _expired(self) -> list[str]:
        return [name for name in self._threads if self._thread(name) is None]

    def _drop(self, thread_id: str) -> None:
        if self._records(thread_id):
            raise EntangledError(f"thread {thread_id!r} shares bytes with others of its family")
        self._threads.pop(thread_id, None)
        self._parts.pop(thread_id, None)

    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        runs = set(run_ids)
        with self._lock:
            return [
                thread_id
                for thread_id in list(self._threads)
                if (thread := self._thread(thread_id))
                and any(row.run_id in runs for row in thread.rows() if row.kind == Kind.LIVE)
            ]

    async def threads(self, after: str | None, size: int) -> Sequence[str]:
        with self._lock:
            names = [name for name in self._threads if after is None or name > after]
            return nsmallest(size, (n for n in names if (thread := self._thread(n)) and thread.live))

    async def sweep(self) -> int:
        with self._lock:
            expired = [name for name in self._expired() if not self._records(name)]
            for thread_id in expired:
                self._drop(thread_id)
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

    def _entered(self, thread_id: str) -> _Thread:
        """Return a thread that is written to, anew if it has expired."""
        thread = self._thread(thread_id)
        if thread is None and thread_id in self._threads:
            self._drop(thread_id)
        return thread or _Thread()

    def _held(self, thread_id: str) -> _Thread:
        """Return a thread that a revision deals with, of a family also one that has expired."""
        return (
            self._threads.get(thread_id) if self._records(thread_id) else self._thread(thread_id)
        ) or _Thread()

    def _stands(self, base: Base) -> bool:
        thread = self._thread(base.key.thread_id)
        row = thread.row(base.key) if thread else None
        return row is not None and row.rev == base.rev

    def _family_of(self, thread_id: str) -> str:
        branch = self._branches.get(thread_id)
        return branch.family if branch else thread_id

    def _are_related(self, one: CheckpointKey, other: CheckpointKey) -> bool:
        return self._family_of(one.thread_id) == self._family_of(other.thread_id)

    def _records(self, thread_id: str) -> list[Branch]:
        family = self._family_of(thread_id)
        return [branch for branch in self._branches.values() if branch.family == family]

    def _members(self, thread_id: str) -> list[str]:
        return [self._family_of(thread_id), *(branch.thread_id for branch in self._records(thread_id))]

    def _add_parts(self, thread_id: str, parts: Sequence[PartRow]) -> None:
        if parts:
            there = self._parts.setdefault(self._family_of(thread_id), {})
            there.update((part.part_id, part.data) for part in parts)

    def _family(self, thread_id: str) -> Family:
        threads = {name: self._held(name) for name in self._members(thread_id)}
        return Family(
            {row.key: row for thread in threads.values() for row in thread.rows()},
            {
                CheckpointKey(name, *place): tuple(rows.values())
                for name, thread in threads.items()
                for place, rows in thread.writes.items()
            },
            dict(self._parts.get(self._family_of(thread_id), {}))
            if any(t.lines for t in threads.values())
            else {},
            {branch.thread_id: branch for branch in self._records(thread_id)},
        )

    def _some(self, thread_id: str, needed: Needed) -> Family:
        """Return the part of a family that a revision is about."""
        rows = {key: row for key in needed.keys if (row := self._held(key.thread_id).row(key))}
        writes = {
            key: tuple(some.values())
            for key in needed.keys
            if (some := self._held(key.thread_id).writes.get(key[1:]))
        }
        if needed.readable:
            for span in merge_spans(span for row in rows.values() for span in row.reach):
                line = self._held(span.thread_id).lines.get(span.checkpoint_ns)
                below = line.between(span.first, span.last) if line else ()
                rows = {**{row.key: row for row in below}, **rows}
        parts = self._parts.get(self._family_of(thread_id), {})
        records = {branch.thread_id: branch for branch in self._records(thread_id)}
        return Family(rows, writes, parts, records)

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
                    # Of a thread that has gone nothing may be needed any more.
                    other_thread = self._threads.get(span.thread_id)
                    line = other_thread.lines.get(span.checkpoint_ns) if other_thread else None
                    for other in line.between(span.first, span.last) if line else ():
                        support[other.key] = other.body
            there = self._parts.get(self._family_of(row.key.thread_id), {})
            parts.update((part, there[part]) for part in wanted if part in there)
        return Page(entries, support, parts)
