"""Which checkpoints stay: pure functions, and the policy that they follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import heapify, heappop, heappush
from typing import Any

from langgraph_harness_saver.errors import InvalidConfigError

LINES = 100
"""So many heads of lines that have been left stay whatever the policy, the newest ones."""


class CheckpointGC(str, Enum):
    """The policies that say which root checkpoints of a thread stay."""

    KEEP_ALL = "keep_all"
    """All of them."""
    KEEP_LAST_N = "keep_last_n"
    """The `param` newest ones."""
    KEEP_AGE = "keep_age"
    """Those that are at most `param` seconds old."""
    KEEP_MILESTONES = "keep_milestones"
    """The first, the last, and evenly spaced ones in between, `param` in all."""
    MAX_BYTES = "max_bytes"
    """The newest ones that fit in `param` bytes, with all that is stored for them."""


_COUNTED = {CheckpointGC.KEEP_LAST_N: 1, CheckpointGC.KEEP_MILESTONES: 2, CheckpointGC.MAX_BYTES: 1}
"""What a policy's whole-numbered parameter is at least."""
_EXAMPLES = {
    CheckpointGC.KEEP_ALL: "keep_all",
    CheckpointGC.KEEP_LAST_N: "keep_last_n:100",
    CheckpointGC.KEEP_AGE: "keep_age:86400",
    CheckpointGC.KEEP_MILESTONES: "keep_milestones:20",
    CheckpointGC.MAX_BYTES: "max_bytes:10000000",
}


@dataclass(frozen=True, slots=True)
class Retention:
    """A policy with its parameter: how many checkpoints, how many seconds, or how many bytes.

    Whatever it says, these stay: the head of every line, what is tagged, what waits for an answer to an
    interrupt, and where branches and lines begin. Written as text it is `keep_last_n:100`.

    Raises:
        InvalidConfigError: There is no such policy, or it doesn't take that parameter.
    """

    policy: CheckpointGC = CheckpointGC.KEEP_ALL
    param: float | None = None

    def __post_init__(self) -> None:
        try:
            policy = CheckpointGC(self.policy)
        except ValueError as error:
            raise InvalidConfigError(f"there is no policy {self.policy!r}; there are {_known()}") from error
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "param", _checked(policy, self.param))

    @classmethod
    def of(cls, value: Any) -> Retention:
        """Make one of a policy's name, "policy:param", a pair or a mapping of the two; None is keep_all."""
        if isinstance(value, Retention):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            name, _, given = str(getattr(value, "value", value)).strip().partition(":")
            return cls(_named(name), _number(name, given) if given else None)
        if isinstance(value, Mapping) and value.keys() <= {"policy", "param"} and "policy" in value:
            return cls(**value)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            return cls(*value)
        raise InvalidConfigError(f"{value!r} is no retention; write one as {_known()}")

    def __str__(self) -> str:
        return self.policy.value if self.param is None else f"{self.policy.value}:{self.param:g}"

    @property
    def keeps_all(self) -> bool:
        """Whether nothing ever goes."""
        return self.policy == CheckpointGC.KEEP_ALL

    @property
    def newest(self) -> int | None:
        """How many of the newest checkpoints stay, where that is what the policy says."""
        return int(self.param or 0) if self.policy == CheckpointGC.KEEP_LAST_N else None


def _known() -> str:
    return ", ".join(_EXAMPLES.values())


def _named(name: str) -> CheckpointGC:
    try:
        return CheckpointGC(name.strip().lower())
    except ValueError as error:
        raise InvalidConfigError(f"there is no policy {name!r}; there are {_known()}") from error


def _number(name: str, given: str) -> float:
    try:
        return float(given) if not given.strip().isdecimal() else int(given)
    except ValueError as error:
        raise InvalidConfigError(f"{name} takes a number, not {given!r}") from error


