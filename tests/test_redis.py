"""What only a Redis server can show: lost connections, failover, full memory, slots that move, expiry."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import servers
from helpers import CLEAN, thread, url_of_prefix
from langgraph.checkpoint.serde.types import INTERRUPT
from servers import RedisCluster, RedisSentinels, RedisServer, new_name, wait_for
from test_processes import (
    Acks,
    arguments_of,
    check_line,
    check_shared,
    check_survivors,
    check_thread,
    extend_own_and_shared,
    forked,
    kill_amid,
    put_many,
    run_all,
    set_up_and_put,
    use_in_child,
    write_async,
    write_briefly,
    write_sync,
    writes_of,
)
from traffic import CALLS, GRACE, HANG, Traffic, succeed, timed

from langgraph_harness_saver import (
    HarnessCheckpointer,
    InvalidConfigError,
    StoreError,
    StoreUnavailableError,
)
from langgraph_harness_saver.errors import (
    BranchExistsError,
    HeadMovedError,
    NotReplicatedError,
    SchemaError,
    StoreFullError,
)
from langgraph_harness_saver.rows import (
    Base,
    Branch,
    CheckpointRow,
    Family,
    Graft,
    PutResult,
    Query,
    Tag,
)
from langgraph_harness_saver.stores import redis as redis_store
from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.redis import RedisStore
from langgraph_harness_saver.stores.redis_index import Named
from langgraph_harness_saver.stores.redis_rows import home_of, index_spot
from langgraph_harness_saver.stores.redis_wires import ClusterWire, ServerWire
from langgraph_harness_saver.testing.families import BRANCH
from langgraph_harness_saver.testing.tools import _ids, _key, _nothing, _part, _put, _row, _write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

# What the docs say that a user has to be allowed.
COMMANDS = {
    *("EVALSHA", "EVAL", "TIME", "EXISTS", "UNLINK", "PERSIST", "PEXPIRE", "PEXPIREAT", "PTTL"),
    *("HGET", "HMGET", "HSET", "HSETNX", "HDEL", "HKEYS", "HSTRLEN"),
    *("ZADD", "ZREM", "ZSCORE", "ZRANGE", "ZRANGEBYLEX", "ZREVRANGEBYLEX", "ZREMRANGEBYLEX"),
    *("ZRANGEBYSCORE", "INFO", "PING", "SELECT"),
}


def connect(url: str, **options: Any) -> HarnessCheckpointer:
    return HarnessCheckpointer.from_conn_string(url, **options)


@pytest.fixture(params=["redis", "redis-cluster"])
def server(request: pytest.FixtureRequest) -> servers.Redis:
    """A server, and a cluster, that tests share."""
    return servers.redis_of(request.param, request)


@pytest.fixture
def prefix(server: servers.Redis) -> Iterator[str]:
    """What keys of one test begin with; no connection may be left."""
    prefix = new_name()
    yield prefix
    left = server.left_connections(prefix)
    server.drop(prefix)
    assert left == []


@pytest.fixture
def url(server: servers.Redis, prefix: str) -> str:
    return url_of_prefix(server, prefix)


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url)
    await store.open()
    yield store
    await store.close()


def refused(url: str, error: type[Exception], match: str, **options: Any) -> str:
    """Give what first use of a saver is refused with."""
    saver = connect(url, **options)
    try:
        with pytest.raises(error, match=match) as caught:
            saver.setup()
    finally:
        saver.close()
    return str(caught.value)


def kill_connections(server: servers.Redis, name: str) -> int:
    killed = 0
    for master in server.masters():
        with master.client() as client:
            for entry in master.connections(name):
                killed += client.client_kill_filter(_id=entry["id"])
    return killed


# --- lost connections ----------------------------------------------------------------------------------


def test_nothing_is_lost_when_every_connection_is_killed_again_and_again(
    server: servers.Redis, prefix: str, url: str
) -> None:
    with connect(url, pool_size=4) as saver:

        def disturb() -> None:
            killed = 0
            for _ in range(12):
                killed += kill_connections(server, prefix)
                time.sleep(0.1)
            assert killed > 12

        Traffic(saver).run(disturb)


def test_nothing_is_lost_when_the_server_is_killed(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as saver:

        def disturb() -> None:
            own_redis.kill()
            time.sleep(0.5)
            own_redis.start()

        Traffic(saver).run(disturb)


def test_nothing_is_lost_when_a_server_of_a_cluster_is_killed() -> None:
    servers.skip_without_redis()
    with RedisCluster(durable=True) as cluster, connect(cluster.url()) as saver:

        def disturb() -> None:
            cluster.nodes[1].kill()
            time.sleep(0.5)
            cluster.nodes[1].start()

        Traffic(saver).run(disturb)


def test_calls_wait_while_the_server_loads_its_data() -> None:
    servers.skip_without_redis()
    settings = {"key-load-delay": 300, "loading-process-events-interval-bytes": 1024}
    with RedisServer(durable=True, settings=settings) as server, connect(server.url()) as saver:
        put_many(saver, "before", 0, 5)
        with server.client() as client, client.pipeline(transaction=False) as pipe:
            for number in range(5000):
                pipe.set(f"other {number}", "x")
            pipe.execute()

        def disturb() -> None:
            server.kill()
            server.start()

        Traffic(saver).run(disturb)
        check_thread(saver, "before", 5)
        assert int(server.info("errorstats")["errorstat_LOADING"]["count"]) > 0


def test_forgotten_scripts_are_sent_again(server: servers.Redis, url: str) -> None:
    with connect(url) as saver:

        def disturb() -> None:
            for _ in range(20):
                for master in server.masters():
                    master.execute("SCRIPT FLUSH")
                time.sleep(0.02)

        Traffic(saver).run(disturb)


def test_calls_wait_while_the_server_is_a_replica(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as saver:

        def disturb() -> None:
            # Of a master that isn't there, so that it keeps its data.
            own_redis.execute("REPLICAOF", "127.0.0.1", servers.free_port())
            time.sleep(0.5)
            own_redis.execute("REPLICAOF", "NO", "ONE")

        Traffic(saver).run(disturb)
        assert int(own_redis.info("errorstats")["errorstat_READONLY"]["count"]) > 0


def test_a_server_that_stays_away_is_a_typed_error_soon(own_redis: RedisServer) -> None:
    savers = {name: connect(own_redis.url(), retry_seconds=1) for name in CALLS}
    for saver in savers.values():
        saver.put(*arguments_of("t", 0))
    own_redis.kill()
    results = succeed([lambda n=name: timed(lambda: CALLS[n](savers[n])) for name in CALLS])
    for saver in savers.values():
        saver.close()
    for name, (seconds, result) in zip(CALLS, results, strict=True):
        assert isinstance(result, StoreUnavailableError), name
        assert str(own_redis.port) in str(result)
        assert seconds < 1 + GRACE, name


def test_no_call_hangs_on_a_server_that_hangs(own_redis: RedisServer) -> None:
    savers = {name: connect(own_redis.url(), retry_seconds=0.5) for name in (*CALLS, "fresh")}
    for name in CALLS:
        savers[name].put(*arguments_of("t", 0))
    calls = {**CALLS, "fresh": CALLS["get_tuple"]}
    own_redis.pause()
    try:
        works = [lambda n=name: timed(lambda: calls[n](savers[n])) for name in calls]
        results = succeed(works, 0.5 + 4 * GRACE)
    finally:
        own_redis.resume()
    for saver in savers.values():
        saver.close()
    assert [repr(result) for _, result in results if not isinstance(result, StoreUnavailableError)] == []


def test_idle_connections_that_were_killed_are_found_before_use(
    server: servers.Redis, prefix: str, url: str
) -> None:
    with connect(url) as saver:
        for number in range(10):
            saver.put(*arguments_of("t", number))
            kill_connections(server, prefix)
        check_thread(saver, "t", 10)


def test_cancelled_calls_keep_no_connection_from_others(url: str) -> None:
    async def cancelled_after(work: Any, seconds: float) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def work() -> None:
        async with connect(url, pool_size=1, retry_seconds=0) as saver:
            await saver.aput(*arguments_of("t", 0))
            for step in range(40):
                await cancelled_after(saver.aget_tuple(thread("t")), step * 0.0001)
            for step in range(40):
                await cancelled_after(saver.aprune(["t"]), step * 0.0003)
            assert await saver.aget_tuple(thread("t")) is not None

    asyncio.run(asyncio.wait_for(work(), HANG))


def test_two_connections_serve_every_thread_and_loop(server: servers.Redis, prefix: str, url: str) -> None:
    async def use(saver: HarnessCheckpointer, name: str) -> None:
        for number in range(20):
            await saver.aput(*arguments_of(name, number))

    with connect(url, pool_size=2) as saver:
        works: list[Callable[[], Any]] = [
            lambda n=n: asyncio.run(use(saver, f"loop {n}")) if n % 2 else put_many(saver, f"sync {n}", 0, 20)
            for n in range(8)
        ]
        seen: list[int] = []
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                for master in server.masters():
                    seen.append(len(master.connections(prefix)))

        def work() -> None:
            try:
                succeed(works)
            finally:
                done.set()

        succeed([look, work])
        # Another may be greeted while one that was closed is still being taken leave of.
        assert sorted(seen)[len(seen) // 2] <= 2
        assert max(seen) <= 4
        for n in range(8):
            check_thread(saver, f"loop {n}" if n % 2 else f"sync {n}", 20)


# --- what a server refuses -----------------------------------------------------------------------------


@pytest.fixture
def tight(own_redis: RedisServer) -> RedisServer:
    """A server with a store's data, and no memory left."""
    with connect(own_redis.url()) as saver:
        put_many(saver, "t", 0, 3)
        saver.put_writes(thread("t", "00000001", ns=""), [(INTERRUPT, 0)], "task")
    own_redis.execute("CONFIG", "SET", "maxmemory", "1mb")
    return own_redis


