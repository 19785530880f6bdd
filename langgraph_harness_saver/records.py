"""A JSON-safe view of stored checkpoints."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python


class HarnessMetadata(BaseModel):
    """What is known about how a checkpoint came to be; further keys of its metadata are kept as extras."""

    model_config = ConfigDict(extra="allow")

    source: str | None = None
    step: int | None = None
    parents: dict[str, str] = {}
    source_layer: str = "langgraph"
    """The name of the layer that wrote it."""
    timestamp: str | None = None
    """When it was written, ISO 8601."""
    writes: Any = None
    """What its metadata says was written, else its pending writes: task_id, channel and value of each."""


class CheckpointRecord(BaseModel):
    """One checkpoint, with values as JSON: what JSON has no form for is told as text."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None = None
    v: int | None = None
    channel_values: dict[str, Any] = {}
    channel_versions: dict[str, str | int | float] = {}
    versions_seen: dict[str, dict[str, str | int | float]] = {}
    updated_channels: list[str] | None = None
    metadata: HarnessMetadata

    @classmethod
    def of(cls, found: CheckpointTuple) -> CheckpointRecord:
        """Make the record of a checkpoint."""
        place, checkpoint = found.config["configurable"], found.checkpoint
        writes = [{"task_id": t, "channel": c, "value": v} for t, c, v in found.pending_writes or ()]
        metadata = {"timestamp": checkpoint["ts"], "writes": writes, **found.metadata}
        parent = found.parent_config
        return cls.model_validate(
            jsonable(
                {
                    "thread_id": str(place["thread_id"]),
                    "checkpoint_ns": place["checkpoint_ns"],
                    "checkpoint_id": place["checkpoint_id"],
                    "parent_checkpoint_id": parent["configurable"]["checkpoint_id"] if parent else None,
                    "v": checkpoint["v"],
                    "channel_values": checkpoint["channel_values"],
                    "channel_versions": checkpoint["channel_versions"],
                    "versions_seen": checkpoint["versions_seen"],
                    "updated_channels": checkpoint.get("updated_channels"),
                    "metadata": metadata,
                }
            )
        )


_INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    return _told(value, ())


def _told(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        # JSON text is UTF-8, which has no lone surrogates.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else _INFINITE.get(value, "NaN")
    if id(value) in above:
        return "..."
    return _told_inside(value, (*above, id(value)))


def _told_inside(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, _DeltaSnapshot):
        return _told(value.value, above)
    if isinstance(value, Mapping):
        return {_name(key): _told(item, above) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_told(item, above) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_told(item, above) for item in value), key=str)
    if isinstance(value, BaseModel):
        return _told(value.model_dump(), above)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _told(getattr(value, field.name), above) for field in fields}
    return _told_leaf(value, above)


def _told_leaf(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    try:
        plain = to_jsonable_python(value, serialize_unknown=False)
    except (ValueError, TypeError):
        # pydantic has no form for it either.
        plain = repr(value)
    return _told(plain, above)


def _name(key: Any) -> str:
    told = _told(key, ())
    return told if isinstance(told, str) else repr(key)
