"""What only a server can show: lost connections, group commit, roles, poolers, settings, races, forks."""

from __future__ import annotations

import asyncio
import datetime
import gc
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import servers
from helpers import CLEAN, gather, thread
from servers import PgBouncer, PostgresServer, new_name, new_schema_url, schema_of, wait_for
from test_processes import (
    Acks,
    arguments_of,
    check_line,
    check_survivors,
    check_thread,
    forked,
    kill_amid,
    put_many,
    run_all,
    use_in_child,
    values_of,
    write_async,
    write_briefly,
    write_sync,
    writes_of,
    written,
)
from traffic import CALLS, GRACE, HANG, Traffic, in_threads, succeed, timed

from langgraph_harness_saver import (
    CheckpointEngine,
    CheckpointerConfig,
    HarnessCheckpointer,
    InvalidConfigError,
    StoreError,
    StoreUnavailableError,
)
from langgraph_harness_saver.envelope import unpack
from langgraph_harness_saver.errors import HeadMovedError, SchemaError
from langgraph_harness_saver.ids import id_key
from langgraph_harness_saver.rows import (
    Change,
    CheckpointKey,
    EventRow,
    Family,
    PartRow,
    PutResult,
    Tag,
    WriteRow,
)
from langgraph_harness_saver.stores.postgres_rows import thread_key
from langgraph_harness_saver.stores.sql import migration, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def connect(url: str, **options: Any) -> HarnessCheckpointer:
    return HarnessCheckpointer.from_conn_string(url, **options)


@pytest.fixture
def url(postgres_server: Any) -> Iterator[str]:
    """Lead to an empty schema on the shared server; no connection may be left."""
    url = new_schema_url(postgres_server)
    yield url
    left = postgres_server.left_connections(schema_of(url))
    servers.drop_schema(postgres_server, url)
    assert left == []


@pytest.fixture
def own_url(own_postgres: PostgresServer) -> str:
    return new_schema_url(own_postgres)


# --- lost connections ----------------------------------------------------------------------------------


def terminate(server: Any, name: str, pid: int | None = None) -> int:
    rows = server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        " AND (%s::int IS NULL OR pid = %s)",
        (name, pid, pid),
    )
    return len(rows)


def test_nothing_is_lost_when_every_backend_is_terminated_again_and_again(
    postgres_server: Any, url: str
) -> None:
    with connect(url, pool_size=4) as saver:

        def disturb() -> None:
            killed = 0
            for _ in range(12):
                killed += terminate(postgres_server, schema_of(url))
                time.sleep(0.1)
            assert killed > 12

        Traffic(saver).run(disturb)


def test_nothing_is_lost_when_the_server_restarts(own_postgres: PostgresServer, own_url: str) -> None:
    with connect(own_url) as saver:

        def disturb() -> None:
            own_postgres.stop("immediate")
            time.sleep(0.5)
            own_postgres.start()

        Traffic(saver).run(disturb)


def test_a_server_that_stays_away_is_a_typed_error_soon(own_postgres: PostgresServer, own_url: str) -> None:
    savers = {name: connect(own_url, retry_seconds=1) for name in CALLS}
    for saver in savers.values():
        saver.put(*arguments_of("t", 0))
    own_postgres.stop("immediate")
    results = succeed([lambda n=name: timed(lambda: CALLS[n](savers[n])) for name in CALLS])
    for saver in savers.values():
        saver.close()
    for name, (seconds, result) in zip(CALLS, results, strict=True):
        assert isinstance(result, StoreUnavailableError), name
        assert str(own_postgres.port) in str(result)
        assert "secret" not in str(result)
        assert seconds < 1 + GRACE, name


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Stop the server's processes where they are: connections stay, and nobody answers."""
    assert server.process is not None
    family = [server.process.pid]
    family += [pid for pid, (parent, _) in servers.processes().items() if parent == server.process.pid]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("prepared_statements", [None, False])
def test_no_call_hangs_on_a_server_that_hangs(
    own_postgres: PostgresServer, own_url: str, prepared_statements: bool | None
) -> None:
    savers = {
        name: connect(own_url, retry_seconds=0.5, prepared_statements=prepared_statements)
        for name in (*CALLS, "fresh")
    }
    for name in CALLS:
        savers[name].put(*arguments_of("t", 0))
    calls = {**CALLS, "fresh": CALLS["get_tuple"]}
    done: dict[str, tuple[float, Any]] = {}

    def run(name: str) -> None:
        done[name] = timed(lambda: calls[name](savers[name]))

    with frozen(own_postgres):
        workers = [threading.Thread(target=run, args=(name,), daemon=True) for name in calls]
        for worker in workers:
            worker.start()
        end = time.monotonic() + 0.5 + GRACE
        for worker in workers:
            worker.join(max(end - time.monotonic(), 0))
        hanging = sorted(calls.keys() - done.keys())
    for worker in workers:
        worker.join(HANG)
    for saver in savers.values():
        saver.close()
    assert hanging == []
    assert [name for name, (_, result) in done.items() if not isinstance(result, StoreUnavailableError)] == []


async def put_late(saver: HarnessCheckpointer, number: int) -> None:
    await saver.aput(*arguments_of(f"late {number}", 0))


async def get_known(saver: HarnessCheckpointer, number: int) -> None:
    await saver.aget_tuple(thread("t"))


async def get_unknown(saver: HarnessCheckpointer, number: int) -> None:
    await saver.aget_tuple(thread(f"late {number}"))


@pytest.mark.parametrize("call", [put_late, get_known, get_unknown])
def test_calls_that_wait_together_on_a_hanging_server_fail_together(
    own_postgres: PostgresServer, own_url: str, call: Callable[[HarnessCheckpointer, int], Any]
) -> None:
    async def late(saver: HarnessCheckpointer, number: int) -> None:
        await asyncio.sleep(0.3)
        await call(saver, number)

    async def work() -> list[Any]:
        async with connect(own_url, retry_seconds=0.5) as saver:
            await saver.aput(*arguments_of("t", 0))
            with frozen(own_postgres):
                first = asyncio.create_task(call(saver, 100))
                tasks = [asyncio.create_task(late(saver, number)) for number in range(8)]
                # Twice: they queue behind a statement that has its own five seconds.
                _, waiting = await asyncio.wait(tasks, timeout=2 * GRACE)
            await asyncio.gather(first, return_exceptions=True)
            assert len(waiting) == 0
            return await asyncio.gather(*tasks, return_exceptions=True)

    for result in asyncio.run(work()):
        assert isinstance(result, StoreUnavailableError)


def test_idle_connections_that_were_killed_are_found_before_use(postgres_server: Any, url: str) -> None:
    # No second attempt is made with retry_seconds=0.
    with connect(url, retry_seconds=0) as saver:
        put_many(saver, "t", 0, 2)
        asyncio.run(aput_line(saver, "a", 0, 2))
        for number in range(2, 6):
            assert terminate(postgres_server, schema_of(url)) > 0
            time.sleep(0.2)
            put_many(saver, "t", number, number + 1)
        check_thread(saver, "t", 6)

        async def work() -> None:
            for number in range(4):
                await aput_line(saver, "b", number, number + 1)
                assert terminate(postgres_server, schema_of(url)) > 0
                await asyncio.sleep(0.2)

        asyncio.run(work())
        check_thread(saver, "b", 4)


async def aput_line(saver: HarnessCheckpointer, thread_id: str, first: int, last: int) -> None:
    for number in range(first, last):
        config = await saver.aput(*arguments_of(thread_id, number))
        await saver.aput_writes(config, writes_of(number), "task")


@pytest.mark.parametrize("turns", range(5))
def test_connection_that_is_used_while_its_end_comes_in(postgres_server: Any, url: str, turns: int) -> None:
    """The server's farewell and the stream's end are two events of the loop; a call may be in between."""

    async def work() -> None:
        async with connect(url, pool_size=1) as saver:
            for call in (
                lambda: saver.aget_tuple(thread("t")),
                lambda: saver.aput(*arguments_of("t", 0)),
                lambda: saver.aprune(["t"]),
            ):
                await saver.aget_tuple(thread("t"))
                terminate(postgres_server, schema_of(url))
                time.sleep(0.05)  # noqa: ASYNC251
                for _ in range(turns):
                    await asyncio.sleep(0)
                await call()

    asyncio.run(work())


def test_revisions_survive_terminated_backends(postgres_server: Any, url: str) -> None:
    killed = 0

    def kill_once(moment: float) -> None:
        nonlocal killed
        time.sleep(moment)
        killed += terminate(postgres_server, schema_of(url))

    def amid_a_kill(revise: Callable[[], None]) -> None:
        # Once for each revision: however slow the machine is, its second attempt comes through.
        killer = threading.Thread(target=kill_once, args=(random.uniform(0, 0.03),))
        killer.start()
        try:
            revise()
        finally:
            killer.join()

    with connect(url) as saver:
        for number in range(30):
            put_many(saver, f"t {number}", 0, 12)
            amid_a_kill(lambda n=number: saver.copy_thread(f"t {n}", f"copy {n}"))
            amid_a_kill(lambda n=number: saver.prune([f"t {n}"]))
        assert killed > 0
        for number in range(30):
            found = list(saver.list(thread(f"t {number}")))
            check_line(found)
            assert [item.metadata["step"] for item in found] == [11]
            assert found[0].pending_writes == written(found[0].metadata["step"])
            copied = list(saver.list(thread(f"copy {number}")))
            assert [item.metadata["step"] for item in copied] == list(range(12))[::-1]
            for item in copied:
                assert item.checkpoint["channel_values"] == values_of(f"t {number}", item.metadata["step"])


