"""`StoreContract` on every store, and what SQLite adds to it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import servers
from helpers import CLEAN, REDIS_KINDS, url_of_prefix
from schemas import schemas_of

from langgraph_harness_saver.bridge import Bridge, step
from langgraph_harness_saver.errors import SchemaError, StoreError, StoreNotOpenError
from langgraph_harness_saver.ids import id_key
from langgraph_harness_saver.rows import Base, Change, EventRow, Family, PutResult, Query
from langgraph_harness_saver.stores.memory import MemoryStore
from langgraph_harness_saver.stores.postgres import PostgresStore
from langgraph_harness_saver.stores.redis import RedisStore
from langgraph_harness_saver.stores.sql import migrations
from langgraph_harness_saver.stores.sqlite import SQLiteStore
from langgraph_harness_saver.testing import (
    EventContract,
    FamilyContract,
    KeepingContract,
    LookContract,
    StoreContract,
)
from langgraph_harness_saver.testing.tools import _ids, _key, _nothing, _part, _row, _write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langgraph_harness_saver.stores.base import Store

TABLES = tuple(
    f"harness_{name}" for name in ("thread", "checkpoint", "write", "part", "branch", "tag", "event")
)


def count_memory(store: Any) -> int:
    threads = store._threads.values()
    rows = sum(len(line.rows) + len(line.ids) + len(line.live) for t in threads for line in t.lines.values())
    writes = sum(len(writes) for thread in threads for writes in thread.writes.values())
    held = sum(len(thread.lines) + len(thread.writes) + len(thread.tags) for thread in threads)
    held += sum(1 + len(events) for thread in threads for events in thread.events.values())
    parts = sum(len(parts) for parts in store._parts.values())
    return len(threads) + rows + writes + held + parts + len(store._branches)


def count_tables(connection: sqlite3.Connection) -> int:
    return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES)


def count_file(store: Any) -> int:
    with closing(sqlite3.connect(store.path)) as connection:
        return count_tables(connection)


def count_private(store: Any) -> int:
    return count_tables(store._file.writer)


def count_server(server: servers.Server, url: str) -> int:
    schema = servers.schema_of(url)
    found = [server.execute(f"SELECT count(*) FROM {schema}.{table}") for table in TABLES]
    return sum(count for [[count]] in found)


def count_redis(server: servers.Redis, prefix: str) -> int:
    """Count members and fields; not the version, nor fences, which go by themselves after some seconds."""

    def count(pipe: Any, key: bytes) -> None:
        if key.endswith(b":version"):
            pipe.echo(0)
            pipe.echo(0)
        elif key.endswith((b":m", b":p", b":marks")):
            pipe.hlen(key)
            pipe.hexists(key, "f")
        else:
            pipe.zcard(key)
            pipe.zscore(key, "f")

    counts = server.on_each_key(prefix, count)
    return sum(map(int, counts[::2])) - sum(int(fence or 0) for fence in counts[1::2])


MAKE = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(str(folder / "store.db"), synchronous="normal"),
    "sqlite-private": lambda folder: SQLiteStore(None),
}
COUNT = {"memory": count_memory, "sqlite": count_file, "sqlite-private": count_private}


@pytest.fixture(params=list(MAKE))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


class TestPostgres(StoreContract, FamilyContract, LookContract, EventContract, KeepingContract):
    @pytest.fixture(params=["postgres", "postgres-oldest"])
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        self.server = servers.server_of(request.param, request)
        schemas = schemas_of(self.server, request)
        self.url = schemas.take()
        store = PostgresStore(self.url)
        bridge = Bridge(store.io)
        bridge.run(store.open())
        yield store
        bridge.run(store.close())
        bridge.close()
        assert schemas.left_connections(self.url) == []
        schemas.give_back(self.url)

    def raw_rows(self, store: Store) -> int:
        return count_server(self.server, self.url)

    def reopen(self, store: Store) -> Store:
        return PostgresStore(self.url)


class TestRedis(StoreContract, FamilyContract, LookContract, EventContract, KeepingContract):
    @pytest.fixture(params=REDIS_KINDS)
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        self.server = servers.redis_of(request.param, request)
        self.prefix = servers.new_name()
        self.url = url_of_prefix(self.server, self.prefix)
        store = RedisStore(self.url)
        bridge = Bridge(store.io)
        bridge.run(store.open())
        yield store
        bridge.run(store.close())
        bridge.close()
        assert self.server.left_connections(self.prefix) == []
        self.server.drop(self.prefix)

    def raw_rows(self, store: Store) -> int:
        return count_redis(self.server, self.prefix)

    def reopen(self, store: Store) -> Store:
        return RedisStore(self.url)


class TestStores(StoreContract, FamilyContract, LookContract, EventContract, KeepingContract):
    @pytest.fixture
    def store(self, kind: str, tmp_path: Path) -> Iterator[Store]:
        self.kind = kind
        store = MAKE[kind](tmp_path)
        step(store.open())
        yield store
        step(store.close())

    def raw_rows(self, store: Store) -> int:
        return COUNT[self.kind](store)

    def reopen(self, store: Store) -> Store:
        if self.kind == "sqlite":
            assert isinstance(store, SQLiteStore)
            return SQLiteStore(store.path, synchronous="normal")
        return store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def store(path: str) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    step(store.open())
    yield store
    step(store.close())


def test_what_is_stored_outlives_the_store(path):
    store = SQLiteStore(path)
    step(store.put(_row("1", parts=(_part().part_id,)), [_part()]))
    step(store.put_writes(_key("1"), [_write()]))
    step(store.close())
    again = SQLiteStore(path)
    page = step(again.get("t", "", None, _nothing))
    assert page.entries[0] == (_row("1", parts=(_part().part_id,)), (_write(),))
    assert page.parts == {_part().part_id: _part().data}
    step(again.close())


@pytest.mark.parametrize("make", MAKE.values(), ids=list(MAKE))
def test_a_closed_store_says_so(make, tmp_path):
    store = make(tmp_path)
    step(store.open())
    step(store.put(_row("1")))
    step(store.close())
    with pytest.raises(StoreNotOpenError, match="new"):
        step(store.open())


def test_private_databases_are_apart():
    stores = [SQLiteStore(None), SQLiteStore(None)]
    for number, store in enumerate(stores):
        step(store.put(_row(str(number))))
    for number, store in enumerate(stores):
        assert step(_ids(store)) == [str(number)]
        step(store.close())


def test_a_private_database_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore(None)
    step(store.put(_row("1")))
    step(store.close())
    assert list(tmp_path.iterdir()) == []


def open_many_times(path: str, start: Any, number: int) -> None:
    start.wait()
    store = SQLiteStore(path)
    step(store.open())
    step(store.put(_row(str(number))))
    step(store.close())


def test_eight_processes_open_one_new_file_at_once(path):
    start = CLEAN.Barrier(8)
    processes = [CLEAN.Process(target=open_many_times, args=(path, start, number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    store = SQLiteStore(path)
    assert step(_ids(store)) == [str(number) for number in reversed(range(8))]
    step(store.close())


def test_a_file_that_is_no_database(path):
    Path(path).write_bytes(b"This is a letter, and no database at all. " * 50)
    store = SQLiteStore(path)
    with pytest.raises(SchemaError, match="not an SQLite database"):
        step(store.open())
    step(store.close())
    assert Path(path).read_bytes().startswith(b"This is a letter")


def test_a_newer_schema_is_left_alone(path):
    store = SQLiteStore(path)
    step(store.put(_row("1")))
    step(store.close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE harness_schema SET major = major + 1")
        connection.commit()
    newer = SQLiteStore(path)
    with pytest.raises(SchemaError, match=r"Upgrade"):
        step(newer.put(_row("2")))
    step(newer.close())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM harness_checkpoint").fetchone() == (1,)


def test_a_file_of_an_older_version_is_brought_up_to_date(path):
    with closing(sqlite3.connect(path)) as connection:
        for statement in filter(str.strip, migrations("sqlite")[0][1].split(";\n")):
            connection.execute(statement)
        connection.execute("INSERT INTO harness_thread VALUES (1, x'74', NULL, NULL)")
        values = (id_key("1"), 7, b"")
        connection.execute(
            "INSERT INTO harness_checkpoint VALUES (1, 1, x'', ?1, 0, NULL, NULL, ?2, NULL, NULL, ?3, ?3)",
            values,
        )
        connection.commit()
    first, second = SQLiteStore(path), SQLiteStore(path)
    step(first.add_events([EventRow("t", "1", b"e" * 16, b"", b"")]))
    assert [event.checkpoint_id for event in step(second.events("t"))] == ["1"]
    assert step(_ids(second)) == ["1"]
    assert step(second.delete_thread("t")) == 1
    assert count_file(first) == 0
    for store in (first, second):
        step(store.close())
    with closing(sqlite3.connect(path)) as connection:
        last = len(migrations("sqlite")) - 1
        assert connection.execute("SELECT major, minor FROM harness_schema").fetchall() == [(1, last)]


def test_a_step_takes_few_statements():
    """Each gives the interpreter away and has to get it back, so they are what a step costs on SQLite."""
    store = SQLiteStore(None)
    step(store.put(_row("1")))
    said: list[str] = []
    store._file.writer.set_trace_callback(said.append)
    base = Base(_key("1"), _row("1").rev)
    assert step(store.put(_row("2"), base=base)) == PutResult.STORED
    step(store.put_writes(_key("2"), [_write("task")]))
    step(store.put_writes(_key("2"), [_write("other task")]))
    assert [text.split()[0] for text in said] == [
        *("BEGIN", "SELECT", "INSERT", "COMMIT"),
        *("BEGIN", "INSERT", "COMMIT"),
        *("BEGIN", "INSERT", "COMMIT"),
    ]
    assert step(store.put(_row("3"), base=base._replace(rev=base.rev ^ 1))) == PutResult.BASE_GONE
    step(store.close())


def test_writes_to_a_thread_that_another_let_expire_start_anew(path):
    first, second = SQLiteStore(path, ttl_seconds=10), SQLiteStore(path)
    step(first.put(_row("1")))
    step(second.put_writes(_key("1"), [_write("task")]))
    assert step(_ids(second)) == ["1"]
    second.clock = lambda: time.time() + 20
    step(second.put_writes(_key("1"), [_write("other task")]))
    assert step(_ids(second)) == []
    written = step(second.writes([_key("1")])).rows[_key("1")]
    assert [write.task_id for write in written] == ["other task"]
    for store in (first, second):
        step(store.close())


def test_a_newer_minor_schema_is_used(path):
    store = SQLiteStore(path)
    step(store.put(_row("1")))
    step(store.close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE harness_schema SET minor = minor + 1")
        connection.commit()
    newer = SQLiteStore(path)
    assert step(_ids(newer)) == ["1"]
    step(newer.close())


def test_a_directory_that_is_not_there(tmp_path):
    store = SQLiteStore(str(tmp_path / "missing" / "store.db"))
    with pytest.raises(StoreError, match=r"missing does not exist"):
        step(store.open())
    step(store.close())


def test_a_file_that_another_process_keeps_locked(path):
    store = SQLiteStore(path, busy_timeout_seconds=0.05)
    step(store.put(_row("1")))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process"):
            step(store.put(_row("2")))
        assert step(_ids(store)) == ["1"]
        other.execute("ROLLBACK")
    step(store.put(_row("2")))
    assert step(_ids(store)) == ["2", "1"]
    step(store.close())


def test_deleting_gives_the_space_back(store):
    data = bytes(range(256)) * 4096
    for number in range(10):
        row = _row(str(number), body=data, parts=(_part(data).part_id,))
        step(store.put(row, [_part(data)]))
    step(store.put(_row("1", thread_id="small")))
    full = total_size(store.path)
    step(store.revise("t", half))
    assert total_size(store.path) < full * 0.6
    step(store.delete_thread("t"))
    assert total_size(store.path) < len(data) / 10


def half(family: Family) -> Change:
    return Change(deletes=sorted(family.rows)[:5])


def total_size(path: str) -> int:
    file = Path(path)
    return sum(part.stat().st_size for part in file.parent.glob(file.name + "*") if part.suffix != ".db-shm")


def test_a_reader_does_not_wait_for_a_writer(store):
    step(store.put(_row("1")))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert step(_ids(store)) == ["1"]
        other.execute("ROLLBACK")


def test_one_scan_is_one_moment(store, path):
    """A deletion between a page's rows and their writes must not show."""
    for number in range(5):
        step(store.put(_row(str(number))))
        step(store.put_writes(_key(str(number)), [_write()]))
    # It waits this long for our reader to finish before it truncates the write-ahead log.
    other = SQLiteStore(path, busy_timeout_seconds=0.05)
    asked = []

    def known(key: Any, rev: int) -> bool:
        if not asked:
            step(other.delete_thread("t"))
        asked.append(key)
        return False

    page = step(store.scan(Query("t"), 10, known))
    assert [len(entry.writes) for entry in page.entries] == [1] * 5
    assert step(_ids(store)) == []
    step(other.close())


def test_more_bytes_than_a_page_can_hold_come_back_whole(store):
    body = bytes(range(256)) * (1 << 14)
    step(store.put(_row("1", body=body)))
    assert step(store.get("t", "", None, _nothing)).entries[0].row.body == body
