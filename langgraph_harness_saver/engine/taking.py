"""Taking snapshots: what is stored, as a checkpoint that a graph can go on from."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver.channels import BRANCH, is_routing
from langgraph_harness_saver.core import Core, Stored
from langgraph_harness_saver.engine.arguments import checkpoint_name, thread_name
from langgraph_harness_saver.engine.events import Place
from langgraph_harness_saver.engine.incoming import Incoming, incoming
from langgraph_harness_saver.engine.places import current_place
from langgraph_harness_saver.engine.recorder import EventRecorder
from langgraph_harness_saver.engine.routing import next_nodes
from langgraph_harness_saver.engine.snapshot_config import SnapshotConfig, SnapshotTrigger, Summarise
from langgraph_harness_saver.errors import (
    CheckpointNotFoundError,
    HeadMovedError,
    InvalidConfigError,
    SerializationError,
    SnapshotTooLargeError,
    StoreError,
)
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.rows import CheckpointKey, Tag
from langgraph_harness_saver.slots import Dump
from langgraph_harness_saver.travel import following, now_text

if TYPE_CHECKING:
    from langgraph_harness_saver.checkpointer import HarnessCheckpointer

logger = logging.getLogger(__name__)

ATTEMPTS = 1000
"""How often a snapshot looks again for what it follows: each time another one has been stored meanwhile."""
ENDS = ("after", "exit", "error")
"""The phases of what is over."""
FORMAT = 4
"""LangGraph's number for the form of its checkpoints."""
TRIGGER = "trigger"
"""The key of a snapshot's metadata by which it is known."""
DESCRIBED = frozenset((TRIGGER, "summary", "tags", "call", "phase", "error"))
"""What the metadata of a snapshot holds about it alone."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `CheckpointEngine.snapshot` is asked for.

    `about` is further metadata. With `aside`, a graph's checkpoint at the head of the thread stays there.
    """

    thread_id: Any
    messages: Any = None
    state: Any = None
    tools_result: Any = None
    trigger: Any = SnapshotTrigger.MANUAL
    parent_checkpoint_id: Any = None
    next_node: str = ""
    tags: str | Iterable[str] = ()
    summary: str | None = None
    summarise: Summarise | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    aside: bool = False
    paused: bool = False


class Taken(NamedTuple):
    """A snapshot as it was when it was asked for: its caller may have gone on changing the state since.

    `place` is where in a run of the same thread that was.
    """

    request: Request
    thread_id: str
    place: Place | None
    given: Incoming
    dump: Dump
    metadata: dict[str, Any]
    parent_id: str | None
    tags: tuple[str, ...]
    summary: str
    summarise: Summarise | None


