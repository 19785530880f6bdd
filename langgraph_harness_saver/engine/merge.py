"""Three-way merging of channel values: pure functions over two lines of checkpoints and their common base."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from langchain_core.messages import (
    BaseMessage,
    BaseMessageChunk,
    RemoveMessage,
    convert_to_messages,
    message_chunk_to_message,
)
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.engine.compare import ABSENT, Unresolved, same, token, told
from langgraph_harness_saver.errors import HarnessError, InvalidConfigError
from langgraph_harness_saver.versions import is_unique

if TYPE_CHECKING:
    from langgraph.channels.base import BaseChannel

    Channel: TypeAlias = BaseChannel[Any, Any, Any]


class _Mark(Enum):
    NOT_STORED = "NOT_STORED"
    UNKNOWN = "UNKNOWN"

    def __repr__(self) -> str:
        return self.value


MISSING: Final = ABSENT
"""Stands for the value of a channel that a checkpoint doesn't have."""

NOT_STORED: Final = _Mark.NOT_STORED
"""Stands, in a step's writes, for those to one channel that nobody stored."""

_UNKNOWN: Final = _Mark.UNKNOWN

How = Literal["ours", "theirs", "equal", "replayed", "extended", "strategy"]
StepWrites = Sequence[tuple[str, Any]]

_NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
_REMOVE_ALL = "__remove_all__"
_OVERWRITE = "__overwrite__"
_MESSAGE_REDUCERS = frozenset({"langgraph.graph.message", "langgraph.pregel._messages"})

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Side:
    """One checkpoint, as an end of a line that is merged.

    Attributes:
        values: Channel values. A DeltaChannel's is what it stands for, not its snapshot (a `_DeltaSnapshot`
            counts as the value in it), or `Unresolved`.
        versions: Channel versions; {} where they aren't known.
        steps: What was written to channels since the base, step by step and in the order in which LangGraph
            applied it; see `writes_since`. None where that isn't stored. Not used of the base.
    """

    values: Mapping[str, Any]
    versions: Mapping[str, Any]
    steps: Sequence[StepWrites] | None = None


@dataclass(frozen=True)
class Conflict:
    """A channel that both sides changed, where nothing says how to put the two together.

    `base`, `ours` and `theirs` are its values, `MISSING` where there is none.
    """

    channel: str
    base: Any
    ours: Any
    theirs: Any
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, without the values that are `MISSING`."""
        values = {"base": self.base, "ours": self.ours, "theirs": self.theirs}
        there = {side: told(value) for side, value in values.items() if value is not MISSING}
        return {"channel": self.channel, "reason": self.reason, **there}


Strategy = Literal["three_way", "ours", "theirs"] | Callable[[Conflict], Any]


@dataclass(frozen=True)
class Merged:
    """What a merge gives.

    Attributes:
        values: All channels; those in conflict, and those unresolved, as ours has them. A DeltaChannel's is
            what it stands for. Shares no mutable object with the sides.
        changed: The channels with another value than ours, or none there: they get new versions.
        deleted: The channels that ours has and the result has not.
        how: Where each channel's value is from. "ours" and "theirs": changed there only, or nowhere;
            "equal": changed on both sides to the same; "replayed": theirs' writes applied to ours;
            "extended": put together from both values; "strategy": a conflict that the strategy decided.
            Channels in `conflicts` are not in it.
        conflicts: Those that are open. Where there are any, nothing should be written.
        resolved: Those that the strategy decided.
    """

    values: dict[str, Any] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    how: dict[str, How] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    resolved: list[Conflict] = field(default_factory=list)


@dataclass(frozen=True)
class MergeResult:
    """What became of a branch that was merged into a thread.

    Attributes:
        checkpoint_id: The thread's new head.
        thread_id: The thread that was merged into.
        fast_forward: The thread hadn't moved since the base, so it took the branch's head as it was.
        base_checkpoint_id: Where the two lines parted, or were merged last.
        parents: The heads that were merged: the thread's, the branch's.
        channels: Where each channel's value is from; see `Merged.how`.
        resolved: The conflicts that the strategy decided.
    """

    checkpoint_id: str
    thread_id: str
    fast_forward: bool
    base_checkpoint_id: str
    parents: tuple[str, str]
    channels: Mapping[str, How] = field(default_factory=dict)
    resolved: Sequence[Conflict] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "checkpoint_id": self.checkpoint_id,
            "thread_id": self.thread_id,
            "fast_forward": self.fast_forward,
            "base_checkpoint_id": self.base_checkpoint_id,
            "parents": list(self.parents),
            "channels": dict(self.channels),
            "resolved": [conflict.to_dict() for conflict in self.resolved],
        }


class MergeConflict(HarnessError):  # noqa: N818
    """Nothing says how to put together what the two sides of a merge did to a channel; nothing was written.

    `conflicts` has one `Conflict` for each such channel.
    """

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        lines = [
            f"  {one.channel}: {one.reason} (base {_SHORT.repr(one.base)}, ours {_SHORT.repr(one.ours)}, "
            f"theirs {_SHORT.repr(one.theirs)})"
            for one in conflicts
        ]
        super().__init__(
            "\n".join(
                [
                    f"{len(lines)} channel{'s' * (len(lines) != 1)} can't be merged; nothing was written.",
                    *lines,
                    'Pass strategy="ours" or "theirs" to decide them all, strategy=<function of a Conflict> '
                    "to decide each, or graph= where its reducers are to combine them.",
                ]
            )
        )
        self.conflicts = tuple(conflicts)


class _Clash(Exception):  # noqa: N818
    """Says why the values of two sides can't be put together."""


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
        three = _Three(name, _value(base, name), _value(ours, name), _value(theirs, name))
        value: Any = three.ours
        try:
            value, merged.how[name] = _merged(three, base, ours, theirs, _channel(channels, name))
        except _Clash as clash:
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