def test_cancelled_calls_keep_no_connection_from_others(
    postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langgraph_harness_saver.stores import postgres_pool

    async def cancelled_after(work: Any, seconds: float) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def work(url: str) -> None:
        async with Unopened(url, pool_size=1, retry_seconds=0) as saver:
            for step in range(40):
                await cancelled_after(saver.asetup(), step * 0.0008)
            await saver.asetup()
            await saver.aput(*arguments_of("t", 0))
            # Every connection is asked whether it lives.
            monkeypatch.setattr(postgres_pool, "PROBE_AFTER", -1.0)
            for step in range(40):
                await cancelled_after(saver.aget_tuple(thread("t")), step * 0.0001)
            for step in range(40):
                await cancelled_after(saver.aprune(["t"]), step * 0.0003)
            assert await saver.aget_tuple(thread("t")) is not None

    url = new_schema_url(postgres_server)
    try:
        asyncio.run(asyncio.wait_for(work(url), HANG))
    finally:
        terminate(postgres_server, schema_of(url))
        servers.drop_schema(postgres_server, url)
        # What was lost is told of here and not in the next test.
        gc.collect()


# --- group commit --------------------------------------------------------------------------------------


class Log:
    """What a server that logs all was told, of the connections with one name."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server, self.name = server, name
        self.begin = 0

    def mark(self) -> None:
        self.begin = len(self.server.log.read_text())

    def lines(self) -> list[str]:
        lines = self.server.log.read_text()[self.begin :].splitlines()
        return [line for line in lines if f"/{self.name} " in line]

    def statements(self) -> list[str]:
        """Tell what was executed, each once."""
        found = (re.search(r"LOG:  (?:statement|execute [^:]*): (.*)", line) for line in self.lines())
        return [match[1] for match in found if match]


@pytest.fixture
def logged() -> Iterator[tuple[PostgresServer, str, Log]]:
    servers.skip_without()
    with PostgresServer(settings={"log_statement": "all", "log_connections": "on"}) as server:
        url = new_schema_url(server)
        yield server, url, Log(server, schema_of(url))


def test_a_lone_call_is_one_statement(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged
    with connect(url) as saver:
        # Every kind once, for the connection to know it.
        use_all(saver, "warm")
        put_many(saver, "t", 0, 1)
        for name in ("put", "put_writes", "get_tuple", "list", "delete_thread"):
            log.mark()
            CALLS[name](saver)
            statements = log.statements()
            assert len(statements) == 1, name
            assert "SELECT" in statements[0]


def test_the_latest_state_in_a_new_process_is_one_statement(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged
    with connect(url) as saver:
        put_many(saver, "t", 0, 40)
    with connect(url) as saver:
        log.mark()
        found = saver.get_tuple(thread("t"))
        assert len(log.statements()) == 1
    assert found is not None
    check_line([found])


def test_200_checkpoints_are_listed_in_a_few_statements(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged
    with connect(url) as saver:
        put_many(saver, "t", 0, 200)
    with connect(url) as saver:
        for selected in (thread("t"), None):
            log.mark()
            found = list(saver.list(selected))
            assert len(log.statements()) <= 8
            assert len(found) == 200
            check_line(found)


def test_filter_that_json_lacks_takes_a_few_statements(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(number) for number in range(200)]
    with connect(url) as saver:
        for number, day in enumerate(days):
            config, checkpoint, metadata, versions = arguments_of("t", number)
            saver.put(config, checkpoint, {**metadata, "day": day}, versions)
        log.mark()
        found = list(saver.list(thread("t"), filter={"day": days[0]}, limit=1))
        assert [item.metadata["step"] for item in found] == [0]
        assert len(log.statements()) <= 20


def test_calls_that_arrive_together_leave_together(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged

    async def work() -> None:
        async with connect(url) as saver:
            await saver.aput(*arguments_of("warm", 0))
            log.mark()
            configs = await asyncio.gather(*(saver.aput(*arguments_of(f"t {n}", 0)) for n in range(100)))
            assert len(log.statements()) <= 10
            log.mark()
            writing = [saver.aput_writes(config, writes_of(0), "task") for config in configs]
            await asyncio.gather(*writing, *(saver.aput(*arguments_of(f"u {n}", 0)) for n in range(100)))
            assert len(log.statements()) <= 10
            for number in range(100):
                found = await saver.aget_tuple(thread(f"t {number}"))
                assert found is not None
                assert found.pending_writes == written(0)

    asyncio.run(work())


def test_no_connection_asks_what_an_array_is(logged: tuple[PostgresServer, str, Log]) -> None:
    server, url, log = logged

    async def work() -> None:
        async with connect(url) as saver:
            use = [saver.aput(*arguments_of(f"t {n}", 0)) for n in range(40)]
            configs = await asyncio.gather(*use, *(saver.aget_tuple(thread(f"u {n}")) for n in range(40)))
            await asyncio.gather(*(saver.aput_writes(one, writes_of(0), "task") for one in configs[:40]))
            await asyncio.gather(*(saver.aget_tuple(thread(f"t {n}")) for n in range(40)))
            await CheckpointEngine(saver).branch("00000000", "side", "t 1")

    asyncio.run(work())
    assert "harness_put_writes" in " ".join(log.statements())
    assert "typeinfo" not in server.log.read_text()[log.begin :]


def test_first_calls_that_arrive_together_set_up_once(logged: tuple[PostgresServer, str, Log]) -> None:
    server, url, log = logged
    connect(url).__enter__().close()
    log.mark()

    async def work() -> None:
        async with Unopened(url) as saver:
            await asyncio.gather(*(saver.aput(*arguments_of(f"t {n}", 0)) for n in range(100)))

    asyncio.run(work())
    opened = server.log.read_text()[log.begin :].count("connection authenticated")
    assert 0 < opened <= 11


class Unopened:
    """A saver that opens by itself, with its first calls."""

    def __init__(self, url: str, **options: Any) -> None:
        self.saver = connect(url, **options)

    async def __aenter__(self) -> HarnessCheckpointer:
        return self.saver

    async def __aexit__(self, *exc: object) -> None:
        await self.saver.aclose()


POISON = """
CREATE FUNCTION {0}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.checkpoint_ns = 'poison' THEN RAISE 'poisoned'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON {0}.harness_checkpoint FOR EACH ROW EXECUTE FUNCTION {0}.refuse();
CREATE TRIGGER refuse BEFORE INSERT ON {0}.harness_write FOR EACH ROW EXECUTE FUNCTION {0}.refuse();
"""


def poisoned(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    config, *rest = arguments
    return {"configurable": {**config["configurable"], "checkpoint_ns": "poison"}}, *rest


def test_a_poisoned_call_fails_alone(postgres_server: Any, url: str) -> None:
    async def work() -> None:
        async with connect(url) as saver:
            postgres_server.execute(POISON.format(schema_of(url)))
            puts = [arguments_of(f"t {n}", 0) for n in range(40)]
            puts[17] = poisoned(puts[17])
            calls: list[Any] = [saver.aput(*arguments) for arguments in puts]
            for number in range(20):
                place = thread(f"w {number}", "00000000", ns="poison" if number == 7 else "")
                calls.append(saver.aput_writes(place, writes_of(number), "task"))
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), HANG)
            failed = [number for number, result in enumerate(results) if isinstance(result, BaseException)]
            assert failed == [17, 47]
            assert all(type(results[number]) is StoreError for number in failed)
            assert "poisoned" in str(results[17])
            found = await gather(saver.alist(None))
            assert len(found) == 39

    asyncio.run(work())


def test_a_cancelled_caller_leaves_its_batch_unharmed(url: str) -> None:
    async def work() -> None:
        async with connect(url) as saver:
            await saver.aput(*arguments_of("warm", 0))
            for attempt in range(20):
                tasks = [
                    asyncio.create_task(saver.aput(*arguments_of(f"t {attempt} {n}", 0))) for n in range(10)
                ]
                await asyncio.sleep(attempt * 0.0003)
                for task in tasks[::3]:
                    task.cancel()
                results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), HANG)
                errors = [result for result in results if isinstance(result, BaseException)]
                assert all(isinstance(error, asyncio.CancelledError) for error in errors)
                assert not any(isinstance(results[n], BaseException) for n in range(10) if n % 3)
                for number in (n for n in range(10) if n % 3):
                    assert await saver.aget_tuple(thread(f"t {attempt} {number}")) is not None

    asyncio.run(work())


# --- joined look-ups -----------------------------------------------------------------------------------


def check_found(found: Any, thread_id: str, number: int | None, writes: int = 0) -> None:
    """Check that a look-up found its own thread's checkpoint `number`; None for nothing."""
    assert (found is None) == (number is None), thread_id
    if found is not None:
        assert found.config["configurable"]["thread_id"] == thread_id
        assert found.checkpoint["id"] == f"{number:08d}"
        assert found.metadata["step"] == number
        assert found.checkpoint["channel_values"] == values_of(thread_id, number)
        assert found.pending_writes == written(number)[:writes]


async def get_all(saver: HarnessCheckpointer, wanted: list[tuple[str, int | None, str | None]]) -> None:
    """Look up threads all at once, each with the number of its checkpoint and the id to ask by."""
    found = await asyncio.gather(*(saver.aget_tuple(thread(name, id)) for name, _, id in wanted))
    for item, (name, number, _) in zip(found, wanted, strict=True):
        check_found(item, name, number, writes=number or 0)


def test_lookups_that_arrive_together_leave_together_and_each_gets_its_own(
    logged: tuple[PostgresServer, str, Log],
) -> None:
    _, url, log = logged
    lengths = {f"t {number}": number % 3 + 1 for number in range(60)}
    wanted: list[tuple[str, int | None, str | None]] = []
    for name, length in lengths.items():
        wanted += [(name, length - 1, None), (name, 0, "00000000"), (f"missing {name}", None, None)]

    async def fill(saver: HarnessCheckpointer, name: str) -> None:
        for number in range(lengths[name]):
            config = await saver.aput(*arguments_of(name, number))
            await saver.aput_writes(config, writes_of(number)[:number], "task")

    async def work() -> None:
        async with connect(url) as one, connect(url) as two:
            await asyncio.gather(*(fill(one, name) for name in lengths))
            await two.aget_tuple(thread("warm"))
            # Nothing is known, most is, and then some of that has been followed by another checkpoint.
            for _ in range(2):
                log.mark()
                await get_all(two, wanted)
                assert len(log.statements()) <= 40
            await get_all(two, [(name, None, "00000009") for name in lengths])
            for name in list(lengths)[::2]:
                await one.aput(*arguments_of(name, lengths[name]))
            later = {name: lengths[name] for name in list(lengths)[::2]}
            found = await asyncio.gather(*(two.aget_tuple(thread(name)) for name in lengths))
            for item, name in zip(found, lengths, strict=True):
                last = lengths[name] - 1
                check_found(item, name, later.get(name, last), writes=0 if name in later else last)

    asyncio.run(work())


def test_joined_lookups_of_branches_and_anchors(url: str) -> None:
    async def work() -> None:
        async with connect(url) as saver:
            engine = CheckpointEngine(saver)
            names = [f"t {number}" for number in range(12)]
            branches = {}
            for name in names:
                for number in range(3):
                    await saver.aput(*arguments_of(name, number))
                branches[name] = await engine.branch("00000001", "side", name)
                if name in names[::2]:
                    # What the branch began with is held by an anchor now.
                    await saver.aprune([name])
            async with connect(url) as fresh:
                for reader in (saver, fresh, fresh):
                    sides = [reader.aget_tuple(thread(branches[name])) for name in names]
                    mains = [reader.aget_tuple(thread(name)) for name in names]
                    found = await asyncio.gather(*sides, *mains)
                    for item, name in zip(found, names * 2, strict=True):
                        number = item.metadata["step"]
                        assert item.checkpoint["channel_values"] == values_of(name, number)

    asyncio.run(work())


def test_a_joined_lookup_sees_what_was_acknowledged_before_it(url: str) -> None:
    async def client(savers: list[HarnessCheckpointer], name: str) -> None:
        for number in range(12):
            writer, reader = savers[number % 2], savers[number % 3 % 2]
            config = await writer.aput(*arguments_of(name, number))
            check_found(await reader.aget_tuple(thread(name)), name, number)
            await writer.aput_writes(config, writes_of(number)[:1], "task")
            for saver in savers:
                check_found(await saver.aget_tuple(thread(name)), name, number, writes=1)

    async def work() -> None:
        async with connect(url) as one, connect(url) as two:
            await asyncio.gather(*(client([one, two], f"t {number}") for number in range(40)))

    asyncio.run(work())


def test_sync_callers_lookups_join(logged: tuple[PostgresServer, str, Log]) -> None:
    _, url, log = logged
    with connect(url) as saver:
        for number in range(8):
            put_many(saver, f"t {number}", 0, 1)

        def work(name: str) -> None:
            for _ in range(40):
                check_found(saver.get_tuple(thread(name)), name, 0, writes=3)

        log.mark()
        succeed([lambda n=number: work(f"t {n}") for number in range(8)])
        assert len(log.statements()) < 320


def test_a_cancelled_lookup_leaves_the_others_unharmed(url: str) -> None:
    async def work() -> None:
        async with connect(url) as saver, connect(url) as other:
            for number in range(10):
                await saver.aput(*arguments_of(f"t {number}", 0))
            for attempt in range(40):
                # At times nothing of them is known, at times all.
                reader = saver if attempt % 2 else other
                other._cache.clear()
                tasks = [asyncio.create_task(reader.aget_tuple(thread(f"t {n}"))) for n in range(10)]
                await asyncio.sleep(attempt * 0.0001)
                for task in tasks[attempt % 3 :: 3]:
                    task.cancel()
                results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), HANG)
                for number, result in enumerate(results):
                    if number % 3 != attempt % 3 or not isinstance(result, asyncio.CancelledError):
                        check_found(result, f"t {number}", 0)

    asyncio.run(work())


