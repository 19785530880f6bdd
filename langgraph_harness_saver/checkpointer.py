"""`HarnessCheckpointer`: LangGraph's saver contract, unpacked into calls of the core."""

from __future__ import annotations

import asyncio
import copy
import logging
import weakref
from collections import ChainMap
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Collection,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    EXCLUDED_METADATA_KEYS,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from typing_extensions import Self

from langgraph_harness_saver import tagged
from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.cache import ImageCache
from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.config import CheckpointerConfig, backend_of, make_store, redacted, store_of
from langgraph_harness_saver.core import Core, Selection, Stored
from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.eventlog import EventLog
from langgraph_harness_saver.keeping import Keeping
from langgraph_harness_saver.lineage import Memory
from langgraph_harness_saver.listing import Listing
from langgraph_harness_saver.reader import checkpoint_of
from langgraph_harness_saver.records import CheckpointRecord
from langgraph_harness_saver.retention import Retention
from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.runs import Runs
from langgraph_harness_saver.serde import HarnessSerializer, allowlisted
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.sweeper import Sweeper
from langgraph_harness_saver.versions import next_version

logger = logging.getLogger(__name__)

T = TypeVar("T")


_SCALARS = (bool, str, int, float)
_STRATEGIES = {"keep_latest": False, "delete": True, "delete_all": True}


