"""What `CheckpointEngine` does about retention."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any
from zlib import crc32

from langgraph_harness_saver.checkpointer import HarnessCheckpointer
from langgraph_harness_saver.engine.arguments import thread_name
from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.keeping import GCReport, ThreadReport
from langgraph_harness_saver.retention import Retention

GC_THREADS = 100
"""How many threads are listed at a time."""


class CollectionMethods:
    """Garbage collection by hand, of one thread or of all."""

    checkpointer: HarnessCheckpointer

    async def gc(
        self,
        thread_id: str | None = None,
        *,
        dry_run: bool = False,
        retention: Retention | str | None = None,
        progress: Callable[[ThreadReport], Any] | None = None,
        after: str | None = None,
        share: tuple[int, int] | None = None,
    ) -> GCReport:
        """Delete what retention doesn't keep, of one thread or of all, and what was left of earlier ones.

        Args:
            thread_id: A thread; without it, all that there are.
            dry_run: Only tell what would go, what would stay and why.
            retention: The policy; the checkpointer's own, if None.
            progress: Is called with the report of each thread, and may be async.
            after: Go on after this thread, the last one that was told of before.
            share: Of all threads only this process's: its number, from 0, and how many processes there are.
                Each thread is in one of the shares, the same each time.

        Raises:
            InvalidConfigError: There is no such share.
        """
        threads = removed = checkpoints = freed = 0
        details: dict[str, ThreadReport] = {}
        each = self.gc_each(thread_id, after=after, share=share, dry_run=dry_run, retention=retention)
        async for one in each:
            threads += 1
            removed += len(one.removed)
            checkpoints += one.checkpoints
            freed += one.bytes
            if one.checkpoints or thread_id is not None:
                details[one.thread_id] = one
            if progress is not None:
                told = progress(one)
                if inspect.isawaitable(told):
                    await told
        return GCReport(dry_run, threads, removed, checkpoints, freed, details)

    async def gc_each(
        self,
        thread_id: str | None = None,
        *,
        after: str | None = None,
        share: tuple[int, int] | None = None,
        dry_run: bool = False,
        retention: Retention | str | None = None,
    ) -> AsyncIterator[ThreadReport]:
        """Do what `gc` does, yielding the report of each thread."""
        number, count = _checked(share)
        core, keeping = self.checkpointer._core, self.checkpointer._keeping(retention)
        await core.store.open()
        await core.settle()
        if thread_id is not None:
            yield await keeping.collect(core, thread_name(thread_id), dry_run=dry_run)
            return
        while names := await core.store.threads(after, GC_THREADS):
            for after in names:
                if count == 1 or crc32(after.encode("utf-8", "surrogatepass")) % count == number:
                    yield await keeping.collect(core, after, dry_run=dry_run)

    async def expire(self) -> int:
        """Delete the threads whose time to live is over; return how many went."""
        core = self.checkpointer._core
        await core.store.open()
        return await core.sweep()


def _checked(share: tuple[int, int] | None) -> tuple[int, int]:
    if share is None:
        return 0, 1
    match share:
        case (int(number), int(count)) if 0 <= number < count:
            return number, count
    raise InvalidConfigError(
        f"share {share!r} is none: it takes a process's number, from 0, and how many there are, as in (0, 3)"
    )