def snapshot(server: RedisServer) -> dict[bytes, bytes]:
    with server.client() as client:
        return {key: client.dump(key) for key in server.keys("")}


@pytest.mark.parametrize("name", ["put", "put_writes", "special", "copy_thread"])
def test_full_memory_is_a_typed_error_and_changes_nothing(tight: RedisServer, name: str) -> None:
    calls: dict[str, Callable[[HarnessCheckpointer], Any]] = {
        "put": lambda saver: saver.put(*arguments_of("t", 3)),
        "put_writes": lambda saver: saver.put_writes(thread("t", "00000000", ns=""), writes_of(1), "task"),
        "special": lambda saver: saver.put_writes(thread("t", "00000001", ns=""), [(INTERRUPT, 1)], "task"),
        "copy_thread": lambda saver: saver.copy_thread("t", "u"),
    }
    before = snapshot(tight)
    with connect(tight.url()) as saver:
        with pytest.raises(StoreFullError, match="maxmemory"):
            calls[name](saver)
        assert snapshot(tight) == before
        check_thread(saver, "t", 3)
        tight.execute("CONFIG", "SET", "maxmemory", "0")
        calls[name](saver)


def test_full_memory_can_be_freed(tight: RedisServer) -> None:
    with connect(tight.url()) as saver:
        saver.prune(["t"])
        assert saver.delete_thread("t") == 1
    assert {key.rpartition(b":")[2] for key in tight.keys("")} <= {b"version", b"m"}