@pytest.mark.parametrize("known", [True, False])
def test_joined_lookups_whose_connection_is_killed_are_made_again(
    postgres_server: Any, url: str, known: bool
) -> None:
    name = schema_of(url)

    def waiting() -> list[Any]:
        return postgres_server.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'",
            (name,),
        )

    async def work() -> None:
        async with connect(url) as writer, connect(url) as reader:
            saver = writer if known else reader
            for number in range(20):
                await writer.aput(*arguments_of(f"t {number}", 0))
            await asyncio.gather(*(saver.aget_tuple(thread(f"none {number}")) for number in range(20)))
            with postgres_server.connect() as connection:
                connection.autocommit = False
                connection.execute(f"LOCK TABLE {name}.harness_checkpoint")
                tasks = [asyncio.create_task(saver.aget_tuple(thread(f"t {n}"))) for n in range(20)]
                held: list[Any] = []
                while len(held) < 2:
                    await asyncio.sleep(0.01)
                    held = waiting()
                for (pid,) in held:
                    terminate(postgres_server, name, pid)
                connection.rollback()
            found = await asyncio.wait_for(asyncio.gather(*tasks), HANG)
            for number, item in enumerate(found):
                check_found(item, f"t {number}", 0)

    asyncio.run(work())


def test_a_lookup_that_fails_fails_alone(postgres_server: Any, url: str) -> None:
    async def work() -> None:
        async with connect(url) as writer, connect(url) as reader:
            for number in range(20):
                await writer.aput(*arguments_of(f"t {number}", 0))
            key = thread_key("t 7")
            table = f"{schema_of(url)}.harness_checkpoint"
            postgres_server.execute(f"UPDATE {table} SET reach = 'damaged' WHERE thread = %s", (key,))
            calls = [reader.aget_tuple(thread(f"t {number}")) for number in range(20)]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), HANG)
            for number, result in enumerate(results):
                if number == 7:
                    assert type(result) is StoreError
                else:
                    check_found(result, f"t {number}", 0)

    asyncio.run(work())


def test_a_saver_that_closes_answers_lookups_that_wait(url: str) -> None:
    async def work() -> None:
        async with connect(url) as saver:
            for number in range(10):
                await saver.aput(*arguments_of(f"t {number}", 0))
            tasks = [asyncio.create_task(saver.aget_tuple(thread(f"t {n}"))) for n in range(10)]
            await asyncio.sleep(0)
        for number, result in enumerate(await asyncio.wait_for(asyncio.gather(*tasks), HANG)):
            check_found(result, f"t {number}", 0)

    asyncio.run(work())


# --- one saver, many loops -----------------------------------------------------------------------------


