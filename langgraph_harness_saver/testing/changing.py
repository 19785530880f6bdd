"""The contract of stores: revisions, deletions, and threads that expire."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from langgraph_harness_saver.errors import HeadMovedError
from langgraph_harness_saver.rows import (
    Base,
    Change,
    Entry,
    Family,
    Kind,
    PutResult,
    Query,
)
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.tools import (
    _clock,
    _expected,
    _fails,
    _get,
    _ids,
    _key,
    _keys,
    _nothing,
    _part,
    _part_ids,
    _PlanError,
    _poisoned_part,
    _revise,
    _row,
    _Seen,
    _seen_by_plan,
    _StoreBase,
    _write,
)


class _ChangingTests(_StoreBase):
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

    async def test_a_write_may_not_name_a_part_of_before_its_thread_expired(self, store: Store) -> None:
        clock = _clock(store)
        leaning = _write("leaning", parts=(_part().part_id,))
        await store.put_writes(_key("1"), [_write(parts=(_part().part_id,))], [_part()])
        assert await store.put_writes(_key("2"), [leaning]) == PutResult.STORED
        clock.now += 11
        assert await store.put_writes(_key("2"), [leaning]) == PutResult.BASE_GONE
        assert await store.load("t") == Family({}, {}, {})
        assert await store.put_writes(_key("2"), [leaning], [_part()]) == PutResult.STORED
        clock.now += 9
        found = await store.writes([_key("2")])
        assert [tuple(rows) for rows in found.rows.values()] == [(leaning,)]

    async def test_a_write_may_not_name_a_part_that_was_dropped(self, store: Store) -> None:
        leaning = _write("leaning", parts=(_part().part_id,))
        await store.put(_row("1", parts=(_part().part_id,)), [_part()])
        await _revise(store, rows=[_row("1", body=b"new")], drop_parts=frozenset([_part().part_id]))
        assert await store.put_writes(_key("1"), [leaning]) == PutResult.BASE_GONE
        assert not (await store.load("t")).writes

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
