"""Sync callers on one event loop: who runs it, and what becomes of it where they are interrupted."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import thread
from langgraph.checkpoint.base import empty_checkpoint

from langgraph_harness_saver import StoreError, StoreNotOpenError
from langgraph_harness_saver.bridge import Bridge


@pytest.fixture
def bridge():
    made = Bridge("async")
    yield made
    made.close()


async def where():
    await asyncio.sleep(0)
    return threading.current_thread()


def in_thread(work):
    """Run it in a thread that no signal handler runs in."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


def is_soon_run_here(bridge):
    """Tell whether calls are run by their caller once the thread has seen that nobody else is left."""
    for _ in range(1000):
        if bridge.run(where()) is threading.current_thread():
            return True
        time.sleep(0.001)
    return False


def put_one(saver, thread_id):
    return saver.put(thread(thread_id, ns=""), empty_checkpoint(), {"source": "loop"}, {})


def test_a_lone_caller_runs_the_loop_itself(bridge):
    assert in_thread(lambda: bridge.run(where()) is threading.current_thread())
    assert bridge.run(where()) is threading.main_thread()
    assert not [one for one in threading.enumerate() if one.name == "harness-loop"]


def test_callers_who_come_meanwhile_are_served_together(bridge):
    here = []
    all_are_here = asyncio.Event()

    async def meet(number):
        here.append(number)
        if len(here) == 16:
            all_are_here.set()
        await all_are_here.wait()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: bridge.run(meet(number)), range(16)))
    assert is_soon_run_here(bridge)


async def test_a_caller_with_a_loop_of_its_own_is_served(bridge):
    assert bridge.run(where()).name == "harness-loop"


@pytest.mark.parametrize("caller", ["alone", "served"])
def test_a_call_within_a_call_says_that_it_would_wait_for_itself(bridge, caller):
    async def within():
        with pytest.raises(StoreError, match="would wait for itself"):
            bridge.run(where())
        return threading.current_thread()

    async def beside():
        return bridge.run(within())

    if caller == "alone":
        assert bridge.run(within()) is threading.current_thread()
    else:
        assert asyncio.run(beside()).name == "harness-loop"


def test_the_main_thread_runs_nothing_where_a_signal_handler_may_raise(bridge):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert bridge.run(where()).name == "harness-loop"
        assert in_thread(lambda: is_soon_run_here(bridge))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupt_cancels_the_call_at_once(bridge):
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        bridge.run(asyncio.sleep(10_000))
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert bridge.run(where()) is threading.main_thread()


def test_close_ends_the_calls_of_others(bridge, monkeypatch):
    monkeypatch.setattr("langgraph_harness_saver.shared_loop.CLOSE_SECONDS", 0.1)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(bridge.run, asyncio.sleep(60)) for _ in range(2)]
        while not all(call.running() for call in calls):
            time.sleep(0.01)
        time.sleep(0.1)
        bridge.close()
        for call in calls:
            with pytest.raises(StoreNotOpenError, match="closed while this call was under way"):
                call.result(30)


def test_what_ends_the_process_ends_the_loop_and_not_the_bridge(bridge):
    async def leave():
        raise SystemExit(3)

    for run in (bridge.run, lambda work: in_thread(lambda: bridge.run(work))):
        with pytest.raises(SystemExit):
            run(leave())
        assert bridge.run(where())


# An interrupt may come before the call that it ends has begun.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("store_kind", ["redis", "postgres"])
def test_a_saver_survives_interrupts_at_any_moment(make_saver, store_kind):
    saver = make_saver(pool_size=2)
    saver.setup()
    rng = random.Random(7)
    stopping = threading.Event()

    def go_on():
        count = 0
        while not stopping.is_set():
            put_one(saver, "others")
            count += 1
        return count

    def interrupted():
        timer = threading.Timer(rng.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                put_one(saver, "t")
        finally:
            timer.join()

    with ThreadPoolExecutor(1) as pool:
        others = None
        for number in range(60):
            if number == 30:
                others = pool.submit(go_on)
            with pytest.raises(KeyboardInterrupt):
                interrupted()
        stopping.set()
        assert others.result(30) > 0
    last = put_one(saver, "t")
    assert saver.get_tuple(last).metadata["source"] == "loop"
    assert len(list(saver.list(thread("others")))) > 0
