"""A checkpoint saver for LangGraph that stores differences, not copies."""

from langgraph_harness_saver.checkpointer import HarnessCheckpointer
from langgraph_harness_saver.config import CheckpointBackend, CheckpointerConfig
from langgraph_harness_saver.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    HarnessError,
    HeadMovedError,
    InvalidConfigError,
    SchemaError,
    SerializationError,
    StoreError,
    StoreNotOpenError,
    StoreUnavailableError,
    UnsafeTypeError,
)
from langgraph_harness_saver.records import CheckpointRecord, HarnessMetadata
from langgraph_harness_saver.serde import HarnessSerializer

__all__ = [
    "CheckpointBackend",
    "CheckpointNotFoundError",
    "CheckpointRecord",
    "CheckpointerConfig",
    "CorruptCheckpointError",
    "HarnessCheckpointer",
    "HarnessError",
    "HarnessMetadata",
    "HarnessSerializer",
    "HeadMovedError",
    "InvalidConfigError",
    "SchemaError",
    "SerializationError",
    "StoreError",
    "StoreNotOpenError",
    "StoreUnavailableError",
    "UnsafeTypeError",
]
