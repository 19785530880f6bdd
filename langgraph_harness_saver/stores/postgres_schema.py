"""The tables of a Postgres store: making them, checking them, printing what makes them."""

from __future__ import annotations

from collections.abc import Mapping

from asyncpg import exceptions as pg

from langgraph_harness_saver.errors import InvalidConfigError, SchemaError, StoreError
from langgraph_harness_saver.stores.postgres_pool import Statements
from langgraph_harness_saver.stores.sql import MAJOR, in_schema, migration, migrations, queries

_NAME_BYTES = 63
# Read here, as reading files would hold up an event loop.
_QUERIES = queries("postgres")
_MIGRATIONS = migrations("postgres")
_TABLES = tuple(
    f"harness_{name}" for name in ("thread", "checkpoint", "write", "part", "branch", "tag", "event")
)
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('langgraph_harness_saver', 0))"
_LACKING = """
SELECT format('%s on %s', p, t) FROM unnest($2::text[]) AS t, unnest($3::text[]) AS p
WHERE NOT has_table_privilege(format('%s.%s', $1::text, t), p)
UNION ALL
SELECT format('EXECUTE on %s', f.oid::regprocedure) FROM pg_proc f
WHERE f.pronamespace = $1::text::regnamespace AND f.proname LIKE 'harness\\_%'
  AND NOT has_function_privilege(f.oid, 'EXECUTE')
"""


class Schema:
    """Where the tables live: in the schema of that name, or in the first of the connection's search_path."""

    def __init__(self, name: str | None, *, create: bool) -> None:
        if name is not None and (not name or "\x00" in name or len(name.encode()) > _NAME_BYTES):
            raise InvalidConfigError(
                f"{name!r} can't be the name of a schema: it takes 1 to {_NAME_BYTES} bytes"
            )
        self._name = name
        self._create = create
        self.sql: Mapping[str, str] = {}

    async def prepare(self, statements: Statements) -> None:
        """Make what is missing, or raise `SchemaError`; safe from any number of processes at once."""
        async with statements.transaction():
            name, done = await self._look(statements)
        while missing := [number for number, _ in _MIGRATIONS if number not in done]:
            if not self._create:
                raise SchemaError(
                    f"the tables of langgraph-harness-saver are missing in schema {name or self._name!r} "
                    f"(migrations {missing}), and create_schema is False: have its owner run what `python -m "
                    f"langgraph_harness_saver ddl postgres --schema NAME --after {missing[0] - 1}` prints"
                )
            name, done = await self._migrate(statements, missing[0])
        assert name is not None
        async with statements.transaction():
            await self._check_privileges(statements, name)
        self.sql = {key: in_schema(text, name) for key, text in _QUERIES.items()}

    async def _look(self, statements: Statements) -> tuple[str | None, set[int]]:
        """Return the schema, None if it isn't there, and the migrations that it has."""
        name = await statements.first("SELECT coalesce($1::text, current_schema())", self._name)
        if name is None:
            raise SchemaError(
                "the search_path names no schema that exists; create one, or pass schema='name'"
            )
        if not await statements.first("SELECT true FROM pg_namespace WHERE nspname = $1", name):
            return None, set()
        table = in_schema("{schema}.harness_schema", name)
        if await statements.first("SELECT to_regclass($1)::text", table) is None:
            return name, set()
        rows = await statements.fetch(f"SELECT migration, major FROM {table}")  # noqa: S608
        if not rows:
            raise SchemaError(f"{table} is there, but empty: restore it from a backup, or use another schema")
        newest = max(row["major"] for row in rows)
        if newest > MAJOR:
            raise SchemaError(
                f"{table} has version {newest}, and this release knows {MAJOR}: upgrade "
                "langgraph-harness-saver, or use another schema"
            )
        return name, {row["migration"] for row in rows}

    async def _migrate(self, statements: Statements, number: int) -> tuple[str | None, set[int]]:
        """Apply one migration, unless another process has done so in the meantime."""
        try:
            async with statements.transaction():
                await statements.fetch(_LOCK)
                name, done = await self._look(statements)
                if number not in done:
                    if name is None:
                        await statements.script(in_schema("CREATE SCHEMA {schema}", str(self._name)))
                    await statements.script(migration(number, name or str(self._name)))
                return await self._look(statements)
        except pg.InsufficientPrivilegeError as error:
            raise StoreError(
                f"this role may not create the tables: {error}. Have an owner run what `python -m "
                "langgraph_harness_saver ddl postgres` prints, and pass create_schema=False"
            ) from error

    async def _check_privileges(self, statements: Statements, name: str) -> None:
        quoted = in_schema("{schema}", name)
        if not await statements.first("SELECT has_schema_privilege($1, 'USAGE')", name):
            raise StoreError(f"this role lacks USAGE on schema {name}: GRANT USAGE ON SCHEMA {quoted} TO it")
        rights = ["SELECT", "INSERT", "UPDATE", "DELETE"]
        lacking = [row[0] for row in await statements.fetch(_LACKING, quoted, _TABLES, rights)]
        if lacking:
            raise StoreError(
                f"this role lacks {', '.join(lacking)} in schema {name}: GRANT SELECT, INSERT, UPDATE, "
                f"DELETE ON ALL TABLES IN SCHEMA {quoted} TO it, and EXECUTE ON ALL FUNCTIONS"
            )
