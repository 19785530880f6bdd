"""What is to go as puts come in, told ahead so that it goes in the transaction of a put."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from langgraph_harness_saver.retention import CheckpointGC, Retention
from langgraph_harness_saver.rows import Keep, Leaving, Standing
from langgraph_harness_saver.slots import revision

AHEAD = 64
"""How many checkpoints are looked at together."""
REMEMBERED = 1 << 16
"""How many that are to leave are known at most, of all threads."""
BLIND = 16
"""For so many puts a thread of which nothing could be foreseen isn't looked at again."""
FORESEEN = (CheckpointGC.KEEP_LAST_N, CheckpointGC.KEEP_AGE)
"""The policies by which the first checkpoints of a thread go."""


class Due(NamedTuple):
    """One that is to leave, and when it was made if that matters."""

    leaving: Leaving
    made_at: float


class Foresight:
    """Knows of threads that are one plain line which of their checkpoints go next.

    Nothing depends on it: whatever it says is checked by the store, in the transaction that acts on it.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._ahead: OrderedDict[str, deque[Due]] = OrderedDict()
        self._known = 0
        self._blind: dict[str, int] = {}

    def keep(self, thread_id: str, made_at: float, now: float) -> Keep | None:
        """Return what is to go with a put of a root checkpoint, None if that isn't known."""
        ahead = self._ahead.get(thread_id, deque())
        if self._retention.newest is not None:
            return Keep(self._retention.newest, [due.leaving for due in islice(ahead, 1)])
        oldest = now - (self._retention.param or 0)
        leaving = [due.leaving for due in ahead if due.made_at < oldest]
        # Of what comes after the last one that is known nothing is.
        return Keep(None, leaving) if len(leaving) < len(ahead) and made_at >= oldest else None

    def went(self, thread_id: str, count: int) -> bool:
        """Note that so many have left; tell whether more should be looked at."""
        ahead = self._ahead.get(thread_id)
        if ahead is None:
            return False
        for _ in range(min(count, len(ahead))):
            ahead.popleft()
            self._known -= 1
        return not ahead

    def learn(self, thread_id: str, ahead: deque[Due]) -> None:
        """Remember what is to leave of a thread; nothing, if nothing is to be foreseen."""
        self.forget(thread_id)
        if ahead:
            self._ahead[thread_id] = ahead
            self._known += len(ahead)
        else:
            self._blind[thread_id] = BLIND
        while self._known > REMEMBERED:
            self._known -= len(self._ahead.popitem(last=False)[1])

    def forget(self, thread_id: str) -> None:
        """Forget what is known of a thread."""
        self._known -= len(self._ahead.pop(thread_id, ()))

    def is_worth_a_look(self, thread_id: str) -> bool:
        """Tell whether to look at a thread's first checkpoints: not at once again if nothing was foreseen."""
        left = self._blind.pop(thread_id, 0)
        if left:
            self._blind[thread_id] = left - 1
        if len(self._blind) > REMEMBERED:
            self._blind.clear()
        return not left and self.horizon > 1

    @property
    def horizon(self) -> int:
        """How many of a thread's first checkpoints to look at."""
        return min(AHEAD + 1, self._retention.newest or AHEAD + 1)


def foreseen(
    standing: Sequence[Standing],
    may_go: Callable[[Standing, Standing], bool],
    made_at: Callable[[Standing], float],
) -> deque[Due]:
    """Return which of a thread's first checkpoints may leave one after the other, as long as it is plain.

    `may_go` tells of one and the next whether the first may go without leaving anything behind.
    """
    ahead: deque[Due] = deque()
    if not standing or standing[0].row.parent_id is not None:
        return ahead
    rev = standing[0].row.rev
    for one, heir in pairwise(standing):
        row, time = one.row, made_at(one)
        out_of_order = made_at(heir) < time
        if heir.row.parent_id != row.key.checkpoint_id or out_of_order or not may_go(one, heir):
            break
        hidden_rev = revision(row.body, b"", None)
        new_rev = revision(heir.row.body, heir.row.metadata, None)
        ids = (row.key.checkpoint_id, heir.row.key.checkpoint_id)
        leaving = Leaving(ids[0], rev, hidden_rev, None, ids[1], heir.row.rev, new_rev, one.stamp)
        ahead.append(Due(leaving, time))
        rev = new_rev
    return ahead
