"""Keeps threads to a policy: as they are written to, and when asked."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID
from zlib import crc32

from langgraph_harness_saver.asking import questions, unanswered, waiting
from langgraph_harness_saver.channels import is_rebuilt
from langgraph_harness_saver.choosing import Facts, Threads, Verdict, neighbours
from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.envelope import unpack
from langgraph_harness_saver.errors import HarnessError, SerializationError
from langgraph_harness_saver.family import collection, is_anchor_id, reader_of, retirement, root_of
from langgraph_harness_saver.foreseeing import FORESEEN, Foresight, foreseen
from langgraph_harness_saver.retention import CheckpointGC, Retention, Why
from langgraph_harness_saver.rows import (
    Change,
    CheckpointKey,
    CheckpointRow,
    EventRow,
    Family,
    Keep,
    Kind,
    Needed,
    Node,
    Outline,
    PartRow,
    Standing,
    WriteRow,
)
from langgraph_harness_saver.slots import Image
from langgraph_harness_saver.stores.parts import size_of_part

if TYPE_CHECKING:
    from langgraph_harness_saver.core import Core

logger = logging.getLogger(__name__)

COLLECT_EVERY = 64
"""After about so many puts of a thread, or twice as many as stay if that is more, what they have taken out of
sight is deleted, for that takes the longer the more stay."""
SLACK = 16
"""Where bytes are counted, a thread is looked at once a 16th of what it may have has come, and then shrunk by
as much below."""
SPARED = 16
"""So many of the root checkpoints that went last, with what was made under them, a collection leaves out of
sight as they were: another run may still stand on one."""
REMEMBERED = 1 << 16
"""Of how many checkpoints it is remembered what channels they hold."""
LOOKS = 8
"""How many checkpoints that others have put are read together to know what goes next."""
FITTINGS = 8
"""How often it is tried to make a thread small enough: what goes leaves bytes behind that others need."""


@dataclass(frozen=True, slots=True)
class ThreadReport:
    """What was, or would be, done to one thread.

    `stays` says why each root checkpoint stays that does, `removed` are the ids of those that don't, newest
    last; `checkpoints` counts all that go, those of subgraphs too, `bytes` what that frees.
    """

    thread_id: str
    stays: Mapping[str, Why] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    checkpoints: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class GCReport:
    """What a garbage collection did, or with `dry_run` would do.

    `threads` counts those that were looked at, `removed` the root checkpoints that go, `checkpoints` all that
    do, `bytes` what that frees. `details` has by id the reports of the threads of which any goes, and that of
    a thread that was asked for.
    """

    dry_run: bool = False
    threads: int = 0
    removed: int = 0
    checkpoints: int = 0
    bytes: int = 0
    details: Mapping[str, ThreadReport] = field(default_factory=dict)


NO_EVENTS: Mapping[str, int] = MappingProxyType({})


class _Seen(NamedTuple):
    """What is known of a stored checkpoint: its channels with a value, and whether one is a snapshot's."""

    rev: int
    channels: frozenset[str]
    snapshot: bool