def test_two_connections_serve_every_thread_and_loop(postgres_server: Any, url: str) -> None:
    stop = threading.Event()
    most = 0

    def watch() -> None:
        nonlocal most
        counts: deque[int] = deque(maxlen=10)
        with postgres_server.connect() as connection:
            while not stop.is_set():
                query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
                counts.append(connection.execute(query, (schema_of(url),)).fetchone()[0])
                # A backend may outlive its connection for a moment.
                most = max(most, min(counts))
                time.sleep(0.002)

    async def tasks(worker: int) -> None:
        await asyncio.gather(*(aput_line(saver, f"task {worker} {task}", 0, 3) for task in range(5)))

    def loops(worker: int) -> None:
        for attempt in range(2):
            asyncio.run(tasks(worker * 10 + attempt))

    saver = connect(url, pool_size=2)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        works: list[Callable[[], Any]] = [lambda n=n: put_many(saver, f"thread {n}", 0, 4) for n in range(20)]
        succeed([*works, *(lambda n=n: loops(n) for n in range(4))], HANG)
    finally:
        stop.set()
        watcher.join()
    for number in range(20):
        check_thread(saver, f"thread {number}", 4)
    for worker in range(4):
        for attempt in range(2):
            for task in range(5):
                check_thread(saver, f"task {worker * 10 + attempt} {task}", 3)
    saver.close()
    assert postgres_server.left_connections(schema_of(url)) == []
    assert 1 <= most <= 2


def test_no_connection_is_left_when_a_loop_has_ended(postgres_server: Any, url: str) -> None:
    saver = connect(url)

    async def work() -> None:
        await asyncio.gather(*(aput_line(saver, f"t {n}", 0, 2) for n in range(5)))
        await asyncio.gather(*(saver.aget_tuple(thread(f"t {n}")) for n in range(5)))

    for _ in range(3):
        asyncio.run(work())
        assert postgres_server.left_connections(schema_of(url)) == []
    saver.close()


@pytest.mark.parametrize("then", ["close", "another loop", "sync"])
def test_a_loop_closed_without_shutdown(postgres_server: Any, url: str, then: str) -> None:
    saver = connect(url, pool_size=2)
    for attempt in range(3):
        loop = asyncio.new_event_loop()
        for number in range(2):
            loop.run_until_complete(aput_line(saver, f"t {attempt}", number, number + 1))
        loop.close()
        del loop
    if then == "another loop":
        asyncio.run(aput_line(saver, "u", 0, 1))
    elif then == "sync":
        put_many(saver, "u", 0, 1)
    saver.close()
    assert postgres_server.left_connections(schema_of(url)) == []
    gc.collect()


def test_sync_close_inside_the_loop_that_was_used(postgres_server: Any, url: str) -> None:
    async def work() -> float:
        with connect(url) as saver:
            await aput_line(saver, "t", 0, 2)
            begin = time.monotonic()
        took = time.monotonic() - begin
        assert await asyncio.to_thread(postgres_server.left_connections, schema_of(url)) == []
        return took

    # It can't wait for a loop that it holds up itself.
    assert asyncio.run(work()) < 2


def test_close_while_others_write(postgres_server: Any, url: str) -> None:
    saver = connect(url, pool_size=3, retry_seconds=2)
    saver.setup()
    started = threading.Event()

    def write(name: str) -> None:
        with suppress(StoreError):
            for number in count():
                saver.put(*arguments_of(name, number))
                started.set()

    async def awrite(name: str) -> None:
        with suppress(StoreError):
            for number in count():
                await saver.aput(*arguments_of(name, number))

    async def tasks() -> None:
        await asyncio.gather(*(awrite(f"task {n}") for n in range(5)))

    def close() -> None:
        started.wait(HANG)
        time.sleep(0.1)
        saver.close()

    results = in_threads(
        [*(lambda n=n: write(f"t {n}") for n in range(5)), lambda: asyncio.run(tasks()), close]
    )
    unexpected = [repr(result) for result in results if result is not None]
    assert unexpected == []
    assert postgres_server.left_connections(schema_of(url)) == []


