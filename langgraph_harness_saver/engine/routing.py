"""What runs next at a checkpoint, and what it waits for, told without its graph.

LangGraph derives both from the graph's nodes and the channels that trigger them. Without the graph the
names of the routing channels and the nodes' own past (`versions_seen`) say the same, with these limits:

- A node that has never run is known only if a routing channel names it. That is so for all of a
  `StateGraph`; a raw `Pregel` node that is triggered by a data channel is seen from its second run on, and
  whether that channel is available is taken from its being stored.
- Before its first run has ended, a functional entrypoint is called `__start__`, unless `task_paths` name it.
- Nodes that the graph has lost since, and those whose one input channel (`__root__`) is empty, are named
  although LangGraph would skip them.
- Checkpoints of format 2 and older (LangGraph before 0.4) route in other ways, which aren't read.
- Nodes that are next by edges come sorted by name, not in the order in which the graph declares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import xxhash
from langgraph.checkpoint.base import CheckpointTuple

from langgraph_harness_saver.channels import BRANCH, JOIN, START, TASKS

_PUSH, _PULL = "__pregel_push", "__pregel_pull"
_NO_NODES = frozenset(("__input__", "__interrupt__", "__snapshot_bumps__"))
"""What `versions_seen` holds beside nodes."""
_NULL_TASK = "00000000-0000-0000-0000-000000000000"
_INTERRUPT = "__interrupt__"
_CONTROL = frozenset(("__error__", "__error_source_node__", _INTERRUPT, "__resume__"))
"""Writes that tell what happened to a task; one that has written anything else has finished."""


class PendingInterrupt(NamedTuple):
    """A question that a node has asked: `interrupt(value)`."""

    id: str
    value: Any
    response_schema: Any = None


class _Task(NamedTuple):
    name: str
    path: str
    id: str | None


def next_nodes(
    checkpoint: Mapping[str, Any],
    pending_writes: Iterable[Sequence[Any]] | None = (),
    *,
    checkpoint_ns: str = "",
    step: int | None = None,
    task_paths: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the names of the nodes that run next: those that are sent to in order, then others by name.

    With `pending_writes` that is what is left to run, as `graph.get_state` tells it of a thread's head;
    without, all that the next step consists of, as it tells it of a checkpoint that is asked for by its id.

    Args:
        checkpoint: id, channel_versions, versions_seen, and in channel_values at least the names of all
            channels and the values of those that are `is_routing`.
        pending_writes: (task_id, channel, value) of each; values aren't looked at.
        checkpoint_ns: The checkpoint's namespace.
        step: The checkpoint's own step, from its metadata. Without it a task that has finished is only
            found through `task_paths`.
        task_paths: By task id, what `put_writes` was given as task_path. Needed where a node that waits
            for a join has finished before any node wrote to that join.
    """
    finished = _finished(pending_writes or ())
    paths = task_paths or {}
    finished_paths = {paths[task_id] for task_id in finished if task_id in paths}
    return tuple(
        task.name
        for task in _tasks(checkpoint, checkpoint_ns, step, paths.values())
        if task.id not in finished and task.path not in finished_paths
    )


def next_of(found: CheckpointTuple, *, live: bool) -> tuple[str, ...]:
    """Return `next_nodes` of a checkpoint; with `live`, without those that have finished."""
    return next_nodes(
        found.checkpoint,
        found.pending_writes if live else (),
        checkpoint_ns=found.config["configurable"].get("checkpoint_ns", ""),
        step=found.metadata.get("step", -1),
    )


def interrupts(
    pending_writes: Iterable[Sequence[Any]] | None, *, live: bool = True
) -> tuple[PendingInterrupt, ...]:
    """Return the interrupts that wait for an answer; without `live`, those of finished tasks too.

    They come in the order of the writes, which is by task path; `graph.get_state` has them in the graph's
    order of nodes.
    """
    writes = list(pending_writes or ())
    answered = _finished(writes) if live else frozenset()
    return tuple(
        PendingInterrupt(item.id, item.value, getattr(item, "response_schema", None))
        for task_id, channel, value in writes
        if channel == _INTERRUPT and task_id not in answered and task_id != _NULL_TASK
        for item in (value if isinstance(value, (list, tuple)) else (value,))
    )