class Snapshots:
    """Takes an engine's snapshots, and counts those that failed without anybody being told."""

    def __init__(self, checkpointer: HarnessCheckpointer, graph: Any, config: SnapshotConfig) -> None:
        self.config = config
        self.failures = 0
        self._saver = checkpointer
        self._graph = graph
        self._counting = threading.Lock()

    async def take(self, request: Request) -> str:
        """Do what `CheckpointEngine.snapshot` says."""
        taken = self._take(request)
        return await self._store(taken, await self._summary(taken)) if taken else ""

    def take_waiting(self, request: Request) -> str:
        """Do the same for a sync caller."""
        taken = self._take(request)
        if taken is None:
            return ""
        # However long a summary takes, it shall not hold up the loop that serves all sync callers.
        summary = _run_aside(self._summary(taken)) if taken.summarise else taken.summary
        return self._saver.run_sync(self._store(taken, summary))

    async def take_safely(self, make: Callable[[], Request | None]) -> str:
        """Take a snapshot if there is to be one, and log and count an error instead of raising it."""
        try:
            request = make()
            return await self.take(request) if request else ""
        except Exception:
            self._failed()
            return ""

    def take_safely_waiting(self, make: Callable[[], Request | None]) -> str:
        """Do the same for a sync caller."""
        try:
            request = make()
            return self.take_waiting(request) if request else ""
        except Exception:
            self._failed()
            return ""

    def wants(self, trigger: SnapshotTrigger) -> bool:
        """Tell whether snapshots are taken for this."""
        return trigger in self.config.triggers

    def storable(self, value: Any) -> Any:
        """Return a value, or where the serializer can't write it, what `repr` tells of it."""
        try:
            self._core.codec.dump(_checkpoint({"": value}), {}, {}, None, "")
        except SerializationError:
            return repr(value)
        return value

    def _failed(self) -> None:
        # Whoever is doing the work that a snapshot is of shall not lose it for the snapshot's sake.
        logger.exception("a snapshot was not taken")
        with self._counting:
            self.failures += 1

    @property
    def _core(self) -> Core:
        return self._saver._core

    # --- what is taken -----------------------------------------------------------------------------

    def _take(self, request: Request) -> Taken | None:
        """Take all that is to be stored, as it is now; None where the trigger isn't configured."""
        trigger = trigger_of(request.trigger)
        if not self.wants(trigger):
            return None
        thread_id, parent_id = thread_name(request.thread_id), request.parent_checkpoint_id
        given = incoming(request.state, request.messages, request.tools_result, thread_id)
        values = given.channels
        for channel, empty in self._delta_channels().items():
            # Where nothing is stored of one, LangGraph looks for its past.
            values[channel] = _DeltaSnapshot(values.get(channel, empty))
        dump = self._dump(values | self._leading_to(request.next_node), thread_id)
        self._check_size(dump, thread_id)
        tags, summary = _tags(request.tags), request.summary
        if summary is not None and not isinstance(summary, str):
            raise InvalidConfigError(f"a summary is text, not {summary!r}")
        place = current_place()
        return Taken(
            request,
            thread_id,
            place if place and place.thread_id == thread_id else None,
            given,
            dump,
            {TRIGGER: trigger.value, **({"tags": list(tags)} if tags else {}), **request.about},
            None if parent_id is None else checkpoint_name(parent_id),
            tags,
            given.summary if summary is None else summary,
            (request.summarise or self.config.summarise) if summary is None else None,
        )

    def _dump(self, values: Mapping[str, Any], thread_id: str) -> Dump:
        return self._core.codec.dump(_checkpoint(values), {}, {}, None, thread_id)

    def _leading_to(self, node: str) -> dict[str, Any]:
        """Return the channel that makes a node the next one.

        Raises:
            InvalidConfigError: The graph has no such node.
        """
        if not node:
            return {}
        channel, graph = f"{BRANCH}{node}", self._graph
        if graph is None:
            # A deferred node's channel takes nothing else, and others take anything.
            return {channel: (None, True)}
        if channel not in graph.channels:
            known = [one for one in graph.nodes if f"{BRANCH}{one}" in graph.channels]
            raise InvalidConfigError(
                f"the graph has no node {node!r} to go on at; next_node is "
                + (f"one of {', '.join(map(repr, known))}" if known else "for what StateGraph makes")
            )
        # That of a deferred node also tells whether all others have finished.
        return {channel: (None, True) if hasattr(graph.channels[channel], "finished") else None}

    def _delta_channels(self) -> dict[str, Any]:
        """Return the graph's `DeltaChannel`s, each with its empty value."""
        channels = {} if self._graph is None else self._graph.channels
        return {
            c: ch.from_checkpoint(None).get() for c, ch in channels.items() if hasattr(ch, "replay_writes")
        }

    def _check_size(self, dump: Dump, thread_id: str) -> None:
        megabytes = self.config.max_snapshot_size_mb
        sizes = {channel: len(data) for channel, (_, data) in dump.values.items()}
        if megabytes is not None and sum(sizes.values()) > megabytes * (1 << 20):
            raise SnapshotTooLargeError(thread_id, sizes, int(megabytes * (1 << 20)))

    async def _summary(self, taken: Taken) -> str:
        if taken.summarise is None:
            return taken.summary
        try:
            made = taken.summarise(taken.given.messages, taken.given.state)
            return _text(await made if inspect.isawaitable(made) else made)
        except Exception:
            # The caller's own code may fail in any way, and a snapshot is worth more than its summary.
            logger.exception("summarise failed for a snapshot of thread %r", taken.thread_id)
            return taken.summary

    # --- what is stored ----------------------------------------------------------------------------

    async def _store(self, taken: Taken, summary: str) -> str:
        if taken.place is not None:
            return self._note(taken, taken.place, summary)
        for _ in range(ATTEMPTS):
            head = await self._core.get(taken.thread_id, "", None)
            if head is not None and taken.request.aside and TRIGGER not in head.metadata:
                return self._note(taken, _place_of(head), summary)
            try:
                key = await self._put(taken, head, {**taken.metadata, "summary": summary})
                break
            except HeadMovedError:
                continue
        else:
            raise StoreError(
                f"thread {taken.thread_id!r} was written to {ATTEMPTS} times in the meantime; try again"
            )
        for name in taken.tags:
            await self._tag(name, key)
        return key.checkpoint_id

    def _note(self, taken: Taken, place: Place, summary: str) -> str:
        """Record a snapshot as an event of a graph's checkpoint, and return that one's id."""
        about = taken.request.about
        ends = about.get("phase") in ENDS
        values = self._values(taken)
        EventRecorder(self._saver).record(
            place.event(
                taken.metadata[TRIGGER],
                about.get("call", "snapshot"),
                phase=about.get("phase"),
                paused=taken.request.paused,
                error=about.get("error"),
                tags=taken.tags,
                summary=summary,
                input=None if ends else values,
                output=values if ends else None,
            )
        )
        return place.root_checkpoint_id

    def _values(self, taken: Taken) -> dict[str, Any]:
        """Return what was handed over as it was then: the caller may have changed it since."""
        try:
            held = self._core.codec.dumped(taken.dump, taken.thread_id)
        except SerializationError:
            # What may not be loaded can still be told of.
            return taken.given.channels
        return {channel: held[channel] for channel in taken.given.channels}

    async def _put(self, taken: Taken, head: Stored | None, metadata: dict[str, Any]) -> CheckpointKey:
        """Store a snapshot as its thread's head, if that is still the one which it was made to follow."""
        core, thread_id, parent = self._core, taken.thread_id, head
        if taken.parent_id is not None:
            parent = await core.get(thread_id, "", taken.parent_id)
            if parent is None:
                raise CheckpointNotFoundError(
                    f"there is no checkpoint {taken.parent_id!r} in thread {thread_id!r} to fork from; "
                    "list_checkpoints(thread_id) names those that there are"
                )
        elif head is not None and not taken.request.next_node:
            self._check_finished(head)
        head_id = head.row.key.checkpoint_id if head else None
        key = CheckpointKey(thread_id, "", following(head_id or ""))
        return await core.put_dump(
            key,
            key._replace(checkpoint_id=parent.row.key.checkpoint_id) if parent else None,
            self._following(taken.dump, parent, metadata),
            parent.image if parent else None,
            key,
            head_id,
            whole=not self.config.delta_snapshots,
        )

    def _following(self, dump: Dump, parent: Stored | None, metadata: dict[str, Any]) -> Dump:
        """Return a dump with versions, step and empty channels as its parent makes them necessary."""
        header = parent.image.header if parent else Header.of(_checkpoint({}))
        stored = parent.image.blobs if parent else {}
        before = parent.metadata if parent else {}
        counted = {*self._delta_channels(), *(before.get("counters_since_delta_snapshot") or ())}
        values = {**self._dump(dict.fromkeys(counted - dump.values.keys()), "").values, **dump.values}
        new = self._saver.get_next_version(_highest(header.versions.values()), None)
        # Those that only say what runs next keep theirs, for what has seen these is not to run again. Others
        # that aren't given are as if they had never been.
        versions = {channel: v for channel, v in header.versions.items() if is_routing(channel)}
        for channel, (type_, data) in values.items():
            old = stored.get(channel)
            same = old is not None and (old.type, old.data) == (type_, data)
            versions[channel] = header.versions.get(channel, new) if same else new
        checkpoint = {**_checkpoint({}), "channel_versions": versions, "versions_seen": header.seen}
        described = {"source": "update", "step": _step(before) + 1, "parents": {}, **metadata}
        if counted:
            described["counters_since_delta_snapshot"] = dict.fromkeys(sorted(counted), (0, 0))
        return dump._replace(
            header=Header.of(checkpoint),
            values=values,
            metadata=self._core.codec.pack_metadata(described, ""),
        )

    def _check_finished(self, head: Stored) -> None:
        """Refuse to put an end to a run that waits or was interrupted: it goes on from its thread's head."""
        if TRIGGER in head.metadata:
            return
        thread_id, _, checkpoint_id = head.row.key
        values: dict[str, Any] = {
            channel: self._core.codec.value(blob, channel, thread_id) if is_routing(channel) else None
            for channel, blob in head.image.blobs.items()
        }
        left = next_nodes(
            {
                "id": checkpoint_id,
                "channel_values": values,
                "channel_versions": head.image.header.versions,
                "versions_seen": head.image.header.seen,
            },
            [(write[0], write[2], None) for write in head.writes],
            step=head.metadata.get("step"),
        )
        if left:
            raise InvalidConfigError(
                f"a graph has still to run {', '.join(map(repr, left))} on thread {thread_id!r}, and would "
                "not find that any more behind a snapshot: let it run on, take the snapshot on a thread of "
                "its own, or say with next_node or parent_checkpoint_id where this thread is to go on"
            )

    async def _tag(self, name: str, key: CheckpointKey) -> None:
        try:
            there = await self._core.store.tag(Tag(name, key))
        except StoreError as error:
            raise StoreError(
                f"snapshot {key.checkpoint_id!r} is stored, but not tagged {name!r} ({error}); "
                "give it the name with tag(checkpoint_id, name, thread_id)"
            ) from error
        if not there:
            raise CheckpointNotFoundError(f"{key} was deleted before it could be tagged {name!r}")