def test_a_process_that_never_closes_ends_quietly(url: str) -> None:
    script = f"""
import asyncio, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_processes import arguments_of
from langgraph_harness_saver import HarnessCheckpointer
saver = HarnessCheckpointer.from_conn_string({url!r}, ttl_seconds=100)
saver.put(*arguments_of("t", 0))
asyncio.run(saver.aput(*arguments_of("t", 1)))
loop = asyncio.new_event_loop()
loop.run_until_complete(saver.aput(*arguments_of("t", 2)))
saver.prune(["t"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- setup, roles and schemas --------------------------------------------------------------------------


def set_up_and_put(url: str, worker: int) -> None:
    with connect(url) as saver:
        saver.setup()
        saver.put(*arguments_of(f"worker {worker}", 0))


def test_eight_processes_set_up_an_empty_database(postgres_server: Any) -> None:
    database = postgres_server.create_database()
    url = postgres_server.url(database)
    try:
        run_all(set_up_and_put, [(url, worker) for worker in range(8)])
        with connect(url) as saver:
            found = list(saver.list(None))
        check_line(found)
        assert len(found) == 8
        rows = postgres_server.execute("SELECT count(*) FROM harness_schema", database=database)
        assert rows == [(len(migrations("postgres")),)]
    finally:
        postgres_server.drop_database(database)


def test_eight_savers_make_the_same_schema(postgres_server: Any) -> None:
    name = new_name()
    savers = [connect(postgres_server.url(), schema=name) for _ in range(8)]
    succeed([saver.setup for saver in savers])
    for saver in savers:
        saver.close()
    postgres_server.execute(f"DROP SCHEMA {name} CASCADE")


def test_setup_is_in_nobodys_transaction(postgres_server: Any, url: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE mine (x int)")
        saver = HarnessCheckpointer(connection)
        saver.setup()
        connection.rollback()
        saver.put(*arguments_of("t", 0))
        saver.close()
    rows = postgres_server.execute("SELECT to_regclass(%s)::text", (f"{schema_of(url)}.mine",))
    assert rows == [(None,)]


def test_tables_that_may_not_be_made_are_named(postgres_server: Any, url: str) -> None:
    with pytest.raises(SchemaError, match=rf"missing.*{schema_of(url)}.*ddl postgres"):
        connect(url, create_schema=False).__enter__()
    with pytest.raises(SchemaError, match=r"missing.*not there.*ddl postgres"):
        connect(url, create_schema=False, schema="not there").__enter__()


@pytest.fixture
def role(postgres_server: Any) -> Iterator[tuple[str, str]]:
    """A role that may log in, and its URL."""
    name = new_name()
    yield name, postgres_server.create_role(name, "pässword/:@")
    postgres_server.execute(f"DROP OWNED BY {name}")
    postgres_server.execute(f"DROP ROLE {name}")


def run_psql(server: Any, script: str) -> subprocess.CompletedProcess[str]:
    import shutil

    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("no psql here")
    command = [psql, "-X", "-v", "ON_ERROR_STOP=1", "-q", server.url()]
    return subprocess.run(command, input=script, capture_output=True, text=True, check=False)


def ddl(*arguments: str) -> str:
    command = [sys.executable, "-m", "langgraph_harness_saver", "ddl", "postgres", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_role_without_ddl_rights_does_everything(postgres_server: Any, role: tuple[str, str]) -> None:
    name, url = role
    schema = f'Möbel "{name}" :x'
    quoted = '"' + schema.replace('"', '""') + '"'
    script = ddl("--schema", schema)
    assert run_psql(postgres_server, script).returncode == 0
    again = run_psql(postgres_server, script)
    assert again.returncode != 0
    assert "already exists" in again.stderr
    postgres_server.execute(f"GRANT USAGE ON SCHEMA {quoted} TO {name}")
    postgres_server.execute(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {quoted} TO {name}"
    )
    options = {"schema": schema, "create_schema": False}
    try:
        with connect(url, ttl_seconds=0.3, **options) as saver:
            put_many(saver, "expired", 0, 2)
            wait_for(
                lambda: (
                    postgres_server.execute(f"SELECT count(*) FROM {quoted}.harness_checkpoint") == [(0,)]
                ),
                HANG,
            )
        with connect(url, **options) as saver:
            put_many(saver, "t", 0, 10)
            # Again, under its own id: a revision.
            saver.put(*arguments_of("t", 9))
            saver.copy_thread("t", "u")
            saver.prune(["t"])
            found = list(saver.list(thread("t")))
            check_line(found)
            assert len(found) == 1
            assert len(list(saver.list(thread("u"), filter={"step": 3}))) == 1
            saver.delete_for_runs(["run"])
            assert saver.delete_thread("u") == 10
        with connect(url, schema=schema) as saver:
            check_line(list(saver.list(None)))
    finally:
        postgres_server.execute(f"DROP SCHEMA {quoted} CASCADE")


def test_ddl_for_psycopg(postgres_server: Any) -> None:
    name = new_name()
    script = ddl("--schema", name)
    postgres_server.execute(script)
    with connect(postgres_server.url(), schema=name, create_schema=False) as saver:
        put_many(saver, "t", 0, 1)
    postgres_server.execute(f"DROP SCHEMA {name} CASCADE")


def test_role_that_lacks_a_right_is_told_which(postgres_server: Any, role: tuple[str, str], url: str) -> None:
    name, own = role
    schema = schema_of(url)
    with connect(url) as saver:
        put_many(saver, "t", 0, 1)

    def failure() -> str:
        saver = connect(own, schema=schema, retry_seconds=2)
        try:
            seconds, error = timed(saver.setup)
        finally:
            saver.close()
        assert isinstance(error, StoreError)
        assert "pässword" not in str(error)
        assert seconds < 2
        return str(error)

    assert f"schema {schema}" in failure()
    postgres_server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    assert "harness_schema" in failure()
    postgres_server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {name}")
    assert "INSERT on harness_thread" in failure()
    postgres_server.execute(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name}"
    )
    for table in ("thread", "checkpoint", "write", "part"):
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            postgres_server.execute(f"REVOKE {right} ON {schema}.harness_{table} FROM {name}")
            assert f"{right} on harness_{table}" in failure()
            postgres_server.execute(f"GRANT {right} ON {schema}.harness_{table} TO {name}")
    postgres_server.execute(f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM public")
    assert "EXECUTE on" in failure()


def test_role_that_may_not_create(postgres_server: Any, role: tuple[str, str], url: str) -> None:
    name, own = role
    postgres_server.execute(f"GRANT USAGE ON SCHEMA {schema_of(url)} TO {name}")
    for schema in ("new one", schema_of(url)):
        saver = connect(own, schema=schema, retry_seconds=2)
        with pytest.raises(StoreError, match=r"may not create.*denied.*ddl postgres"):
            saver.setup()
        saver.close()


def test_wrong_urls_are_typed_errors_soon(postgres_server: Any) -> None:
    port = servers.free_port()
    right = postgres_server.url()
    wrong = {
        postgres_server.url(password="opensesame"): (StoreError, "password"),
        postgres_server.url(user="somebody", password="opensesame"): (StoreError, "somebody"),
        postgres_server.url("nosuchdb", password=servers.PASSWORD): (StoreError, "nosuchdb"),
        "postgresql://me:opensesame@no-such-host.invalid/db": (StoreUnavailableError, "no-such-host"),
        f"postgresql://me:opensesame@127.0.0.1:{port}/db": (StoreUnavailableError, str(port)),
        f"postgresql://me:opensesame@localhost:{port}/db": (StoreUnavailableError, str(port)),
    }
    assert right not in wrong
    for url, (kind, said) in wrong.items():
        saver = connect(url)
        seconds, error = timed(saver.setup)
        saver.close()
        assert type(error) is kind, url
        assert said in str(error)
        assert not re.search("opensesame|secret", f"{error} {error!r}")
        assert seconds < 5, url


def test_a_schema_of_an_older_version_is_brought_up_to_date(postgres_server: Any, url: str) -> None:
    schema = schema_of(url)
    postgres_server.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    postgres_server.execute(f"CREATE SCHEMA {schema}")
    postgres_server.execute(migration(1, schema))
    saver = connect(url, create_schema=False)
    with pytest.raises(SchemaError, match=r"migrations \[2.*--after 1"):
        saver.setup()
    saver.close()
    with connect(url) as first, connect(url) as second:
        succeed([first.setup, second.setup])
        put_many(first, "t", 0, 3)
        check_thread(second, "t", 3)
        first.run_sync(first.backend.add_events([EventRow("t", "0", b"e" * 16, b"", b"")]))
        first.delete_thread("t")
    assert postgres_server.execute(f"SELECT count(*) FROM {schema}.harness_event") == [(0,)]


@pytest.mark.parametrize("name", ["good", "x" * 3000])
def test_tags_outlast_that_their_table_is_rewritten(postgres_server: Any, url: str, name: str) -> None:
    schema = schema_of(url)
    postgres_server.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
    for number, text in migrations("postgres"):
        if "CLUSTER" in text:
            break
        postgres_server.execute(migration(number, schema))
    postgres_server.execute(f"GRANT SELECT ON {schema}.harness_tag TO PUBLIC")
    query = f"""
        WITH c AS (
          INSERT INTO {schema}.harness_checkpoint
            (rev, kind, thread, checkpoint_ns, checkpoint_id, metadata, body)
          VALUES (1, 0, %s, '', %s, '', '')
        )
        INSERT INTO {schema}.harness_tag VALUES (%s, %s, '', %s)
    """
    key, id_ = thread_key("t"), id_key("1")
    postgres_server.execute(query, (key, id_, key, name.encode(), id_))
    with connect(url) as saver:
        saver.setup()
        [tag] = saver.run_sync(saver.backend.tags("t"))
        assert tag == Tag(name, CheckpointKey("t", "", "1"))
    query = "SELECT relacl IS NULL, reltoastrelid = 0 FROM pg_class WHERE oid = %s::regclass"
    assert postgres_server.execute(query, (f"{schema}.harness_tag",)) == [(False, len(name) <= 2000)]


def test_newer_minor_works_and_newer_major_is_refused(postgres_server: Any, url: str) -> None:
    schema = schema_of(url)
    with connect(url) as older, connect(url) as newer:
        put_many(older, "t", 0, 3)
        put_many(newer, "u", 0, 3)
        # While they are at work, and their connections hold plans.
        postgres_server.execute(f"INSERT INTO {schema}.harness_schema VALUES (99, 1, 99)")
        for table in ("checkpoint", "write", "part", "thread"):
            postgres_server.execute(f"ALTER TABLE {schema}.harness_{table} ADD COLUMN extra text")
        for saver in (older, newer):
            put_many(saver, "t", 3, 6)
            check_thread(saver, "t", 6)
    with connect(url) as saver:
        put_many(saver, "t", 6, 8)
        check_thread(saver, "t", 8)
        saver.copy_thread("t", "v")
        saver.prune(["t"])
    postgres_server.execute(f"INSERT INTO {schema}.harness_schema VALUES (100, 2, 0)")
    saver = connect(url)
    with pytest.raises(SchemaError, match=r"version 2.*upgrade"):
        saver.setup()
    saver.close()


@pytest.mark.parametrize(
    "name", ['we"ird', "Grün", "a b", "select", "a'b", "a\\b", "a%sb", "{schema}", "x" * 63, "a$$b", "a\nb"]
)
def test_schema_of_any_name(postgres_server: Any, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    saver = connect(postgres_server.url(), schema=name)
    try:
        put_many(saver, "t", 0, 3)
        saver.copy_thread("t", "u")
        saver.prune(["t"])
        assert len(list(saver.list(None))) == 4
        assert saver.delete_thread("u") == 3
        rows = postgres_server.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename = 'harness_part'", (name,)
        )
        assert rows == [(1,)]
    finally:
        saver.close()
        postgres_server.execute(f"DROP SCHEMA IF EXISTS {quoted} CASCADE")


def test_two_schemas_are_apart(postgres_server: Any, url: str) -> None:
    other = new_name()
    with connect(url) as mine, connect(url, schema=other) as others:
        put_many(mine, "t", 0, 3)
        put_many(others, "t", 0, 5)
        check_thread(mine, "t", 3)
        check_thread(others, "t", 5)
        others.delete_thread("t")
        check_thread(mine, "t", 3)
    postgres_server.execute(f"DROP SCHEMA {other} CASCADE")


# --- poolers -------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(pgbouncer: PgBouncer, postgres_server: Any) -> Iterator[str]:
    """Lead through pgbouncer to a database of one's own."""
    database = postgres_server.create_database()
    yield pgbouncer.url(database)
    postgres_server.drop_database(database)


async def use_concurrently(saver: HarnessCheckpointer) -> None:
    await asyncio.gather(*(aput_line(saver, f"t {n}", 0, 6) for n in range(12)))
    found = await asyncio.gather(*(gather(saver.alist(thread(f"t {n}"))) for n in range(12)))
    for line in found:
        check_line(line)
        assert [item.pending_writes for item in line] == [written(number) for number in range(6)][::-1]
    await asyncio.gather(*(saver.aprune([f"t {n}"]) for n in range(6)))
    await asyncio.gather(*(saver.acopy_thread(f"t {n}", f"copy {n}") for n in range(6, 12)))
    assert await asyncio.gather(*(saver.adelete_thread(f"copy {n}") for n in range(6, 12))) == [6] * 6
    assert len(await gather(saver.alist(None, filter={"step": 5}))) == 12


def test_pgbouncer_by_itself(pooled: str) -> None:
    with connect(pooled) as saver, connect(pooled) as other:
        works: list[Callable[[], Any]] = [lambda n=n: put_many(other, f"thread {n}", 0, 4) for n in range(8)]
        succeed([*works, lambda: asyncio.run(use_concurrently(saver))], HANG)
        for number in range(8):
            check_thread(saver, f"thread {number}", 4)


def test_wrong_urls_through_pgbouncer_are_errors_soon(pgbouncer: PgBouncer, pooled: str) -> None:
    for url in (pgbouncer.url("nosuchdb"), pgbouncer.url(password="opensesame")):
        saver = connect(url, retry_seconds=6)
        seconds, error = timed(saver.setup)
        saver.close()
        assert isinstance(error, StoreError)
        assert "opensesame" not in str(error)
        assert seconds < 4, error


def test_given_pool_through_pgbouncer(pooled: str) -> None:
    async def work() -> None:
        async with asyncpg.create_pool(pooled, statement_cache_size=0, min_size=1) as pool:
            saver = HarnessCheckpointer(pool)
            await use_concurrently(saver)
            await saver.aclose()
            assert pool.get_idle_size() == pool.get_size()
            assert await pool.fetchval("SELECT 1") == 1

    asyncio.run(work())


