"""Time travel and branching on top of `HarnessCheckpointer`."""

from langgraph_harness_saver.engine.blame import Blame
from langgraph_harness_saver.engine.callbacks import EventCallbacks
from langgraph_harness_saver.engine.compare import Unresolved
from langgraph_harness_saver.engine.diff import CheckpointDiff
from langgraph_harness_saver.engine.engine import (
    CheckpointEngine,
    SyncEngine,
    create_checkpoint_engine,
)
from langgraph_harness_saver.engine.events import Event
from langgraph_harness_saver.engine.recorder import EventRecorder
from langgraph_harness_saver.engine.results import TimeTravelResult
from langgraph_harness_saver.engine.sides import Conflict, MergeConflict, MergeResult
from langgraph_harness_saver.engine.snapshot import Snapshot, SnapshotMetadata
from langgraph_harness_saver.engine.snapshot_config import SnapshotConfig, SnapshotTrigger
from langgraph_harness_saver.engine.tree import CheckpointTree, TreeEdge, TreeItem, TreeNode
from langgraph_harness_saver.errors import AmbiguousCheckpoint, BranchExistsError, CheckpointNotFoundError
from langgraph_harness_saver.eventlog import EventCounts
from langgraph_harness_saver.keeping import GCReport, ThreadReport
from langgraph_harness_saver.rows import Branch

__all__ = [
    "AmbiguousCheckpoint",
    "Blame",
    "Branch",
    "BranchExistsError",
    "CheckpointDiff",
    "CheckpointEngine",
    "CheckpointNotFoundError",
    "CheckpointTree",
    "Conflict",
    "Event",
    "EventCallbacks",
    "EventCounts",
    "EventRecorder",
    "GCReport",
    "MergeConflict",
    "MergeResult",
    "Snapshot",
    "SnapshotConfig",
    "SnapshotMetadata",
    "SnapshotTrigger",
    "SyncEngine",
    "ThreadReport",
    "TimeTravelResult",
    "TreeEdge",
    "TreeItem",
    "TreeNode",
    "Unresolved",
    "create_checkpoint_engine",
]