def _place_of(head: Stored) -> Place:
    thread_id, _, checkpoint_id = head.row.key
    return Place(thread_id, checkpoint_id, checkpoint_id=checkpoint_id, step=head.metadata.get("step"))


def _checkpoint(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "v": FORMAT,
        "ts": now_text(),
        "channel_values": values,
        "channel_versions": {},
        "versions_seen": {},
        "updated_channels": None,
    }


def trigger_of(given: Any) -> SnapshotTrigger:
    """Return a trigger by its name, too.

    Raises:
        InvalidConfigError: There is none of that name.
    """
    try:
        return SnapshotTrigger(given)
    except ValueError as error:
        known = ", ".join(repr(one.value) for one in SnapshotTrigger)
        raise InvalidConfigError(f"there is no trigger {given!r}; there are {known}") from error


def _tags(given: str | Iterable[str]) -> tuple[str, ...]:
    tags = (given,) if isinstance(given, str) else tuple(given)
    for name in tags:
        if not name or not isinstance(name, str):
            raise InvalidConfigError(f"a tag needs a name, not {name!r}: tags=['good']")
    return tuple(dict.fromkeys(tags))


def _text(made: Any) -> str:
    """Return a summary's text; models answer with messages."""
    text = str(made.text) if isinstance(made, BaseMessage) else made
    if not isinstance(text, str):
        raise TypeError(f"a summary is text, not a {type(text).__name__}")
    return text


def _step(metadata: Mapping[str, Any]) -> int:
    step = metadata.get("step")
    return step if isinstance(step, int) else -1


def _highest(versions: Iterable[Any]) -> Any:
    known = list(versions)
    try:
        return max(known, default=None)
    except TypeError:
        # A saver with versions of another type has had the thread before.
        return max(map(str, known))


def _run_aside(work: Coroutine[Any, Any, str]) -> str:
    """Run a coroutine in a thread of its own: this one may have an event loop that is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, work).result()
