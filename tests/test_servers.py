"""The servers that other tests rely on: that they start, keep data, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from helpers import thread
from langgraph.checkpoint.base import empty_checkpoint
from schemas import schemas_of
from servers import (
    PostgresServer,
    RedisCluster,
    RedisSentinels,
    RedisServer,
    alive,
    available,
    drop_schema,
    new_name,
    new_schema_url,
    processes,
    reason_not_to_run,
    reason_not_to_run_redis,
    redis_available,
    schema_of,
    wait_for,
)

from langgraph_harness_saver import HarnessCheckpointer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import PgBouncer, PostgresServers, Redis, RedisServers, Server

pytest_plugins = ["servers"]

needs_postgres = pytest.mark.skipif(reason_not_to_run() is not None, reason=str(reason_not_to_run()))
needs_redis = pytest.mark.skipif(reason_not_to_run_redis() is not None, reason=str(reason_not_to_run_redis()))

OTHER = """
import sys, time
from servers import PgBouncer, PostgresServer, RedisServer, reason_not_to_run, reason_not_to_run_redis, yard

pids = []
if not reason_not_to_run():
    server = PostgresServer().__enter__()
    pids.append(server.process.pid)
    if PgBouncer.available():
        pids.append(PgBouncer(server).__enter__().process.pid)
if not reason_not_to_run_redis():
    for _ in range(2):
        server = RedisServer().__enter__()
        pids.append(server.process.pid)
    server.pause()