@pytest.mark.parametrize("prepared_statements", [None, False])
def test_given_pool_with_a_cache_through_pgbouncer(pooled: str, prepared_statements: bool | None) -> None:
    async def work() -> None:
        async with asyncpg.create_pool(pooled, min_size=1) as pool:
            saver = HarnessCheckpointer(
                pool, config=CheckpointerConfig(prepared_statements=prepared_statements)
            )
            with pytest.raises((InvalidConfigError, StoreError), match="statement_cache_size=0"):
                await use_concurrently(saver)
            await saver.aclose()
            pool.terminate()

    asyncio.run(work())


def test_given_pool_stays_its_owners(postgres_server: Any, url: str) -> None:
    async def work() -> None:
        async with asyncpg.create_pool(url, min_size=1, max_size=3) as pool:
            saver = HarnessCheckpointer(pool)
            await use_concurrently(saver)
            assert pool.get_idle_size() == pool.get_size()
            with pytest.raises(InvalidConfigError, match=r"event loop.*async methods"):
                saver.get_tuple(thread("t 0"))
            with pytest.raises(InvalidConfigError, match="event loop"):
                await asyncio.to_thread(lambda: saver.put(*arguments_of("t", 0)))
            terminate(postgres_server, schema_of(url))
            assert await saver.aget_tuple(thread("t 0")) is not None
            await saver.aclose()
            assert await pool.fetchval("SELECT 1") == 1
            assert pool.get_idle_size() == pool.get_size()

    asyncio.run(work())


def test_given_pool_that_was_closed(url: str) -> None:
    async def work() -> None:
        pool = await asyncpg.create_pool(url, min_size=1)
        saver = HarnessCheckpointer(pool, config=CheckpointerConfig(retry_seconds=5))
        await saver.aput(*arguments_of("t", 0))
        await pool.close()
        begin = time.monotonic()
        with pytest.raises(StoreError, match="pool is closed"):
            await saver.aput(*arguments_of("t", 1))
        assert time.monotonic() - begin < 3
        await saver.aclose()

    asyncio.run(work())


# --- settings ------------------------------------------------------------------------------------------

SETTINGS = [
    "default_transaction_isolation=serializable",
    "default_transaction_isolation=repeatable\\ read",
    "statement_timeout=2000",
    "lock_timeout=50",
    "standard_conforming_strings=off",
    "bytea_output=escape",
    "TimeZone=Asia/Kathmandu",
    "DateStyle=German",
    "array_nulls=off",
    "extra_float_digits=-10",
    "client_min_messages=debug5",
    "idle_in_transaction_session_timeout=100",
    "search_path=pg_catalog",
]


def use_all(saver: HarnessCheckpointer, name: str) -> None:
    put_many(saver, name, 0, 12)
    put_many(saver, f"{name} too", 0, 3)
    for selected in (
        thread(name),
        thread(name, ns=""),
        None,
        {"configurable": {"checkpoint_id": "00000003"}},
    ):
        # Others are at work, too, and copies hold what was their sources'.
        found = [item for item in saver.list(selected) if item.config["configurable"]["thread_id"] == name]
        assert found
        check_line(found)
    check_thread(saver, name, 12)
    assert len(list(saver.list(thread(name), filter={"step": 3}))) == 1
    saver.copy_thread(name, f"{name} copy")
    saver.prune([name])
    check_line(list(saver.list(thread(name))))
    assert saver.delete_thread(f"{name} copy") == 12


@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_the_servers_settings(postgres_server: Any, setting: str) -> None:
    name = new_name()
    url = postgres_server.url(options=f"-c{setting}", application_name=name)
    try:
        with connect(url, schema=name, retry_seconds=10) as saver:
            works: list[Callable[[], Any]] = [lambda n=n: use_all(saver, f"thread {n}") for n in range(3)]
            succeed(works)
        assert postgres_server.left_connections(name) == []
    finally:
        postgres_server.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def test_concurrent_writers_on_a_serializable_server(postgres_server: Any, url: str) -> None:
    serializable = url.replace("options=", "options=-cdefault_transaction_isolation%3Dserializable%20")
    with connect(serializable) as one, connect(serializable) as two:
        works: list[Callable[[], Any]] = []
        for number, saver in enumerate((one, two) * 4):
            works.append(lambda s=saver, n=number: put_many(s, f"t {n}", 0, 10))
        succeed(works)
        for number in range(8):
            check_thread(one, f"t {number}", 10)


def test_read_only_default_is_a_clear_error(postgres_server: Any, url: str) -> None:
    with connect(url) as saver:
        put_many(saver, "t", 0, 1)
    read_only = url.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    with connect(read_only, retry_seconds=0.5) as saver:
        check_thread(saver, "t", 1)
        # It may as well do its work: it begins transactions of its own.
        _, result = timed(lambda: saver.put(*arguments_of("t", 1)))
        if isinstance(result, Exception):
            assert isinstance(result, StoreError)
            assert "default_transaction_read_only" in str(result)


@pytest.mark.parametrize("locale", ["icu:en-US", "en_US.UTF-8"])
def test_rows_come_in_order_of_their_bytes(locale: str) -> None:
    servers.skip_without()
    server = PostgresServer(locale=locale)
    try:
        server.start()
    except RuntimeError as error:
        server.close()
        pytest.skip(f"no such collation here: {error}")
    ids = ["B", "a", "Z", "b", "ä", "_x", "-y", "a b", "ab", "\U0001f600", "\uffff"]
    with server, connect(server.url()) as saver:
        for thread_id in ("Z", "a", "ä"):
            for checkpoint_id in random.sample(ids, len(ids)):
                _, checkpoint, metadata, versions = arguments_of(thread_id, 0)
                saver.put(thread(thread_id, ns=""), {**checkpoint, "id": checkpoint_id}, metadata, versions)
        expected = sorted(ids, key=str.encode, reverse=True)
        found = [item.checkpoint["id"] for item in saver.list(thread("a"))]
        assert found == expected
        latest = saver.get_tuple(thread("a"))
        assert latest is not None
        assert latest.checkpoint["id"] == expected[0]
        pairs = [(i.checkpoint["id"], i.config["configurable"]["thread_id"]) for i in saver.list(None)]
        assert pairs == [(checkpoint_id, t) for checkpoint_id in expected for t in ("Z", "a", "ä")]


# --- at once -------------------------------------------------------------------------------------------

STEPS = 80


def extend(url: str, done: Any) -> None:
    try:
        with connect(url) as saver:
            for number in range(STEPS):
                config = saver.put(*arguments_of("line", number))
                # Shares its large value with the checkpoint that comes next.
                noise = values_of("line", number + 1)["noise"]
                saver.put_writes(config, [*writes_of(number), ("noise", noise)], "task")
                head = saver.get_tuple(thread("line"))
                assert head is not None
                assert head.metadata["step"] == number
                assert head.pending_writes == [*written(number), ("task", "noise", noise)]
                check_line([head])
    finally:
        done.set()


def prune(url: str, done: Any) -> None:
    with connect(url) as saver:
        while not done.is_set():
            saver.prune(["line"])
            time.sleep(random.uniform(0, 0.01))


def copy(url: str, done: Any) -> None:
    with connect(url) as saver:
        for attempt in count():
            if done.is_set():
                return
            saver.copy_thread("line", f"copy {attempt}")
            for item in saver.list(thread(f"copy {attempt}")):
                assert item.checkpoint["channel_values"] == values_of("line", item.metadata["step"])
            if attempt % 2:
                saver.delete_thread(f"copy {attempt}")


def read(url: str, done: Any) -> None:
    with connect(url) as saver:
        while not done.is_set():
            check_line(list(saver.list(thread("line"))))


def call(target: Callable[..., None], *arguments: Any) -> None:
    target(*arguments)


def test_processes_prune_copy_and_read_what_another_extends(url: str) -> None:
    done = CLEAN.Event()
    run_all(call, [(target, url, done) for target in (extend, prune, copy, read)])
    with connect(url) as saver:
        found = list(saver.list(thread("line")))
        check_line(found)
        assert found[0].metadata["step"] == STEPS - 1
        noise = values_of("line", STEPS)["noise"]
        assert found[0].pending_writes == [*written(STEPS - 1), ("task", "noise", noise)]
        for item in saver.list(None):
            assert item.checkpoint["channel_values"] == values_of("line", item.metadata["step"])


