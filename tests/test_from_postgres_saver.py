"""Code that was written for PostgresSaver, with another import and another class name.

Each way of building and using one runs with PostgresSaver and with ours, and comes to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import re
import subprocess
import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import pytest
import servers
from conftest import wait_until_gone
from helpers import gather, view, view_stored
from langchain_core.messages import AnyMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from psycopg import AsyncConnection, Connection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from typing_extensions import TypedDict

from langgraph_harness_saver import CheckpointerConfig, HarnessCheckpointer, InvalidConfigError

pytest.importorskip("langgraph.checkpoint.postgres")

from langgraph.checkpoint.postgres import PostgresSaver, ShallowPostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver, AsyncShallowPostgresSaver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from servers import PgBouncer, Server

pytestmark = pytest.mark.skipif(
    servers.reason_not_to_run() is not None, reason=str(servers.reason_not_to_run())
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "from-postgres-saver.md"
KWARGS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
CONFIG: Any = {"configurable": {"thread_id": "1"}}


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    names: Annotated[list[str], add]
    approved: bool


def ask(state: State) -> State:
    return {"messages": [("ai", "hello")], "names": ["ask"]}


def approve(state: State) -> State:
    return {"approved": interrupt("go on?"), "names": ["approve"]}


def make_builder() -> Any:
    builder = StateGraph(State)
    builder.add_sequence([ask, approve])
    builder.add_edge(START, "ask")
    return builder


builder = make_builder()


def work(saver: Any) -> Any:
    """Use a saver as a graph does, and tell all that there is to see of it."""
    graph = builder.compile(checkpointer=saver)
    first = graph.invoke({"messages": [("user", "hi")]}, CONFIG)
    last = graph.invoke(Command(resume=True), CONFIG)
    history = list(graph.get_state_history(CONFIG))
    return view([first, last, history]), view_stored(list(saver.list(CONFIG)))


async def awork(saver: Any) -> Any:
    graph = builder.compile(checkpointer=saver)
    first = await graph.ainvoke({"messages": [("user", "hi")]}, CONFIG)
    last = await graph.ainvoke(Command(resume=True), CONFIG)
    history = await gather(graph.aget_state_history(CONFIG))
    return view([first, last, history]), view_stored(await gather(saver.alist(CONFIG)))


@pytest.fixture
def server(postgres_server: Server) -> Server:
    return postgres_server


@contextmanager
def schema(server: Server) -> Iterator[str]:
    """Give the URL of an empty schema; fail if a connection or a thread stays when nothing refers to it."""
    before = set(threading.enumerate())
    url = servers.new_schema_url(server)
    yield url
    gc.collect()
    left = server.left_connections(servers.schema_of(url))
    threads = wait_until_gone(before)
    for pid, _, _ in left:
        server.execute("SELECT pg_terminate_backend(%s)", (pid,))
    servers.drop_schema(server, url)
    assert left == []
    assert threads == []


def both(server: Server, theirs: type[Any], way: Callable[[Any, str], Any], *, closing: bool = True) -> Any:
    """Run code with their class and with ours, each in an empty schema; the results are to be equal.

    Most of it never closes a saver. What that leaves is what tests without `closing` are about.
    """
    with schema(server) as url:
        expected = way(theirs, url)
    assert expected is not None
    with schema(server) as url, recorded() as savers:
        found = way(HarnessCheckpointer, url)
        while savers:
            saver = savers.pop()
            if closing:
                saver.close()
            del saver
    assert found == expected
    return found


@contextmanager
def recorded() -> Iterator[list[HarnessCheckpointer]]:
    """Note every saver of ours that is made."""
    made: list[HarnessCheckpointer] = []
    original = HarnessCheckpointer.__init__

    def note(self: HarnessCheckpointer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HarnessCheckpointer, "__init__", note)
        yield made


def of_loop(way: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda saver_class, url: asyncio.run(way(saver_class, url))


# --- the README of langgraph-checkpoint-postgres ---------------------------------------------------

CHECKPOINT: Any = {
    "v": 4,
    "ts": "2024-07-31T20:14:19.804150+00:00",
    "id": "1ef4f797-8335-6428-8001-8a1503f9b875",
    "channel_values": {"my_key": "meow", "node": "node"},
    "channel_versions": {"__start__": 2, "my_key": 3, "start:node": 3, "node": 3},
    "versions_seen": {"__input__": {}, "__start__": {"__start__": 1}, "node": {"start:node": 2}},
}
WRITE_CONFIG: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}


def test_readme(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as checkpointer:
            checkpointer.setup()
            stored = checkpointer.put(WRITE_CONFIG, CHECKPOINT, {}, {})
            return stored, checkpointer.get(CONFIG), list(checkpointer.list(CONFIG))

    both(server, PostgresSaver, way)


def test_readme_async(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as checkpointer:
            await checkpointer.setup()
            stored = await checkpointer.aput(WRITE_CONFIG, CHECKPOINT, {}, {})
            listed = [item async for item in checkpointer.alist(CONFIG)]
            return stored, await checkpointer.aget(CONFIG), listed

    both(server, AsyncPostgresSaver, of_loop(way))


def test_docstrings(server: Server) -> None:
    """Those of PostgresSaver.put, get_tuple, list, put_writes, delete_thread."""

    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as memory:
            memory.setup()
            checkpoint: Any = {
                **empty_checkpoint(),
                "ts": "2024-05-04T06:32:42.235444+00:00",
                "id": "1ef4f797-8335-6428-8001-8a1503f9b875",
                "channel_values": {"key": "value"},
            }
            saved = memory.put(WRITE_CONFIG, checkpoint, {"source": "input", "step": 1}, {})
            memory.put_writes(saved, [("key", "other")], "task", "path")
            before: Any = {"configurable": {"checkpoint_id": "1ef4f798-8335-6428-8001-8a1503f9b875"}}
            found = (
                saved,
                memory.get_tuple(CONFIG),
                memory.get_tuple(saved),
                list(memory.list(CONFIG, limit=2)),
                list(memory.list(CONFIG, before=before)),
                list(memory.list(CONFIG, before=saved)),
                list(memory.list(None, filter={"source": "input"})),
                list(memory.list(None, filter={"source": "loop"})),
            )
            memory.delete_thread("1")
            return found, memory.get_tuple(CONFIG)

    both(server, PostgresSaver, way)


# --- from_conn_string ------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [False, True])
def test_from_conn_string(server: Server, pipeline: bool) -> None:
    def way(saver_class: Any, url: str) -> Any:
        # PostgresSaver's own setup doesn't work within a pipeline.
        with saver_class.from_conn_string(url) as checkpointer:
            checkpointer.setup()
        with saver_class.from_conn_string(url, pipeline=pipeline) as checkpointer:
            return work(checkpointer)

    both(server, PostgresSaver, way)


@pytest.mark.parametrize("pipeline", [False, True])
def test_from_conn_string_async(server: Server, pipeline: bool) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as checkpointer:
            await checkpointer.setup()
        async with saver_class.from_conn_string(url, pipeline=pipeline) as checkpointer:
            return await awork(checkpointer)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_pipeline_is_ignored_with_a_debug_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "langgraph_harness_saver")
    with schema(server) as url:
        with HarnessCheckpointer.from_conn_string(url, pipeline=True):
            pass
        with psycopg.connect(url) as conn, conn.pipeline() as pipe, HarnessCheckpointer(conn, pipe):
            pass
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [text for level, text in told if level == "DEBUG" and "ignored" in text] == [
        "pipeline is ignored: calls are sent together by themselves",
        "pipe is ignored: calls are sent together by themselves",
    ]
    assert [text for level, text in told if level != "DEBUG"] == []


def test_conn_string_by_name(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(conn_string=url) as checkpointer:
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_serde_of_from_conn_string(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        serde = JsonPlusSerializer(allowed_msgpack_modules=None)
        async with saver_class.from_conn_string(url, serde=serde) as checkpointer:
            await checkpointer.setup()
            return await awork(checkpointer)

    both(server, AsyncPostgresSaver, of_loop(way))


@pytest.mark.parametrize("scheme", ["postgres://", "postgresql://"])
def test_url_of_the_documentation(server: Server, scheme: str) -> None:
    def way(saver_class: Any, url: str) -> Any:
        uri = scheme + url.partition("://")[2] + "&sslmode=disable"
        with saver_class.from_conn_string(uri) as checkpointer:
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_keywords_instead_of_a_url(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(
            psycopg.conninfo.make_conninfo(url, connect_timeout=10)
        ) as checkpointer:
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_keepalives_in_the_url(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        more = "&keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5"
        async with saver_class.from_conn_string(url + more) as checkpointer:
            await checkpointer.setup()
            return await awork(checkpointer)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_exit_stack(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        stack = ExitStack()
        checkpointer = stack.enter_context(saver_class.from_conn_string(url))
        checkpointer.setup()
        try:
            return work(checkpointer)
        finally:
            stack.close()

    both(server, PostgresSaver, way)


def test_async_exit_stack(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with AsyncExitStack() as stack:
            checkpointer = await stack.enter_async_context(saver_class.from_conn_string(url))
            await checkpointer.setup()
            return await awork(checkpointer)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_entered_by_hand(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        context = saver_class.from_conn_string(url)
        checkpointer = context.__enter__()
        checkpointer.setup()
        found = work(checkpointer)
        context.__exit__(None, None, None)
        return found

    both(server, PostgresSaver, way)


def test_entered_by_hand_async(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        context = saver_class.from_conn_string(url)
        checkpointer = await context.__aenter__()
        await checkpointer.setup()
        found = await awork(checkpointer)
        await context.__aexit__(None, None, None)
        return found

    both(server, AsyncPostgresSaver, of_loop(way))


def test_generator_that_yields_a_saver(server: Server) -> None:
    """A dependency or a factory of one's own around it."""

    def way(saver_class: Any, url: str) -> Any:
        @contextmanager
        def get_checkpointer() -> Iterator[BaseCheckpointSaver[str]]:
            with saver_class.from_conn_string(url) as saver:
                saver.setup()
                yield saver

        with get_checkpointer() as saver:
            assert isinstance(saver, BaseCheckpointSaver)
            return work(saver)

    both(server, PostgresSaver, way)


