"""The contract of stores: what is put is there, and is read."""

from __future__ import annotations

import itertools

from langgraph_harness_saver.errors import HeadMovedError
from langgraph_harness_saver.rows import (
    Base,
    CheckpointKey,
    Entry,
    Family,
    Kind,
    PutResult,
    Query,
    Span,
)
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.tools import (
    _CHAIN_PARTS,
    ODD_IDS,
    UUIDS,
    _by_task,
    _bytes,
    _expected,
    _fails,
    _get,
    _ids,
    _in_scan_order,
    _key,
    _keys,
    _nothing,
    _part,
    _poisoned_part,
    _reached,
    _revise,
    _row,
    _selected,
    _StoreBase,
    _write,
)


class _StoringTests(_StoreBase):
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

    async def test_a_write_may_name_parts_that_are_there(self, store: Store) -> None:
        written, put, more = _part(b"of a write"), _part(b"of a checkpoint"), _part(b"more")
        await store.put(_row("1", parts=(put.part_id,)), [put])
        first = _write("first", parts=(written.part_id,))
        assert await store.put_writes(_key("1"), [first], [written]) == PutResult.STORED
        leaning = _write("second", parts=(written.part_id, put.part_id, more.part_id))
        for _ in range(2):
            assert await store.put_writes(_key("2"), [leaning, _write()], [more]) == PutResult.STORED
        only = _write("third", parts=(more.part_id,))
        assert await store.put_writes(_key("2"), [only]) == PutResult.STORED
        found = await store.writes([_key("1"), _key("2")])
        assert {key: tuple(rows) for key, rows in found.rows.items()} == {
            _key("1"): (first,),
            _key("2"): (leaning, _write(), only),
        }
        assert found.parts == {part.part_id: part.data for part in (written, put, more)}

    async def test_a_write_that_names_a_part_which_is_not_there_is_refused(self, store: Store) -> None:
        there, gone, brought = _part(b"there"), _part(b"gone"), _part(b"brought")
        leaning = _write(parts=(there.part_id, gone.part_id, brought.part_id))
        calls = ([leaning, _write("other")], [brought])
        assert await store.put_writes(_key("1"), *calls) == PutResult.BASE_GONE
        assert await store.load("t") == Family({}, {}, {})
        row = _row("1", parts=(there.part_id,))
        await store.put(row, [there])
        await store.put(_row("1", thread_id="u", parts=(gone.part_id,)), [gone])
        before = await store.load("t")
        assert await store.put_writes(_key("1"), *calls) == PutResult.BASE_GONE
        assert await store.load("t") == before
        await store.put_writes(_key("2"), [_write(parts=(gone.part_id,))], [gone])
        assert await store.put_writes(_key("1"), *calls) == PutResult.STORED
        await store.delete_thread("t")
        assert await store.put_writes(_key("1"), *calls) == PutResult.BASE_GONE

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
