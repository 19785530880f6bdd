"""What happens seldom: siblings of anchors, long readers, interrupts, odd configs."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from enum import Enum
from types import ModuleType
from typing import Any

import pytest
from helpers import each_store
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver import HarnessCheckpointer, HeadMovedError
from langgraph_harness_saver.rows import CheckpointKey


def place(checkpoint_id: str | None = None, thread_id: str = "t") -> Any:
    found = {"thread_id": thread_id, "checkpoint_ns": ""}
    return {"configurable": {**found, "checkpoint_id": checkpoint_id} if checkpoint_id else found}


def put(
    saver: Any, checkpoint_id: str, values: dict[str, Any], parent: str | None = None, **metadata: Any
) -> None:
    versions = {channel: f"{checkpoint_id}.{channel}" for channel in values}
    checkpoint: Any = {
        "v": 4,
        "id": checkpoint_id,
        "ts": "",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {},
    }
    saver.put(place(parent), checkpoint, {"source": "loop", "step": 1, **metadata}, versions)


def ids(saver: Any, thread_id: str = "t") -> list[str]:
    return [found.checkpoint["id"] for found in saver.list(place(thread_id=thread_id))]


def delta_thread(saver: Any) -> None:
    counted = {"counters_since_delta_snapshot": {"d": [1, 1]}}
    put(saver, "1", {"m": ["x" * 300], "d": _DeltaSnapshot(["s"])}, run_id="A", **counted)
    saver.put_writes(place("1"), [("d", "w1")], "task 1")
    put(saver, "2", {"m": ["x" * 300]}, "1", run_id="B", **counted)
    saver.put_writes(place("2"), [("d", "w2")], "task 2")
    put(saver, "3", {"m": ["x" * 300, "y"]}, "2", run_id="C", **counted)


def test_anchor_that_was_built_on_outlives_a_new_one(saver):
    delta_thread(saver)
    saver.delete_for_runs(["B"])
    anchor = saver.get_tuple(place("3")).parent_config["configurable"]["checkpoint_id"]
    put(saver, "4", {"m": ["x" * 300, "z"]}, anchor, run_id="D")
    before = {i: history(saver, i) for i in ("3", "4")}
    saver.delete_for_runs(["A"])
    assert ids(saver) == ["4", "3"]
    assert saver.get_tuple(place("4")).checkpoint["channel_values"] == {"m": ["x" * 300, "z"]}
    assert {i: history(saver, i) for i in ("3", "4")} == before


def history(saver: Any, checkpoint_id: str) -> list[Any]:
    ours = saver.get_delta_channel_history(config=place(checkpoint_id), channels=["d"])
    theirs = BaseCheckpointSaver.get_delta_channel_history(saver, config=place(checkpoint_id), channels=["d"])
    assert ours == theirs
    return [ours["d"].get("seed"), [value for _, _, value in ours["d"]["writes"]]]


@each_store
@pytest.mark.parametrize("value", [7, 199, [7], b"\x07", "\x07", None, ""])
def test_plain_value_is_not_taken_for_a_snapshot(saver, value):
    put(saver, "1", {"n": value, "m": value})
    put(saver, "2", {"n": value}, "1")
    saver.prune(["t"])
    assert saver.get_tuple(place("2")).checkpoint["channel_values"] == {"n": value}
    assert saver.get_tuple(place("2")).parent_config is None


def test_cycle_of_parents_ends(saver):
    put(saver, "1", {"a": 1}, "2")
    put(saver, "2", {"a": 1}, "1")
    assert saver.get_delta_channel_history(config=place("2"), channels=["d"]) == {"d": {"writes": []}}


def test_checkpoint_put_back_under_its_own_config_keeps_its_parent(saver):
    put(saver, "1", {"a": 1})
    put(saver, "2", {"a": 2}, "1")
    put(saver, "2", {"a": 3}, "2")
    found = saver.get_tuple(place("2"))
    assert found.checkpoint["channel_values"] == {"a": 3}
    assert found.parent_config == place("1")


def test_putting_a_checkpoint_again_renews_its_thread(make_saver):
    saver = make_saver(ttl_seconds=100)
    now = [1000.0]
    saver.backend.clock = lambda: now[0]
    put(saver, "1", {"a": 1})
    now[0] += 80
    put(saver, "1", {"a": 2})
    now[0] += 80
    assert saver.get_tuple(place()).checkpoint["channel_values"] == {"a": 2}


@pytest.mark.parametrize("parent", [None, "2"])
def test_replacing_a_checkpoint_heeds_the_expected_head(saver, parent):
    put(saver, "1", {"a": 1})
    put(saver, "2", {"a": 2}, "1")
    put(saver, "3", {"a": 3}, "2")
    again: Any = {"v": 4, "id": "2", "ts": "", "channel_values": {"a": 9}}
    again |= {"channel_versions": {"a": 9}, "versions_seen": {}}
    key = CheckpointKey("t", "", "2")
    with pytest.raises(HeadMovedError):
        saver._bridge.run(saver._core.put(key, parent, again, {}, {"a": 9}, None, head="2"))
    assert saver.get_tuple(place("2")).checkpoint["channel_values"] == {"a": 2}
    saver._bridge.run(saver._core.put(key, parent, again, {}, {"a": 9}, None, head="3"))
    assert saver.get_tuple(place("2")).checkpoint["channel_values"] == {"a": 9}


def test_copying_again_brings_back_what_the_copy_has_pruned(saver):
    base = os.urandom(3000).hex()
    for number in range(30):
        put(saver, f"{number:03}", {"a": base + str(number) * 50}, f"{number - 1:03}" if number else None)
    saver.copy_thread("t", "u")
    saver.prune(["u"])
    saver.put_writes(place("early", "t"), [("a", 1)], "task")
    saver.copy_thread("t", "u")
    assert ids(saver, "u") == ids(saver)
    for one, other in zip(saver.list(place()), saver.list(place(thread_id="u")), strict=True):
        assert one.checkpoint == other.checkpoint


def test_enum_in_a_config_is_stored_as_its_value(saver, monkeypatch):
    module = ModuleType("gone_tomorrow")
    module.Env = Enum("Env", {"PROD": "prod"}, type=str, module="gone_tomorrow")
    monkeypatch.setitem(sys.modules, "gone_tomorrow", module)
    config = place()
    config["configurable"]["env"] = module.Env.PROD
    empty: Any = {
        "v": 4,
        "id": "1",
        "ts": "",
        "channel_values": {},
        "channel_versions": {},
        "versions_seen": {},
    }
    saver.put(config, empty, {"source": "loop"}, {})
    monkeypatch.delitem(sys.modules, "gone_tomorrow")
    assert type(saver.get_tuple(place()).metadata["env"]) is str
    assert [found.checkpoint["id"] for found in saver.list(None, filter={"env": "prod"})] == ["1"]


class Counting(HarnessCheckpointer):
    calls = 0

    def put(self, *args: Any) -> Any:
        self.calls += 1
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        self.calls += 1
        return await super().aput(*args)


def test_subclass_that_overrides_both_doors_is_called_once():
    saver = Counting()
    put(saver, "1", {"a": 1})
    assert saver.calls == 1


def test_many_writes_on_one_checkpoint(saver):
    put(saver, "1", {"a": 1})
    for number in range(1000):
        saver.put_writes(place("1"), [("a", number)], f"task {number:05}")
        saver.put_writes(place("1"), [("__resume__", number)], f"task {number % 7}")
    found = saver.get_tuple(place("1")).pending_writes
    assert [value for task, channel, value in found if channel == "a"] == list(range(1000))
    assert sum(channel == "__resume__" for _, channel, _ in found) == 7


def test_replaced_special_writes_leave_nothing_behind(saver):
    put(saver, "1", {"a": 1})
    for number in range(20):
        saver.put_writes(place("1"), [("__resume__", f"{number:08}" * 5000)], "task")
    assert saver.get_tuple(place("1")).pending_writes == [("task", "__resume__", f"{19:08}" * 5000)]
    family = saver._bridge.run(saver.backend.load("t"))
    assert not family.parts
    assert len(family.writes) == 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agents.db"


@pytest.fixture
def on_file(path):
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        yield saver


def test_long_reader_holds_nobody_up(on_file, path):
    for number in range(100):
        put(on_file, f"{number:03}", {"a": "x" * 2000 + str(number)}, f"{number - 1:03}" if number else None)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM harness_thread").fetchall()
    started = time.monotonic()
    on_file.prune(["t"])
    put(on_file, "200", {"a": 1})
    # A hang guard: waiting for the reader would take the whole busy timeout of 30 s.
    assert time.monotonic() - started < 15
    reader.execute("COMMIT")
    reader.close()
    assert ids(on_file) == ["200", "099"]


def test_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with HarnessCheckpointer.from_conn_string("sqlite:///agents.db") as saver:
        put(saver, "1", {"a": 1})
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert ids(saver) == ["1"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("work", ["read", "write"])
def test_interrupt_right_after_begin_leaves_no_transaction(on_file, path, work):
    put(on_file, "1", {"a": 1})
    file = on_file.backend._file
    connect = file._connect
    if work == "write":
        file._disconnect()
    file._connect = lambda: Interrupting(connect())
    with pytest.raises(KeyboardInterrupt):
        put(on_file, "2", {"a": 2}) if work == "write" else ids(on_file)
    file._connect = connect
    put(on_file, "3", {"a": 3})
    assert ids(on_file) == ["3", "1"]
    other = sqlite3.connect(path, timeout=0.1)
    other.execute("BEGIN IMMEDIATE")
    other.close()


class Interrupting:
    """A connection on which Ctrl-C is pressed just after the first BEGIN."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pressed = False

    def execute(self, sql: str, *args: Any) -> Any:
        result = self._connection.execute(sql, *args)
        if sql.startswith("BEGIN") and not self._pressed:
            self._pressed = True
            raise KeyboardInterrupt
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
