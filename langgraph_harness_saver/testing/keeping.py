"""The contract of stores for what goes as checkpoints come.

Subclass `KeepingContract` as `langgraph_harness_saver.testing` says of `StoreContract`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from langgraph_harness_saver.rows import (
    Base,
    Branch,
    CheckpointRow,
    EventRow,
    Graft,
    Keep,
    Kind,
    Leaving,
    PutResult,
    Standing,
    Tag,
)
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.tools import (
    _clock,
    _get,
    _key,
    _part,
    _row,
    _StoreBase,
    _through_both_doors,
    _write,
)

BRANCH = "1f0a3c5e-7b9d-6e2f-8a4b-000000000001"
IDS = ["1", "2", "3", "4"]


class _KeepingTests(_StoreBase):
    async def test_the_first_come_with_their_writes(self, store: Store) -> None:
        rows = await _line(store)
        await store.put(_row("0", ns="sub"))
        await store.put_writes(rows[0].key, [_write("b"), _write("a"), _write("a", call=-3)])
        first = await store.first("t", 2)
        assert [one.row for one in first] == rows[:2]
        assert sorted(first[0].writes) == sorted([_write("b"), _write("a"), _write("a", call=-3)])
        assert not first[1].writes
        assert [one.row for one in await store.first("t", 9)] == rows
        assert list(await store.first("nobody", 9)) == []
        again = await store.first("t", 2)
        assert [one.stamp for one in again] == [one.stamp for one in first]
        await store.put_writes(rows[0].key, [_write("c")])
        assert (await store.first("t", 1))[0].stamp != first[0].stamp

    async def test_no_more_are_left_than_may_be_or_it_is_told(self, store: Store) -> None:
        for number, one in enumerate(IDS, 1):
            wanted = PutResult.KEPT if number <= 2 else PutResult.STORED
            assert await store.put(_row(one), keep=Keep(2)) == wanted
        assert await store.put(_row("5"), keep=Keep(None)) == PutResult.KEPT
        assert await store.put(_row("1", ns="sub")) == PutResult.STORED

    async def test_what_leaves_goes_with_a_put(self, store: Store) -> None:
        rows = await _line(store)
        await store.put_writes(rows[0].key, [_write()])
        await store.add_events([EventRow("t", "1", b"\x00" * 16, b"head", b"body")])
        leaving = _ahead(await store.first("t", 4))
        for _ in range(2):
            assert await store.put(_row("5", parent_id="4"), keep=Keep(4, leaving)) == PutResult.KEPT
            assert await _get(store, "t", "1") is None
            heir = await _get(store, "t", "2")
            assert heir is not None
            assert heir.row == rows[1]._replace(parent_id=None, rev=1002)
            assert await _get(store, "t", "3") is not None
        family = await store.load("t")
        assert family.rows[_key("1")] == rows[0]._replace(rev=101, kind=Kind.HIDDEN)
        assert {key: list(some) for key, some in family.writes.items()} == {_key("1"): [_write()]}
        assert not await store.events("t")
        # In turn, and all of them where their number doesn't matter.
        assert await store.put(_row("6", parent_id="5"), keep=Keep(None, leaving[1:3])) == PutResult.KEPT
        assert [one.row.key.checkpoint_id for one in await store.first("t", 9)] == ["4", "5", "6"]
        assert (await store.first("t", 1))[0].row.rev == 1004

    async def test_one_in_the_middle_leaves_its_parent_to_its_child(self, store: Store) -> None:
        rows = await _line(store)
        one, two, three, _ = await store.first("t", 4)
        leaving = _leaving(two, three)._replace(parent_id="1", rev=two.row.rev)
        assert await store.put(_row("5", parent_id="4"), keep=Keep(4, [leaving])) == PutResult.KEPT
        assert await _get(store, "t", "2") is None
        heir = await _get(store, "t", "3")
        assert heir is not None
        assert heir.row == rows[2]._replace(parent_id="1", rev=1003)
        assert (await store.first("t", 1))[0].row == one.row

    async def test_what_has_changed_since_stays(self, store: Store) -> None:
        rows = await _line(store)
        [leaving, _, last] = _ahead(await store.first("t", 4))
        await store.put_writes(rows[2].key, [_write()])
        for wrong in (
            leaving._replace(rev=5),
            leaving._replace(heir_rev=5),
            leaving._replace(stamp="other"),
            leaving._replace(checkpoint_id="0"),
            # Not the first.
            last._replace(rev=rows[2].rev),
        ):
            assert await store.put(_row("5", parent_id="4"), keep=Keep(4, [wrong])) == PutResult.STORED
        assert [one.row for one in await store.first("t", 9)] == [*rows, _row("5", parent_id="4")]

    async def test_what_is_held_stays(self, store: Store) -> None:
        for number, hold in enumerate((_tag, _fork, _branch, _space)):
            thread_id = f"t{number}"
            rows = await _line(store, thread_id)
            [leaving, *_] = _ahead(await store.first(thread_id, 4))
            await hold(store, rows[0])
            new = _row("5", parent_id="4", thread_id=thread_id)
            assert await store.put(new, keep=Keep(4, [leaving])) == PutResult.STORED
            assert await _get(store, thread_id, "5") is not None
            assert await _get(store, thread_id, "1") is not None

    async def test_nothing_leaves_with_a_put_that_is_refused(self, store: Store) -> None:
        await _line(store)
        keep = Keep(3, _ahead(await store.first("t", 4))[:1])
        gone = Base(_key("9"), 1)
        assert await store.put(_row("5", parent_id="9"), base=gone, keep=keep) == PutResult.BASE_GONE
        assert await _get(store, "t", "5") is None
        occupied = _row("4", body=b"another")
        assert await store.put(occupied, keep=keep) == PutResult.OCCUPIED

    async def test_many_leave_together(self, store: Store) -> None:
        """Of puts that a store may send together each gets its own answer."""
        threads = [f"many {number}" for number in range(12)]
        for thread_id in threads:
            await _line(store, thread_id)
        firsts = [await store.first(thread_id, 4) for thread_id in threads]
        keeps = [Keep(4, [_leaving(first[0], first[1])]) for first in firsts]
        # Every third is mistaken, or has a part or nothing to keep.
        keeps[::3] = [Keep(4, [keep.leaving[0]._replace(rev=5)]) for keep in keeps[::3]]
        puts = [
            store.put(
                _row("5", parent_id="4", thread_id=thread_id, parts=(_part().part_id,) if number % 3 else ()),
                [_part()] if number % 3 else (),
                keep=None if number % 3 == 2 else keep,
            )
            for number, (thread_id, keep) in enumerate(zip(threads, keeps, strict=True))
        ]
        writes = [store.put_writes(_key("5", thread_id=thread_id), [_write()]) for thread_id in threads]
        answers = await asyncio.gather(*puts, *writes)
        expected = [PutResult.STORED, PutResult.KEPT, PutResult.STORED]
        assert answers[: len(threads)] == expected * 4
        for number, thread_id in enumerate(threads):
            assert (await _get(store, thread_id, "1") is None) == (number % 3 == 1)
            entry = await _get(store, thread_id, "5")
            assert entry is not None
            assert list(entry.writes) == [_write()]

    async def test_of_an_expired_thread_nothing_comes_first(self, store: Store) -> None:
        clock = _clock(store)
        await _line(store)
        clock.now += 11
        assert list(await store.first("t", 4)) == []
        assert await store.put(_row("5"), keep=Keep(1)) == PutResult.KEPT


class KeepingContract(_KeepingTests):
    """What `stores.base.Store` says of `first`, and of `put` with `keep`, as tests."""


_through_both_doors(KeepingContract, _KeepingTests)


async def _line(store: Store, thread_id: str = "t") -> list[CheckpointRow]:
    rows = [
        _row(one, thread_id=thread_id, parent_id=parent, run_id="run", metadata=b"metadata")
        for one, parent in zip(IDS, [None, *IDS], strict=False)
    ]
    for row in rows:
        assert await store.put(row) == PutResult.STORED
    return rows


def _leaving(one: Standing, heir: Standing) -> Leaving:
    own, heir_id = one.row.key.checkpoint_id, heir.row.key.checkpoint_id
    rev = one.row.rev if one.row.parent_id is None else 1000 + int(own)
    return Leaving(own, rev, 100 + int(own), None, heir_id, heir.row.rev, 1000 + int(heir_id), one.stamp)


def _ahead(first: Sequence[Standing]) -> list[Leaving]:
    return [_leaving(one, heir) for one, heir in pairwise(first)]


async def _tag(store: Store, row: CheckpointRow) -> None:
    assert await store.tag(Tag("good", row.key))


async def _fork(store: Store, row: CheckpointRow) -> None:
    await store.put(_row("21", parent_id="1", thread_id=row.key.thread_id))


async def _space(store: Store, row: CheckpointRow) -> None:
    await store.put(_row("1", ns="sub", thread_id=row.key.thread_id))


async def _branch(store: Store, row: CheckpointRow) -> None:
    source = row.key.thread_id
    alias = row._replace(key=row.key._replace(thread_id=BRANCH))
    branch = Branch(BRANCH, source, source, row.key.checkpoint_id, "name", 1.0)
    assert await store.graft(Graft([alias], [Base(row.key, row.rev)], branch=branch)) == PutResult.STORED
