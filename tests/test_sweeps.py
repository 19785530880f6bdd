"""Sweeps over many threads, by processes at once and by one that is killed: nothing twice, nothing left."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from helpers import CLEAN, thread
from test_processes import (
    Acks,
    arguments_of,
    check_line,
    kill_amid,
    pytestmark,  # noqa: F401
    run_all,
    writes_of,
)

from langgraph_harness_saver import HarnessCheckpointer, InvalidConfigError, core
from langgraph_harness_saver.engine import CheckpointEngine
from langgraph_harness_saver.family import ending

THREADS, LENGTH, WORKERS = 18, 4, 3
TTL = 1e6


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(url: str, **options: Any) -> HarnessCheckpointer:
    saver = HarnessCheckpointer.from_conn_string(url, **options)
    saver._sweeper.stop()
    return saver


def fill(saver: Any, threads: int = THREADS, length: int = LENGTH) -> set[str]:
    for number in range(threads):
        for step in range(length):
            saver.put_writes(saver.put(*arguments_of(f"t{number}", step)), writes_of(step), "task", "path")
    return {f"t{number}" for number in range(threads)}


def collect_share(url: str, acks: Acks, worker: int) -> None:
    with opened(url) as saver:
        report = CheckpointEngine(saver).sync.gc(retention="keep_last_n:1", share=(worker, WORKERS))
        acks.opened()([report.threads, report.removed, list(report.details)])


def test_processes_share_a_collection(place, tmp_path):
    saver, acks = place.open(), Acks(tmp_path / "acks")
    names = fill(saver)
    run_all(collect_share, [(place.url, acks, worker) for worker in range(WORKERS)])
    told = acks.read()
    assert sum(threads for threads, _, _ in told) == THREADS
    assert sum(removed for _, removed, _ in told) == THREADS * (LENGTH - 1)
    assert sorted(name for _, _, details in told for name in details) == sorted(names)
    for name in names:
        assert [item.metadata["step"] for item in saver.list(thread(name))] == [LENGTH - 1]


def expire(url: str, acks: Acks) -> None:
    with opened(url, ttl_seconds=TTL) as saver:
        saver.backend.clock = lambda: time.time() + 2 * TTL
        acks.opened()(CheckpointEngine(saver).sync.expire())


def test_what_has_expired_goes_once(place, tmp_path):
    acks = Acks(tmp_path / "acks")
    with opened(place.url, ttl_seconds=TTL) as saver:
        fill(saver, 60, 1)
        engine = CheckpointEngine(saver).sync
        fill(saver, 2, 2)
        branches = [engine.branch(f"{1:08d}", "b", f"t{number}") for number in range(2)]
        run_all(expire, [(place.url, acks)] * WORKERS)
        assert sum(acks.read()) == 60 + len(branches)
        assert engine.expire() == 0
        assert list(saver.list(None)) == []


# Elsewhere a family is locked while its change is planned.
@pytest.mark.parametrize("store_kind", ["redis"])
def test_what_another_one_has_deleted_meanwhile_does_not_count(place, monkeypatch):
    told = []

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        quicker = threading.Thread(target=lambda: told.append(CheckpointEngine(other).sync.expire()))
        quicker.start()
        quicker.join()
        return ending(*args)

    with opened(place.url, ttl_seconds=TTL) as saver, opened(place.url, ttl_seconds=TTL) as other:
        fill(saver, 1)
        CheckpointEngine(saver).sync.branch(f"{1:08d}", "b", "t0")
        for one in (saver, other):
            one.backend.clock = lambda: time.time() + 2 * TTL
        monkeypatch.setattr(core, "ending", late)
        assert CheckpointEngine(saver).sync.expire() == 0
        assert told == [2]


def collect_all(url: str, acks: Acks, last: str | None) -> None:
    ack = acks.opened()
    with opened(url) as saver:
        engine = CheckpointEngine(saver).sync
        engine.gc(retention="keep_last_n:1", after=last, progress=lambda one: ack(one.thread_id))
        while True:
            # Was done before it could be killed.
            ack(None)
            time.sleep(0.05)


def test_a_killed_collection_goes_on_where_it_was(place, tmp_path):
    saver, acks = place.open(), Acks(tmp_path / "acks")
    names = fill(saver, 60)
    kill_amid(CLEAN.Process(target=collect_all, args=(place.url, acks, None)), acks, 1)
    for name in names:
        found = sorted(saver.list(thread(name)), key=lambda item: item.metadata["step"])
        check_line(found)
        assert len(found) in (1, LENGTH)
    told = [name for name in acks.read() if name]
    report = CheckpointEngine(saver).sync.gc(retention="keep_last_n:1", after=told[-1])
    assert report.threads == len(names) - len(told)
    assert not set(report.details) & set(told)
    assert all(len(list(saver.list(thread(name)))) == 1 for name in names)


@pytest.mark.parametrize("share", [(0, 0), (3, 3), (-1, 2), 1, (0.5, 2), "01"])
def test_a_share_that_is_none_is_refused(share):
    with (
        HarnessCheckpointer.from_conn_string("memory://") as saver,
        pytest.raises(InvalidConfigError, match="as in \\(0, 3\\)"),
    ):
        CheckpointEngine(saver).sync.gc(share=share)
