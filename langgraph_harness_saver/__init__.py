"""A checkpoint saver for LangGraph that stores differences, not copies."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langgraph_harness_saver.checkpointer import HarnessCheckpointer
from langgraph_harness_saver.config import CheckpointBackend, CheckpointerConfig
from langgraph_harness_saver.errors import (
    AmbiguousCheckpoint,
    BranchExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    HarnessError,
    HeadMovedError,
    InvalidConfigError,
    NotReplicatedError,
    SchemaError,
    SerializationError,
    SnapshotTooLargeError,
    StoreError,
    StoreFullError,
    StoreNotOpenError,
    StoreUnavailableError,
    UnsafeTypeError,
)
from langgraph_harness_saver.keeping import GCReport, ThreadReport
from langgraph_harness_saver.records import CheckpointRecord, HarnessMetadata
from langgraph_harness_saver.retention import CheckpointGC, Retention
from langgraph_harness_saver.serde import HarnessSerializer

if TYPE_CHECKING:
    from langgraph_harness_saver.engine import (
        Blame,
        Branch,
        CheckpointDiff,
        CheckpointEngine,
        CheckpointTree,
        Conflict,
        Event,
        EventCallbacks,
        EventCounts,
        EventRecorder,
        MergeConflict,
        MergeResult,
        Snapshot,
        SnapshotConfig,
        SnapshotMetadata,
        SnapshotTrigger,
        SyncEngine,
        TimeTravelResult,
        TreeEdge,
        TreeItem,
        TreeNode,
        Unresolved,
        create_checkpoint_engine,
    )

__all__ = [
    "AmbiguousCheckpoint",
    "Blame",
    "Branch",
    "BranchExistsError",
    "CheckpointBackend",
    "CheckpointDiff",
    "CheckpointEngine",
    "CheckpointGC",
    "CheckpointNotFoundError",
    "CheckpointRecord",
    "CheckpointTree",
    "CheckpointerConfig",
    "Conflict",
    "CorruptCheckpointError",
    "Event",
    "EventCallbacks",
    "EventCounts",
    "EventRecorder",
    "GCReport",
    "HarnessCheckpointer",
    "HarnessError",
    "HarnessMetadata",
    "HarnessSerializer",
    "HeadMovedError",
    "InvalidConfigError",
    "MergeConflict",
    "MergeResult",
    "NotReplicatedError",
    "Retention",
    "SchemaError",
    "SerializationError",
    "Snapshot",
    "SnapshotConfig",
    "SnapshotMetadata",
    "SnapshotTooLargeError",
    "SnapshotTrigger",
    "StoreError",
    "StoreFullError",
    "StoreNotOpenError",
    "StoreUnavailableError",
    "SyncEngine",
    "ThreadReport",
    "TimeTravelResult",
    "TreeEdge",
    "TreeItem",
    "TreeNode",
    "Unresolved",
    "UnsafeTypeError",
    "create_checkpoint_engine",
]

# The engine takes a sixth of the time that the import takes, and most processes only save.
_IMPORTED_LATER = dict.fromkeys(set(__all__) - globals().keys(), "langgraph_harness_saver.engine")


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_IMPORTED_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
