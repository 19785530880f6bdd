"""One saver behind two doors: threads, event loops, opening, closing, and whose objects are whose."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Door, each_store, gather, thread
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from langgraph_harness_saver import HarnessCheckpointer, StoreError, StoreNotOpenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HANG = 30


def arguments(thread_id: str, number: int, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
    values = {"number": number, "log": ["line"] * number} if values is None else values
    versions = dict.fromkeys(values, f"{number:032}.0123456789abcdef")
    checkpoint = {
        **empty_checkpoint(),
        "id": f"{number:08d}",
        "channel_values": values,
        "channel_versions": versions,
    }
    parent = f"{number - 1:08d}" if number else None
    return thread(thread_id, parent, ns=""), checkpoint, {"step": number}, versions


def put_line(saver: Any, thread_id: str, length: int) -> None:
    for number in range(length):
        config = saver.put(*arguments(thread_id, number))
        saver.put_writes(config, [("number", number)], "task")


async def aput_line(saver: Any, thread_id: str, length: int) -> None:
    for number in range(length):
        config = await saver.aput(*arguments(thread_id, number))
        await saver.aput_writes(config, [("number", number)], "task")


def check_line(found: list[Any], length: int) -> None:
    assert [item.checkpoint["channel_values"]["number"] for item in found] == list(range(length))[::-1]
    for item in found:
        number = item.metadata["step"]
        assert item.checkpoint["channel_values"]["log"] == ["line"] * number
        assert item.pending_writes == [("task", "number", number)]


# --- threads and loops ---------------------------------------------------------------------------------


def test_threads_and_tasks_share_one_saver(saver: Any) -> None:
    async def tasks(worker: int) -> None:
        await asyncio.gather(*(aput_line(saver, f"task {worker} {task}", 5) for task in range(5)))

    workers = [threading.Thread(target=put_line, args=(saver, f"thread {n}", 10)) for n in range(4)]
    workers += [threading.Thread(target=lambda n=n: asyncio.run(tasks(n))) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(HANG)
    for number in range(4):
        check_line(list(saver.list(thread(f"thread {number}"))), 10)
    for number in range(15):
        check_line(list(saver.list(thread(f"task {number % 3} {number // 3}"))), 5)


def test_one_event_loop_after_another(saver: Any) -> None:
    for attempt in range(3):
        asyncio.run(aput_line(saver, f"loop {attempt}", 3))
    found = asyncio.run(gather(saver.alist(thread("loop 0"))))
    check_line(found, 3)
    check_line(list(saver.list(thread("loop 2"))), 3)


async def test_sync_calls_inside_a_running_loop(saver: Any) -> None:
    put_line(saver, "sync", 3)
    await aput_line(saver, "async", 3)
    check_line(list(saver.list(thread("async"))), 3)
    check_line(await gather(saver.alist(thread("sync"))), 3)
    assert saver.get_tuple(thread("sync")) == await saver.aget_tuple(thread("sync"))


async def test_sync_call_while_async_calls_are_queued(saver: Any) -> None:
    await saver.asetup()
    tasks = [asyncio.create_task(aput_line(saver, f"task {n}", 3)) for n in range(10)]
    for attempt in range(10):
        await asyncio.sleep(0)
        put_line(saver, f"sync {attempt}", 2)
    await asyncio.wait_for(asyncio.gather(*tasks), HANG)
    for number in range(10):
        check_line(list(saver.list(thread(f"task {number}"))), 3)
        check_line(list(saver.list(thread(f"sync {number}"))), 2)


# --- opening and closing -------------------------------------------------------------------------------


def test_with_closes(place: Any) -> None:
    with place.open() as saver:
        put_line(saver, "t", 2)
    with pytest.raises(StoreNotOpenError):
        saver.get_tuple(thread("t"))


async def test_async_with_closes(place: Any) -> None:
    async with place.open() as saver:
        await aput_line(saver, "t", 2)
    with pytest.raises(StoreNotOpenError):
        await saver.aget_tuple(thread("t"))


def test_closing_twice(saver: Any, door: Door) -> None:
    put_line(saver, "t", 1)
    door.call(saver, "close")
    door.call(saver, "close")
    saver.close()


def test_closing_what_was_never_used(saver: Any, door: Door) -> None:
    door.call(saver, "close")


CALLS = {
    "get_tuple": (thread("t"),),
    "put": arguments("t", 0),
    "put_writes": (thread("t", "x"), [("a", 1)], "task"),
    "delete_thread": ("t",),
    "delete_for_runs": (["run"],),
    "copy_thread": ("t", "u"),
    "prune": (["t"],),
    "get_record": (thread("t"),),
    "setup": (),
}


@pytest.mark.parametrize("method", CALLS)
def test_use_after_close(saver: Any, door: Door, method: str) -> None:
    saver.close()
    with pytest.raises(StoreNotOpenError, match=r"closed.*make a new"):
        door.call(saver, method, *CALLS[method])


def test_list_after_close(saver: Any, door: Door) -> None:
    saver.close()
    with pytest.raises(StoreNotOpenError, match=r"closed.*make a new"):
        door.collect(saver, "list", None)


def test_delta_history_after_close(saver: Any, door: Door) -> None:
    saver.close()
    with pytest.raises(StoreNotOpenError, match=r"closed.*make a new"):
        door.call(saver, "get_delta_channel_history", config=thread("t"), channels=["a"])


def test_setup_called_twice_or_never(saver: Any) -> None:
    saver.setup()
    saver.setup()
    put_line(saver, "t", 1)
    check_line(list(saver.list(thread("t"))), 1)


async def test_setup_awaited_and_called_in_a_loop(saver: Any) -> None:
    saver.setup()
    await saver.setup()
    await saver.setup()
    await saver.asetup()
    await aput_line(saver, "t", 1)
    check_line(await gather(saver.alist(thread("t"))), 1)


async def test_setup_called_in_a_loop_and_never_awaited(saver: Any) -> None:
    saver.setup()
    put_line(saver, "t", 1)
    check_line(list(saver.list(thread("t"))), 1)


def test_setup_makes_the_file(tmp_path: Path) -> None:
    with closing(HarnessCheckpointer.from_conn_string(f"sqlite:///{tmp_path / 'a.db'}")) as saver:
        assert not (tmp_path / "a.db").exists()
        saver.setup()
        assert (tmp_path / "a.db").exists()


def test_allowlist_clones_share_store_cache_and_end(saver: Any) -> None:
    put_line(saver, "t", 2)
    clone = saver.with_allowlist([("some.module", "Name")])
    assert clone is not saver
    assert clone.backend is saver.backend
    assert clone._cache is saver._cache
    put_line(clone, "u", 2)
    check_line(list(saver.list(thread("u"))), 2)
    check_line(list(clone.list(thread("t"))), 2)
    clone.close()
    with pytest.raises(StoreNotOpenError):
        saver.get_tuple(thread("t"))
    saver.close()


# --- cancelled callers, closed loops -------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def file_saver(path: Path) -> Iterator[Any]:
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        yield saver


class OtherProcess:
    """Holds the write lock of a file, as another process may."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def test_cancelled_callers_leave_their_batch_unharmed(file_saver: Any, path: Path) -> None:
    await file_saver.asetup()
    with OtherProcess(path):
        tasks = [asyncio.create_task(aput_line(file_saver, f"task {n}", 3)) for n in range(20)]
        await asyncio.sleep(0.2)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0.05)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), HANG)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None)] * 10
    for number in range(1, 20, 2):
        check_line(await gather(file_saver.alist(thread(f"task {number}"))), 3)
    for number in range(0, 20, 2):
        left = await gather(file_saver.alist(thread(f"task {number}")))
        assert [item.checkpoint["channel_values"] for item in left] in ([], [{"number": 0, "log": []}])