class Keeping:
    """A policy, and what has been seen lately of the checkpoints that it is about.

    What it remembers saves look-ups; nothing depends on it.
    """

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self.retention = retention
        self.failures = 0
        """How often a put was stored and what should have gone then is still there."""
        self._clock = clock
        self._seen: dict[CheckpointKey, _Seen] = {}
        self._times: dict[CheckpointKey, float] = {}
        self._grown: dict[str, int] = {}
        self._asking: set[str] = set()
        self._foresight = Foresight(retention) if retention.policy in FORESEEN else None

    # --- as writes come in -------------------------------------------------------------------------

    def with_put(self, image: Image) -> Keep | None:
        """Return what is to go in the transaction of a put, as far as that is known."""
        key = image.key
        if self._foresight is None or key.checkpoint_ns:
            return None
        return self._foresight.keep(key.thread_id, made_at(key.checkpoint_id, image.header.ts), self.now())

    async def after_put(
        self, core: Core, row: CheckpointRow, image: Image, parts: Sequence[PartRow], kept: Keep | None
    ) -> None:
        """Remember a checkpoint that was stored, and let go what has to, beside what was `kept` with it."""
        self._remember(core.codec, row.key, image)
        self.grew(row.key.thread_id, [row], parts)
        await self.keep(core, row.key, kept)

    def grew(
        self,
        thread_id: str,
        rows: Iterable[CheckpointRow | WriteRow | EventRow],
        parts: Iterable[PartRow] = (),
    ) -> None:
        """Note how much was stored."""
        if self.retention.policy == CheckpointGC.MAX_BYTES and thread_id in self._grown:
            self._grown[thread_id] += sum(len(row.body) for row in rows) + sum(len(p.data) for p in parts)

    async def keep(self, core: Core, key: CheckpointKey, kept: Keep | None = None) -> None:
        """Let go what has to, now that a checkpoint was added, unless what went with it, `kept`, is all.

        An error is logged and counted: the checkpoint is stored, and the next one will see to it.
        """
        if key.checkpoint_ns:
            return
        try:
            await self._keep(core, key, kept)
        except HarnessError:
            self.failures += 1
            logger.exception("thread %r isn't kept to %s yet", key.thread_id, self.retention)

    async def _keep(self, core: Core, key: CheckpointKey, kept: Keep | None) -> None:
        thread_id = key.thread_id
        if self.retention.policy == CheckpointGC.MAX_BYTES:
            limit = self.retention.param or 0
            if self._grown.get(thread_id, limit) > limit / SLACK:
                await self.collect(core, thread_id, grows=True)
            return
        if kept is None:
            is_plain = await self._retire(core, thread_id)
        else:
            is_plain = self._went(core, thread_id, kept)
        if is_plain:
            await self._look_ahead(core, thread_id)
        # Told from the id, so that no process has to remember what others have done.
        every = max(COLLECT_EVERY, 2 * (self.retention.newest or 0))
        if crc32(key.checkpoint_id.encode("utf-8", "surrogatepass")) % every == 0:
            await self.collect(core, thread_id, told=False)

    def _went(self, core: Core, thread_id: str, kept: Keep) -> bool:
        """Note what has gone with a put; tell whether to look what goes next."""
        for leaving in kept.leaving:
            key = CheckpointKey(thread_id, "", leaving.checkpoint_id)
            core.cache.drop(key)
            self._forget(key)
            heir = key._replace(checkpoint_id=leaving.heir_id)
            if seen := self._seen.get(heir):
                self._seen[heir] = seen._replace(rev=leaving.heir_new_rev)
        return self._foresight is not None and self._foresight.went(thread_id, len(kept.leaving))

    async def _look_ahead(self, core: Core, thread_id: str) -> None:
        """Find out what is to go with the next puts of a thread that is one plain line."""
        if self._foresight is None or not self._foresight.is_worth_a_look(thread_id):
            return
        standing = await core.store.first(thread_id, self._foresight.horizon)
        looks = LOOKS
        for one in standing:
            key = one.row.key
            if self._known(key, one.row.rev) is None or (self._by_age and key not in self._times):
                looks -= 1
                stored = await core.get(*key) if looks >= 0 else None
                if stored is None:
                    break
                self._remember(core.codec, key, stored.image)
        times = self._times if self._by_age else {}
        self._foresight.learn(
            thread_id,
            foreseen(
                standing,
                lambda one, heir: self._may_go(core.codec, one, heir),
                lambda one: times.get(one.row.key, 0.0),
            ),
        )

    def _may_go(self, codec: Codec, one: Standing, heir: Standing) -> bool:
        """Tell whether a checkpoint may go without anything left behind, as far as is known."""
        seen, after = self._known(one.row.key, one.row.rev), self._known(heir.row.key, heir.row.rev)
        if seen is None or after is None or after.snapshot or unanswered(one.writes):
            return False
        written = {item[2] for item in codec.merge_writes(one.writes, one.row.key)}
        return {channel for channel in seen.channels | written if is_rebuilt(channel)} <= after.channels

    async def _retire(self, core: Core, thread_id: str) -> bool:
        """Take out of sight what goes; tell whether the thread is one plain line, as far as was seen."""
        if self._foresight is not None:
            self._foresight.forget(thread_id)
        readable = thread_id in self._asking
        while True:
            retiring = _Retiring(self, core.codec, thread_id, readable=readable)
            await core.store.revise(
                thread_id, retiring.plan, choose=retiring.choose, newest=self.retention.newest
            )
            for key in retiring.verdict.gone:
                core.cache.drop(key)
                self._forget(key)
            if retiring.undated:
                for node in retiring.undated:
                    stored = await core.get(*node.key)
                    header = stored.image.header if stored else None
                    self._times[node.key] = made_at(node.key.checkpoint_id, header and header.ts)
            elif not retiring.unread:
                self._bound(self._asking)
                (self._asking.add if retiring.asked else self._asking.discard)(thread_id)
                return retiring.is_plain and (self._by_age or bool(retiring.verdict.gone))
            readable = readable or retiring.unread

    # --- when asked --------------------------------------------------------------------------------

    async def collect(
        self, core: Core, thread_id: str, *, dry_run: bool = False, told: bool = True, grows: bool = False
    ) -> ThreadReport:
        """Delete all of a thread that the policy doesn't keep, and what was left of what went before.

        Unless it is `told`, the report lacks the bytes of events. If the thread `grows`, a byte budget has
        to do for what comes until it is looked at again.
        """
        await core.store.open()
        events = await core.event_bytes(thread_id) if told else NO_EVENTS
        collecting = _Collecting(self, core.codec, thread_id, events, grows=grows)
        if dry_run:
            collecting.choose(await core.store.outline(thread_id))
            collecting.plan(await core.store.load(thread_id))
            return collecting.report
        await core.store.revise(thread_id, collecting.plan, choose=collecting.choose)
        for key in collecting.verdict.gone:
            core.cache.drop(key)
            self._forget(key)
        if self.retention.policy == CheckpointGC.MAX_BYTES:
            self._bound(self._grown)
            self._grown[thread_id] = 0
        return collecting.report

    # --- what is remembered ------------------------------------------------------------------------

    def _remember(self, codec: Codec, key: CheckpointKey, image: Image) -> None:
        self.saw(codec, key, image)
        if self._by_age and not key.checkpoint_ns:
            self._bound(self._times)
            self._times[key] = made_at(key.checkpoint_id, image.header.ts)

    def saw(self, codec: Codec, key: CheckpointKey, image: Image) -> None:
        """Remember the channels of a checkpoint."""
        snapshot = any(codec.is_delta_snapshot(blob) for blob in image.blobs.values())
        self._bound(self._seen)
        self._seen[key] = _Seen(image.rev, frozenset(image.blobs), snapshot)

    def moved(self, row: CheckpointRow) -> None:
        """Note that a checkpoint got another parent, and no other contents."""
        if seen := self._seen.get(row.key):
            self._seen[row.key] = seen._replace(rev=row.rev)

    def seen(self, node: Node) -> _Seen | None:
        """Return what is known of a checkpoint as it is now."""
        return self._known(node.key, node.rev)

    def _known(self, key: CheckpointKey, rev: int) -> _Seen | None:
        seen = self._seen.get(key)
        return seen if seen is not None and seen.rev == rev else None

    @property
    def _by_age(self) -> bool:
        return self.retention.policy == CheckpointGC.KEEP_AGE

    def time_of(self, node: Node) -> float | None:
        """Return when a checkpoint was made, None if that isn't known."""
        return self._times.get(node.key)

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._clock()

    def _forget(self, key: CheckpointKey) -> None:
        self._seen.pop(key, None)
        self._times.pop(key, None)

    @staticmethod
    def _bound(
        known: dict[CheckpointKey, _Seen] | dict[CheckpointKey, float] | dict[str, int] | set[str],
    ) -> None:
        if len(known) >= REMEMBERED:
            known.clear()


