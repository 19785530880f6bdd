"""Checkpoints in Redis or Valkey, on one server or a cluster, by core commands alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

from langgraph_harness_saver.errors import (
    BranchExistsError,
    EntangledError,
    HeadMovedError,
    InvalidConfigError,
    NotReplicatedError,
    SchemaError,
    StoreError,
    StoreNotOpenError,
    StoreUnavailableError,
)
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
    Kind,
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
    leans_on,
    merge_spans,
)
from langgraph_harness_saver.stores.base import ANY_HEAD, Choice, Known, Plan, Store, Unconditional, all_known
from langgraph_harness_saver.stores.batches import Call, Pauses
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.opening import Opening, Queues
from langgraph_harness_saver.stores.parts import LazyParts, run_plan
from langgraph_harness_saver.stores.redis_errors import is_lost
from langgraph_harness_saver.stores.redis_families import Families
from langgraph_harness_saver.stores.redis_homes import Facts, Homes, Trail, away, is_elsewhere
from langgraph_harness_saver.stores.redis_index import Index, Named
from langgraph_harness_saver.stores.redis_rows import (
    SHARDS,
    Home,
    event_form,
    event_ranges,
    grouped_writes,
    id_form,
    keep_forms,
    line_of,
    members_of_writes,
    pack,
    page_of,
    place_of,
    read_event,
    read_expired,
    read_expiries,
    read_facts,
    read_id,
    read_namespaces,
    read_node,
    read_place,
    read_records,
    read_row,
    read_standing,
    read_tags,
    record_form,
    rev_form,
    row_form,
    text_form,
    thread_form,
    version_spot,
    write_forms,
)
from langgraph_harness_saver.stores.redis_scan import ALL, HEAD, ROWS, Scanner
from langgraph_harness_saver.stores.redis_url import RedisTarget, target_of
from langgraph_harness_saver.stores.redis_wires import Command, Reply, Wire, Wires, call, command

logger = logging.getLogger(__name__)

MAJOR, MINOR = 1, 0
"""The version of the form in which rows are stored. A release works with every newer minor one."""
LOCKED, EXPIRED, ENTANGLED, FENCED, LEASED = -1, -2, -3, 8, 16
"""What writing scripts return, or add, as in `common.lua`."""
PARTS_KEY = 5
"""Which of a family's keys is the hash of parts."""
LOAD_ROWS, LOAD_BYTES = 1000, 8 << 20
"""How much of a family is read at a time."""
REVISIONS = 100
"""How often a revision is begun anew because others have changed the thread meanwhile."""
REVISIONS_UNLOCKED = 3
"""How often it is tried without keeping others from writing."""
LOCK_SECONDS = 10.0
LARGEST_BYTES = 512 << 20
"""What Redis takes in one piece, unless proto-max-bulk-len says otherwise."""
FENCE_SECONDS = 10.0
"""For how long a fence stands, as in `common.lua`."""
GRACE_SECONDS = 60.0
"""By how much Redis lets a thread outlive its time, or by as much as that again if it is less: until then a
sweep knows which of the indexes' entries are to go."""
SWEEP_BATCH = 50
WALK_ENTRIES = 200
"""How many entries of the indexes a sweep looks at, besides those of what has expired."""
NO_BASE = Base(CheckpointKey("", "", ""), 0)
"""What no other thread's family has: a base of a branch without a name."""


class _Job(NamedTuple):
    """One call on the family of a thread, and what the indexes have to know before it."""

    thread_id: str
    home: Home
    command: Command
    named: Sequence[Named] = ()
    renewed: Sequence[str] = ()
    writes: bool = True


