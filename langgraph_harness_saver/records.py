"""A JSON-safe view of stored checkpoints."""

from __future__ import annotations

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


def jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    return _clean(to_jsonable_python(value, fallback=_told, inf_nan_mode="strings", bytes_mode="base64"))


def _told(value: Any) -> Any:
    return jsonable(value.value) if isinstance(value, _DeltaSnapshot) else repr(value)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        # JSON text is UTF-8, which has no lone surrogates.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