class HarnessCheckpointer(BaseCheckpointSaver[str]):
    """A checkpoint saver that stores differences, over any `Store`.

    One instance serves sync and async callers, any number of threads, and one event loop after another.
    It opens by itself on first use, and works in `with`, in `async with` and plainly.

    Every method raises `InvalidConfigError` for a config without thread_id, `SerializationError` for a
    value that the serde can't write or may not load, and `StoreError` for what the store can't do.
    """

    def __init__(
        self,
        conn: Any = None,
        pipe: Any = None,
        serde: SerializerProtocol | None = None,
        *,
        config: CheckpointerConfig | None = None,
        backend: Store | None = None,
        retention: Retention | str | None = None,
    ) -> None:
        """Use `backend`, or the store that `conn`, `config` or the environment describes, or memory.

        Args:
            conn: A `CheckpointerConfig`; or an asyncpg pool or a client of redis-py, which is used and not
                closed; or a psycopg connection or pool, of which only the connection string is taken.
            pipe: Taken for `PostgresSaver`'s sake, and ignored.
            serde: Writes and reads values.
            config: Options for what `conn` is, or all of them.
            backend: A store.
            retention: Which checkpoints of a thread stay as others come, instead of the config's: a
                `Retention`, or as text "keep_last_n:100".
        """
        if isinstance(conn, str):
            raise InvalidConfigError(
                f"a URL is not a config; use HarnessCheckpointer.from_conn_string({redacted(conn)!r})"
            )
        if pipe is not None:
            logger.debug("pipe is ignored: calls are sent together by themselves")
        if isinstance(conn, CheckpointerConfig):
            conn, config = None, conn
        self.conn = conn
        given = backend
        if conn is not None and backend is None:
            config, backend = store_of(conn, config or CheckpointerConfig())
        self.config = config or CheckpointerConfig()
        super().__init__(
            serde=serde
            or HarnessSerializer(
                strict_msgpack=self.config.strict_msgpack,
                allowed_msgpack_modules=self.config.allowed_msgpack_modules,
            )
        )
        self.backend = backend if backend is not None else make_store(self.config)
        if backend is not None and backend.ttl_seconds is None:
            backend.ttl_seconds = self.config.ttl_seconds
        self._bridge = Bridge(self.backend.io)
        self._cache = ImageCache(self.config.cache_bytes)
        self._lines = Memory()
        self._runs = Runs()
        self._sweeper = Sweeper(self.backend, self._bridge)
        self.event_log = EventLog(self._bridge)
        self._keepers: list[Keeping] = [
            Keeping(self.config.retention if retention is None else Retention.of(retention))
        ]
        self._made: tuple[SerializerProtocol, Keeping, Core] | None = None
        if given is None:
            # Copies of a saver share it, so the last of them to go takes the connections along.
            self._life = _Life()
            weakref.finalize(self._life, _let_go, self.backend, self._bridge).atexit = False

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        serde: SerializerProtocol | None = None,
        **options: Any,
    ) -> Self:
        """Make a saver of a store's URL; `options` are `CheckpointerConfig`'s fields.

        `pipeline` is taken for `PostgresSaver`'s sake, and ignored.

        Raises:
            InvalidConfigError: The URL or an option can't be used.
        """
        if pipeline:
            logger.debug("pipeline is ignored: calls are sent together by themselves")
        try:
            backend = backend_of(conn_string)
        except ValueError as error:
            raise InvalidConfigError(str(error)) from error
        return cls(CheckpointerConfig(url=conn_string, **{"backend": backend, **options}), serde=serde)

    @property
    def _core(self) -> Core:
        self._sweeper.start()
        # LangGraph sets `serde` on copies of a saver, and its server on the saver itself.
        made, serde, keeping = self._made, self.serde, self._keepers[0]
        if made is None or made[0] is not serde or made[1] is not keeping:
            codec = Codec(serde, bare=self.backend.bare)
            core = Core(
                self.backend,
                codec,
                self._cache,
                self._lines,
                None if keeping.retention.keeps_all else keeping,
                self.event_log,
                self._runs,
            )
            made = self._made = (serde, keeping, core)
            self._sweeper.core = core
        return made[2]

    @property
    def retention(self) -> Retention:
        """Which checkpoints of a thread stay as others come; may be set at any time, for all copies."""
        return self._keepers[0].retention

    @retention.setter
    def retention(self, retention: Retention | str | None) -> None:
        self._keepers[0] = Keeping(Retention.of(retention))

    @property
    def failures(self) -> int:
        """How often a put was stored, and what should have gone then is still there; see the log."""
        return self._keepers[0].failures

    def _keeping(self, retention: Retention | str | None = None) -> Keeping:
        return self._keepers[0] if retention is None else Keeping(Retention.of(retention))

    # --- life --------------------------------------------------------------------------------------

    def setup(self) -> Awaitable[None]:
        """Connect and bring the schema up to date, which first use does too; call it or await it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._bridge.run(self.backend.open())
            return _Opening(None)
        return _Opening(self.backend)

    async def asetup(self) -> None:
        """Do what `setup` does."""
        await self.backend.open()

    def close(self) -> None:
        """Store what events are waiting, and release everything; a saver that is closed stays closed."""
        self._sweeper.stop()
        self.event_log.close()
        self._bridge.run(self.backend.close())
        self._bridge.close()

    async def aclose(self) -> None:
        """Do what `close` does."""
        self._sweeper.stop()
        await self.event_log.aclose()
        await self.backend.close()
        await self._bridge.aclose()

    def __enter__(self) -> Self:
        self._bridge.run(self.backend.open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self.backend.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- writing -----------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; return a config that names it."""
        return self._bridge.run(self._put(config, checkpoint, metadata, new_versions))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; return a config that names it."""
        return await self._put(config, checkpoint, metadata, new_versions)

    # Both doors lead here, so that a subclass which overrides one doesn't pass through the other.
    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Coroutine[Any, Any, RunnableConfig]:
        thread_id, checkpoint_ns, parent_id = _place(config)
        key = CheckpointKey(thread_id, checkpoint_ns, checkpoint["id"])
        full = _full_metadata(config, metadata)
        stored = _config(config["configurable"]["thread_id"], checkpoint_ns, checkpoint["id"])
        return self._core.put(key, parent_id, checkpoint, full, new_versions, stored)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote, linked to the checkpoint that `config` names."""
        self._bridge.run(self._put_writes(config, writes, task_id, task_path))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote, linked to the checkpoint that `config` names."""
        await self._put_writes(config, writes, task_id, task_path)

    def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Coroutine[Any, Any, None]:
        thread_id, checkpoint_ns, checkpoint_id = _place(config)
        if checkpoint_id is None:
            raise InvalidConfigError("writes belong to a checkpoint: the config needs a checkpoint_id")
        key = CheckpointKey(thread_id, checkpoint_ns, checkpoint_id)
        return self._core.put_writes(key, writes, task_id, task_path, _run_of(config))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version that follows any stored one, whichever saver made it, and is given only once."""
        return next_version(current)

    def run_sync(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over this saver for a sync caller, as its own sync methods do."""
        return self._bridge.run(work)

    # --- reading -----------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` names, without a checkpoint_id the latest, or None."""
        return self._bridge.run(self._get_tuple(config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` names, without a checkpoint_id the latest, or None."""
        return await self._get_tuple(config)

    async def _get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        core = self._core
        stored = await core.get(*_place(config))
        if stored is None:
            return None
        return _tuple(core, stored, config["configurable"]["thread_id"], core.values(stored))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, newest id first.

        Checkpoints of one listing share the messages that they have in common: changing one in place changes
        it in those that were yielded before. `share_listed=False` gives each its own. Nothing else is shared.

        Args:
            config: Limits them to its thread_id, checkpoint_ns and checkpoint_id, as far as it has them.
            filter: What their metadata must contain: dicts by key, lists by member, other values equal. Of a
                thread, "harness_tag" names the checkpoint that an engine has given that tag.
            before: Only those with a smaller id than this one's.
            limit: At most so many.
        """
        core = self._core
        pages = tagged.pages(core, _selection(config, filter, before, limit))
        thread_id = _given_thread(config)
        listing = Listing(core.codec, share=self.config.share_listed)
        try:
            while (page := self._bridge.run(_next(pages))) is not None:
                for stored in page:
                    yield _tuple(core, stored, thread_id, listing.values(stored.image))
        finally:
            self._bridge.run(_finish(pages))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest id first; see `list`."""
        core = self._core
        thread_id = _given_thread(config)
        listing = Listing(core.codec, share=self.config.share_listed)
        async for page in tagged.pages(core, _selection(config, filter, before, limit)):
            for stored in page:
                yield _tuple(core, stored, thread_id, listing.values(stored.image))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what rebuilds channels at a checkpoint: the nearest stored value and the writes since."""
        return self._bridge.run(self._delta_history(config, channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what rebuilds channels at a checkpoint: the nearest stored value and the writes since."""
        return await self._delta_history(config, channels)

    async def _delta_history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        if not channels:
            return {}
        history = await self._core.delta_history(*_place(config), channels)
        return cast("Mapping[str, DeltaChannelHistory]", history)

    def get_record(self, config: RunnableConfig) -> CheckpointRecord | None:
        """Return a JSON-safe view of the checkpoint that `config` names, or None."""
        found = self.get_tuple(config)
        return CheckpointRecord.of(found) if found else None

    async def aget_record(self, config: RunnableConfig) -> CheckpointRecord | None:
        """Return a JSON-safe view of the checkpoint that `config` names, or None."""
        found = await self.aget_tuple(config)
        return CheckpointRecord.of(found) if found else None

    # --- deleting and copying ----------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> int:  # type: ignore[override]
        """Delete a thread; return how many checkpoints it had."""
        return self._bridge.run(self._core.delete_thread(str(thread_id)))

    async def adelete_thread(self, thread_id: str) -> int:  # type: ignore[override]
        """Delete a thread; return how many checkpoints it had."""
        return await self._core.delete_thread(str(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs; later ones read back as before.

        What a run of this process wrote to the checkpoint that it began at, such as an answer, goes too, if
        no other has gone on from there.
        """
        self._bridge.run(self._core.delete_for_runs(_ids("delete_for_runs", run_ids)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs; later ones read back as before.

        What a run of this process wrote to the checkpoint that it began at, such as an answer, goes too, if
        no other has gone on from there.
        """
        await self._core.delete_for_runs(_ids("delete_for_runs", run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints, writes and events to another thread; safe to repeat."""
        self._bridge.run(self._core.copy_thread(str(source_thread_id), str(target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints, writes and events to another thread; safe to repeat."""
        await self._core.copy_thread(str(source_thread_id), str(target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all but the latest checkpoint of each namespace, or with "delete" everything.

        Raises:
            InvalidConfigError: The strategy is unknown.
        """
        self._bridge.run(self._prune(thread_ids, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do what `prune` does."""
        await self._prune(thread_ids, strategy)

    async def _prune(self, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in _STRATEGIES:
            raise InvalidConfigError(f"strategy {strategy!r} is unknown; there are {', '.join(_STRATEGIES)}")
        threads = _ids("prune", thread_ids)
        if not _STRATEGIES[strategy]:
            await self._core.prune(threads)
            return
        for thread_id in threads:
            await self._core.delete_thread(thread_id)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> Self:
        """Return this saver with further types allowed to load; both share store and cache."""
        serde = allowlisted(self.serde, extra_allowlist)
        if serde is self.serde:
            return self
        clone = copy.copy(self)
        clone.serde = serde
        return clone


class _Life:
    """Lives as long as any copy of a saver."""


def _let_go(store: Store, bridge: Bridge) -> None:
    """End what nobody has closed, without waiting: this may be any thread, in the middle of anything."""
    store.let_go()
    bridge.let_go()


class _Opening(Coroutine[Any, Any, None]):
    """What `setup` returns: done already, or done when awaited; nobody has to."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._work: Coroutine[Any, Any, None] | None = None

    def _begun(self) -> Coroutine[Any, Any, None]:
        if self._work is None:
            self._work = self._store.open() if self._store else _nothing()
        return self._work

    def __await__(self) -> Generator[Any, Any, None]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, *error: Any) -> Any:
        return self._begun().throw(*error)

    def close(self) -> None:
        if self._work is not None:
            self._work.close()


async def _nothing() -> None: ...


async def _next(pages: AsyncIterator[list[Stored]]) -> list[Stored] | None:
    return await anext(pages, None)


async def _finish(pages: AsyncIterator[list[Stored]]) -> None:
    await cast("AsyncGenerator[list[Stored], None]", pages).aclose()


def _place(config: RunnableConfig) -> tuple[str, str, str | None]:
    configurable = config.get("configurable") or {}
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidConfigError(
            'a checkpoint belongs to a thread: pass config={"configurable": {"thread_id": "..."}}'
        )
    return (
        str(thread_id),
        configurable.get("checkpoint_ns") or "",
        _text(configurable.get("checkpoint_id")),
    )


def _given_thread(config: RunnableConfig | None) -> Any:
    return ((config or {}).get("configurable") or {}).get("thread_id")


def _selection(
    config: RunnableConfig | None,
    filter: dict[str, Any] | None,
    before: RunnableConfig | None,
    limit: int | None,
) -> Selection:
    wanted = (config or {}).get("configurable") or {}
    thread_id = wanted.get("thread_id")
    # LangGraph's server passes a bare checkpoint here.
    last: Mapping[str, Any] = (before or {}).get("configurable") or before or {}
    return Selection(
        thread_id=None if thread_id is None else str(thread_id),
        checkpoint_ns=wanted.get("checkpoint_ns"),
        checkpoint_id=_text(wanted.get("checkpoint_id")),
        before=_text(last.get("checkpoint_id") or last.get("id")),
        filter=filter,
        limit=limit,
    )


def _ids(method: str, ids: Sequence[Any]) -> Sequence[str]:
    if isinstance(ids, (str, bytes)):
        # Each of its letters may be an id.
        raise InvalidConfigError(f"{method} takes a list of ids: {method}([{ids!r}])")
    return [str(one) for one in ids]


def _text(checkpoint_id: Any) -> str | None:
    return str(checkpoint_id) if checkpoint_id else None


def _config(thread_id: Any, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def _tuple(core: Core, stored: Stored, given_thread: Any, values: dict[str, Any]) -> CheckpointTuple:
    thread_id, checkpoint_ns, checkpoint_id = stored.row.key
    # A caller who names threads by numbers gets numbers back.
    thread = thread_id if given_thread is None else given_thread
    parent_id = stored.row.parent_id
    return CheckpointTuple(
        config=_config(thread, checkpoint_ns, checkpoint_id),
        checkpoint=cast("Checkpoint", checkpoint_of(stored.image, values)),
        metadata=cast("CheckpointMetadata", stored.metadata),
        parent_config=None if parent_id is None else _config(thread, checkpoint_ns, parent_id),
        pending_writes=core.pending_writes(stored),
    )


def _run_of(config: RunnableConfig) -> str | None:
    for part in (config.get("metadata"), config.get("configurable")):
        if part and (run_id := _flat(part).get("run_id")) is not None:
            return str(run_id)
    return None


def _flat(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    # What LangGraph hands over as metadata is a ChainMap, which takes a microsecond for each name.
    if type(mapping) is not ChainMap:
        return mapping
    flat: dict[str, Any] = {}
    for one in reversed(mapping.maps):
        flat.update(one)
    return flat


def _full_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """Add the scalars of the config's metadata and configurable, as LangGraph's savers do."""
    full: dict[str, Any] = dict(metadata)
    for more in (config.get("metadata"), config.get("configurable")):
        if not more:
            continue
        for name, value in _flat(more).items():
            if name in full or name in EXCLUDED_METADATA_KEYS or name.startswith("__"):
                continue
            if type(value) in _SCALARS:
                full[name] = value
            elif isinstance(value, _SCALARS):
                full[name] = _plain(value)
    return full


def _plain(value: str | int | float) -> Any:
    # A thread is to be readable where the class of an enum in its config isn't.
    if isinstance(value, Enum):
        return value.value
    for scalar in _SCALARS:
        if isinstance(value, scalar):
            return scalar(value)
    return value