async def test_a_call_that_fails_leaves_its_batch_unharmed(file_saver: Any, path: Path) -> None:
    await file_saver.asetup()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON harness_checkpoint WHEN NEW.parent_id IS NOT NULL "
            "AND NEW.checkpoint_ns = CAST('poison' AS BLOB) BEGIN SELECT raise(ABORT, 'poisoned'); END"
        )
    await asyncio.gather(*(file_saver.aput(*arguments(f"t {n}", 0)) for n in range(20)))
    puts = [arguments(f"t {n}", 1) for n in range(20)]
    puts[7][0]["configurable"]["checkpoint_ns"] = "poison"
    with OtherProcess(path):
        tasks = [asyncio.create_task(file_saver.aput(*put)) for put in puts]
        await asyncio.sleep(0.2)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), HANG)
    failed = [number for number, result in enumerate(results) if isinstance(result, BaseException)]
    assert (failed, type(results[7])) == ([7], StoreError)
    assert "poisoned" in str(results[7])
    for number in range(20):
        found = await gather(file_saver.alist(thread(f"t {number}")))
        assert [item.metadata["step"] for item in found] == ([0] if number == 7 else [1, 0])


async def test_cancelled_reader_leaves_the_saver_unharmed(saver: Any) -> None:
    await aput_line(saver, "t", 5)
    for _ in range(20):
        task = asyncio.create_task(gather(saver.alist(thread("t"))))
        await asyncio.sleep(0)
        task.cancel()
    check_line(await gather(saver.alist(thread("t"))), 5)


