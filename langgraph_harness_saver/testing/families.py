"""The contract of stores for families: threads that share bytes, tags, and what is added all or none.

Subclass `FamilyContract` as `langgraph_harness_saver.testing` says of `StoreContract`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from langgraph_harness_saver.errors import BranchExistsError, EntangledError, HeadMovedError
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
    Kind,
    Needed,
    Node,
    PutResult,
    Query,
    Span,
    Tag,
)
from langgraph_harness_saver.stores.base import Plan, Store
from langgraph_harness_saver.testing.tools import (
    ODD_IDS,
    UUIDS,
    _clock,
    _expected,
    _get,
    _ids,
    _key,
    _nothing,
    _part,
    _row,
    _Seen,
    _StoreBase,
    _through_both_doors,
    _write,
)

BRANCH = "1f0a3c5e-7b9d-6e2f-8a4b-000000000001"
ANCHOR = "ff0a3c5e-7b9d-5e2f-8a4b-000000000009"
OTHER = "1f0a3c5e-7b9d-6e2f-8a4b-000000000002"


class _FamilyBase(_StoreBase):
    async def _stored(
        self, store: Store, checkpoint_id: str, *, ns: str = "", thread_id: str = "t"
    ) -> CheckpointRow:
        row = _row(checkpoint_id, ns=ns, thread_id=thread_id)
        await store.put(row)
        return row

    async def _branched(self, store: Store, base: CheckpointRow | None = None) -> Graft:
        base = base or await self._stored(store, "1")
        row = self._alias(base)
        graft = Graft([row], [_base(base)], writes={row.key: [_write()]}, branch=_branch())
        assert await store.graft(graft) == PutResult.STORED
        return graft

    def _alias(
        self,
        row: CheckpointRow,
        thread_id: str = BRANCH,
        reach: Sequence[Span] = (),
        parts: tuple[bytes, ...] = (),
    ) -> CheckpointRow:
        key = row.key._replace(thread_id=thread_id)
        return _row("1")._replace(key=key, body=b"alias", rev=7, reach=tuple(reach), parts=parts)

    async def _revise(self, store: Store, **change: object) -> None:
        await store.revise("t", lambda _: Change(**change))  # type: ignore[arg-type]


class _FamilyTests(_FamilyBase):
    # --- graft -------------------------------------------------------------------------------------

    async def test_a_graft_adds_rows_and_writes(self, store: Store) -> None:
        base = await self._stored(store, "1")
        rows = [_row("2", parent_id="1"), _row("3", ns="sub")]
        writes = {rows[0].key: [_write()], rows[1].key: [_write(call=-3)]}
        heads = {("t", ""): "1", ("t", "sub"): None}
        assert await store.graft(Graft(rows, [_base(base)], heads, writes)) == PutResult.STORED
        assert await _get(store, "t") == Entry(rows[0], (_write(),))
        assert await _get(store, "t", ns="sub") == Entry(rows[1], (_write(call=-3),))

    async def test_a_graft_that_is_sent_again_changes_nothing(self, store: Store) -> None:
        graft = await self._branched(store)
        for _ in range(2):
            assert await store.graft(graft) == PutResult.STORED
        assert await _get(store, BRANCH) == Entry(graft.rows[0], (_write(),))
        assert await store.branches("t") == [graft.branch]

    async def test_a_graft_without_its_base_adds_nothing(self, store: Store) -> None:
        base = await self._stored(store, "1")
        rows = [self._alias(base)]
        for gone in (
            Base(base.key, base.rev + 1),
            Base(_key("0"), base.rev),
            Base(_key("1", ns="x"), base.rev),
        ):
            graft = Graft(rows, [_base(base), gone], writes={rows[0].key: [_write()]}, branch=_branch())
            assert await store.graft(graft) == PutResult.BASE_GONE
        assert await _get(store, BRANCH) is None
        assert list(await store.branches("t")) == []
        assert list(await store.branches(BRANCH)) == []
        assert await _ids(store) == ["1"]

    async def test_a_graft_on_another_head_adds_nothing(self, store: Store) -> None:
        base = await self._stored(store, "1")
        for heads in ({("t", ""): "0"}, {("t", ""): None}, {("t", ""): "1", ("t", "sub"): "1"}):
            with _expected(HeadMovedError):
                await store.graft(Graft([_row("2")], [_base(base)], heads))
        assert await _ids(store) == ["1"]

    async def test_a_branch_s_name_is_its_source_s_only_one(self, store: Store) -> None:
        graft = await self._branched(store)
        assert graft.branch is not None
        again = graft.branch._replace(thread_id=OTHER)
        rows = [graft.rows[0]._replace(key=graft.rows[0].key._replace(thread_id=OTHER))]
        with _expected(BranchExistsError):
            await store.graft(Graft(rows, graft.bases, branch=again))
        assert await _get(store, OTHER) is None
        other_name = again._replace(name="another")
        assert await store.graft(Graft(rows, graft.bases, branch=other_name)) == PutResult.STORED
        assert list(await store.branches(OTHER)) == [graft.branch, other_name]

    async def test_a_branch_s_thread_must_be_new(self, store: Store) -> None:
        base = await self._stored(store, "1")
        await store.put(_row("9", thread_id=BRANCH))
        with _expected(BranchExistsError):
            await store.graft(Graft([self._alias(base)], [_base(base)], branch=_branch()))
        assert await _ids(store) == ["9", "1"]
        assert list(await store.branches("t")) == []

    async def test_of_many_branches_of_one_name_one_is_made(self, store: Store) -> None:
        base = await self._stored(store, "1")

        async def attempt(number: int) -> bool:
            thread_id = f"{BRANCH[:-2]}{number:02}"
            try:
                await store.graft(
                    Graft([self._alias(base, thread_id)], [_base(base)], branch=_branch(thread_id=thread_id))
                )
            except BranchExistsError:
                return False
            return True

        made = await asyncio.gather(*(attempt(number) for number in range(8)))
        assert sum(made) == 1
        assert len(await store.branches("t")) == 1
        assert len(await _ids(store)) == 2

    # --- reading -----------------------------------------------------------------------------------

    async def test_a_branch_reads_what_is_its_source_s(self, store: Store) -> None:
        part = _part()
        first = _row("1", parts=(part.part_id,))
        await store.put(first, [part])
        second = _row("2", parts=(part.part_id,), reach=(Span("t", "", "1", "2"),))
        await store.put(second)
        row = self._alias(second, reach=(Span("t", "", "1", "2"),), parts=(part.part_id,))
        await store.graft(Graft([row], [_base(second)], branch=_branch(checkpoint_id="2")))
        for page in (
            await store.get(BRANCH, "", None, _nothing),
            await store.scan(_query(BRANCH), 5, _nothing),
        ):
            assert [entry.row for entry in page.entries] == [row]
            assert page.support.items() >= {first.key: first.body, second.key: second.body}.items()
            assert page.parts == {part.part_id: part.data}
        # It goes on from there, with a part of its own.
        more = _part(b"more")
        third = _row("3", thread_id=BRANCH, parent_id="2", parts=(part.part_id, more.part_id))
        assert await store.put(third, [more], base=_base(row), head="2") == PutResult.STORED
        page = await store.get(BRANCH, "", None, _nothing)
        assert page.parts == {part.part_id: part.data, more.part_id: more.data}
        assert await _ids(store, _query("t")) == ["2", "1"]

    async def test_writes_come_without_their_checkpoints(self, store: Store) -> None:
        base = await self._stored(store, "1")
        alias = self._alias(base)
        await store.graft(Graft([alias], [_base(base)], branch=_branch()))
        large, small = _part(b"large"), _write("special", call=-3)
        named = _write("named", parts=(large.part_id,))
        early = CheckpointKey(BRANCH, "", "0")
        await store.put_writes(early, [named, small], [large])
        await store.put_writes(alias.key, [small])
        await store.put_writes(early._replace(thread_id="t"), [_write("another")])
        keys = [early, alias.key, early._replace(checkpoint_id="2"), early._replace(checkpoint_ns="sub")]
        found = await store.writes(keys)
        assert {key: list(rows) for key, rows in found.rows.items() if rows} == {
            early: [named, small],
            alias.key: [small],
        }
        assert found.parts == {large.part_id: large.data}
        for keys in ([], [early._replace(thread_id="nobody")]):
            found = await store.writes(keys)
            assert not any(found.rows.values())
            assert found.parts == {}

    async def test_a_write_may_name_parts_of_its_family(self, store: Store) -> None:
        base = await self._stored(store, "1")
        alias = self._alias(base)
        part, more = _part(b"of the source"), _part(b"of the branch")
        leaning = _write(parts=(part.part_id,))
        await store.put_writes(base.key, [leaning], [part])
        assert await store.put_writes(alias.key, [leaning]) == PutResult.BASE_GONE
        await store.graft(Graft([alias], [_base(base)], branch=_branch()))
        await store.put_writes(alias.key, [_write(parts=(more.part_id,))], [more])
        both = _write("both", parts=(part.part_id, more.part_id))
        for key in (alias.key, base.key):
            assert await store.put_writes(key, [both]) == PutResult.STORED
            assert (await store.writes([key])).parts == {p.part_id: p.data for p in (part, more)}
        other = base.key._replace(thread_id="nobody")
        assert await store.put_writes(other, [leaning]) == PutResult.BASE_GONE

    async def test_a_branch_may_lean_on_its_source_s_checkpoints(self, store: Store) -> None:
        base = await self._stored(store, "1")
        older = await self._stored(store, "0")
        await self._branched(store, base)
        row = _row("2", thread_id=BRANCH, parent_id="0")
        assert await store.put(row, base=_base(older)) == PutResult.STORED
        assert await store.put(_row("3"), base=_base(row)) == PutResult.STORED

    async def test_branches_are_known_by_any_of_their_family(self, store: Store) -> None:
        graft = await self._branched(store)
        assert graft.branch is not None
        second = Branch(OTHER, "t", BRANCH, "1", "on", 2.0)
        row = self._alias(graft.rows[0], OTHER)
        await store.graft(Graft([row], [_base(graft.rows[0])], branch=second))
        for thread_id in ("t", BRANCH, OTHER):
            assert list(await store.branches(thread_id)) == [graft.branch, second]
        assert list(await store.branches("another")) == []

    async def test_odd_names_come_back(self, store: Store) -> None:
        names = sorted({*ODD_IDS, "main", "x" * 100} - {""})
        base = await self._stored(store, "1", thread_id="\ud800")
        for number, name in enumerate(names):
            thread_id = f"{number:08}{BRANCH[8:]}"
            branch = Branch(thread_id, "\ud800", "\ud800", "1", name, float(number))
            await store.graft(Graft([self._alias(base, thread_id)], [_base(base)], branch=branch))
            assert await store.tag(Tag(name, base.key))
        assert [branch.name for branch in await store.branches("\ud800")] == names
        found = await store.tags("\ud800")
        assert {tag.name for tag in found} == set(names)
        assert {tag.key for tag in found} == {base.key}

    async def test_children_are_live_and_of_the_same_line(self, store: Store) -> None:
        for row in (
            _row("1"),
            _row("2", parent_id="1"),
            _row("3", parent_id="1"),
            _row("2", ns="x", parent_id="9"),
        ):
            await store.put(row)
        await store.put(_row("4", parent_id="2", thread_id="u"))
        assert [await store.has_child(_key(id_)) for id_ in ("1", "2", "3", "4")] == [
            True,
            False,
            False,
            False,
        ]
        await self._revise(store, rows=[_row(id_, kind=Kind.HIDDEN) for id_ in ("2", "3")])
        assert not await store.has_child(_key("1"))
        assert not await store.has_child(_key("1", thread_id="nobody"))

    async def test_namespaces(self, store: Store) -> None:
        spaces = ("", "sub", "sub|in", "a\x00", "é")
        for ns in spaces:
            await store.put(_row(UUIDS[1], ns=ns))
        for ns, id_ in (("node:1", UUIDS[1]), ("sub|node:2", UUIDS[2])):
            await store.put(_row(id_, ns=ns))
        await store.put(_row("1", ns="hidden"))
        await self._revise(store, rows=[_row("1", ns="hidden", kind=Kind.HIDDEN)])
        await store.put_writes(_key("1", ns="early"), [_write()])
        assert set(await store.namespaces("t")) == set(spaces)
        assert set(await store.namespaces("t", UUIDS[1])) == {*spaces, "sub|node:2"}
        assert set(await store.namespaces("t", UUIDS[0])) == {*spaces, "sub|node:2", "node:1"}
        assert list(await store.namespaces("nobody")) == []

    # --- tags --------------------------------------------------------------------------------------

    async def test_tags(self, store: Store) -> None:
        first, second = await self._stored(store, "1"), await self._stored(store, "2", ns="sub")
        assert list(await store.tags("t")) == []
        assert await store.tag(Tag("good", first.key))
        assert await store.tag(Tag("best", second.key))
        assert list(await store.tags("t")) == [Tag("best", second.key), Tag("good", first.key)]
        assert await store.tag(Tag("good", second.key))
        assert list(await store.tags("t")) == [Tag("best", second.key), Tag("good", second.key)]
        assert await store.untag("t", "good")
        assert not await store.untag("t", "good")
        assert not await store.untag("nobody", "best")
        assert not await store.tag(Tag("x", _key("3")))
        assert not await store.tag(Tag("x", _key("1", thread_id="nobody")))
        assert list(await store.tags("t")) == [Tag("best", second.key)]

    async def test_tags_go_with_what_they_name(self, store: Store) -> None:
        rows = [await self._stored(store, id_) for id_ in "123"]
        for row in rows:
            await store.tag(Tag(f"tag {row.key.checkpoint_id}", row.key))
        hidden = rows[1]._replace(kind=Kind.HIDDEN)
        await self._revise(store, deletes=[rows[0].key], rows=[hidden])
        assert list(await store.tags("t")) == [Tag("tag 3", rows[2].key)]
        await store.delete_thread("t")
        assert list(await store.tags("t")) == []
        assert self.raw_rows(store) == 0

    # --- parts of families -------------------------------------------------------------------------

    async def test_an_outline_is_of_all_checkpoints_and_anchors(self, store: Store) -> None:
        rows, graft = await self._tangled(store)
        for thread_id in ("t", BRANCH):
            outline = await store.outline(thread_id)
            assert sorted(outline.nodes) == sorted(map(_node, (*rows, *graft.rows)))
            assert outline.tagged == {rows[1].key}
            assert outline.branches == {BRANCH: graft.branch}
            assert outline.last is None
        assert not (await store.outline("nobody")).nodes

    async def test_an_outline_without_the_newest_has_those_that_hang_on_the_others(
        self, store: Store
    ) -> None:
        rows, graft = await self._tangled(store)
        assert not (await store.outline("t", 4)).nodes
        outline = await store.outline("t", 2)
        assert outline.last == "3"
        named = {(node.key.checkpoint_ns, node.key.checkpoint_id) for node in outline.nodes}
        # 1, 2 and 3, what has them as parents, the anchor and what has that one.
        assert named >= {("", "1"), ("", "2"), ("", "3"), ("", ANCHOR), ("", "4"), ("sub", "2")}
        assert len((await store.outline("t", 1)).nodes) == len(rows) + len(graft.rows)

    async def test_a_plan_sees_the_part_that_was_chosen(self, store: Store) -> None:
        rows, _ = await self._tangled(store)
        await store.put_writes(rows[0].key, [_write()])
        await store.put_writes(rows[1].key, [_write("other")])
        for readable in (False, True):
            seen: list[Family] = []
            chosen = Needed([rows[1].key, _key("not there")], readable)
            await store.revise("t", _noting(seen), choose=lambda _, chosen=chosen: chosen)  # type: ignore[misc]
            assert set(seen[0].rows) == {rows[1].key, *([rows[0].key] if readable else [])}
            assert {key: [*some] for key, some in seen[0].writes.items()} == {rows[1].key: [_write("other")]}
        await store.revise("t", _never, choose=lambda _: Needed(()))
        whole: list[Family] = []
        await store.revise("t", _noting(whole), choose=lambda _: None)
        assert len(whole[0].rows) == len(rows) + 2

    async def test_a_revision_of_a_part_leaves_the_rest_alone(self, store: Store) -> None:
        rows, _ = await self._tangled(store)
        hidden = rows[0]._replace(kind=Kind.HIDDEN, metadata=b"", rev=1)
        heir = rows[1]._replace(parent_id=None, rev=2)
        change = Change([hidden, heir], writes={hidden.key: ()})
        await store.put_writes(hidden.key, [_write()])
        await store.revise("t", lambda _: change, choose=lambda _: Needed([hidden.key, heir.key]))
        assert await _get(store, "t", "1") is None
        assert await _get(store, "t", "2") == Entry(heir, ())
        assert len((await store.load("t")).rows) == len(rows) + 2
        assert list(await store.tags("t")) == [Tag("good", heir.key)]

    async def test_threads(self, store: Store) -> None:
        names = [*UUIDS[:2], "a", "b", "\x00", "\ud800"]
        for name in names:
            await store.put(_row("1", thread_id=name))
        await store.put_writes(_key("early", thread_id="only writes"), [_write()])
        found: list[str] = []
        while page := await store.threads(found[-1] if found else None, 2):
            found += page
        assert sorted(found) == sorted(names)

    async def _tangled(self, store: Store) -> tuple[list[CheckpointRow], Graft]:
        """Store a line with a tag, a subgraph's checkpoint, an anchor and a branch."""
        rows = [
            _row("1"),
            _row("2", parent_id="1", reach=(Span("t", "", "1", "1"),)),
            _row("3", parent_id="2"),
            _row("4", parent_id=ANCHOR),
            _row("2", ns="sub", body=b"sub"),
            _row(ANCHOR, kind=Kind.ANCHOR),
            _row("0", kind=Kind.HIDDEN),
        ]
        for row in rows[:5]:
            await store.put(row)
        await self._revise(store, rows=rows[5:])
        await store.tag(Tag("good", rows[1].key))
        graft = await self._branched(store, rows[2])
        return rows[:6], graft

    # --- changing ----------------------------------------------------------------------------------

    async def test_a_plan_sees_the_whole_family(self, store: Store) -> None:
        part = _part()
        base = _row("1", parts=(part.part_id,))
        await store.put(base, [part])
        graft = await self._branched(store, base)
        await store.put_writes(_key("early", thread_id=BRANCH), [_write("other")])
        await store.put(_row("1", thread_id="stranger"))
        for thread_id in ("t", BRANCH):
            family = await store.load(thread_id)
            assert set(family.rows) == {base.key, graft.rows[0].key}
            assert set(family.writes) == {graft.rows[0].key, _key("early", thread_id=BRANCH)}
            assert dict(family.parts) == {part.part_id: part.data}
            assert family.branches == {BRANCH: graft.branch}
            seen: list[Family] = []
            await store.revise(thread_id, _noting(seen))
            assert _Seen.of(seen[0]) == _Seen.of(family)
            assert seen[0].branches == family.branches

    async def test_a_revision_changes_all_of_a_family(self, store: Store) -> None:
        part, more = _part(), _part(b"more")
        base = _row("1", parts=(part.part_id,))
        await store.put(base, [part])
        graft = await self._branched(store, base)
        hidden = base._replace(kind=Kind.HIDDEN, parts=())
        whole = _row("1", thread_id=BRANCH, body=b"whole", parts=(more.part_id,))
        change = Change(
            rows=[hidden, whole],
            writes={whole.key: [_write("other")]},
            parts=[more],
            drop_parts=frozenset([part.part_id]),
        )
        await store.revise("t", lambda _: change)
        assert await _get(store, "t", "1") is None
        page = await store.get(BRANCH, "", None, _nothing)
        assert page.entries == [Entry(whole, (_write("other"),))]
        assert page.parts == {more.part_id: more.data}
        assert await store.branches(BRANCH) == [graft.branch]

    async def test_a_thread_of_a_family_is_not_just_dropped(self, store: Store) -> None:
        await self._branched(store)
        before = self.raw_rows(store)
        for thread_id in ("t", BRANCH):
            with _expected(EntangledError):
                await store.delete_thread(thread_id)
        assert self.raw_rows(store) == before

    async def test_a_thread_ends_and_leaves_what_others_need(self, store: Store) -> None:
        base = await self._stored(store, "1")
        graft = await self._branched(store, base)
        await store.tag(Tag("tagged", base.key))
        await store.put_writes(_key("early"), [_write()])
        await store.put_writes(base.key, [_write()])
        hidden = base._replace(kind=Kind.HIDDEN)
        await store.revise(
            "t", lambda _: Change(rows=[hidden], writes={base.key: ()}, drops=frozenset(("t",)))
        )
        assert await _ids(store, _query("t")) == []
        assert list(await store.tags("t")) == []
        family = await store.load(BRANCH)
        assert set(family.rows) == {hidden.key, graft.rows[0].key}
        assert set(family.writes) == {graft.rows[0].key}
        # Then the branch, and all that was left for it.
        change = Change(deletes=list(family.rows), drops=frozenset((BRANCH,)), branches={BRANCH: None})
        await store.revise(BRANCH, lambda _: change)
        assert self.raw_rows(store) == 0
        assert list(await store.branches("t")) == []

    async def test_several_threads_end_together(self, store: Store) -> None:
        clock = _clock(store)
        base = await self._stored(store, "1")
        graft = await self._branched(store, base)
        other = Graft(
            [self._alias(base, OTHER)], graft.bases, branch=_branch()._replace(thread_id=OTHER, name="x")
        )
        assert await store.graft(other) == PutResult.STORED
        for thread_id in ("t", BRANCH, OTHER):
            await store.put_writes(_key("early", thread_id=thread_id), [_write()])
            await store.add_events([EventRow(thread_id, "1", b"e" * 16, b"head", b"body")])
        rows = [base.key, graft.rows[0].key]
        branches = {BRANCH: None}
        change = Change(deletes=rows, drops=frozenset(("t", BRANCH)), branches=branches)
        await store.revise("t", lambda _: change)
        family = await store.load(OTHER)
        assert set(family.rows) == {other.rows[0].key}
        assert set(family.writes) == {_key("early", thread_id=OTHER)}
        assert list(family.branches) == [OTHER]
        assert [len(await store.events(name)) for name in ("t", BRANCH, OTHER)] == [0, 0, 1]
        clock.now += 20
        assert list(await store.entangled()) == [OTHER]

    async def test_a_source_that_has_gone_may_begin_again(self, store: Store) -> None:
        base = await self._stored(store, "1")
        graft = await self._branched(store, base)
        await store.revise("t", lambda _: Change(deletes=[base.key], drops=frozenset(("t",))))
        part = _part()
        again = _row("2", parts=(part.part_id,))
        await store.put(again, [part])
        page = await store.get("t", "", None, _nothing)
        assert page.entries == [Entry(again, ())]
        assert page.parts == {part.part_id: part.data}
        assert set((await store.load(BRANCH)).rows) == {graft.rows[0].key, again.key}

    async def test_a_deleted_branch_s_name_is_free(self, store: Store) -> None:
        graft = await self._branched(store)
        assert graft.branch is not None
        nameless = graft.branch._replace(name="")
        await store.revise("t", lambda _: Change(branches={BRANCH: nameless}))
        assert list(await store.branches("t")) == [nameless]
        again = graft.branch._replace(thread_id=OTHER, created_at=2.0)
        base = await _get(store, "t")
        assert base is not None
        row = self._alias(base.row, OTHER)
        assert await store.graft(Graft([row], graft.bases, branch=again)) == PutResult.STORED
        both = [nameless, nameless._replace(thread_id="x")]
        await store.revise("t", lambda _: Change(branches={BRANCH: both[0]}))
        assert list(await store.branches("t")) == [nameless, again]

    # --- expiry ------------------------------------------------------------------------------------

    async def test_what_a_branch_needs_outlives_its_source(self, store: Store) -> None:
        clock = _clock(store)
        part = _part()
        base = _row("1", parts=(part.part_id,))
        await store.put(base, [part])
        clock.now += 8
        row = self._alias(base, reach=(Span("t", "", "1", "1"),), parts=(part.part_id,))
        await store.graft(Graft([row], [_base(base)], branch=_branch()))
        clock.now += 5
        assert await _get(store, "t") is None
        assert (await store.get("t", "", "1", _nothing, expired=True)).entries == [Entry(base, ())]
        assert list(await store.entangled()) == ["t"]
        assert await store.sweep() == 0
        page = await store.get(BRANCH, "", None, _nothing)
        assert (page.support, page.parts) == ({base.key: base.body}, {part.part_id: part.data})
        assert set((await store.load(BRANCH)).rows) == {base.key, row.key}

    async def test_a_write_to_an_expired_thread_of_a_family_is_refused(self, store: Store) -> None:
        clock = _clock(store)
        base = await self._stored(store, "1")
        clock.now += 8
        await self._branched(store, base)
        clock.now += 5
        with _expected(EntangledError):
            await store.put(_row("2"))
        with _expected(EntangledError):
            await store.put_writes(base.key, [_write()])
        # Once it has ended, which happens if it has expired and not otherwise, it begins anew.
        hidden = base._replace(kind=Kind.HIDDEN)
        assert await store.revise("t", lambda _: Change(rows=[hidden], drops=frozenset(("t",))), expired=True)
        assert list(await store.entangled()) == []
        await store.put(_row("2"))
        assert not await store.revise("t", lambda _: Change(deletes=[_key("2")]), expired=True)
        assert await _ids(store, _query("t")) == ["2"]
        assert await _ids(store, _query(BRANCH)) == ["1"]

    async def test_of_many_calls_one_that_meets_a_family_fails_alone(self, store: Store) -> None:
        clock = _clock(store)
        base = await self._stored(store, "1")
        clock.now += 8
        await self._branched(store, base)
        clock.now += 5
        rows = [_row("2", thread_id=thread_id) for thread_id in ("t", *(f"u{n}" for n in range(20)))]
        results = await asyncio.gather(*(store.put(row) for row in rows), return_exceptions=True)
        assert isinstance(results[0], EntangledError)
        assert results[1:] == [PutResult.STORED] * 20


class FamilyContract(_FamilyTests):
    """Every sentence of `stores.base.Store` about families, tags and grafts, as tests."""


_through_both_doors(FamilyContract, _FamilyTests)


def _base(row: CheckpointRow) -> Base:
    return Base(row.key, row.rev)


def _branch(*, thread_id: str = BRANCH, checkpoint_id: str = "1") -> Branch:
    return Branch(thread_id, "t", "t", checkpoint_id, "name", 1.0)


def _query(thread_id: str) -> Query:
    return Query(thread_id)


def _node(row: CheckpointRow) -> Node:
    return Node(row.key, row.parent_id, row.rev, row.kind, row.metadata, len(row.body) + len(row.metadata))


def _never(_: Family) -> Change:
    raise AssertionError("nothing was chosen")


def _noting(seen: list[Family]) -> Plan:
    def plan(family: Family) -> Change:
        # Parts may be had within the plan only.
        seen.append(replace(family, parts=dict(family.parts)))
        return Change()

    return plan