def test_one_saver_deletes_prunes_and_copies_what_another_extends(postgres_server: Any, url: str) -> None:
    """Two async savers, many rounds; every checkpoint that is left can be read and is what was put."""

    async def extend(saver: HarnessCheckpointer, name: str, rng: random.Random) -> None:
        for number in range(12):
            config = await saver.aput(*arguments_of(name, number))
            noise = values_of(name, number + 1)["noise"]
            await saver.aput_writes(config, [("noise", noise)], f"task {number}")
            await asyncio.sleep(rng.uniform(0, 0.004))

    async def disturb(saver: HarnessCheckpointer, name: str, rng: random.Random) -> None:
        for attempt in range(6):
            await asyncio.sleep(rng.uniform(0, 0.01))
            which = rng.randrange(4)
            if which == 0:
                await saver.adelete_thread(name)
            elif which == 1:
                await saver.aprune([name])
            elif which == 2:
                await saver.acopy_thread(name, f"copy of {name}")
            else:
                await saver.aput(*arguments_of(name, attempt))

    async def check(saver: HarnessCheckpointer, name: str) -> None:
        for selected in (name, f"copy of {name}"):
            found = await gather(saver.alist(thread(selected)))
            for item in found:
                number = item.metadata["step"]
                assert item.checkpoint["channel_values"] == values_of(name, number)
                for task, _, value in item.pending_writes or ():
                    assert value == values_of(name, int(task.split()[1]) + 1)["noise"]
                one = await saver.aget_tuple(thread(selected, item.checkpoint["id"], ns=""))
                assert one is not None
                assert one.checkpoint == item.checkpoint

    async def work(ttl: float | None) -> None:
        async with connect(url, ttl_seconds=ttl) as one, connect(url, ttl_seconds=ttl) as two:
            for round_ in range(3):
                rng = random.Random(round_)
                names = [f"t {ttl} {round_} {number}" for number in range(16)]
                works = [extend(one, name, rng) for name in names] + [
                    disturb(two, name, rng) for name in names
                ]
                await asyncio.wait_for(asyncio.gather(*works), HANG)
                async with connect(url) as cold:
                    for name in names:
                        await check(cold, name)

    asyncio.run(work(None))
    asyncio.run(work(1000))
    schema = schema_of(url)
    # Every part that is left is named by somebody, and every thread has an end.
    lost = postgres_server.execute(
        f"SELECT count(*) FROM {schema}.harness_checkpoint c WHERE parts IS NOT NULL AND EXISTS ("
        "SELECT FROM generate_series(1, length(c.parts), 16) i"
        f" WHERE NOT EXISTS (SELECT FROM {schema}.harness_part h"
        " WHERE h.thread = c.thread AND h.part_id = substring(c.parts FROM i FOR 16)))"
    )
    assert lost == [(0,)]


def test_a_write_waits_for_who_deletes_what_it_names(postgres_server: Any, url: str) -> None:
    """Whoever names a part holds it, so that either the part stays or the write is told no."""
    schema, key, part = schema_of(url), CheckpointKey("t", "", "1"), PartRow(b"p" * 16, b"part")
    writes = [WriteRow(f"task {number}", "", 0, b"body", (part.part_id,)) for number in range(3)]

    async def work() -> None:
        async with connect(url) as saver:
            store = saver.backend
            await store.open()
            assert await store.put_writes(key, writes[:1], [part]) == PutResult.STORED
            for ends, expected in (("rollback", PutResult.STORED), ("commit", PutResult.BASE_GONE)):
                with postgres_server.connect() as connection:
                    connection.autocommit = False
                    connection.execute(f"DELETE FROM {schema}.harness_part")
                    writing = asyncio.create_task(store.put_writes(key, writes[1:2]))
                    await asyncio.wait([writing], timeout=0.2)
                    assert not writing.done()
                    getattr(connection, ends)()
                assert await asyncio.wait_for(writing, HANG) == expected
            assert await store.put_writes(key, writes[2:]) == PutResult.BASE_GONE

    asyncio.run(work())


def test_deadlocks_between_batches_are_retried(url: str) -> None:
    async def write(saver: HarnessCheckpointer, names: list[str], task: str) -> None:
        for number in range(3):
            await asyncio.gather(
                *(saver.aput_writes(thread(name, "x", ns=""), [("n", number)], task) for name in names)
            )

    names = [f"t {number}" for number in range(60)]
    # A TTL has every batch touch a row of each thread.
    with connect(url, ttl_seconds=1000) as one, connect(url, ttl_seconds=1000) as two:
        put_many(one, "t", 0, 1)

        def run(saver: HarnessCheckpointer, order: list[str], task: str) -> None:
            asyncio.run(write(saver, order, task))

        succeed([lambda: run(one, names, "a"), lambda: run(two, names[::-1], "b")])
        for name in names[::20]:
            one.put(thread(name, ns=""), {**arguments_of(name, 0)[1], "id": "x"}, {"step": 0}, {})
            found = one.get_tuple(thread(name))
            assert found is not None
            assert len(found.pending_writes or ()) == 6 or len(found.pending_writes or ()) == 2


# --- processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_sync, write_async])
def test_killed_writer_loses_nothing_acknowledged(
    write: Callable[..., None], url: str, tmp_path: Any
) -> None:
    acks = Acks(tmp_path / "acks")
    for seed in range(3):
        kill_amid(CLEAN.Process(target=write, args=(url, acks)), acks, seed)
        with connect(url) as saver:
            check_survivors(list(saver.list(None)), acks.read())


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


def test_fork_after_the_async_door_was_used(url: str) -> None:
    with connect(url) as saver:
        put_many(saver, "before", 0, 5)

        async def work() -> None:
            await saver.aput(*arguments_of("loop", 0))

            def in_child() -> None:
                asyncio.events._set_running_loop(None)
                use_in_child(saver)

            busy = [asyncio.create_task(aput_line(saver, f"busy {n}", 0, 5)) for n in range(5)]
            await asyncio.sleep(0.005)
            wait = forked(in_child)
            await saver.aput(*arguments_of("loop", 1))
            await asyncio.gather(*busy)
            await asyncio.to_thread(wait)
            await saver.aput(*arguments_of("loop", 2))

        asyncio.run(work())
        check_thread(saver, "loop", 3)
        check_thread(saver, "child", 6)
        for number in range(5):
            check_thread(saver, f"busy {number}", 5)


def test_fork_while_other_threads_write(url: str) -> None:
    stop = threading.Event()
    with connect(url, pool_size=3) as saver:
        put_many(saver, "before", 0, 5)
        lengths = [0] * 3

        def write(worker: int) -> None:
            while not stop.is_set():
                put_many(saver, f"busy {worker}", lengths[worker], lengths[worker] + 1)
                lengths[worker] += 1

        writers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
        for writer in writers:
            writer.start()
        try:
            for attempt in range(8):
                child = f"child {attempt}"
                forked(lambda child=child: write_briefly(saver, child))()
        finally:
            stop.set()
            for writer in writers:
                writer.join(HANG)
        for worker, length in enumerate(lengths):
            check_thread(saver, f"busy {worker}", length)
        for attempt in range(8):
            check_thread(saver, f"child {attempt}", 2)


def test_process_forked_by_multiprocessing(url: str) -> None:
    context = multiprocessing.get_context("fork")
    with connect(url) as saver:
        put_many(saver, "before", 0, 5)
        children = [context.Process(target=write_briefly, args=(saver, f"child {n}")) for n in range(3)]
        for child in children:
            child.start()
        put_many(saver, "parent", 0, 5)
        for child in children:
            child.join(HANG)
        assert [child.exitcode for child in children] == [0, 0, 0]
        check_thread(saver, "parent", 5)
        for number in range(3):
            check_thread(saver, f"child {number}", 2)


# --- expiry --------------------------------------------------------------------------------------------


def rows_of(server: Any, url: str, table: str) -> int:
    return int(server.execute(f"SELECT count(*) FROM {schema_of(url)}.harness_{table}")[0][0])


def expire(server: Any, url: str) -> None:
    server.execute(f"UPDATE {schema_of(url)}.harness_thread SET expires_at = 1")


def fill(url: str, threads: int) -> None:
    async def work() -> None:
        async with connect(url, ttl_seconds=1000) as saver:
            await asyncio.gather(*(aput_line(saver, f"t {n}", 0, 1) for n in range(threads)))

    asyncio.run(work())


def test_threads_come_in_order_whatever_the_planner_knows_of_the_tables(
    postgres_server: Any, url: str
) -> None:
    """With statistics, a hash join of them took less, and a collection skipped some and saw others twice."""
    fill(url, 60)
    postgres_server.execute("VACUUM ANALYZE")
    with connect(url) as saver:
        found: list[str] = []
        while page := saver._bridge.run(saver.backend.threads(found[-1] if found else None, 25)):
            found += page
    assert found == sorted((f"t {n}" for n in range(60)), key=thread_key)


def test_sweep_in_batches_by_several_at_once(postgres_server: Any, url: str) -> None:
    fill(url, 230)
    expire(postgres_server, url)
    savers = [connect(url, ttl_seconds=1000) for _ in range(3)]
    swept = succeed([lambda s=saver: s._bridge.run(s.backend.sweep()) for saver in savers])
    assert sum(swept) == 230
    assert [rows_of(postgres_server, url, table) for table in ("thread", "checkpoint", "write", "part")] == [
        0
    ] * 4
    for saver in savers:
        saver.close()


