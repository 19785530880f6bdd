"""What operations tell of what they did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langgraph_harness_saver.engine.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class TimeTravelResult:
    """What a rewind did.

    `checkpoint` is the thread's new head. `rewind_depth` counts the checkpoints between the old head and the
    target, the old head among them; `snapshot_count_before` those on the line before the target.
    `can_replay` tells whether anything runs next.
    """

    checkpoint: Snapshot
    thread_id: str
    rewind_depth: int
    snapshot_count_before: int
    can_replay: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, `checkpoint` as `Snapshot.to_dict` tells it."""
        return {
            "checkpoint": self.checkpoint.to_dict(),
            "thread_id": self.thread_id,
            "rewind_depth": self.rewind_depth,
            "snapshot_count_before": self.snapshot_count_before,
            "can_replay": self.can_replay,
        }