class _Retiring:
    """Takes out of sight what a policy lets go, without loading the rest of a thread.

    `unread`: it has to be done again, with what reading the rows takes; `asked`: that is so each time, for
    one of them asks something; `undated`: of these it isn't known when they were made.
    """

    def __init__(self, keeping: Keeping, codec: Codec, thread_id: str, *, readable: bool) -> None:
        self._keeping = keeping
        self._codec = codec
        self._thread_id = thread_id
        self._readable = readable
        self._outline = Outline()
        self.verdict = Verdict()
        self.unread = self.asked = False
        self.undated: list[Node] = []

    def choose(self, outline: Outline) -> Needed:
        self._outline = outline
        self.unread = self.asked = False
        threads = Threads(outline, self._thread_id, facts_with(self._codec))
        times: dict[str, float] = {}
        if self._keeping.retention.policy == CheckpointGC.KEEP_AGE:
            known = {one: self._keeping.time_of(node) for one, node in threads.roots.items()}
            times = {one: made for one, made in known.items() if made is not None}
            self.undated = [node for one, node in threads.roots.items() if one not in times]
        self._threads, self._times = threads, times
        self.verdict = Verdict() if self.undated else self._verdict(())
        keys, anchored = neighbours(outline, self.verdict.gone)
        self._readable = bool(keys) and (self._readable or anchored or not self._are_plain())
        return Needed(keys, self._readable)

    @property
    def is_plain(self) -> bool:
        """Whether there were only root checkpoints of one thread to look at, none of them held by a tag."""
        outline = self._outline
        return not (outline.tagged or outline.branches) and all(
            node.kind == Kind.LIVE and not node.key.checkpoint_ns for node in outline.nodes
        )

    def plan(self, family: Family) -> Change:
        asked = [key for key in self.verdict.gone if key in family.rows and questions(key, family)]
        if not self._readable and (asked or not self._are_written_in_place(family)):
            self.unread, self.verdict = True, Verdict()
        elif asked:
            self.asked = True
            reader = reader_of(self._codec, family.rows, family)
            self.verdict = self._verdict(waiting(asked, family, self._outline, reader))
        if not self.verdict.gone:
            return Change()
        change = retirement(self._codec, family, self._outline, self.verdict.gone, readable=self._readable)
        if self._readable:
            reader = reader_of(self._codec, family.rows, family)
            for node in self._heirs():
                self._keeping.saw(self._codec, node.key, reader.image(family.rows[node.key]))
        for row in change.rows:
            self._keeping.moved(row)
        return change

    def _verdict(self, interrupted: Collection[str]) -> Verdict:
        return self._threads.verdict(
            self._keeping.retention, self._keeping.now(), interrupted=interrupted, times=self._times
        )

    def _heirs(self) -> list[Node]:
        """Return the survivors that get another parent."""
        gone = {(key.checkpoint_ns, key.checkpoint_id) for key in self.verdict.gone}
        return [
            node
            for node in self._outline.nodes
            if (node.key.checkpoint_ns, node.parent_id) in gone
            and node.key not in self.verdict.gone
            and node.kind == Kind.LIVE
        ]

    def _are_plain(self) -> bool:
        """Tell whether it is known that survivors hold every channel that those which go hold."""
        nodes = [node for node in self._outline.nodes if node.key in self.verdict.gone]
        gone = [self._keeping.seen(node) for node in nodes]
        heirs = [self._keeping.seen(node) for node in self._heirs()]
        held = {channel for seen in gone if seen for channel in seen.channels if is_rebuilt(channel)}
        return all(gone) and all(seen and not seen.snapshot and held <= seen.channels for seen in heirs)

    def _are_written_in_place(self, family: Family) -> bool:
        """Tell whether survivors hold every channel that tasks of those which go wrote to."""
        gone = {key[1:] for key in self.verdict.gone}
        written = {
            item[2]
            for key, writes in family.writes.items()
            # Those of branches to what they have from their source, too.
            if key[1:] in gone
            for item in self._codec.merge_writes(writes, key)
            if is_rebuilt(item[2])
        }
        heirs = [self._keeping.seen(node) for node in self._heirs()]
        return all(seen is not None and written <= seen.channels for seen in heirs)