def test_event_loop_closed_with_calls_in_flight(file_saver: Any, path: Path) -> None:
    file_saver.setup()
    with OtherProcess(path):
        loop = asyncio.new_event_loop()
        task = loop.create_task(file_saver.aput(*arguments("lost", 0)))
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
    asyncio.run(asyncio.wait_for(aput_line(file_saver, "next", 3), HANG))
    put_line(file_saver, "sync", 2)
    check_line(list(file_saver.list(thread("next"))), 3)
    assert len(list(file_saver.list(thread("lost")))) in (0, 1)
    drop_pending(task)


class ClosedUnseen(asyncio.SelectorEventLoop):
    """Closes just after it was asked whether it is closed."""

    def is_closed(self) -> bool:
        return threading.current_thread() is threading.main_thread() and super().is_closed()


def test_event_loop_that_closes_while_it_is_told(file_saver: Any, path: Path) -> None:
    file_saver.setup()
    with OtherProcess(path):
        loop = ClosedUnseen()
        task = loop.create_task(file_saver.aput(*arguments("lost", 0)))
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
    asyncio.run(asyncio.wait_for(aput_line(file_saver, "next", 3), HANG / 3))
    drop_pending(task)


def drop_pending(task: asyncio.Task[Any]) -> None:
    # Its loop has gone, so nobody can end it; asyncio would complain when it is collected.
    task._log_destroy_pending = False
    task.get_coro().close()
    del task
    gc.collect()


# --- nothing blocks ------------------------------------------------------------------------------------


async def beat(stalls: list[float]) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.01)
        stalls.append(time.monotonic() - before)


async def test_event_loop_beats_while_another_process_holds_the_lock(file_saver: Any, path: Path) -> None:
    await file_saver.asetup()
    stalls: list[float] = []
    heart = asyncio.create_task(beat(stalls))
    with OtherProcess(path):
        tasks = [asyncio.create_task(aput_line(file_saver, f"task {n}", 2)) for n in range(30)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in tasks)
        assert await asyncio.wait_for(file_saver.aget_tuple(thread("task 0")), HANG) is None
    await asyncio.wait_for(asyncio.gather(*tasks), HANG)
    heart.cancel()
    assert max(stalls) < 0.5
    for number in range(30):
        check_line(await gather(file_saver.alist(thread(f"task {number}"))), 2)


async def test_event_loop_beats_while_threads_write_through_the_sync_door(
    file_saver: Any, path: Path
) -> None:
    await file_saver.asetup()
    stalls: list[float] = []
    heart = asyncio.create_task(beat(stalls))
    with OtherProcess(path):
        workers = [asyncio.to_thread(put_line, file_saver, f"thread {n}", 2) for n in range(3)]
        running = asyncio.gather(*workers, *(aput_line(file_saver, f"task {n}", 2) for n in range(3)))
        await asyncio.sleep(0.7)
    await asyncio.wait_for(running, HANG)
    heart.cancel()
    assert max(stalls) < 0.5