print(yard().root, *pids, flush=True)
{then}
"""


@pytest.fixture(params=list(available()))
def server(request: pytest.FixtureRequest, postgres_servers: PostgresServers) -> Server:
    return postgres_servers[request.param]


def test_every_version_starts(server: PostgresServer) -> None:
    [(version,)] = server.execute("SHOW server_version")
    assert version.partition(".")[0] == server.version
    assert server.execute("SHOW fsync") == [("off",)]


def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(password="wrong"))
    with psycopg.connect(server.url(host=str(server.socket_dir), password="")) as connection:
        assert connection.info.host == str(server.socket_dir)


def test_a_role_may_do_nothing_much(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_role("poor man", "p@ss:w/rd")
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE SCHEMA mine")


@pytest.mark.parametrize("how", ["smart", "fast", "immediate", "kill"])
@pytest.mark.parametrize("version", list(available()))
def test_stopped_and_started_again_it_has_its_data(how: str, version: str) -> None:
    with PostgresServer(version) as server:
        url = server.url()
        server.execute("CREATE TABLE kept AS SELECT 7 AS n")
        server.kill() if how == "kill" else server.stop(how)
        assert not server.running
        with pytest.raises(psycopg.OperationalError, match="refused"):
            server.execute("SELECT 1")
        server.start()
        assert server.url() == url
        assert server.execute("SELECT n FROM kept") == [(7,)]


@needs_postgres
def test_settings_change_from_one_start_to_the_next() -> None:
    with PostgresServer(fsync=True, settings={"max_connections": 20}) as server:
        server.settings["max_connections"] = 30
        server.restart()
        assert server.execute("SHOW max_connections") == [("30",)]
        assert server.execute("SHOW fsync") == [("on",)]


@needs_postgres
def test_a_server_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(RuntimeError, match="no_such_setting"),
        PostgresServer(settings={"no_such_setting": 1}),
    ):
        pass


def test_a_locale_of_icu_sorts_otherwise() -> None:
    if "pgserver" in str(available().get("15", "pgserver")):
        pytest.skip("only Debian's Postgres is known to have ICU")
    order = "SELECT string_agg(n, '' ORDER BY n) FROM unnest(ARRAY['a', 'B']) n"
    with PostgresServer("15", locale="icu:en-US") as english, PostgresServer("15") as plain:
        assert english.execute(order) == [("aB",)]
        assert plain.execute(order) == [("Ba",)]


def test_schemas_keep_tests_apart(postgres_server: Server) -> None:
    one, two = new_schema_url(postgres_server), new_schema_url(postgres_server)
    with psycopg.connect(one) as connection:
        connection.execute("CREATE TABLE mine ()")
        assert len(postgres_server.connections(schema_of(one))) == 1
    with psycopg.connect(two) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT FROM mine")
    for url in (one, two):
        assert postgres_server.left_connections(schema_of(url)) == []
        drop_schema(postgres_server, url)
    assert postgres_server.execute("SELECT to_regnamespace(%s)", (schema_of(one),)) == [(None,)]


def fill(url: str) -> None:
    with HarnessCheckpointer.from_conn_string(url) as saver:
        saver.put(thread("t", ns=""), empty_checkpoint(), {}, {})


def test_a_schema_that_was_used_is_lent_again_without_a_row(
    postgres_server: Server, request: pytest.FixtureRequest
) -> None:
    schemas = schemas_of(postgres_server, request)
    url = schemas.take()
    fill(url)
    schemas.give_back(url)
    assert schemas.take() == url
    with HarnessCheckpointer.from_conn_string(url) as saver:
        assert list(saver.list(None)) == []
    schemas.give_back(url)


SPOILT = {
    "another column": "ALTER TABLE {}.harness_tag ADD mine int",
    "another index": "CREATE INDEX mine ON {}.harness_schema (major)",
    "no trigger": "ALTER TABLE {}.harness_checkpoint DISABLE TRIGGER ALL",
    "another function": "CREATE FUNCTION {}.harness_mine() RETURNS void LANGUAGE SQL AS 'SELECT'",
    "a newer version": "UPDATE {}.harness_schema SET minor = minor + 1",
    "a right": "GRANT SELECT ON {}.harness_tag TO PUBLIC",
    "no tables": "DROP SCHEMA {0} CASCADE; CREATE SCHEMA {0}",
    "no schema": "DROP SCHEMA {} CASCADE",
    "grown": "INSERT INTO {}.harness_thread SELECT gen_random_uuid(), n FROM generate_series(1, 50000) n",
}


@pytest.mark.parametrize("statement", SPOILT.values(), ids=SPOILT)
def test_a_schema_that_is_not_as_it_was_is_not_lent_again(
    statement: str, postgres_server: Server, request: pytest.FixtureRequest
) -> None:
    schemas = schemas_of(postgres_server, request)
    url = schemas.take()
    fill(url)
    postgres_server.execute(statement.format(schema_of(url)))
    schemas.give_back(url)
    assert url not in schemas.free
    assert postgres_server.execute("SELECT to_regnamespace(%s)", (schema_of(url),)) == [(None,)]


async def test_asyncpg_reads_the_same_url(postgres_server: Server) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    url = new_schema_url(postgres_server)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT current_schema()") == schema_of(url)
    await connection.close()
    drop_schema(postgres_server, url)


async def test_pgbouncer_lends_a_connection_for_one_transaction(
    postgres_server: Server, pgbouncer: PgBouncer
) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    database = postgres_server.create_database()
    async with asyncpg.create_pool(pgbouncer.url(database), min_size=6, statement_cache_size=0) as pool:
        await pool.execute("CREATE TABLE t (n int)")

        async def add(n: int) -> int:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("INSERT INTO t VALUES ($1)", n)
                await asyncio.sleep(0.01)
                return await connection.fetchval("SELECT pg_backend_pid()")

        backends = await asyncio.gather(*map(add, range(12)))
        assert await pool.fetchval("SELECT sum(n) FROM t") == sum(range(12))
    assert 1 <= len(set(backends)) <= 2
    pgbouncer.stop()
    postgres_server.drop_database(database)


def test_pgbouncer_starts_again_on_its_port(pgbouncer: PgBouncer) -> None:
    pgbouncer.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        pgbouncer.execute("SELECT 1")
    pgbouncer.start()
    assert pgbouncer.execute("SELECT 1") == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(pgbouncer.url(password="wrong"))


@needs_postgres
def test_closing_leaves_nothing_behind() -> None:
    with PostgresServer() as server:
        folder, main = server.folder, server.process.pid
        family = [main, *(pid for pid, (parent, _) in processes().items() if parent == main)]
        assert len(family) > 3
    assert not folder.exists()
    assert alive(family) == []


@pytest.mark.parametrize("how", ["return", "raise", "INT", "TERM", "KILL"])
def test_no_end_of_a_test_run_leaves_anything_behind(how: str) -> None:
    then = {"return": "pass", "raise": "raise SystemExit(1)"}.get(how, "time.sleep(60)")
    with other_run(then) as (other, root, pids):
        if how.isupper():
            other.send_signal(signal.Signals[f"SIG{how}"])
        # Its output ends with it: no server holds on to the pipe.
        other.communicate(timeout=30)
    wait_for(lambda: not root.exists(), 10)
    assert alive(pids) == []


@contextmanager
def other_run(then: str) -> Iterator[tuple[subprocess.Popen[str], Path, list[int]]]:
    """Run Python that starts servers, as another pytest would; give its directory and servers."""
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER.format(then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        root, *pids = other.stdout.readline().split()
        yield other, Path(root), [int(pid) for pid in pids]
    finally:
        other.kill()
        other.communicate()


# --- Redis ----------------------------------------------------------------------------------------------

every_version = pytest.mark.parametrize("version", list(redis_available()))


@pytest.fixture(params=list(redis_available()))
def some_redis(request: pytest.FixtureRequest, redis_servers: RedisServers) -> RedisServer:
    return redis_servers[request.param]


def test_every_version_of_redis_starts(some_redis: RedisServer) -> None:
    told = some_redis.info("server")
    fork, _, number = some_redis.version.rpartition("-")
    version = told["valkey_version" if fork else "redis_version"]
    assert version.startswith(f"{number}.")
    assert told["tcp_port"] == some_redis.port
    with redis.Redis(unix_socket_path=str(some_redis.socket)) as client:
        assert client.ping()


def test_prefixes_keep_tests_apart(some_redis: RedisServer) -> None:
    one, two = (f"[{new_name()}]*" for _ in range(2))
    with some_redis.client(client_name=one) as client:
        client.set(f"{one}a", "x" * 1000)
        client.set(f"{two}b", "x")
        assert len(some_redis.connections(one)) == 1
    assert some_redis.keys(one) == [f"{one}a".encode()]
    assert 1000 < some_redis.memory_of(one) < 2000
    some_redis.drop(one)
    assert some_redis.keys(one) == []
    assert some_redis.keys(two) == [f"{two}b".encode()]
    some_redis.drop(two)
    assert some_redis.left_connections(one) == []


@pytest.mark.parametrize("how", ["stop", "kill", "kill while paused"])
@every_version
def test_a_durable_redis_keeps_what_it_has_acknowledged(how: str, version: str) -> None:
    with RedisServer(version, durable=True, password='a "word" \\ or two') as server:
        url = server.url()
        server.execute("SET", "kept", 7)
        if "paused" in how:
            server.pause()
        server.stop() if how == "stop" else server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError, match="refused"):
            server.execute("PING")
        server.start()
        assert server.url() == url
        assert server.execute("GET", "kept") == b"7"


@every_version
def test_another_redis_keeps_nothing(version: str) -> None:
    with RedisServer(version) as server:
        server.execute("SET", "a", 7)
        server.restart()
        assert server.execute("GET", "a") is None


@every_version
def test_a_paused_redis_answers_later(version: str) -> None:
    with RedisServer(version) as server, server.client(socket_timeout=0.1) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert server.execute("PING")


@every_version
def test_a_user_of_redis_may_do_nothing_much(version: str) -> None:
    with RedisServer(version, settings={"databases": 3}) as server:
        url = server.create_user("poor", "p@ss:w/rd", "~mine*", "+get")
        server.restart()
        assert server.execute("CONFIG GET", "databases")["databases"] == "3"
        with redis.Redis.from_url(url) as client:
            assert client.get("mine") is None
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.set("mine", "x")


@every_version
def test_a_replica_has_what_its_master_has(version: str) -> None:
    with RedisServer(version, password="p") as master:
        master.execute("SET", "a", 7)
        with RedisServer(version, password="p", replica_of=master) as replica:
            replica.wait_until_synced()
            assert replica.execute("GET", "a") == b"7"
            assert master.execute("WAIT", 1, 10_000) == 1


@needs_redis
def test_a_cluster_moves_a_slot() -> None:
    with RedisCluster() as cluster:
        slot = cluster.slot_of("a")
        assert len(cluster.masters()) == 3
        with cluster.client() as client:
            client.set("a", "x")
        target = next(node for node in cluster.nodes if node is not cluster.master_of(slot))
        with cluster.moving(slot, target) as source, pytest.raises(redis.exceptions.AskError):
            source.execute("GET", "{a}b")
        with pytest.raises(redis.exceptions.MovedError):
            source.execute("GET", "a")
        assert cluster.master_of(slot) is target
        assert target.execute("GET", "a") == b"x"
        cluster.drop("a")
        assert cluster.keys("") == []
        folders = [node.folder for node in cluster.nodes]
    assert not any(folder.exists() for folder in folders)


@needs_redis
def test_a_cluster_has_replicas() -> None:
    with RedisCluster(replicas=1, password="hush") as cluster:
        with cluster.client() as client:
            client.set("a", "x")
        assert [server.info("replication")["connected_slaves"] for server in cluster.nodes] == [1, 1, 1]
        assert [server.role() for server in cluster.replicas] == ["slave"] * 3


@needs_redis
def test_sentinels_fail_over() -> None:
    with RedisSentinels(sentinels=3, password="p", sentinel_password="q") as group:
        group.master.execute("SET", "a", "x")
        before = group.fail_over()
        assert group.master is not before
        assert group.master.execute("GET", "a") == b"x"
        assert before.role() == "slave"


@needs_redis
def test_what_does_not_start_is_closed() -> None:
    cluster = RedisCluster()
    cluster.nodes[2].settings["no-such-setting"] = 1
    with pytest.raises(RuntimeError, match="no-such-setting"), cluster:
        pass
    assert not any(node.running or node.folder.exists() for node in cluster.nodes)


def test_a_shared_redis(redis_server: Redis) -> None:
    assert redis_server.execute("PING")
    assert redis_server.keys(new_name()) == []
