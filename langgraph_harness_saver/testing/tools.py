"""What the contracts of stores have in common: rows to store, ways to look, and both doors."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, TypeVar

from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.rows import (
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
)
from langgraph_harness_saver.stores.base import Known, Store

UUIDS = (
    "00000000-0000-0000-0000-000000000000",
    "1f0a3c5e-7b9d-6e2f-8a4b-6c8d0e2f4a6b",
    "1f0a3c5e-7b9d-6e2f-8a4b-6c8d0e2f4a6c",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
)
ODD_IDS = (
    *UUIDS,
    UUIDS[1].upper(),
    UUIDS[1][:-1],
    UUIDS[1] + "\x00",
    UUIDS[1] + "0",
    UUIDS[1].replace("-", ""),
    UUIDS[1].replace("-", "_"),
    "1f0a3c5e",
    "\x00",
    "a",
    "a\x00b",
    "a\x00",
    "A",
    "10",
    "9",
    " ",
    "'; DROP TABLE x; --",
    "%_*?[a-z]{x}:|~",
    "\x7f",
    "é",
    "e\u0301",
    "\ud7ff",
    "\ud800",
    "\udfff",
    "\ue000",
    "\uffff",
    "\U0001f600",
    "\U0010ffff",
    "long" * 300,
)
"""Ids that stores have confused, reordered or refused."""

Case = Callable[..., Coroutine[Any, Any, None]]
C = TypeVar("C", bound=Case)


class _StoreBase:
    """What the authors of a contract's subclass provide."""

    def raw_rows(self, store: Store) -> int:
        """Count everything that is stored, whatever it is, going round the store."""
        raise NotImplementedError

    def reopen(self, store: Store) -> Store:
        """Return another store on the same data, not opened yet; the same one if it can't be shared."""
        raise NotImplementedError

    # --- what the tests use ------------------------------------------------------------------------

    @asynccontextmanager
    async def _other(self, store: Store) -> AsyncIterator[Store]:
        other = self.reopen(store)
        await other.open()
        try:
            yield other
        finally:
            if other is not store:
                await other.close()

    async def _chain(self, store: Store, run_id: str | None = None) -> list[CheckpointRow]:
        """Store five rows that need those before them, one of them hidden, and a namespace beside them."""
        rows = []
        parts = [PartRow(part_id, data) for part_id, data in _CHAIN_PARTS.items()]
        for number in range(1, 6):
            row = _row(
                str(number),
                body=b"body %d" % number,
                reach=(Span("t", "", "1", str(number)),) if number > 1 else (),
                parts=tuple(part.part_id for part in parts[:number]),
                run_id=run_id,
            )
            await store.put(row, parts[:number])
            rows.append(row)
        hidden = rows[1]._replace(kind=Kind.HIDDEN, parts=())
        beside = _row("3", ns="beside", reach=(Span("t", "", "2", "3"), Span("t", "beside", "3", "3")))
        rows[1] = hidden
        await _revise(store, rows=[hidden])
        await store.put(beside)
        return [beside, *rows]

    async def _grid(self, store: Store) -> list[CheckpointKey]:
        ids = (*UUIDS[1:3], "a", "a\x00", "\ud800", "\U0001f600", UUIDS[1] + "\x00")
        threads, spaces = ("t", "T", "t\x00", "\ue000", "\U0001f600"), ("", "a|b", "\x00", "é")
        keys = [CheckpointKey(*names) for names in itertools.product(threads, spaces, ids)]
        for key in sorted(keys, key=lambda key: blake2b(repr(key).encode()).digest()):
            await store.put(_row("1")._replace(key=key, metadata=b"%d" % len(key.checkpoint_id)))
        hidden = [_row(id_, kind=kind) for id_, kind in (("h", Kind.HIDDEN), ("n", Kind.ANCHOR))]
        await _revise(store, rows=hidden)
        await store.put_writes(_key("early"), [_write()])
        return keys


def _through_the_sync_door(case: Case) -> Callable[[Any, Store], None]:
    def test(self: Any, store: Store) -> None:
        bridge = Bridge(store.io)
        try:
            bridge.run(case(self, store))
        finally:
            bridge.close()

    return test


def _needs_a_loop(case: Case) -> bool:
    return "asyncio" in case.__code__.co_names


def _through_both_doors(contract: type, tests: type) -> None:
    """Give a contract each of the tests a second time, through the sync door."""
    for name, case in vars(tests).items():
        if asyncio.iscoroutinefunction(case) and name.startswith("test_") and not _needs_a_loop(case):
            setattr(contract, f"{name}_sync", _through_the_sync_door(case))


