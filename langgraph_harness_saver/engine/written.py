"""What was written to channels along a line of checkpoints, as a merge replays it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from langchain_core.messages import (
    BaseMessage,
    BaseMessageChunk,
    convert_to_messages,
    message_chunk_to_message,
)
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.engine.combining import by_id
from langgraph_harness_saver.engine.compare import same
from langgraph_harness_saver.engine.sides import MISSING, NOT_STORED, StepWrites

_NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"


def writes_since(*paths: Sequence[CheckpointTuple]) -> list[StepWrites] | None:
    """Return what was written to channels along a line of checkpoints, for `Side.steps`.

    Args:
        paths: The checkpoints of one line, oldest first, from the base to the head, both included; each is
            the parent of the next. Their pending writes are in the order that savers give them in, which
            is the one that LangGraph applies them in; the head's led to nothing yet and are left out.
            Where lines were merged, several such stretches.

    Returns:
        A step for each checkpoint but the head, and before it one for the updates of a `Command`, which are
        applied before any node runs. Left out are routing channels, special writes, and writes that gave
        their channel no new version, so were never applied (those of a task that was discarded). A message
        that was written without an id has the one that its channel gave it. A channel whose value changed
        though no write to it is stored has one write, `NOT_STORED`. None, if that is so of all that changed:
        so it is in durability "exit".
    """
    steps = [step for path in paths for pair in pairwise(path) for step in _steps(*pair)]
    writes = [value for step in steps for _, value in step]
    return None if writes and all(value is NOT_STORED for value in writes) else steps


def _steps(before: CheckpointTuple, after: CheckpointTuple) -> list[StepWrites]:
    old, new = before.checkpoint["channel_versions"], after.checkpoint["channel_versions"]
    moved = {name for name, version in new.items() if version != old.get(name)}
    # A fork is a copy, to which the same tasks led as to what it copies, or it is where these run anew from.
    ran = after.metadata.get("source") != "fork" or any(map(is_routing, moved))
    moved = {name for name in moved if not is_routing(name)}
    commands: list[tuple[str, Any]] = []
    tasks: list[tuple[str, Any]] = []
    for task_id, channel, value in before.pending_writes or ():
        if channel in moved and (task_id == _NULL_TASK_ID or ran):
            (commands if task_id == _NULL_TASK_ID else tasks).append((channel, value))
    for name in sorted(moved.difference(channel for channel, _ in (*commands, *tasks))):
        if _differs(_stored(before, name), _stored(after, name)):
            tasks.append((name, NOT_STORED))
    writes = _identified([*commands, *tasks], before, after)
    steps = [writes[: len(commands)], writes[len(commands) :]]
    return steps if commands else steps[1:]


def _stored(found: CheckpointTuple, name: str) -> Any:
    return found.checkpoint["channel_values"].get(name, MISSING)


def _differs(before: Any, after: Any) -> bool:
    """Tell whether a channel was written to; a snapshot is stored at other times, too."""
    return not isinstance(after, _DeltaSnapshot) and not same(before, after)


def _identified(writes: StepWrites, before: CheckpointTuple, after: CheckpointTuple) -> StepWrites:
    """Give messages the ids that reducers gave them, so that replaying gives them the same."""
    named = {name: _named(name, writes, before, after) for name, _ in writes}
    return [(name, _with_ids(value, named[name])) for name, value in writes]


def _named(
    name: str, writes: StepWrites, before: CheckpointTuple, after: CheckpointTuple
) -> Iterator[BaseMessage] | None:
    """Return the messages that were written without an id, with theirs; None if that can't be told."""
    there, here = by_id(_stored(before, name)), by_id(_stored(after, name))
    items = [item for channel, value in writes if channel == name for item in items_of(value)]
    bare = [item for item in items if _written_id(item) is None]
    if not bare or not here:
        return None
    known = {*(there or ()), *map(_written_id, items)}
    new = [message for key, message in here.items() if key not in known]
    return iter(new) if len(new) == len(bare) and all(map(_becomes, bare, new)) else None


def _with_ids(value: Any, named: Iterator[BaseMessage] | None) -> Any:
    if named is None:
        return value
    items = [next(named) if _written_id(item) is None else item for item in items_of(value)]
    return items if isinstance(value, list) else items[0]


def items_of(value: Any) -> Sequence[Any]:
    """Return what a write to a list holds: a list's items, or the one that stands by itself."""
    return value if isinstance(value, list) else [value]


def _written_id(item: Any) -> str | None:
    found = item.id if isinstance(item, BaseMessage) else item.get("id") if isinstance(item, dict) else None
    return found if isinstance(found, str) else None


def _becomes(item: Any, message: BaseMessage) -> bool:
    try:
        made = convert_to_messages([copy.deepcopy(item)])[0]
    except (ValueError, NotImplementedError):
        return False
    if isinstance(made, BaseMessageChunk):
        made = message_chunk_to_message(made)
    made.id = message.id
    return same(made, message)