# --- one channel -----------------------------------------------------------------------------------


class _Three(NamedTuple):
    """One channel's values."""

    name: str
    base: Any
    ours: Any
    theirs: Any


def _merged(three: _Three, base: Side, ours: Side, theirs: Side, channel: Channel | None) -> tuple[Any, How]:
    if is_routing(three.name) or not _changed(three.name, base, theirs):
        return three.ours, "ours"
    if not _changed(three.name, base, ours):
        if isinstance(three.theirs, Unresolved):
            raise _Clash("its value on theirs can't be told without its reducer: pass graph=")
        return three.theirs, "theirs"
    if same(three.ours, three.theirs):
        there, here = theirs.versions.get(three.name), ours.versions.get(three.name)
        if channel is None or (there == here and is_unique(here)):
            return three.ours, "equal"
        return _counted(channel, three, theirs)
    if any(isinstance(value, Unresolved) for value in three):
        raise _Clash("both sides changed it, and its value can't be told without its reducer: pass graph=")
    if three.ours is MISSING or three.theirs is MISSING:
        raise _Clash("one side deleted it, the other changed it")
    if _resets(_updates(three.name, theirs)):
        raise _Clash("theirs reset it with Overwrite")
    if channel is None:
        return _combined(three), "extended"
    return _through(channel, three, ours, theirs)


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


# --- with a reducer --------------------------------------------------------------------------------


def _channel(channels: Mapping[str, Any] | None, name: str) -> Channel | None:
    """Return a channel; a graph's `channels` hold managed values too, which are none."""
    channel = (channels or {}).get(name)
    return channel if hasattr(channel, "from_checkpoint") else None


def _through(channel: Channel, three: _Three, ours: Side, theirs: Side) -> tuple[Any, How]:
    """Merge values of a channel that both sides changed."""
    if _keeps_one(channel):
        raise _Clash(f"both sides set it, and a {type(channel).__name__} keeps one value")
    stored = _led_to(channel, three.base, three.theirs, _updates(three.name, theirs))
    if stored is not None:
        return _replayed(channel, three, ours, stored, "replayed")
    if _replaces(channel, three.ours) or _replaces(channel, three.theirs):
        raise _Clash("both sides set it, and its reducer keeps one value")
    if three.base is MISSING:
        three = three._replace(base=_replay(channel, MISSING, ()))
    suffix = _suffix(three.base, three.theirs)
    # A list that was appended to is likely to have been so by one write or several of its type.
    assumed = _led_to(channel, three.base, three.theirs, [[suffix]]) if suffix else None
    if assumed is not None:
        return _replayed(channel, three, ours, assumed, "extended")
    return _combined(three), "extended"


def _counted(channel: Channel, three: _Three, theirs: Side) -> tuple[Any, How]:
    """Merge values that are equal: where a reducer adds them up, two changes are more than one."""
    updates = _led_to(channel, three.base, three.theirs, _updates(three.name, theirs))
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
    channel: Channel, three: _Three, ours: Side, updates: Sequence[Sequence[Any]], how: How
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
        return _combined(three), "extended"
    raise _Clash(problem)


def _updates(name: str, side: Side) -> list[list[Any]]:
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