def test_one_saver_after_another_on_the_same_data(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            builder.compile(checkpointer=saver).invoke({"names": ["a"]}, CONFIG)
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            return view(builder.compile(checkpointer=saver).invoke(Command(resume=True), CONFIG))

    both(server, PostgresSaver, way)


def test_with_lets_errors_through(server: Server) -> None:
    def fail(url: str) -> None:
        with HarnessCheckpointer.from_conn_string(url) as saver:
            saver.setup()
            raise ZeroDivisionError

    with schema(server) as url, pytest.raises(ZeroDivisionError):
        fail(url)


# --- a connection or a pool ------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [KWARGS, {"autocommit": True}, {**KWARGS, "prepare_threshold": None}])
def test_connection(server: Server, kwargs: dict[str, Any]) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with Connection.connect(url, **kwargs) as conn:
            checkpointer = saver_class(conn)
            checkpointer.setup()
            found = work(checkpointer)
            assert not conn.closed
            return found, len(conn.execute("SELECT 1").fetchall())

    both(server, PostgresSaver, way)


def test_connection_without_autocommit_and_dict_rows(server: Server) -> None:
    with schema(server) as url, psycopg.connect(url) as conn:
        with HarnessCheckpointer(conn) as checkpointer:
            checkpointer.setup()
            work(checkpointer)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_connection_with_a_pipeline(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with Connection.connect(url, **KWARGS) as conn:
            saver_class(conn).setup()
            with conn.pipeline() as pipe:
                return work(saver_class(conn, pipe=pipe))

    both(server, PostgresSaver, way)


def test_connection_from_a_pool(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, min_size=1, max_size=2, kwargs=KWARGS) as pool, pool.connection() as conn:
            checkpointer = saver_class(conn)
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_setup_with_one_saver_and_work_with_another(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, min_size=1, max_size=2, kwargs=KWARGS) as pool:
            with pool.connection() as conn:
                saver_class(conn).setup()
            return work(saver_class(pool))

    both(server, PostgresSaver, way)


def test_connection_async(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with await AsyncConnection.connect(url, **KWARGS) as conn:
            checkpointer = saver_class(conn)
            await checkpointer.setup()
            found = await awork(checkpointer)
            assert not conn.closed
            return found

    both(server, AsyncPostgresSaver, of_loop(way))


def test_connection_async_with_a_pipeline(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with await AsyncConnection.connect(url, **KWARGS) as conn:
            await saver_class(conn).setup()
            async with conn.pipeline() as pipe:
                return await awork(saver_class(conn=conn, pipe=pipe, serde=None))

    both(server, AsyncPostgresSaver, of_loop(way))


@pytest.mark.parametrize("by_name", [False, True])
def test_pool(server: Server, by_name: bool) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(conninfo=url, max_size=20, kwargs=KWARGS) as pool:
            checkpointer = saver_class(conn=pool) if by_name else saver_class(pool)
            checkpointer.setup()
            found = work(checkpointer)
            with pool.connection() as conn:
                return found, len(conn.execute("SELECT 1").fetchall())

    both(server, PostgresSaver, way)


def test_pool_stays_open_when_ours_is_closed(server: Server) -> None:
    with schema(server) as url, ConnectionPool(url, kwargs=KWARGS) as pool:
        with HarnessCheckpointer(pool) as saver:
            work(saver)
        assert not pool.closed
        with pool.connection() as conn:
            assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_pool_opened_and_waited_for(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        pool = ConnectionPool(url, min_size=1, max_size=5, kwargs=KWARGS, open=False)
        pool.open()
        pool.wait()
        checkpointer = saver_class(pool)
        checkpointer.setup()
        found = work(checkpointer)
        pool.close()
        return found

    both(server, PostgresSaver, way)


def test_pool_opened_after_the_saver_is_made(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        pool = ConnectionPool(url, kwargs=KWARGS, open=False)
        checkpointer = saver_class(pool)
        with pool:
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_pool_with_checks_and_hooks(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        made = []
        with ConnectionPool(
            url,
            min_size=0,
            max_size=4,
            max_idle=300,
            max_lifetime=300,
            kwargs={**KWARGS, "keepalives": 1, "keepalives_idle": 30, "connect_timeout": 10},
            check=ConnectionPool.check_connection,
            configure=made.append,
        ) as pool:
            checkpointer = saver_class(pool)
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_pool_whose_kwargs_say_where(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        kwargs = psycopg.conninfo.conninfo_to_dict(url)
        with ConnectionPool(kwargs={**kwargs, **KWARGS}) as pool:
            checkpointer = saver_class(pool)
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_pool_with_a_callable_conninfo(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(lambda: url, kwargs=lambda: KWARGS) as pool:
            checkpointer = saver_class(pool)
            checkpointer.setup()
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_pool_shared_with_a_store(server: Server) -> None:
    from langgraph.store.postgres import PostgresStore

    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, kwargs=KWARGS) as pool:
            checkpointer, store = saver_class(pool), PostgresStore(pool)
            checkpointer.setup()
            store.setup()
            store.put(("a",), "key", {"value": 1})
            item = store.get(("a",), "key")
            assert item is not None
            return work(checkpointer), item.value

    both(server, PostgresSaver, way)


@pytest.mark.parametrize("by_name", [False, True])
def test_async_pool(server: Server, by_name: bool) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with AsyncConnectionPool(conninfo=url, max_size=20, kwargs=KWARGS) as pool:
            checkpointer = saver_class(conn=pool) if by_name else saver_class(pool)
            await checkpointer.setup()
            found = await awork(checkpointer)
            async with pool.connection() as conn:
                return found, await (await conn.execute("SELECT 1 AS one")).fetchall()

    both(server, AsyncPostgresSaver, of_loop(way))


def test_async_pool_opened_by_hand(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        pool = AsyncConnectionPool(url, max_size=5, kwargs=KWARGS, open=False)
        await pool.open(wait=True, timeout=10)
        checkpointer = saver_class(pool)
        await checkpointer.setup()
        found = await awork(checkpointer)
        await pool.close()
        return found

    both(server, AsyncPostgresSaver, of_loop(way))


def test_async_pool_in_a_lifespan(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        app = types.SimpleNamespace(state=types.SimpleNamespace())

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            async with AsyncConnectionPool(url, max_size=10, kwargs=KWARGS) as pool:
                checkpointer = saver_class(pool)
                await checkpointer.setup()
                app.state.graph = builder.compile(checkpointer=checkpointer)
                yield

        async with lifespan(app):
            configs: list[Any] = [{"configurable": {"thread_id": str(number)}} for number in range(20)]
            answers = await asyncio.gather(*(app.state.graph.ainvoke({"names": ["a"]}, c) for c in configs))
        return view(answers)

    both(server, AsyncPostgresSaver, of_loop(way))


@pytest.mark.parametrize("positional", [False, True])
def test_serde_of_the_constructor(server: Server, positional: bool) -> None:
    def way(saver_class: Any, url: str) -> Any:
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
        with ConnectionPool(url, kwargs=KWARGS) as pool:
            checkpointer = saver_class(pool, None, serde) if positional else saver_class(pool, serde=serde)
            checkpointer.setup()
            assert checkpointer.serde is serde
            return work(checkpointer)

    both(server, PostgresSaver, way)


def test_serde_set_afterwards(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as checkpointer:
            checkpointer.setup()
            checkpointer.serde = JsonPlusSerializer(pickle_fallback=True)
            return work(checkpointer)

    both(server, PostgresSaver, way)


@pytest.mark.parametrize("theirs", [ShallowPostgresSaver, AsyncShallowPostgresSaver])
def test_shallow(server: Server, theirs: Any) -> None:
    """They are deprecated in favour of `durability="exit"`, and hold the latest state only."""

    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, kwargs=KWARGS) as pool:
            saver = saver_class(pool)
            saver.setup()
            graph = builder.compile(checkpointer=saver)
            graph.invoke({"names": ["a"]}, CONFIG, durability="exit")
            graph.invoke(Command(resume=True), CONFIG, durability="exit")
            return view(graph.get_state(CONFIG).values)

    async def away(saver_class: Any, url: str) -> Any:
        async with AsyncConnectionPool(url, kwargs=KWARGS) as pool:
            saver = saver_class(pool)
            await saver.setup()
            graph = builder.compile(checkpointer=saver)
            await graph.ainvoke({"names": ["a"]}, CONFIG, durability="exit")
            await graph.ainvoke(Command(resume=True), CONFIG, durability="exit")
            return view((await graph.aget_state(CONFIG)).values)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*ShallowPostgresSaver")
        both(server, theirs, way if theirs is ShallowPostgresSaver else of_loop(away))


# --- using it --------------------------------------------------------------------------------------


def test_setup_twice_and_from_several_processes_worth_of_savers(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as one, saver_class.from_conn_string(url) as other:
            one.setup()
            one.setup()
            other.setup()
            return work(other)

    both(server, PostgresSaver, way)


def test_what_setup_returns(server: Server) -> None:
    """Some look at it before they await it."""

    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as saver:
            await asyncio.wait_for(saver.setup(), 30)
            made = saver.setup()
            assert asyncio.iscoroutine(made)
            task = asyncio.create_task(made)
            await asyncio.gather(task, saver.setup())
            return await awork(saver)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_setup_by_asyncio_run(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async def set_up() -> None:
            async with saver_class.from_conn_string(url) as saver:
                await saver.setup()

        await asyncio.to_thread(lambda: asyncio.run(set_up()))
        async with saver_class.from_conn_string(url) as saver:
            return await awork(saver)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_sync_setup_and_use_within_a_running_loop(server: Server) -> None:
    """PostgresSaver in a notebook or an async handler blocks the loop, and works."""

    async def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            return work(saver)

    both(server, PostgresSaver, of_loop(way))


def test_sync_use_from_threads(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, max_size=4, kwargs=KWARGS) as pool:
            checkpointer = saver_class(pool)
            checkpointer.setup()
            graph = builder.compile(checkpointer=checkpointer)

            def run(number: int) -> Any:
                config: Any = {"configurable": {"thread_id": str(number)}}
                graph.invoke({"names": [str(number)]}, config)
                return view(graph.invoke(Command(resume=number), config))

            with ThreadPoolExecutor(8) as executor:
                return list(executor.map(run, range(16)))

    both(server, PostgresSaver, way)


def test_sync_calls_of_the_async_saver_from_another_thread(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as saver:
            await saver.setup()
            found = await awork(saver)
            listed = await asyncio.to_thread(lambda: list(saver.list(CONFIG)))
            first = await asyncio.to_thread(saver.get_tuple, CONFIG)
            stored = await asyncio.to_thread(saver.put, WRITE_CONFIG, CHECKPOINT, {}, {})
            await asyncio.to_thread(saver.put_writes, stored, [("a", 1)], "task", "path")
            graph = builder.compile(checkpointer=saver)
            state = await asyncio.to_thread(graph.get_state, CONFIG)
            await asyncio.to_thread(saver.delete_thread, "1")
            return (
                found,
                view_stored(listed),
                view(first.checkpoint["channel_values"]),
                stored,
                view(state),
                await saver.aget_tuple(CONFIG),
            )

    both(server, AsyncPostgresSaver, of_loop(way))


def test_prune_and_delete(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as saver:
            await saver.setup()
            await awork(saver)
            await saver.aprune(["1"])
            kept = view_stored(await gather(saver.alist(CONFIG)))
            await saver.aprune(["1"], strategy="delete")
            pruned = await gather(saver.alist(CONFIG))
            await awork(saver)
            await saver.adelete_thread("1")
            return kept, pruned, await gather(saver.alist(CONFIG))

    both(server, AsyncPostgresSaver, of_loop(way))


def test_with_several_savers_and_stores_in_one_with(server: Server) -> None:
    from langgraph.store.postgres.aio import AsyncPostgresStore

    async def way(saver_class: Any, url: str) -> Any:
        async with (
            AsyncPostgresStore.from_conn_string(url) as store,
            saver_class.from_conn_string(url) as checkpointer,
        ):
            await store.setup()
            await checkpointer.setup()
            graph = builder.compile(checkpointer=checkpointer, store=store)
            return view(await graph.ainvoke({"names": ["a"]}, CONFIG))

    both(server, AsyncPostgresSaver, of_loop(way))


def test_streaming(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with saver_class.from_conn_string(url) as saver:
            await saver.setup()
            graph = builder.compile(checkpointer=saver)
            return view(await gather(graph.astream({"names": ["a"]}, CONFIG, stream_mode="values")))

    both(server, AsyncPostgresSaver, of_loop(way))


def test_subclass(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        class Counting(saver_class):
            def __init__(self, conn: Any, pipe: Any = None, serde: Any = None) -> None:
                super().__init__(conn=conn, pipe=pipe, serde=serde)
                self.puts = 0

            def put(self, *args: Any, **kwargs: Any) -> Any:
                self.puts += 1
                return super().put(*args, **kwargs)

        with ConnectionPool(url, kwargs=KWARGS) as pool:
            saver = Counting(pool)
            saver.setup()
            return work(saver), saver.puts

    both(server, PostgresSaver, way)


def test_subclass_made_by_from_conn_string(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        class Locked(saver_class):
            def __init__(self, conn: Any, *args: Any, **kwargs: Any) -> None:
                super().__init__(conn, *args, **kwargs)
                self.own = asyncio.Lock()

            async def aput(self, *args: Any, **kwargs: Any) -> Any:
                async with self.own:
                    return await super().aput(*args, **kwargs)

        async with Locked.from_conn_string(url) as saver:
            await saver.setup()
            assert type(saver) is Locked
            return await awork(saver)

    both(server, AsyncPostgresSaver, of_loop(way))


def test_subclass_with_the_signature_of_theirs_made_by_from_conn_string(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        class Plain(saver_class):
            def __init__(self, conn: Any, pipe: Any = None, serde: Any = None) -> None:
                super().__init__(conn, pipe, serde)

        with Plain.from_conn_string(url) as saver:
            saver.setup()
            return work(saver)

    both(server, PostgresSaver, way)


def test_conn_is_what_was_given(server: Server) -> None:
    """Health checks and clean-ups go through `saver.conn`."""

    def way(saver_class: Any, url: str) -> Any:
        with ConnectionPool(url, kwargs=KWARGS) as pool:
            saver = saver_class(pool)
            assert saver.conn is pool
            with saver.conn.connection() as conn:
                return conn.execute("SELECT 1 AS one").fetchone()

    both(server, PostgresSaver, way)


def test_type_annotations(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            assert isinstance(saver, (saver_class, BaseCheckpointSaver))
            return [spec is None for spec in saver.config_specs], saver.get_next_version(
                None, None
            ) is not None

    both(server, PostgresSaver, way)


def test_from_conn_string_checks_nothing_before_it_is_entered(server: Server) -> None:
    """A module may make it before the server is there."""

    def way(saver_class: Any, url: str) -> Any:
        saver_class.from_conn_string("postgresql://127.0.0.1:1/nowhere")
        return True

    both(server, PostgresSaver, way)


def test_server_that_is_not_there_is_an_error_at_once(server: Server) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with (
            pytest.raises(Exception, match=r"refused|Connect call failed"),
            saver_class.from_conn_string("postgresql://127.0.0.1:1/x"),
        ):
            pass
        return True

    both(server, PostgresSaver, way)


def test_both_keep_their_tables_in_one_schema(server: Server) -> None:
    with schema(server) as url:
        with PostgresSaver.from_conn_string(url) as old:
            old.setup()
            expected = work(old)
        with HarnessCheckpointer.from_conn_string(url) as new:
            new.setup()
            assert list(new.list(None)) == []
            assert work(new) == expected
            new.delete_thread("1")
        with PostgresSaver.from_conn_string(url) as old:
            assert view_stored(list(old.list(CONFIG))) == expected[1]
        tables = server.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s", (servers.schema_of(url),)
        )
        ours = [name for (name,) in tables if not name.startswith("checkpoint")]
        assert all(name.startswith("harness_") for name in ours)
        assert {"harness_thread", "harness_checkpoint", "harness_schema"} < set(ours)


def test_list_order(server: Server) -> None:
    """Newest id first, over threads and namespaces alike."""

    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            order = [("a", "", 3), ("b", "", 1), ("a", "x", 2), ("b", "y", 5), ("a", "", 4)]
            for thread_id, ns, number in order:
                config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns}}
                checkpoint = {**CHECKPOINT, "id": f"1ef4f797-8335-642{number}-8001-8a1503f9b875"}
                saver.put(config, checkpoint, {"step": number}, {})
            return [item.config for item in saver.list(None)], [item.metadata for item in saver.list(CONFIG)]

    both(server, PostgresSaver, way)


@pytest.mark.parametrize("thread_id", ["1", 7, "ä/é", "a" * 500])
def test_thread_ids_and_metadata(server: Server, thread_id: Any) -> None:
    def way(saver_class: Any, url: str) -> Any:
        with saver_class.from_conn_string(url) as saver:
            saver.setup()
            config: Any = {
                "configurable": {"thread_id": thread_id, "user_id": "u1"},
                "metadata": {"tenant": "t", "n": 2, "nested": {"left": "out"}},
                "tags": ["x"],
                "run_name": "run",
            }
            builder.compile(checkpointer=saver).invoke({"names": ["a"]}, config)
            place: Any = {"configurable": {"thread_id": thread_id}}
            metadata = [view(item.metadata) for item in saver.list(place)]
            by_user = len(list(saver.list(None, filter={"user_id": "u1"})))
            return metadata, by_user, len(list(saver.list(place, filter={"tenant": "other"})))

    if isinstance(thread_id, int):
        # psycopg would compare text with a number.
        with schema(server) as url:
            assert way(HarnessCheckpointer, url)[1] == 3
    else:
        both(server, PostgresSaver, way)


# --- left open -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["connection", "pool"])
def test_saver_that_nobody_closes(server: Server, source: str) -> None:
    """Its connections and its thread go with the last reference to it."""

    def way(saver_class: Any, url: str) -> Any:
        def request(number: int) -> Any:
            config: Any = {"configurable": {"thread_id": str(number)}}
            with ExitStack() as stack:
                if source == "pool":
                    conn: Any = stack.enter_context(
                        ConnectionPool(url, min_size=1, max_size=1, kwargs=KWARGS)
                    )
                else:
                    conn = stack.enter_context(psycopg.connect(url, **KWARGS))
                checkpointer = saver_class(conn)
                checkpointer.setup()
                return view(builder.compile(checkpointer=checkpointer).invoke({"names": ["a"]}, config))

        return [request(number) for number in range(5)]

    with schema(server) as url:
        expected = way(PostgresSaver, url)
    with schema(server) as url:
        assert way(HarnessCheckpointer, url) == expected


def test_saver_that_nobody_closes_on_a_loop_that_goes_on(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async def request(number: int) -> Any:
            config: Any = {"configurable": {"thread_id": str(number)}}
            async with AsyncConnectionPool(url, max_size=1, min_size=1, kwargs=KWARGS) as pool:
                checkpointer = saver_class(pool)
                await checkpointer.setup()
                return view(
                    await builder.compile(checkpointer=checkpointer).ainvoke({"names": ["a"]}, config)
                )

        answers = [await request(number) for number in range(5)]
        gc.collect()
        for _ in range(200):
            await asyncio.sleep(0.01)
            left = server.connections(servers.schema_of(url))
            if not left:
                break
        return answers, left

    with schema(server) as url:
        expected = asyncio.run(way(AsyncPostgresSaver, url))
    with schema(server) as url:
        assert asyncio.run(way(HarnessCheckpointer, url)) == expected


def test_saver_that_nobody_closes_on_a_loop_that_ends(server: Server) -> None:
    async def way(saver_class: Any, url: str) -> Any:
        async with AsyncConnectionPool(url, kwargs=KWARGS) as pool:
            checkpointer = saver_class(pool)
            await checkpointer.setup()
            return await awork(checkpointer)

    both(server, AsyncPostgresSaver, of_loop(way), closing=False)


LEFT_OPEN = """
import sys
from psycopg_pool import ConnectionPool
from langgraph_harness_saver import HarnessCheckpointer

pool = ConnectionPool(sys.argv[1], kwargs={"autocommit": True})
saver = HarnessCheckpointer(pool)
saver.setup()
print(saver.get_tuple({"configurable": {"thread_id": "1"}}))
pool.close()
"""


def test_a_process_may_end_without_closing_ours(server: Server) -> None:
    with schema(server) as url:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", LEFT_OPEN, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "None\n", "")


def test_what_cannot_be_a_connection_is_an_error() -> None:
    for conn in (object(), 7, "postgresql://localhost/x"):
        with pytest.raises(InvalidConfigError):
            HarnessCheckpointer(conn)


# --- docs/from-postgres-saver.md -------------------------------------------------------------------


class Diff:
    """A diff on the page: two programs."""

    def __init__(self, section: str, lines: list[str]) -> None:
        self.section = section
        self.before = "\n".join(line[1:] for line in lines if line[:1] != "+")
        self.after = "\n".join(line[1:] for line in lines if line[:1] != "-")


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", page(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def diffs() -> list[Diff]:
    return [
        Diff(name, block.splitlines()) for name, text in sections().items() for block in blocks(text, "diff")
    ]


DIFFS = [
    pytest.param(number, id=f"{number}-{diff.section.replace(' ', '-')}")
    for number, diff in enumerate(diffs())
]
QUESTION = {"messages": [("user", "hi")], "names": ["a"]}


class FastAPI:
    """What the page uses of it."""

    def __init__(self, lifespan: Any) -> None:
        self.lifespan = lifespan
        self.state = types.SimpleNamespace()
        self.routes: list[Any] = []

    def post(self, path: str) -> Callable[[Any], Any]:
        return lambda route: self.routes.append(route) or route

    async def serve(self) -> None:
        async with self.lifespan(self):
            answers = await asyncio.gather(*(self.routes[0](str(number), QUESTION) for number in range(5)))
            print(*answers, sep="\n")


@contextmanager
def database(server: Server, pooler: PgBouncer | None) -> Iterator[tuple[str, str]]:
    """Give an empty database's name and where programs are to connect; nobody is to stay connected."""
    before = set(threading.enumerate())
    name = server.create_database()
    yield name, server.url(name, application_name=name) if pooler is None else pooler.url(name)
    gc.collect()
    left = server.left_connections(name)
    threads = wait_until_gone(before)
    server.drop_database(name)
    assert left == []
    assert threads == []


def run_program(program: str, url: str, monkeypatch: pytest.MonkeyPatch, **names: Any) -> str:
    """Run a program of the page as it stands; return what it prints."""
    monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(FastAPI=FastAPI))
    names = {"DB_URI": url, "builder": make_builder(), "question": QUESTION, "config": CONFIG, **names}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, str(PAGE), "exec"), names)
        if "app" in names:
            asyncio.run(names["app"].serve())
    return view(printed.getvalue())


class Role:
    """A role that may not create tables, and a password that changes."""

    def __init__(self, server: Server, name: str, url: str) -> None:
        self.server, self.database = server, name
        self.name = servers.new_name()
        self.server.create_role(self.name, "secret")
        self.url = self.server.url(name, user=self.name, password="secret", application_name=name)
        self.url_without_password = self.url.replace(":secret@", "@")
        self.tokens = 0

    async def token(self) -> str:
        self.tokens += 1
        return "secret"

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.server.execute(statement, database=self.database)

    def drop(self) -> None:
        self.execute(f"DROP OWNED BY {self.name}", f"DROP ROLE {self.name}")


@pytest.mark.filterwarnings("ignore:ShallowPostgresSaver:DeprecationWarning")
@pytest.mark.parametrize("number", DIFFS)
def test_both_sides_of_a_diff_do_the_same(
    number: int, server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff = diffs()[number]
    pooler = request.getfixturevalue("pgbouncer") if diff.section == "PgBouncer" else None
    prepare = {"Passwords that expire": expiring, "A role that may not create tables": restricted}.get(
        diff.section
    )
    printed = []
    for program in (diff.before, diff.after):
        with database(server, pooler) as (name, url), ExitStack() as stack:
            names: dict[str, Any] = {}
            if prepare is not None:
                role = Role(server, name, url)
                stack.callback(role.drop)
                names = prepare(role, url, program)
                url = names.pop("url")
            printed.append(run_program(program, url, monkeypatch, **names))
            if "token" in names:
                assert role.tokens > 1
            if pooler is not None:
                # It keeps its own connections to the database.
                pooler.stop()
                pooler.start()
    assert printed[0]
    assert printed[0] == printed[1]
    assert "PostgresSaver" in diff.before
    assert "HarnessCheckpointer" in diff.after
    assert "PostgresSaver" not in diff.after


def expiring(role: Role, url: str, program: str) -> dict[str, Any]:
    role.execute(f"GRANT ALL ON SCHEMA public TO {role.name}")
    return {"url": role.url_without_password, "token": role.token}


def restricted(role: Role, url: str, program: str) -> dict[str, Any]:
    """Do as the owner what the page says, or what one did for PostgresSaver."""
    text = sections()["A role that may not create tables"]
    if "HarnessCheckpointer" in program:
        [command] = re.findall(r"^python (-m .*) \| psql", text, re.MULTILINE)
        ddl = subprocess.run(
            [sys.executable, *command.split()], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        [grants] = blocks(text, "sql")
        role.execute(ddl, re.sub(r"\bapp\b", role.name, grants))
    else:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
        role.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role.name}")
    return {"url": role.url}


def test_the_page_shows_every_way() -> None:
    before = "\n".join(diff.before for diff in diffs())
    for way in (
        " PostgresSaver.from_conn_string(",
        " AsyncPostgresSaver.from_conn_string(",
        " PostgresSaver(pool)",
        " AsyncPostgresSaver(pool)",
        " PostgresSaver(conn)",
        " ShallowPostgresSaver.from_conn_string(",
    ):
        assert way in before


def test_links_and_options_of_the_page_are_there() -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]+)?\)", page()):
        found = (PAGE.parent / target).read_text(encoding="utf-8")
        titles = [
            re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
            for title in re.findall(r"^#+ (.+)", found, re.M)
        ]
        assert not anchor or anchor[1:] in titles
    options = set(re.findall(r"(\w+)=", page())) & {
        "pool_size",
        "schema",
        "create_schema",
        "prepared_statements",
    }
    assert options == {"pool_size", "schema", "create_schema", "prepared_statements"}
    for name in (*options, "ttl_seconds", "retry_seconds"):
        assert name in CheckpointerConfig.model_fields
        assert name in page()


@pytest.mark.parametrize("how", ["conninfo", "kwargs"])
def test_pool_that_computes_where_it_connects(
    server: Server, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with schema(server) as url:
        made = (
            ConnectionPool(lambda: url, open=False)
            if how == "conninfo"
            else ConnectionPool(kwargs=lambda: psycopg.conninfo.conninfo_to_dict(url), open=False)
        )
        with HarnessCheckpointer(made) as saver:
            work(saver)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "what it says now is used from now on" in record.getMessage()


async def test_pool_that_computes_where_it_connects_in_a_coroutine() -> None:
    async def conninfo() -> str:
        raise AssertionError("nobody calls it")

    with pytest.raises(InvalidConfigError, match="in a coroutine"):
        HarnessCheckpointer(AsyncConnectionPool(conninfo, open=False))


# --- taking threads along --------------------------------------------------------------------------

[COPY] = blocks(sections()["Taking your threads along"], "python")


def test_copying_takes_at_most_twenty_lines() -> None:
    assert len(COPY.splitlines()) <= 20


class Tree(TypedDict, total=False):
    names: Annotated[list[str], add]
    answers: Annotated[list[Any], add]
    jobs: list[str]


def make_tree() -> Any:
    """Parallel tasks, of which one fails at first; Send; and a question within a subgraph's subgraph."""

    def inner_ask(state: Tree) -> Tree:
        return {"answers": [interrupt({"who": "inner"})]}

    inner = StateGraph(Tree)
    inner.add_node("begin", lambda state: {"names": ["inner"]})
    inner.add_node("ask", inner_ask)
    inner.add_edge(START, "begin")
    inner.add_edge("begin", "ask")

    middle = StateGraph(Tree)
    middle.add_node("inner", inner.compile())
    middle.add_node("after", lambda state: {"names": ["after"]})
    middle.add_edge(START, "inner")
    middle.add_edge("inner", "after")

    def job(state: Any) -> Tree:
        if state["job"] == "b":
            return {"answers": [interrupt({"who": "b"})], "names": ["b"]}
        return {"names": [state["job"]]}

    tree = StateGraph(Tree)
    tree.add_node("middle", middle.compile())
    tree.add_node("plain", lambda state: {"names": ["plain"]})
    tree.add_node("job", job)
    tree.add_node("end", lambda state: {"names": ["end"]})
    tree.add_conditional_edges(
        START, lambda state: ["middle", "plain", *(Send("job", {"job": one}) for one in state["jobs"])]
    )
    tree.add_edge(["middle", "plain"], "end")
    return tree


def answer_all(graph: Any, config: Any) -> Any:
    state = graph.get_state(config, subgraphs=True)
    answers = {one.id: one.value["who"] for one in state.interrupts}
    return graph.invoke(Command(resume=answers), config)


def seen(saver: Any, graph: Any, config: Any) -> Any:
    snapshots = list(graph.get_state_history(config))
    return (
        view(snapshots),
        view(graph.get_state(config, subgraphs=True)),
        view_stored(list(saver.list(config))),
    )


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "user": "u"}, "metadata": {"tenant": "t"}}


def test_interrupted_threads_go_on_after_copying(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, talk = make_tree(), make_builder()
    ids = ("waiting", "answered", "chat", "done")
    with schema(server) as url:
        with PostgresSaver.from_conn_string(url) as old:
            old.setup()
            graph, chat = tree.compile(checkpointer=old), talk.compile(checkpointer=old)
            for name in ("waiting", "answered"):
                graph.invoke({"jobs": ["a", "b", "c"]}, thread(name))
            answer_all(graph, thread("answered"))
            for name in ("chat", "done"):
                chat.invoke(QUESTION, thread(name))
            chat.invoke(Command(resume=True), thread("done"))
            before = {name: seen(old, graph if name in ids[:2] else chat, thread(name)) for name in ids}
            raw = {
                name: [(t.config, t.parent_config, t.metadata, t.checkpoint) for t in old.list(thread(name))]
                for name in ids
            }

        run_program(COPY, url, monkeypatch)
        run_program(COPY, url, monkeypatch)

        with HarnessCheckpointer.from_conn_string(url) as new:
            copied = tree.compile(checkpointer=new), talk.compile(checkpointer=new)
            after = {name: seen(new, copied[name not in ids[:2]], thread(name)) for name in ids}
            assert after == before
            found = {
                name: [(t.config, t.parent_config, t.metadata, t.checkpoint) for t in new.list(thread(name))]
                for name in ids
            }
            assert view(found) == view(raw)
            went_on = [
                view(answer_all(copied[0], thread("waiting"))),
                view(copied[1].invoke(Command(resume=True), thread("chat"))),
                view(copied[1].invoke(QUESTION, thread("done"))),
            ]
            [old_step] = [s for s in copied[1].get_state_history(thread("done")) if s.metadata["step"] == 1]
            forked = view(
                copied[1].invoke(
                    Command(resume=False), copied[1].update_state(old_step.config, {"names": ["fork"]})
                )
            )
        with PostgresSaver.from_conn_string(url) as old:
            graph, chat = tree.compile(checkpointer=old), talk.compile(checkpointer=old)
            assert {
                name: seen(old, graph if name in ids[:2] else chat, thread(name)) for name in ids
            } == before
            assert went_on == [
                view(answer_all(graph, thread("waiting"))),
                view(chat.invoke(Command(resume=True), thread("chat"))),
                view(chat.invoke(QUESTION, thread("done"))),
            ]
            [old_step] = [s for s in chat.get_state_history(thread("done")) if s.metadata["step"] == 1]
            assert forked == view(
                chat.invoke(Command(resume=False), chat.update_state(old_step.config, {"names": ["fork"]}))
            )


def test_copied_writes_keep_their_places(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that runs again writes to the same places, and the first write stays."""
    with schema(server) as url:
        with PostgresSaver.from_conn_string(url) as old:
            old.setup()
            graph = make_tree().compile(checkpointer=old)
            graph.invoke({"jobs": ["a", "b", "c"]}, CONFIG)
            answer_all(graph, CONFIG)
        run_program(COPY, url, monkeypatch)
        with HarnessCheckpointer.from_conn_string(url) as new:
            before = list(new.list(CONFIG))
            for found in before:
                for task_id in {write[0] for write in found.pending_writes or ()}:
                    again = [
                        w[1:]
                        for w in found.pending_writes or ()
                        if w[0] == task_id and w[1] not in WRITES_IDX_MAP
                    ]
                    new.put_writes(found.config, [(channel, "again") for channel, _ in again], task_id)
            assert view_stored(list(new.list(CONFIG))) == view_stored(before)


def extend(log: list[str], writes: Any) -> list[str]:
    return [*log, *(item for write in writes for item in write)]


def test_delta_channels_go_on_after_copying(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What parallel tasks wrote is replayed in the order of their paths, so these have to be there."""
    from langgraph.channels.delta import DeltaChannel

    types_of = {"log": Annotated[list, DeltaChannel(extend, list, snapshot_frequency=3)], "n": int}
    build = StateGraph(TypedDict("Log", types_of))
    build.add_node("one", lambda state: {"log": [f"one{state['n']}"]})
    build.add_node("send", lambda state: {"log": [f"sent{state['n']}"]})
    build.add_conditional_edges(START, lambda state: ["one", *(Send("send", {"n": n}) for n in range(5))])
    with schema(server) as url:
        with PostgresSaver.from_conn_string(url) as old:
            old.setup()
            graph = build.compile(checkpointer=old)
            for n in range(7):
                graph.invoke({"n": n, "log": [f"in{n}"]}, CONFIG)
            before = [view(state.values) for state in graph.get_state_history(CONFIG)]
        run_program(COPY, url, monkeypatch)
        with HarnessCheckpointer.from_conn_string(url) as new:
            graph = build.compile(checkpointer=new)
            assert [view(state.values) for state in graph.get_state_history(CONFIG)] == before
            last = graph.invoke({"n": 7, "log": []}, CONFIG)["log"]
        with PostgresSaver.from_conn_string(url) as old:
            assert last == build.compile(checkpointer=old).invoke({"n": 7, "log": []}, CONFIG)["log"]


def test_task_that_had_finished_does_not_run_again_after_copying(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def is_stored() -> bool:
        found = old.get_tuple(CONFIG)
        return any(value == ["once"] for _, _, value in (found and found.pending_writes) or ())

    def fail(state: Tree) -> Tree:
        ran.append("fail")
        if ran.count("fail") == 1:
            # What the other did is stored by then: LangGraph would wait for nobody.
            servers.wait_for(is_stored, 30)
            raise ValueError("at first")
        return {"names": ["fail"]}

    def once(state: Tree) -> Tree:
        ran.append("once")
        return {"names": ["once"]}

    build = StateGraph(Tree)
    build.add_node(fail)
    build.add_node(once)
    build.add_edge(START, "fail")
    build.add_edge(START, "once")
    with schema(server) as url:
        with PostgresSaver.from_conn_string(url) as old:
            old.setup()
            with pytest.raises(ValueError, match="at first"):
                build.compile(checkpointer=old).invoke({"names": []}, CONFIG)
        finished = ran.count("once")
        run_program(COPY, url, monkeypatch)
        with HarnessCheckpointer.from_conn_string(url) as new:
            assert sorted(build.compile(checkpointer=new).invoke(None, CONFIG)["names"]) == ["fail", "once"]
    assert (finished, ran.count("once")) == (1, 1)