class _Collecting:
    """Deletes what a policy lets go, of a family that is loaded whole."""

    def __init__(
        self, keeping: Keeping, codec: Codec, thread_id: str, events: Mapping[str, int], *, grows: bool
    ) -> None:
        """Collect one thread; `events`: how many bytes its events take, by the checkpoint they hang on."""
        self._keeping = keeping
        self._codec = codec
        self._thread_id = thread_id
        self._events = events
        self._grows = grows
        self._outline = Outline()
        self.verdict = Verdict()
        self.report = ThreadReport(thread_id)

    def choose(self, outline: Outline) -> None:
        self._outline = outline

    def plan(self, family: Family) -> Change:
        threads = Threads(self._outline, self._thread_id, facts_with(self._codec))
        roots = [node.key for node in threads.roots.values() if node.key in family.rows]
        reader = reader_of(self._codec, family.rows, family)
        asked = waiting(roots, family, self._outline, reader)
        times: dict[str, float] = {}
        if self._keeping.retention.policy == CheckpointGC.KEEP_AGE:
            times = {
                key.checkpoint_id: made_at(key.checkpoint_id, reader.header(reader.head(key))[0].ts)
                for key in roots
            }
        noted = taken_along(self._events, threads.roots)
        before = weight(family, self._thread_id) + sum(noted.values())
        retention = self._keeping.retention
        if retention.policy == CheckpointGC.MAX_BYTES:
            change = self._fitting(family, threads, asked, before, noted)
        else:
            self.verdict = threads.verdict(retention, self._keeping.now(), interrupted=asked, times=times)
            change = self._change(family, SPARED)
        self.report = ThreadReport(
            self._thread_id,
            self.verdict.stays,
            tuple(self.verdict.roots),
            len(self.verdict.gone),
            before - self._weight(family, change, noted),
        )
        return change

    def _weight(self, family: Family, change: Change, noted: Mapping[str | None, int]) -> int:
        """Return how many bytes are stored of the thread when it has been changed, its events counted."""
        left = sum(size for root, size in noted.items() if root is None or root in self.verdict.stays)
        return weight(applied(family, change), self._thread_id) + left

    def _fitting(
        self,
        family: Family,
        threads: Threads,
        asked: Collection[str],
        before: int,
        noted: Mapping[str | None, int],
    ) -> Change:
        """Let go as much as it takes: what goes may leave bytes behind that survivors need."""
        limit = int(self._keeping.retention.param or 0)
        goal = limit if before <= limit and not self._grows else limit - limit // SLACK
        sizes = {one: _size(family, threads, node) + noted.get(one, 0) for one, node in threads.roots.items()}
        target = goal
        for _ in range(FITTINGS):
            policy = Retention(CheckpointGC.MAX_BYTES, max(1, target))
            self.verdict = threads.verdict(policy, 0.0, interrupted=asked, sizes=sizes)
            change = self._change(family)
            excess = self._weight(family, change, noted) - goal
            if excess <= 0 or target <= 1:
                sparing = self._change(family, SPARED)
                return sparing if self._weight(family, sparing, noted) <= goal else change
            kept = sum(sizes[one] for one in self.verdict.stays)
            target = max(1, min(target, kept) - excess)
        return change

    def _change(self, family: Family, spared: int = 0) -> Change:
        return collection(self._codec, family, self.verdict.gone, self._spared(family, spared))

    def _spared(self, family: Family, most: int) -> set[CheckpointKey]:
        """Return what stays out of sight, of what goes now or was retired.

        Of what goes only where no step came next: whoever asks for it wants the bytes.
        """
        facts = facts_with(self._codec)
        left = {node.parent_id for node in self._outline.nodes if facts(node).source == "loop"}
        rows = [
            row
            for key, row in family.rows.items()
            if key.thread_id == self._thread_id
            and (key in self.verdict.gone or (row.kind == Kind.HIDDEN and row.metadata))
            and not is_anchor_id(key.checkpoint_id)
        ]
        roots = [
            row.key.checkpoint_id
            for row in rows
            if not row.key.checkpoint_ns and (row.kind == Kind.HIDDEN or row.key.checkpoint_id not in left)
        ]
        newest = set(sorted(roots, reverse=True)[:most])
        return {row.key for row in rows if root_of(self._codec, row) in newest}


