"""LangGraph's own channels, told from those of a graph's state by their names."""

from __future__ import annotations

from langgraph.checkpoint.base import WRITES_IDX_MAP

START, TASKS = "__start__", "__pregel_tasks"
BRANCH, JOIN = "branch:to:", "join:"

_NOTES = frozenset((*WRITES_IDX_MAP, "__no_writes__", "__return__", "__end__", "__input__", "__previous__"))
"""What tasks write that is no channel, or one whose value is always stored."""


def is_routing(channel: str) -> bool:
    """Tell whether a channel only says what runs next; all others are state."""
    return channel in (START, TASKS) or channel.startswith((BRANCH, JOIN))


def is_rebuilt(channel: str) -> bool:
    """Tell whether a channel may be one that is put together from writes, as a `DeltaChannel` is."""
    return not is_routing(channel) and channel not in _NOTES


def is_reserved(channel: str) -> bool:
    """Tell whether a name means something to LangGraph itself, so that no state may use it."""
    return is_routing(channel) or channel in _NOTES or channel.startswith("__pregel_")