def _finished(pending_writes: Iterable[Sequence[Any]]) -> frozenset[str]:
    return frozenset(task_id for task_id, channel, *_ in pending_writes if channel not in _CONTROL)


def _tasks(
    checkpoint: Mapping[str, Any], checkpoint_ns: str, step: int | None, paths: Iterable[str]
) -> Iterator[_Task]:
    def task(name: str, path: str, *parts: str) -> _Task:
        if step is None:
            return _Task(name, path, None)
        task_ns = f"{checkpoint_ns}|{name}" if checkpoint_ns else name
        return _Task(name, path, _task_id(checkpoint["id"], task_ns, f"{step + 1}", name, *parts))

    for index, send in enumerate(checkpoint["channel_values"].get(TASKS) or ()):
        if hasattr(send, "node"):
            yield task(send.node, f"~{_PUSH}, {index:010}, {False:010}", _PUSH, f"{index}")
    triggers = _triggers(checkpoint, paths)
    for name in sorted(triggers):
        if any(_fires(checkpoint, name, channel) for channel in triggers[name]):
            yield task(name, f"~{_PULL}, {name}", _PULL, *sorted(triggers[name]))


def _task_id(checkpoint_id: str, *parts: str) -> str | None:
    """Return the id that LangGraph gives a task, which hashes all that identifies it but its thread."""
    try:
        namespace = bytes.fromhex(checkpoint_id.replace("-", ""))
    except ValueError:
        # LangGraph runs from UUIDs only.
        return None
    digest = xxhash.xxh3_128_hexdigest(namespace + "".join(parts).encode("utf-8", "surrogatepass"))
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:]))


def _triggers(checkpoint: Mapping[str, Any], paths: Iterable[str]) -> dict[str, set[str]]:
    """Return by node the channels that are known to trigger it."""
    triggers: dict[str, set[str]] = {}
    for node, seen in checkpoint["versions_seen"].items():
        if node not in _NO_NODES:
            triggers[node] = set(seen)
    for channel in checkpoint["channel_versions"]:
        if channel.startswith(BRANCH):
            triggers.setdefault(channel[len(BRANCH) :], set()).add(channel)
        elif channel.startswith(JOIN):
            triggers.setdefault(_join(channel)[1], set()).add(channel)
    # A functional graph's entrypoint, which has a name of its own, takes the input itself.
    if not any(START in channels for channels in triggers.values()):
        pulled = {path[len(_PULL) + 3 :] for path in paths if path.startswith(f"~{_PULL}, ")}
        unknown = [name for name in sorted(pulled) if name not in triggers]
        triggers[unknown[0] if unknown else START] = {START}
    return triggers


def _join(channel: str) -> tuple[str, str]:
    """Return the starts, joined by plus signs, and the end that `join:a+b:c` names."""
    starts, _, end = channel[len(JOIN) :].rpartition(":")
    return starts, end


def _fires(checkpoint: Mapping[str, Any], node: str, channel: str) -> bool:
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    if channel not in versions or channel not in values or not _available(channel, values[channel]):
        return False
    seen = checkpoint["versions_seen"].get(node, {})
    return channel not in seen or _newer(versions[channel], seen[channel])


def _newer(version: Any, seen: Any) -> bool:
    try:
        return bool(version > seen)
    except TypeError:
        # A saver with versions of another type has taken over the thread meanwhile.
        return True


def _available(channel: str, value: Any) -> bool:
    """Tell whether a channel that holds a value hands it out; those of deferred nodes wait for a flag."""
    # Whatever else stands there, LangGraph didn't write it.
    is_deferred = isinstance(value, (list, tuple)) and len(value) == 2
    held, finished = value if is_deferred else (value, True)
    if channel.startswith(JOIN) and isinstance(held, (list, tuple, set, frozenset)):
        return bool(finished) and len("+".join(map(str, held))) == len(_join(channel)[0])
    return not channel.startswith((BRANCH, JOIN)) or bool(finished)
