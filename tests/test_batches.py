"""Calls that arrive while others are under way leave together, and a lone one doesn't wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langgraph_harness_saver.stores import batches
from langgraph_harness_saver.stores.batches import Batches, Call, Watch


class Wire:
    """Notes what leaves together; each flight arrives when it is told to."""

    def __init__(self) -> None:
        self.flights: list[list[Any]] = []
        self.arrivals: list[asyncio.Event] = []

    async def flush(self, calls: Sequence[Call[Any]]) -> Sequence[Call[Any]]:
        self.flights.append([call.payload for call in calls])
        arrival = asyncio.Event()
        self.arrivals.append(arrival)
        await arrival.wait()
        for call in calls:
            call.resolve(call.payload)
        return ()


async def submitted(queue: Batches[int], payloads: Sequence[int]) -> list[asyncio.Task[Any]]:
    async def submit(payload: int) -> Any:
        return await queue.submit(payload, 1, 30)

    tasks = [asyncio.create_task(submit(payload)) for payload in payloads]
    await settled()
    return tasks


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_lone_call_leaves_at_once_and_few_wait_for_it():
    wire = Wire()
    queue = Batches[int](wire.flush, 256, 1 << 20, enough=16)
    tasks = await submitted(queue, range(9))
    assert wire.flights == [[0]]
    wire.arrivals[0].set()
    await settled()
    assert wire.flights == [[0], list(range(1, 9))]
    wire.arrivals[1].set()
    assert await asyncio.gather(*tasks) == list(range(9))


async def test_many_leave_in_equal_shares():
    wire = Wire()
    queue = Batches[int](wire.flush, 256, 1 << 20, enough=16)
    tasks = await submitted(queue, range(65))
    # The first has left alone. Half of those that wait take off beside it: the halves will take turns.
    assert [len(flight) for flight in wire.flights] == [1, 32]
    wire.arrivals[0].set()
    await settled()
    assert [len(flight) for flight in wire.flights] == [1, 32, 32]
    for arrival in wire.arrivals[1:]:
        arrival.set()
    assert await asyncio.gather(*tasks) == list(range(65))


async def test_a_flight_is_bounded_in_calls_and_bytes():
    wire = Wire()
    queue = Batches[int](wire.flush, 5, 3, enough=2)
    tasks = await submitted(queue, range(20))
    while not all(task.done() for task in tasks):
        for arrival in wire.arrivals:
            arrival.set()
        await settled()
    assert max(map(len, wire.flights)) == 3
    assert sorted(payload for flight in wire.flights for payload in flight) == list(range(20))


async def turns_while(seconds: float, watch: Watch) -> int:
    """Count how often the loop turns while a call of so many seconds is under way."""
    loop, turns = asyncio.get_running_loop(), 0
    run_once = loop._run_once

    def count() -> None:
        nonlocal turns
        turns += 1
        run_once()

    loop._run_once = count
    watch.begin()
    await asyncio.sleep(seconds)
    watch.end()
    del loop._run_once
    return turns


async def test_a_loop_stays_awake_for_answers_that_come_soon_and_only_so_long(monkeypatch):
    monkeypatch.setattr(batches, "_processors", lambda: 2)
    watch = Watch()
    assert await turns_while(0.02, watch) < 5
    watch._usual = batches.LONGEST_WATCH / 2
    awake = await turns_while(0.02, watch)
    assert awake > 10
    # It has given up long before: the answer took longer than is usual, which it isn't any more.
    assert watch._usual > batches.LONGEST_WATCH
    assert await turns_while(0.02, watch) < 5


async def test_where_there_is_one_processor_it_is_left_to_others(monkeypatch):
    monkeypatch.setattr(batches, "_processors", lambda: 1)
    watch = Watch()
    for _ in range(50):
        watch.begin()
        watch.end()
    assert await turns_while(0.0001, watch) < 5


async def test_the_watch_ends_with_the_call(monkeypatch):
    monkeypatch.setattr(batches, "_processors", lambda: 2)
    watch = Watch()
    watch._usual = batches.LONGEST_WATCH / 2
    watch.begin()
    watch.end()
    await settled()
    assert not watch._awake
