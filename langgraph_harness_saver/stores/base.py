"""What a store has to do."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from langgraph_harness_saver.rows import (
    Base,
    Change,
    CheckpointKey,
    CheckpointRow,
    Family,
    Page,
    PartRow,
    PutResult,
    Query,
    WriteRow,
)

Known = Callable[[CheckpointKey, int], bool]
"""Tells whether the caller already holds the bytes of the row with this key and rev."""

Plan = Callable[[Family], Change]


class Unconditional:
    """The type of `ANY_HEAD`."""


ANY_HEAD = Unconditional()
"""A put that does not care which checkpoint is the latest."""


class _Door(threading.local):
    sync = False


door = _Door()
"""`door.sync` is true in a thread that steps a coroutine by hand: a store must not suspend there."""


class Store(ABC):
    """Keeps rows of bytes; knows no graph, no serializer, no retention policy.

    Every method is one transaction. What a method acknowledged by returning is there for every later
    call, in every process. A thread whose expiry has passed is not there for any method, and a write
    to it starts it anew.
    """

    io: ClassVar[Literal["none", "blocking", "async"]] = "async"
    """How a call waits: not at all, in the calling thread (suspending only when there is an event loop
    and `door.sync` is false), or always on the event loop."""

    bare: ClassVar[bool] = False
    """Whether small rows come uncompressed: where nothing is written anywhere, time counts more."""

    ttl_seconds: float | None = None
    """Seconds after its last write at which a thread expires; None for never."""

    clock: Callable[[], float] = staticmethod(time.time)
    """The current time in seconds since the epoch."""

    @abstractmethod
    async def open(self) -> None:
        """Connect and bring the schema up to date; safe to repeat, and from several processes at once."""

    @abstractmethod
    async def close(self) -> None:
        """Release what this store opened; safe to repeat."""

    def let_go(self) -> None:  # noqa: B027
        """Begin to release what this store opened, and don't wait: nobody uses it any more."""

    @abstractmethod
    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
    ) -> PutResult:
        """Store a live checkpoint with its parts if `base` is there unchanged.

        With `head`, the latest live checkpoint of the row's thread and namespace must have that id (None:
        there must be none), or `HeadMovedError` is raised. Storing a row again whose key, kind and rev are
        there already is `STORED` whatever `base` and `head` say, so a put may be retried.
        """

    @abstractmethod
    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> None:
        """Add writes to a checkpoint, which need not be there yet; see `WriteRow`."""

    @abstractmethod
    async def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        known: Known,
        guess: Base | None = None,
    ) -> Page:
        """Return one checkpoint, or an empty page; without an id, the latest live one.

        `support` and `parts` (but not those that the writes name) may be left out where `known` is true
        of the row. `guess` names a row that the caller holds: if it is the answer, its body and metadata may
        be left out as well, both of them empty then.
        """

    @abstractmethod
    async def scan(self, query: Query, size: int, known: Known) -> Page:
        """Return the next `size` checkpoints of a query; fewer only at its end."""

    @abstractmethod
    async def load(self, thread_id: str) -> Family:
        """Return the family of a thread."""

    @abstractmethod
    async def revise(self, thread_id: str, plan: Plan) -> None:
        """Apply what `plan` makes of the thread's family, with no other write to it in between.

        `plan` may be called more than once.
        """

    @abstractmethod
    async def delete_thread(self, thread_id: str) -> int:
        """Delete a thread and all that only it needs; return how many live checkpoints it had."""

    @abstractmethod
    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of threads that have a live checkpoint of one of these runs."""

    @abstractmethod
    async def sweep(self) -> int:
        """Delete what has expired; return how many threads went."""
