"""Threads kept to a policy as they are written to: what is seen after each put, and how much is stored."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from helpers import id_of, thread
from test_processes import arguments_of, check_line, writes_of

from langgraph_harness_saver import CheckpointEngine, Event, InvalidConfigError, Retention
from langgraph_harness_saver.keeping import weight


@pytest.fixture(params=["memory", "sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


def numbers(saver: Any) -> list[int]:
    found = list(saver.list(thread("t")))
    check_line(found)
    return sorted(item.metadata["step"] for item in found)


def put(saver: Any, number: int, **changes: Any) -> Any:
    config, checkpoint, metadata, versions = arguments_of("t", number)
    stored = saver.put(config, {**checkpoint, **changes}, metadata, versions)
    saver.put_writes(stored, writes_of(number), "task", "path")
    return stored


def test_age_is_told_by_the_checkpoints_time(make_saver):
    for saver in (make_saver(retention="keep_age:10"), make_saver(retention="keep_age:10")):
        clock = [1_000_000.0]
        saver._keeping()._clock = lambda clock=clock: clock[0]
        first = len(numbers(saver))
        for number in range(first, first + 20):
            clock[0] += 3
            put(saver, number, ts=datetime.fromtimestamp(clock[0], timezone.utc).isoformat())
            assert numbers(saver) == list(range(max(number - 3, 0), number + 1))
        saver.delete_thread("t")
        assert saver.failures == 0


def test_bytes_stay_within_the_budget(make_saver):
    budget = 150_000
    saver = make_saver(retention=Retention("max_bytes", budget))
    for number in range(80):
        put(saver, number)
        assert numbers(saver)[-1] == number
        family = saver.run_sync(saver.backend.load("t"))
        # The latest writes come after their checkpoint.
        assert weight(family, "t") <= budget + 2_000
    assert 2 < len(numbers(saver)) < 80
    assert saver.failures == 0


def test_events_count_where_bytes_do(make_saver):
    budget = 60_000
    saver = make_saver(retention=Retention("max_bytes", budget))
    engine, recorder = CheckpointEngine(saver).sync, CheckpointEngine(saver).recorder
    for number in range(60):
        checkpoint_id = id_of(put(saver, number, channel_values={}))
        recorder.record(Event("tool_call", "look", "t", checkpoint_id, output=random.randbytes(1500).hex()))
        assert recorder.flush()
        noted = saver.run_sync(saver._core.event_bytes("t"))
        family = saver.run_sync(saver.backend.load("t"))
        # The latest event comes after its checkpoint.
        assert weight(family, "t") + sum(noted.values()) <= budget + 5_000
        assert min(noted) >= engine.list_checkpoints("t")[-1].checkpoint_id
    assert 2 < len(engine.list_checkpoints("t")) < 60
    foretold = engine.gc("t", retention="keep_last_n:1", dry_run=True)
    # Less what the anchor takes over: the differences that the writes of those that go were stored as.
    assert foretold.bytes > sum(list(noted.values())[:-1]) - 4_000
    assert engine.gc("t", retention="keep_last_n:1") == replace(foretold, dry_run=False)
    assert saver.failures == 0


def test_rows_stay_as_many_as_the_policy_says(make_saver):
    saver = make_saver(retention="keep_last_n:5")
    most = 0
    for number in range(300):
        config = put(saver, number)
        assert len(list(saver.list(thread("t")))) <= 5
        most = max(most, len(saver.run_sync(saver.backend.load("t")).rows))
    assert id_of(config) == f"{299:08d}"
    assert most < 300
    assert numbers(saver) == [295, 296, 297, 298, 299]


def test_retention_is_set_in_several_ways(make_saver, monkeypatch):
    assert make_saver().retention == Retention()
    saver = make_saver(retention="keep_last_n:3")
    assert saver.retention == Retention("keep_last_n", 3)
    saver.retention = "keep_age:60"
    assert saver.with_allowlist([("a", "B")]).retention == Retention("keep_age", 60)
    monkeypatch.setenv("HARNESS_SAVER_RETENTION", "keep_milestones:7")
    assert make_saver().retention == Retention("keep_milestones", 7)
    with pytest.raises(InvalidConfigError, match="takes a number"):
        make_saver(retention="keep_last_n:none")
