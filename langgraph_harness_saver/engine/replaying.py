"""Merging a channel that both sides changed through the channel itself: its writes, replayed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.messages import RemoveMessage

from langgraph_harness_saver.engine.combining import by_id, combined, suffix_of
from langgraph_harness_saver.engine.compare import same, token
from langgraph_harness_saver.engine.sides import MISSING, NOT_STORED, UNKNOWN, Clash, How, Side, Three
from langgraph_harness_saver.engine.written import items_of

if TYPE_CHECKING:
    from langgraph.channels.base import BaseChannel

    Channel: TypeAlias = BaseChannel[Any, Any, Any]

_OVERWRITE = "__overwrite__"
_REMOVE_ALL = "__remove_all__"
_MESSAGE_REDUCERS = frozenset({"langgraph.graph.message", "langgraph.pregel._messages"})


def through(channel: Channel, three: Three, ours: Side, theirs: Side) -> tuple[Any, How]:
    """Merge values of a channel that both sides changed; raise `Clash` where nothing says how."""
    if _keeps_one(channel):
        raise Clash(f"both sides set it, and a {type(channel).__name__} keeps one value")
    stored = _led_to(channel, three.base, three.theirs, updates_of(three.name, theirs))
    if stored is not None:
        return _replayed(channel, three, ours, stored, "replayed")
    if _replaces(channel, three.ours) or _replaces(channel, three.theirs):
        raise Clash("both sides set it, and its reducer keeps one value")
    if three.base is MISSING:
        three = three._replace(base=_replay(channel, MISSING, ()))
    suffix = suffix_of(three.base, three.theirs)
    # A list that was appended to is likely to have been so by one write or several of its type.
    assumed = _led_to(channel, three.base, three.theirs, [[suffix]]) if suffix else None
    if assumed is not None:
        return _replayed(channel, three, ours, assumed, "extended")
    return combined(three), "extended"


def counted(channel: Channel, three: Three, theirs: Side) -> tuple[Any, How]:
    """Merge values that are equal: where a reducer adds them up, two changes are more than one."""
    updates = _led_to(channel, three.base, three.theirs, updates_of(three.name, theirs))
    if updates is not None:
        try:
            value = _replay(channel, three.ours, updates)
        except Exception:
            # It can't be done twice, as removing a message.
            return three.ours, "equal"
        if not same(value, three.ours):
            return value, "replayed"
    return three.ours, "equal"


def _replayed(
    channel: Channel, three: Three, ours: Side, updates: Sequence[Sequence[Any]], how: How
) -> tuple[Any, How]:
    try:
        value = _replay(channel, three.ours, updates)
    except Exception as error:
        problem = f"replaying theirs' writes over ours failed: {error!r}"
    else:
        if _removes_all(updates) or not _undoes(channel, three, ours, value):
            return value, how
        problem = "replaying theirs' writes would undo what ours changed"
    if _knows_ids(channel):
        # What each side did to which message can be told apart, and a conflict named.
        return combined(three), "extended"
    raise Clash(problem)


def updates_of(name: str, side: Side) -> list[list[Any]]:
    """Return what a side's steps wrote to one channel, step by step."""
    return [[value for channel, value in step if channel == name] for step in side.steps or ()]


def _replay(channel: Channel, value: Any, updates: Sequence[Sequence[Any]]) -> Any:
    """Apply updates to a channel that has a value, one for each step; return the value that it has then."""
    from langgraph._internal._typing import MISSING as EMPTY

    live = channel.from_checkpoint(EMPTY if value is MISSING else copy.deepcopy(value))
    for update in updates:
        if update:
            live.update(copy.deepcopy(update))
    stored = live.checkpoint()
    if stored is EMPTY and live.is_available():
        # A DeltaChannel, which stores nothing itself.
        return live.get()
    return MISSING if stored is EMPTY else stored


def _led_to(
    channel: Channel, base: Any, value: Any, updates: Sequence[Sequence[Any]]
) -> Sequence[Sequence[Any]] | None:
    """Return these updates if they make `value` of the base, else None."""
    if not any(updates) or any(one is NOT_STORED for update in updates for one in update):
        return None
    try:
        return updates if same(_replay(channel, base, updates), value) else None
    except Exception:
        # Then it wasn't these that led there, or not through this reducer.
        return None


def _keeps_one(channel: Channel) -> bool:
    from langgraph.channels import AnyValue, EphemeralValue, LastValue, UntrackedValue
    from langgraph.channels.last_value import LastValueAfterFinish

    return isinstance(channel, (AnyValue, EphemeralValue, LastValue, LastValueAfterFinish, UntrackedValue))


def _replaces(channel: Channel, value: Any) -> bool:
    """Tell whether a write takes the place of a value; the type's empty value is tried on it."""
    try:
        empty = type(value)()
        return bool(value) and same(_replay(channel, value, [[empty]]), empty)
    except Exception:
        # No such value, or no such write: nothing shows that it does.
        return False


def _knows_ids(channel: Channel) -> bool:
    """Tell whether a channel's reducer is one of LangGraph's own for messages."""
    reducer = getattr(channel, "operator", None) or getattr(channel, "reducer", None)
    return getattr(getattr(reducer, "func", reducer), "__module__", None) in _MESSAGE_REDUCERS


def _undoes(channel: Channel, three: Three, ours: Side, merged: Any) -> bool:
    """Tell whether something that ours changed is gone, other than where both orders come to the same."""
    values = (*three[1:], merged)
    if not _gone(*values, UNKNOWN):
        return False
    updates = _led_to(channel, three.base, three.ours, updates_of(three.name, ours))
    try:
        return _gone(*values, _replay(channel, three.theirs, updates or [[three.ours]]))
    except Exception:
        # The other order isn't possible, so they don't come to the same.
        return True


def _gone(base: Any, ours: Any, theirs: Any, merged: Any, mirrored: Any) -> bool:
    if same(ours, base) or same(merged, ours):
        return False
    known = [parts for parts in map(_parts, (base, ours, theirs, merged)) if parts is not None]
    if len(known) < 4:
        return same(merged, theirs) and not same(mirrored, merged)
    keys = dict.fromkeys([*known[0], *known[1]])
    other = _parts(mirrored)
    known.append(dict.fromkeys(keys, UNKNOWN) if other is None else other)
    return any(_gone(*(parts.get(key, MISSING) for parts in known)) for key in keys)


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return by name the parts of a value that has such."""
    if value is MISSING:
        return {}
    if type(value) is dict:
        return {token(key): item for key, item in value.items()}
    if type(value) in (set, frozenset):
        return {token(item): item for item in value}
    return by_id(value)


def resets(updates: Sequence[Sequence[Any]]) -> bool:
    """Tell whether one of the writes is an `Overwrite`."""
    return any(_overwrites(value) for update in updates for value in update)


def _overwrites(value: Any) -> bool:
    if isinstance(value, dict):
        # What becomes of `Overwrite` where it comes through JSON.
        marked = len(value) == 1 and _OVERWRITE in value
        return marked or (value.get("type") == _OVERWRITE and "value" in value)
    kind = type(value)
    return (kind.__module__, kind.__name__) == ("langgraph.types", "Overwrite")


def _removes_all(updates: Sequence[Sequence[Any]]) -> bool:
    return any(
        isinstance(item, RemoveMessage) and item.id == _REMOVE_ALL
        for update in updates
        for value in update
        for item in items_of(value)
    )
