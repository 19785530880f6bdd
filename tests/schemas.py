"""Schemas of Postgres with the library's tables, lent to one test after another.

Making the tables takes a server longer than most tests do. So what a test gives back is emptied and lent
again, unless it isn't as the library makes it any more, or has grown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import servers
from psycopg import sql
from servers import Server

from langgraph_harness_saver.stores.sql import ddl

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of tables, indexes, columns, triggers and functions, with who may use them; and the bytes that they take.
SHAPE = """
WITH n AS (SELECT oid, nspname, nspacl FROM pg_namespace WHERE nspname = %s),
c AS (SELECT pg_class.*, pg_class.oid AS id FROM pg_class, n WHERE relnamespace = n.oid),
lines(line) AS (
  SELECT nspacl::text FROM n
  UNION ALL SELECT format('%%s %%s %%s %%s', relname, relkind, relacl, reloptions) FROM c
  UNION ALL SELECT format('%%s.%%s %%s %%s', relname, attname, atttypid, attnotnull)
    FROM pg_attribute JOIN c ON id = attrelid
  UNION ALL SELECT format('%%s %%s %%s', relname, tgname, tgenabled) FROM pg_trigger JOIN c ON id = tgrelid
  UNION ALL SELECT format('%%s %%s %%s %%s', p.oid::regprocedure, proacl, proconfig, prosrc) FROM pg_proc p, n
    WHERE pronamespace = n.oid
)
SELECT md5(string_agg(replace(line, nspname, ''), E'\n' ORDER BY replace(line, nspname, '') COLLATE "C")),
  (SELECT coalesce(sum(pg_total_relation_size(id)), 0) FROM c WHERE relkind = 'r')
FROM lines, n
"""
VERSIONS = "SELECT array_agg((migration, major, minor)::text ORDER BY migration)::text FROM {}"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'harness_schema'"
MOST_BYTES = 2 << 20


class Asked(Server):
    """A server that stays up, asked on one connection: making one takes longer than what is asked."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.address)
        self.connection = server.connect()

    def execute(self, statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


class Schemas:
    """Those of one server."""

    def __init__(self, server: Server) -> None:
        self.server = Asked(server)
        self.free: list[str] = []
        url = servers.new_schema_url(self.server)
        self.server.execute(ddl(servers.schema_of(url)))
        self.shape, _ = self.look(servers.schema_of(url))
        self.free.append(url)

    def take(self) -> str:
        """Give the URL of a schema without a row; its tables may be there or not."""
        return self.free.pop() if self.free else servers.new_schema_url(self.server)

    def give_back(self, url: str) -> None:
        """Lend it to others, or drop it."""
        name = servers.schema_of(url)
        shape, size = self.look(name)
        if shape == self.shape and size < MOST_BYTES:
            self.empty(name)
            self.free.append(url)
        else:
            servers.drop_schema(self.server, url)

    def left_connections(self, url: str) -> list[Any]:
        return self.server.left_connections(servers.schema_of(url))

    def look(self, name: str) -> tuple[str, int]:
        """Return what tells a schema from others, but for rows and names, and how many bytes it takes."""
        ((shape, size),) = self.server.execute(SHAPE, [name])
        versions = sql.Identifier(name, "harness_schema")
        if self.server.execute("SELECT to_regclass(%s)", [versions.as_string()]) != [(None,)]:
            ((done,),) = self.server.execute(sql.SQL(VERSIONS).format(versions))
            shape += done
        return shape, size

    def empty(self, name: str) -> None:
        tables = [sql.Identifier(name, table) for (table,) in self.server.execute(TABLES, [name])]
        # As drop_schema does: a connection that was left within a transaction fails the test.
        lock = sql.SQL("SET LOCAL lock_timeout = '10s'; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
        statements = [lock.format(sql.SQL(", ").join(tables))]
        statements += [sql.SQL("DELETE FROM {}").format(table) for table in tables]
        with self.server.connection.transaction():
            self.server.execute(sql.SQL("; ").join(statements))

    def close(self) -> None:
        for url in self.free:
            servers.drop_schema(self.server, url)
        self.server.connection.close()


@pytest.fixture(scope="session")
def all_schemas(postgres_servers: servers.PostgresServers) -> Iterator[dict[Server, Schemas]]:
    """Hold those of each server; gone before the servers are."""
    found: dict[Server, Schemas] = {}
    yield found
    for schemas in found.values():
        schemas.close()


def schemas_of(server: Server, request: pytest.FixtureRequest) -> Schemas:
    found = request.getfixturevalue("all_schemas")
    if server not in found:
        found[server] = Schemas(server)
    return found[server]
