"""What an engine can be told about snapshots."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from langgraph_harness_saver.config import explained
from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.retention import CheckpointGC, Retention

INTERVAL_SECONDS = 60.0

Summarise = Callable[[list[Any], dict[str, Any]], Any]
"""Makes a summary of messages and state: a text, or an awaitable of one."""


class SnapshotTrigger(str, Enum):
    """What a snapshot is taken for."""

    TOOL_CALL = "tool_call"
    LLM_CALL = "llm_call"
    STATE_CHANGE = "state_change"
    TASK_BOUNDARY = "task_boundary"
    MANUAL = "manual"
    INTERVAL = "interval"


class SnapshotConfig(BaseModel):
    """Which snapshots a `CheckpointEngine` takes, and how it stores them.

    Raises:
        InvalidConfigError: A field is unknown or its value can't be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    triggers: frozenset[SnapshotTrigger] = frozenset(SnapshotTrigger)
    """What snapshots are taken for; of others none is."""
    gc_policy: CheckpointGC = CheckpointGC.KEEP_ALL
    """Which checkpoints of a thread stay as others come; given, it becomes the saver's `retention`."""
    gc_param: float | None = None
    """How many checkpoints for keep_last_n and keep_milestones, seconds for keep_age, bytes for max_bytes."""
    delta_snapshots: bool = True
    """False stores every value of a snapshot whole: more bytes, and reading one takes no other."""
    max_snapshot_size_mb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """A snapshot whose serialised values take more megabytes (of 1,048,576 bytes) is refused."""
    interval_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds between the snapshots that a scope takes by itself. None: 60 if `triggers` is given and names
    interval, else it takes none."""
    summarise: Summarise | None = None
    """Makes the summary of a snapshot, instead of its last message's beginning."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidConfigError(explained(error, SnapshotConfig)) from error

    @field_validator("triggers", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @property
    def retention(self) -> Retention | None:
        """The policy with its parameter, None where none is given."""
        return Retention(self.gc_policy, self.gc_param) if "gc_policy" in self.model_fields_set else None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        # Whether the two go together it says itself.
        Retention(self.gc_policy, self.gc_param)
        if self.interval_seconds is None and "triggers" in self.model_fields_set:
            asked = SnapshotTrigger.INTERVAL in self.triggers
            object.__setattr__(self, "interval_seconds", INTERVAL_SECONDS if asked else None)
        return self
