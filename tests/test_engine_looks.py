"""Looking at a thread with many branches: few calls, however many there are, and no state decoded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send, interrupt
from test_engine_travel import STORES

from langgraph_harness_saver import CheckpointEngine
from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.engine import glance
from langgraph_harness_saver.stores.base import Store

if TYPE_CHECKING:
    from collections.abc import Callable

BRANCHES = 24
CALLS = 12
"""How many calls of a store a look may take, however many branches there are."""


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    turn: int


def worker(state: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [HumanMessage(f"did {state['n']}" * 40)]}


def ask(state: State) -> dict[str, Any]:
    return {"turn": interrupt("how many?")} if state["turn"] % 3 == 2 else {"turn": state["turn"] + 1}


def graph_of(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("plan", lambda state: {"messages": [HumanMessage("plan")]})
    graph.add_node("worker", worker)
    graph.add_node("ask", ask)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send("worker", {"n": n}) for n in range(2)])
    graph.add_edge("worker", "ask")
    return graph.compile(checkpointer=saver)


def on(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(saver: Any) -> CheckpointEngine:
    """An engine on a thread with many branches, all of them with checkpoints of their own."""
    graph = graph_of(saver)
    for turn in range(6):
        graph.invoke({"messages": [HumanMessage("hello")], "turn": turn}, on("t"))
    engine = CheckpointEngine(saver)
    listed = engine.sync.list_checkpoints("t")
    for number in range(BRANCHES):
        thread_id = engine.sync.branch(listed[number].checkpoint_id, f"branch {number}", "t")
        if number % 6 == 0:
            graph.invoke({"messages": [HumanMessage("again")], "turn": number}, on(thread_id))
            engine.sync.tag(listed[number].checkpoint_id, "begun", thread_id)
    engine.sync.tag(listed[3].checkpoint_id, "good", "t")
    return engine


@pytest.fixture
def calls(engine: CheckpointEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which of a store's methods are called."""
    store, noted = engine.checkpointer.backend, []

    def noting(name: str) -> Callable[..., Any]:
        method = getattr(store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            noted.append(name)
            return method(*args, **kwargs)

        return call

    for name in sorted(Store.__abstractmethods__ - {"open", "close"}):
        monkeypatch.setattr(store, name, noting(name))
    return noted


LOOKS: dict[str, Callable[[Any], Any]] = {
    "tree": lambda engine: engine.get_checkpoint_tree("t", None),
    "page": lambda engine: engine.get_checkpoint_tree("t", 30),
    "line": lambda engine: engine.get_checkpoint_tree("t", branches=False),
    "threads": lambda engine: engine.list_threads(),
    "some threads": lambda engine: engine.list_threads(5, 5),
    "checkpoints": lambda engine: engine.list_checkpoints("t"),
    "some checkpoints": lambda engine: engine.list_checkpoints("t", 5, 5),
    "points": lambda engine: engine.list_time_travel_points("t", 20),
    "branches": lambda engine: engine.list_branches("t"),
    "tags": lambda engine: engine.list_tags("t"),
}


def test_a_look_takes_few_calls_and_decodes_no_state(engine, calls, monkeypatch):
    load = Codec.value

    def loading(codec: Any, blob: Any, channel: str, thread_id: str) -> Any:
        assert channel not in State.__annotations__
        return load(codec, blob, channel, thread_id)

    monkeypatch.setattr(Codec, "value", loading)
    for name, look in LOOKS.items():
        calls.clear()
        assert look(engine.sync)
        # A header that was begun far back is read step by step, 17 at most.
        limit = CALLS + (34 if name in ("page", "points") else 0)
        assert len(calls) <= limit, (name, calls)


def test_pages_tell_what_the_whole_tells(engine, monkeypatch):
    """Whatever the pages are: what a header leans on is then on another one."""
    whole = engine.sync.get_checkpoint_tree("t", None)
    monkeypatch.setattr(glance, "AT_ONCE", 7)
    for size in (5, 23):
        nodes: list[Any] = []
        before = None
        while not nodes or before is not None:
            page = engine.sync.get_checkpoint_tree("t", size, before=before)
            assert page.total_checkpoints == whole.total_checkpoints
            nodes += page.nodes
            before = page.next_page
        assert nodes == list(whole.nodes)
    assert {edge.kind for edge in whole.edges} == {"parent", "branch"}
    graph = graph_of(engine.checkpointer)
    for node in whole.nodes[::9]:
        place = {**on(node.thread)["configurable"], "checkpoint_id": node.id, "checkpoint_ns": ""}
        state = graph.get_state(on(node.thread) if node.head else {"configurable": place})
        assert sorted(node.next) == sorted(state.next)
        assert set(node.interrupts) == {one.id for one in state.interrupts}


def test_lists_tell_the_same(engine):
    sync = engine.sync
    whole = sync.get_checkpoint_tree("t", None)
    listed = sync.list_checkpoints("t")
    assert [one.checkpoint_id for one in listed] == [node.id for node in whole.nodes if node.thread == "t"]
    assert sync.list_checkpoints("t", 4, 3) == listed[3:7]
    assert sync.list_checkpoints("t", 0) == []
    threads = sync.list_threads()
    assert {one.thread_id for one in threads} == {node.thread for node in whole.nodes}
    assert [one.checkpoint_id for one in threads] == sorted((o.checkpoint_id for o in threads), reverse=True)
    assert {(one.thread_id, one.checkpoint_id) for one in threads} == {
        (node.thread, node.id) for node in whole.nodes if node.head
    }
    assert sync.list_threads(4, 3) == threads[3:7]
    asked = sync.list_threads(filter={"source": "fork"})
    assert asked == [one for one in threads if one.source == "fork"]
    assert sync.list_threads(2, 1, {"source": "loop"}) == [o for o in threads if o.source == "loop"][1:3]
    assert {one.tags for one in threads} <= {(), ("begun",)}
    assert [one.tags for one in listed if one.tags] == [("good",)]
    points = sync.list_time_travel_points("t")
    assert sync.list_time_travel_points("t", 3, points[4].checkpoint_id) == points[5:8]
    assert sync.list_time_travel_points("t", 3) == points[:3]


def test_a_list_while_its_checkpoints_go(engine):
    """What was deleted after its key was read is left out, and nothing else."""
    store, rows = engine.checkpointer.backend, engine.checkpointer.backend.rows

    async def look() -> tuple[Any, Any]:
        async def late(keys: Any) -> Any:
            store.rows = rows
            await engine.delete_thread("t")
            return await rows(keys)

        before = await engine.list_checkpoints("t")
        store.rows = late
        return before, await engine.get_checkpoint_tree("t", None)

    before, tree = asyncio.run(look())
    assert before
    assert {node.thread for node in tree.nodes} == {b.thread_id for b in engine.sync.list_branches("t")}
