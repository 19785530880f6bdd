"""Tells which checkpoints wait for an answer to an interrupt: pure functions over a family."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import INTERRUPT

from langgraph_harness_saver.channels import TASKS
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import CheckpointKey, Family, Kind, Node, Outline, WriteRow

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
    set the task off. So has what comes later, where an update was made instead of an answer.
    """
    found = []
    for key in keys:
        header = None
        asked = questions(key, family)
        for later in _descendants(outline, key) if asked else ():
            if later in family.rows:
                header = header or _header(reader, key)
                after = _header(reader, later)
                asked = [write for write in asked if not _has_run(write, header, after)]
            if not asked:
                break
        if asked:
            found.append(key.checkpoint_id)
    return found


def _header(reader: Reader, key: CheckpointKey) -> Header:
    return reader.header(reader.head(key))[0]


def _descendants(outline: Outline, key: CheckpointKey) -> Iterator[CheckpointKey]:
    """Yield what has come of a checkpoint, on its thread, by way of anchors, too; the nearest first."""
    children: dict[str | None, list[Node]] = {}
    for node in outline.nodes:
        if node.key[:2] == key[:2]:
            children.setdefault(node.parent_id, []).append(node)
    waiting = deque(children.pop(key.checkpoint_id, ()))
    while waiting:
        node = waiting.popleft()
        waiting.extend(children.pop(node.key.checkpoint_id, ()))
        if node.kind == Kind.LIVE:
            yield node.key


def _has_run(write: WriteRow, before: Header, after: Header) -> bool:
    """Tell whether a checkpoint shows that a task has run which an earlier one was to run."""
    if write.task_path.startswith(_PULL):
        node = write.task_path[len(_PULL) :]
        return node in after.seen and after.seen[node] != before.seen.get(node)
    sent = before.versions.get(TASKS)
    return write.task_path.startswith(_PUSH) and sent is not None and after.versions.get(TASKS) != sent
