"""What goes wrong says so, says what to do, and leaves nothing half done."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import CLEAN, Door, thread
from langgraph.checkpoint.base import empty_checkpoint

from langgraph_harness_saver import (
    CorruptCheckpointError,
    HarnessCheckpointer,
    HarnessError,
    InvalidConfigError,
    SchemaError,
    SerializationError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHILD_SECONDS = 60


def arguments(thread_id: str, number: int, **values: Any) -> tuple[Any, ...]:
    values = values or {"log": [f"line {line} of the log" for line in range(number + 20)]}
    checkpoint = {
        **empty_checkpoint(),
        "id": f"{number:04d}",
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, f"{number}"),
    }
    parent = f"{number - 1:04d}" if number else None
    return thread(thread_id, parent, ns=""), checkpoint, {"step": number}, {}


def put(saver: Any, door: Door, thread_id: str, number: int, **values: Any) -> Any:
    return door.call(saver, "put", *arguments(thread_id, number, **values))


def steps(saver: Any, door: Door, config: Any = None) -> list[int]:
    return [item.metadata["step"] for item in door.collect(saver, "list", config)]


# --- what callers get wrong ----------------------------------------------------------------------------


CALLS: dict[str, Callable[[Any, Door, Any], Any]] = {
    "get_tuple": lambda saver, door, config: door.call(saver, "get_tuple", config),
    "get_record": lambda saver, door, config: door.call(saver, "get_record", config),
    "put": lambda saver, door, config: door.call(saver, "put", config, *arguments("t", 0)[1:]),
    "put_writes": lambda saver, door, config: door.call(saver, "put_writes", config, [("a", 1)], "task"),
    "get_delta_channel_history": lambda saver, door, config: door.call(
        saver, "get_delta_channel_history", config=config, channels=["a"]
    ),
}


@pytest.mark.parametrize("store_kind", ["memory", "sqlite"], indirect=True)
@pytest.mark.parametrize("config", [{}, {"configurable": {}}, {"configurable": {"thread_id": None}}])
@pytest.mark.parametrize("method", CALLS)
def test_missing_thread_id(saver: Any, door: Door, method: str, config: Any) -> None:
    told = 'pass config={"configurable": {"thread_id": "..."}}'
    with pytest.raises(InvalidConfigError, match=re.escape(told)):
        CALLS[method](saver, door, config)
    assert steps(saver, door) == []


def test_list_needs_no_thread_id(saver: Any, door: Door) -> None:
    put(saver, door, "t", 0)
    for config in (None, {}, {"configurable": {}}):
        assert steps(saver, door, config) == [0]


def test_writes_without_a_checkpoint_id(saver: Any, door: Door) -> None:
    with pytest.raises(InvalidConfigError, match="the config needs a checkpoint_id"):
        door.call(saver, "put_writes", thread("t", ns=""), [("a", 1)], "task")


def test_unknown_prune_strategy(saver: Any, door: Door) -> None:
    put(saver, door, "t", 0)
    with pytest.raises(InvalidConfigError, match="'newest' is unknown; there are keep_latest, delete"):
        door.call(saver, "prune", ["t"], strategy="newest")
    assert steps(saver, door) == [0]


@pytest.mark.parametrize("url", ["mysql://host/db", "agents.db"])
def test_unknown_scheme(url: str) -> None:
    with pytest.raises(InvalidConfigError, match=f"'{url}' is not a URL of a store; use "):
        HarnessCheckpointer.from_conn_string(url)


class Unwritable:
    """Nothing that a serializer knows."""


def nested() -> dict[str, Any]:
    return {"deep": [1, {"er": Unwritable()}]}


def endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    ("make", "named"),
    [(Unwritable, "Unwritable"), (nested, "Unwritable"), (lambda: open, "builtin"), (endless, "list")],
)
def test_value_that_cannot_be_stored(saver: Any, door: Door, make: Callable[[], Any], named: str) -> None:
    first = put(saver, door, "talk", 0)
    before = door.collect(saver, "list", None)
    with pytest.raises(SerializationError, match=rf"channel 'bad' of thread 'talk' .*{named}(.|\n)*serde"):
        put(saver, door, "talk", 1, good=1, bad=make(), last=2)
    with pytest.raises(SerializationError, match=rf"channel 'bad' of thread 'talk' .*{named}(.|\n)*serde"):
        door.call(saver, "put_writes", first, [("good", 1), ("bad", make()), ("last", 2)], "task")
    assert door.collect(saver, "list", None) == before
    put(saver, door, "talk", 1, good=1, last=2)
    assert steps(saver, door) == [1, 0]


def test_new_thread_is_not_left_by_a_value_that_cannot_be_stored(saver: Any, door: Door) -> None:
    with suppress(SerializationError):
        put(saver, door, "talk", 0, bad=Unwritable())
    with suppress(SerializationError):
        door.call(saver, "put_writes", thread("talk", "0000", ns=""), [("bad", Unwritable())], "task")
    assert door.call(saver, "delete_thread", "talk") == 0
    put(saver, door, "talk", 0)
    assert door.call(saver, "get_tuple", thread("talk")).pending_writes == []


def test_metadata_that_cannot_be_stored(saver: Any, door: Door) -> None:
    config, checkpoint, _, versions = arguments("talk", 0)
    with pytest.raises(SerializationError, match="metadata of thread 'talk'"):
        door.call(saver, "put", config, checkpoint, {"bad": Unwritable()}, versions)
    assert steps(saver, door) == []


# --- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def connect(at: Path = path, **options: Any) -> Any:
        opened.append(HarnessCheckpointer.from_conn_string(f"sqlite:///{at}", **options))
        return opened[-1]

    yield connect
    for saver in opened:
        saver.close()


def fill(connect: Callable[..., Any], length: int = 5) -> None:
    with Door("sync") as door:
        saver = connect()
        for number in range(length):
            config = put(saver, door, "talk", number)
            door.call(saver, "put_writes", config, [("log", number)], "task")
        put(saver, door, "other", 0)
        saver.close()


def test_file_that_is_no_database(connect: Callable[..., Any], path: Path, door: Door) -> None:
    text = b"Dear diary, this is not a database. " * 100
    path.write_bytes(text)
    with pytest.raises(SchemaError, match=r"agents\.db is not an SQLite database; name another file"):
        put(connect(), door, "talk", 0)
    assert path.read_bytes() == text


def test_database_of_somebody_else_keeps_its_tables(
    connect: Callable[..., Any], path: Path, door: Door
) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("INSERT INTO theirs VALUES (1)")
    put(connect(), door, "talk", 0)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT x FROM theirs").fetchall() == [(1,)]


@pytest.mark.parametrize("place", ["missing/agents.db", "file/agents.db"])
def test_directory_that_is_not_there(
    connect: Callable[..., Any], tmp_path: Path, door: Door, place: str
) -> None:
    (tmp_path / "file").write_text("not a directory")
    saver = connect(tmp_path / place)
    folder = (tmp_path / place).parent
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"unable to open.*{folder}"):
            put(saver, door, "talk", 0)


def test_path_that_is_a_directory(connect: Callable[..., Any], tmp_path: Path, door: Door) -> None:
    with pytest.raises(StoreError, match="is a directory"):
        put(connect(tmp_path), door, "talk", 0)


def test_directory_made_later_is_found(connect: Callable[..., Any], tmp_path: Path, door: Door) -> None:
    saver = connect(tmp_path / "later" / "agents.db")
    with pytest.raises(StoreError):
        put(saver, door, "talk", 0)
    (tmp_path / "later").mkdir()
    put(saver, door, "talk", 0)
    assert steps(saver, door) == [0]


@pytest.mark.parametrize("major", [99, 2])
def test_database_of_a_newer_version(connect: Callable[..., Any], path: Path, door: Door, major: int) -> None:
    fill(connect)
    execute(path, "UPDATE harness_schema SET major = ?", major)
    before = path.read_bytes()
    with pytest.raises(
        SchemaError, match=rf"agents\.db .*{major}.*newer version.*Upgrade langgraph-harness-saver"
    ):
        put(connect(), door, "talk", 5)
    with pytest.raises(SchemaError):
        steps(connect(), door)
    assert path.read_bytes() == before


def test_database_without_a_version(connect: Callable[..., Any], path: Path, door: Door) -> None:
    fill(connect)
    execute(path, "DELETE FROM harness_schema")
    with pytest.raises(SchemaError, match=r"agents\.db"):
        put(connect(), door, "talk", 5)


def test_database_of_a_newer_minor_version(connect: Callable[..., Any], path: Path, door: Door) -> None:
    fill(connect)
    execute(path, "UPDATE harness_schema SET minor = 7")
    assert len(steps(connect(), door)) == 6


def execute(path: Path, statement: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


# --- permissions ---------------------------------------------------------------------------------------


NOBODY = 65534


def as_nobody(work: Callable[..., None], *arguments: Any) -> None:
    """Run in a process whom permissions apply to."""
    child = CLEAN.Process(target=drop_privileges, args=(work, *arguments))
    child.start()
    child.join(CHILD_SECONDS)
    code = child.exitcode
    child.kill()
    assert code == 0


def drop_privileges(work: Callable[..., None], *arguments: Any) -> None:
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    work(*arguments)


def open_and_expect(path: Path, told: str) -> None:
    with Door("sync") as door, pytest.raises(StoreError, match=told):
        put(HarnessCheckpointer.from_conn_string(f"sqlite:///{path}"), door, "talk", 5)


@pytest.fixture
def public(path: Path) -> Iterator[Path]:
    """A directory that anyone may reach, for pytest's own is private."""
    folder = Path("/tmp") / f"harness-errors-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_directory_that_may_not_be_written(public: Path) -> None:
    public.chmod(0o555)
    as_nobody(open_and_expect, public / "agents.db", f"{public}.*may this user write")