def _undoes(channel: Channel, three: _Three, ours: Side, merged: Any) -> bool:
    """Tell whether something that ours changed is gone, other than where both orders come to the same."""
    values = (*three[1:], merged)
    if not _gone(*values, _UNKNOWN):
        return False
    updates = _led_to(channel, three.base, three.ours, _updates(three.name, ours))
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
    known.append(dict.fromkeys(keys, _UNKNOWN) if other is None else other)
    return any(_gone(*(parts.get(key, MISSING) for parts in known)) for key in keys)


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return by name the parts of a value that has such."""
    if value is MISSING:
        return {}
    if type(value) is dict:
        return {token(key): item for key, item in value.items()}
    if type(value) in (set, frozenset):
        return {token(item): item for item in value}
    return _by_id(value)


def _resets(updates: Sequence[Sequence[Any]]) -> bool:
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
        for item in _items(value)
    )


# --- without one -----------------------------------------------------------------------------------


def _combined(three: _Three) -> Any:
    """Put values together that both sides changed."""
    _, base, ours, theirs = three
    messages = [_by_id(value) for value in ([] if base is MISSING else base, ours, theirs)]
    known = [found for found in messages if found is not None]
    if len(known) == 3:
        return _combined_messages(*known)
    kind: Any = type(ours)
    if kind not in (list, dict, set, frozenset) or type(theirs) is not kind:
        raise _Clash("both sides changed it")
    if base is MISSING:
        raise _Clash("both sides set it, and nothing was there before that would tell what each added")
    if type(base) is not kind:
        raise _Clash("both sides changed it")
    if kind is list:
        return _combined_lists(base, ours, theirs)
    return _combined_dicts(base, ours, theirs) if kind is dict else _combined_sets(base, ours, theirs)


def _combined_lists(base: list[Any], ours: list[Any], theirs: list[Any]) -> list[Any]:
    suffix = _suffix(base, theirs)
    if suffix is None:
        raise _Clash("both sides changed it, and theirs doesn't only append to the list")
    return [*ours, *suffix]


def _suffix(base: Any, value: Any) -> list[Any] | None:
    if type(base) is list and type(value) is list and same(value[: len(base)], base):
        return value[len(base) :]
    return None


def _combined_sets(base: Any, ours: Any, theirs: Any) -> Any:
    before, here, there = ({token(item): item for item in part} for part in (base, ours, theirs))
    _check_keys(ours, theirs)
    kept = [item for key, item in here.items() if key in there or key not in before]
    added = [item for key, item in there.items() if key not in here and key not in before]
    return type(ours)([*kept, *added])


def _combined_dicts(
    base: Mapping[Any, Any], ours: Mapping[Any, Any], theirs: Mapping[Any, Any], path: str = ""
) -> dict[Any, Any]:
    _check_keys(base, ours, theirs)
    return {
        key: value
        for key in dict.fromkeys([*ours, *theirs])
        if (value := _combined_item((base, ours, theirs), key, f"{path}[{key!r}]")) is not MISSING
    }


def _check_keys(*parts: Any) -> None:
    keys = [key for part in parts for key in part]
    if len({token(key) for key in keys}) > len(set(keys)):
        raise _Clash("both sides changed it, and have keys that are equal, but not of the same type")


def _combined_item(parts: Sequence[Mapping[Any, Any]], key: Any, path: str) -> Any:
    base, ours, theirs = (part.get(key, MISSING) for part in parts)
    if same(theirs, base) or same(ours, theirs):
        return ours
    if same(ours, base):
        return theirs
    if type(base) is type(ours) is type(theirs) is dict:
        return _combined_dicts(base, ours, theirs, path)
    raise _Clash(f"both sides changed {path}")


def _combined_messages(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> list[Any]:
    if [key for key in theirs if key in base] != [key for key in base if key in theirs]:
        raise _Clash("both sides changed it, and theirs put its messages into another order")
    kept = {
        key: value
        for key in dict.fromkeys([*ours, *theirs])
        if (value := _combined_item((base, ours, theirs), key, f"message {key!r}")) is not MISSING
    }
    # What theirs put before a message that is still there goes before it, all else to the end.
    before: dict[str | None, list[str]] = {}
    following = None
    for key in reversed(theirs):
        if key in ours and key in kept:
            following = key
        elif key in kept:
            before.setdefault(following, []).append(key)
    order = [new for key in (*ours, None) if key is None or key in kept for new in _with(key, before)]
    return [kept[key] for key in order]


def _with(key: str | None, before: Mapping[str | None, list[str]]) -> list[str]:
    return [*reversed(before.get(key, [])), *([] if key is None else [key])]


def _by_id(value: Any) -> dict[str, Any] | None:
    """Return messages by id, if they all are messages with an id of their own."""
    if type(value) is not list or not all(isinstance(item, BaseMessage) and item.id for item in value):
        return None
    found = {item.id: item for item in value}
    return found if len(found) == len(value) else None


# --- stored writes ---------------------------------------------------------------------------------


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
    there, here = _by_id(_stored(before, name)), _by_id(_stored(after, name))
    items = [item for channel, value in writes if channel == name for item in _items(value)]
    bare = [item for item in items if _written_id(item) is None]
    if not bare or not here:
        return None
    known = {*(there or ()), *map(_written_id, items)}
    new = [message for key, message in here.items() if key not in known]
    return iter(new) if len(new) == len(bare) and all(map(_becomes, bare, new)) else None


def _with_ids(value: Any, named: Iterator[BaseMessage] | None) -> Any:
    if named is None:
        return value
    items = [next(named) if _written_id(item) is None else item for item in _items(value)]
    return items if isinstance(value, list) else items[0]


def _items(value: Any) -> Sequence[Any]:
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
