"""Checkpoints in a Postgres database."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn
from uuid import UUID

import asyncpg

from langgraph_harness_saver.errors import (
    BranchExistsError,
    EntangledError,
    HeadMovedError,
    InvalidConfigError,
    StoreError,
    StoreNotOpenError,
)
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
    Needed,
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
from langgraph_harness_saver.search import forms_of
from langgraph_harness_saver.stores.base import ANY_HEAD, Choice, Known, Plan, Store, Unconditional, all_known
from langgraph_harness_saver.stores.batches import Call, Flush
from langgraph_harness_saver.stores.opening import FLUSH_BYTES, FLUSH_CALLS, Opening, Queues
from langgraph_harness_saver.stores.packing import decode, encode
from langgraph_harness_saver.stores.parts import LazyParts, run_plan
from langgraph_harness_saver.stores.postgres_pool import Pool, Statements
from langgraph_harness_saver.stores.postgres_rows import (
    EVENT_COLUMNS,
    LEAVING_COLUMNS,
    WRITE_COLUMNS,
    bare_row,
    branch_of,
    branch_values,
    columns,
    event_values,
    graft_values,
    key_values,
    leaving_values,
    node_of,
    page_of,
    put_values,
    row_values,
    stored_key,
    stored_row,
    thread_key,
    write_of,
    write_values,
)
from langgraph_harness_saver.stores.postgres_schema import Schema
from langgraph_harness_saver.stores.postgres_url import ConnectOptions, parse

logger = logging.getLogger(__name__)

LAST = b"\xff"
"""What sorts behind every id."""

SCAN_ROWS = 256
"""How many rows are looked at together, at most, where SQL can't tell which of them match."""
ROWS_AT_ONCE = 2000
"""How many rows are asked for by their keys in one statement."""
REVISIONS = 100
"""How often a revision is begun anew because what it would insert has come up meanwhile."""
SWEEP_BATCH = 50
LONG_BYTES, LONG_FLIGHTS = FLUSH_BYTES // 16, 4
"""What a checkpoint is taken to be that isn't known here, and how many statements look for such at once."""
PUT_COLUMNS = 18
HEAD_MOVED, THREAD_EXISTS, NAME_TAKEN = 3, 4, 5
"""What `harness_put` and `harness_graft` return beside the numbers of `PutResult`."""
ENTANGLED, OCCUPIED = "HS001", "HS002"
"""The SQLSTATEs that our functions raise."""


class _Put(NamedTuple):
    thread: str
    values: tuple[Any, ...]
    parts: Sequence[tuple[bytes, bytes]]
    keep: Keep | None


class _Writes(NamedTuple):
    thread: str
    values: Sequence[tuple[Any, ...]]
    parts: Sequence[tuple[bytes, bytes]]
    needed: Sequence[bytes] = ()


class _Get(NamedTuple):
    thread: str
    ns: bytes
    checkpoint_id: bytes | None
    known_id: bytes | None
    known_rev: int | None
    expired: bool


class _Again(Exception):  # noqa: N818
    """What a revision was planned on is not there any more."""


@dataclass(frozen=True, slots=True)
class _Read(Family):
    """A family as it was read.

    `threads` are the ids of its threads by their keys, that which parts are stored under first; `arrivals`
    name its writes: thread, namespace, checkpoint and number of each.
    """

    threads: Mapping[str, str] = field(default_factory=dict)
    arrivals: Sequence[tuple[str, bytes, bytes, int]] = ()

    @property
    def keys(self) -> list[str]:
        return list(self.threads)


