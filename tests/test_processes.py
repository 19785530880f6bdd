"""Several processes on one file: killed, racing each other, forked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import operator
import os
import random
import signal
import sqlite3
import threading
import time
import traceback
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from helpers import CLEAN, thread
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph

from langgraph_harness_saver import HarnessCheckpointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from langgraph.checkpoint.base import CheckpointTuple

HANG = 60
PROCESSES = 8
STEPS = 150

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals"),
    # Newer Pythons warn of what is tested here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def open_file(path: Path | str) -> HarnessCheckpointer:
    """Open a file, or what a URL leads to."""
    url = path if isinstance(path, str) and "://" in path else f"sqlite:///{path}"
    return HarnessCheckpointer.from_conn_string(url)


def values_of(thread_id: str, number: int) -> dict[str, Any]:
    """A state that grows, with a large value now and then: the same in every process."""
    lines = [f"{thread_id} said line {line}, " + "and so on " * (line % 9) for line in range(number % 60 + 1)]
    noise = random.Random(f"{thread_id} {number // 5}").randbytes(40_000 if number % 10 < 5 else 10)
    return {"lines": lines, "number": number, "noise": noise}


def writes_of(number: int) -> list[tuple[str, Any]]:
    table = {f"key {n}": f"{n} as of {number - (number - n) % 70}, " + "and so on " * 8 for n in range(70)}
    return [("number", number), ("lines", table)]


def written(number: int) -> list[Any]:
    return [("task", channel, value) for channel, value in writes_of(number)]


def checkpoint_of(thread_id: str, number: int) -> Any:
    values = values_of(thread_id, number)
    versions = dict.fromkeys(values, f"{number:032}.0123456789abcdef")
    return {
        **empty_checkpoint(),
        "id": f"{number:08d}",
        "channel_values": values,
        "channel_versions": versions,
    }


def arguments_of(thread_id: str, number: int) -> tuple[Any, ...]:
    parent = f"{number - 1:08d}" if number else None
    checkpoint = checkpoint_of(thread_id, number)
    config = thread(thread_id, parent, ns="")
    return config, checkpoint, {"step": number}, checkpoint["channel_versions"]


def check_line(found: list[CheckpointTuple]) -> None:
    for item in found:
        number = item.metadata["step"]
        thread_id = item.config["configurable"]["thread_id"]
        assert item.checkpoint["id"] == f"{number:08d}"
        assert item.checkpoint["channel_values"] == values_of(thread_id, number)


def check_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def last_number(saver: HarnessCheckpointer, thread_id: str) -> int:
    found = saver.get_tuple(thread(thread_id))
    return found.metadata["step"] if found else -1


class Acks:
    """A file of what returned: what was written to it outlives a killed writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def opened(self) -> Callable[[Any], None]:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def ack(said: Any) -> None:
            os.write(descriptor, json.dumps(said).encode() + b"\n")

        return ack

    def read(self) -> list[Any]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().split(b"\n")[:-1]]

    def wait(self, process: Any, more_than: int) -> None:
        end = time.monotonic() + HANG
        while len(self.read()) <= more_than:
            assert process.is_alive(), "the writer ended by itself"
            assert time.monotonic() < end, "the writer hangs"
            time.sleep(0.005)


def kill_amid(process: Any, acks: Acks, seed: int) -> None:
    """Let a process work for a random while, then kill it."""
    before = len(acks.read())
    process.start()
    try:
        acks.wait(process, before + 2)
        time.sleep(random.Random(seed).uniform(0, 0.4))
        assert process.is_alive(), "the writer ended by itself"
    finally:
        process.kill()
        process.join(HANG)
    assert process.exitcode == -signal.SIGKILL
    process.close()


def write_sync(path: Path | str, acks: Acks) -> None:
    ack, saver = acks.opened(), open_file(path)
    for number in count(last_number(saver, "solo") + 1):
        config = saver.put(*arguments_of("solo", number))
        ack(["put", "solo", number])
        saver.put_writes(config, writes_of(number), "task", "path")
        ack(["writes", "solo", number])


