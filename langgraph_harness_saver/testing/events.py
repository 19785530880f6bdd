"""The contract of stores for events: what happened inside steps.

Subclass `EventContract` as `langgraph_harness_saver.testing` says of `StoreContract`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from langgraph_harness_saver.errors import EntangledError
from langgraph_harness_saver.rows import Base, Branch, Change, EventRow, Graft, Kind
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.tools import (
    ODD_IDS,
    _bytes,
    _clock,
    _expected,
    _get,
    _ids,
    _key,
    _revise,
    _row,
    _StoreBase,
    _through_both_doors,
    _write,
)

BRANCH = "1f0a3c5e-7b9d-6e2f-8a4b-000000000001"


class _EventTests(_StoreBase):
    # --- adding and reading ------------------------------------------------------------------------

    async def test_events_come_by_checkpoint_and_id(self, store: Store) -> None:
        await store.put(_row("1"))
        events = [_event("1", 2), _event("2", 1), _event("1", 1), _event("1", 3, thread_id="u")]
        await store.add_events(events)
        assert await _events(store) == [events[2], events[0], events[1]]
        assert await _events(store, "u") == [events[3]]
        assert await _events(store, "v") == []

    async def test_an_event_is_stored_once(self, store: Store) -> None:
        await store.add_events([_event("1", 1), _event("1", 1)])
        await store.add_events([_event("1", 1, body=b"another"), _event("1", 2)])
        assert await _events(store) == [_event("1", 1), _event("1", 2)]
        before = self.raw_rows(store)
        await store.add_events([_event("1", 1)])
        assert self.raw_rows(store) == before

    async def test_events_of_some_checkpoints(self, store: Store) -> None:
        events = [_event(checkpoint_id, n) for checkpoint_id in ("1", "2", "3", "30") for n in (1, 255)]
        await store.add_events(events)
        assert await _events(store, ids=["3", "1", "0", "1"]) == [*events[:2], *events[4:6]]
        assert await _events(store, ids=[]) == []

    async def test_events_come_in_pages(self, store: Store) -> None:
        events = [_event(checkpoint_id, n) for checkpoint_id in ("1", "2", "3") for n in (0, 1, 255)]
        await store.add_events(events)
        for ids in (None, ["3", "2", "1"], ["1", "3"]):
            wanted = [event for event in events if ids is None or event.checkpoint_id in ids]
            for size in (1, 2, 4):
                assert await _events(store, ids=ids, size=size) == wanted

    async def test_bodies_can_be_left_out(self, store: Store) -> None:
        await store.add_events([_event("1", 1), _event("1", 2, head=b"", body=b"")])
        found = await store.events("t", bare=True)
        assert list(found) == [_event("1", 1, body=b""), _event("1", 2, head=b"", body=b"")]

    async def test_ids_of_all_kinds(self, store: Store) -> None:
        for thread_id in ODD_IDS:
            events = [_event(checkpoint_id, 1, thread_id=thread_id) for checkpoint_id in ODD_IDS[:12]]
            await store.add_events(events[::-1])
            wanted = sorted(events, key=lambda event: _bytes(event.checkpoint_id))
            assert await _events(store, thread_id, size=5) == wanted
            assert await _events(store, thread_id, ids=ODD_IDS[3:5]) == [
                event for event in wanted if event.checkpoint_id in ODD_IDS[3:5]
            ]

    async def test_bytes_of_all_kinds(self, store: Store) -> None:
        head, body = bytes(range(256)), bytes(range(255, -1, -1)) * 4096
        event = EventRow("t", "1", b"\xff" * 16, head, body)
        other = event._replace(event_id=b"\x00" * 16)
        await store.add_events([event, other])
        assert await _events(store) == [other, event]

    async def test_events_may_come_before_their_checkpoint(self, store: Store) -> None:
        await store.add_events([_event("1", 1)])
        assert await _get(store, "t") is None
        assert await _ids(store) == []
        await store.put(_row("1"))
        assert await _events(store) == [_event("1", 1)]

    async def test_reopening_keeps_events(self, store: Store) -> None:
        await store.add_events([_event("1", 1)])
        async with self._other(store) as other:
            assert await _events(other) == [_event("1", 1)]

    # --- deleting ----------------------------------------------------------------------------------

    async def test_events_go_with_their_checkpoint(self, store: Store) -> None:
        events = await self._three(store)
        await _revise(store, deletes=[_key("2")])
        assert await _events(store) == [events[0], events[2]]

    async def test_events_go_when_their_checkpoint_is_hidden(self, store: Store) -> None:
        events = await self._three(store)
        await _revise(store, rows=[_row("2", kind=Kind.HIDDEN)])
        assert await _events(store) == [events[0], events[2]]

    async def test_events_stay_when_their_checkpoint_is_changed(self, store: Store) -> None:
        events = await self._three(store)
        anchor = _row("11", kind=Kind.ANCHOR)
        await _revise(store, rows=[_row("2", body=b"another"), anchor], deletes=[_key("2", ns="sub")])
        await _revise(store, rows=[anchor._replace(rev=5)])
        await _revise(store, deletes=[anchor.key])
        assert await _events(store) == events

    async def test_what_was_never_stored_goes_with_what_came_next(self, store: Store) -> None:
        events = await self._three(store)
        early, late = [_event("11", 1), _event("12", 1)], _event("31", 1)
        await store.add_events([*early, late, _event("21", 1)])
        await _revise(store, deletes=[_key("1")])
        assert await _events(store) == [*early, events[1], _event("21", 1), events[2], late]
        await _revise(store, deletes=[_key("2")], rows=[_row("4")])
        assert await _events(store) == [_event("21", 1), events[2], late]
        await _revise(store, deletes=[_key("3"), _key("4")], rows=[_row("5")])
        assert await _events(store) == []

    async def test_nothing_is_left_of_a_thread(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await self._three(store)
        await store.add_events([_event("9", 1), _event("9", 1, thread_id="u")])
        assert await store.delete_thread("t") == 4
        assert await _events(store) == []
        assert await store.delete_thread("u") == 0
        assert self.raw_rows(store) == empty

    async def test_a_change_that_leaves_nothing_else_takes_events_along(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await self._three(store)
        await store.add_events([_event("9", 1)])
        await _revise(store, deletes=[_key("1"), _key("2"), _key("3"), _key("2", ns="sub")])
        assert await _events(store) == []
        assert self.raw_rows(store) == empty

    async def test_a_change_that_changes_nothing_leaves_events(self, store: Store) -> None:
        await store.add_events([_event("1", 1)])
        await _revise(store)
        assert await _events(store) == [_event("1", 1)]

    async def test_a_change_may_bring_events(self, store: Store) -> None:
        await store.add_events([_event("1", 1)])
        await _revise(store, rows=[_row("1")], events=[_event("1", 1, body=b"another"), _event("1", 2)])
        assert await _events(store) == [_event("1", 1), _event("1", 2)]

    # --- families ----------------------------------------------------------------------------------

    async def test_events_of_a_family_s_threads(self, store: Store) -> None:
        empty = self.raw_rows(store)
        await self._branched(store)
        own, branch = _event("1", 1), _event("1", 1, thread_id=BRANCH)
        await store.add_events([own, branch, _event("9", 1, thread_id=BRANCH)])
        hidden = _row("1", kind=Kind.HIDDEN)
        await _revise(store, rows=[hidden], drops=frozenset(("t",)))
        assert await _events(store) == []
        assert await _events(store, BRANCH) == [branch, _event("9", 1, thread_id=BRANCH)]
        deletes = [hidden.key, _key("1", thread_id=BRANCH)]
        await store.revise(
            BRANCH, lambda _: Change(deletes=deletes, drops=frozenset((BRANCH,)), branches={BRANCH: None})
        )
        assert await _events(store, BRANCH) == []
        assert self.raw_rows(store) == empty

    async def test_a_branch_that_loses_all_loses_its_events(self, store: Store) -> None:
        await self._branched(store)
        await store.add_events([_event("9", 1, thread_id=BRANCH), _event("1", 1)])
        await store.revise(BRANCH, lambda _: Change(deletes=[_key("1", thread_id=BRANCH)]))
        assert await _events(store, BRANCH) == []
        assert await _events(store) == [_event("1", 1)]

    # --- expiry ------------------------------------------------------------------------------------

    async def test_events_expire_with_their_thread(self, store: Store) -> None:
        empty = self.raw_rows(store)
        clock = _clock(store)
        await store.add_events([_event("1", 1)])
        clock.now += 8
        await store.add_events([_event("1", 2)])
        clock.now += 8
        assert await _events(store) == [_event("1", 1), _event("1", 2)]
        clock.now += 3
        assert await _events(store) == []
        assert list(await store.events("t", expired=True)) == [_event("1", 1), _event("1", 2)]
        assert await store.sweep() == 1
        assert list(await store.events("t", expired=True)) == []
        assert self.raw_rows(store) == empty

    async def test_events_renew_their_thread(self, store: Store) -> None:
        clock = _clock(store)
        await store.put(_row("1"))
        clock.now += 8
        await store.add_events([_event("1", 1)])
        clock.now += 8
        assert await _ids(store) == ["1"]

    async def test_an_expired_thread_begins_anew_with_an_event(self, store: Store) -> None:
        clock = _clock(store)
        await self._three(store)
        clock.now += 11
        await store.add_events([_event("5", 1)])
        assert await _events(store) == [_event("5", 1)]
        assert await _ids(store) == []

    async def test_an_event_of_an_expired_thread_of_a_family_is_refused(self, store: Store) -> None:
        clock = _clock(store)
        await store.put(_row("1"))
        clock.now += 8
        await self._branched(store)
        clock.now += 8
        await store.put(_row("3", thread_id=BRANCH))
        clock.now += 8
        with _expected(EntangledError):
            await store.add_events([_event("1", 1)])

    # --- helpers -----------------------------------------------------------------------------------

    async def _three(self, store: Store) -> list[EventRow]:
        for checkpoint_id in ("1", "2", "3"):
            await store.put(_row(checkpoint_id))
        await store.put(_row("2", ns="sub"))
        events = [_event(checkpoint_id, 1) for checkpoint_id in ("1", "2", "3")]
        await store.add_events(events)
        return events

    async def _branched(self, store: Store) -> None:
        base = _row("1")
        await store.put(base)
        row = _row("1", thread_id=BRANCH)
        record = Branch(BRANCH, "t", "t", "1", "name", 1.0)
        await store.graft(
            Graft([row], [Base(base.key, base.rev)], writes={row.key: [_write()]}, branch=record)
        )


class EventContract(_EventTests):
    """Every sentence of `stores.base.Store` about events, as tests."""


_through_both_doors(EventContract, _EventTests)


def _event(
    checkpoint_id: str, number: int, *, thread_id: str = "t", head: bytes = b"head", body: bytes = b"body"
) -> EventRow:
    return EventRow(thread_id, checkpoint_id, bytes([7] * 15 + [number]), head, body)


async def _events(
    store: Store, thread_id: str = "t", ids: Collection[str] | None = None, size: int = 100
) -> Sequence[EventRow]:
    """Read page by page, as the core does."""
    found: list[EventRow] = []
    while True:
        page = await store.events(thread_id, ids, after=found[-1] if found else None, size=size)
        found += page
        if len(page) < size:
            return found
