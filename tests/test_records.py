"""The JSON-safe view of a stored checkpoint."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import pytest
from helpers import Door, each_store, thread
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.types import INTERRUPT, _DeltaSnapshot
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from langgraph_harness_saver import CheckpointRecord, HarnessCheckpointer, HarnessMetadata

if TYPE_CHECKING:
    from collections.abc import Callable


class Color(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


@dataclass
class Box:
    inside: Any


class Model(BaseModel):
    when: datetime
    inside: Any = None


class Opaque:
    """Nothing that pydantic knows."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __repr__(self) -> str:
        return f"Opaque({self.inside!r})"


NOON = datetime(2030, 1, 2, 12, tzinfo=timezone.utc)
ODD = [math.nan, math.inf, -math.inf, "lone \ud800 surrogate", "nul \x00", 1e300, 2**63, -0.0, None, True]
VALUES: dict[str, Any] = {
    "messages": [
        HumanMessage("hi \ud800", id="1"),
        AIMessage("ok", id="2", tool_calls=[{"name": "look", "args": {"at": math.inf}, "id": "c"}]),
        ToolMessage("seen", tool_call_id="c", id="3"),
    ],
    "odd": ODD,
    "keys": {7: "int", 2.5: "float", "\ud800": "surrogate", None: "none", True: "bool"},
    "bytes": b"\x00\xff",
    "buffer": bytearray(b"abc"),
    "times": [NOON, date(2030, 1, 2), timedelta(days=1), NOON.time()],
    "sets": [{3}, frozenset({"x"})],
    "kinds": [Color.RED, Point(1, math.nan), Box({"deep": b"\xff"}), Decimal("1.50"), UUID(int=1)],
    "paths": Path("/a/b"),
    "model": Model(when=NOON, inside=[math.nan, "\ud800"]),
    "send": Send("node", {"arg": [NOON]}),
    "delta": _DeltaSnapshot([HumanMessage("in a snapshot", id="4"), math.nan]),
    "empty": {},
}


def put(saver: Any, door: Door, values: dict[str, Any], **metadata: Any) -> Any:
    checkpoint = {**empty_checkpoint(), "id": "1", "ts": "2030-01-02T03:04:05+00:00"}
    checkpoint["channel_values"] = values
    checkpoint["channel_versions"] = {**dict.fromkeys(values, "1.a"), "int": 2, "float": 2.5}
    checkpoint["versions_seen"] = {"node": {"odd": "1.a"}}
    checkpoint["updated_channels"] = ["odd"]
    return door.call(saver, "put", thread("t", "0", ns="sub"), checkpoint, metadata, {})


def read(saver: Any, door: Door) -> CheckpointRecord:
    record = door.call(saver, "get_record", thread("t", ns="sub"))
    assert isinstance(record, CheckpointRecord)
    return check_json(record)


def check_json(record: CheckpointRecord) -> CheckpointRecord:
    text = record.model_dump_json()
    assert CheckpointRecord.model_validate_json(text) == record
    assert CheckpointRecord.model_validate_json(text).model_dump_json() == text
    as_python = json.loads(json.dumps(record.model_dump(), allow_nan=False))
    assert as_python == json.loads(text)
    return record


def test_record_of_nothing(saver: Any, door: Door) -> None:
    assert door.call(saver, "get_record", thread("t")) is None
    put(saver, door, {"a": 1})
    assert door.call(saver, "get_record", thread("t")) is None
    assert door.call(saver, "get_record", thread("t", "other", ns="sub")) is None


def test_record_of_plain_data(saver: Any, door: Door) -> None:
    config = put(saver, door, {"a": [1, {"b": None}]}, source="loop", step=3, parents={"": "0"}, more=[1])
    door.call(saver, "put_writes", config, [("a", 7), ("b", {"c": "d"})], "task")
    assert read(saver, door).model_dump() == {
        "thread_id": "t",
        "checkpoint_ns": "sub",
        "checkpoint_id": "1",
        "parent_checkpoint_id": "0",
        "v": empty_checkpoint()["v"],
        "channel_values": {"a": [1, {"b": None}]},
        "channel_versions": {"a": "1.a", "int": 2, "float": 2.5},
        "versions_seen": {"node": {"odd": "1.a"}},
        "updated_channels": ["odd"],
        "metadata": {
            "source": "loop",
            "step": 3,
            "parents": {"": "0"},
            "source_layer": "langgraph",
            "timestamp": "2030-01-02T03:04:05+00:00",
            "writes": [
                {"task_id": "task", "channel": "a", "value": 7},
                {"task_id": "task", "channel": "b", "value": {"c": "d"}},
            ],
            "more": [1],
        },
    }


