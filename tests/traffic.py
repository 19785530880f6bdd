"""Callers of a saver who note what was acknowledged, while a server goes away and comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from helpers import thread
from servers import wait_for
from test_processes import arguments_of, check_line, check_survivors, writes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from langgraph_harness_saver import HarnessCheckpointer

HANG = 30
# What a call may take beyond retry_seconds: a statement that has begun gets five seconds.
GRACE = 5 + 2.5


def in_threads(works: list[Callable[[], Any]], seconds: float = HANG) -> list[Any]:
    """Run at once; give what each returned or raised, and fail if one hangs."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(works))]
    for worker in threads:
        worker.start()
    end = time.monotonic() + seconds
    for worker in threads:
        worker.join(max(end - time.monotonic(), 0))
    hanging = [number for number, worker in enumerate(threads) if worker.is_alive()]
    assert hanging == []
    return results


def succeed(works: list[Callable[[], Any]], seconds: float = HANG) -> list[Any]:
    results = in_threads(works, seconds)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise errors[0]
    return results


class Traffic:
    """Async callers and sync threads that write and read; what was acknowledged is noted."""

    def __init__(self, saver: HarnessCheckpointer, tasks: int = 8, threads: int = 6) -> None:
        self.saver, self.tasks, self.threads = saver, tasks, threads
        self.acks: list[Any] = []
        self.stop = threading.Event()

    def sync_worker(self, name: str) -> None:
        for number in count():
            if self.stop.is_set():
                return
            config = self.saver.put(*arguments_of(name, number))
            self.acks.append(["put", name, number])
            self.saver.put_writes(config, writes_of(number), "task", "path")
            self.acks.append(["writes", name, number])
            found = self.saver.get_tuple(thread(name))
            assert found is not None
            check_line([found])
            if number % 5 == 4:
                assert len(list(self.saver.list(thread(name), limit=3))) == 3

    async def async_worker(self, name: str) -> None:
        for number in count():
            if self.stop.is_set():
                return
            config = await self.saver.aput(*arguments_of(name, number))
            self.acks.append(["put", name, number])
            await self.saver.aput_writes(config, writes_of(number), "task", "path")
            self.acks.append(["writes", name, number])
            found = await self.saver.aget_tuple(thread(name))
            assert found is not None
            check_line([found])

    def async_workers(self) -> None:
        async def work() -> None:
            await asyncio.gather(*(self.async_worker(f"task {n}") for n in range(self.tasks)))

        asyncio.run(work())

    def run(self, disturb: Callable[[], None]) -> None:
        def disturb_and_stop() -> None:
            try:
                wait_for(lambda: self.stop.is_set() or len(self.acks) > 30, HANG)
                disturb()
                before = len(self.acks)
                wait_for(lambda: self.stop.is_set() or len(self.acks) > before + 30, HANG)
            finally:
                self.stop.set()

        def until_one_fails(work: Callable[[], Any]) -> None:
            try:
                work()
            finally:
                self.stop.set()

        works = [lambda n=n: self.sync_worker(f"thread {n}") for n in range(self.threads)]
        workers: list[Callable[[], Any]] = [
            lambda w=work: until_one_fails(w) for work in (*works, self.async_workers)
        ]
        results = in_threads([*workers, disturb_and_stop], 2 * HANG)
        assert [repr(result) for result in results if result is not None] == []
        check_survivors(list(self.saver.list(None)), self.acks)


CALLS: dict[str, Callable[[HarnessCheckpointer], Any]] = {
    "put": lambda saver: saver.put(*arguments_of("t", 1)),
    "put_writes": lambda saver: saver.put_writes(thread("t", "00000000", ns=""), writes_of(1), "task"),
    "get_tuple": lambda saver: saver.get_tuple(thread("t")),
    "list": lambda saver: list(saver.list(thread("t"))),
    "delete_thread": lambda saver: saver.delete_thread("t"),
    "prune": lambda saver: saver.prune(["t"]),
    "copy_thread": lambda saver: saver.copy_thread("t", "u"),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["run"]),
}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.monotonic()
    try:
        result = work()
    except Exception as error:
        result = error
    return time.monotonic() - begin, result
