"""Finds out where in a run of a graph the code is that asks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from langgraph.config import get_config
from langgraph.runtime import get_runtime

from langgraph_harness_saver.engine.events import Place

logger = logging.getLogger(__name__)


def current_place(metadata: Mapping[str, Any] | None = None) -> Place | None:
    """Return the place of the node that is running, None outside of one or without a thread.

    `metadata` is a callback's, which is believed where the context says nothing. Before Python 3.11 an async
    node has no context.
    """
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


def _execution() -> Any:
    try:
        return get_runtime().execution_info
    except RuntimeError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