async def use_everything(saver: Any) -> None:
    await saver.asetup()
    await asyncio.gather(*(aput_line(saver, f"task {n}", 3) for n in range(5)))
    check_line(await gather(saver.alist(thread("task 0"))), 3)
    await saver.aget_record(thread("task 1"))
    await saver.aget_delta_channel_history(config=thread("task 1"), channels=["log"])
    await saver.acopy_thread("task 1", "copy")
    await saver.aprune(["task 1"])
    await saver.adelete_for_runs(["run"])
    assert await saver.adelete_thread("task 2") == 3
    await saver.aclose()


@pytest.mark.parametrize("options", [{}, {"ttl_seconds": 100}])
async def test_nothing_blocks_the_event_loop(make_saver: Callable[..., Any], options: dict[str, Any]) -> None:
    blockbuster = pytest.importorskip("blockbuster", reason="pip install blockbuster")
    saver = make_saver(**options)
    with blockbuster.blockbuster_ctx():
        with pytest.raises(blockbuster.BlockingError):
            time.sleep(0.001)  # noqa: ASYNC251 -- to see that the guard is on
        await use_everything(saver)


# --- lists ---------------------------------------------------------------------------------------------


def test_list_closed_early(saver: Any) -> None:
    put_line(saver, "t", 30)
    items = saver.list(thread("t"))
    next(items)
    items.close()
    for _ in saver.list(thread("t")):
        break
    check_line(list(saver.list(thread("t"))), 30)


async def test_alist_closed_early(saver: Any) -> None:
    await aput_line(saver, "t", 30)
    items = saver.alist(thread("t"))
    await anext(items)
    await items.aclose()
    async for _ in saver.alist(thread("t")):
        break
    check_line(await gather(saver.alist(thread("t"))), 30)


async def test_alist_dropped_unfinished(saver: Any) -> None:
    await aput_line(saver, "t", 30)
    items = saver.alist(thread("t"))
    await anext(items)
    del items
    gc.collect()
    await asyncio.sleep(0.01)
    check_line(await gather(saver.alist(thread("t"))), 30)


def test_list_never_begun_or_left_open_at_close(saver: Any) -> None:
    put_line(saver, "t", 30)
    unbegun, begun = saver.list(thread("t")), saver.list(thread("t"))
    next(begun)
    saver.close()
    with pytest.raises(StoreNotOpenError):
        list(unbegun)
    begun.close()


def test_list_while_writing(saver: Any) -> None:
    put_line(saver, "t", 200)
    seen = []
    for count, item in enumerate(saver.list(thread("t"))):
        seen.append(item.metadata["step"])
        assert item.checkpoint["channel_values"]["log"] == ["line"] * seen[-1]
        if count % 20 == 0:
            saver.put(*arguments("t", 200 + count))
            saver.put_writes(thread("t", f"{seen[-1]:08d}", ns=""), [("log", count)], "late")
    assert seen == list(range(200))[::-1]


def test_list_while_pruning(saver: Any) -> None:
    put_line(saver, "t", 100)
    items = saver.list(thread("t"))
    first = next(items)
    saver.prune(["t"])
    rest = list(items)
    steps = [item.metadata["step"] for item in (first, *rest)]
    assert steps == sorted(steps, reverse=True)
    for item in (first, *rest):
        assert item.checkpoint["channel_values"]["log"] == ["line"] * item.metadata["step"]


# --- serializers ---------------------------------------------------------------------------------------


