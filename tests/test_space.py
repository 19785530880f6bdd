"""What is stored for what was put: bytes on disk, counted whole."""

from __future__ import annotations

import asyncio
import random
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
import servers
from helpers import REDIS_KINDS, url_of_prefix
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import END, START, MessagesState, StateGraph

from langgraph_harness_saver import HarnessCheckpointer

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNS = 200


class Prose:
    """English text of any length, nothing said twice."""

    def __init__(self) -> None:
        topics = pytest.importorskip("pydoc_data.topics", reason="this Python came without its help texts")
        texts = [" ".join(topics.topics[name].split()) for name in sorted(topics.topics)]
        random.Random(7).shuffle(texts)
        self._text = " ".join(texts)
        self._position = 0

    def next(self, size: int) -> str:
        self._position += size
        assert self._position <= len(self._text)
        return self._text[self._position - size : self._position]


@pytest.fixture
def prose() -> Prose:
    return Prose()


def chat(saver: Any, prose: Prose) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [AIMessage(prose.next(800))]})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=saver)


def talk(path: Path | str, config: Any, prose: Prose, turns: int, **options: Any) -> None:
    url = path if isinstance(path, str) else f"sqlite:///{path}"
    with HarnessCheckpointer.from_conn_string(url, **options) as saver:
        graph = chat(saver, prose)
        for _ in range(turns):
            graph.invoke({"messages": [HumanMessage(prose.next(200))]}, config)


def new_thread() -> Any:
    return {"configurable": {"thread_id": str(uuid.uuid4())}}


