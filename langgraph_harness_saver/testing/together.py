"""The contract of stores: many callers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.errors import HeadMovedError
from langgraph_harness_saver.rows import (
    Change,
    Entry,
    Family,
    PutResult,
    Query,
)
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.testing.tools import (
    _get,
    _ids,
    _key,
    _keys,
    _nothing,
    _part,
    _PlanError,
    _poisoned_part,
    _put,
    _row,
    _Seen,
    _StoreBase,
    _write,
)


class _TogetherTests(_StoreBase):
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

    async def test_of_many_writes_those_are_refused_whose_parts_are_gone(self, store: Store) -> None:
        part, gone = _part(b"there"), _part(b"gone")
        await store.put_writes(_key("0"), [_write(parts=(part.part_id,))], [part])
        calls: list[Coroutine[Any, Any, Any]] = []
        for number in range(60):
            thread_id, brought = "tu"[number % 2], _part(b"%d" % number)
            key = _key(f"{number:02}", thread_id=thread_id)
            named = (brought.part_id, (part, gone)[number % 3 == 2].part_id)
            calls += [
                store.put_writes(key, [_write(parts=named), _write("other")], [brought]),
                store.put_writes(key, [_write("plain")]),
                store.put(_row(key.checkpoint_id, thread_id=thread_id)),
            ]
        results = await asyncio.gather(*calls)
        stored = [n for n in range(60) if n % 3 != 2 and n % 2 == 0]
        assert [n for n, result in enumerate(results[::3]) if result == PutResult.STORED] == stored
        assert {*results[1::3], *results[2::3]} == {PutResult.STORED}
        for thread_id in "tu":
            family = await store.load(thread_id)
            full = {k.checkpoint_id for k, some in family.writes.items() if len(some) == 3}
            assert full == {f"{n:02}" for n in stored if "tu"[n % 2] == thread_id}
            named_parts = {p for some in family.writes.values() for write in some for p in write.parts}
            assert named_parts == set(family.parts)

    async def test_no_part_is_dropped_that_a_write_comes_to_name(self, store: Store) -> None:
        leaning = [_write(str(number), parts=(_part().part_id,)) for number in range(3)]

        def drop(family: Family) -> Change:
            named = any(write.parts for k, some in family.writes.items() if k != _key("0") for write in some)
            return Change(
                writes={_key("0"): ()},
                drop_parts=frozenset() if named else frozenset([_part().part_id]),
            )

        async with self._other(store) as other:
            for number in range(20):
                await store.put(_row("0"))
                await store.put_writes(_key("0"), [_write(parts=(_part().part_id,))], [_part()])
                calls: list[Coroutine[Any, Any, Any]] = [
                    store.put_writes(_key(f"1{n}"), [write]) for n, write in enumerate(leaning)
                ]
                end = other.revise("t", drop) if number % 2 else other.delete_thread("t")
                calls.insert(number % 4, end)
                results = await asyncio.gather(*calls)
                del results[number % 4]
                family = await store.load("t")
                there = {write for some in family.writes.values() for write in some if write.parts}
                assert not there or _part().part_id in family.parts
                if number % 2:
                    kept = {w for w, result in zip(leaning, results, strict=True) if result == 0}
                    assert there == kept
                await store.delete_thread("t")

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
            assert (stored, written) == (PutResult.STORED, PutResult.STORED)
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
