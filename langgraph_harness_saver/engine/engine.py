"""`CheckpointEngine`: what can be done with the checkpoints of a thread besides going on from the last."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from langgraph_harness_saver.checkpointer import HarnessCheckpointer
from langgraph_harness_saver.config import CheckpointBackend, CheckpointerConfig
from langgraph_harness_saver.core import Core, Stored, contains
from langgraph_harness_saver.engine.arguments import checkpoint_name, page, thread_name, whole_number
from langgraph_harness_saver.engine.blame import Blame, BlameStep, BlameTracer
from langgraph_harness_saver.engine.callbacks import EventCallbacks
from langgraph_harness_saver.engine.collecting import CollectionMethods
from langgraph_harness_saver.engine.compare import ABSENT
from langgraph_harness_saver.engine.diff import CheckpointDiff, diff_values
from langgraph_harness_saver.engine.event_lists import EventLists
from langgraph_harness_saver.engine.events import Event
from langgraph_harness_saver.engine.lines import Lines
from langgraph_harness_saver.engine.merging import Merging
from langgraph_harness_saver.engine.publishing import publish
from langgraph_harness_saver.engine.recorder import EventRecorder
from langgraph_harness_saver.engine.results import TimeTravelResult
from langgraph_harness_saver.engine.sides import MergeResult, Strategy
from langgraph_harness_saver.engine.snapshot import Snapshot, SnapshotMetadata
from langgraph_harness_saver.engine.snapshot_config import SnapshotConfig
from langgraph_harness_saver.engine.snapshots import SnapshotMethods, SyncSnapshotMethods, snapshots_of
from langgraph_harness_saver.engine.tree import CheckpointTree, TreeItem, build_tree
from langgraph_harness_saver.engine.values import Values
from langgraph_harness_saver.errors import AmbiguousCheckpoint, CheckpointNotFoundError, InvalidConfigError
from langgraph_harness_saver.rows import Branch, CheckpointKey, Entry, Tag, branches_below
from langgraph_harness_saver.travel import Travel


class CheckpointEngine(SnapshotMethods, CollectionMethods):
    """Time travel, branches, merges, differences and tags over a `HarnessCheckpointer`.

    All methods are async; `engine.sync` has the same ones for sync callers. With `graph`, the compiled graph
    whose checkpoints these are, values of a `DeltaChannel` are resolved, and merges replay its reducers.
    `config` says which snapshots are taken.

    Every method that names a checkpoint takes `thread_id` too. Without it, an id that several threads hold
    (a branch begins with its source's) raises `AmbiguousCheckpoint`; one that none holds,
    `CheckpointNotFoundError`, and so does one that the thread doesn't hold. A branch holds what its source
    has from before.
    """

    def __init__(
        self, checkpointer: HarnessCheckpointer, graph: Any = None, config: SnapshotConfig | None = None
    ) -> None:
        if not isinstance(checkpointer, HarnessCheckpointer):
            raise InvalidConfigError(
                f"an engine stands on a HarnessCheckpointer, not on a {type(checkpointer).__name__}: "
                'CheckpointEngine(HarnessCheckpointer.from_conn_string("sqlite:///checkpoints.db"))'
            )
        if isinstance(graph, SnapshotConfig):
            # Both orders come naturally, and the two are easily told apart.
            graph, config = config, graph
        self.checkpointer = checkpointer
        self.graph = graph
        self._snapshots = snapshots_of(checkpointer, graph, config)

    @property
    def sync(self) -> SyncEngine:
        """The same methods for sync callers."""
        return SyncEngine(self)

    # --- reading -----------------------------------------------------------------------------------

    async def get(self, checkpoint_id: str, thread_id: str | None = None) -> Snapshot:
        """Return one checkpoint."""
        key = await self._locate(checkpoint_id, thread_id)
        return await self._snapshot(await self._values.tuple(key))

    async def get_latest(self, thread_id: str) -> Snapshot | None:
        """Return a thread's latest checkpoint, None if it has none."""
        found = await self._values.latest(thread_name(thread_id))
        return await self._snapshot(found) if found else None

    async def list_threads(
        self, limit: int | None = None, offset: int = 0, filter: Mapping[str, Any] | None = None
    ) -> list[SnapshotMetadata]:
        """Return the latest checkpoint of each thread, newest first; `filter`: what its metadata contains."""
        limit, offset = page(limit, offset)
        if filter is not None and not isinstance(filter, Mapping):
            raise InvalidConfigError(f'a filter is a dict such as {{"source": "loop"}}, not {filter!r}')
        await self._core.store.open()
        wanted = None if limit is None else offset + limit
        heads: list[Entry] = []
        async for entries in self._lines.heads(wanted if filter is None else None):
            heads += [e for e in entries if filter is None or contains(self._lines.metadata(e), filter)]
            if wanted is not None and len(heads) >= wanted:
                break
        shown = heads[offset:wanted]
        tags = await self._tags(*(entry.row.key.thread_id for entry in shown))
        return [_metadata(item) for item in await self._lines.items(shown, tags)]

    async def list_checkpoints(
        self, thread_id: str, limit: int | None = None, offset: int = 0
    ) -> list[SnapshotMetadata]:
        """Return a thread's root checkpoints, newest first."""
        thread_id = thread_name(thread_id)
        limit, offset = page(limit, offset)
        await self._core.store.open()
        [keys] = await self._lines.keys([thread_id], None if limit is None else offset + limit)
        items = await self._lines.items_at(keys[offset:], await self._tags(thread_id))
        return [_metadata(item) for item in items]

    async def list_time_travel_points(
        self, thread_id: str, limit: int | None = None, before: str | None = None
    ) -> list[TreeItem]:
        """Return the checkpoints on the line that leads to a thread's head, newest first.

        `before` is a checkpoint_id: only those that come before it on the line.
        """
        limit, _ = page(limit)
        await self._core.store.open()
        thread_id = thread_name(thread_id)
        is_past = before is None
        found: list[Entry] = []
        async for entry in self._lines.down(thread_id):
            if is_past:
                if len(found) == limit:
                    break
                found.append(entry)
            is_past = is_past or entry.row.key.checkpoint_id == before
        if not is_past:
            raise CheckpointNotFoundError(f"{before!r} is not on the line of thread {thread_id!r}'s head")
        heads = [entry.row.key for entry in found[:1]] if before is None else []
        return await self._lines.items(found, await self._tags(thread_id), heads)

    async def diff(
        self, a: str, b: str, thread_id: str | None = None, other_thread_id: str | None = None
    ) -> CheckpointDiff:
        """Return how checkpoint `b` differs from `a`.

        Args:
            a: A checkpoint's id.
            b: Another's, of any thread.
            thread_id: The thread of `a`, and of `b` where `other_thread_id` doesn't say otherwise.
            other_thread_id: The thread of `b`.
        """
        first = await self._locate(a, thread_id)
        second = await self._locate(b, other_thread_id or thread_id)
        return diff_values(await self._values.of(first), await self._values.of(second))

    async def blame(self, thread_id: str, channel: str) -> Blame:
        """Return which checkpoint, step, node and run last set each part of a channel's value."""
        line = await self._line(thread_id)
        tracer = BlameTracer(channel)
        stored = await self._stored(line[0])
        for entry, parent in zip_longest(line, line[1:]):
            below = await self._stored(parent) if parent is not None else None
            step = BlameStep(
                checkpoint_id=entry.row.key.checkpoint_id,
                step=stored.metadata.get("step"),
                nodes=self._lines.writers(parent, below, channel) if below is not None else (),
                source=stored.metadata.get("source"),
                run_id=stored.metadata.get("run_id"),
                created_at=stored.image.header.ts,
                value=await self._values.one(stored, channel) if tracer.needs_value else ABSENT,
                changed=below is None or _version(stored, channel) != _version(below, channel),
            )
            if tracer.add(step) or below is None:
                break
            stored = below
        return tracer.result()

    async def _stored(self, entry: Entry) -> Stored:
        found = await self._core.get(*entry.row.key)
        if found is None:
            raise _not_there(entry.row.key)
        return found

    # --- time travel -------------------------------------------------------------------------------

    async def rewind(
        self, checkpoint_id: str, thread_id: str | None = None, discard_later: bool = False
    ) -> TimeTravelResult:
        """Make a copy of a checkpoint the thread's head: the graph goes on from there.

        What came later stays in the tree. With `discard_later` what came of the target on the line that leads
        to the old head is deleted, and nothing else: other lines and branches stay whole.
        """
        key = await self._locate(checkpoint_id, thread_id)
        line = await self._line(key.thread_id)
        ids = [entry.row.key.checkpoint_id for entry in line]
        before = [entry async for entry in self._lines.ancestry(key)][1:]
        common = {entry.row.key.checkpoint_id for entry in before} | {checkpoint_id}
        later = [one for one in ids if one not in common]
        # Of a target on another line nothing came on this one.
        discard = later if discard_later and checkpoint_id in ids else ()
        made = await self._travel.rewind(*key[::2], discard=discard)
        head = await self._values.tuple(key._replace(checkpoint_id=made.checkpoint_id))
        snapshot = await self._snapshot(head)
        return TimeTravelResult(snapshot, key.thread_id, len(later), len(before), bool(snapshot.next))

    async def time_travel_to_step(
        self, thread_id: str, step: int, discard_later: bool = False
    ) -> TimeTravelResult | None:
        """Rewind to the nearest checkpoint at or below a step on the current line; None if there is none."""
        step = whole_number(step, "step")
        await self._core.store.open()
        async for entry in self._lines.down(thread_name(thread_id)):
            if self._lines.metadata(entry).get("step", step + 1) <= step:
                return await self.rewind(entry.row.key.checkpoint_id, thread_id, discard_later=discard_later)
        return None

    # --- branches ----------------------------------------------------------------------------------

    async def branch(self, checkpoint_id: str, name: str, thread_id: str | None = None) -> str:
        """Begin a branch at a checkpoint; return its thread_id, a UUID.

        Raises:
            BranchExistsError: The thread has a branch of that name.
        """
        if not name or not isinstance(name, str):
            raise InvalidConfigError(
                f"a branch needs a name, not {name!r}: branch(checkpoint_id, 'attempt 2')"
            )
        key = await self._locate(checkpoint_id, thread_id)
        return (await self._travel.branch(*key[::2], name, str(uuid.uuid4()))).thread_id

    async def list_branches(self, thread_id: str) -> list[Branch]:
        """Return a thread's branches and theirs, oldest first."""
        thread_id = thread_name(thread_id)
        records = branches_below(await self._store_branches(thread_id), thread_id)
        return [record for record in records if record.name]

    async def merge_branch(
        self, branch_thread_id: str, into_thread_id: str, strategy: Strategy = "three_way"
    ) -> MergeResult:
        """Bring what a branch has changed into another thread of its family; see `merge`.

        Raises:
            MergeConflict: Both changed a channel, and neither reducers nor `strategy` say how to put the two
                together. Nothing is written.
            HeadMovedError: A run has written to the thread in the meantime. Nothing is written; merge again.
        """
        return await Merging(self._core, self._travel, self._lines, self._values).merge(
            thread_name(branch_thread_id), thread_name(into_thread_id), strategy
        )

    async def delete_thread(self, thread_id: str, branches: bool = False) -> int:
        """Delete a thread; return how many checkpoints went.

        With `branches` those that came of it go too, all of them or, where the process dies, none.
        """
        thread_id = thread_name(thread_id)
        if branches:
            return await self._core.delete_with_branches(thread_id)
        return await self._core.delete_thread(thread_id)

    async def delete_before(self, thread_id: str, before_step: int) -> int:
        """Delete a thread's checkpoints of steps below `before_step`; return how many went.

        The head stays, and what is tagged, and all that what stays needs; so do branches.
        """
        thread_id = thread_name(thread_id)
        before_step = whole_number(before_step, "before_step")
        await self._core.store.open()
        tagged = {key.checkpoint_id for key in await self._tags(thread_id) if not key.checkpoint_ns}
        entries = [entry async for entry in self._lines.newest_first(thread_id)]
        roots = [
            entry.row.key.checkpoint_id
            for entry in entries[1:]
            if self._lines.metadata(entry).get("step", before_step) < before_step
        ]
        return await self._travel.delete(thread_id, set(roots) - tagged)

    async def publish(self, client: Any, thread_id: str, graph_id: str | None = None) -> dict[str, Any]:
        """Make a thread known to a LangGraph server that uses the same store; return its metadata there.

        That has `graph_id`; `branch` and `branched_from`, if it is one; `harness_summary`, that of the latest
        checkpoint; and `harness_tags`, such as {"good": {"checkpoint_id": "1f0..."}}: what threads can be
        searched by. What has changed since is told by publishing again.

        Args:
            client: What `langgraph_sdk.get_client()` or `get_sync_client()` returns.
            thread_id: The thread's, a UUID.
            graph_id: The graph that it belongs to; by default that of the thread, or of its source.

        Raises:
            InvalidConfigError: The thread_id is no UUID, or the graph isn't known.
            CheckpointNotFoundError: The thread has no checkpoint.
        """
        thread_id = thread_name(thread_id)
        head = await self._values.latest(thread_id)
        if head is None:
            raise CheckpointNotFoundError(f"thread {thread_id!r} has no checkpoint to publish")
        branches = await self._store_branches(thread_id)
        record = next((branch for branch in branches if branch.thread_id == thread_id), None)
        tags = await self.list_tags(thread_id)
        return await publish(client, thread_id, graph_id, head.metadata, record, tags)

    # --- tags --------------------------------------------------------------------------------------

    async def tag(self, checkpoint_id: str, name: str, thread_id: str | None = None) -> None:
        """Give a checkpoint a name, taking it from another one of the thread that has it."""
        if not name or not isinstance(name, str):
            raise InvalidConfigError(f"a tag needs a name, not {name!r}: tag(checkpoint_id, 'good')")
        key = await self._locate(checkpoint_id, thread_id)
        if not await self._core.store.tag(Tag(name, key)):
            raise _not_there(key)

    async def untag(
        self, checkpoint_id: str | None = None, name: str | None = None, thread_id: str | None = None
    ) -> bool:
        """Take a name away, from the checkpoint that `tag(checkpoint_id, name)` gave it to.

        `untag(name, thread_id=thread_id)` takes it from whichever checkpoint of the thread has it. False if
        there is nothing to take.
        """
        if name is None:
            checkpoint_id, name = None, checkpoint_id
        if name is None or (checkpoint_id is None and thread_id is None):
            raise InvalidConfigError(
                "which tag? untag(checkpoint_id, name), or untag(name, thread_id=thread_id)"
            )
        if checkpoint_id is not None:
            key = await self._locate(checkpoint_id, thread_id)
            thread_id = key.thread_id
            if name not in (await self._tags(thread_id)).get(key, ()):
                return False
        await self._core.store.open()
        return await self._core.store.untag(thread_name(thread_id), name)

    async def list_tags(self, thread_id: str) -> dict[str, str]:
        """Return a thread's tags: the id of the checkpoint by name."""
        await self._core.store.open()
        tags = await self._core.store.tags(thread_name(thread_id))
        return {tag.name: tag.key.checkpoint_id for tag in tags}

    async def get_tagged(self, name: str, thread_id: str) -> Snapshot:
        """Return the checkpoint of that name."""
        tags = await self.list_tags(thread_id)
        if name not in tags:
            known = ", ".join(map(repr, tags)) or "none"
            raise CheckpointNotFoundError(f"thread {thread_id!r} has no tag {name!r}; it has {known}")
        return await self.get(tags[name], thread_id)

    # --- events ------------------------------------------------------------------------------------

    def callbacks(self, **options: Any) -> EventCallbacks:
        """Return a callback handler that records every tool and LLM call inside a node as an event.

        It goes into a graph's config, `{"callbacks": [engine.callbacks()]}`, for any kind of run; see
        `EventCallbacks` for what it takes.
        """
        return EventCallbacks(self.recorder, **options)

    @property
    def recorder(self) -> EventRecorder:
        """What stores events in the background."""
        return EventRecorder(self.checkpointer)

    async def events(
        self, thread_id: str, checkpoint_id: str | None = None, *, values: bool = True
    ) -> list[Event]:
        """Return what happened inside the steps of a thread, or in the one that ran from a checkpoint.

        Events come in the order in which they began, without their inputs and outputs where `values` is
        False. A branch's are its own, and those on the line that leads to it from before it was made. A
        checkpoint may be a subgraph's, or one that durability "exit" has never stored.

        Raises:
            CheckpointNotFoundError: The thread has neither such a checkpoint nor events of one.
        """
        thread_id = thread_name(thread_id)
        found = await self._event_lists.of(thread_id, checkpoint_id, values=values)
        if checkpoint_id is not None and not found:
            await self._locate(checkpoint_id, thread_id)
        return found

    # --- the tree ----------------------------------------------------------------------------------

    async def get_checkpoint_tree(
        self, thread_id: str, limit: int | None = 1000, branches: bool = True, before: str | None = None
    ) -> CheckpointTree:
        """Return a thread's root checkpoints and how one came of another, with its branches or without.

        Of long threads it comes in pages of `limit` checkpoints, None for all; `before` is a page's
        `next_page`.
        """
        thread_id = thread_name(thread_id)
        limit, _ = page(limit, least=1)
        await self._core.store.open()
        records = await self.list_branches(thread_id) if branches else []
        names = [thread_id, *(record.thread_id for record in records)]
        lines = await self._lines.keys(names)
        keys = sorted(chain.from_iterable(lines), key=_cursor, reverse=True)
        older = keys if before is None else [key for key in keys if _cursor(key) < before]
        shown = older if limit is None else older[:limit]
        heads = {line[0] for line in lines if line}
        items = await self._lines.items_at(shown, await self._tags(*names), heads)
        events = await self._event_lists.shown(item.key for item in items)
        return build_tree(
            thread_id,
            [item._replace(events=tuple(events.get(item.key, ()))) for item in items] if events else items,
            branches=records,
            heads=heads,
            total=len(keys),
            next_page=_cursor(shown[-1]) if len(shown) < len(older) else None,
        )

    # --- helpers -----------------------------------------------------------------------------------

    @property
    def _core(self) -> Core:
        return self.checkpointer._core

    @property
    def _travel(self) -> Travel:
        return Travel(self._core)

    @property
    def _lines(self) -> Lines:
        return Lines(self._core, self._travel)

    @property
    def _event_lists(self) -> EventLists:
        return EventLists(self._core, self._lines)

    @property
    def _values(self) -> Values:
        return Values(self.checkpointer, self.graph)

    async def _store_branches(self, thread_id: str) -> Sequence[Branch]:
        await self._core.store.open()
        return await self._core.store.branches(thread_id)

    async def _locate(self, checkpoint_id: str, thread_id: str | None) -> CheckpointKey:
        checkpoint_id = checkpoint_name(checkpoint_id)
        await self._core.store.open()
        if thread_id is not None:
            key = CheckpointKey(thread_name(thread_id), "", checkpoint_id)
            entry = await self._travel.entry(key)
            if entry.row.key != key and not await self._core.lineage.leads_to(key.thread_id, entry.row):
                raise _not_there(key)
            return key
        found = await self._lines.holding(checkpoint_id)
        if not found:
            raise CheckpointNotFoundError(
                f"no thread has a checkpoint {checkpoint_id!r}; list_threads() and "
                "list_checkpoints(thread_id) name those that there are"
            )
        if len(found) > 1:
            raise AmbiguousCheckpoint(checkpoint_id, [key.thread_id for key in found])
        return found[0]

    async def _line(self, thread_id: str) -> list[Entry]:
        await self._core.store.open()
        return await self._lines.to_head(thread_name(thread_id))

    async def _tags(self, *thread_ids: str) -> dict[CheckpointKey, list[str]]:
        found: dict[CheckpointKey, list[str]] = {}
        for tag in await self._core.store.tags(*thread_ids):
            found.setdefault(tag.key, []).append(tag.name)
        return found

    async def _snapshot(self, found: CheckpointTuple) -> Snapshot:
        place = found.config["configurable"]
        key = CheckpointKey(place["thread_id"], place["checkpoint_ns"], place["checkpoint_id"])
        tags = (await self._tags(key.thread_id)).get(key, ())
        head = await self._values.latest(key.thread_id)
        live = head is not None and head.config["configurable"]["checkpoint_id"] == key.checkpoint_id
        return Snapshot.of(await self._values.resolved(found), tags, live=live)


class SyncEngine(SyncSnapshotMethods):
    """An engine's methods for sync callers: each waits for what the async one returns."""

    def __init__(self, engine: CheckpointEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)
        if name.startswith("_") or not callable(method):
            raise AttributeError(f"an engine has no method {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:
            found = method(*args, **kwargs)
            return self._engine.checkpointer.run_sync(found) if inspect.iscoroutine(found) else found

        call.__name__, call.__doc__ = name, method.__doc__
        return call

    def __dir__(self) -> Iterable[str]:
        return [name for name in dir(type(self._engine)) if not name.startswith("_")]


async def create_checkpoint_engine(
    backend: str = "memory",
    *,
    url: str | None = None,
    db_path: str | None = None,
    graph: Any = None,
    config: SnapshotConfig | None = None,
    **options: Any,
) -> CheckpointEngine:
    """Make an engine with a saver of its own, set up.

    Args:
        backend: "memory", "sqlite", "redis" or "postgres".
        url: The store's URL.
        db_path: An SQLite file, instead of a URL.
        graph: See `CheckpointEngine`.
        config: See `CheckpointEngine`.
        options: `CheckpointerConfig`'s other fields.
    """
    try:
        kind = CheckpointBackend(backend)
    except ValueError as error:
        known = ", ".join(repr(one.value) for one in CheckpointBackend)
        raise InvalidConfigError(f"there is no backend {backend!r}; there are {known}") from error
    if db_path is not None:
        if url is not None or kind != CheckpointBackend.SQLITE:
            raise InvalidConfigError("db_path is an SQLite file's, and stands instead of a url")
        url = f"sqlite:///{db_path}"
    checkpointer = HarnessCheckpointer(CheckpointerConfig(backend=kind, url=url, **options))
    await checkpointer.asetup()
    return CheckpointEngine(checkpointer, graph, config=config)


def _version(stored: Stored, channel: str) -> Any:
    return stored.image.header.versions.get(channel)


def _cursor(key: CheckpointKey) -> str:
    # Ties are of branches' first checkpoints.
    return f"{key.checkpoint_id}\x00{key.thread_id}"


def _metadata(item: TreeItem) -> SnapshotMetadata:
    known = item.metadata
    return SnapshotMetadata(
        thread_id=item.thread_id,
        checkpoint_id=item.checkpoint_id,
        checkpoint_ns=item.checkpoint_ns,
        step=known.get("step"),
        parent_checkpoint_id=item.parent_id,
        created_at=item.created_at,
        tags=item.tags,
        summary=known.get("summary"),
        source=known.get("source"),
        run_id=known.get("run_id"),
        trigger=known.get("trigger"),
    )


def _not_there(key: CheckpointKey) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{key} is not there any more, or is another thread's")
