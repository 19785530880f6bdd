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
from servers import (
    PostgresServer,
    alive,
    available,
    drop_schema,
    new_schema_url,
    processes,
    reason_not_to_run,
    schema_of,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import PgBouncer, PostgresServers, Server

pytestmark = pytest.mark.skipif(reason_not_to_run() is not None, reason=str(reason_not_to_run()))

pytest_plugins = ["servers"]

OTHER = """
import sys, time
from servers import PgBouncer, PostgresServer, yard

with PostgresServer() as server:
    pids = [server.process.pid]
    if PgBouncer.available():
        pids.append(PgBouncer(server).__enter__().process.pid)
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


def test_settings_change_from_one_start_to_the_next() -> None:
    with PostgresServer(fsync=True, settings={"max_connections": 20}) as server:
        server.settings["max_connections"] = 30
        server.restart()
        assert server.execute("SHOW max_connections") == [("30",)]
        assert server.execute("SHOW fsync") == [("on",)]


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