class _PartGone(Exception):  # noqa: N818
    """A part isn't there any more that a family had: somebody has changed it since it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read(Family):
    """A family as it was read, where, at that time, and the stamp of what was the latest write."""

    home: Home
    now: float
    stamp: bytes
    expired: bool = False
    """Whether the thread has that was asked for."""
    expiries: Mapping[str, bytes] = field(default_factory=dict)
    """Until when those threads live that expire."""


class RedisStore(Store):
    """Keeps rows in keys that begin with a prefix, which any number of processes may use at once.

    Calls that arrive while others are under way are sent together. A thread's keys are in one slot, and each
    call is one script; what finds threads by ids or runs is in indexes elsewhere, see `index_common.lua`.
    """

    io: ClassVar[Literal["none", "blocking", "async"]] = "async"

    def __init__(
        self,
        source: str | RedisTarget | object,
        *,
        key_prefix: str | None = None,
        ttl_seconds: float | None = None,
        refresh_on_read: bool = False,
        pool_size: int = 10,
        retry_seconds: float = 30.0,
        wait_replicas: int = 0,
        wait_seconds: float = 1.0,
    ) -> None:
        """Connect to where a URL or a client leads.

        Args:
            source: A URL, what `target_of` made of one, or a client of redis-py's, which is not closed.
            key_prefix: What the names of all keys begin with; the URL's, or "harness", if None.
            ttl_seconds: Seconds after its last write at which a thread expires; None for never.
            refresh_on_read: Whether reading a thread's latest checkpoint, or one by id, renews it too.
            pool_size: How many connections there may be, over all event loops; in a cluster to each server.
            retry_seconds: For how long a call is tried again when the server goes away.
            wait_replicas: How many replicas must have a write before it is acknowledged.
            wait_seconds: How long they have for it.

        Raises:
            InvalidConfigError: The source leads nowhere, or the prefix can't be used.
        """
        target = source if isinstance(source, RedisTarget) else target_of(source, max_connections=pool_size)
        self.ttl_seconds = ttl_seconds
        self.refresh_on_read = refresh_on_read
        self.prefix = key_prefix or target.key_prefix or "harness"
        if "{" in self.prefix or "}" in self.prefix:
            raise InvalidConfigError(
                f"key_prefix {self.prefix!r} has a brace, which a cluster takes for the part of a key that "
                "says where it lives; leave braces out"
            )
        self.where = target.describe()
        self._cluster = target.cluster
        self._wait = (wait_replicas, round(wait_seconds * 1000))
        self._wires = Wires(target, retry_seconds)
        self._queues: Queues[_Job] = Queues(self._flush, self._wires.lane)
        self._opening = Opening(lambda: self._wires.run(self._set_up))
        self._homes = Homes(self.prefix, self._ask)
        self._families = Families(self._homes)
        self._index = Index(self.prefix, self._ask, self._homes, self._new_stamp)
        self._scanner = Scanner(self._index, lambda: self._times()[0])
        # What a walk over all threads goes on from: the indexes are by checkpoints.
        self._names: list[str] | None = None
        self._closed = False
        self._stamps = itertools.count()
        self._stamper = (0, b"")

    # --- opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._closed:
            raise StoreNotOpenError(f"the store of {self.where} is closed; make a new saver")
        if not self._opening.is_done:
            await self._opening.wait()

    async def _set_up(self, wire: Wire, deadline: float) -> None:
        spot = version_spot(self.prefix)
        key = spot.keys[0]
        commands = [
            command(spot, b"INFO"),
            command(spot, b"HSETNX", key, b"major", b"%d" % MAJOR),
            command(spot, b"HSETNX", key, b"minor", b"%d" % MINOR),
            command(spot, b"HMGET", key, b"major", b"minor"),
        ]
        info, *made, version = await wire.send(commands, deadline)
        facts = _facts(info)
        if not self._cluster and facts.get("cluster_enabled") == "1":
            raise InvalidConfigError(
                f"{self.where} is a server of a Redis Cluster: write redis+cluster://, or give a RedisCluster"
            )
        for reply in (version, *made):
            # One that takes nothing more can still be read.
            if isinstance(reply, Exception) and (is_lost(reply) or not _is_version(version)):
                raise reply
        self._check_version(version)
        self._warn_of_eviction(facts.get("maxmemory_policy", ""))

    def _check_version(self, version: Sequence[bytes | None]) -> None:
        major = version[0] or b""
        if not major.isdigit():
            raise SchemaError(
                f"{self.where}: the keys that begin with {self.prefix!r} aren't this store's; choose another "
                "key_prefix"
            )
        if int(major) > MAJOR:
            raise SchemaError(
                f"{self.where}: what begins with {self.prefix!r} has version {int(major)}, and this release "
                f"knows {MAJOR}: upgrade langgraph-harness-saver, or choose another key_prefix"
            )

    def _warn_of_eviction(self, policy: str) -> None:
        if policy.startswith("allkeys") or (policy.startswith("volatile") and self.ttl_seconds is not None):
            logger.warning(
                "%s deletes checkpoints when memory is short (maxmemory-policy %s): set it to noeviction, "
                "which refuses new ones instead",
                self.where,
                policy,
            )

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._wires.close()

    def let_go(self) -> None:
        self._closed = True
        self._wires.let_go()

    # --- writing -----------------------------------------------------------------------------------

    async def put(
        self,
        row: CheckpointRow,
        parts: Sequence[PartRow] = (),
        *,
        base: Base | None = None,
        head: str | Unconditional | None = ANY_HEAD,
        keep: Keep | None = None,
    ) -> PutResult:
        await self.open()
        if base is not None and base.key.thread_id != row.key.thread_id:
            base = await self._base_of_family(base, row.key.thread_id)
        stamp, named = self._new_stamp(), Named(row.key, row.run_id)

        def job(home: Home) -> _Job:
            place, form = row_form(home.family, row)
            own_id = id_form(row.key.checkpoint_id)
            arguments = [
                *self._times(),
                stamp,
                place[: -len(own_id)],
                own_id,
                form,
                b"" if base is None else place_of(home.family, base.key),
                b"" if base is None else rev_form(base.rev),
                _head_form(head),
                *keep_forms(keep),
            ]
            for part in parts:
                arguments += (part.part_id, part.data)
            putting = call(SCRIPTS["put"], home.spot, arguments)
            return _Job(row.key.thread_id, home, putting, (named,), (row.key.thread_id,))

        reply = await self._submit_home(row.key.thread_id, job)
        if isinstance(reply, list):
            await self._index.clean([named])
            raise HeadMovedError(None if isinstance(head, Unconditional) else head, _read_head(reply[1]))
        result = PutResult(reply)
        if result == PutResult.BASE_GONE:
            await self._index.clean([named])
        return result

    async def _base_of_family(self, base: Base, thread_id: str) -> Base:
        """Return a base of another thread if it is of the same family, else one that nothing has."""
        names = (thread_id, base.key.thread_id)
        if len({self._homes.of(name).family for name in names}) == 1:
            return base
        if len({(await self._homes.facts(name)).home.family for name in names}) == 1:
            return base
        return NO_BASE

    async def put_writes(
        self, key: CheckpointKey, writes: Sequence[WriteRow], parts: Sequence[PartRow] = ()
    ) -> PutResult:
        if not writes:
            return PutResult.STORED
        await self.open()
        stamp, needed = self._new_stamp(), leans_on(writes, parts)

        def job(home: Home) -> _Job:
            arguments = [*self._times(), stamp, place_of(home.family, key), b"%d" % len(writes)]
            for write in writes:
                arguments += write_forms(write)
            arguments += (b"%d" % len(needed), *needed)
            for part in parts:
                arguments += (part.part_id, part.data)
            writing = call(SCRIPTS["put_writes"], home.spot, arguments)
            return _Job(key.thread_id, home, writing, renewed=(key.thread_id,))

        return PutResult(await self._submit_home(key.thread_id, job))

    async def add_events(self, events: Sequence[EventRow]) -> None:
        await self.open()
        by_thread: dict[str, list[EventRow]] = {}
        for event in events:
            by_thread.setdefault(event.thread_id, []).append(event)
        # Each thread is in a slot of its own; what is sent together leaves together.
        done = await asyncio.gather(
            *(self._add_events(thread_id, some) for thread_id, some in by_thread.items()),
            return_exceptions=True,
        )
        for error in done:
            if error is not None:
                raise error

    async def _add_events(self, thread_id: str, events: Sequence[EventRow]) -> None:
        stamp = self._new_stamp()

        def job(home: Home) -> _Job:
            arguments = [*self._times(), stamp, thread_form(home.family, thread_id)]
            for event in events:
                arguments += event_form(home.family, event)
            adding = call(SCRIPTS["add_events"], home.spot, arguments)
            return _Job(thread_id, home, adding, renewed=(thread_id,))

        await self._submit_home(thread_id, job)

    async def _submit_home(self, thread_id: str, job: Callable[[Home], _Job]) -> Any:
        """Return the reply to a call on a thread, from where it lives."""
        reply = await self._submit(job(self._homes.of(thread_id)))
        if not is_elsewhere(reply):
            return reply
        trail, pauses = Trail(self._homes, thread_id), Pauses()
        while is_elsewhere(reply):
            if not await trail.follow(reply):
                # Somebody is about to begin it.
                await pauses.wait()
            reply = await self._submit(job(self._homes.of(thread_id)))
        return reply

    async def _submit(self, job: _Job) -> Any:
        """Return the reply to a call, which leaves together with others."""
        size = len(job.command.packed)
        if size > LARGEST_BYTES:
            raise StoreError(
                f"{self.where}: {size:,} bytes are more than Redis takes at once; nothing was stored"
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wires.retry_seconds
        pauses = Pauses()
        while True:
            try:
                reply = await self._queues.submit(job, size, deadline - loop.time())
                if reply == EXPIRED:
                    await self._delete(job.thread_id, if_expired=True)
                    continue
                if reply == ENTANGLED:
                    raise EntangledError(f"thread {job.thread_id!r} shares bytes with others of its family")
                if reply != LOCKED:
                    return reply
                if loop.time() >= deadline:
                    raise StoreUnavailableError(
                        f"{self.where}: others kept the thread locked for all of retry_seconds; try again"
                    )
            except StoreError as error:
                if not self._wires.is_worth_another(error, deadline):
                    raise
            # Here, so that the others don't wait for this one.
            await pauses.wait()

    async def _flush(self, calls: Sequence[Call[_Job]]) -> Sequence[Call[_Job]]:
        """Send calls together; return those to be sent again."""
        try:
            work = partial(self._exchange, [each.payload for each in calls])
            replies = await self._wires.attempt(work, max(each.deadline for each in calls))
        except StoreError as error:
            again = [each for each in calls if self._wires.is_worth_another(error, each.deadline)]
            for each in calls:
                if each not in again:
                    each.fail(error)
            return again
        for each, reply in zip(calls, replies, strict=True):
            if isinstance(reply, StoreError):
                each.fail(reply)
            elif isinstance(reply, Exception):
                each.fail(self._wires.translated(reply))
            else:
                each.resolve(reply)
        return ()

    async def _exchange(self, jobs: Sequence[_Job], wire: Wire, deadline: float) -> list[Reply]:
        """Send what the indexes have to know, then the calls themselves; return the replies to these."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        entries = self._entries(jobs)
        own = [job.command for job in jobs]
        if self._cluster and entries:
            # There they are elsewhere, so that one has to be waited for before the other.
            replies = await wire.send(list(entries.values()), deadline)
            replies += await wire.send(own, deadline)
        else:
            replies = await wire.send([*entries.values(), *own], deadline)
        failed = _failures(dict(zip(entries, replies, strict=False)))
        replies = replies[len(entries) :]
        leased = _cut(replies, LEASED)
        fenced = _cut(replies, FENCED)
        if fenced or loop.time() - begin > FENCE_SECONDS / 2:
            entries = self._entries(jobs)
            once_more = await wire.send(list(entries.values()), deadline)
            failed |= _failures(dict(zip(entries, once_more, strict=True)))
        for n in leased:
            replies[n] = await self._relet(jobs[n].home, wire, deadline) or replies[n]
        for n, job in enumerate(jobs if failed else ()):
            # It has failed if entering it in the indexes has.
            shards = {
                self._index.shard(name) for name in (*job.renewed, *(e.key.thread_id for e in job.named))
            }
            for shard in shards & failed.keys():
                replies[n] = failed[shard]
        lost = [reply for reply in replies if isinstance(reply, Exception) and is_lost(reply)]
        if lost:
            raise lost[0]
        written = [n for n, job in enumerate(jobs) if job.writes and not isinstance(replies[n], Exception)]
        if self._wait[0] and written:
            error = await self._replicate([own[n].slot for n in written], wire, deadline)
            for n in written if error else ():
                replies[n] = error
        return replies

    def _entries(self, jobs: Sequence[_Job]) -> dict[int, Command]:
        """Return what enters all that calls name in the indexes, by shard."""
        named = [each for job in jobs for each in job.named]
        renewed = [name for job in jobs for name in job.renewed] if self.ttl_seconds is not None else ()
        _, ttl, expires = self._times()
        return self._index.entries(named, renewed, ttl, expires)

    async def _relet(self, home: Home, wire: Wire, deadline: float) -> Exception | None:
        """Have the pointers to a family live longer than its keys; return why it isn't so."""
        asked = [call(SCRIPTS["facts"], home.spot, ()), command(home.spot, b"PTTL", home.spot.keys[0])]
        replies = await wire.send(asked, deadline)
        if not _failures(dict(enumerate(replies))):
            flat, left = replies
            lease = b"%d" % (2 * left) if left > 0 else b""
            records = read_records(read_facts(flat), home.family)
            pointing = [self._pointing(name, home.family, self._new_stamp(), lease) for name in records]
            replies = await wire.send(pointing, deadline)
            if not _failures(dict(enumerate(replies))):
                replies = await wire.send([call(SCRIPTS["lease"], home.spot, (lease,))], deadline)
        return next(iter(_failures(dict(enumerate(replies))).values()), None)

    def _pointing(
        self, thread_id: str, family: str, stamp: bytes, lease: bytes, *, takes: bool = False
    ) -> Command:
        arguments = (text_form(family), stamp, lease, b"%d" % takes)
        return call(SCRIPTS["point"], self._homes.own(thread_id).spot, arguments)

    async def _replicate(
        self, slots: Sequence[int], wire: Wire, deadline: float
    ) -> NotReplicatedError | None:
        """Wait until enough replicas have what has been written on this wire; return why it isn't so."""
        wanted, milliseconds = self._wait
        waits = [
            Command(slot, 3, pack([b"WAIT", b"%d" % wanted, b"%d" % milliseconds]))
            for slot in wire.one_for_each_server(slots)
        ]
        for count in await wire.send(waits, deadline):
            if isinstance(count, Exception):
                # It was a master when it was written to, and the next one need not have it.
                raise ConnectionError(str(count)) if "replica" in str(count) else count
            if count < wanted:
                return NotReplicatedError(
                    f"{self.where}: it is written, but only {count} of {wanted} replicas have it after "
                    f"{milliseconds / 1000:g} seconds, so a failover may lose it; look at the replicas, "
                    "or lower wait_replicas"
                )
        return None

    def _times(self, now: float | None = None) -> tuple[bytes, bytes, bytes]:
        """Return now, in how many milliseconds Redis is to forget what is written now, and its expiry."""
        now = self.clock() if now is None else now
        if self.ttl_seconds is None:
            return repr(now).encode(), b"", b""
        kept = self.ttl_seconds + min(self.ttl_seconds, GRACE_SECONDS)
        return repr(now).encode(), b"%d" % max(kept * 1000, 1), repr(now + self.ttl_seconds).encode()

    def _new_stamp(self) -> bytes:
        """Return what no other change in any process is marked with."""
        pid, prefix = self._stamper
        if pid != os.getpid():
            pid, prefix = self._stamper = (os.getpid(), os.urandom(9))
        return prefix + next(self._stamps).to_bytes(6, "big")

    # --- reading -----------------------------------------------------------------------------------

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
        await self.open()
        now, ttl, expires = self._times()
        trail = Trail(self._homes, thread_id)
        while True:
            home = self._homes.of(thread_id)
            line = line_of(home.family, thread_id, checkpoint_ns)
            looks_for = (
                (b"latest", line) if checkpoint_id is None else (b"one", line + id_form(checkpoint_id))
            )
            had = (b"", b"") if guess is None else (place_of(home.family, guess.key), rev_form(guess.rev))
            # Nothing has expired at the beginning of time.
            wanted = ROWS if known is all_known else ALL
            arguments = (b"-1" if expired else now, wanted, *looks_for, *had)
            read = call(SCRIPTS["read"], home.spot, arguments)
            reply = await self._submit(_Job(thread_id, home, read, writes=False))
            if not is_elsewhere(reply):
                break
            if not await trail.follow(reply):
                return Page()
        page = page_of(reply, home.family)
        if page.entries and self.refresh_on_read and ttl:

            def touching(home: Home) -> _Job:
                arguments = (now, ttl, expires, thread_form(home.family, thread_id))
                touch = call(SCRIPTS["touch"], home.spot, arguments)
                return _Job(thread_id, home, touch, renewed=(thread_id,))

            await self._submit_home(thread_id, touching)
        return page

    async def scan(self, query: Query, size: int, known: Known) -> Page:
        """Return the next page of a query; see `Store.scan`.

        A filter costs reading the metadata of every row that the rest of the query selects, in pages, until
        enough of them match.
        """
        await self.open()
        return await self._scanner.scan(query, size, ROWS if known is all_known else ALL)

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
        await self.open()
        # Nothing has expired at the beginning of time.
        now = b"-1" if expired else self._times()[0]

        def make(home: Home) -> Command:
            bounds = event_ranges(home.family, thread_id, checkpoint_ids, after)
            arguments = (now, thread_form(home.family, thread_id), b"%d" % size, b"%d" % bare, *bounds)
            return call(SCRIPTS["events"], home.spot, arguments)

        home, members = await self._homes.look_once(thread_id, make, ())
        return [read_event(member, home.family) for member in members]

    async def writes(self, keys: Sequence[CheckpointKey]) -> Writes:
        await self.open()
        return await self._scanner.writes(keys) if keys else Writes({}, {})

    async def _ask(self, commands: Sequence[Command]) -> list[Reply]:
        """Return the replies to commands that may be repeated."""

        async def work(wire: Wire, deadline: float) -> list[Reply]:
            replies = await wire.send(commands, deadline)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

        return await self._wires.run(work)

    async def load(self, thread_id: str) -> Family:
        await self.open()
        while True:
            family = await self._family(thread_id)
            parts = family.parts
            assert isinstance(parts, LazyParts)
            try:
                while missing := [part_id for part_id in parts if part_id not in parts.loaded]:
                    await self._load_parts(family.home, parts, parts.next(missing[0]))
            except _PartGone:
                continue
            return Family(family.rows, family.writes, parts.loaded, family.branches)

    async def _family(self, thread_id: str) -> _Read:
        """Read all of a family as it was at one moment."""
        pauses, trail = Pauses(), Trail(self._homes, thread_id)
        while True:
            now = self.clock()
            read = await self._read_once(thread_id, trail, now)
            if read is not None:
                return read
            await pauses.wait()

    async def _read_once(self, thread_id: str, trail: Trail, now: float) -> _Read | None:
        """Read a family in pieces; return None if it is elsewhere, or somebody has changed it meanwhile."""
        home = self._homes.of(thread_id)
        meta, live, rest, _, writes, *_ = home.spot.keys
        found: dict[bytes, list[bytes]] = {live: [], rest: [], writes: []}
        sizes: Sequence[Any] = ()
        unread = list(found)
        facts: Facts | None = None
        while unread:
            look = call(SCRIPTS["facts"], home.spot, ())
            pieces = [self._piece(home, key, len(found[key])) for key in unread]
            others = [call(SCRIPTS["part_sizes"], home.spot, ())] if facts is None else []
            before, *replies, [after] = await self._ask(
                [look, *pieces, *others, command(home.spot, b"HMGET", meta, b"v")]
            )
            seen = Facts(home, read_facts(before))
            if facts is None:
                facts, sizes = seen, replies.pop()
                elsewhere = away(facts, thread_id)
                if elsewhere is not None:
                    is_on_its_way = not await trail.follow(elsewhere)
                    return (
                        _Read({}, {}, LazyParts({}), home=home, now=now, stamp=b"") if is_on_its_way else None
                    )
            if not facts.meta.get(b"v") == seen.meta.get(b"v") == after:
                return None
            for key, members in zip(unread, replies, strict=True):
                found[key] += members
            unread = [k for k, members in zip(unread, replies, strict=True) if len(members) == LOAD_ROWS]
        assert facts is not None
        family = home.family
        records = read_records(facts.meta, family)
        for branch in records:
            self._homes.learn(branch, family)
        expired = thread_id in read_expired(facts.meta, family, now)
        expiries = read_expiries(facts.meta, family)
        stamp = facts.meta.get(b"v", b"")
        read = partial(_Read, home=home, now=now, stamp=stamp, expired=expired, expiries=expiries)
        if expired and not records:
            return read({}, {}, LazyParts({}))
        rows = {row.key: row for row in (read_row(m, family) for m in (*found[live], *found[rest]))}
        parts = LazyParts(dict(zip(sizes[::2], sizes[1::2], strict=True)))
        return read(rows, grouped_writes(found[writes], family), parts, records)

    @staticmethod
    def _piece(home: Home, key: bytes, start: int) -> Command:
        return command(home.spot, b"ZRANGE", key, b"%d" % start, b"%d" % (start + LOAD_ROWS - 1))

    async def _load_parts(self, home: Home, parts: LazyParts, wanted: Sequence[bytes]) -> None:
        for start in range(0, len(wanted), LOAD_ROWS):
            some = wanted[start : start + LOAD_ROWS]
            [found] = await self._ask([command(home.spot, b"HMGET", home.spot.keys[PARTS_KEY], *some)])
            if None in found:
                raise _PartGone
            parts.loaded.update(zip(some, found, strict=True))

    # --- changing ----------------------------------------------------------------------------------

    async def first(self, thread_id: str, size: int) -> Sequence[Standing]:
        await self.open()

        def make(home: Home) -> Command:
            arguments = (self._times()[0], thread_form(home.family, thread_id), b"%d" % size)
            return call(SCRIPTS["first"], home.spot, arguments)

        home, found = await self._homes.look_once(thread_id, make, ())
        return [
            read_standing(row, writes, home.family)
            for row, writes in zip(found[::2], found[1::2], strict=True)
        ]

    async def outline(self, thread_id: str, newest: int | None = None) -> Outline:
        await self.open()
        outline, _ = await self._outline(thread_id, newest)
        return outline

    async def _outline(self, thread_id: str, newest: int | None) -> tuple[Outline, Facts]:
        """Return an outline, and what META held at that time."""
        now = self.clock()
        counted = b"" if newest is None else b"%d" % newest
        trail = Trail(self._homes, thread_id)
        while True:
            home = self._homes.of(thread_id)
            asked = call(SCRIPTS["outline"], home.spot, (line_of(home.family, thread_id, ""), counted))
            [(flat, last, found)] = await self._ask([asked])
            facts = Facts(home, read_facts(flat))
            elsewhere = away(facts, thread_id)
            if elsewhere is None:
                break
            if not await trail.follow(elsewhere):
                return Outline(), Facts(home, {})
        records = read_records(facts.meta, home.family)
        if not records and thread_id in read_expired(facts.meta, home.family, now):
            return Outline(), facts
        nodes = [read_node(row, size, home.family) for row, size in zip(found[::2], found[1::2], strict=True)]
        tagged = frozenset(tag.key for tag in read_tags(facts.meta, home.family, None))
        return Outline(nodes, tagged, records, read_id(last) if last else None), facts

    async def _part(self, thread_id: str, needed: Needed, facts: Facts) -> _Read | None:
        """Read a part of a family; None if it has changed since its facts were read."""
        home, family = facts.home, facts.home.family
        stamp = facts.meta.get(b"v", b"")
        asked: Sequence[CheckpointKey] = list(needed.keys)
        bounds: list[bytes] = []
        rows: dict[CheckpointKey, CheckpointRow] = {}
        writes: dict[CheckpointKey, list[WriteRow]] = {}
        while asked or bounds:
            arguments = [*_counted([place_of(family, key) for key in asked]), *bounds]
            [(flat, members, written)] = await self._ask([call(SCRIPTS["rows"], home.spot, arguments)])
            if read_facts(flat).get(b"v", b"") != stamp:
                return None
            rows = {**{row.key: row for row in (read_row(m, family) for m in members)}, **rows}
            writes = writes or grouped_writes(written, family)
            spans = merge_spans([span for row in rows.values() for span in row.reach])
            lines = [(line_of(family, *span[:2]), span) for span in spans]
            ends = [(line + id_form(span.first), line + id_form(span.last)) for line, span in lines]
            bounds = list(itertools.chain.from_iterable(ends)) if asked and needed.readable else []
            asked = ()
        sizes: Sequence[Any] = ()
        if needed.readable:
            [sizes] = await self._ask([call(SCRIPTS["part_sizes"], home.spot, ())])
        parts = LazyParts(dict(zip(sizes[::2], sizes[1::2], strict=True)))
        records = read_records(facts.meta, family)
        return _Read(rows, writes, parts, records, home=home, now=self.clock(), stamp=stamp)

    async def revise(
        self,
        thread_id: str,
        plan: Plan,
        *,
        expired: bool = False,
        choose: Choice | None = None,
        newest: int | None = None,
    ) -> bool:
        await self.open()
        pauses = Pauses()
        locked: Home | None = None
        try:
            for number in range(REVISIONS):
                if number >= REVISIONS_UNLOCKED:
                    locked = (await self._homes.facts(thread_id)).home
                    await self._ask([call(SCRIPTS["lock"], locked.spot, [b"%d" % (LOCK_SECONDS * 1000)])])
                family: _Read | None
                if choose is not None:
                    outline, facts = await self._outline(thread_id, newest)
                    needed = choose(outline)
                    if needed is not None and not needed.keys:
                        return False
                    family = await self._chosen(thread_id, needed, facts)
                else:
                    family = await self._family(thread_id)
                if expired and family is not None and not family.expired:
                    return False
                if family is not None:
                    change = await self._planned(plan, family)
                    if change == Change():
                        return False
                    if change and await self._apply(thread_id, family, change, if_expired=expired):
                        return True
                logger.debug("%s: others have changed thread %r meanwhile", self.where, thread_id)
                await pauses.wait()
        finally:
            if locked is not None:
                await self._ask([command(locked.spot, b"HDEL", locked.spot.keys[0], b"l")])
        raise StoreError(f"{self.where}: others keep changing thread {thread_id!r}; try again later")

    async def _planned(self, plan: Plan, family: _Read) -> Change | None:
        """Return what a plan makes of a family; None if it has changed meanwhile."""
        try:
            return await run_plan(plan, family, partial(self._load_parts, family.home))
        except _PartGone:
            return None

    async def _chosen(self, thread_id: str, needed: Needed | None, facts: Facts) -> _Read | None:
        """Read what has been chosen of a family; None if it has changed since."""
        if needed is not None:
            return await self._part(thread_id, needed, facts)
        family = await self._family(thread_id)
        return family if family.stamp == facts.meta.get(b"v", b"") else None

    async def _apply(self, thread_id: str, family: _Read, change: Change, *, if_expired: bool) -> bool:
        home = family.home
        now, ttl, expires = self._times(family.now)
        rows = [row_form(home.family, row) for row in change.rows]
        writes = {place_of(home.family, key): some for key, some in change.writes.items()}
        records = {
            thread_form(home.family, name): b"" if branch is None else record_form(branch)[0]
            for name, branch in change.branches.items()
        }
        arguments = [
            *(now, ttl, expires, self._new_stamp(), thread_form(home.family, thread_id), family.stamp),
            b"%d" % change.renews,
            b"%d" % if_expired,
            *_counted([thread_form(home.family, name) for name in change.drops]),
            *_counted([place_of(home.family, key) for key in change.deletes]),
            *_counted_pairs(rows),
            *_counted(list(writes)),
            *_counted([m for place, some in writes.items() for m in members_of_writes(place, some)]),
            *_counted_pairs(change.parts),
            *_counted(list(change.drop_parts)),
            *_counted_pairs([event_form(home.family, event) for event in change.events]),
            *_counted_pairs(records.items()),
        ]
        applying = call(SCRIPTS["apply"], home.spot, arguments)
        entered = _newly_named(family, change)
        added = {row.key.thread_id for row in change.rows}
        added |= {key.thread_id for key, some in change.writes.items() if some}
        there = {key.thread_id for key in (*family.rows, *family.writes)}
        touches = change.renews or (thread_id in added and thread_id not in there)
        renewed = (thread_id,) if touches else ()
        if await self._submit(_Job(thread_id, home, applying, entered, renewed)) != 1:
            return False
        for name in [name for name, branch in change.branches.items() if branch is None]:
            await self._homes.unpoint(name, home.family)
        await self._index.clean(_no_longer_named(family, change))
        left = {key.thread_id for key in _left(family, change)}
        ended = {n: at for n, at in family.expiries.items() if n in change.drops or n not in left}
        await self._index.forget(ended)
        return True

    async def delete_thread(self, thread_id: str) -> int:
        await self.open()
        live, expiry = await self._delete(thread_id, if_expired=False)
        await self._index.forget({thread_id: expiry} if expiry else {})
        return live

    async def _delete(self, thread_id: str, *, if_expired: bool) -> tuple[int, bytes]:
        """Delete a thread; return how many live checkpoints it had, or -1 as it stays, and its expiry."""
        now = self._times()[0]
        family = thread_id

        def job(home: Home) -> _Job:
            nonlocal family
            family = home.family
            arguments = (now, thread_form(family, thread_id), b"%d" % if_expired)
            return _Job(thread_id, home, call(SCRIPTS["drop"], home.spot, arguments))

        live, expiry, *dropped = await self._submit_home(thread_id, job)
        await self._index.clean(
            Named(read_place(place, family)[0], read_id(run) if run else None)
            for place, run in zip(dropped[::2], dropped[1::2], strict=True)
        )
        return live, expiry or b""

    # --- families ----------------------------------------------------------------------------------

    async def graft(self, graft: Graft) -> PutResult:
        await self.open()
        branch = graft.branch
        named = [Named(row.key, row.run_id) for row in graft.rows]
        loop = asyncio.get_running_loop()
        begin, stamp = loop.time(), self._new_stamp()
        was_there, result = True, None
        try:
            was_there = branch is not None and await self._point(branch, named, stamp)
            result = await self._graft(graft, named)
        except (HeadMovedError, BranchExistsError):
            result = PutResult.BASE_GONE
            raise
        finally:
            if result == PutResult.BASE_GONE:
                if branch is not None and not was_there:
                    await self._homes.unpoint(branch.thread_id, branch.family, stamp)
                await self._index.clean(named)
        if branch is not None and result == PutResult.STORED:
            self._homes.learn(branch.thread_id, branch.family)
            if was_there or loop.time() - begin > FENCE_SECONDS / 2:
                await self._point_again(graft, branch)
        return result

    async def _point(
        self, branch: Branch, named: Sequence[Named], stamp: bytes, *, takes: bool = False
    ) -> bool:
        """Write the pointer of a branch that is to begin; return whether it was there already.

        With `takes`, nobody who has written it before may take it away any more.
        """
        own = self._homes.own(branch.thread_id)
        pointing = self._pointing(branch.thread_id, branch.family, stamp, self._lease(), takes=takes)
        # What it names are entries by which the pointer is found if nothing more comes of it.
        named = [each for each in named if each.key.thread_id == branch.thread_id]
        reply = await self._submit(_Job(branch.thread_id, own, pointing, named))
        if reply == 1:
            raise BranchExistsError(f"there is a thread {branch.thread_id!r} already")
        return bool(reply)

    async def _point_again(self, graft: Graft, branch: Branch) -> None:
        """Point to a branch once more: somebody may have taken its pointer for stale, or for his own."""
        try:
            await self._point(branch, (), self._new_stamp(), takes=True)
        except BranchExistsError:
            rows = [row.key for row in graft.rows if row.key.thread_id == branch.thread_id]
            undone = Change(
                deletes=rows, drops=frozenset((branch.thread_id,)), branches={branch.thread_id: None}
            )
            await self.revise(branch.source, lambda _: undone)
            raise

    def _lease(self) -> bytes:
        """Return for how many milliseconds pointers are to live: much longer than what they lead to."""
        ttl = self._times()[1]
        return b"%d" % (2 * int(ttl)) if ttl else b""

    async def _graft(self, graft: Graft, named: Sequence[Named]) -> PutResult:
        branch, stamp = graft.branch, self._new_stamp()
        threads = tuple({row.key.thread_id: None for row in graft.rows})
        thread_id = branch.source if branch else threads[0]
        heads = list(graft.heads.items())

        def job(home: Home) -> _Job:
            family = home.family
            record, length = record_form(branch) if branch else (b"", 0)
            rows = [row_form(family, row) for row in graft.rows]
            writes = [(key, write_forms(w)) for key, some in graft.writes.items() for w in some]
            arguments = [
                *(*self._times(), stamp, thread_form(family, thread_id)),
                *(thread_form(family, branch.thread_id) if branch else b"", record, b"%d" % length),
                self._lease(),
                *_counted_pairs([(line_of(family, *line), _head_form(head)) for line, head in heads]),
                *_counted_pairs([(place_of(family, key), rev_form(rev)) for key, rev in graft.bases]),
                *_counted_pairs(rows),
                *_counted_pairs([(place_of(family, key) + under, form) for key, (under, form) in writes]),
                *_counted_pairs(graft.parts),
            ]
            grafting = call(SCRIPTS["graft"], home.spot, arguments)
            return _Job(thread_id, home, grafting, named, threads)

        reply = await self._submit_home(thread_id, job)
        if not isinstance(reply, list):
            return PutResult(reply)
        if reply[0] == 3:
            raise HeadMovedError(heads[reply[1]][1], _read_head(reply[2]))
        assert branch is not None
        taken = thread_form(branch.family, branch.thread_id) == reply[1]
        if taken:
            raise BranchExistsError(f"there is a thread {branch.thread_id!r} already")
        raise BranchExistsError(f"thread {branch.source!r} has a branch {branch.name!r} already")

    async def branches(self, thread_id: str) -> Sequence[Branch]:
        await self.open()
        home, meta = await self._homes.facts(thread_id)
        records = read_records(meta, home.family)
        for branch in records:
            self._homes.learn(branch, home.family)
        return list(records.values())

    async def has_child(self, key: CheckpointKey) -> bool:
        await self.open()
        now = self._times()[0]

        def make(home: Home) -> Command:
            line = line_of(home.family, *key[:2])
            return call(SCRIPTS["has_child"], home.spot, (now, line, id_form(key.checkpoint_id)))

        return bool((await self._homes.look_once(key.thread_id, make, 0)).reply)

    async def namespaces(self, thread_id: str, since: str | None = None) -> Sequence[str]:
        await self.open()
        arguments = (self._times()[0], b"" if since is None else id_form(since))

        def make(home: Home) -> Command:
            now, newer_than = arguments
            thread = thread_form(home.family, thread_id)
            return call(SCRIPTS["namespaces"], home.spot, (now, thread, newer_than))

        home, (found, spaces) = await self._homes.look_once(thread_id, make, ((), ()))
        return read_namespaces(found, spaces, len(thread_form(home.family, thread_id)))

    async def tag(self, tag: Tag) -> bool:
        return await self._tag(tag.key.thread_id, tag.name, tag.key)

    async def untag(self, thread_id: str, name: str) -> bool:
        return await self._tag(thread_id, name, None)

    async def _tag(self, thread_id: str, name: str, key: CheckpointKey | None) -> bool:
        await self.open()
        now = self._times()[0]

        def job(home: Home) -> _Job:
            place = b"" if key is None else place_of(home.family, key)
            arguments = (now, thread_form(home.family, thread_id), text_form(name), place)
            return _Job(thread_id, home, call(SCRIPTS["tag"], home.spot, arguments))

        return bool(await self._submit_home(thread_id, job))

    async def tags(self, *thread_ids: str) -> Sequence[Tag]:
        await self.open()
        return await self._families.tags(thread_ids, self.clock())

    async def lines(
        self, thread_ids: Collection[str], size: int | None = None
    ) -> Mapping[str, Sequence[str]]:
        await self.open()
        return await self._families.lines(thread_ids, size, self._times()[0])

    async def newest(self, after: CheckpointKey | None, size: int) -> Sequence[CheckpointKey]:
        await self.open()
        page = await self._scanner.scan(Query(None, "", after=after), size, HEAD)
        return [entry.row.key for entry in page.entries]

    async def rows(self, keys: Collection[CheckpointKey]) -> Sequence[Entry]:
        await self.open()
        return await self._families.rows(keys)

    async def eventful(self, thread_ids: Collection[str]) -> Collection[str]:
        await self.open()
        return await self._families.eventful(thread_ids, self._times()[0])

    async def entangled(self) -> Sequence[str]:
        await self.open()
        found: dict[str, None] = {}
        # Processes that sweep at once don't go the same way.
        first = random.randrange(SHARDS)
        for shard in (*range(first, SHARDS), *range(first)):
            start = 0
            while due := await self._index.due(shard, self._times()[0], start, SWEEP_BATCH):
                start += len(due)
                for member, _ in due:
                    home, meta = await self._homes.facts(read_id(member))
                    if read_records(meta, home.family):
                        found.update(dict.fromkeys(read_expired(meta, home.family, self.clock())))
        return list(found)

    # --- sweeping ----------------------------------------------------------------------------------

    async def threads_of_runs(self, run_ids: Sequence[str]) -> Sequence[str]:
        await self.open()
        return await self._scanner.threads_of_runs(run_ids)

    async def threads(self, after: str | None, size: int) -> Sequence[str]:
        await self.open()
        if self._names is None or after is None:
            self._names = sorted(await self._scanner.threads())
        start = 0 if after is None else bisect_right(self._names, after)
        return self._names[start : start + size]

    async def sweep(self) -> int:
        await self.open()
        swept = 0
        for shard in range(SHARDS):
            start = 0
            while due := await self._index.due(shard, self._times()[0], start, SWEEP_BATCH):
                gone, stay = await self._expire(shard, due)
                swept += gone
                start += stay
        await self._scanner.walk(WALK_ENTRIES)
        return swept

    async def _expire(self, shard: int, due: Sequence[tuple[bytes, bytes]]) -> tuple[int, int]:
        """Delete those of some threads that have expired; return how many did, and are entangled and stay."""
        gone = stay = 0
        settled: list[bytes] = []
        for member, seen in due:
            try:
                live, expiry = await self._delete(read_id(member), if_expired=True)
            except EntangledError:
                stay += 1
                continue
            gone += live >= 0
            # It has gone, or been renewed since; one without an expiry is nobody's to sweep.
            settled += (member, seen, expiry if live < 0 else b"")
        await self._index.settle(shard, settled)
        return gone, stay


