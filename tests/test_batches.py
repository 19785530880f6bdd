"""Calls that arrive while others are under way leave together, and a lone one doesn't wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

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


async def test_where_one_is_enough_as_many_leave_as_may_and_the_rest_shares_the_next():
    wire = Wire()
    queue = Batches[int](wire.flush, 256, 1 << 20, enough=1, max_flights=3)
    tasks = await submitted(queue, range(10))
    assert [len(flight) for flight in wire.flights] == [1, 3, 3]
    wire.arrivals[1].set()
    await settled()
    assert [len(flight) for flight in wire.flights] == [1, 3, 3, 2]
    while not all(task.done() for task in tasks):
        for arrival in wire.arrivals:
            arrival.set()
        await settled()
    assert sorted(payload for flight in wire.flights for payload in flight) == list(range(10))


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


class Loop:
    """A clock that is set, and callbacks that are called when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def turn(self, seconds: float) -> bool:
        """Let time pass, then do what was to be done soon; tell whether there is more."""
        self.now += seconds
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        return bool(self.soon)


def watching(monkeypatch: pytest.MonkeyPatch, processors: int, usual: float) -> tuple[Watch, Loop]:
    loop = Loop()
    monkeypatch.setattr(batches, "_processors", lambda: processors)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    watch = Watch()
    for _ in range(100):
        watch.begin()
        loop.turn(usual)
        watch.end()
    loop.turn(0)
    return watch, loop


def test_a_loop_stays_awake_for_answers_that_come_soon_and_only_so_long(monkeypatch):
    watch, loop = watching(monkeypatch, 2, 0.0002)
    watch.begin()
    assert [loop.turn(0.00009) for _ in range(6)] == [True, True, True, True, False, False]
    # The answer took longer than is usual; where they all do, none is waited for.
    for _ in range(20):
        loop.now += 0.01
        watch.end()
        watch.begin()
    loop.turn(0)
    assert not loop.turn(0)


@pytest.mark.parametrize(("processors", "usual"), [(1, 0.0002), (2, 0.01)])
def test_a_loop_sleeps_where_there_is_one_processor_or_the_server_is_far_away(monkeypatch, processors, usual):
    watch, loop = watching(monkeypatch, processors, usual)
    watch.begin()
    assert loop.soon == []


def test_the_watch_ends_with_the_call(monkeypatch):
    watch, loop = watching(monkeypatch, 2, 0.0002)
    watch.begin()
    assert loop.turn(0.0001)
    watch.end()
    assert not loop.turn(0)