def _checked(policy: CheckpointGC, param: Any) -> float | None:
    """Return a policy's parameter, whole where it counts something."""
    if policy == CheckpointGC.KEEP_ALL:
        if param is not None:
            raise InvalidConfigError(f"keep_all keeps all, and takes no parameter such as {param!r}")
        return None
    wrong = InvalidConfigError(
        f"{policy.value} takes {_takes(policy)}, not {param!r}: such as {_EXAMPLES[policy]}"
    )
    if isinstance(param, bool) or not isinstance(param, (int, float)) or not math.isfinite(param):
        raise wrong
    if policy == CheckpointGC.KEEP_AGE:
        if param <= 0:
            raise wrong
        return param
    if param != int(param) or param < _COUNTED[policy]:
        raise wrong
    return int(param)


def _takes(policy: CheckpointGC) -> str:
    if policy == CheckpointGC.KEEP_AGE:
        return "a number of seconds greater than 0"
    if policy == CheckpointGC.MAX_BYTES:
        return "a whole number of bytes"
    return f"a whole number of checkpoints, {_COUNTED[policy]} or more"


class Why(str, Enum):
    """Why a checkpoint stays."""

    HEAD = "head"
    """It is its thread's latest."""
    TAGGED = "tagged"
    INTERRUPTED = "interrupted"
    """A task of it has asked, and nobody has answered."""
    BRANCHED = "branched"
    """A branch began here."""
    LINE_HEAD = "line_head"
    """It is the last of a line that was left for another one."""
    FORK = "fork"
    """Two lines begin here that are kept."""
    POLICY = "policy"
    """The policy keeps it."""


@dataclass(frozen=True, slots=True)
class Root:
    """A root checkpoint, as far as policies look at it.

    `ts` is when it was made, in seconds since the epoch; `step` LangGraph's number of it; `size` how many
    bytes are stored for it and for what subgraphs made under it; `holds` says why it is to stay whatever the
    policy, None where nothing but its place in the thread does.
    """

    checkpoint_id: str
    parent_id: str | None = None
    ts: float = 0.0
    step: int | None = None
    size: int = 0
    holds: Why | None = None


def staying(retention: Retention, roots: Iterable[Root], now: float) -> dict[str, Why]:
    """Return which root checkpoints of a thread stay, by id, and why; all others may go.

    What stays, stays when this is asked again of what has stayed, as long as neither time passes nor
    anything else changes.
    """
    line = sorted(roots, key=lambda root: root.checkpoint_id)
    if not line:
        return {}
    heads = _heads_of_lines(line)
    kept = {root.checkpoint_id: root.holds for root in line if root.holds is not None}
    kept[line[-1].checkpoint_id] = Why.HEAD
    # Those that stay anyway don't count.
    safe = {*kept, *[one for one in heads if one not in kept][-LINES:]}
    safe.update(_forks(line, safe))
    policy = frozenset(_POLICIES[retention.policy](line, retention.param, now, safe))
    left = [one for one in heads if one not in policy and one not in kept]
    kept.update(dict.fromkeys(left[-LINES:], Why.LINE_HEAD))
    kept.update((one, Why.LINE_HEAD) for one in heads if one in policy and one not in kept)
    for checkpoint_id in policy:
        kept.setdefault(checkpoint_id, Why.POLICY)
    for checkpoint_id in _forks(line, kept):
        if kept.get(checkpoint_id, Why.POLICY) == Why.POLICY:
            kept[checkpoint_id] = Why.FORK
    return kept


def _all(line: Sequence[Root], *_: Any) -> Iterable[str]:
    return (root.checkpoint_id for root in line)


def _last_n(line: Sequence[Root], param: Any, *_: Any) -> Iterable[str]:
    return (root.checkpoint_id for root in line[-param:])


def _young(line: Sequence[Root], param: Any, now: float, _: Collection[str]) -> Iterable[str]:
    return (root.checkpoint_id for root in line if root.ts >= now - param)


def _fitting(line: Sequence[Root], param: Any, _: float, kept: Collection[str]) -> Iterable[str]:
    left = param - sum(root.size for root in line if root.checkpoint_id in kept)
    for root in reversed(line):
        if root.checkpoint_id in kept:
            continue
        left -= root.size
        if left < 0:
            return
        yield root.checkpoint_id


