"""Processes that keep threads short, and are killed amid that, or do so at once."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from helpers import CLEAN, thread
from test_processes import (
    Acks,
    arguments_of,
    check_line,
    kill_amid,
    last_number,
    pytestmark,  # noqa: F401
    run_all,
    writes_of,
)

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine

KEPT = 5
STORES = ("sqlite", "postgres", "redis")


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(url: str) -> HarnessCheckpointer:
    return HarnessCheckpointer.from_conn_string(url, retention=f"keep_last_n:{KEPT}")


def write_and_keep(url: str, acks: Acks) -> None:
    ack, saver = acks.opened(), opened(url)
    for number in count(last_number(saver, "kept") + 1):
        config = saver.put(*arguments_of("kept", number))
        ack(number)
        saver.put_writes(config, writes_of(number), "task", "path")
        if number % 7 == 0:
            CheckpointEngine(saver).sync.gc("kept")


def check_kept(saver: Any, thread_id: str, most: int) -> list[int]:
    """Check that what is left is the end of an unbroken line."""
    found = sorted(saver.list(thread(thread_id)), key=lambda item: item.metadata["step"])
    check_line(found)
    numbers = [item.metadata["step"] for item in found]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert min(numbers[-1] + 1, KEPT) <= len(numbers) <= most
    parents = [item.parent_config and item.parent_config["configurable"]["checkpoint_id"] for item in found]
    assert parents == [None, *(f"{number:08d}" for number in numbers[:-1])]
    for item in found[:-1]:
        expected = [("task", *write) for write in writes_of(item.metadata["step"])]
        # One that was killed may not have come to them.
        assert item.pending_writes == expected or (most > KEPT and not item.pending_writes)
    return numbers


def test_a_killed_process_has_kept_a_thread_short_or_not(place, tmp_path):
    acks = Acks(tmp_path / "acks")
    for seed in range(4):
        kill_amid(CLEAN.Process(target=write_and_keep, args=(place.url, acks)), acks, seed)
        with HarnessCheckpointer.from_conn_string(place.url) as saver:
            # One may have been stored of which nobody was told.
            numbers = check_kept(saver, "kept", KEPT + 1)
            assert numbers[-1] >= max(acks.read())
    saver = place.open()
    saver.delete_thread("kept")
    assert saver.run_sync(saver.backend.load("kept")).rows == {}


def keep_own_and_others(url: str, worker: int) -> None:
    with opened(url) as saver:
        engine = CheckpointEngine(saver).sync
        for number in range(40):
            saver.put_writes(
                saver.put(*arguments_of(f"worker {worker}", number)), writes_of(number), "task", "path"
            )
            assert len(list(saver.list(thread(f"worker {worker}")))) <= KEPT
            if number % 4 == worker:
                engine.gc(retention=f"keep_last_n:{KEPT}")


def test_processes_keep_each_others_threads_short(place):
    saver = place.open()
    saver.setup()
    run_all(keep_own_and_others, [(place.url, worker) for worker in range(3)])
    for worker in range(3):
        assert check_kept(saver, f"worker {worker}", KEPT)[-1] == 39