def _nothing(key: CheckpointKey, rev: int) -> bool:
    return False


def _failures(replies: Mapping[int, Reply]) -> dict[int, Exception]:
    return {shard: reply for shard, reply in replies.items() if isinstance(reply, Exception)}


def _facts(info: Reply) -> dict[str, str]:
    """Return what INFO tells; nothing where it isn't allowed."""
    lines = info.decode("utf-8", "replace").splitlines() if isinstance(info, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _is_version(version: Reply) -> bool:
    return isinstance(version, list) and version[0] is not None


def _head_form(head: str | Unconditional | None) -> bytes:
    return b"" if isinstance(head, Unconditional) else b"-" if head is None else id_form(head)


def _read_head(form: bytes) -> str | None:
    return None if form == b"-" else read_id(form)


def _cut(replies: list[Reply], flag: int) -> list[int]:
    """Return which replies have had something added to them, and take it away."""
    found = [n for n, reply in enumerate(replies) if type(reply) is int and reply >= flag]
    for n in found:
        replies[n] -= flag
    return found


def _counted_pairs(pairs: Collection[tuple[bytes, bytes]]) -> list[bytes]:
    return [b"%d" % len(pairs), *itertools.chain.from_iterable(pairs)]


def _counted(items: Sequence[bytes]) -> list[bytes]:
    return [b"%d" % len(items), *items]


def _newly_named(family: Family, change: Change) -> list[Named]:
    """Return the checkpoints, or runs of them, that a change brings."""
    new = []
    for row in change.rows:
        before = family.rows.get(row.key)
        if row.kind == Kind.LIVE and (
            before is None or before.kind != Kind.LIVE or before.run_id != row.run_id
        ):
            new.append(Named(row.key, row.run_id))
    return new


def _left(family: Family, change: Change) -> set[CheckpointKey]:
    """Return the checkpoints that are there, or have been written to, after a change."""
    there = (family.rows.keys() | family.writes.keys()) - set(change.deletes)
    return there | {row.key for row in change.rows} | {key for key, some in change.writes.items() if some}


def _no_longer_named(family: Family, change: Change) -> list[Named]:
    """Return the checkpoints, or runs of them, that a change has removed."""
    after: dict[CheckpointKey, CheckpointRow | None] = dict.fromkeys(change.deletes)
    after.update({row.key: row for row in change.rows})
    gone = []
    for key, row in after.items():
        before = family.rows.get(key)
        if before is not None and before.kind == Kind.LIVE:
            is_live = row is not None and row.kind == Kind.LIVE
            if not is_live or (row is not None and row.run_id != before.run_id):
                gone.append(Named(key, before.run_id))
    return gone
