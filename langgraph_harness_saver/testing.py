"""The contract suite for stores: subclass `StoreContract` in your tests and give it a `store` fixture.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): ...                 # yields an opened, empty store, and closes it

        def raw_rows(self, store): ...       # counts what is in the database, with the driver alone
        def reopen(self, store): ...         # another store on the same data

It needs pytest and pytest-asyncio in auto mode. Every test runs through both doors: awaited on an event
loop, and again (`…_sync`) as a sync caller of the saver would run it.
`pytest.register_assert_rewrite("langgraph_harness_saver.testing")` makes failures tell more.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, TypeVar

from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.errors import HeadMovedError
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


class _StoreTests(_StoreBase):
    """What `StoreContract` tests."""

    # --- opening -----------------------------------------------------------------------------------

    async def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert await _get(store, "t") is None
        assert await _get(store, "t", "id") is None
        assert await _ids(store) == []
        assert await store.load("t") == Family({}, {}, {})
        assert await store.delete_thread("t") == 0
        assert list(await store.threads_of_runs(["run"])) == []
        assert await store.sweep() == 0

    async def test_opening_again_changes_nothing(self, store: Store) -> None:
        row = _row("1")
        await store.put(row)
        await store.open()
        await store.open()
        assert await _get(store, "t") == Entry(row, ())

    async def test_closing_twice_is_fine(self, store: Store) -> None:
        async with self._other(store) as other:
            if other is not store:
                await other.close()
                await other.close()
        assert await _get(store, "t") is None

    async def test_two_stores_on_the_same_data_see_each_other(self, store: Store) -> None:
        async with self._other(store) as other:
            first, second = _row("1"), _row("2", parent_id="1")
            await store.put(first)
            assert await _get(other, "t") == Entry(first, ())
            await other.put(second, base=Base(first.key, first.rev), head="1")
            await other.put_writes(first.key, [_write()])
            assert await _get(store, "t") == Entry(second, ())
            assert await _get(store, "t", "1") == Entry(first, (_write(),))
            await store.delete_thread("t")
            assert await other.put(_row("3"), base=Base(first.key, first.rev)) == PutResult.BASE_GONE
            assert await _ids(other) == []

    # --- put ---------------------------------------------------------------------------------------

    async def test_every_field_of_a_row_comes_back(self, store: Store) -> None:
        part = _part(b"one part")
        full = _row(
            "2",
            ns="ns|inner:1",
            parent_id="1",
            reach=(Span("t", "ns|inner:1", "1", "2"), Span("t", "", "0", "5")),
            parts=(part.part_id, _part(b"another").part_id),
            run_id="run",
            rev=(1 << 63) - 1,
        )
        bare = _row("3", ns="ns|inner:1", body=b"", metadata=b"", rev=0)
        assert await store.put(full, [part, _part(b"another")]) == PutResult.STORED
        assert await _get(store, "t", "2", ns="ns|inner:1") == Entry(full, ())
        assert await store.put(bare) == PutResult.STORED
        assert await _get(store, "t", "3", ns="ns|inner:1") == Entry(bare, ())
        assert (await store.load("t")).rows == {full.key: full, bare.key: bare}

    async def test_any_text_names_a_checkpoint(self, store: Store) -> None:
        rows = [
            _row(text)._replace(key=CheckpointKey(text, text, text), parent_id=text, run_id=text)
            for text in ODD_IDS
        ]
        for row in rows:
            assert await store.put(row) == PutResult.STORED
        for row in rows:
            assert await _get(store, *row.key[::2], ns=row.key.checkpoint_ns) == Entry(row, ())
            assert list(await store.threads_of_runs([row.key.checkpoint_id])) == [row.key.thread_id]

    async def test_any_text_names_a_task(self, store: Store) -> None:
        row = _row("1")
        await store.put(row)
        writes = [_write(text)._replace(task_path=text) for text in ODD_IDS]
        await store.put_writes(row.key, writes)
        found = await _get(store, "t")
        assert found is not None
        assert sorted(found.writes, key=_by_task) == sorted(writes, key=_by_task)

    async def test_any_bytes_are_a_body(self, store: Store) -> None:
        for number, body in enumerate((b"", b"\x00", b"\xff\xfe", bytes(range(256)) * 1000)):
            row = _row(str(number), body=body, metadata=body)
            await store.put(row, [_part(body)])
            assert await _get(store, "t") == Entry(row, ())

    async def test_the_latest_is_the_greatest_id_by_bytes(self, store: Store) -> None:
        ordered = sorted(ODD_IDS, key=_bytes)
        highest = ""
        for checkpoint_id in (*ordered[::2], *ordered[::-1]):
            await store.put(_row(checkpoint_id))
            highest = max(highest, checkpoint_id, key=_bytes)
            found = await _get(store, "t")
            assert found is not None
            assert found.row.key.checkpoint_id == highest

    async def test_namespaces_and_threads_are_apart(self, store: Store) -> None:
        keys = [CheckpointKey(*names) for names in itertools.product(("t", "T", "t:"), ("", "a", "a|b"), "1")]
        rows = [_row("1")._replace(key=key, body=repr(key).encode()) for key in keys]
        for row in rows:
            assert await store.put(row) == PutResult.STORED
            await store.put_writes(row.key, [_write(body=row.body)])
        for row in rows:
            expected = Entry(row, (_write(body=row.body),))
            assert await _get(store, row.key.thread_id, ns=row.key.checkpoint_ns) == expected

    async def test_putting_the_same_again_is_stored(self, store: Store) -> None:
        first = _row("1", parts=(_part().part_id,))
        await store.put(first, [_part()])
        await store.put(_row("2"))
        before = self.raw_rows(store)
        gone = Base(_key("gone"), 7)
        assert await store.put(first, [_part()]) == PutResult.STORED
        assert await store.put(first, [_part()], base=gone) == PutResult.STORED
        assert await store.put(first, [_part()], head="elsewhere") == PutResult.STORED
        assert await store.put(first, [_part()], base=gone, head=None) == PutResult.STORED
        assert self.raw_rows(store) == before
        assert await _get(store, "t", "1") == Entry(first, ())

    async def test_another_row_under_the_same_key_is_refused(self, store: Store) -> None:
        first, part = _row("1"), _part()
        await store.put(first)
        before = self.raw_rows(store)
        other = _row("1", body=b"other", parts=(part.part_id,))
        assert await store.put(other, [part]) == PutResult.OCCUPIED
        assert await _get(store, "t", "1") == Entry(first, ())
        assert self.raw_rows(store) == before

    async def test_hidden_rows_and_anchors_occupy_their_keys(self, store: Store) -> None:
        for kind in (Kind.HIDDEN, Kind.ANCHOR):
            there = _row("1", kind=kind)
            await _revise(store, rows=[there])
            assert await store.put(_row("1", body=b"other")) == PutResult.OCCUPIED
            assert await store.put(there._replace(kind=Kind.LIVE)) == PutResult.OCCUPIED
            assert (await store.load("t")).rows == {there.key: there}

    async def test_a_put_needs_its_base_unchanged(self, store: Store) -> None:
        base = _row("1")
        await store.put(base)
        before = self.raw_rows(store)
        row, part = _row("2", parent_id="1", parts=(_part().part_id,)), _part()
        for missing in (
            Base(base.key, base.rev + 1),
            Base(_key("0"), base.rev),
            Base(_key("1", ns="other"), base.rev),
            Base(_key("1", thread_id="other"), base.rev),
        ):
            assert await store.put(row, [part], base=missing) == PutResult.BASE_GONE
        assert self.raw_rows(store) == before
        assert await _get(store, "t", "2") is None
        assert await store.put(row, [part], base=Base(base.key, base.rev)) == PutResult.STORED
        assert await _get(store, "t", "2") == Entry(row, ())

    async def test_a_base_may_stand_in_another_namespace_but_in_no_stranger(self, store: Store) -> None:
        base = _row("1", ns="a")
        await store.put(base)
        needed = Base(base.key, base.rev)
        assert await store.put(_row("2"), base=needed) == PutResult.STORED
        # What it leans on would go when that thread does.
        assert await store.put(_row("2", thread_id="u"), base=needed) == PutResult.BASE_GONE
        assert await _get(store, "u") is None

    async def test_a_base_that_only_writes_name_is_gone(self, store: Store) -> None:
        await store.put_writes(_key("1"), [_write()])
        assert await store.put(_row("2"), base=Base(_key("1"), 0)) == PutResult.BASE_GONE

    async def test_a_refused_put_makes_no_thread(self, store: Store) -> None:
        empty = self.raw_rows(store)
        assert await store.put(_row("1"), [_part()], base=Base(_key("0"), 1)) == PutResult.BASE_GONE
        with _expected(HeadMovedError):
            await store.put(_row("1"), [_part()], head="0")
        assert self.raw_rows(store) == empty

    async def test_a_put_may_ask_for_the_head(self, store: Store) -> None:
        assert await store.put(_row("1"), head=None) == PutResult.STORED
        assert await store.put(_row("3"), head="1") == PutResult.STORED
        before = self.raw_rows(store)
        for head in (None, "1", "2", "4"):
            with _expected(HeadMovedError) as caught:
                await store.put(_row("4", parts=(_part().part_id,)), [_part()], head=head)
            assert (caught[0].expected, caught[0].actual) == (head, "3")
        assert self.raw_rows(store) == before
        assert await store.put(_row("2"), head="3") == PutResult.STORED
        assert await store.put(_row("4"), head="3") == PutResult.STORED
        assert await store.put(_row("1", ns="other"), head=None) == PutResult.STORED
        assert await store.put(_row("5", ns="other"), head="1") == PutResult.STORED

    async def test_only_live_checkpoints_are_the_head(self, store: Store) -> None:
        await _revise(store, rows=[_row("8", kind=Kind.HIDDEN), _row("9", kind=Kind.ANCHOR)])
        await store.put_writes(_key("7"), [_write()])
        with _expected(HeadMovedError) as caught:
            await store.put(_row("1"), head="9")
        assert caught[0].actual is None
        assert await store.put(_row("1"), head=None) == PutResult.STORED
        found = await _get(store, "t")
        assert found is not None
        assert found.row.key.checkpoint_id == "1"

    async def test_a_put_that_fails_leaves_nothing(self, store: Store) -> None:
        empty = self.raw_rows(store)
        row = _row("1", parts=(_part().part_id,))
        if not await _fails(store.put(row, [_part(), _poisoned_part()])):
            # This store takes anything for bytes.
            await store.delete_thread("t")
        assert self.raw_rows(store) == empty
        assert await store.put(row, [_part()]) == PutResult.STORED

    async def test_put_writes_that_fails_leaves_nothing(self, store: Store) -> None:
        empty = self.raw_rows(store)
        if not await _fails(store.put_writes(_key("1"), [_write()], [_part(), _poisoned_part()])):
            await store.delete_thread("t")
        assert self.raw_rows(store) == empty

    # --- put_writes --------------------------------------------------------------------------------

    async def test_regular_writes_are_kept_in_order_of_arrival(self, store: Store) -> None:
        await store.put(_row("1"))
        for number in range(30):
            await store.put_writes(_key("1"), [_write(body=b"%d" % (number * 7 % 30))])
        found = await _get(store, "t")
        assert found is not None
        assert [write.body for write in found.writes] == [b"%d" % (n * 7 % 30) for n in range(30)]

    async def test_the_same_write_again_is_not_stored_again(self, store: Store) -> None:
        parts = [_part()]
        writes = [_write(), _write(body=b"second", parts=(_part().part_id,)), _write(call=-1)]
        await store.put_writes(_key("1"), writes, parts)
        before = self.raw_rows(store)
        for _ in range(3):
            await store.put_writes(_key("1"), writes, parts)
        await store.put_writes(_key("1"), writes[1:2], parts)
        assert self.raw_rows(store) == before
        await store.put(_row("1"))
        found = await _get(store, "t")
        assert found is not None
        assert [write for write in found.writes if not write.call] == writes[:2]

    async def test_a_write_that_differs_in_anything_is_another(self, store: Store) -> None:
        writes = [
            _write(),
            _write("other task"),
            _write()._replace(task_path="other path"),
            _write(body=b"other body"),
        ]
        await store.put(_row("1"))
        for write in writes:
            await store.put_writes(_key("1"), [write])
        found = await _get(store, "t")
        assert found is not None
        assert sorted(found.writes, key=_by_task) == sorted(writes, key=_by_task)

    async def test_a_special_write_replaces_its_predecessor(self, store: Store) -> None:
        await store.put(_row("1"))
        kept = [_write(), _write(call=-2), _write("other", call=-1)]
        await store.put_writes(_key("1"), [*kept, _write(call=-1, body=b"old")])
        await store.put_writes(_key("1"), [_write(call=-1, body=b"newer")])
        last = _write(call=-1, body=b"newest")._replace(task_path="other path")
        await store.put_writes(_key("1"), [last])
        found = await _get(store, "t")
        assert found is not None
        assert sorted(found.writes, key=_by_task) == sorted([*kept, last], key=_by_task)

    async def test_writes_may_come_before_their_checkpoint(self, store: Store) -> None:
        await store.put_writes(_key("1"), [_write()])
        await store.put_writes(_key("1"), [_write(body=b"second")])
        assert await _get(store, "t") is None
        assert await _get(store, "t", "1") is None
        assert await _ids(store) == []
        family = await store.load("t")
        assert family.rows == {}
        assert {k: list(w) for k, w in family.writes.items()} == {
            _key("1"): [_write(), _write(body=b"second")]
        }
        row = _row("1")
        assert await store.put(row, head=None) == PutResult.STORED
        assert await _get(store, "t") == Entry(row, (_write(), _write(body=b"second")))

    async def test_writes_without_a_checkpoint_are_deleted_with_their_thread(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await store.put_writes(_key("1"), [_write(parts=(_part().part_id,))], [_part()])
        assert await store.delete_thread("t") == 0
        assert self.raw_rows(store) == empty
        row = _row("1")
        await store.put(row)
        assert await _get(store, "t") == Entry(row, ())

    # --- get and known -----------------------------------------------------------------------------

    async def test_hidden_rows_are_never_read_and_anchors_by_id_only(self, store: Store) -> None:
        live, hidden, anchor = _row("1"), _row("2", kind=Kind.HIDDEN), _row("3", kind=Kind.ANCHOR)
        await store.put(live)
        await _revise(store, rows=[hidden, anchor])
        assert await _get(store, "t") == Entry(live, ())
        assert await _get(store, "t", "2") is None
        assert await _get(store, "t", "3") == Entry(anchor, ())
        assert await _ids(store) == ["1"]

    async def test_a_page_has_what_reading_it_needs(self, store: Store) -> None:
        rows = await self._chain(store)
        last = rows[-1]
        page = await store.get("t", "", "5", _nothing)
        needed = {row.key: row.body for row in rows if row.key in _reached(last, rows)}
        assert needed.items() <= page.support.items()
        assert page.parts == {part_id: _CHAIN_PARTS[part_id] for part_id in last.parts}
        scanned = await store.scan(Query("t", ""), 1, _nothing)
        assert (scanned.entries, scanned.support, scanned.parts) == (page.entries, page.support, page.parts)

    async def test_a_page_of_several_has_what_all_of_them_need(self, store: Store) -> None:
        rows = await self._chain(store)
        page = await store.scan(Query("t"), 100, _nothing)
        held = {entry.row.key for entry in page.entries}
        for row in rows:
            if row.kind == Kind.LIVE:
                assert _reached(row, rows) - held <= page.support.keys()
                assert set(row.parts) <= page.parts.keys()
        for key, body in page.support.items():
            assert body == {row.key: row.body for row in rows}[key]

    async def test_a_known_row_comes_with_its_writes_all_the_same(self, store: Store) -> None:
        rows = await self._chain(store)
        written = _part(b"of a write")
        await store.put_writes(rows[-1].key, [_write(parts=(written.part_id,))], [written])
        asked: list[tuple[CheckpointKey, int]] = []

        def known(key: CheckpointKey, rev: int) -> bool:
            asked.append((key, rev))
            return True

        for page in (
            await store.get("t", "", "5", known),
            await store.get("t", "", None, known),
            await store.scan(Query("t", ""), 1, known),
        ):
            assert page.entries == [Entry(rows[-1], (_write(parts=(written.part_id,)),))]
            assert page.parts[written.part_id] == written.data
        assert set(asked) <= {(row.key, row.rev) for row in rows}

    async def test_each_row_is_known_or_not_by_itself(self, store: Store) -> None:
        rows = await self._chain(store)
        last = rows[-1]
        page = await store.scan(Query("t"), 100, lambda key, _: key != last.key)
        held = {entry.row.key for entry in page.entries}
        assert _reached(last, rows) - held <= page.support.keys()
        assert set(last.parts) <= page.parts.keys()

    async def test_what_is_read_is_the_callers_own(self, store: Store) -> None:
        await store.put(_row("1"))
        await store.put_writes(_key("1"), [_write()])
        family = await store.load("t")
        for mapping in (family.rows, family.writes):
            if isinstance(mapping, dict):
                mapping.clear()
        assert await _get(store, "t") == Entry(_row("1"), (_write(),))

    # --- scan --------------------------------------------------------------------------------------

    async def test_scan_is_newest_first_by_bytes(self, store: Store) -> None:
        for checkpoint_id in ODD_IDS:
            await store.put(_row(checkpoint_id))
        expected = sorted(ODD_IDS, key=_bytes, reverse=True)
        for query in (Query(), Query("t"), Query("t", ""), Query(checkpoint_ns="")):
            for size in (1, 4, 100):
                assert await _ids(store, query, size) == expected

    async def test_scan_orders_ties_by_thread_and_namespace(self, store: Store) -> None:
        keys = await self._grid(store)
        for size in (1, 2, 3, 7, 1000):
            assert await _keys(store, Query(), size) == _in_scan_order(keys)

    async def test_scan_selects(self, store: Store) -> None:
        keys = await self._grid(store)
        threads, spaces = (None, "t", "\U0001f600", "missing"), (None, "", "a|b", "missing")
        ids = (None, UUIDS[1], "a", "missing")
        befores = (None, UUIDS[1], UUIDS[1] + "\x00", "a", "", "\U0010ffff")
        for thread_id, ns, checkpoint_id, before in itertools.product(threads, spaces, ids, befores):
            query = Query(thread_id, ns, checkpoint_id, before)
            expected = [key for key in _in_scan_order(keys) if _selected(key, query)]
            for size in (2, 1000):
                assert await _keys(store, query, size) == expected, query

    async def test_scan_by_metadata(self, store: Store) -> None:
        keys = await self._grid(store)
        even = [key for key in keys if len(key.checkpoint_id) % 2 == 0]

        def matches(metadata: bytes) -> bool:
            return int(metadata) % 2 == 0

        for size in (1, 3, 1000):
            found = await _keys(store, Query(matches=matches), size)
            assert found == _in_scan_order(even)
            found = await _keys(store, Query("t", "a|b", matches=matches), size)
            assert found == _in_scan_order(key for key in even if key[:2] == ("t", "a|b"))
        assert await _keys(store, Query(matches=lambda _: False), 3) == []

    async def test_scan_fills_its_pages(self, store: Store) -> None:
        for number in range(20):
            await store.put(_row(f"{number:02}", metadata=b"%d" % number))
        page = await store.scan(Query("t", matches=lambda data: int(data) % 5 == 0), 3, _nothing)
        assert [entry.row.key.checkpoint_id for entry in page.entries] == ["15", "10", "05"]

    async def test_scan_goes_on_after_a_checkpoint_that_has_gone(self, store: Store) -> None:
        for thread_id in ("a", "c"):
            for checkpoint_id in ("1", "2"):
                await store.put(_row(checkpoint_id, thread_id=thread_id))
        for gone in (
            CheckpointKey("b", "", "2"),
            CheckpointKey("a", "x", "2"),
            CheckpointKey("b", "\x00", "2"),
        ):
            found = await store.scan(Query(after=gone), 10, _nothing)
            assert [entry.row.key[::2] for entry in found.entries] == [("c", "2"), ("a", "1"), ("c", "1")]
        found = await store.scan(Query("a", "", after=_key("1\x00", thread_id="a")), 10, _nothing)
        assert [entry.row.key.checkpoint_id for entry in found.entries] == ["1"]
        found = await store.scan(Query("a", after=_key("2", thread_id="a")), 10, _nothing)
        assert [entry.row.key.checkpoint_id for entry in found.entries] == ["1"]

    async def test_scan_brings_writes_in_order(self, store: Store) -> None:
        writes = {}
        for checkpoint_id in ("1", "2", "3"):
            await store.put(_row(checkpoint_id))
            writes[checkpoint_id] = tuple(_write(body=f"{checkpoint_id} {n}".encode()) for n in range(3))
            for write in writes[checkpoint_id]:
                await store.put_writes(_key(checkpoint_id), [write])
        page = await store.scan(Query("t"), 10, _nothing)
        assert {entry.row.key.checkpoint_id: tuple(entry.writes) for entry in page.entries} == writes

    # --- load and revise ---------------------------------------------------------------------------

    async def test_load_and_revise_see_everything(self, store: Store) -> None:
        part, written = _part(b"of a row"), _part(b"of a write")
        live = _row("1", parts=(part.part_id,))
        kinds = [_row("2", kind=Kind.HIDDEN), _row("3", ns="x", kind=Kind.ANCHOR)]
        await store.put(live, [part])
        await _revise(store, rows=kinds)
        await store.put_writes(live.key, [_write(parts=(written.part_id,))], [written])
        await store.put_writes(_key("early"), [_write()])
        await store.put(_row("1", thread_id="another"))
        expected = _Seen(
            {row.key: row for row in (live, *kinds)},
            {live.key: [_write(parts=(written.part_id,))], _key("early"): [_write()]},
            {part.part_id: part.data, written.part_id: written.data},
        )
        assert await _seen_by_plan(store) == expected
        assert _Seen.of(await store.load("t")) == expected

    async def test_a_plan_that_raises_changes_nothing(self, store: Store) -> None:
        rows = await self._chain(store)
        before, count = _Seen.of(await store.load("t")), self.raw_rows(store)

        def plan(family: Family) -> Change:
            raise _PlanError

        with _expected(_PlanError):
            await store.revise("t", plan)
        with _expected(_PlanError):
            await store.revise("nowhere", plan)
        assert _Seen.of(await store.load("t")) == before
        assert self.raw_rows(store) == count
        assert await _get(store, "t") == Entry(rows[-1], ())

    async def test_a_revision_that_fails_changes_nothing(self, store: Store) -> None:
        await self._chain(store)
        before, count = _Seen.of(await store.load("t")), self.raw_rows(store)

        def plan(family: Family) -> Change:
            return Change(
                rows=[_row("9")], deletes=list(family.rows), parts=[_part(b"new"), _poisoned_part()]
            )

        if await _fails(store.revise("t", plan)):
            assert _Seen.of(await store.load("t")) == before
            assert self.raw_rows(store) == count

    async def test_a_revision_of_nothing_makes_nothing(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await _revise(store)
        await _revise(store, deletes=[_key("1")], drop_parts=frozenset([_part().part_id]))
        assert self.raw_rows(store) == empty

    async def test_a_revision_deletes_rows_with_their_writes(self, store: Store) -> None:
        for number in ("1", "2"):
            await store.put(_row(number))
            await store.put_writes(_key(number), [_write()])
        await _revise(store, deletes=[_key("1")])
        assert await _get(store, "t", "1") is None
        assert _Seen.of(await store.load("t")) == _Seen({_key("2"): _row("2")}, {_key("2"): [_write()]}, {})
        await store.put(_row("1"))
        assert await _get(store, "t", "1") == Entry(_row("1"), ())

    async def test_a_revision_deletes_writes_that_have_no_row(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await store.put_writes(_key("1"), [_write()])
        await _revise(store, deletes=[_key("1")])
        assert self.raw_rows(store) == empty

    async def test_a_revision_inserts_and_replaces_rows(self, store: Store) -> None:
        await store.put(_row("1"))
        await store.put(_row("2"))
        await store.put_writes(_key("1"), [_write()])
        changed = _row("1", body=b"changed", parent_id="0", run_id="run", kind=Kind.ANCHOR)
        added = _row("3", ns="new")
        await _revise(store, rows=[changed, added])
        assert await _get(store, "t", "1") == Entry(changed, (_write(),))
        assert await _get(store, "t", ns="new") == Entry(added, ())
        assert await _ids(store) == ["3", "2"]
        again = changed._replace(kind=Kind.LIVE)
        await _revise(store, rows=[again])
        assert await _ids(store) == ["3", "2", "1"]

    async def test_a_revision_replaces_all_writes_of_a_key(self, store: Store) -> None:
        await store.put(_row("1"))
        await store.put(_row("2"))
        for number in ("1", "2"):
            await store.put_writes(_key(number), [_write(), _write(call=-1)])
        await _revise(store, writes={_key("1"): [_write(body=b"instead")], _key("2"): ()})
        assert await _get(store, "t", "1") == Entry(_row("1"), (_write(body=b"instead"),))
        assert await _get(store, "t", "2") == Entry(_row("2"), ())
        await _revise(store, writes={_key("3"): [_write()]})
        await store.put(_row("3"))
        assert await _get(store, "t", "3") == Entry(_row("3"), (_write(),))

    async def test_a_revision_can_leave_a_key_without_writes(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await store.put_writes(_key("1"), [_write()])
        await _revise(store, writes={_key("1"): (), _key("never there"): ()})
        assert self.raw_rows(store) == empty

    async def test_a_revision_adds_parts_then_drops_parts(self, store: Store) -> None:
        kept, dropped, both = _part(b"kept"), _part(b"dropped"), _part(b"both")
        row = _row("1", parts=(kept.part_id,))
        await store.put(row, [kept, dropped])
        await _revise(store, parts=[both], drop_parts=frozenset([dropped.part_id, both.part_id]))
        assert dict((await store.load("t")).parts) == {kept.part_id: kept.data}
        page = await store.get("t", "", "1", _nothing)
        assert page.parts == {kept.part_id: kept.data}

    async def test_a_thread_that_a_revision_empties_is_gone(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await self._chain(store)
        await store.put_writes(_key("5"), [_write()])
        await store.revise(
            "t", lambda family: Change(deletes=list(family.rows), drop_parts=_part_ids(family))
        )
        assert self.raw_rows(store) == empty
        assert await store.delete_thread("t") == 0

    async def test_a_revision_changes_one_thread_only(self, store: Store) -> None:
        for thread_id in ("t", "u"):
            await store.put(_row("1", thread_id=thread_id, parts=(_part().part_id,)), [_part()])
        await store.revise(
            "t", lambda family: Change(deletes=list(family.rows), drop_parts=_part_ids(family))
        )
        page = await store.get("u", "", None, _nothing)
        assert page.parts == {_part().part_id: _part().data}

    # --- deleting threads, finding runs ------------------------------------------------------------

    async def test_delete_thread_counts_live_checkpoints(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await self._chain(store)
        await store.put(_row("1", ns="other"))
        await store.put_writes(_key("5"), [_write()])
        await store.put_writes(_key("early"), [_write()])
        await store.put(_row("1", thread_id="u"))
        other = self.raw_rows(store)
        # Of the chain's six rows one is hidden.
        assert await store.delete_thread("t") == 6
        assert await store.delete_thread("t") == 0
        assert await _get(store, "t") is None
        assert await store.load("t") == Family({}, {}, {})
        assert await _ids(store) == ["1"]
        assert self.raw_rows(store) < other
        assert await store.delete_thread("u") == 1
        assert self.raw_rows(store) == empty

    async def test_a_thread_can_begin_again(self, store: Store) -> None:
        await self._chain(store)
        await store.put_writes(_key("5"), [_write()])
        await store.delete_thread("t")
        fresh = _row("5", body=b"fresh")
        assert await store.put(fresh, head=None) == PutResult.STORED
        assert await _get(store, "t") == Entry(fresh, ())
        assert _Seen.of(await store.load("t")) == _Seen({fresh.key: fresh}, {}, {})

    async def test_threads_of_runs(self, store: Store) -> None:
        await store.put(_row("1", thread_id="a", run_id="x"))
        await store.put(_row("2", thread_id="a", run_id="y"))
        await store.put(_row("1", thread_id="b", ns="n", run_id="x"))
        await store.put(_row("1", thread_id="c", run_id="z"))
        await store.put(_row("1", thread_id="d"))
        hidden = _row("1", thread_id="e", run_id="x", kind=Kind.HIDDEN)
        await store.revise("e", lambda _: Change(rows=[hidden]))
        assert sorted(await store.threads_of_runs(["x"])) == ["a", "b"]
        assert sorted(await store.threads_of_runs(["x", "y", "z", "none"])) == ["a", "b", "c"]
        assert list(await store.threads_of_runs([])) == []
        many = [f"none {number}" for number in range(2000)]
        assert list(await store.threads_of_runs([*many, "z"])) == ["c"]
        await _revise(store, "a", deletes=[_key("1", thread_id="a")])
        assert sorted(await store.threads_of_runs(["x"])) == ["b"]

    # --- expiry ------------------------------------------------------------------------------------

    async def test_nothing_expires_without_a_ttl(self, store: Store) -> None:
        clock = _clock(store, ttl_seconds=None)
        await store.put(_row("1"))
        clock.now += 1e9
        assert await _get(store, "t") is not None
        assert await store.sweep() == 0

    async def test_an_expired_thread_is_not_there(self, store: Store) -> None:
        empty = self.raw_rows(store)
        clock = _clock(store)
        await self._chain(store, run_id="run")
        await store.put_writes(_key("5"), [_write()])
        clock.now += 9.9
        assert await _get(store, "t") is not None
        clock.now += 0.2
        assert await _get(store, "t") is None
        assert await _get(store, "t", "5") is None
        for query in (Query(), Query("t"), Query("t", "")):
            assert await _ids(store, query) == []
        assert await store.load("t") == Family({}, {}, {})
        assert list(await store.threads_of_runs(["run"])) == []
        assert await _seen_by_plan(store) == _Seen({}, {}, {})
        assert await store.delete_thread("t") == 0
        await store.sweep()
        assert self.raw_rows(store) == empty

    async def test_an_expired_thread_is_no_base_and_has_no_head(self, store: Store) -> None:
        clock = _clock(store)
        base = _row("1")
        await store.put(base)
        clock.now += 11
        assert await store.put(_row("2"), base=Base(base.key, base.rev)) == PutResult.BASE_GONE
        other = _row("2", thread_id="u")
        assert await store.put(other, base=Base(base.key, base.rev)) == PutResult.BASE_GONE
        with _expected(HeadMovedError) as caught:
            await store.put(_row("2"), head="1")
        assert caught[0].actual is None
        assert await store.put(_row("2"), head=None) == PutResult.STORED

    async def test_putting_the_same_into_an_expired_thread_stores_it(self, store: Store) -> None:
        clock = _clock(store)
        row = _row("1", parts=(_part().part_id,))
        await store.put(row, [_part()])
        clock.now += 11
        assert await store.put(row, [_part()]) == PutResult.STORED
        assert await _get(store, "t") == Entry(row, ())
        assert (await store.get("t", "", None, _nothing)).parts == {_part().part_id: _part().data}

    async def test_a_write_starts_an_expired_thread_anew(self, store: Store) -> None:
        clock = _clock(store)
        starts: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: store.put(_row("9")),
            lambda: store.put_writes(_key("9"), [_write()]),
            lambda: _revise(store, rows=[_row("9")]),
        ]
        for start in starts:
            await self._chain(store)
            await store.put_writes(_key("5"), [_write()])
            clock.now += 11
            await start()
            family = await store.load("t")
            assert set(family.rows) | set(family.writes) == {_key("9")}
            assert not family.parts
            clock.now += 9
            assert await store.load("t") != Family({}, {}, {})
            await store.delete_thread("t")

    async def test_a_write_renews(self, store: Store) -> None:
        clock = _clock(store)
        await store.put(_row("1"))
        renewals: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: store.put(_row("2")),
            lambda: store.put(_row("2")),
            lambda: store.put_writes(_key("1"), [_write()]),
            lambda: store.put_writes(_key("1"), [_write()]),
        ]
        for renew in renewals:
            clock.now += 6
            await renew()
        clock.now += 6
        assert await store.sweep() == 0
        assert await _ids(store) == ["2", "1"]
        clock.now += 5
        assert await _ids(store) == []

    async def test_reading_does_not_renew(self, store: Store) -> None:
        clock = _clock(store)
        await store.put(_row("1"))
        for _ in range(3):
            clock.now += 4
            found = await _get(store, "t")
            await _ids(store)
            await store.load("t")
        assert found is None

    async def test_threads_expire_by_themselves(self, store: Store) -> None:
        clock = _clock(store)
        await store.put(_row("1", thread_id="early"))
        clock.now += 6
        await store.put(_row("1", thread_id="late"))
        clock.now += 6
        assert await _keys(store, Query(), 10) == [_key("1", thread_id="late")]

    async def test_sweep_deletes_what_has_expired(self, store: Store) -> None:
        empty = self.raw_rows(store)
        clock = _clock(store)
        for number in range(250):
            await store.put(_row("1", thread_id=str(number), parts=(_part().part_id,)), [_part()])
            await store.put_writes(_key("1", thread_id=str(number)), [_write()])
        clock.now += 6
        await store.put(_row("1", thread_id="late"))
        await store.put_writes(_key("1", thread_id="7"), [_write("renewed")])
        assert await store.sweep() == 0
        clock.now += 6
        assert await store.sweep() == 249
        assert await store.sweep() == 0
        assert {key.thread_id for key in await _keys(store, Query(), 10)} == {"7", "late"}
        clock.now += 6
        assert await store.sweep() == 2
        assert self.raw_rows(store) == empty

    # --- at once -----------------------------------------------------------------------------------

    async def test_many_puts_at_once(self, store: Store) -> None:
        rows = [_row(f"{number % 50:02}", thread_id=str(number // 50)) for number in range(200)]
        results = await asyncio.gather(*(store.put(row, [_part(row.body)]) for row in rows))
        assert set(results) == {PutResult.STORED}
        await asyncio.gather(*(store.put_writes(row.key, [_write()]) for row in rows))
        found = await store.scan(Query(), 1000, _nothing)
        assert {entry.row.key: entry for entry in found.entries} == {
            row.key: Entry(row, (_write(),)) for row in rows
        }

    async def test_of_many_puts_at_one_head_one_wins(self, store: Store) -> None:
        await store.put(_row("0"))
        async with self._other(store) as other:
            calls = [
                (store, other)[number % 2].put(_row(f"1{number:02}"), [_part(b"%d" % number)], head="0")
                for number in range(40)
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert results.count(PutResult.STORED) == 1
        assert sum(isinstance(result, HeadMovedError) for result in results) == 39
        winner = results.index(PutResult.STORED)
        assert await _ids(store) == [f"1{winner:02}", "0"]
        assert len((await store.load("t")).parts) == 1

    async def test_a_poisoned_call_fails_alone(self, store: Store) -> None:
        def plan(family: Family) -> Change:
            raise _PlanError

        calls: list[Coroutine[Any, Any, Any]] = []
        for number in range(60):
            key = _key(f"{number:02}")
            calls += [
                store.put(_row(f"{number:02}")),
                store.put_writes(key, [_write()]),
                store.revise("t", plan),
                store.put(_row("99"), head="nowhere"),
                store.put(_row("98", thread_id="u"), [_part(), _poisoned_part()]),
            ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for stored, written, planned, moved, _ in zip(*[iter(results)] * 5, strict=True):
            assert (stored, written) == (PutResult.STORED, None)
            assert isinstance(planned, _PlanError)
            assert isinstance(moved, HeadMovedError)
        found = await store.scan(Query("t"), 1000, _nothing)
        assert len(found.entries) == 60
        assert all(entry.writes == (_write(),) for entry in found.entries)
        if isinstance(results[4], BaseException):
            assert _Seen.of(await store.load("u")) == _Seen({}, {}, {})

    async def test_revisions_do_not_lose_each_other(self, store: Store) -> None:
        await store.put(_row("1", body=b"0"))

        def plan(family: Family) -> Change:
            row = family.rows[_key("1")]
            count = int(row.body) + 1
            return Change(rows=[row._replace(body=b"%d" % count, rev=count)])

        async with self._other(store) as other:
            await asyncio.gather(*((store, other)[n % 2].revise("t", plan) for n in range(40)))
        found = await _get(store, "t")
        assert found is not None
        assert found.row.body == b"40"

    async def test_a_cancelled_call_harms_nobody(self, store: Store) -> None:
        tasks = [asyncio.ensure_future(store.put(_row(f"{number:02}"))) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.result() == PutResult.STORED for task in tasks[1::2])
        assert {f"{number:02}" for number in range(1, 20, 2)} <= set(await _ids(store))

    def test_many_threads_at_once(self, store: Store) -> None:
        bridge = Bridge(store.io)
        start = threading.Barrier(8)

        def work(worker: int) -> None:
            start.wait()
            for number in range(25):
                row = _row(f"{number:02}", thread_id=str(worker % 2), ns=str(worker))
                assert bridge.run(store.put(row)) == PutResult.STORED
                bridge.run(store.put_writes(row.key, [_write()]))
                found = bridge.run(store.get(*row.key, _nothing))
                assert found.entries[0] == Entry(row, (_write(),))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        keys = bridge.run(_keys(store, Query(), 1000))
        bridge.close()
        assert len(keys) == 200

    def test_threads_and_a_loop_at_once(self, store: Store) -> None:
        bridge = Bridge(store.io)

        def sync_caller() -> None:
            for number in range(50):
                bridge.run(store.put(_row(f"{number:02}", thread_id="sync")))

        async def async_caller() -> None:
            await asyncio.gather(*(store.put(_row(f"{n:02}", thread_id="async")) for n in range(50)))

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(sync_caller), pool.submit(asyncio.run, async_caller())]
            for future in running:
                future.result()
        keys = bridge.run(_keys(store, Query(), 1000))
        bridge.close()
        assert len(keys) == 100

    def test_one_event_loop_after_another(self, store: Store) -> None:
        for number in range(3):
            asyncio.run(_put(store, _row(str(number))))
        assert asyncio.run(_ids(store)) == ["2", "1", "0"]


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


class StoreContract(_StoreTests):
    """Every sentence of `stores.base.Store` but for families, as tests; see the module's docstring."""


_through_both_doors(StoreContract, _StoreTests)


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