def write_async(path: Path | str, acks: Acks) -> None:
    ack, saver = acks.opened(), open_file(path)

    async def work(thread_id: str) -> None:
        found = await saver.aget_tuple(thread(thread_id))
        for number in count(found.metadata["step"] + 1 if found else 0):
            config = await saver.aput(*arguments_of(thread_id, number))
            ack(["put", thread_id, number])
            await saver.aput_writes(config, writes_of(number), "task", "path")
            ack(["writes", thread_id, number])

    async def work_all() -> None:
        await asyncio.gather(*(work(f"task {task}") for task in range(8)))

    asyncio.run(work_all())


@pytest.mark.parametrize("write", [write_sync, write_async])
def test_killed_writer_loses_nothing_acknowledged(write: Callable[..., None], tmp_path: Path) -> None:
    path, acks = tmp_path / "killed.db", Acks(tmp_path / "acks")
    for seed in range(5):
        kill_amid(CLEAN.Process(target=write, args=(path, acks)), acks, seed)
        check_file(path)
        with open_file(path) as saver:
            check_survivors(list(saver.list(None)), acks.read())


def check_survivors(found: list[CheckpointTuple], acks: list[Any]) -> None:
    check_line(found)
    there = {(item.config["configurable"]["thread_id"], item.metadata["step"]): item for item in found}
    for (_, number), item in there.items():
        assert item.pending_writes in ([], written(number))
    assert {(thread_id, number) for _, thread_id, number in acks} <= there.keys()
    for what, *place in acks:
        assert what == "put" or there[tuple(place)].pending_writes


class State(TypedDict):
    log: Annotated[list[str], operator.add]
    number: int


TURNS = 500


def turn(state: State) -> dict[str, Any]:
    # All turns together must last longer than what is left to the killed ones.
    time.sleep(0.003)
    number = state["number"] + 1
    return {"log": [f"turn {number} " + "word " * (number % 7)], "number": number}