@each_store
@pytest.mark.parametrize("channel", list(VALUES))
def test_any_value_is_json(saver: Any, door: Door, channel: str) -> None:
    config = put(saver, door, {channel: VALUES[channel]}, step=1)
    door.call(saver, "put_writes", config, [(channel, VALUES[channel])], "task")
    record = read(saver, door)
    assert record.metadata.writes[0]["value"] == record.channel_values[channel]


def test_values_are_told_readably(saver: Any, door: Door) -> None:
    put(saver, door, VALUES, step=1)
    told = read(saver, door).channel_values
    assert told.keys() == VALUES.keys()
    assert told["odd"] == [
        "NaN",
        "Infinity",
        "-Infinity",
        "lone \\ud800 surrogate",
        "nul \x00",
        1e300,
        2**63,
        0,
        None,
        True,
    ]
    assert [message["type"] for message in told["messages"]] == ["human", "ai", "tool"]
    assert told["messages"][1]["tool_calls"][0]["args"] == {"at": "Infinity"}
    assert told["kinds"][0] == "red"
    assert told["kinds"][1][0] == 1
    assert told["model"]["inside"] == ["NaN", "\\ud800"]
    assert told["times"][0].startswith("2030-01-02T12:00:00")
    assert told["paths"] == "/a/b"
    assert told["sets"] == [[3], ["x"]]
    assert told["delta"][0]["content"] == "in a snapshot"


def test_interrupts_and_errors_are_told(saver: Any, door: Door) -> None:
    config = put(saver, door, {"a": 1}, step=1)
    asked = [Interrupt(value={"ask": NOON}, id="i")]
    door.call(saver, "put_writes", config, [(INTERRUPT, asked), ("__error__", ValueError("no"))], "task")
    writes = {write["channel"]: write["value"] for write in read(saver, door).metadata.writes}
    assert writes[INTERRUPT][0]["id"] == "i"
    assert writes[INTERRUPT][0]["value"]["ask"].startswith("2030-01-02T12:00:00")
    assert "no" in writes["__error__"]


def test_metadata_may_hold_anything_too(saver: Any, door: Door) -> None:
    put(saver, door, {"a": 1}, step=1, odd=ODD, model=Box(math.nan), when=NOON)
    metadata = read(saver, door).metadata
    assert metadata.model_extra is not None
    assert metadata.model_extra.keys() == {"odd", "model", "when"}


def test_source_layer_is_told_by_metadata(saver: Any, door: Door) -> None:
    put(saver, door, {"a": 1}, step=1)
    assert read(saver, door).metadata.source_layer == "langgraph"
    put(saver, door, {"a": 1}, step=1, source_layer="engine", writes={"node": 1}, timestamp="then")
    metadata = read(saver, door).metadata
    assert metadata == HarnessMetadata(step=1, source_layer="engine", writes={"node": 1}, timestamp="then")


class Pickling:
    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])


def cyclic() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


@pytest.mark.parametrize(
    "make",
    [
        lambda: Opaque(1),
        lambda: {"deep": [Opaque("\ud800")]},
        lambda: {Opaque(1): 1},
        lambda: {(1, "a"): "tuple key", frozenset({1}): "set key"},
        lambda: 1 + 2j,
        lambda: Opaque,
        lambda: print,
        lambda: range(3),
        lambda: ValueError("\ud800"),
        lambda: Box(Opaque(Box(1))),
        cyclic,
    ],
    ids=[
        "opaque",
        "deep",
        "opaque key",
        "odd keys",
        "complex",
        "class",
        "builtin",
        "range",
        "error",
        "box",
        "cycle",
    ],
)
def test_what_only_a_custom_serde_can_store(door: Door, make: Callable[[], Any]) -> None:
    with HarnessCheckpointer(serde=Pickling()) as saver:
        put(saver, door, {"a": make()}, step=1)
        read(saver, door)


def test_record_in_a_loop_and_of_a_number(saver: Any, door: Door) -> None:
    checkpoint = {**empty_checkpoint(), "id": "1"}
    door.call(saver, "put", thread(7, ns=""), checkpoint, {}, {})
    record = door.call(saver, "get_record", thread(7))
    check_json(record)
    assert record.thread_id == "7"
    assert record.parent_checkpoint_id is None
    assert record.metadata.writes == []