class Untyped:
    """What a saver had to have before `dumps_typed`."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class Typed:
    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "pickled", pickle.dumps(value)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "pickled"
        return pickle.loads(data[1])


class Anything:
    def __init__(self, told: str) -> None:
        self.told = told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Anything) and self.told == other.told

    __hash__ = None  # type: ignore[assignment]


def encrypted() -> EncryptedSerializer:
    pytest.importorskip("Crypto", reason="pip install pycryptodome")
    return EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")


@each_store
@pytest.mark.parametrize("make_serde", [Untyped, Typed, encrypted])
def test_other_serializers(place: Any, door: Door, make_serde: Callable[[], Any]) -> None:
    saver = place.open(serde=make_serde())
    value: Any = "plain" if make_serde is encrypted else Anything("custom")
    log = [f"line {n} of a log that is long enough to be stored as a difference" for n in range(40)]
    for number in range(20):
        values = {"log": log[: number + 20], "value": value, "large": ["x" * 50_000, value]}
        config = door.call(saver, "put", *arguments("t", number, values))
        door.call(saver, "put_writes", config, [("value", value), ("large", ["y" * 50_000, value])], "task")
    again = place.open(serde=make_serde())
    for reader in (saver, again):
        found = door.collect(reader, "list", thread("t"))
        assert len(found) == 20
        for item in found:
            number = item.metadata["step"]
            large = ["x" * 50_000, value]
            assert item.checkpoint["channel_values"] == {
                "log": log[: number + 20],
                "value": value,
                "large": large,
            }
            written = [("value", value), ("large", ["y" * 50_000, value])]
            assert item.pending_writes == [("task", *write) for write in written]
    door.call(again, "prune", ["t"])
    assert len(door.collect(saver, "list", thread("t"))) == 1


# --- fresh objects -------------------------------------------------------------------------------------


def nested() -> dict[str, Any]:
    return {"list": [1, [2]], "dict": {"a": {"b": []}}, "set": {1}, "buffer": bytearray(b"abc")}


def spoil(value: Any) -> None:
    """Change everything that can be changed, all the way down."""
    if isinstance(value, dict):
        for item in list(value.values()):
            spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoilt")
    elif isinstance(value, set):
        value.add("spoilt")
    elif isinstance(value, bytearray):
        value.extend(b"spoilt")
    elif isinstance(value, tuple):
        for item in value:
            spoil(item)


def put_nested(saver: Any, door: Door, number: int) -> list[Any]:
    config, checkpoint, metadata, versions = arguments("t", number, nested())
    checkpoint["updated_channels"] = ["dict", "list"]
    checkpoint["versions_seen"] = {"node": dict(versions)}
    metadata = {**metadata, "parents": {"": "x"}, "deep": {"list": [[]]}}
    writes = [("list", nested()["list"]), ("dict", nested())]
    given = [config, checkpoint, metadata, versions]
    stored = door.call(saver, "put", *given)
    door.call(saver, "put_writes", stored, writes, "task")
    return [*given, stored, writes]


def test_what_was_given_may_be_changed(saver: Any, make_saver: Callable[..., Any], door: Door) -> None:
    given = put_nested(saver, door, 0)
    expected = door.call(make_saver(), "get_tuple", thread("t"))
    assert expected.checkpoint["channel_values"] == nested()
    for item in given:
        spoil(item)
    assert door.call(saver, "get_tuple", thread("t")) == expected
    assert door.call(make_saver(), "get_tuple", thread("t")) == expected


def test_what_was_read_may_be_changed(saver: Any, make_saver: Callable[..., Any], door: Door) -> None:
    for number in range(3):
        put_nested(saver, door, number)
    expected = door.collect(make_saver(), "list", thread("t"))
    for _ in range(2):
        for item in (
            *door.collect(saver, "list", thread("t")),
            door.call(saver, "get_tuple", thread("t")),
            door.call(saver, "get_tuple", thread("t", f"{1:08d}")),
        ):
            spoil(tuple(item))
    assert door.collect(saver, "list", thread("t")) == expected
    assert door.call(saver, "get_tuple", thread("t")) == expected[0]
    door.call(saver, "put", *arguments("t", 3, nested()))
    assert door.collect(make_saver(), "list", thread("t"))[1:] == expected


def test_delta_history_may_be_changed(saver: Any, door: Door) -> None:
    for number in range(3):
        put_nested(saver, door, number)

    def read() -> Any:
        return door.call(saver, "get_delta_channel_history", config=thread("t"), channels=["list", "dict"])

    expected, spoilt = read(), read()
    spoil(dict(spoilt))
    assert read() == expected
