"""A finished thread, told step by step, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from tools import describe, plural

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.types import StateSnapshot


@dataclass(frozen=True)
class Step:
    """One checkpoint as a line of the history."""

    number: int
    node: str
    deed: str
    checkpoint_id: str
    worker: int


@dataclass(frozen=True)
class Cost:
    """What a thread takes on disk, beside every checkpoint whole."""

    checkpoints: int
    writes: int
    on_disk: int
    full_copies: int


def tell(snapshots: list[StateSnapshot]) -> list[Step]:
    """Say what each step did, oldest first."""
    oldest_first = snapshots[::-1]
    return [_step(before, after) for before, after in zip([None, *oldest_first], oldest_first, strict=False)]


def _step(before: StateSnapshot | None, after: StateSnapshot) -> Step:
    metadata: dict[str, Any] = dict(after.metadata or {})
    return Step(
        number=metadata["step"],
        node=before.next[0].strip("_") if before else "input",
        deed=_deed(before, after) if before else "keeps the task as it came in",
        checkpoint_id=after.config["configurable"]["checkpoint_id"],
        worker=metadata["worker"],
    )


def _deed(before: StateSnapshot, after: StateSnapshot) -> str:
    new = after.values["messages"][len(before.values.get("messages", ())) :]
    results = [message for message in new if isinstance(message, ToolMessage)]
    if results:
        return "; ".join(f"{message.tool_call_id}: {describe(message)}" for message in results)
    if new and isinstance(new[-1], AIMessage):
        calls = [call["id"] or "" for call in new[-1].tool_calls]
        return f"asks for {', '.join(calls)}" if calls else "answers"
    return "hands the task to the model" if new else _noted(before.values, after.values)


def _noted(before: dict[str, Any], after: dict[str, Any]) -> str:
    if added := len(after["notes"]) - len(before["notes"]):
        return f"adds {plural(added, 'note')}, {len(after['notes'])} so far"
    if after["terms"] != before["terms"]:
        return f"notes the frequent words: {', '.join(after['terms'][:3])}"
    return "has nothing to add"


def full_copies(saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> tuple[int, int, int]:
    """Count a thread's checkpoints, its writes, and the bytes of them all written whole."""
    serde = JsonPlusSerializer()
    checkpoints = writes = size = 0
    for found in saver.list(config):
        pending = found.pending_writes or []
        values = [found.checkpoint, found.metadata, *(value for _, _, value in pending)]
        size += sum(len(serde.dumps_typed(value)[1]) for value in values)
        checkpoints += 1
        writes += len(pending)
    return checkpoints, writes, size


def bytes_on_disk(database: Path) -> int:
    """Add up the database and what SQLite keeps beside it."""
    return sum(path.stat().st_size for path in database.parent.glob(database.name + "*"))