def _milestones(line: Sequence[Root], param: Any, _: float, kept: Collection[str]) -> Iterable[str]:
    fixed = {i for i, root in enumerate(line) if root.checkpoint_id in kept}
    places = _places(line)
    if len(line) - len(fixed) < param:
        # The head is one of the fixed ones, and counts.
        chosen: Iterable[int] = range(len(line))
    elif places[-1] - places[0] == len(line) - 1:
        # None has gone yet, so they can be spaced as evenly as possible.
        chosen = {i * (len(line) - 1) // (param - 1) for i in range(param)}
    else:
        chosen = _spaced(places, param - 1, fixed)
    return (line[i].checkpoint_id for i in chosen if i not in fixed)


_POLICIES: Mapping[CheckpointGC, Callable[[Sequence[Root], Any, float, Collection[str]], Iterable[str]]] = {
    CheckpointGC.KEEP_ALL: _all,
    CheckpointGC.KEEP_LAST_N: _last_n,
    CheckpointGC.KEEP_AGE: _young,
    CheckpointGC.KEEP_MILESTONES: _milestones,
    CheckpointGC.MAX_BYTES: _fitting,
}


def _places(line: Sequence[Root]) -> list[int]:
    """Return how far along the thread each checkpoint is, those that have gone counted too."""
    places = [0]
    for before, root in itertools.pairwise(line):
        # A rewind goes on from an earlier step.
        steps = (root.step - before.step) if root.step is not None and before.step is not None else 1
        places.append(places[-1] + max(1, steps))
    return places


def _spaced(places: Sequence[int], count: int, fixed: Collection[int]) -> list[int]:
    """Return the ends, what is `fixed`, and so many that aren't that these are `count`.

    One after another is left out where the gap is smallest. Asked again whenever one has been added at the
    end, this keeps the largest gap within about twice the average; targets at even distances would not, for
    what was between them has gone.
    """
    before, after = [i - 1 for i in range(len(places))], [i + 1 for i in range(len(places))]
    gaps = [(places[i + 1] - places[i - 1], i) for i in range(1, len(places) - 1) if i not in fixed]
    heapify(gaps)
    gone: set[int] = set()
    while len(places) - len(fixed) - len(gone) > count:
        gap, i = heappop(gaps)
        if i in gone or gap != places[after[i]] - places[before[i]]:
            continue
        gone.add(i)
        before[after[i]], after[before[i]] = before[i], after[i]
        for near in (before[i], after[i]):
            if 0 < near < len(places) - 1 and near not in fixed:
                heappush(gaps, (places[after[near]] - places[before[near]], near))
    return [i for i in range(len(places)) if i not in gone]


def _heads_of_lines(line: Sequence[Root]) -> list[str]:
    """Return the checkpoints that nothing came of, of those on a line that parted from another one."""
    parents = {root.checkpoint_id: root.parent_id for root in line}
    children: dict[str, int] = {}
    for parent in parents.values():
        if parent is not None and parent in parents:
            children[parent] = children.get(parent, 0) + 1
    parted: dict[str, bool] = {}
    return [one for one in parents if one not in children and _parted(one, parents, children, parted)]


def _parted(
    checkpoint_id: str,
    parents: Mapping[str, str | None],
    children: Mapping[str, int],
    parted: dict[str, bool],
) -> bool:
    """Tell whether a checkpoint has an ancestor with several children; `parted` remembers."""
    path: list[str] = []
    one: str | None = checkpoint_id
    while one is not None and one in parents and one not in parted and children.get(one, 0) < 2:
        path.append(one)
        # Ids are the caller's, and may name each other in a circle.
        parted[one] = False
        one = parents[one]
    answer = one is not None and one in parents and (children.get(one, 0) > 1 or parted.get(one, False))
    parted.update(dict.fromkeys(path, answer))
    return answer


def _forks(line: Sequence[Root], kept: Collection[str]) -> list[str]:
    """Return the checkpoints below which more than one child leads to something kept."""
    parents = {root.checkpoint_id: root.parent_id for root in line}
    reached: dict[str, set[str]] = {}
    for one in kept:
        child, parent = one, parents[one]
        while parent is not None and parent in parents and child not in reached.setdefault(parent, set()):
            reached[parent].add(child)
            child, parent = parent, parents[parent]
    return [one for one, below in reached.items() if len(below) > 1]
