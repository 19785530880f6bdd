"""Where the benchmarks store things: folders, servers that they start and stop, or servers of yours."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import servers

TABLES = ("checkpoint", "write", "part")


class Places:
    """Gives a fresh database for each measurement, and takes it away at the end."""

    def __init__(self, folder: Path, stack: ExitStack, url: str | None = None) -> None:
        """Keep files in `folder`; `url` is of a server of the user's, Postgres or Redis."""
        self._folder = folder
        self._stack = stack
        self._running: dict[str, Any] = {}
        if url is not None and url.startswith("redis"):
            self._running["redis"] = servers.Redis(url)
        elif url is not None:
            self._running["postgres"] = servers.Server(url)

    def server(self, store: str) -> Any:
        """Return the server of a store, which waits for the disk as one in earnest does."""
        if store not in self._running:
            start: dict[str, Callable[[], Any]] = {
                "postgres": lambda: servers.PostgresServer(fsync=True),
                "redis": servers.RedisServer,
            }
            self._running[store] = self._stack.enter_context(start[store]())
        return self._running[store]

    def new(self, store: str) -> str:
        """Return the URL of an empty database."""
        if store == "memory":
            return "memory://"
        if store == "sqlite":
            folder = self._folder / str(uuid.uuid4())
            folder.mkdir()
            return f"sqlite:///{folder}/chat.db"
        server = self.server(store)
        if store == "postgres":
            url = servers.new_schema_url(server)
            self._stack.callback(servers.drop_schema, server, url)
            return url
        prefix = servers.new_name()
        self._stack.callback(server.drop, prefix)
        return str(server.url(key_prefix=prefix))

    def bytes_of(self, url: str) -> int:
        """Count what a database that is closed takes, everything."""
        if url.startswith("sqlite"):
            return sum(file.stat().st_size for file in Path(url[10:]).parent.iterdir())
        if url.startswith("redis"):
            return int(self.server("redis").memory_of(prefix_of(url)))
        return int(self.server("postgres").size_of(url))

    def rows_of(self, url: str) -> list[int]:
        """Return the sizes of the rows in a database of ours, which is closed."""
        if url.startswith("sqlite"):
            return _sqlite_rows(url[10:])
        if url.startswith("redis"):
            server, prefix = self.server("redis"), prefix_of(url)
            keys = [key for key in server.keys(prefix) if key.endswith((b":c", b":w"))]
            with server.client() as client:
                return [len(member) for key in keys for member in client.zrange(key, 0, -1)]
        server, schema = self.server("postgres"), servers.schema_of(url)
        sizes = [
            server.execute(f"SELECT pg_column_size(t.*) FROM {schema}.harness_{table} t") for table in TABLES
        ]
        return [row[0] for rows in sizes for row in rows]


def prefix_of(url: str) -> str:
    """Return what the names of all keys begin with."""
    return parse_qs(urlsplit(url).query)["key_prefix"][0]


def _sqlite_rows(path: str) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        sizes: list[int] = []
        for table in TABLES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info(harness_{table})")]
            size = " + ".join(f"ifnull(length(CAST({column} AS BLOB)), 0)" for column in columns)
            sizes += [row[0] for row in connection.execute(f"SELECT {size} FROM harness_{table}")]
    return sizes