def test_file_that_may_not_be_written(connect: Callable[..., Any], path: Path, public: Path) -> None:
    fill(connect)
    shutil.copy(path, public / "agents.db")
    (public / "agents.db").chmod(0o444)
    public.chmod(0o555)
    as_nobody(open_and_expect, public / "agents.db", "agents.db.*may not write.*permissions")


def test_file_in_a_directory_that_may_not_be_written(
    connect: Callable[..., Any], path: Path, public: Path
) -> None:
    fill(connect)
    shutil.copy(path, public / "agents.db")
    (public / "agents.db").chmod(stat.S_IRUSR | 0o666)
    public.chmod(0o555)
    as_nobody(open_and_expect, public / "agents.db", "agents.db.*(directory|write).*")


# --- corruption ----------------------------------------------------------------------------------------


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "middle": lambda data: data[: len(data) // 2] + flip(data[len(data) // 2 :]),
    "first": lambda data: flip(data),
    "last": lambda data: data[:-1] + flip(data[-1:]),
    "short": lambda data: data[:-3],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\x00",
    "swapped": lambda data: data[:3] + data[3:][::-1],
}


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 0xFF]) + data[1:]


def damage(path: Path, column: str, number: int, how: str) -> None:
    select = f"SELECT id, {column} FROM harness_checkpoint ORDER BY id LIMIT 1 OFFSET ?"
    place, data = execute(path, select, number)[0]
    execute(path, f"UPDATE harness_checkpoint SET {column} = ? WHERE id = ?", DAMAGE[how](data), place)