@pytest.mark.parametrize(("policy", "warns"), [("noeviction", 0), ("allkeys-lru", 2), ("volatile-ttl", 1)])
def test_eviction_is_warned_of(
    own_redis: RedisServer, policy: str, warns: int, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.execute("CONFIG", "SET", "maxmemory-policy", policy)
    with caplog.at_level(logging.WARNING):
        for options in ({}, {"ttl_seconds": 1000}):
            with connect(own_redis.url(), **options) as saver:
                saver.setup()
    assert caplog.text.count("maxmemory-policy " + policy) == warns


def test_a_user_with_few_rights(own_redis: RedisServer) -> None:
    rules = ["resetkeys", "~mine:*", "-@all", *(f"+{name}" for name in COMMANDS)]
    url = own_redis.create_user("few", "secret", *rules)
    with connect(url, key_prefix="mine", ttl_seconds=1000, refresh_on_read=True) as saver:
        put_many(saver, "t", 0, 5)
        for call in CALLS.values():
            call(saver)
        saver._bridge.run(saver.backend.sweep())
    assert "secret" not in refused(url, StoreError, "key_prefix", key_prefix="other")


def test_only_core_commands_are_used(own_redis: RedisServer) -> None:
    own_redis.execute("CONFIG", "RESETSTAT")
    with connect(own_redis.url(), ttl_seconds=1000, refresh_on_read=True) as saver:
        put_many(saver, "t", 0, 5)
        for call in CALLS.values():
            call(saver)
        saver._bridge.run(saver.backend.sweep())
    used = {name.removeprefix("cmdstat_").upper() for name in own_redis.info("commandstats")}
    ours = {name for name in used if "|" not in name}
    # The last three are the driver's, or this test's.
    assert ours <= COMMANDS | {"CLIENT", "CONFIG", "HELLO"}


def test_newer_minor_works_and_newer_major_is_refused(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as saver:
        put_many(saver, "t", 0, 2)
    own_redis.execute("HSET", "harness:{:}:version", "minor", 99)
    with connect(own_redis.url()) as saver:
        check_thread(saver, "t", 2)
    own_redis.execute("HSET", "harness:{:}:version", "major", 2)
    refused(own_redis.url(), SchemaError, "upgrade")


def test_keys_of_somebody_else(own_redis: RedisServer) -> None:
    own_redis.execute("SET", "harness:{:}:version", "mine")
    refused(own_redis.url(), SchemaError, "key_prefix")


def test_a_server_of_a_cluster_is_told_from_one_by_itself(redis_cluster: RedisCluster) -> None:
    refused(redis_cluster.nodes[0].url(), InvalidConfigError, r"redis\+cluster://")


def test_what_is_too_large_is_refused_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LARGEST_BYTES", 10_000)

    async def work() -> None:
        async with RedisStoreOn(url) as store:
            rows = [_row(str(number), body=b"x" * (20_000 if number == 3 else 10)) for number in range(6)]
            results = await asyncio.gather(*map(partial(_put, store), rows), return_exceptions=True)
            assert isinstance(results.pop(3), StoreError)
            assert set(results) == {PutResult.STORED}
            assert await _ids(store) == ["5", "4", "2", "1", "0"]

    asyncio.run(work())


class RedisStoreOn:
    def __init__(self, url: str, **options: Any) -> None:
        self.store = RedisStore(url, **options)

    async def __aenter__(self) -> RedisStore:
        await self.store.open()
        return self.store

    async def __aexit__(self, *exc: object) -> None:
        await self.store.close()


# --- replicas ------------------------------------------------------------------------------------------


def test_writes_wait_for_replicas() -> None:
    servers.skip_without_redis()
    with RedisServer() as master, RedisServer(replica_of=master) as replica:
        replica.wait_until_synced()
        url = master.url()
        patient, hasty = (connect(url, wait_replicas=1, wait_seconds=seconds) for seconds in (HANG, 0.05))
        with patient, hasty, connect(url, wait_replicas=2, wait_seconds=0.05) as greedy:
            put_many(patient, "t", 0, 5)
            assert replica.execute("ZCARD", "harness:{t}:c") == 5
            replica.pause()
            with pytest.raises(NotReplicatedError, match="0 of 1"):
                hasty.put(*arguments_of("t", 5))
            check_thread(hasty, "t", 6)
            # Nothing is new on another connection, as after the first one was lost.
            again = pytest.raises(NotReplicatedError, match="0 of 1")
            with connect(url, wait_replicas=1, wait_seconds=0.05) as other, again:
                other.put(*arguments_of("t", 5))
            replica.resume()
            patient.put(*arguments_of("t", 5))
            assert replica.execute("ZCARD", "harness:{t}:c") == 6
            with pytest.raises(NotReplicatedError, match="of 2"):
                greedy.put(*arguments_of("t", 6))


def test_what_replicas_have_survives_a_failover(redis_sentinels: RedisSentinels) -> None:
    acks: list[Any] = []
    with connect(redis_sentinels.url(), wait_replicas=1, wait_seconds=0.2) as saver:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                with suppress(NotReplicatedError):
                    saver.put(*arguments_of("t", number))
                    acks.append(["put", "t", number])
                    number += 1

        def fail_over() -> None:
            try:
                wait_for(lambda: len(acks) > 20, HANG)
                redis_sentinels.fail_over()
                before = len(acks)
                wait_for(lambda: len(acks) > before + 20, HANG)
            finally:
                stop.set()

        succeed([write, fail_over], 3 * HANG)
        check_survivors(list(saver.list(None)), acks)


# --- clusters ------------------------------------------------------------------------------------------


def test_nothing_is_lost_while_slots_move(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    with connect(cluster.url()) as saver:
        slots = [home_of("harness", name).spot.slot for name in ("thread 0", "thread 1", "task 0")]
        slots.append(index_spot("harness", home_of("harness", "thread 0").shard).slot)

        def disturb() -> None:
            for slot in slots:
                target = next(node for node in cluster.nodes if node is not cluster.master_of(slot))
                with cluster.moving(slot, target):
                    # New keys are asked for elsewhere, and those of a thread are in two places for a while.
                    time.sleep(0.1)
                    cluster.move_keys(slot, cluster.master_of(slot), target, 1)
                    time.sleep(0.1)

        Traffic(saver).run(disturb)


def test_a_new_thread_in_a_moving_slot(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    with connect(cluster.url()) as saver:
        put_many(saver, "other", 0, 2)
        slot = home_of("harness", "t").spot.slot
        target = next(node for node in cluster.nodes if node is not cluster.master_of(slot))
        writing = threading.Thread(target=put_many, args=(saver, "t", 0, 3))
        with cluster.moving(slot, target):
            writing.start()
            time.sleep(0.3)
        writing.join(HANG)
        check_thread(saver, "t", 3)


# --- expiry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [False, True])
def test_expiry_leaves_no_key(server: servers.Redis, prefix: str, url: str, refresh: bool) -> None:
    """Without anybody who sweeps."""

    async def work() -> None:
        async with RedisStoreOn(url, ttl_seconds=0.4, refresh_on_read=refresh) as store:
            for number in range(30):
                row = _row("1", thread_id=str(number), ns="x" * (number % 2), run_id="run")
                await store.put(row._replace(parts=(_part().part_id,)), [_part()])
                await store.put_writes(row.key, [_write()])
                await store.get(*row.key[:2], None, _nothing)
            await store.put_writes(_key("early"), [_write()])

    asyncio.run(work())
    assert len(server.keys(prefix)) > 30
    wait_for(lambda: len(server.keys(prefix)) == 1, HANG)


def test_what_does_not_expire_stays_in_the_indexes(server: servers.Redis, prefix: str, url: str) -> None:
    async def work() -> None:
        async with RedisStoreOn(url, ttl_seconds=0.2) as short, RedisStoreOn(url) as lasting:
            for number in range(60):
                store = lasting if number % 2 else short
                await store.put(_row("1", thread_id=str(number), run_id="run"))
            await short.put(_row("2", thread_id="1", run_id="other"))
            await lasting.put(_row("1", thread_id="renewed"))
            await asyncio.sleep(0.6)
            kept = {str(number) for number in range(3, 60, 2)} | {"renewed"}
            found = await lasting.scan(Query(), 1000, _nothing)
            assert {entry.row.key.thread_id for entry in found.entries} == kept
            assert set(await lasting.threads_of_runs(["run"])) == kept - {"renewed"}
            await short.sweep()

    asyncio.run(work())


async def test_reading_renews_where_that_is_wanted(server: servers.Redis, url: str) -> None:
    async with RedisStoreOn(url, ttl_seconds=10, refresh_on_read=True) as store:
        now = [1000.0]
        store.clock = lambda: now[0]
        await store.put(_row("1"))
        for checkpoint_id in (None, "1", None):
            now[0] += 6
            assert (await store.get("t", "", checkpoint_id, _nothing)).entries
            assert await store.sweep() == 0
        now[0] += 11
        assert not (await store.get("t", "", None, _nothing)).entries
        assert await store.sweep() == 1


def test_all_keys_of_a_thread_go_at_once(server: servers.Redis, prefix: str, url: str) -> None:
    async def work() -> None:
        async with RedisStoreOn(url, ttl_seconds=1000) as store, RedisStoreOn(url) as other:
            await store.put(_row("1", ns="x", parts=(_part().part_id,)), [_part()])
            # These come later, from one who knows no TTL.
            await other.put_writes(_key("1", ns="x"), [_write()])
            await other.put(_row("2", ns="x"))

    asyncio.run(work())
    kinds = (b":m", b":c", b":s", b":w", b":p")
    keys = [key for key in server.keys(prefix) if key.endswith(kinds)]
    assert len(keys) == len(kinds)
    left = [server.execute("PTTL", key) for key in keys]
    assert max(left) - min(left) < 1000
    assert 1000_000 < min(left) <= 1060_000


# --- indexes -------------------------------------------------------------------------------------------


async def raw_entries(store: RedisStore, kind: int = 0) -> int:
    commands = []
    for shard in range(16):
        spot = index_spot(store.prefix, shard)
        commands.append(redis_store.command(spot, b"ZCARD", spot.keys[kind]))
    return sum(await store._ask(commands))


async def enter(store: RedisStore, *named: Named) -> None:
    """Do what a writer does that is killed before it has stored what it has entered."""
    await store._ask(list(store._index.entries(named, (), b"", b"").values()))


async def test_stale_entries_are_removed_on_sight(store: RedisStore) -> None:
    rows = [_row(f"{number:02}", thread_id=f"t {number % 7}", run_id="run") for number in range(40)]
    for row in rows:
        await store.put(row)
    await enter(
        store, *(Named(_key(f"{number:02}x", thread_id=f"t {number % 9}"), "run") for number in range(40))
    )
    assert await raw_entries(store) == 80
    assert await _ids(store, size=7) == [f"{number:02}" for number in range(40)][::-1]
    assert await raw_entries(store) == 40
    assert sorted(await store.threads_of_runs(["run"])) == [f"t {number}" for number in range(7)]
    # Those of threads that were found aren't looked for any further.
    assert await raw_entries(store, 1) < 80


async def test_sweeps_walk_through_the_indexes(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "WALK_ENTRIES", 3)
    for number in range(20):
        await store.put(_row("1", thread_id=str(number), run_id="run"))
    await enter(store, *(Named(_key("2", thread_id=str(number)), "other") for number in range(30)))
    for _ in range(60):
        await store.sweep()
    assert (await raw_entries(store, 0), await raw_entries(store, 1)) == (20, 20)


async def test_an_entry_that_is_written_again_is_not_removed(store: RedisStore) -> None:
    """Whoever is about to remove it has marked it before."""
    named = Named(_key("1"), "run")
    await enter(store, named)
    spot = index_spot(store.prefix, home_of(store.prefix, "t").shard)

    async def ask(commands: Any) -> Any:
        if commands[0].script is SCRIPTS["index_remove"]:
            await store.put(_row("1", run_id="run"))
        return await store._ask(commands)

    cleaning = RedisStore(store._wires._target, key_prefix=store.prefix)
    await cleaning.open()
    cleaning._index.ask = ask
    await cleaning._index.clean([named])
    await cleaning.close()
    assert await _ids(store) == ["1"]
    assert list(await store.threads_of_runs(["run"])) == ["t"]
    assert await store._ask([redis_store.command(spot, b"EXISTS", spot.keys[3])]) == [0]


async def test_a_fence_has_a_writer_enter_its_row_again(store: RedisStore) -> None:
    """It has written the entry before somebody marked it, and the row after it was looked for."""
    named = Named(_key("1"), "run")

    async def ask(commands: Any) -> Any:
        if commands[0].script is SCRIPTS["index_remove"]:
            await late()
        return await store._ask(commands)

    row = _row("1", run_id="run")
    sent: list[int] = []

    async def late() -> None:
        entries = store._entries

        def without_the_first(jobs: Any) -> Any:
            sent.append(1)
            return {} if len(sent) == 1 else entries(jobs)

        store._entries = without_the_first  # type: ignore[method-assign]
        assert await store.put(row) == PutResult.STORED

    await enter(store, named)
    cleaning = RedisStore(store._wires._target, key_prefix=store.prefix)
    await cleaning.open()
    cleaning._index.ask = ask
    await cleaning._index.clean([named])
    await cleaning.close()
    assert len(sent) == 2
    assert await _ids(store) == ["1"]
    assert list(await store.threads_of_runs(["run"])) == ["t"]


async def test_refused_puts_leave_no_entries(store: RedisStore) -> None:
    await store.put(_row("1"))
    assert await store.put(_row("2"), base=Base(_key("0"), 1)) == PutResult.BASE_GONE
    with pytest.raises(HeadMovedError):
        await store.put(_row("3"), head="0")
    assert await raw_entries(store) == 1


def test_whoever_puts_while_others_delete_is_found(url: str) -> None:
    """No entry is removed whose row is there, whatever the order of things."""

    async def put(store: RedisStore, rng: random.Random) -> None:
        for _ in range(150):
            await store.put(_row(str(rng.randrange(6)), thread_id=str(rng.randrange(3)), run_id="run"))

    async def delete(store: RedisStore, rng: random.Random) -> None:
        for _ in range(100):
            await store.delete_thread(str(rng.randrange(3)))
            await asyncio.sleep(0)

    async def work() -> None:
        async with RedisStoreOn(url) as first, RedisStoreOn(url) as second:
            for seed in range(4):
                rngs = [random.Random(f"{seed} {number}") for number in range(4)]
                await asyncio.gather(
                    *(
                        put(first, rngs[0]),
                        put(second, rngs[1]),
                        delete(first, rngs[2]),
                        delete(second, rngs[3]),
                    )
                )
                rows = [key for thread_id in "012" for key in (await first.load(thread_id)).rows]
                found = await first.scan(Query(), 1000, _nothing)
                assert sorted(entry.row.key for entry in found.entries) == sorted(rows)
                assert await raw_entries(first) == len(rows)

    asyncio.run(work())


async def test_a_page_of_all_threads_takes_a_few_round_trips(store: RedisStore) -> None:
    for number in range(200):
        await store.put(_row(f"{number:03}", thread_id=str(number)))
    asked = 0

    async def ask(commands: Any) -> Any:
        nonlocal asked
        asked += 1
        return await store._ask(commands)

    store._scanner._index.ask = ask
    page = await store.scan(Query(), 64, _nothing)
    assert [entry.row.key.checkpoint_id for entry in page.entries] == [f"{n:03}" for n in range(136, 200)][
        ::-1
    ]
    assert asked <= 8


# --- revisions -----------------------------------------------------------------------------------------


def test_a_revision_comes_through_among_many_writers(url: str) -> None:
    """After some attempts it keeps them from writing for a moment."""
    stop = threading.Event()

    def write(name: str, saver: HarnessCheckpointer) -> None:
        number = 0
        while not stop.is_set():
            saver.put_writes(thread("t", "00000009", ns=""), [(INTERRUPT, number)], name)
            number += 1

    with connect(url) as saver, connect(url) as other:
        put_many(saver, "t", 0, 10)

        def revise() -> None:
            try:
                for _ in range(5):
                    put_many(other, "t", 0, 10)
                    other.prune(["t"])
            finally:
                stop.set()

        succeed([revise, *(lambda n=n: write(f"task {n}", saver) for n in range(4))])
        assert [item.metadata["step"] for item in saver.list(thread("t"))] == [9]


async def test_a_revision_that_fails_leaves_no_lock(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "REVISIONS_UNLOCKED", 0)
    await store.put(_row("1"))
    spot = home_of(store.prefix, "t").spot
    locks: list[Any] = []

    def plan(family: Any) -> Any:
        raise LookupError

    async def ask(commands: Any) -> Any:
        replies = await asked(commands)
        if commands[0].script is SCRIPTS["lock"]:
            locks.extend(replies)
        return replies

    asked, store._ask = store._ask, ask  # type: ignore[method-assign]
    with pytest.raises(LookupError):
        await store.revise("t", plan)
    assert locks == [1]
    assert await asked([redis_store.command(spot, b"HEXISTS", spot.keys[0], b"l")]) == [0]


async def test_entries_are_there_before_what_they_name(
    server: servers.Redis, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {script: name for name, script in SCRIPTS.items()}
    sent: list[list[str]] = []
    kind = ClusterWire if isinstance(server, RedisCluster) else ServerWire
    exchange = kind.exchange

    async def exchange_and_tell(self: Any, commands: Any, **options: Any) -> Any:
        sent.append([names[each.script] for each in commands])
        return await exchange(self, commands, **options)

    await store.put(_row("0"))
    monkeypatch.setattr(kind, "exchange", exchange_and_tell)
    await store.put(_row("1"))
    # On one server they arrive in this order; several have to be asked one after the other.
    together, apart = [["index_add", "put"]], [["index_add"], ["put"]]
    assert sent == (apart if isinstance(server, RedisCluster) else together)
    sent.clear()
    await store.get("t", "", None, _nothing)
    assert sent == [["read"]]


async def test_an_applied_revision_is_not_applied_again(store: RedisStore) -> None:
    """The answer was lost, and so it is sent once more."""
    await store.put(_row("1", body=b"0"))
    submit, sent = store._submit, []

    async def twice(job: Any) -> Any:
        if job.command.script is SCRIPTS["apply"]:
            sent.append(await submit(job))
        return await submit(job)

    store._submit = twice  # type: ignore[method-assign]

    def plan(family: Any) -> Any:
        row = family.rows[_key("1")]
        return redis_store.Change(rows=[row._replace(body=b"%d" % (int(row.body) + 1), rev=row.rev + 1)])

    await store.revise("t", plan)
    assert sent == [1]
    assert (await store.get("t", "", None, _nothing)).entries[0].row.body == b"1"


async def test_large_families_are_read_and_copied_in_pieces(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "LOAD_ROWS", 7)
    rows = [_row(f"{number:03}", ns="x" * (number % 3)) for number in range(60)]
    for row in rows:
        await store.put(row, [_part(row.body)])
        await store.put_writes(row.key, [_write()])
    family = await store.load("t")
    assert family.rows == {row.key: row for row in rows}
    assert family.writes == {row.key: [_write()] for row in rows}
    assert dict(family.parts) == {_part(row.body).part_id: row.body for row in rows}


# --- families ------------------------------------------------------------------------------------------

OTHER = "1f0a3c5e-7b9d-6e2f-8a4b-000000000002"


def graft_of(base: CheckpointRow, thread_id: str = BRANCH, name: str = "name") -> Graft:
    row = _row("1", thread_id=thread_id, body=b"alias", run_id="run")
    branch = Branch(thread_id, "t", "t", base.key.checkpoint_id, name, 1.0)
    return Graft([row], [Base(base.key, base.rev)], branch=branch)


async def branched(store: RedisStore) -> Graft:
    base = _row("1")
    await store.put(base)
    graft = graft_of(base)
    assert await store.graft(graft) == PutResult.STORED
    return graft


async def pointer(store: RedisStore, thread_id: str = BRANCH) -> Any:
    spot = home_of(store.prefix, thread_id).spot
    [found] = await store._ask([redis_store.command(spot, b"HMGET", spot.keys[0], b"p", b"w")])
    return found


async def point(store: RedisStore, graft: Graft, age: int = 0) -> None:
    """Do what a writer does that is killed before it has stored the branch to which it has pointed."""
    assert graft.branch is not None
    await store._point(graft.branch, [Named(row.key, row.run_id) for row in graft.rows], b"stamp")
    written = int((await pointer(store))[1])
    spot = home_of(store.prefix, BRANCH).spot
    await store._ask([redis_store.command(spot, b"HSET", spot.keys[0], b"w", b"%d" % (written - age))])


async def test_a_branch_takes_one_more_round_trip_once(
    server: servers.Redis, store: RedisStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await branched(store)
    names = {script: name for name, script in SCRIPTS.items()}
    sent: list[str] = []
    kind = ClusterWire if isinstance(server, RedisCluster) else ServerWire
    exchange = kind.exchange

    async def exchange_and_tell(self: Any, commands: Any, **options: Any) -> Any:
        sent.extend(names[each.script] for each in commands)
        return await exchange(self, commands, **options)

    async with RedisStoreOn(url) as other:
        monkeypatch.setattr(kind, "exchange", exchange_and_tell)
        for expected in (["read", "read"], ["read"]):
            assert (await other.get(BRANCH, "", None, _nothing)).entries
            assert sent == expected
            sent.clear()
        await other.put(_row("2", thread_id=BRANCH))
        assert sent == ["index_add", "put"]


async def test_what_is_remembered_of_a_branch_need_not_be_true(store: RedisStore, url: str) -> None:
    """Others have deleted it, and its id is in use for another thread."""
    graft = await branched(store)
    async with RedisStoreOn(url) as other:
        change = redis_store.Change(
            deletes=[graft.rows[0].key], drops=frozenset((BRANCH,)), branches={BRANCH: None}
        )
        await other.revise("t", lambda _: change)
        assert await pointer(store) == [None, None]
        assert await store.load(BRANCH) == Family({}, {}, {})
        store._homes.learn(BRANCH, "t")
        assert not (await store.get(BRANCH, "", None, _nothing)).entries
        await other.put(_row("5", thread_id=BRANCH))
    store._homes.learn(BRANCH, "t")
    assert await _ids(store) == ["5", "1"]
    for read in (store.get(BRANCH, "", None, _nothing), store.scan(Query(BRANCH), 9, _nothing)):
        store._homes.learn(BRANCH, "t")
        assert [entry.row.key for entry in (await read).entries] == [_key("5", thread_id=BRANCH)]
    store._homes.learn(BRANCH, "t")
    await store.put(_row("6", thread_id=BRANCH))
    assert set((await store.load(BRANCH)).rows) == {_key("5", thread_id=BRANCH), _key("6", thread_id=BRANCH)}
    store._homes.learn(BRANCH, "t")
    assert await store.delete_thread(BRANCH) == 2


async def sweep_all(store: RedisStore) -> None:
    # One index at a time.
    for _ in range(32):
        await store.sweep()


async def test_a_pointer_that_is_left_over_is_removed_on_sight(store: RedisStore) -> None:
    base = _row("1")
    await store.put(base)
    for see in (
        lambda: _ids(store),
        lambda: store.put(_row("1", thread_id=BRANCH)),
        lambda: store.get(BRANCH, "", None, _nothing),
        lambda: store.load(BRANCH),
        lambda: store.branches(BRANCH),
        lambda: sweep_all(store),
    ):
        await point(store, graft_of(base), age=11_000)
        await see()
        assert await pointer(store) == [None, None]
        await store.delete_thread(BRANCH)
        assert await _ids(store) == ["1"]
        assert list(await store.threads_of_runs(["run"])) == []
    assert (await raw_entries(store), await raw_entries(store, 1)) == (1, 0)


async def test_a_pointer_whose_branch_is_under_way_stays(store: RedisStore) -> None:
    base = _row("1")
    await store.put(base)
    graft = graft_of(base)
    await point(store, graft)
    assert await _ids(store) == ["1"]
    assert not (await store.get(BRANCH, "", None, _nothing)).entries
    assert await store.load(BRANCH) == Family({}, {}, {})
    assert list(await store.branches(BRANCH)) == []
    assert await raw_entries(store) == 2
    # Whoever writes to it waits until there is something to write to.
    writing = asyncio.ensure_future(store.put(_row("2", thread_id=BRANCH)))
    await asyncio.sleep(0.1)
    assert not writing.done()
    assert await store.graft(graft) == PutResult.STORED
    assert await writing == PutResult.STORED
    assert await _ids(store) == ["2", "1", "1"]


async def test_refused_grafts_leave_no_pointer(store: RedisStore) -> None:
    await branched(store)
    stranger = _row("1", thread_id="stranger")
    await store.put(stranger)
    assert await store.graft(graft_of(_row("1", rev=99), OTHER, "another")) == PutResult.BASE_GONE
    for refused, error in (
        (graft_of(_row("1"), OTHER), BranchExistsError),
        (replace(graft_of(_row("1"), OTHER, "another"), heads={("t", ""): "0"}), HeadMovedError),
        (graft_of(_row("1"), "stranger", "another"), BranchExistsError),
        (graft_of(_row("1", body=b"x"), BRANCH, "another"), BranchExistsError),
    ):
        row = refused.rows[0]._replace(rev=77)
        with pytest.raises(error):
            await store.graft(replace(refused, rows=[row]))
    assert await pointer(store, OTHER) == await pointer(store, "stranger") == [None, None]
    assert (await pointer(store))[0] is not None
    assert await raw_entries(store) == 3
    assert len(await _ids(store)) == 3


async def test_a_branch_of_an_expired_branch_counts_its_siblings(store: RedisStore) -> None:
    """What it begins with is of a thread that hasn't expired."""
    now = [1000.0]
    store.clock, store.ttl_seconds = lambda: now[0], 10
    await branched(store)
    now[0] += 8
    await store.put(_row("2"))
    now[0] += 5
    branch = Branch(OTHER, "t", BRANCH, "1", "on", 2.0)
    graft = replace(graft_of(_row("1"), OTHER), branch=branch)
    assert await store.graft(graft) == PutResult.STORED
    spot = home_of(store.prefix, "t").spot
    assert await store._ask([redis_store.command(spot, b"HGET", spot.keys[0], b"n")]) == [b"2"]
    assert list(await store.entangled()) == [BRANCH]
    with pytest.raises(BranchExistsError):
        await store.graft(graft_of(_row("1"), "third"))


async def test_a_slow_graft_points_again(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has found its pointer stale, and may have begun a thread of that id."""
    monkeypatch.setattr(redis_store, "FENCE_SECONDS", 0)
    base = _row("1")
    await store.put(base)
    grafting = store._graft
    late: list[CheckpointRow] = []

    async def slowly(*arguments: Any) -> Any:
        await store._homes.unpoint(BRANCH, "t")
        for row in late:
            await store.put(row)
        return await grafting(*arguments)

    store._graft = slowly  # type: ignore[method-assign]
    assert await store.graft(graft_of(base)) == PutResult.STORED
    assert (await pointer(store))[0] is not None
    await store.revise(
        BRANCH,
        lambda f: redis_store.Change(deletes=[*f.rows], drops=frozenset((BRANCH,)), branches={BRANCH: None}),
    )
    await store.put(base)
    late.append(_row("9", thread_id=BRANCH))
    with pytest.raises(BranchExistsError):
        await store.graft(graft_of(base))
    assert list(await store.branches("t")) == []
    assert await _ids(store) == ["9", "1"]


def test_expiry_of_a_family_leaves_no_key(server: servers.Redis, prefix: str, url: str) -> None:
    """Without anybody who sweeps."""

    async def work() -> None:
        async with RedisStoreOn(url, ttl_seconds=0.4) as store:
            await branched(store)
            for number in range(2, 12):
                await store.put(_row(str(number), thread_id=BRANCH, parts=(_part().part_id,)), [_part()])
                await store.tag(Tag("x", _key("1", thread_id=BRANCH)))
                await asyncio.sleep(0.1)
            assert await _ids(store, Query("t")) == []
            async with RedisStoreOn(url) as other:
                assert len(await _ids(other, Query(BRANCH))) == 11

    asyncio.run(work())
    assert len(server.keys(prefix)) > 5
    wait_for(lambda: len(server.keys(prefix)) == 1, HANG)


async def times(store: RedisStore) -> tuple[int, int]:
    """Give how long a family and the pointer to it have to live."""
    spots = [home_of(store.prefix, name).spot for name in ("t", BRANCH)]
    family, own = await store._ask([redis_store.command(spot, b"PTTL", spot.keys[0]) for spot in spots])
    return family, own


async def test_a_family_lives_as_long_as_its_longest_living_thread(url: str) -> None:
    async with (
        RedisStoreOn(url, ttl_seconds=1000) as long,
        RedisStoreOn(url, ttl_seconds=10) as short,
        RedisStoreOn(url) as lasting,
    ):
        await branched(long)
        await short.put(_row("2"))
        family, own = await times(short)
        assert 1_050_000 < family <= 1_060_000
        assert 2_110_000 < own <= 2_120_000
        # Nearly all of the pointer's time has gone.
        spot = home_of(long.prefix, "t").spot
        await long._ask([redis_store.command(spot, b"HSET", spot.keys[0], b"P", b"1")])
        await long._homes.unpoint(BRANCH, "t")
        await long.put(_row("3"))
        family, own = await times(short)
        assert 2_110_000 < own <= 2_120_000
        [lease] = await long._ask([redis_store.command(spot, b"HGET", spot.keys[0], b"P")])
        assert int(lease) > 1000
        # One that never expires.
        row = _row("1")
        await lasting.graft(graft_of(row, OTHER, "lasting"))
        assert await times(short) == (-1, -1)
        await short.put(_row("4"))
        assert await times(short) == (-1, -1)


# --- other people's clients ----------------------------------------------------------------------------


async def use(saver: HarnessCheckpointer, name: str) -> None:
    for number in range(5):
        await saver.aput(*arguments_of(name, number))
    check_line([item async for item in saver.alist(thread(name))])


def test_given_clients_stay_their_owners(server: servers.Redis, prefix: str) -> None:
    kinds = (redis.asyncio.RedisCluster, redis.RedisCluster)
    address = server.address
    if not isinstance(server, RedisCluster):
        kinds = (redis.asyncio.Redis, redis.Redis)
    else:
        address = server.nodes[0].address

    async def work() -> None:
        client = kinds[0].from_url(address, client_name=prefix)
        async with HarnessCheckpointer(client, config=prefix_config(prefix)) as saver:
            await asyncio.gather(*(use(saver, f"a {number}") for number in range(4)))
            # On another loop it makes connections of its own.
            await asyncio.to_thread(check_thread, saver, "a 1", 5)
        assert await client.ping()
        await client.aclose()

    asyncio.run(work())
    client = kinds[1].from_url(address, client_name=prefix)
    with HarnessCheckpointer(client, config=prefix_config(prefix)) as saver:
        check_thread(saver, "a 2", 5)
        asyncio.run(use(saver, "b"))
    assert client.ping()
    client.close()
    # That of a cluster closes some of its connections only when it goes, maybe after their sockets.
    del client, saver
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def prefix_config(prefix: str) -> Any:
    from langgraph_harness_saver import CheckpointerConfig

    return CheckpointerConfig(key_prefix=prefix)


# --- processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_sync, write_async])
def test_killed_writer_loses_nothing_acknowledged(
    own_redis: RedisServer, write: Callable[..., None], tmp_path: Any
) -> None:
    acks = Acks(tmp_path / "acks")
    for seed in range(3):
        kill_amid(CLEAN.Process(target=write, args=(own_redis.url(), acks)), acks, seed)
        with connect(own_redis.url()) as saver:
            check_survivors(list(saver.list(None)), acks.read())


def test_killed_server_loses_nothing_acknowledged(own_redis: RedisServer, tmp_path: Any) -> None:
    acks = Acks(tmp_path / "acks")
    for seed in range(3):
        writer = CLEAN.Process(target=write_sync, args=(own_redis.url(), acks))
        before = len(acks.read())
        writer.start()
        acks.wait(writer, before + 2)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        own_redis.kill()
        writer.kill()
        writer.join(HANG)
        assert writer.exitcode == -signal.SIGKILL
        own_redis.start()
        with connect(own_redis.url()) as saver:
            check_survivors(list(saver.list(None)), acks.read())


def test_eight_processes_set_up_an_empty_database(url: str) -> None:
    run_all(set_up_and_put, [(url, worker) for worker in range(8)])
    with connect(url) as saver:
        assert len(list(saver.list(None))) == 8


def test_eight_processes_write_their_own_thread_and_a_shared_one(url: str) -> None:
    run_all(extend_own_and_shared, [(url, worker) for worker in range(8)])
    with connect(url) as saver:
        check_shared(list(saver.list(thread("shared"))))


def test_forked_child_reads_and_writes_and_so_does_its_parent(url: str) -> None:
    with connect(url) as saver:
        put_many(saver, "before", 0, 5)
        wait = forked(lambda: use_in_child(saver))
        put_many(saver, "parent", 0, 20)
        wait()
        put_many(saver, "parent", 20, 25)
        check_thread(saver, "parent", 25)
        check_thread(saver, "before", 8)
        check_thread(saver, "child", 6)


def test_fork_while_other_threads_write(url: str) -> None:
    stop = threading.Event()

    def write(name: str, saver: HarnessCheckpointer) -> None:
        number = 0
        while not stop.is_set():
            put_many(saver, name, number, number + 1)
            number += 1

    with connect(url, pool_size=3) as saver:
        put_many(saver, "before", 0, 5)

        def fork() -> None:
            try:
                for number in range(5):
                    forked(lambda n=number: write_briefly(saver, f"child {n}"))()
            finally:
                stop.set()

        succeed([fork, *(lambda n=n: write(f"busy {n}", saver) for n in range(3))])
        for number in range(5):
            check_thread(saver, f"child {number}", 2)


def test_stamps_of_a_forked_child_are_its_own(url: str) -> None:
    store = RedisStore(url)
    mine = store._new_stamp()
    reader, writer = os.pipe()
    forked(lambda: os.write(writer, store._new_stamp()))()
    its = os.read(reader, 100)
    assert its[:9] != mine[:9] == store._new_stamp()[:9]
    os.close(reader)
    os.close(writer)