def stored(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "agents.db"


def test_chat_grows_with_its_turns_not_with_their_square(folder: Path, path: Path, prose: Prose) -> None:
    config = new_thread()
    talk(path, config, prose, 20)
    early = stored(shutil.copytree(folder, folder.parent / "early")) / 20
    talk(path, config, prose, TURNS - 20)
    late = stored(shutil.copytree(folder, folder.parent / "late")) / TURNS
    print(f"\nchat: {early:,.0f} bytes a turn at 20 turns, {late:,.0f} at {TURNS}")
    assert late < 7_000
    assert abs(late - early) <= 0.25 * early
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        assert len(chat(saver, prose).get_state(config).values["messages"]) == 2 * TURNS


def test_short_chats_cost_no_more(folder: Path, path: Path, prose: Prose) -> None:
    for _ in range(5):
        talk(path, new_thread(), prose, 20)
    print(f"\nfive chats: {stored(folder) / 100:,.0f} bytes a turn")
    assert stored(folder) / 100 < 7_000


def test_prune_and_delete_give_space_back(folder: Path, path: Path, prose: Prose) -> None:
    config, other = new_thread(), new_thread()
    talk(path, other, prose, 1)
    least = stored(folder)
    talk(path, config, prose, 100)
    full = stored(folder)
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        saver.prune([config["configurable"]["thread_id"]])
        held = stored(folder)
    pruned = stored(folder)
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
        assert len(chat(saver, prose).get_state(config).values["messages"]) == 200
        saver.delete_thread(config["configurable"]["thread_id"])
    deleted = stored(folder)
    print(f"\nfull {full:,}, pruned {pruned:,} ({held:,} while open), deleted {deleted:,}, before {least:,}")
    # What is left is one state of 100 KB of text.
    assert pruned < 100_000
    assert held < full
    assert deleted <= least * 1.2


@pytest.mark.parametrize("method", ["prune", "delete_thread"])
def test_async_door_gives_space_back_too(folder: Path, path: Path, prose: Prose, method: str) -> None:
    config = new_thread()
    talk(path, config, prose, 60)
    full, thread_id = stored(folder), config["configurable"]["thread_id"]

    async def shrink() -> None:
        async with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
            await getattr(saver, f"a{method}")([thread_id] if method == "prune" else thread_id)

    asyncio.run(shrink())
    assert stored(folder) < full / 2


class Reading(TypedDict):
    document: bytes
    notes: list[str]


def reader(saver: Any, document: bytes) -> Any:
    graph = StateGraph(Reading)
    graph.add_node("load", lambda state: {"document": document, "notes": []})
    graph.add_node("read", lambda state: {"notes": [*state["notes"], f"note {len(state['notes'])}"]})
    graph.add_edge(START, "load")
    graph.add_edge("load", "read")
    graph.add_conditional_edges("read", lambda state: "read" if len(state["notes"]) < 50 else END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("encrypted", [False, True])
def test_large_document_is_stored_at_most_twice(folder: Path, path: Path, encrypted: bool) -> None:
    document = random.Random(1).randbytes(5_000_000)
    serde = make_encrypted() if encrypted else None
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}", serde=serde) as saver:
        graph = reader(saver, document)
        final = graph.invoke({"notes": []}, {**new_thread(), "recursion_limit": 100})
    assert final["document"] == document
    assert len(final["notes"]) == 50
    print(f"\ndocument of {len(document):,}: {stored(folder):,} stored, {encrypted=}")
    # SQLite's own bookkeeping is 1 to 2 %.
    assert stored(folder) < 2 * len(document) * 1.03


def make_encrypted() -> EncryptedSerializer:
    pytest.importorskip("Crypto", reason="pip install pycryptodome")
    return EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")


def test_encryption_keeps_differences_small(tmp_path: Path) -> None:
    sizes = []
    for name, serde in (("plain", None), ("secret", make_encrypted())):
        (tmp_path / name).mkdir()
        talk(tmp_path / name / "a.db", new_thread(), Prose(), 60, serde=serde)
        sizes.append(stored(tmp_path / name) / 60)
    print(f"\nchat: {sizes[0]:,.0f} bytes a turn plain, {sizes[1]:,.0f} encrypted")
    assert sizes[1] < sizes[0] * 1.25
    assert not any(b"Python" in file.read_bytes() for file in (tmp_path / "secret").iterdir())


@pytest.mark.parametrize("restart", [False, True])
def test_state_that_does_not_change_costs_nothing(
    folder: Path, path: Path, prose: Prose, restart: bool
) -> None:
    large = [prose.next(1000) for _ in range(20)]

    def build(saver: Any) -> Any:
        graph = StateGraph(Reading)
        graph.add_node("step", lambda state: {"notes": ["one"]})
        graph.add_edge(START, "step")
        return graph.compile(checkpointer=saver)

    config = new_thread()
    sizes = []
    for count in (1, 40):
        for _ in range(count if restart else 1):
            with HarnessCheckpointer.from_conn_string(f"sqlite:///{path}") as saver:
                for _ in range(1 if restart else count):
                    build(saver).invoke({"notes": ["x"], **({} if sizes else {"document": large})}, config)
        sizes.append(stored(folder))
    print(f"\n40 runs beside 20 KB that stay: {(sizes[1] - sizes[0]) / 40:,.0f} bytes each, {restart=}")
    assert sizes[1] - sizes[0] < 40 * 4_000


# Postgres: tables, indexes and TOAST


@pytest.fixture(params=["postgres", "postgres-oldest"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    return servers.server_of(request.param, request)


def test_a_chat_in_postgres_takes_as_much_for_a_late_turn_as_for_an_early_one(
    server: servers.Server, prose: Prose
) -> None:
    url = servers.new_schema_url(server)
    config = new_thread()
    talk(url, config, prose, 1)
    sizes = [server.size_of(url)]
    for _ in range(2):
        talk(url, config, prose, TURNS // 2)
        sizes.append(server.size_of(url))
    print(f"\nchat: {sizes[-1] / TURNS:,.0f} bytes a turn")
    assert sizes[-1] / TURNS < 7_000
    first, half, whole = sizes
    assert whole - half < 1.15 * (half - first)
    servers.drop_schema(server, url)


def test_an_empty_database_in_postgres_takes_seventeen_pages(server: servers.Server) -> None:
    url = servers.new_schema_url(server)
    with HarnessCheckpointer.from_conn_string(url) as saver:
        saver.setup()
    # One an index, those of TOAST included, and one for the versions of the schema.
    assert server.size_of(url) == 17 * 8192
    servers.drop_schema(server, url)


def test_a_short_chat_in_postgres_needs_no_table_of_long_values(server: servers.Server, prose: Prose) -> None:
    url = servers.new_schema_url(server)
    talk(url, new_thread(), prose, 40)
    with HarnessCheckpointer.from_conn_string(url) as saver:
        # A first message of 6 KB is a part.
        chat(saver, prose).invoke({"messages": [HumanMessage(prose.next(6_000))]}, new_thread())
    schema = servers.schema_of(url)
    assert server.execute(f"SELECT count(*) FROM {schema}.harness_part") > [(0,)]
    longest = f"SELECT max(length(body)) FROM {schema}.harness_checkpoint"
    assert server.execute(longest) > [(2_000,)]
    query = "SELECT sum(pg_relation_size(reltoastrelid)) FROM pg_class WHERE relnamespace = %s::regnamespace"
    assert server.execute(query, (schema,)) == [(0,)]
    servers.drop_schema(server, url)


def test_deleting_a_thread_leaves_no_rows_in_postgres(server: servers.Server, prose: Prose) -> None:
    url = servers.new_schema_url(server)
    config = new_thread()
    talk(url, config, prose, 10)
    with HarnessCheckpointer.from_conn_string(url) as saver:
        assert saver.delete_thread(config["configurable"]["thread_id"]) == 30
    schema = servers.schema_of(url)
    for table in ("thread", "checkpoint", "write", "part"):
        assert server.execute(f"SELECT count(*) FROM {schema}.harness_{table}") == [(0,)]
    servers.drop_schema(server, url)


# Redis: what MEMORY USAGE says of all keys, indexes included


@pytest.fixture(params=REDIS_KINDS)
def redis(request: pytest.FixtureRequest) -> servers.Redis:
    return servers.redis_of(request.param, request)


@pytest.fixture
def prefix(redis: servers.Redis) -> Iterator[str]:
    prefix = servers.new_name()
    yield prefix
    redis.drop(prefix)


def test_a_chat_in_redis_takes_as_much_for_a_late_turn_as_for_an_early_one(
    redis: servers.Redis, prefix: str, prose: Prose
) -> None:
    url = url_of_prefix(redis, prefix)
    config = new_thread()
    talk(url, config, prose, 1)
    sizes = [redis.memory_of(prefix)]
    for _ in range(2):
        talk(url, config, prose, TURNS // 2)
        sizes.append(redis.memory_of(prefix))
    print(f"\nchat: {sizes[-1] / TURNS:,.0f} bytes a turn")
    assert sizes[-1] / TURNS < 7_000
    first, half, whole = sizes
    assert whole - half < 1.15 * (half - first)


def test_deleting_a_thread_leaves_nothing_in_redis(redis: servers.Redis, prefix: str, prose: Prose) -> None:
    url = url_of_prefix(redis, prefix)
    config = new_thread()
    thread_id = config["configurable"]["thread_id"]
    talk(url, config, prose, 10)
    with HarnessCheckpointer.from_conn_string(url) as saver:
        assert saver.delete_thread(thread_id) == 30
    # The version of the format stays, and for some seconds a fence where the thread was.
    assert {key.rpartition(b":")[2] for key in redis.keys(prefix)} == {b"version", b"m"}
