"""What a store has to do."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Literal

from langgraph_harness_saver.rows import (
    Base,
    Branch,
    Change,
    CheckpointKey,
    CheckpointRow,
    Entry,
    EventRow,
    Family,
    Graft,
    Keep,
    Needed,
    Outline,
    Page,
    PartRow,
    PutResult,
    Query,
    Standing,
    Tag,
    WriteRow,
    Writes,
)

Known = Callable[[CheckpointKey, int], bool]
"""Tells whether the caller already holds the bytes of the row with this key and rev."""


def all_known(_: CheckpointKey, __: int) -> bool:
    """Tell a store that rows are wanted with their writes, and nothing that reading their values takes."""
    return True


Plan = Callable[[Family], Change]

Choice = Callable[[Outline], "Needed | None"]
"""Says of which rows a revision is, None: of all."""


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
    to it starts it anew; if it shares bytes with others of its family, `EntangledError` is raised instead.

    Parts belong to the family, so that what a branch shares stays when its source goes.
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
        keep: Keep | None = None,
    ) -> PutResult:
        """Store a live checkpoint with its parts if `base` is there unchanged, in the same family.

        With `head`, the latest live checkpoint of the row's thread and namespace must have that id (None:
        there must be none), or `HeadMovedError` is raised. Storing a row again whose key, kind and rev are
        there already is `STORED` whatever `base` and `head` say, so a put may be retried.

        With `keep`, of a root checkpoint, others go as it is stored, as far as they may: see `Leaving`. The
        answer is `KEPT` if that is all that there was to do, else `STORED`.
        """

    @abstractmethod
    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> PutResult:
        """Add writes to a checkpoint, which need not be there yet; see `WriteRow`.

        Every part that they name must be among `parts`, or be there already, and then it stays for as long as
        one of them does; else the answer is `BASE_GONE`, and nothing was stored.
        """

    @abstractmethod
    async def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        known: Known,
        guess: Base | None = None,
        *,
        expired: bool = False,
    ) -> Page:
        """Return one checkpoint, or an empty page; without an id, the latest live one.

        With `expired`, that of a thread which has expired and isn't swept yet may be returned as well.

        `support` and `parts` (but not those that the writes name) may be left out where `known` is true
        of the row. `guess` names a row that the caller holds: if it is the answer, its body and metadata may
        be left out as well, both of them empty then.
        """

    @abstractmethod
    async def scan(self, query: Query, size: int, known: Known) -> Page:
        """Return the next `size` checkpoints of a query; fewer only at its end."""

    @abstractmethod
    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        """Return the writes of one thread's checkpoints, which need not be there themselves."""

    @abstractmethod
    async def load(self, thread_id: str) -> Family:
        """Return the family of a thread."""

    @abstractmethod
    async def outline(self, thread_id: str, newest: int | None = None) -> Outline:
        """Return what the family of a thread consists of, without loading it.

        With `newest`, nothing if the thread has no more root checkpoints than so many. Otherwise only those
        nodes whose id, or their parent's, isn't above that of the last of these; and anchors, with all that
        have one as parent.
        """

    @abstractmethod
    async def first(self, thread_id: str, size: int) -> Sequence[Standing]:
        """Return a thread's first live root checkpoints, oldest first, for `put` with `keep`."""

    @abstractmethod
    async def revise(
        self,
        thread_id: str,
        plan: Plan,
        *,
        expired: bool = False,
        choose: Choice | None = None,
        newest: int | None = None,
    ) -> bool:
        """Apply what `plan` makes of the thread's family, with no other write to it in between.

        Return whether anything was applied: `plan` may be called more than once, and then come to nothing.
        With `expired`, nothing happens unless the thread has expired.

        `choose` is given the family's `outline` first, with `newest`, as it is in the same transaction. Of
        the family the plan gets the rows that it names, with their writes, and no other: of parts it must
        drop none. Where it names none, nothing happens.
        """

    @abstractmethod
    async def delete_thread(self, thread_id: str) -> int:
        """Delete a thread that is its family's only one; return how many live checkpoints it had.

        Raises:
            EntangledError: It has branches or is one: `revise` is the way.
        """

    @abstractmethod
    async def graft(self, graft: Graft) -> PutResult:
        """Add checkpoints to a family; see `Graft`. Storing what is there already is `STORED`.

        Raises:
            HeadMovedError: Another checkpoint is the latest than `heads` says.
            BranchExistsError: The branch's name is taken, or its thread.
        """

    @abstractmethod
    async def branches(self, thread_id: str) -> Sequence[Branch]:
        """Return the records of a thread's family, those of deleted branches, without a name, too."""

    @abstractmethod
    async def has_child(self, key: CheckpointKey) -> bool:
        """Tell whether a live checkpoint of the same thread and namespace has this one as its parent."""

    @abstractmethod
    async def namespaces(self, thread_id: str, since: str | None = None) -> Sequence[str]:
        """Return a thread's stable namespaces, those without a colon, that have a live checkpoint.

        With `since`, also those with a colon that have one with a greater id than this.
        """

    @abstractmethod
    async def tag(self, tag: Tag) -> bool:
        """Give a name to a live checkpoint, or give it to another one; False if that isn't there."""

    @abstractmethod
    async def untag(self, thread_id: str, name: str) -> bool:
        """Take a name away; False if there is none such."""

    @abstractmethod
    async def tags(self, *thread_ids: str) -> Sequence[Tag]:
        """Return the tags of threads: one thread's by name, after those of the threads before it."""

    @abstractmethod
    async def lines(
        self, thread_ids: Collection[str], size: int | None = None
    ) -> Mapping[str, Sequence[str]]:
        """Return the ids of live root checkpoints by thread, newest first; of each the newest `size`.

        The threads are of one family. Those that have none may be left out.
        """

    @abstractmethod
    async def newest(self, after: CheckpointKey | None, size: int) -> Sequence[CheckpointKey]:
        """Return the next `size` live root checkpoints of all threads, in the order of `Query`.

        `after` is the last of those before; one that has gone meanwhile will do.
        """

    @abstractmethod
    async def rows(self, keys: Collection[CheckpointKey]) -> Sequence[Entry]:
        """Return those of some rows that are there, in any order, with their writes, but without any part.

        Hidden rows as well, and rows of threads that have expired. `reach` and `parts` may be empty.
        """

    @abstractmethod
    async def eventful(self, thread_ids: Collection[str]) -> Collection[str]:
        """Return which of these threads have events."""

    @abstractmethod
    async def add_events(self, events: Sequence[EventRow]) -> None:
        """Store events, those of one thread all or none; one that is there already stays as it is.

        It is a sign of life of their threads, like a put. Their checkpoints need not be there. An event goes
        with its checkpoint, when that is deleted or only kept hidden; one whose checkpoint was never stored
        goes with the next live root checkpoint by id; all go with their thread, which ends when a change
        leaves it neither checkpoints nor writes.
        """

    @abstractmethod
    async def events(
        self,
        thread_id: str,
        checkpoint_ids: Collection[str] | None = None,
        *,
        after: EventRow | None = None,
        size: int = 200,
        bare: bool = False,
        expired: bool = False,
    ) -> Sequence[EventRow]:
        """Return the next `size` events of a thread, by checkpoint_id and then event_id.

        Of some checkpoints only, where `checkpoint_ids` names them. `after` is the last of the page before.
        With `bare` bodies are left out, they are empty then; with `expired` a thread that has expired is
        read all the same.
        """

    @abstractmethod
    async def entangled(self) -> Sequence[str]:
        """Return threads that have expired and that `sweep` leaves, for they share bytes with others."""

    @abstractmethod
    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of threads that have a live checkpoint of one of these runs."""

    @abstractmethod
    async def threads(self, after: str | None, size: int) -> Sequence[str]:
        """Return the next `size` threads that have a checkpoint, in an order of the store's own.

        `after` is the last of those before; one that has gone meanwhile will do.
        """

    @abstractmethod
    async def sweep(self) -> int:
        """Delete what has expired; return how many threads went."""
