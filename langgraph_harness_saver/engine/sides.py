"""What a merge is given and what it gives: the sides, each channel's values, conflicts."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from langgraph_harness_saver.engine.compare import ABSENT, told
from langgraph_harness_saver.errors import HarnessError


class _Mark(Enum):
    NOT_STORED = "NOT_STORED"
    UNKNOWN = "UNKNOWN"

    def __repr__(self) -> str:
        return self.value


MISSING: Final = ABSENT
"""Stands for the value of a channel that a checkpoint doesn't have."""

NOT_STORED: Final = _Mark.NOT_STORED
"""Stands, in a step's writes, for those to one channel that nobody stored."""

UNKNOWN: Final = _Mark.UNKNOWN
"""Stands for what can't be told."""

How = Literal["ours", "theirs", "equal", "replayed", "extended", "strategy"]
StepWrites = Sequence[tuple[str, Any]]

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


class Clash(Exception):  # noqa: N818
    """Says why the values of two sides can't be put together."""


class Three(NamedTuple):
    """One channel's values."""

    name: str
    base: Any
    ours: Any
    theirs: Any