@pytest.mark.parametrize("how", list(DAMAGE))
@pytest.mark.parametrize("column", ["body", "metadata"])
def test_corrupt_checkpoint(
    connect: Callable[..., Any], path: Path, door: Door, column: str, how: str
) -> None:
    fill(connect)
    saver = connect()
    before = {(i.config["configurable"]["thread_id"], i.metadata["step"]): i for i in saver.list(None)}
    saver.close()
    damage(path, column, 2, how)
    saver = connect()
    check_damaged(saver, door, before["talk", 2])
    for place, expected in before.items():
        if place != ("talk", 2) and (column == "metadata" or place < ("talk", 2)):
            config = thread(place[0], f"{place[1]:04d}")
            assert door.call(saver, "get_tuple", config) == expected
    for number in (3, 4):
        check_damaged(saver, door, before["talk", number])


def check_damaged(saver: Any, door: Door, expected: Any) -> None:
    """Check that a damaged checkpoint is the one that was stored, or an error that names one."""
    number = expected.metadata["step"]
    found = read(saver, door, thread("talk", f"{number:04d}"))
    if isinstance(found, StoreError):
        assert re.search("'talk'.*'000[0-9]'", str(found))
    else:
        assert found == expected


def read(saver: Any, door: Door, config: Any) -> Any:
    """Return a checkpoint, or the error that it raises."""
    try:
        return door.call(saver, "get_tuple", config)
    except (CorruptCheckpointError, SchemaError) as error:
        return error


