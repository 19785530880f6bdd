"""Finds out where in a run of a graph the code is that asks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from langgraph_harness_saver.engine.events import Place

logger = logging.getLogger(__name__)


def current_place(metadata: Mapping[str, Any] | None = None) -> Place | None:
    """Return the place of the node that is running, None outside of one or without a thread.

    `metadata` is a callback's, which knows node and step better.
    """
    if "langgraph.pregel" not in sys.modules:
        # Who saves without LangGraph's graphs need not have them, and is never inside of one.
        return None
    from langgraph.config import get_config

    try:
        config = get_config()
    except RuntimeError:
        return None
    configurable = config.get("configurable") or {}
    known = {**(config.get("metadata") or {}), **(metadata or {})}
    thread_id, checkpoints = configurable.get("thread_id"), configurable.get("checkpoint_map") or {}
    if thread_id is None or "" not in checkpoints:
        return None
    checkpoint_ns = max(checkpoints, key=len)
    info = _execution()
    return Place(
        thread_id=str(thread_id),
        root_checkpoint_id=str(checkpoints[""]),
        checkpoint_ns=checkpoint_ns,
        checkpoint_id=str(checkpoints[checkpoint_ns]),
        node=known.get("langgraph_node"),
        step=known.get("langgraph_step"),
        task_id=getattr(info, "task_id", None),
        attempt=getattr(info, "node_attempt", None) or 1,
        graph_run_id=_text(known.get("run_id") or configurable.get("run_id")),
    )


def guessed_place(
    metadata: Mapping[str, Any] | None, latest: Callable[[str, str], str | None]
) -> Place | None:
    """Return the place that a callback's metadata tells of: before Python 3.11 an async node has no context.

    They lack the checkpoint. `latest` names the one that was stored last of a thread and namespace, which is
    it, or the one before where that is still on its way.
    """
    known = metadata or {}
    thread_id, where = known.get("thread_id"), known.get("langgraph_checkpoint_ns")
    if thread_id is None or not isinstance(where, str):
        return None
    checkpoint_ns, _, task = where.rpartition("|")
    root = latest(str(thread_id), "")
    if root is None:
        return None
    return Place(
        thread_id=str(thread_id),
        root_checkpoint_id=root,
        checkpoint_ns=checkpoint_ns,
        checkpoint_id=latest(str(thread_id), checkpoint_ns) or "",
        node=known.get("langgraph_node"),
        step=known.get("langgraph_step"),
        task_id=task.rpartition(":")[2] or None,
        graph_run_id=_text(known.get("run_id")),
    )


def stopped(error: BaseException) -> bool | None:
    """Tell whether LangGraph stopped a node to ask a question or, False, to go elsewhere; None: it failed."""
    if "langgraph.pregel" not in sys.modules:
        return None
    from langgraph.errors import GraphBubbleUp, GraphInterrupt

    return isinstance(error, GraphInterrupt) if isinstance(error, GraphBubbleUp) else None


def _execution() -> Any:
    from langgraph.runtime import get_runtime

    try:
        return get_runtime().execution_info
    except RuntimeError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