def facts_with(codec: Codec) -> Callable[[Node], Facts]:
    """Return what tells a checkpoint's facts."""

    def facts(node: Node) -> Facts:
        if node.metadata[:1] == b"\x00":
            return _facts(node.metadata)
        try:
            return _told(codec.unpack_metadata(node.metadata, node.key))
        except SerializationError as error:
            logger.warning("what was made under which root isn't known of a checkpoint: %s", error)
            return Facts()

    return facts


@lru_cache(1 << 14)
def _facts(metadata: bytes) -> Facts:
    return _told(unpack(metadata[1:]))


def _told(metadata: Mapping[str, Any]) -> Facts:
    step = metadata.get("step")
    parents = metadata.get("parents")
    root = parents.get("") if isinstance(parents, Mapping) else None
    return Facts(
        root if isinstance(root, str) else None,
        step if isinstance(step, int) else None,
        str(metadata.get("source")),
    )


def _size(family: Family, threads: Threads, node: Node) -> int:
    """Return how many bytes are stored for a root checkpoint, and what subgraphs made under it."""
    rows = [node, *threads.below(node.key.checkpoint_id)]
    written = sum(len(write.body) for row in rows for write in family.writes.get(row.key, ()))
    return written + sum(row.size for row in rows)


def taken_along(events: Mapping[str, int], roots: Iterable[str]) -> dict[str | None, int]:
    """Return how many bytes of events go with each root checkpoint, None: with none yet.

    See `Store.add_events`.
    """
    line = sorted(roots)
    sizes: dict[str | None, int] = {}
    for checkpoint_id, size in events.items():
        at = bisect_left(line, checkpoint_id)
        root = line[at] if at < len(line) else None
        sizes[root] = sizes.get(root, 0) + size
    return sizes