def build(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("turn", turn)
    graph.add_edge(START, "turn")
    graph.add_conditional_edges("turn", lambda state: "turn" if state["number"] < TURNS else END)
    return graph.compile(checkpointer=saver)


GRAPH_CONFIG = {**thread("graph"), "recursion_limit": TURNS + 10}


class Acknowledging(HarnessCheckpointer):
    """Tells of everything that it has stored, once it is stored."""

    ack: Any

    def put(self, config: Any, checkpoint: Any, *rest: Any) -> Any:
        told = ["put", checkpoint["id"], json.loads(json.dumps(checkpoint["channel_values"]))]
        stored = super().put(config, checkpoint, *rest)
        self.ack(told)
        return stored

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        super().put_writes(config, writes, task_id, task_path)
        told = [channel for channel, _ in writes]
        self.ack(["writes", config["configurable"]["checkpoint_id"], task_id, told])


def run_graph(path: Path, acks: Acks) -> None:
    saver = Acknowledging.from_conn_string(f"sqlite:///{path}")
    saver.ack = acks.opened()
    graph = build(saver)
    begun = graph.get_state(GRAPH_CONFIG).values
    graph.invoke(None if begun else {"log": [], "number": 0}, GRAPH_CONFIG)


def test_killed_graph_is_continued_by_another_process(tmp_path: Path) -> None:
    path, acks = tmp_path / "graph.db", Acks(tmp_path / "acks")
    for seed in range(3):
        kill_amid(CLEAN.Process(target=run_graph, args=(path, acks)), acks, seed)
        check_file(path)
        with open_file(path) as saver:
            check_acknowledged_run(saver, acks.read())
    with open_file(path) as saver:
        final = build(saver).invoke(None, GRAPH_CONFIG)
    expected: Any = {"log": [], "number": 0}
    for _ in range(TURNS):
        update = turn(expected)
        expected = {"log": expected["log"] + update["log"], "number": update["number"]}
    assert final == expected


def check_acknowledged_run(saver: HarnessCheckpointer, acks: list[Any]) -> None:
    there = {item.checkpoint["id"]: item for item in saver.list(thread("graph"))}
    for what, checkpoint_id, *told in acks:
        found = there.get(checkpoint_id)
        if found is None:
            # Writes may come before their checkpoint, which then was still on its way.
            assert what == "writes"
        elif what == "put":
            assert found.checkpoint["channel_values"] == told[0]
        else:
            written = [channel for task, channel, _ in found.pending_writes or () if task == told[0]]
            assert set(told[1]) <= set(written)
    for item in there.values():
        log, number = item.checkpoint["channel_values"].get("log", []), item.metadata["step"]
        assert [line.split()[1] for line in log] == [str(turn) for turn in range(1, max(number, 0) + 1)]


# --- at once -------------------------------------------------------------------------------------------


def run_all(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    """Run processes that start together."""
    barrier = CLEAN.Barrier(len(arguments))
    processes = [CLEAN.Process(target=start_together, args=(barrier, target, *a)) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(processes)


def start_together(barrier: Any, target: Callable[..., None], *arguments: Any) -> None:
    barrier.wait(HANG)
    target(*arguments)


def set_up_and_put(path: Path, worker: int) -> None:
    saver = open_file(path)
    saver.setup()
    saver.put(*arguments_of(f"worker {worker}", 0))
    saver.close()


def test_eight_processes_set_up_an_empty_database(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"empty{attempt}.db"
        run_all(set_up_and_put, [(path, worker) for worker in range(PROCESSES)])
        with open_file(path) as saver:
            found = list(saver.list(None))
        check_line(found)
        assert len(found) == PROCESSES


def extend_own_and_shared(path: Path, worker: int) -> None:
    parent = None
    with open_file(path) as saver:
        for number in range(20):
            config = saver.put(*arguments_of(f"worker {worker}", number))
            saver.put_writes(config, writes_of(number), "task")
            _, checkpoint, _, versions = arguments_of("shared", number)
            checkpoint["id"] = f"{number:08d}-{worker}"
            place = saver.put(thread("shared", parent, ns=""), checkpoint, {"step": number}, versions)
            saver.put_writes(place, [("number", worker)], f"task {worker}")
            saver.put_writes(thread("shared", "common", ns=""), [("number", worker)], f"task {worker}")
            parent = checkpoint["id"]


def test_eight_processes_write_their_own_thread_and_a_shared_one(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    run_all(extend_own_and_shared, [(path, worker) for worker in range(PROCESSES)])
    check_file(path)
    with open_file(path) as saver:
        for worker in range(PROCESSES):
            own = list(saver.list(thread(f"worker {worker}")))
            check_line(own)
            assert [item.metadata["step"] for item in own] == list(range(20))[::-1]
            assert all(item.pending_writes == written(item.metadata["step"]) for item in own)
        check_shared(list(saver.list(thread("shared"))))
        saver.put(thread("shared", ns=""), {**checkpoint_of("shared", 0), "id": "common"}, {"step": 0}, {})
        common = saver.get_tuple(thread("shared", "common"))
    assert common is not None
    assert sorted(value for _, _, value in common.pending_writes or ()) == list(range(PROCESSES))


def check_shared(shared: list[CheckpointTuple]) -> None:
    ids = [item.checkpoint["id"] for item in shared]
    expected = [f"{number:08d}-{worker}" for number in range(20) for worker in range(PROCESSES)]
    assert ids == sorted(expected, reverse=True)
    for item in shared:
        worker = int(item.checkpoint["id"][-1])
        assert item.checkpoint["channel_values"] == values_of("shared", item.metadata["step"])
        assert item.pending_writes == [(f"task {worker}", "number", worker)]


def extend_and_read(path: Path, done: Any) -> None:
    try:
        with open_file(path) as saver:
            for number in range(STEPS):
                config = saver.put(*arguments_of("line", number))
                saver.put_writes(config, writes_of(number), "task")
                head = saver.get_tuple(thread("line"))
                assert head is not None
                check_line([head])
                assert head.metadata["step"] == number
                assert head.pending_writes == written(number)
    finally:
        done.set()


def prune_until(path: Path, done: Any) -> None:
    with open_file(path) as saver:
        while not done.is_set():
            saver.prune(["line"])
            # SQLite's lock is not fair: without a pause the others would hardly get it.
            time.sleep(0.002)


def read_until(path: Path, done: Any) -> None:
    with open_file(path) as saver:
        while not done.is_set():
            check_line(list(saver.list(thread("line"))))


def test_one_process_prunes_what_another_extends(tmp_path: Path) -> None:
    path, done = tmp_path / "pruned.db", CLEAN.Event()
    targets = (extend_and_read, prune_until, read_until)
    run_all(call, [(target, path, done) for target in targets])
    check_file(path)
    with open_file(path) as saver:
        found = list(saver.list(thread("line")))
        check_line(found)
        assert found[0].metadata["step"] == STEPS - 1
        saver.prune(["line"])
        found = list(saver.list(thread("line")))
        check_line(found)
    assert len(found) == 1


def call(target: Callable[..., None], *arguments: Any) -> None:
    target(*arguments)


# --- forks ---------------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> Callable[[], None]:
    """Start work in a forked child; what comes back waits for it, and fails if it failed."""
    pid = os.fork()
    if pid == 0:
        run_in_child(work)

    def wait() -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status != -signal.SIGALRM, "the child hangs"
        assert status == 0

    return wait


def run_in_child(work: Callable[[], object]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HANG // 2)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.fixture(params=["memory://", "sqlite://", "file"])
def forking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HarnessCheckpointer]:
    url = f"sqlite:///{tmp_path / 'forked.db'}" if request.param == "file" else request.param
    with HarnessCheckpointer.from_conn_string(url) as saver:
        yield saver


def put_many(saver: HarnessCheckpointer, thread_id: str, first: int, last: int) -> None:
    for number in range(first, last):
        config = saver.put(*arguments_of(thread_id, number))
        saver.put_writes(config, writes_of(number), "task")


def check_thread(saver: HarnessCheckpointer, thread_id: str, length: int) -> None:
    found = list(saver.list(thread(thread_id)))
    check_line(found)
    assert [item.metadata["step"] for item in found] == list(range(length))[::-1]


def use_in_child(saver: HarnessCheckpointer) -> None:
    check_thread(saver, "before", 5)
    put_many(saver, "before", 5, 8)
    put_many(saver, "child", 0, 5)
    check_thread(saver, "before", 8)
    asyncio.run(use_in_loop(saver))


async def use_in_loop(saver: HarnessCheckpointer) -> None:
    await saver.aput(*arguments_of("child", 5))
    found = [item async for item in saver.alist(thread("child"))]
    check_line(found)
    assert len(found) == 6


def test_forked_child_reads_and_writes_and_so_does_its_parent(forking: HarnessCheckpointer) -> None:
    put_many(forking, "before", 0, 5)
    wait = forked(lambda: use_in_child(forking))
    put_many(forking, "parent", 0, 20)
    wait()
    check_thread(forking, "parent", 20)
    put_many(forking, "parent", 20, 25)
    check_thread(forking, "parent", 25)
    is_file = bool(getattr(forking.backend, "path", None))
    check_thread(forking, "before", 8 if is_file else 5)
    check_thread(forking, "child", 6 if is_file else 0)


def test_fork_after_the_async_door_was_used(forking: HarnessCheckpointer) -> None:
    put_many(forking, "before", 0, 5)
    asyncio.run(use_async_then_fork(forking))


async def use_async_then_fork(saver: HarnessCheckpointer) -> None:
    await saver.aput(*arguments_of("loop", 0))
    assert await saver.aget_tuple(thread("loop")) is not None

    def in_child() -> None:
        asyncio.events._set_running_loop(None)
        use_in_child(saver)

    wait = forked(in_child)
    await saver.aput(*arguments_of("loop", 1))
    await asyncio.to_thread(wait)
    await saver.aput(*arguments_of("loop", 2))


def test_fork_while_other_threads_write(forking: HarnessCheckpointer) -> None:
    put_many(forking, "before", 0, 5)
    stop = threading.Event()
    lengths = [0] * 3

    def write(worker: int) -> None:
        while not stop.is_set():
            put_many(forking, f"busy {worker}", lengths[worker], lengths[worker] + 1)
            lengths[worker] += 1

    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for writer in writers:
        writer.start()
    try:
        for attempt in range(15):
            child = f"child {attempt}"
            forked(lambda child=child: write_briefly(forking, child))()
    finally:
        stop.set()
        for writer in writers:
            writer.join(HANG)
    for worker, length in enumerate(lengths):
        check_thread(forking, f"busy {worker}", length)
    if getattr(forking.backend, "path", None):
        for attempt in range(15):
            check_thread(forking, f"child {attempt}", 2)


def write_briefly(saver: HarnessCheckpointer, thread_id: str) -> None:
    put_many(saver, thread_id, 0, 2)
    check_thread(saver, thread_id, 2)
    check_thread(saver, "before", 5)
    check_line(list(saver.list(None, limit=10)))


def test_child_keeps_its_data_when_the_parent_closes_first(tmp_path: Path) -> None:
    path = tmp_path / "forked.db"
    saver = open_file(path)
    put_many(saver, "before", 0, 5)
    reader, writer = os.pipe()

    def outlive_parent() -> None:
        put_many(saver, "child", 0, 1)
        os.read(reader, 1)
        put_many(saver, "child", 1, 3)
        check_thread(saver, "child", 3)

    wait = forked(outlive_parent)
    saver.close()
    os.write(writer, b"!")
    wait()
    os.close(reader)
    os.close(writer)
    check_file(path)
    with open_file(path) as again:
        check_thread(again, "before", 5)
        check_thread(again, "child", 3)


def test_one_child_closes_while_its_sibling_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "forked.db"
    saver = open_file(path)
    put_many(saver, "before", 0, 5)
    reader, writer = os.pipe()

    def close_soon() -> None:
        put_many(saver, "short", 0, 2)
        saver.close()

    def go_on() -> None:
        put_many(saver, "long", 0, 2)
        os.read(reader, 1)
        put_many(saver, "long", 2, 4)

    waits = [forked(go_on), forked(close_soon)]
    saver.close()
    waits[1]()
    os.write(writer, b"!")
    waits[0]()
    os.close(reader)
    os.close(writer)
    with open_file(path) as again:
        check_thread(again, "short", 2)
        check_thread(again, "long", 4)


inherited: HarnessCheckpointer | None = None


def use_inherited(worker: int) -> int:
    assert inherited is not None
    put_many(inherited, f"worker {worker}", 0, 3)
    check_thread(inherited, f"worker {worker}", 3)
    return worker


def test_pool_of_forked_workers_uses_an_inherited_saver(forking: HarnessCheckpointer) -> None:
    global inherited
    put_many(forking, "before", 0, 1)
    inherited = forking
    try:
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map_async(use_inherited, range(6)).get(HANG) == list(range(6))
            pool.close()
            pool.join()
    finally:
        inherited = None
    put_many(forking, "before", 1, 2)
    is_file = bool(getattr(forking.backend, "path", None))
    for worker in range(6):
        check_thread(forking, f"worker {worker}", 3 if is_file else 0)


def use_spawned(path: Path, worker: int) -> None:
    with open_file(path) as saver:
        check_thread(saver, "before", 2)
        put_many(saver, f"worker {worker}", 0, 3)


def test_spawned_processes_open_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "spawned.db"
    context = multiprocessing.get_context("spawn")
    with open_file(path) as saver:
        put_many(saver, "before", 0, 2)
        processes = [context.Process(target=use_spawned, args=(path, worker)) for worker in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(HANG)
        assert [process.exitcode for process in processes] == [0, 0]
        for worker in range(2):
            check_thread(saver, f"worker {worker}", 3)


def test_sweeper_goes_on_in_a_forked_child(tmp_path: Path) -> None:
    saver = HarnessCheckpointer.from_conn_string(f"sqlite:///{tmp_path / 'swept.db'}", ttl_seconds=0.4)
    with saver:
        put_many(saver, "before", 0, 1)

        def expire_in_child() -> None:
            put_many(saver, "child", 0, 1)
            wait_until(lambda: count_threads(tmp_path / "swept.db") == 0)

        forked(expire_in_child)()


def count_threads(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=HANG)) as connection:
        return int(connection.execute("SELECT count(*) FROM harness_thread").fetchone()[0])


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG / 3
    while not true():
        assert time.monotonic() < end
        with contextlib.suppress(InterruptedError):
            time.sleep(0.02)
