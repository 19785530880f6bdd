"""What runs wrote to checkpoints of others, so that it goes with them.

A run that answers an interrupt, or begins at an old checkpoint, leaves writes where it began, and a row of
writes doesn't say whose it is. So the process that a run runs in remembers; it is also the one that rolls it
back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from xxhash import xxh3_128_digest

from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.rows import CheckpointKey, Family, Kind, WriteRow
from langgraph_harness_saver.stores.base import Store, door

MAX_RUNS = 1024
WAIT_SECONDS = 5.0
"""For another thread to read some rows: a wait without end could be for the caller's own event loop."""
LINE_IDS = 2
"""A run writes to its latest checkpoint, or to the one before while the next is under way."""

Mark = tuple[str, int, bytes]


def _under_way() -> Future[None]:
    future: Future[None] = Future()
    # So that one who waits for it and is cancelled doesn't cancel it.
    future.set_running_or_notify_cancel()
    return future


def _mark(row: WriteRow) -> Mark:
    return (row.task_id, row.call, xxh3_128_digest(row.body))


@dataclass(slots=True)
class _Trace:
    """What one run wrote to one checkpoint, and what was there before, once that is known."""

    written: set[Mark] = field(default_factory=set)
    before: set[Mark] | None = None
    special: list[WriteRow] = field(default_factory=list)
    known: Future[None] = field(default_factory=_under_way)

    async def begin(self, key: CheckpointKey, store: Store) -> None:
        """Learn what is there."""
        try:
            found = (await store.writes([key])).rows.get(key, ())
            self.special = [row for row in found if row.call]
            self.before = {*map(_mark, found)}
        finally:
            self.known.set_result(None)

    async def wait(self) -> None:
        """Wait until another has learned it: what is written meanwhile may replace what was there."""
        if door.sync:
            wait([self.known], WAIT_SECONDS)
        elif not self.known.done():
            await asyncio.wrap_future(self.known)

    def without(self, now: Sequence[WriteRow]) -> Sequence[WriteRow]:
        """Return a checkpoint's writes as they would be without the run's."""
        if self.before is None:
            return now
        kept = [row for row in now if (mark := _mark(row)) in self.before or mark not in self.written]
        there = {(row.task_id, row.call) for row in kept}
        replaced = [row for row in self.special if (row.task_id, row.call) not in there]
        return [*replaced, *kept]


@dataclass(slots=True)
class _Run:
    made: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    traces: dict[CheckpointKey, _Trace] = field(default_factory=dict)


class Runs(Forkable):
    """The runs of this process that were last at work."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's runs."""
        self._runs = OrderedDict()
        self._lock = threading.Lock()

    def made(self, run_id: str, key: CheckpointKey) -> None:
        """Learn that a run puts a checkpoint: what is written there goes with it."""
        with self._lock:
            made = self._run(run_id).made
            made[key[:2]] = [*made.get(key[:2], ())[1 - LINE_IDS :], key.checkpoint_id]

    async def writes(self, run_id: str, key: CheckpointKey, rows: Sequence[WriteRow], store: Store) -> None:
        """Learn that a run is about to add writes; those of another's checkpoint are read first."""
        with self._lock:
            run = self._run(run_id)
            if key.checkpoint_id in run.made.get(key[:2], ()):
                return
            first = key not in run.traces
            trace = run.traces.setdefault(key, _Trace())
            trace.written.update(map(_mark, rows))
        await (trace.begin(key, store) if first else trace.wait())

    def threads(self, run_ids: Collection[str]) -> set[str]:
        """Return in which threads these runs wrote to others' checkpoints."""
        with self._lock:
            runs = [self._runs[run_id] for run_id in run_ids if run_id in self._runs]
            return {key.thread_id for run in runs for key in run.traces}

    def without(
        self, run_ids: Collection[str], family: Family, gone: Collection[CheckpointKey]
    ) -> dict[CheckpointKey, Sequence[WriteRow]]:
        """Return the writes that change if these runs' go, once the checkpoints in `gone` have.

        Where others have gone on from a checkpoint they stay, for their channels may be rebuilt from them.
        """
        changed: dict[CheckpointKey, Sequence[WriteRow]] = {}
        with self._lock:
            traces = [
                item
                for run_id in run_ids
                if run_id in self._runs
                for item in reversed(self._runs[run_id].traces.items())
            ]
        begun = _begun(family, gone) if traces else set()
        for key, trace in traces:
            row = family.rows.get(key)
            if row is None or row.kind != Kind.LIVE or key in gone or key[1:] in begun:
                continue
            now = changed.get(key, family.writes.get(key, ()))
            then = trace.without(now)
            if {*map(_mark, then)} != {*map(_mark, now)}:
                changed[key] = then
        return changed

    def forget(self, run_ids: Collection[str]) -> None:
        """Forget runs that are gone."""
        with self._lock:
            for run_id in run_ids:
                self._runs.pop(run_id, None)

    def _run(self, run_id: str) -> _Run:
        run = self._runs.setdefault(run_id, _Run())
        self._runs.move_to_end(run_id)
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return run


def _begun(family: Family, gone: Collection[CheckpointKey]) -> set[tuple[str, str]]:
    """Return, by namespace and id, which checkpoints those that stay go on from."""
    found = set()
    for key, row in family.rows.items():
        if key in gone or row.kind == Kind.HIDDEN:
            continue
        parent_id = row.parent_id
        while parent_id is not None:
            at = family.find(key._replace(checkpoint_id=parent_id), family.rows)
            if at is None or at not in gone:
                found.add((key.checkpoint_ns, parent_id))
                break
            parent_id = family.rows[at].parent_id
    return found