def weight(family: Family, thread_id: str) -> int:
    """Return how many bytes are stored of a thread; of a part that its family shares, all of them."""
    rows = [row for key, row in family.rows.items() if key.thread_id == thread_id]
    writes = [write for key, some in family.writes.items() if key.thread_id == thread_id for write in some]
    named = {part for row in rows for part in row.parts} | {part for one in writes for part in one.parts}
    parts = named & family.parts.keys()
    return (
        sum(len(row.body) + len(row.metadata) for row in rows)
        + sum(len(write.body) for write in writes)
        + sum(size_of_part(family.parts, part) for part in parts)
    )


def applied(family: Family, change: Change) -> Family:
    """Return what is left of a family when it has been changed."""
    gone = set(change.deletes)
    rows = {key: row for key, row in family.rows.items() if key not in gone}
    rows.update((row.key, row) for row in change.rows)
    writes = {key: some for key, some in family.writes.items() if key not in gone}
    writes.update(change.writes)
    return replace(family, rows=rows, writes=writes)


def made_at(checkpoint_id: str, ts: object) -> float:
    """Return when a checkpoint was made, in seconds since the epoch: by its time, or else by its id.

    One of which neither tells has no age, and is always young.
    """
    try:
        moment = datetime.fromisoformat(str(ts).replace("Z", "+00:00"))
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    except ValueError:
        pass
    try:
        made = UUID(checkpoint_id)
    except ValueError:
        return float("inf")
    if made.version != 6:
        return float("inf")
    ticks = (made.time_low << 28) | (made.time_mid << 12) | (made.time_hi_version & 0x0FFF)
    return (ticks - 0x01B21DD213814000) / 1e7