def test_sweep_blocks_no_other_thread_and_skips_who_is_written_to(postgres_server: Any, url: str) -> None:
    fill(url, 60)
    expire(postgres_server, url)
    schema = schema_of(url)
    with connect(url, ttl_seconds=1000) as saver, postgres_server.connect() as connection:
        with connection.transaction():
            # Somebody is at work on one of them, and the sweep is in the middle of its own.
            row = connection.execute(
                f"SELECT thread FROM {schema}.harness_thread LIMIT 1 FOR UPDATE"
            ).fetchone()
            swept = succeed([lambda: saver._bridge.run(saver.backend.sweep())], 10)
            assert swept == [59]
            put_many(saver, "other", 0, 2)
        with connection.transaction():
            connection.execute(f"SELECT FROM {schema}.harness_thread WHERE thread = %s FOR UPDATE", row)
            connection.execute(f"DELETE FROM {schema}.harness_checkpoint WHERE thread = %s", row)
            succeed([lambda: put_many(saver, "another", 0, 2)], 10)
        check_thread(saver, "other", 2)


def test_thread_written_to_while_it_is_swept_is_whole(postgres_server: Any, url: str) -> None:
    with connect(url, ttl_seconds=0.05) as writer, connect(url, ttl_seconds=0.05) as sweeper:
        stop = threading.Event()

        def sweep() -> None:
            while not stop.is_set():
                sweeper._bridge.run(sweeper.backend.sweep())

        def write() -> None:
            rng = random.Random(1)
            try:
                for number in range(150):
                    writer.put(*arguments_of("t", number))
                    found = writer.get_tuple(thread("t", f"{number:08d}", ns=""))
                    if found is not None:
                        check_line([found])
                    time.sleep(rng.choice([0, 0, 0.04, 0.06]))
            finally:
                stop.set()

        succeed([sweep, sweep, write])


# --- filters -------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(
        "",
        "a",
        "A",
        "a\x00b",
        "\x00",
        "\x1a",
        "\x1a0000",
        "\x1anan",
        "\ud800",
        "\udfff x",
        "\\u0000",
        "\u2028",
        "ä",
        "%",
    ),
    *("'; DROP TABLE harness_checkpoint; --", '"', "'", "\\", "{}", "null", "$1", "{schema}", "\U0001f600"),
    *(0, 1, -1, 2**53, 2**53 + 1, 2**63, -(2**63), 2**64 - 1),
    *(
        0.0,
        -0.0,
        1.0,
        1.5,
        0.1,
        1e300,
        1e-300,
        5e-324,
        float("nan"),
        float("inf"),
        float("-inf"),
        float(2**53),
    ),
    *(
        True,
        False,
        None,
        [],
        {},
        [1],
        [1.0],
        [True],
        [[1]],
        [1, 2, 3],
        [3, 1],
        ["a", ["b"]],
        [None],
        [{}],
        [[]],
    ),
    # Where a search for bytes stumbles: names and values in each other's place, or further in.
    *("k", "step", ["k"], {"k": "k"}, {"k": {"k": 1}}, {"x": {"k": "a"}}, "\xa1k", b"\xa1k\x01", 0xA16B01),
    *({"a": 1}, {"a": {"b": [1, {"c": None}]}}, {"a": {"b": [{"c": None}]}}, {"a": {}}, {"a": []}, {"": 1}),
    *(
        {"a\x00": "\ud800"},
        {"\x1a0000": 1},
        {"\x00": 1},
        {"a": 1, "b": 2},
        [{"a": 1, "b": 2}],
        [{"a": 1}, {"b": 2}],
    ),
    *({"__proto__": 1}, {"a": [1, 2]}, {"a": [2]}, "x" * 9000, ["x" * 9000]),
    *(datetime.date(2020, 1, 1), b"bytes", (1, 2), {"a": (1,)}),
]


def matching(saver: HarnessCheckpointer, wanted: dict[str, Any]) -> list[int]:
    return [item.metadata["step"] for item in saver.list(thread("t"), filter=wanted)]


def test_filters_find_what_they_find_in_memory(postgres_server: Any, url: str) -> None:
    names = ["k", "a'b\"", "$.k", "k\x00"]
    deep: Any = 1
    for _ in range(100):
        deep = {"d": deep}
    values = [*VALUES, deep]
    with connect(url) as saver, connect("memory://") as memory:
        for number, value in enumerate(values):
            config, checkpoint, _, versions = arguments_of("t", number)
            metadata: Any = {"step": number, names[0]: value, names[1 + number % 3]: value}
            for each in (saver, memory):
                each.put(config, checkpoint, metadata, versions)
        # Rows of an earlier release, which found them by this column alone.
        table = f"{schema_of(url)}.harness_checkpoint"
        postgres_server.execute(f"UPDATE {table} SET search = '{{}}' WHERE rev % 2 = 0")
        differing = []
        for wanted in (
            *values,
            10**40,
            2**1100,
            -(2**1100),
            [[1], 1],
            {"a": {"b": []}},
            [1, 1],
            [[]],
            {"a": {"b": [{}]}},
        ):
            for name in names:
                expected = matching(memory, {name: wanted})
                found = matching(saver, {name: wanted})
                if found != expected:
                    differing.append((name, wanted, found, expected))
        assert differing == []
        for wanted in ({}, {"k": 1, "step": 24}, {"none": None}, {"k": None}):
            assert matching(saver, wanted) == matching(memory, wanted)


def test_an_earlier_release_finds_what_this_one_stores(postgres_server: Any, url: str) -> None:
    schema = schema_of(url)

    def found_earlier(wanted: str) -> list[int]:
        call = f"{schema}.harness_scan(0, 99, %s, '', NULL, NULL, NULL, NULL, NULL, %s)"
        notes = postgres_server.execute(f"SELECT note FROM {call} WHERE what = 0", (thread_key("t"), wanted))
        return [unpack(note[1:])["step"] for (note,) in notes]

    with connect(url) as saver:
        for number in range(4):
            saver.put(*arguments_of("t", number))
        assert found_earlier('{"step": 2}') == [3, 2, 1, 0]
        postgres_server.execute(f"UPDATE {schema}.harness_checkpoint SET search = '{{\"step\": 2}}'")
        assert found_earlier('{"step": 1}') == []
        # What is written anew isn't hidden by what was said of it before.
        saver.prune(["t"])
        assert found_earlier('{"step": 1}') == [3]


# What a review has found


def test_sync_call_on_a_loop_that_holds_every_connection(url: str) -> None:
    async def work(saver: Any) -> None:
        await asyncio.gather(*(saver.aget_tuple(thread("t")) for _ in range(40)))
        # The loop stands still while this call waits for a connection.
        assert saver.get_tuple(thread("t")) is not None

    with connect(url, pool_size=2) as saver:
        put_many(saver, "t", 0, 1)
        _, result = timed(lambda: asyncio.run(work(saver)))
        assert result is None


def test_writes_that_come_during_a_revision_stay(url: str) -> None:
    with connect(url) as one, connect(url) as two:
        put_many(one, "t", 0, 1)
        config = one.get_tuple(thread("t")).config
        key = CheckpointKey("t", "", config["configurable"]["checkpoint_id"])
        one.put_writes(config, [("before", 1)], "task before")

        def plan(family: Family) -> Change:
            two.put_writes(config, [("during", 1)], "task during")
            return Change(writes={key: family.writes[key]})

        one._bridge.run(one.backend.revise("t", plan))
        found = {channel for _, channel, _ in two.get_tuple(thread("t")).pending_writes}
        assert {"before", "during"} <= found


def test_conditional_put_waits_for_a_revision(url: str) -> None:
    with connect(url) as one, connect(url) as two:
        put_many(one, "t", 0, 1)
        head = one.get_tuple(thread("t")).config["configurable"]["checkpoint_id"]
        row = one._bridge.run(one.backend.load("t")).rows[CheckpointKey("t", "", head)]
        beyond = row._replace(key=row.key._replace(checkpoint_id="~"), reach=(), parts=())
        putting: list[threading.Thread] = []
        results: list[Any] = []

        def put() -> None:
            rival = beyond._replace(key=row.key._replace(checkpoint_id="~~"))
            results.append(timed(lambda: two._bridge.run(two.backend.put(rival, head=head)))[1])

        def plan(family: Family) -> Change:
            if not putting:
                putting.append(threading.Thread(target=put))
                putting[0].start()
                time.sleep(0.3)
            assert max(key.checkpoint_id for key in family.rows) == head
            return Change(rows=[beyond])

        one._bridge.run(one.backend.revise("t", plan))
        putting[0].join(HANG)
        assert [type(result) for result in results] == [HeadMovedError]


# What asyncio itself says of such a loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_loop_closed_in_the_middle_of_a_call_keeps_no_connection(url: str) -> None:
    with connect(url, pool_size=1) as saver:
        saver.setup()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(saver.aget_tuple(thread("t")))
        task = loop.create_task(saver.aget_tuple(thread("t")))
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del task, loop
        gc.collect()
        assert saver.get_tuple(thread("t")) is None