class PostgresStore(Store):
    """Keeps rows in the tables of one schema, which any number of processes may use at once.

    Calls that arrive while others are under way are sent together, in one statement and one transaction.
    """

    io: ClassVar[Literal["none", "blocking", "async"]] = "async"

    def __init__(
        self,
        conn_string: str | ConnectOptions | None = None,
        *,
        pool: asyncpg.Pool[Any] | None = None,
        schema: str | None = None,
        create_schema: bool = True,
        ttl_seconds: float | None = None,
        pool_size: int = 10,
        retry_seconds: float = 30.0,
        prepared_statements: bool | None = None,
    ) -> None:
        """Connect to `conn_string`, or use `pool`, which is not closed.

        Args:
            conn_string: A URL, libpq's keywords and values, or what `parse` made of one.
            pool: An asyncpg pool of the caller's: it works on the event loop that it was made on.
            schema: Where the tables live; the first schema of the connection's search_path, if None.
            create_schema: Whether to make what is missing.
            ttl_seconds: Seconds after its last write at which a thread expires; None for never.
            pool_size: How many connections there may be, over all event loops.
            retry_seconds: For how long a call is tried again when the server goes away.
            prepared_statements: Whether a connection is ours as long as we hold it; found out, if None.
        """
        if (conn_string is None) == (pool is None):
            raise InvalidConfigError("a Postgres store takes a URL or an asyncpg pool, one of the two")
        options = parse(conn_string) if isinstance(conn_string, str) else conn_string
        self.ttl_seconds = ttl_seconds
        self.where = "the given pool" if options is None else options.where
        self._pool = Pool(options, pool, pool_size, retry_seconds)
        self._given = pool
        self._schema = Schema(schema, create=create_schema)
        self._prepared_statements = prepared_statements
        self._queues: Queues[_Put | _Writes] = Queues(self._flush, self._pool.lane)
        self._gets: Queues[_Get] = Queues(self._flush_gets, self._pool.lane)
        self._long_gets: Queues[_Get] = Queues(self._flush_gets, self._pool.lane, 1, LONG_FLIGHTS)
        self._opening = Opening(lambda: self._pool.run(self._set_up, fresh=True))
        self._closed = False

    # --- opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._closed:
            raise StoreNotOpenError(f"the store of {self.where} is closed; make a new saver")
        if not self._opening.is_done:
            await self._opening.wait()

    async def _set_up(self, statements: Statements) -> None:
        query = """
            SELECT pg_backend_pid(), current_setting('default_transaction_isolation') = 'read committed',
              current_setting('default_transaction_read_only') = 'on' AND NOT pg_is_in_recovery()
        """
        async with statements.transaction():
            [(pid, plain, reads_only)] = await statements.fetch(query)
        shared = self._prepared_statements is False or pid != statements.connection.get_server_pid()
        if shared and self._given is not None and _caches(statements.connection):
            raise InvalidConfigError(
                "the given pool leads to the server through a proxy such as pgbouncer, where a prepared "
                "statement may be another one's: make it with asyncpg.create_pool(…, statement_cache_size=0)"
            )
        if self._prepared_statements:
            shared = False
        if shared:
            logger.info("%s is behind a proxy such as pgbouncer: no statement stays prepared", self.where)
        if reads_only:
            self._pool.kind = "READ COMMITTED, READ WRITE"
        self._pool.explicit = shared or reads_only or not plain
        self._pool.cached = not shared
        await self._schema.prepare(statements)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._pool.close()

    def let_go(self) -> None:
        self._closed = True
        self._pool.let_go()

    # --- writing -----------------------------------------------------------------------------------

    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
        keep: Keep | None = None,
    ) -> PutResult:
        values = put_values(row, base, head)
        payload = _Put(values[0], values, parts, keep)
        size = len(row.body) + len(row.metadata) + sum(len(data) for _, data in payload.parts)
        status, actual = await self._submit(row.key.thread_id, payload, size)
        if status == HEAD_MOVED:
            expected = None if isinstance(head, Unconditional) else head
            raise HeadMovedError(expected, None if actual is None else id_of_key(actual))
        return PutResult(status)

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> PutResult:
        if not writes:
            return PutResult.STORED
        payload = _Writes(
            thread_key(key.thread_id),
            [write_values(key, write) for write in writes],
            parts,
            leans_on(writes, parts),
        )
        size = sum(len(write.body) for write in writes) + sum(len(data) for _, data in payload.parts)
        return PutResult(await self._submit(key.thread_id, payload, size))

    async def add_events(self, events: Sequence[EventRow]) -> None:
        await self.open()
        values = columns([event_values(event) for event in events], EVENT_COLUMNS)
        try:
            await self._fetch("add_events", self.clock(), self.ttl_seconds, *values)
        except StoreError as error:
            _raise(error, events[0].thread_id)

    async def _submit(self, thread_id: str, payload: _Put | _Writes, size: int) -> Any:
        if self._closed or not self._opening.is_done:
            await self.open()
        try:
            return await self._queues.submit(payload, size, self._pool.retry_seconds)
        except StoreError as error:
            _raise(error, thread_id)

    async def _flush(self, calls: Sequence[Call[Any]]) -> Sequence[Call[Any]]:
        """Send calls in one statement; return those to be sent again."""
        # In one order everywhere, for some of them lock their threads.
        calls = sorted(calls, key=lambda call: call.payload.thread)
        deadline = max(call.deadline for call in calls)
        try:
            rows = await self._pool.attempt(self._sending([call.payload for call in calls]), deadline)
        except StoreError as error:
            return await self._after(error, calls, self._flush)
        answers: dict[int, tuple[int, bytes | None]] = {}
        for number, *answer in rows:
            # Of one that was refused it says nothing that its thread is short enough.
            if number not in answers or answers[number][0] == PutResult.STORED:
                answers[number] = (answer[0], answer[1])
        stored = (PutResult.STORED, None)
        number = written = 0
        for call in calls:
            if isinstance(call.payload, _Put):
                number += 1
                call.resolve(answers.get(number, stored))
            else:
                written -= 1
                call.resolve(answers.get(written, stored)[0])
        return ()

    async def _after(
        self, error: StoreError, calls: Sequence[Call[Any]], flush: Flush[Any]
    ) -> Sequence[Call[Any]]:
        """Decide what becomes of calls that failed together."""
        again = [call for call in calls if self._pool.is_worth_another(error, call.deadline)]
        if again or len(calls) == 1 or self._pool.is_at_fault(error):
            for call in calls:
                if call not in again:
                    call.fail(error)
            return again
        left: list[Call[Any]] = []
        for call in calls:
            # One of them is at fault; the others are not to suffer for it.
            left += await flush([call])
        return left

    def _sending(self, payloads: Sequence[_Put | _Writes]) -> Callable[[Statements], Awaitable[list[Any]]]:
        puts = [payload for payload in payloads if isinstance(payload, _Put)]
        writes = [payload for payload in payloads if isinstance(payload, _Writes)]
        now = (self.clock(), self.ttl_seconds)
        values: tuple[Any, ...]
        leaning = any(some.needed for some in writes)
        if len(payloads) == 1 and not (payloads[0].parts or leaning) and (puts or len(writes[0].values) == 1):
            # A lone call is spared the arrays.
            name, values = ("put_one", puts[0].values) if puts else ("put_write", writes[0].values[0])
            values = (*now, *values)
        elif not writes:
            name, values = "put", (*now, *_put_columns(puts))
        elif not puts:
            name, values = "put_writes", (*now, *_write_columns(writes))
        else:
            name, values = "put_both", (*now, *_put_columns(puts), *_write_columns(writes))
        if leaning:
            name, values = f"{name}_leaning", (*values, *_leaning_columns(writes))
        if any(put.keep for put in puts):
            name, values = f"{name}_keep", (*values, *_keep_columns(puts))
        query = self._schema.sql[name]
        return lambda statements: statements.fetch(query, *values)

    # --- reading -----------------------------------------------------------------------------------

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
        if self._closed or not self._opening.is_done:
            await self.open()
        if known is all_known:
            # Nothing has expired at the beginning of time.
            now = -1.0 if expired else self.clock()
            if checkpoint_id is None:
                return await self._below(now, (thread_id, checkpoint_ns), LAST, 1)
            return await self._look(now, "row_of", (thread_id, checkpoint_ns), id_key(checkpoint_id))
        payload = _Get(
            thread_key(thread_id),
            encode(checkpoint_ns),
            None if checkpoint_id is None else id_key(checkpoint_id),
            None if guess is None else id_key(guess.key.checkpoint_id),
            None if guess is None else guess.rev,
            expired,
        )
        # Of what is known here little is said again, and nothing waits long for it.
        queue, size = (self._long_gets, LONG_BYTES) if guess is None else (self._gets, 0)
        return page_of(await queue.submit(payload, size, self._pool.retry_seconds))

    async def _flush_gets(self, calls: Sequence[Call[_Get]]) -> Sequence[Call[_Get]]:
        """Look up in one statement what calls ask for; return those to be sent again."""
        deadline = max(call.deadline for call in calls)
        try:
            found = await self._pool.attempt(self._getting([call.payload for call in calls]), deadline)
        except StoreError as error:
            return await self._after(error, calls, self._flush_gets)
        for call, items in zip(calls, found, strict=True):
            call.resolve(items)
        return ()

    def _getting(self, gets: Sequence[_Get]) -> Callable[[Statements], Awaitable[Sequence[list[Any]]]]:
        now = self.clock()

        async def alone(statements: Statements) -> Sequence[list[Any]]:
            return [await statements.fetch(self._sql("get"), now, *gets[0])]

        async def together(statements: Statements) -> Sequence[list[Any]]:
            found: list[list[Any]] = [[] for _ in gets]
            for item in await statements.fetch(self._sql("gets"), now, *columns(gets, 0)):
                found[item["n"] - 1].append(item)
            return found

        return alone if len(gets) == 1 else together

    async def _below(self, now: float, line: tuple[str, str], last: bytes, size: int) -> Page:
        return await self._look(now, "rows_below", line, last, size)

    async def _look(self, now: float, name: str, line: tuple[str, str], *values: Any) -> Page:
        """Return rows of one line with their writes, and nothing that reading their values takes."""
        items = await self._fetch(name, now, thread_key(line[0]), encode(line[1]), *values)
        rows = [stored_row(item, line[0]) for item in items]
        written = await self._writes([row.key for row in rows], now)
        return Page([Entry(row, tuple(written.rows.get(row.key, ()))) for row in rows], {}, written.parts)

    async def scan(self, query: Query, size: int, known: Known) -> Page:
        await self.open()
        thread_id, checkpoint_ns = query.thread_id, query.checkpoint_ns
        chooses = query.matches or query.checkpoint_id is not None
        if known is all_known and thread_id is not None and checkpoint_ns is not None and not chooses:
            bounds = (query.before, query.after.checkpoint_id if query.after else None)
            last = min((id_key(one) for one in bounds if one is not None), default=LAST)
            return await self._below(self.clock(), (thread_id, checkpoint_ns), last, size)
        pages: list[Page] = []
        found: list[Entry] = []
        after, wanted = query.after, size
        while len(found) < size:
            page = page_of(await self._fetch("scan", *self._scan_values(query, after, wanted)))
            pages.append(page)
            found += [e for e in page.entries if query.matches is None or query.matches(e.row.metadata)]
            if len(page.entries) < wanted:
                break
            after = page.entries[-1].row.key
            wanted = min(2 * wanted, SCAN_ROWS)
        found = found[:size]
        support: dict[CheckpointKey, bytes] = {}
        parts: dict[bytes, bytes] = {}
        chosen = {entry.row.key for entry in found}
        for page in pages:
            support.update(page.support)
            parts.update(page.parts)
            # One that doesn't match may be needed to read one that does.
            support.update((e.row.key, e.row.body) for e in page.entries if e.row.key not in chosen)
        return Page(found, support, parts)

    def _scan_values(self, query: Query, after: CheckpointKey | None, size: int) -> tuple[Any, ...]:
        return (
            self.clock(),
            size,
            None if query.thread_id is None else thread_key(query.thread_id),
            None if query.checkpoint_ns is None else encode(query.checkpoint_ns),
            None if query.checkpoint_id is None else id_key(query.checkpoint_id),
            None if query.before is None else id_key(query.before),
            after and id_key(after.checkpoint_id),
            after and encode(after.thread_id),
            after and encode(after.checkpoint_ns),
            [form for forms in forms_of(query.filter or {}) for form in (*forms, None, None)[:3]] or None,
        )

    async def _fetch(self, name: str, *values: Any) -> list[Any]:
        query = self._schema.sql[name]
        return await self._pool.run(lambda statements: statements.fetch(query, *values))

    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        await self.open()
        return await self._writes(keys, self.clock())

    async def _writes(self, keys: Sequence[CheckpointKey], now: float) -> Writes:
        if not keys:
            return Writes({}, {})
        thread_id = keys[0].thread_id
        thread, nss, ids = thread_key(thread_id), [encode(k[1]) for k in keys], [id_key(k[2]) for k in keys]
        rows: dict[CheckpointKey, list[WriteRow]] = {}
        for item in await self._fetch("writes_of", now, thread, nss, ids):
            write = write_of(item, item["call"], item["task_id"], item["task_path"])
            rows.setdefault(stored_key(item, thread_id), []).append(write)
        named = [part for some in rows.values() for write in some for part in write.parts]
        parts = await self._fetch("parts_of", thread, named) if named else ()
        return Writes(rows, {item["part_id"]: item["data"] for item in parts})

    async def load(self, thread_id: str) -> Family:
        await self.open()

        async def work(statements: Statements) -> Family:
            async with statements.transaction("REPEATABLE READ, READ ONLY"):
                family = await self._family(statements, thread_id)
                values = (thread_key(thread_id), self.clock())
                if not family.branches and await statements.first(self._sql("is_expired"), *values):
                    return Family({}, {}, {})
                parts = family.parts
                assert isinstance(parts, LazyParts)
                await self._load_parts(statements, family.keys, parts, list(parts))
                return Family(family.rows, family.writes, parts.loaded, family.branches)

        return await self._pool.run(work)

    def _sql(self, name: str) -> str:
        return self._schema.sql[name]

    async def _family(self, statements: Statements, thread_id: str, *, lock: bool = False) -> _Read:
        suffix = "_locked" if lock else ""
        records = await self._records(statements, thread_id)
        threads = _members(thread_id, records)
        keys = list(threads)
        items = await statements.fetch(self._sql(f"rows{suffix}"), keys)
        rows = {row.key: row for row in (stored_row(item, threads[item["thread"]]) for item in items)}
        sizes = await statements.fetch(self._sql(f"part_sizes{suffix}"), keys)
        writes, arrivals = _grouped(await statements.fetch(self._sql("writes"), keys), threads)
        parts = LazyParts({size["part_id"]: size["size"] for size in sizes})
        return _Read(rows, writes, parts, {b.thread_id: b for b in records}, threads, arrivals)

    async def _records(self, statements: Statements, thread_id: str) -> list[Branch]:
        rows = await statements.fetch(self._sql("branches"), thread_key(thread_id))
        return [branch_of(row) for row in rows]

    async def _load_parts(
        self, statements: Statements, keys: Sequence[str], parts: LazyParts, wanted: Sequence[bytes]
    ) -> None:
        rows = await statements.fetch(self._sql("parts"), keys, list(wanted))
        parts.loaded.update((row["part_id"], row["data"]) for row in rows)

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
        await self.open()
        ids = None if checkpoint_ids is None else [id_key(checkpoint_id) for checkpoint_id in checkpoint_ids]
        since = (b"", b"") if after is None else (id_key(after.checkpoint_id), after.event_id)
        rows = await self._fetch(
            "events", self.clock(), thread_key(thread_id), ids, *since, size, bare, expired
        )
        return [EventRow(thread_id, id_of_key(row[0]), *row[1:]) for row in map(tuple, rows)]

    async def branches(self, thread_id: str) -> Sequence[Branch]:
        await self.open()
        return await self._pool.run(lambda statements: self._records(statements, thread_id))

    async def has_child(self, key: CheckpointKey) -> bool:
        await self.open()
        rows = await self._fetch("has_child", self.clock(), *key_values(key))
        return bool(rows[0][0])

    async def namespaces(self, thread_id: str, since: str | None = None) -> Sequence[str]:
        await self.open()
        values = (thread_key(thread_id), None if since is None else id_key(since))
        return [decode(row[0]) for row in await self._fetch("namespaces", self.clock(), *values)]

    async def tags(self, *thread_ids: str) -> Sequence[Tag]:
        await self.open()
        rows = await self._fetch("tags", self.clock(), list(map(thread_key, thread_ids)))
        return [Tag(decode(row["name"]), stored_key(row, thread_ids[row["n"] - 1])) for row in rows]

    async def lines(
        self, thread_ids: Collection[str], size: int | None = None
    ) -> Mapping[str, Sequence[str]]:
        await self.open()
        found: dict[str, list[str]] = {name: [] for name in thread_ids}
        ids = list(found.values())
        for number, id_ in await self._fetch("lines", self.clock(), list(map(thread_key, found)), size):
            ids[number - 1].append(id_of_key(id_))
        return found

    async def newest(self, after: CheckpointKey | None, size: int) -> Sequence[CheckpointKey]:
        await self.open()
        last = (LAST, b"") if after is None else (id_key(after.checkpoint_id), encode(after.thread_id))
        rows = await self._fetch("newest", self.clock(), *last, size)
        return [CheckpointKey(decode(name), "", id_of_key(id_)) for name, id_ in rows]

    async def rows(self, keys: Collection[CheckpointKey]) -> Sequence[Entry]:
        await self.open()
        found = []
        for start in range(0, len(keys), ROWS_AT_ONCE):
            some = list(keys)[start : start + ROWS_AT_ONCE]
            places = columns([key_values(key) for key in some], 3)
            writes: dict[int, list[WriteRow]] = {}
            for item in await self._fetch("writes_of_rows", *places):
                write = write_of(item, item["call"], item["task_id"], item["task_path"])
                writes.setdefault(item["n"], []).append(write)
            for item in await self._fetch("some_rows", *places):
                row = bare_row(item, some[item["n"] - 1])
                found.append(Entry(row, tuple(writes.get(item["n"], ()))))
        return found

    async def eventful(self, thread_ids: Collection[str]) -> Collection[str]:
        await self.open()
        names = list(thread_ids)
        rows = await self._fetch("eventful", self.clock(), list(map(thread_key, names)))
        return {names[row[0] - 1] for row in rows}

    async def entangled(self) -> Sequence[str]:
        await self.open()
        return [decode(row[0]) for row in await self._fetch("entangled", self.clock())]

    # --- changing ----------------------------------------------------------------------------------

    async def graft(self, graft: Graft) -> PutResult:
        await self.open()
        heads = list(graft.heads.items())
        try:
            rows = await self._fetch("graft", self.clock(), self.ttl_seconds, *graft_values(graft, heads))
        except StoreError as error:
            if _state(error) == OCCUPIED:
                return PutResult.OCCUPIED
            _raise(error, graft.rows[0].key.thread_id)
        status, note, number = rows[0]
        if status == HEAD_MOVED:
            raise HeadMovedError(heads[number - 1][1], None if note is None else id_of_key(note))
        branch = graft.branch
        if branch is not None and status == THREAD_EXISTS:
            raise BranchExistsError(f"there is a thread {branch.thread_id!r} already")
        if branch is not None and status == NAME_TAKEN:
            raise BranchExistsError(
                f"thread {branch.source!r} has a branch {branch.name!r} already, thread {decode(note)!r}"
            )
        return PutResult(status)

    async def tag(self, tag: Tag) -> bool:
        await self.open()
        thread, ns, id_ = key_values(tag.key)
        rows = await self._fetch("tag", self.clock(), thread, encode(tag.name), ns, id_)
        return bool(rows[0][0])

    async def untag(self, thread_id: str, name: str) -> bool:
        await self.open()
        return bool(await self._fetch("untag", self.clock(), thread_key(thread_id), encode(name)))

    async def first(self, thread_id: str, size: int) -> Sequence[Standing]:
        await self.open()
        now = self.clock()
        # The stamps first: of writes that come in between it is seen that they are others.
        items = await self._fetch("first_roots", now, thread_key(thread_id), size)
        rows = [(stored_row(item, thread_id), item["stamp"]) for item in items]
        written = (await self._writes([row.key for row, _ in rows], now)).rows
        return [Standing(row, tuple(written.get(row.key, ())), stamp) for row, stamp in rows]

    async def outline(self, thread_id: str, newest: int | None = None) -> Outline:
        await self.open()
        return await self._pool.run(lambda statements: self._outline(statements, thread_id, newest))

    async def _outline(self, statements: Statements, thread_id: str, newest: int | None) -> Outline:
        records = await self._records(statements, thread_id)
        threads = _members(thread_id, records)
        now = self.clock()
        values = (now, thread_key(thread_id), list(threads), None if newest is None else newest - 1)
        items = await statements.fetch(self._sql("outline"), *values)
        nodes = [node_of(item, threads[item["thread"]]) for item in items]
        tagged = frozenset(node.key for node, item in zip(nodes, items, strict=True) if item["is_tagged"])
        last = id_of_key(items[0]["last"]) if newest is not None and items else None
        return Outline(nodes, tagged, {branch.thread_id: branch for branch in records}, last)

    async def revise(
        self,
        thread_id: str,
        plan: Plan,
        *,
        expired: bool = False,
        choose: Choice | None = None,
        newest: int | None = None,
    ) -> bool:
        await self.open()
        thread = thread_key(thread_id)
        needed: Needed | None = None
        if choose is not None:
            # Mostly there is nothing to be done, and then nobody should have to wait for it.
            needed = choose(await self.outline(thread_id, newest))
            if needed is not None and not needed.keys:
                return False

        async def work(statements: Statements) -> bool:
            async with statements.transaction():
                if not await statements.first(self._sql("begin_revision"), self.clock(), thread, expired):
                    return False
                family: _Read | None
                if needed is None or choose is None:
                    family = await self._locked_family(statements, thread_id)
                    if choose is not None:
                        choose(await self._outline(statements, thread_id, newest))
                else:
                    family = await self._locked_part(statements, thread_id, needed, choose, newest)
                if family is not None:
                    load = partial(self._load_parts, statements, family.keys)
                    change = await run_plan(plan, family, load)
                    if change != Change():
                        await self._apply(statements, thread_id, family, change)
                        return True
            return False

        for _ in range(REVISIONS):
            try:
                return await self._pool.run(work)
            except _Again:
                logger.debug("%s: others have changed thread %r meanwhile; once more", self.where, thread_id)
        raise StoreError(f"{self.where}: others keep changing thread {thread_id!r}; try again later")

    async def _locked_family(self, statements: Statements, thread_id: str) -> _Read:
        """Read a family when nothing can be added that leans on it.

        Whoever stores a row holds its base; so once all rows are locked, and no more have come while they
        were being locked, none will come that leans on one of them. Branches come under a lock of the
        family's, which the revision has.
        """
        while True:
            family = await self._family(statements, thread_id, lock=True)
            keys = await statements.fetch(self._sql("keys_locked"), family.keys)
            if all(stored_key(key, family.threads[key["thread"]]) in family.rows for key in keys):
                return family

    async def _locked_part(
        self, statements: Statements, thread_id: str, needed: Needed, choose: Choice, newest: int | None
    ) -> _Read | None:
        """Read a part of a family when nothing can be added that leans on it; None: nothing is to be done."""
        while True:
            family = await self._part(statements, thread_id, needed)
            again = choose(await self._outline(statements, thread_id, newest))
            if again is not None and not again.keys:
                return None
            if again is None:
                return await self._locked_family(statements, thread_id)
            if set(again.keys) <= set(needed.keys) and again.readable <= needed.readable:
                return family
            needed = again

    async def _part(self, statements: Statements, thread_id: str, needed: Needed) -> _Read:
        records = await self._records(statements, thread_id)
        threads = _members(thread_id, records)
        # In one order everywhere, as others lock rows too.
        places = sorted(key_values(key) for key in needed.keys)
        items = list(await statements.fetch(self._sql("some_locked"), *columns(places, 3)))
        rows = {row.key: row for row in (stored_row(item, threads[item["thread"]]) for item in items)}
        parts: dict[bytes, int] = {}
        if needed.readable:
            for span in merge_spans([span for row in rows.values() for span in row.reach]):
                line = (thread_key(span.thread_id), encode(span.checkpoint_ns))
                limits = (id_key(span.first), id_key(span.last))
                for item in await statements.fetch(self._sql("rows_between"), *line, *limits):
                    row = stored_row(item, threads[item["thread"]])
                    rows.setdefault(row.key, row)
            sizes = await statements.fetch(self._sql("part_sizes"), list(threads))
            parts = {size["part_id"]: size["size"] for size in sizes}
        written = await statements.fetch(self._sql("some_writes"), *columns(places, 3))
        writes, arrivals = _grouped(written, threads)
        named = {branch.thread_id: branch for branch in records}
        return _Read(rows, writes, LazyParts(parts), named, threads, arrivals)

    async def _apply(self, statements: Statements, thread_id: str, family: _Read, change: Change) -> None:
        await self._record(statements, family, change)
        await self._drop(statements, "drop_checkpoints", [key_values(key) for key in change.deletes])
        await self._drop(statements, "drop_writes", _replaced(family, change))
        for name, known in (("set_checkpoints", True), ("add_checkpoints", False)):
            rows = [row_values(row) for row in change.rows if (row.key in family.rows) == known]
            done = await self._in_pieces(statements, name, rows)
            if not known and done < len(rows):
                raise _Again
        await self._add(statements, family.keys[0], change)
        if change.drop_parts:
            await statements.fetch(self._sql("drop_parts"), family.keys, list(change.drop_parts))
        if change.drops:
            for name in ("no_expiry", "drop_events"):
                await statements.fetch(self._sql(name), list(map(thread_key, change.drops)))
        await self._tidy(statements, thread_id, family, change)

    async def _record(self, statements: Statements, family: _Read, change: Change) -> None:
        gone = [thread_key(name) for name, branch in change.branches.items() if branch is None]
        if gone:
            await statements.fetch(self._sql("drop_branches"), gone)
            # Who stores a part under the family holds the record, which has been waited for.
            seen = {*family.arrivals, *((*key_values(key), None) for key in family.rows)}
            if not seen.issuperset(map(tuple, await statements.fetch(self._sql("places"), gone))):
                raise _Again
        for branch in change.branches.values():
            if branch is not None:
                await statements.fetch(self._sql("set_branch"), *branch_values(branch))

    async def _tidy(self, statements: Statements, thread_id: str, family: _Read, change: Change) -> None:
        """Drop the threads that nothing is left of; one that a revision made has its life before it."""
        rows = await statements.fetch(self._sql("tidy"), family.keys, list(family.parts))
        thread = thread_key(thread_id)
        is_new = all(key.thread_id != thread_id for key in (*family.rows, *family.writes))
        renews = change.renews or is_new
        if self.ttl_seconds is not None and renews and thread in {row[0] for row in rows}:
            await statements.fetch(self._sql("renew_thread"), thread, self.clock() + self.ttl_seconds)

    async def _drop(self, statements: Statements, name: str, items: Sequence[tuple[Any, ...]]) -> None:
        if items:
            await statements.fetch(self._sql(name), *columns(items, 0))

    async def _in_pieces(self, statements: Statements, name: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement on rows, whose last column is the long one; return how many rows it gave."""
        done = 0
        for piece in _pieces(rows):
            done += len(await statements.fetch(self._sql(name), *columns(piece, 0)))
        return done

    async def _add(self, statements: Statements, thread: str, change: Change) -> None:
        """Add writes, parts and events."""
        writes = [write_values(key, write) for key, some in change.writes.items() for write in some]
        await self._in_pieces(statements, "add_writes", writes)
        for piece in _pieces(change.parts):
            values = _write_columns([_Writes(thread, (), piece)])
            await statements.fetch(self._sql("put_writes"), self.clock(), None, *values)
        for piece in _pieces([event_values(event) for event in change.events]):
            await statements.fetch(
                self._sql("add_events"), self.clock(), None, *columns(piece, EVENT_COLUMNS)
            )

    async def delete_thread(self, thread_id: str) -> int:
        await self.open()
        try:
            rows = await self._fetch("delete_thread", self.clock(), thread_key(thread_id))
        except StoreError as error:
            _raise(error, thread_id)
        return int(rows[0][0])

    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        await self.open()
        rows = await self._fetch("threads_of_runs", self.clock(), [id_key(run_id) for run_id in run_ids])
        return [decode(row["thread_id"]) for row in rows]

    async def threads(self, after: str | None, size: int) -> Sequence[str]:
        await self.open()
        last = None if after is None else thread_key(after)
        return [decode(row[0]) for row in await self._fetch("threads", self.clock(), last, size)]

    async def sweep(self) -> int:
        await self.open()
        swept, last = 0, str(UUID(int=0))
        while True:
            rows = await self._fetch("sweep", self.clock(), last, SWEEP_BATCH)
            swept += len(rows)
            if len(rows) < SWEEP_BATCH:
                return swept
            last = rows[-1][0]


def _members(thread_id: str, records: Sequence[Branch]) -> dict[str, str]:
    """Return the ids of a family's threads by their keys, that which parts are stored under first."""
    members = [records[0].family, *(b.thread_id for b in records)] if records else [thread_id]
    return {thread_key(member): member for member in members}


def _grouped(
    items: Sequence[Any], threads: Mapping[str, str]
) -> tuple[dict[CheckpointKey, list[WriteRow]], list[tuple[str, bytes, bytes, int]]]:
    """Return writes by their checkpoints, and what names each."""
    writes: dict[CheckpointKey, list[WriteRow]] = {}
    arrivals: list[tuple[str, bytes, bytes, int]] = []
    for item in items:
        key = stored_key(item, threads[item["thread"]])
        write = write_of(item, item["call"], item["task_id"], item["task_path"])
        writes.setdefault(key, []).append(write)
        arrivals.append((item["thread"], item["checkpoint_ns"], item["checkpoint_id"], item["arrival"]))
    return writes, arrivals


def _state(error: StoreError) -> str | None:
    """Return the SQLSTATE that an error came from."""
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state


def _raise(error: StoreError, thread_id: str) -> NoReturn:
    """Raise an error as what it means of a thread."""
    if _state(error) == ENTANGLED:
        raise EntangledError(
            f"thread {thread_id!r} shares bytes with others of its family"
        ) from error.__cause__
    raise error


def _replaced(family: _Read, change: Change) -> list[tuple[str, bytes, bytes, int]]:
    """Name the writes that go: only such as the plan has seen, as others may have been stored since."""
    keys = {key_values(key) for key in change.writes}
    early = (key for key in family.writes if key.thread_id in change.drops and key not in family.rows)
    keys.update(key_values(key) for key in early)
    return [item for item in family.arrivals if item[:3] in keys]


def _put_columns(puts: Sequence[_Put]) -> list[Any]:
    parts = [(number, *part) for number, put in enumerate(puts, 1) for part in put.parts]
    return [*columns([put.values for put in puts], PUT_COLUMNS), *columns(parts, 3)]


def _keep_columns(puts: Sequence[_Put]) -> list[Any]:
    kept = [(number, put.thread, put.keep) for number, put in enumerate(puts, 1) if put.keep]
    leaving = [(number, *leaving_values(one)) for number, _, keep in kept for one in keep.leaving]
    threads = [(number, thread, keep.most) for number, thread, keep in kept]
    return [*columns(threads, 3), *columns(leaving, 1 + LEAVING_COLUMNS)]


def _write_columns(writes: Sequence[_Writes]) -> list[Any]:
    parts = [(some.thread, *part) for some in writes for part in some.parts]
    values = [values for some in writes for values in some.values]
    return [*columns(values, WRITE_COLUMNS), *columns(parts, 3)]


def _leaning_columns(writes: Sequence[_Writes]) -> list[Any]:
    """Return how many rows and parts each call has, and which parts it needs."""
    counts = [(some.thread, len(some.values), len(some.parts)) for some in writes]
    needed = [(number, part_id) for number, some in enumerate(writes, 1) for part_id in some.needed]
    return [*columns(counts, 3), *columns(needed, 2)]


def _pieces(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Split rows, whose last column is the long one, so that no statement is too long."""
    piece: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row[-1])
        if len(piece) == FLUSH_CALLS or size > FLUSH_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _caches(connection: Any) -> bool:
    """Tell whether a connection keeps prepared statements, which asyncpg doesn't say in public."""
    config = getattr(connection, "_config", None)
    return bool(getattr(config, "statement_cache_size", 1))
