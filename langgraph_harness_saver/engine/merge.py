"""Three-way merging of channel values: pure functions over two lines of checkpoints and their common base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.engine.combining import combined
from langgraph_harness_saver.engine.compare import Unresolved, same
from langgraph_harness_saver.engine.replaying import counted, resets, through, updates_of
from langgraph_harness_saver.engine.sides import MISSING, Clash, Conflict, How, Merged, Side, Strategy, Three
from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.versions import is_unique

if TYPE_CHECKING:
    from langgraph_harness_saver.engine.replaying import Channel


def merge(
    base: Side,
    ours: Side,
    theirs: Side,
    *,
    strategy: Strategy = "three_way",
    channels: Mapping[str, Any] | None = None,
) -> Merged:
    """Merge what `theirs` changed since `base` into `ours`, channel by channel.

    A channel that one side changed is that side's; being gone is a change. Where both changed it:

    - With `channels`, theirs' writes since the base are replayed through the channel over ours' value, step
      by step: what would be there if theirs' nodes had run on ours. It is done where the same writes, over
      the base, give theirs' value: so they are all that led there. Replaying never undoes what ours changed:
      where it would (theirs writes the same key of a dict, or edits the same message), it's a conflict,
      unless the order of the two makes no difference. What both added is there twice: of a sum that is 5 at
      the base and 6 on both sides, 7 is made. Exempt is `RemoveMessage(REMOVE_ALL_MESSAGES)`, which
      says that everything is to go, and takes ours' new messages along.
    - Equal values are taken as they are, but for what replaying makes of them.
    - Channels that keep one value (LastValue, AnyValue, EphemeralValue and the like), and those that theirs
      reset with `Overwrite`, are conflicts.
    - Without writes or without `channels`, the values themselves tell, by type; nested values need to be
      equal or changed on one side only, except dicts in dicts:

      - list: where theirs begins with all of the base's items, what follows is appended to ours.
      - list of messages with ids: added, edited and removed by id. Edited on both sides, edited here and
        removed there, or put into another order, is a conflict.
      - set: what theirs added is added, what it removed is removed.
      - dict: key by key, in nested dicts too.
      - numbers, text and all others are conflicts: nothing says that two numbers are sums.

      Except for messages, the base must have a value (with `channels`, the channel's own empty one will
      do): of two lists that came from nowhere, nothing says that one continues the other.

    Values are equal if `same` says so: 1, True and 1.0 differ, NaN equals NaN. What can't be compared counts
    as changed, unless its version, one of those that are given only once, is the same.

    Routing channels (see `is_routing`) are always ours.

    Args:
        base: Where the two lines parted.
        ours: The side that is merged into.
        theirs: The side that is merged.
        strategy: Decides conflicts, and nothing else, as git's `-X` does: "ours" or "theirs" takes that
            side's value; a function is called with each `Conflict` and returns the value, or `MISSING` for
            a channel that is to go, and what it raises is passed on. "three_way" leaves them open.
        channels: A compiled graph's `channels`.

    Raises:
        InvalidConfigError: There is no such strategy.
    """
    check_strategy(strategy)
    merged = Merged()
    for name in dict.fromkeys([*ours.values, *theirs.values, *base.values]):
        three = Three(name, _value(base, name), _value(ours, name), _value(theirs, name))
        value: Any = three.ours
        try:
            value, merged.how[name] = _merged(three, base, ours, theirs, _channel(channels, name))
        except Clash as clash:
            base_value, our_value, their_value = map(copy.deepcopy, three[1:])
            conflict = Conflict(name, base_value, our_value, their_value, str(clash))
            value, decided = _decision(conflict, strategy, three.ours)
            (merged.resolved if decided else merged.conflicts).append(conflict)
            if decided:
                merged.how[name] = "strategy"
        _place(merged, name, value, three.ours)
    return merged


def check_strategy(strategy: Any) -> None:
    """Raise InvalidConfigError where a strategy isn't one that `merge` knows."""
    if not callable(strategy) and strategy not in ("three_way", "ours", "theirs"):
        raise InvalidConfigError(
            f'no merge strategy {strategy!r}: use "three_way", "ours", "theirs" or a function of a Conflict'
        )


def _merged(three: Three, base: Side, ours: Side, theirs: Side, channel: Channel | None) -> tuple[Any, How]:
    if is_routing(three.name) or not _changed(three.name, base, theirs):
        return three.ours, "ours"
    if not _changed(three.name, base, ours):
        if isinstance(three.theirs, Unresolved):
            raise Clash("its value on theirs can't be told without its reducer: pass graph=")
        return three.theirs, "theirs"
    if same(three.ours, three.theirs):
        there, here = theirs.versions.get(three.name), ours.versions.get(three.name)
        if channel is None or (there == here and is_unique(here)):
            return three.ours, "equal"
        return counted(channel, three, theirs)
    if any(isinstance(value, Unresolved) for value in three):
        raise Clash("both sides changed it, and its value can't be told without its reducer: pass graph=")
    if three.ours is MISSING or three.theirs is MISSING:
        raise Clash("one side deleted it, the other changed it")
    if resets(updates_of(three.name, theirs)):
        raise Clash("theirs reset it with Overwrite")
    if channel is None:
        return combined(three), "extended"
    return through(channel, three, ours, theirs)


def _changed(name: str, base: Side, side: Side) -> bool:
    there, here = base.versions.get(name), side.versions.get(name)
    if there == here and is_unique(here) and (name in base.values) == (name in side.values):
        return False
    before, after = _value(base, name), _value(side, name)
    if isinstance(before, Unresolved) or isinstance(after, Unresolved):
        return bool(there != here)
    return not same(before, after)


def _value(side: Side, name: str) -> Any:
    value = side.values.get(name, MISSING)
    return value.value if isinstance(value, _DeltaSnapshot) else value


def _decision(conflict: Conflict, strategy: Strategy, ours: Any) -> tuple[Any, bool]:
    """Return the value that a channel in conflict gets, and whether that settles it."""
    if isinstance(strategy, str) and strategy != "theirs":
        return ours, strategy == "ours"
    value = strategy(conflict) if callable(strategy) else conflict.theirs
    return (ours, False) if isinstance(value, Unresolved) else (value, True)


def _place(merged: Merged, name: str, value: Any, ours: Any) -> None:
    if value is not MISSING:
        merged.values[name] = copy.deepcopy(value)
        if not same(value, ours):
            merged.changed.add(name)
    elif ours is not MISSING:
        merged.deleted.add(name)


def _channel(channels: Mapping[str, Any] | None, name: str) -> Channel | None:
    """Return a channel; a graph's `channels` hold managed values too, which are none."""
    channel = (channels or {}).get(name)
    return channel if hasattr(channel, "from_checkpoint") else None
