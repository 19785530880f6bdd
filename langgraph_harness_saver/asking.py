"""Tells which checkpoints wait for an answer to an interrupt: pure functions over a family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import INTERRUPT

from langgraph_harness_saver.channels import TASKS
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import CheckpointKey, Family, Kind, Outline, WriteRow

_INTERRUPT = WRITES_IDX_MAP[INTERRUPT]
_PULL, _PUSH = "~__pregel_pull, ", "~__pregel_push, "


def questions(key: CheckpointKey, family: Family) -> Sequence[WriteRow]:
    """Return what tasks of a checkpoint have asked that haven't finished since."""
    return unanswered(family.writes.get(key, ()))


def unanswered(writes: Sequence[WriteRow]) -> Sequence[WriteRow]:
    """Return the questions among a checkpoint's writes whose tasks haven't finished since."""
    finished = {write.task_id for write in writes if write.call == 0}
    return [write for write in writes if write.call == _INTERRUPT and write.task_id not in finished]


def waiting(keys: Iterable[CheckpointKey], family: Family, outline: Outline, reader: Reader) -> list[str]:
    """Return the ids of those checkpoints of which a question waits for its answer.

    In durability "exit" nothing is stored of a task that has finished; but what came next has then seen what
    set the task off.
    """
    asked = {key: questions(key, family) for key in keys}
    found = []
    for key in [key for key in asked if asked[key]]:
        header = _header(reader, key)
        later = [_header(reader, child) for child in _children(outline, key)]
        if not all(any(_has_run(write, header, one) for one in later) for write in asked[key]):
            found.append(key.checkpoint_id)
    return found


def _header(reader: Reader, key: CheckpointKey) -> Header:
    return reader.header(reader.head(key))[0]


def _children(outline: Outline, key: CheckpointKey) -> list[CheckpointKey]:
    """Return what comes of a checkpoint next, on its thread, by way of anchors, too."""
    line = [node for node in outline.nodes if node.key[:2] == key[:2]]
    parents = {key.checkpoint_id}
    parents |= {n.key.checkpoint_id for n in line if n.kind == Kind.ANCHOR and n.parent_id in parents}
    return [node.key for node in line if node.kind == Kind.LIVE and node.parent_id in parents]


def _has_run(write: WriteRow, before: Header, after: Header) -> bool:
    """Tell whether a checkpoint shows that a task has run which an earlier one was to run."""
    if write.task_path.startswith(_PULL):
        node = write.task_path[len(_PULL) :]
        return node in after.seen and after.seen[node] != before.seen.get(node)
    sent = before.versions.get(TASKS)
    return write.task_path.startswith(_PUSH) and sent is not None and after.versions.get(TASKS) != sent