@pytest.mark.parametrize("how", list(DAMAGE))
def test_corrupt_write(connect: Callable[..., Any], path: Path, door: Door, how: str) -> None:
    fill(connect)
    [(place, data)] = execute(path, "SELECT id, body FROM harness_write ORDER BY id LIMIT 1 OFFSET 2")
    execute(path, "UPDATE harness_write SET body = ? WHERE id = ?", DAMAGE[how](data), place)
    saver = connect()
    found = read(saver, door, thread("talk", "0002"))
    if isinstance(found, StoreError):
        assert re.search("'talk'.*'0002'", str(found))
    else:
        assert found.pending_writes == [("task", "log", 2)]
    assert door.call(saver, "get_tuple", thread("talk", "0001")).pending_writes == [("task", "log", 1)]


@pytest.mark.parametrize("how", ["middle", "short", "empty", "gone"])
def test_corrupt_part(connect: Callable[..., Any], path: Path, door: Door, how: str) -> None:
    saver = connect()
    put(saver, door, "talk", 0, log=["x"], large=os.urandom(100_000))
    put(saver, door, "talk", 1, log=["y"])
    saver.close()
    if how == "gone":
        execute(path, "DELETE FROM harness_part")
    else:
        [(data,)] = execute(path, "SELECT data FROM harness_part")
        execute(path, "UPDATE harness_part SET data = ?", DAMAGE[how](data))
    saver = connect()
    with pytest.raises(CorruptCheckpointError, match=r"talk.*0000"):
        door.call(saver, "get_tuple", thread("talk", "0000"))
    assert door.call(saver, "get_tuple", thread("talk")).checkpoint["channel_values"] == {"log": ["y"]}


def test_missing_base_is_an_error_that_names_it(connect: Callable[..., Any], path: Path, door: Door) -> None:
    fill(connect)
    execute(path, "DELETE FROM harness_checkpoint WHERE id = (SELECT min(id) FROM harness_checkpoint)")
    saver = connect()
    with pytest.raises(CorruptCheckpointError, match=r"talk.*0000"):
        door.call(saver, "get_tuple", thread("talk"))
    assert door.call(saver, "get_tuple", thread("other")) is not None


def test_corrupt_thread_can_be_deleted(connect: Callable[..., Any], path: Path, door: Door) -> None:
    fill(connect)
    damage(path, "body", 0, "middle")
    saver = connect()
    with pytest.raises(HarnessError):
        door.call(saver, "get_tuple", thread("talk"))
    assert door.call(saver, "delete_thread", "talk") == 5
    assert steps(saver, door) == [0]


@pytest.mark.parametrize("at", [200, 5000])
def test_corrupt_file(connect: Callable[..., Any], path: Path, door: Door, at: int) -> None:
    fill(connect, 40)
    data = bytearray(path.read_bytes())
    data[at : at + 3000] = b"\xa5" * 3000
    path.write_bytes(data)
    saver = connect()
    with suppress(StoreError):
        steps(saver, door)
    with suppress(StoreError):
        put(saver, door, "talk", 40)


# --- full and locked -----------------------------------------------------------------------------------


def writer_of(saver: Any) -> sqlite3.Connection:
    return saver.backend._file.writer