@dataclass(frozen=True)
class _Seen:
    """A family, in a form that compares."""

    rows: Mapping[CheckpointKey, CheckpointRow]
    writes: Mapping[CheckpointKey, list[WriteRow]]
    parts: Mapping[bytes, bytes]

    @classmethod
    def of(cls, family: Family) -> _Seen:
        writes = {key: list(rows) for key, rows in family.writes.items() if rows}
        return cls(dict(family.rows), writes, dict(family.parts))


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class _PlanError(Exception):
    pass


def _clock(store: Store, ttl_seconds: float | None = 10.0) -> _Clock:
    clock = _Clock()
    store.clock = clock
    store.ttl_seconds = ttl_seconds
    return clock


def _key(checkpoint_id: str, *, ns: str = "", thread_id: str = "t") -> CheckpointKey:
    return CheckpointKey(thread_id, ns, checkpoint_id)


def _row(checkpoint_id: str, *, ns: str = "", thread_id: str = "t", **fields: Any) -> CheckpointRow:
    key = _key(checkpoint_id, ns=ns, thread_id=thread_id)
    body = fields.setdefault("body", b"body of " + _bytes(checkpoint_id))
    fields.setdefault("rev", int.from_bytes(blake2b(body, digest_size=8).digest(), "big") >> 1)
    return CheckpointRow(key, **{"parent_id": None, "metadata": b"0", **fields})


def _write(
    task_id: str = "task", *, call: int = 0, body: bytes = b"body", parts: tuple[bytes, ...] = ()
) -> WriteRow:
    return WriteRow(task_id, "path", call, body, parts)


def _part(data: bytes = b"part") -> PartRow:
    return PartRow(blake2b(data, digest_size=16).digest(), data)


def _poisoned_part() -> PartRow:
    data: Any = object()
    return PartRow(b"\xff" * 16, data)


_CHAIN_PARTS = {part.part_id: part.data for part in (_part(b"part %d" % n) for n in range(1, 6))}


def _nothing(key: CheckpointKey, rev: int) -> bool:
    return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _by_task(write: WriteRow) -> tuple[object, ...]:
    return (write.task_id, write.task_path, write.call, write.body)


def _in_scan_order(keys: Iterable[CheckpointKey]) -> list[CheckpointKey]:
    by_line = sorted(keys, key=lambda key: (_bytes(key.thread_id), _bytes(key.checkpoint_ns)))
    return sorted(by_line, key=lambda key: _bytes(key.checkpoint_id), reverse=True)


def _selected(key: CheckpointKey, query: Query) -> bool:
    return (
        query.thread_id in (None, key.thread_id)
        and query.checkpoint_ns in (None, key.checkpoint_ns)
        and query.checkpoint_id in (None, key.checkpoint_id)
        and (query.before is None or _bytes(key.checkpoint_id) < _bytes(query.before))
    )


def _reached(row: CheckpointRow, rows: Sequence[CheckpointRow]) -> set[CheckpointKey]:
    """Return the other rows that a row's `reach` covers."""
    return {
        other.key
        for other in rows
        for span in row.reach
        if other.key[:2] == span[:2] and span.first <= other.key.checkpoint_id <= span.last
    } - {row.key}


def _part_ids(family: Family) -> frozenset[bytes]:
    return frozenset(family.parts)


async def _put(store: Store, row: CheckpointRow) -> PutResult:
    return await store.put(row)


async def _revise(store: Store, thread_id: str = "t", **change: Any) -> None:
    await store.revise(thread_id, lambda _: Change(**change))


async def _seen_by_plan(store: Store) -> _Seen:
    seen: list[_Seen] = []

    def plan(family: Family) -> Change:
        seen.append(_Seen.of(family))
        return Change()

    await store.revise("t", plan)
    return seen[-1]


async def _get(
    store: Store, thread_id: str, checkpoint_id: str | None = None, *, ns: str = ""
) -> Entry | None:
    page: Page = await store.get(thread_id, ns, checkpoint_id, _nothing)
    assert len(page.entries) <= 1
    return Entry(page.entries[0].row, tuple(page.entries[0].writes)) if page.entries else None


async def _keys(store: Store, query: Query, size: int, known: Known = _nothing) -> list[CheckpointKey]:
    """Scan page by page, as the core does."""
    found: list[CheckpointKey] = []
    while True:
        page = await store.scan(query, size, known)
        found += [entry.row.key for entry in page.entries]
        if len(page.entries) < size:
            return found
        query = replace(query, after=found[-1])


async def _ids(store: Store, query: Query | None = None, size: int = 100) -> list[str]:
    return [key.checkpoint_id for key in await _keys(store, query or Query(), size)]


async def _fails(call: Coroutine[Any, Any, Any]) -> bool:
    try:
        await call
    except Exception:
        return True
    return False


E = TypeVar("E", bound=BaseException)


@contextmanager
def _expected(kind: type[E]) -> Iterator[list[E]]:
    """Catch an error that has to come; `pytest.raises` without needing pytest."""
    caught: list[E] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"no {kind.__name__} was raised"
