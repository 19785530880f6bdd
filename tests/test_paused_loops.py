"""Event loops that stand still between one task and the next, as those of LangGraph's server do."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from helpers import thread
from langgraph.checkpoint.base import empty_checkpoint

CONNECTIONS = 3


class Worker:
    """A thread whose loop runs while there is a task, and keeps what that left behind."""

    def __init__(self, stack: ExitStack, new_loop) -> None:
        self.thread = stack.enter_context(ThreadPoolExecutor(1))
        self.loop = new_loop()
        stack.callback(self.loop.close)
        stack.callback(lambda: self.start(wind_up()).result(60))

    def start(self, work):
        return self.thread.submit(self.loop.run_until_complete, work)


async def wind_up():
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


async def work(saver, thread_id):
    config = thread(thread_id, ns="")
    for step in range(4):
        config = await saver.aput(config, empty_checkpoint(), {"step": step}, {})
        await asyncio.gather(*(saver.aget_tuple(thread(thread_id)) for _ in range(3)))


async def leave_in_the_middle(saver, thread_id):
    """End while a call is on its way; its task stays on the loop."""
    call = asyncio.ensure_future(saver.aput(thread(thread_id, ns=""), empty_checkpoint(), {}, {}))
    await asyncio.sleep(0.001)
    return call


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request):
    return pytest.importorskip(request.param).new_event_loop


@pytest.mark.parametrize("store_kind", ["redis", "postgres"])
def test_connections_come_back_from_loops_that_stand_still(make_saver, new_loop):
    saver = make_saver(pool_size=CONNECTIONS, retry_seconds=10)
    with ExitStack() as stack:
        workers = [Worker(stack, new_loop) for _ in range(2 * CONNECTIONS)]
        for _ in range(2):
            for done in [one.start(work(saver, f"t{n}")) for n, one in enumerate(workers)]:
                done.result(60)
        for one in workers:
            one.start(leave_in_the_middle(saver, "left")).result(60)
        late = Worker(stack, new_loop)
        for number in range(3):
            late.start(work(saver, f"late{number}")).result(60)
        # What was left goes on where it stood.
        for done in [one.start(work(saver, f"t{n}")) for n, one in enumerate(workers)]:
            done.result(60)
