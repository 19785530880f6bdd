"""Threads that expire: gone from reads at once, from disk soon after."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Door, thread
from langgraph.checkpoint.base import empty_checkpoint

from langgraph_harness_saver import CheckpointEngine, HarnessCheckpointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HANG = 20
SHORT = 0.3


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def saver(make_saver: Callable[..., Any], clock: Clock) -> Any:
    saver = make_saver(ttl_seconds=100)
    saver.backend.clock = clock
    return saver


def put(saver: Any, door: Door, thread_id: str, number: int, parent: str | None = None) -> Any:
    checkpoint = {
        **empty_checkpoint(),
        "id": f"{number}",
        "channel_values": {"log": [number]},
        "channel_versions": {"log": f"{number}"},
    }
    metadata = {"step": number, "run_id": "run"}
    return door.call(saver, "put", thread(thread_id, parent, ns=""), checkpoint, metadata, {})


def steps(saver: Any, door: Door, config: Any) -> list[int]:
    return [item.metadata["step"] for item in door.collect(saver, "list", config)]


def test_expired_thread_is_gone_from_every_read(saver: Any, door: Door, clock: Clock) -> None:
    config = put(saver, door, "old", 1)
    door.call(saver, "put_writes", config, [("log", 1)], "task")
    put(saver, door, "old", 2, parent="1")
    clock.now += 50
    put(saver, door, "young", 3)
    clock.now += 49.9
    assert steps(saver, door, thread("old")) == [2, 1]
    clock.now += 0.1
    assert door.call(saver, "get_tuple", thread("old")) is None
    assert door.call(saver, "get_tuple", config) is None
    assert door.call(saver, "get_record", config) is None
    assert steps(saver, door, thread("old")) == []
    assert steps(saver, door, None) == [3]
    history = door.call(saver, "get_delta_channel_history", config=thread("old"), channels=["log"])
    assert history == {"log": {"writes": []}}
    door.call(saver, "copy_thread", "old", "copy")
    assert steps(saver, door, thread("copy")) == []
    assert door.call(saver, "delete_thread", "old") == 0
    assert steps(saver, door, thread("young")) == [3]


@pytest.mark.parametrize("by", ["put", "put_writes"])
def test_writing_renews(saver: Any, door: Door, clock: Clock, by: str) -> None:
    config = put(saver, door, "t", 1)
    for number in range(2, 6):
        clock.now += 90
        if by == "put":
            put(saver, door, "t", number, parent=f"{number - 1}")
        else:
            door.call(saver, "put_writes", config, [("log", number)], f"task {number}")
    assert steps(saver, door, thread("t"))[-1] == 1
    clock.now += 100
    assert steps(saver, door, thread("t")) == []


def test_putting_the_same_again_renews(saver: Any, door: Door, clock: Clock) -> None:
    for _ in range(3):
        put(saver, door, "t", 1)
        clock.now += 90
    assert steps(saver, door, thread("t")) == [1]


def test_reading_pruning_and_being_copied_do_not_renew(saver: Any, door: Door, clock: Clock) -> None:
    put(saver, door, "t", 1)
    put(saver, door, "t", 2, parent="1")
    clock.now += 90
    assert steps(saver, door, thread("t")) == [2, 1]
    door.call(saver, "prune", ["t"])
    door.call(saver, "copy_thread", "t", "copy")
    clock.now += 10
    assert steps(saver, door, thread("t")) == []
    assert steps(saver, door, thread("copy")) == [2]
    clock.now += 90
    assert steps(saver, door, None) == []


@pytest.mark.parametrize("parent", [None, "1"])
def test_put_to_an_expired_thread_starts_anew(
    saver: Any, door: Door, clock: Clock, parent: str | None
) -> None:
    config = put(saver, door, "t", 1)
    door.call(saver, "put_writes", config, [("log", 1)], "task")
    clock.now += 100
    put(saver, door, "t", 2, parent=parent)
    assert steps(saver, door, thread("t")) == [2]
    found = door.call(saver, "get_tuple", thread("t"))
    assert found.checkpoint["channel_values"] == {"log": [2]}
    put(saver, door, "t", 1)
    assert door.call(saver, "get_tuple", thread("t", "1")).pending_writes == []


def test_writes_to_an_expired_thread_start_anew(saver: Any, door: Door, clock: Clock) -> None:
    config = put(saver, door, "t", 1)
    clock.now += 100
    door.call(saver, "put_writes", config, [("log", "late")], "task")
    assert door.call(saver, "get_tuple", thread("t")) is None
    put(saver, door, "t", 1)
    assert door.call(saver, "get_tuple", thread("t")).pending_writes == [("task", "log", "late")]


def test_copy_to_an_expired_thread_starts_anew(saver: Any, door: Door, clock: Clock) -> None:
    put(saver, door, "target", 1)
    clock.now += 100
    put(saver, door, "source", 2)
    door.call(saver, "copy_thread", "source", "target")
    assert steps(saver, door, thread("target")) == [2]


def test_a_copy_to_an_expired_thread_that_has_a_branch_expires_too(
    saver: Any, door: Door, clock: Clock
) -> None:
    put(saver, door, "target", 1)
    branch = CheckpointEngine(saver).sync.branch("1", "branch", "target")
    clock.now += 60
    put(saver, door, branch, 2, "1")
    clock.now += 60
    put(saver, door, "source", 3)
    door.call(saver, "copy_thread", "source", "target")
    assert steps(saver, door, thread("target")) == [3]
    clock.now += 120
    assert steps(saver, door, thread("target")) == []


def test_runs_of_expired_threads_are_left_alone(saver: Any, door: Door, clock: Clock) -> None:
    put(saver, door, "old", 1)
    clock.now += 100
    put(saver, door, "young", 2)
    door.call(saver, "delete_for_runs", ["run"])
    assert steps(saver, door, None) == []


def test_expiry_is_stored_with_the_thread(saver: Any, make_saver: Callable[..., Any], clock: Clock) -> None:
    with Door("sync") as door:
        put(saver, door, "t", 1)
        other = make_saver()
        other.backend.clock = clock
        assert steps(other, door, thread("t")) == [1]
        clock.now += 100
        assert steps(other, door, thread("t")) == []


def test_no_ttl_means_for_ever(make_saver: Callable[..., Any], door: Door, clock: Clock) -> None:
    saver = make_saver()
    saver.backend.clock = clock
    put(saver, door, "t", 1)
    clock.now += 1e9
    assert steps(saver, door, thread("t")) == [1]
    assert sweepers() == []


# --- on disk -------------------------------------------------------------------------------------------


def sweepers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("harness-sweeper")]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def short(path: Path) -> Iterator[Any]:
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}", ttl_seconds=SHORT) as saver:
        yield saver


TABLES = ("harness_thread", "harness_checkpoint", "harness_write", "harness_part")


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=HANG)) as connection:
        return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES)


def test_expired_threads_leave_the_disk(short: Any, path: Path, door: Door) -> None:
    for number in range(150):
        config = put(short, door, f"t{number}", 1)
    door.call(short, "put_writes", config, [("log", "x" * 100_000)], "task")
    assert rows(path) > 0
    wait_until(lambda: rows(path) == 0)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_only_expired_threads_leave_the_disk(short: Any, path: Path, door: Door) -> None:
    put(short, door, "short", 1)
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as lasting:
        lasting.put(thread("lasting", ns=""), {**empty_checkpoint(), "id": "1"}, {"step": 1}, {})
        wait_until(lambda: rows(path) == 2)
        assert steps(lasting, door, None) == [1]


def test_expired_threads_leave_memory(door: Door) -> None:
    with HarnessCheckpointer.from_conn_string("memory://", ttl_seconds=SHORT) as saver:
        put(saver, door, "t", 1)
        wait_until(lambda: not saver.backend._threads)  # type: ignore[attr-defined]


def test_sweeper_survives_a_locked_file(path: Path, door: Door, caplog: pytest.LogCaptureFixture) -> None:
    saver = HarnessCheckpointer.from_conn_string(
        f"sqlite:///{path}", ttl_seconds=SHORT, busy_timeout_seconds=0.05
    )
    with saver, closing(sqlite3.connect(path, isolation_level=None)) as other:
        put(saver, door, "t", 1)
        other.execute("BEGIN IMMEDIATE")
        wait_until(lambda: "could not be removed" in caplog.text)
        other.execute("ROLLBACK")
        wait_until(lambda: rows(path) == 0)


def test_sweeper_ends_with_its_saver(short: Any, door: Door) -> None:
    put(short, door, "t", 1)
    assert len(sweepers()) == 1
    clone = short.with_allowlist([("some.module", "Name")])
    put(clone, door, "u", 1)
    assert len(sweepers()) == 1
    door.call(short, "close")
    wait_until(lambda: sweepers() == [])


def test_sweeper_with_a_long_ttl_ends_at_close(door: Door) -> None:
    with HarnessCheckpointer.from_conn_string("memory://", ttl_seconds=1e6) as saver:
        put(saver, door, "t", 1)
        assert len(sweepers()) == 1
    wait_until(lambda: sweepers() == [])


def test_sweeper_ends_when_its_saver_is_dropped(door: Door) -> None:
    saver = HarnessCheckpointer.from_conn_string("memory://", ttl_seconds=SHORT)
    put(saver, door, "t", 1)
    assert len(sweepers()) == 1
    del saver
    gc.collect()
    wait_until(lambda: sweepers() == [])