def set_room(saver: Any, pages: int | None) -> None:
    writer = writer_of(saver)
    used = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {used + pages if pages else 1 << 30}").fetchone()


def test_disk_full(connect: Callable[..., Any], path: Path, door: Door) -> None:
    saver = connect()
    config = put(saver, door, "talk", 0)
    before = door.collect(saver, "list", None)
    set_room(saver, 5)
    for _ in range(2):
        with pytest.raises(StoreError, match="full; make room"):
            put(saver, door, "talk", 1, noise=os.urandom(20_000), log=["x"], large=os.urandom(100_000))
        with pytest.raises(StoreError, match="full; make room"):
            door.call(saver, "put_writes", config, [("a", 1), ("b", os.urandom(100_000))], "task")
    assert door.collect(saver, "list", None) == before
    set_room(saver, None)
    put(saver, door, "talk", 1, large=b"x" * 100_000)
    door.call(saver, "put_writes", config, [("a", 1)], "task")
    saver.close()
    again = door.collect(connect(), "list", None)
    assert [item.metadata["step"] for item in again] == [1, 0]
    assert again[0].checkpoint["channel_values"] == {"large": b"x" * 100_000}
    assert again[1].pending_writes == [("task", "a", 1)]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_disk_full_fails_nobody_else_for_ever(connect: Callable[..., Any], door: Door) -> None:
    saver = connect()
    put(saver, door, "talk", 0)
    set_room(saver, 40)
    with pytest.raises(StoreError, match="full"):
        put(saver, door, "large", 0, noise=os.urandom(200_000))
    put(saver, door, "talk", 1)
    assert steps(saver, door) == [1, 0]


def fill_a_small_disk(path: Path) -> None:
    """A file may not grow beyond its limit, which is as near as one gets to a full disk without one."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with Door("sync") as door, HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        put(saver, door, "talk", 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        stored = put_until_it_fails(saver, door)
        assert steps(saver, door) == list(range(stored))[::-1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        put(saver, door, "talk", stored, noise=b"there is room")
        assert steps(saver, door) == list(range(stored + 1))[::-1]


def put_until_it_fails(saver: Any, door: Door) -> int:
    stored = 1
    with pytest.raises(StoreError, match=r"agents\.db"):  # noqa: PT012 -- which put is the one is not known
        while stored < 200:
            put(saver, door, "talk", stored, noise=os.urandom(20_000))
            stored += 1
    return stored


def test_file_that_cannot_grow(path: Path) -> None:
    child = CLEAN.Process(target=fill_a_small_disk, args=(path,))
    child.start()
    child.join(CHILD_SECONDS)
    assert child.exitcode == 0
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_locked_by_another_process(connect: Callable[..., Any], path: Path, door: Door) -> None:
    saver = connect(busy_timeout_seconds=0.1)
    config = put(saver, door, "talk", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked; another process .*raise busy_timeout_seconds"):
            put(saver, door, "talk", 1)
        with pytest.raises(StoreError, match="locked"):
            door.call(saver, "put_writes", config, [("a", 1)], "task")
        with pytest.raises(StoreError, match="locked"):
            door.call(saver, "delete_thread", "talk")
        assert steps(saver, door) == [0]
        other.execute("ROLLBACK")
    put(saver, door, "talk", 1)
    assert steps(saver, door) == [1, 0]


def test_locked_while_opening(connect: Callable[..., Any], path: Path, door: Door) -> None:
    fill(connect)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        saver = connect(busy_timeout_seconds=0.1)
        with pytest.raises(StoreError, match=r"locked; another process .*raise busy_timeout_seconds"):
            put(saver, door, "talk", 5)
        other.execute("ROLLBACK")
    put(saver, door, "talk", 5)
    assert len(steps(saver, door)) == 7


def test_errors_carry_the_cause(connect: Callable[..., Any], tmp_path: Path, door: Door) -> None:
    with pytest.raises(StoreError) as caught:
        put(connect(tmp_path / "missing" / "agents.db"), door, "talk", 0)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
