"""The contract of stores for looking at many checkpoints and threads at once.

Subclass `LookContract` as `langgraph_harness_saver.testing` says of `StoreContract`.
"""

from __future__ import annotations

from langgraph_harness_saver.rows import Change, CheckpointKey, Entry, EventRow, Kind, Query, Tag
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.families import BRANCH, OTHER, _FamilyBase
from langgraph_harness_saver.testing.tools import (
    ODD_IDS,
    _clock,
    _in_scan_order,
    _key,
    _keys,
    _revise,
    _row,
    _through_both_doors,
    _write,
)


class _LookTests(_FamilyBase):
    async def test_lines_are_live_root_checkpoints_newest_first(self, store: Store) -> None:
        ids = sorted({*ODD_IDS, "1", "2"} - {""}, key=lambda text: text.encode("utf-8", "surrogatepass"))
        rows = [await self._stored(store, id_) for id_ in ids]
        await self._stored(store, "9", ns="sub")
        await self._stored(store, "8", thread_id="another")
        await store.put_writes(_key("early"), [_write()])
        await _revise(
            store, rows=[_row(id_, kind=kind) for id_, kind in (("h", Kind.HIDDEN), ("n", Kind.ANCHOR))]
        )
        await self._branched(store, rows[0])
        found = await store.lines(["t", BRANCH, "nobody"])
        assert {name: list(line) for name, line in found.items() if line} == {"t": ids[::-1], BRANCH: ids[:1]}
        newest = await store.lines([BRANCH, "t"], 2)
        assert {name: list(line) for name, line in newest.items()} == {"t": ids[:-3:-1], BRANCH: ids[:1]}

    async def test_an_expired_thread_has_no_line(self, store: Store) -> None:
        clock = _clock(store)
        base = await self._stored(store, "1")
        clock.now += 8
        await self._branched(store, base)
        await store.tag(Tag("good", base.key))
        clock.now += 5
        assert {name: list(line) for name, line in (await store.lines(["t", BRANCH])).items() if line} == {
            BRANCH: ["1"]
        }
        assert list(await store.newest(None, 9)) == [_key("1", thread_id=BRANCH)]
        assert list(await store.tags("t", BRANCH)) == []
        # What others need of it can be had all the same.
        assert [entry.row.key for entry in await store.rows([base.key])] == [base.key]

    async def test_the_newest_of_all_threads(self, store: Store) -> None:
        keys = [key for key in await self._grid(store) if not key.checkpoint_ns]
        expected = _in_scan_order(keys)
        for size in (1, 3, 100):
            found: list[CheckpointKey] = []
            while page := await store.newest(found[-1] if found else None, size):
                assert len(page) <= size
                found += page
            assert found == expected
        gone = expected[3]
        await store.revise(gone.thread_id, lambda _: Change(deletes=[gone]))
        assert list(await store.newest(gone, 100)) == expected[4:]
        assert await _keys(store, Query(checkpoint_ns=""), 100) == expected[:3] + expected[4:]

    async def test_rows_are_those_asked_for_with_their_writes(self, store: Store) -> None:
        rows = await self._chain(store)
        graft = await self._branched(store, rows[1])
        await store.put_writes(rows[1].key, [_write("a"), _write("b"), _write("a", call=-3)])
        await store.put_writes(_key("early"), [_write()])
        anchor = _row("n", kind=Kind.ANCHOR)
        await _revise(store, rows=[anchor])
        strangers = [_key("early"), _key("0"), _key("1", thread_id="nobody"), _key("1", ns="x")]
        wanted = [*rows, anchor, graft.rows[0]]
        found = await store.rows([*(row.key for row in wanted), *strangers])
        assert {entry.row.key: _bare(entry) for entry in found} == {
            **{row.key: _bare(Entry(row, ())) for row in wanted},
            rows[1].key: _bare(Entry(rows[1], (_write("a"), _write("b"), _write("a", call=-3)))),
            graft.rows[0].key: _bare(Entry(graft.rows[0], (_write(),))),
        }
        assert list(await store.rows([])) == []

    async def test_many_rows_at_once(self, store: Store) -> None:
        rows = [await self._stored(store, f"{number:04}") for number in range(1203)]
        found = await store.rows([row.key for row in rows])
        assert sorted(entry.row.key for entry in found) == [row.key for row in rows]

    async def test_tags_of_several_threads(self, store: Store) -> None:
        graft = await self._branched(store)
        base, row = graft.bases[0].key, graft.rows[0].key
        other = await self._stored(store, "1", thread_id="another")
        tags = [Tag("b", base), Tag("a", row), Tag("c", row), Tag("a", other.key)]
        for tag in tags:
            assert await store.tag(tag)
        assert list(await store.tags("t", BRANCH, "nobody", "another")) == tags
        assert list(await store.tags("another", "t")) == [tags[3], tags[0]]
        assert list(await store.tags()) == []

    async def test_which_threads_have_events(self, store: Store) -> None:
        await self._branched(store)
        for thread_id in (BRANCH, OTHER):
            await store.add_events([EventRow(thread_id, "1", b"e" * 16, b"head", b"body")])
        assert set(await store.eventful(["t", BRANCH, OTHER, "nobody"])) == {BRANCH, OTHER}
        assert set(await store.eventful([])) == set()

    async def test_threads_are_looked_for_where_they_live(self, store: Store) -> None:
        await self._branched(store)
        async with self._other(store) as other:
            # It has never heard of the branch.
            assert await other.lines([BRANCH, "t"]) == {BRANCH: ["1"], "t": ["1"]}
        async with self._other(store) as other:
            keys = [_key("1", thread_id=BRANCH), _key("1")]
            assert sorted(entry.row.key for entry in await other.rows(keys)) == sorted(keys)
        async with self._other(store) as other:
            await store.tag(Tag("good", keys[0]))
            assert list(await other.tags(BRANCH)) == [Tag("good", keys[0])]


def _bare(entry: Entry) -> tuple[object, ...]:
    """Return what `Store.rows` tells of a row, in a form that compares."""
    return (entry.row._replace(reach=(), parts=()), sorted(entry.writes))


class LookContract(_LookTests):
    """Every sentence of `stores.base.Store` about many checkpoints and threads at once, as tests."""


_through_both_doors(LookContract, _LookTests)
