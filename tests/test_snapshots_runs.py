"""Snapshots inside a graph's run, and on a graph's thread: events, which leave the graph's line alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from helpers import id_of, thread, view
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from langgraph_harness_saver import CheckpointEngine, SnapshotConfig, SnapshotTrigger

if TYPE_CHECKING:
    pass

TOOL = SnapshotTrigger.TOOL_CALL

async_nodes = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph gives async nodes no context before Python 3.11"
)


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(saver: Any) -> CheckpointEngine:
    return CheckpointEngine(saver)


def agent(saver: Any, engine: CheckpointEngine, *, taking: bool = True) -> Any:
    """Make a graph that calls a tool twice at once, asks a question in a third, and has a subgraph."""
    on = engine.snapshot_on(TOOL) if taking else lambda function: function

    @tool
    @on
    async def search(query: str) -> str:
        """Search."""
        await asyncio.sleep(0)
        if query == "broken":
            raise ValueError("no such thing")
        return query.upper()

    @tool
    @on
    def ask(question: str) -> str:
        """Ask."""
        return f"{question} {interrupt(question)}"

    def call(name: str, **args: str) -> dict[str, Any]:
        return {"name": name, "args": args, "id": next(iter(args.values()))}

    def model(state: Any) -> Any:
        calls = [call("search", query="a"), call("search", query="broken"), call("ask", question="why?")]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    async def inner(state: Any) -> Any:
        if taking:
            async with engine.snapshot_scope("t", {"where": "inside"}, tags="inner"):
                assert await engine.snapshot("t", [], {"by": "hand"})
        return {"messages": [("ai", "inner")]}

    sub = StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile()
    builder = StateGraph(MessagesState).add_node("model", model).add_node("sub", sub)
    builder.add_node("tools", ToolNode([search, ask], handle_tool_errors=True))
    builder.add_edge(START, "model").add_edge("model", "tools").add_edge("tools", "sub")
    return builder.compile(checkpointer=saver)


async def run(graph: Any) -> Any:
    await graph.ainvoke({"messages": "go"}, thread("t"))
    await graph.ainvoke(Command(resume="because"), thread("t"))
    return [view(snapshot) async for snapshot in graph.aget_state_history(thread("t"))]


@async_nodes
def test_inside_a_run_they_are_events_and_the_line_stays_as_it_is(
    saver: Any, engine: CheckpointEngine
) -> None:
    async def main() -> list[Any]:
        assert await run(agent(saver, engine)) == await run(agent(InMemorySaver(), engine, taking=False))
        return await engine.events("t")

    events = asyncio.run(main())
    assert engine.snapshot_failures == 0
    assert not [item for item in saver.list(thread("t")) if "trigger" in item.metadata]
    by_name = sorted((e.name, e.phase or "", e.error or "", e.paused) for e in events)
    assert by_name == sorted(
        [
            ("ask", "before", "", False),
            ("ask", "after", "", True),
            ("ask", "before", "", False),
            ("ask", "after", "", False),
            *[("search", "before", "", False)] * 4,
            *[("search", "after", "", False)] * 2,
            *[("search", "error", "ValueError: no such thing", False)] * 2,
            ("snapshot", "enter", "", False),
            ("snapshot", "", "", False),
            ("snapshot", "exit", "", False),
        ]
    )
    steps = {s.metadata["step"]: id_of(s.config) for s in agent(saver, engine).get_state_history(thread("t"))}
    tools = [event for event in events if event.kind == "tool_call"]
    assert {event.root_checkpoint_id for event in tools} == {steps[1]}
    assert {event.node for event in tools} == {"tools"}
    given = [e.output["tools_result"] for e in tools if e.name == "ask" and e.phase == "after"]
    assert [answer["content"] for answers in given for answer in answers] == ["why? because"]
    inner = [event for event in events if event.kind != "tool_call"]
    assert {event.root_checkpoint_id for event in inner} == {steps[2]}
    assert [event.kind for event in inner] == ["task_boundary", "manual", "task_boundary"]
    assert inner[0].input["where"] == "inside"
    assert inner[2].output["where"] == "inside"
    assert inner[0].tags == ("inner",)
    assert inner[1].summary == "State: 1 keys"


def test_another_thread_has_snapshots(saver: Any, engine: CheckpointEngine) -> None:
    def node(state: Any) -> Any:
        with engine.snapshot_scope("own", {"x": 1}):
            assert engine.sync.snapshot("own", [], {"x": 2})
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node(node).add_edge(START, "node").compile(checkpointer=saver)
    graph.invoke({"messages": "go"}, thread("t"))
    assert [item.trigger for item in engine.sync.list_checkpoints("own")] == [
        "task_boundary",
        "manual",
        "task_boundary",
    ]
    assert engine.sync.events("t") == []
    assert len(engine.sync.list_checkpoints("t")) == 3


@pytest.mark.parametrize("store_kind", ["memory", "sqlite"])
def test_on_a_graph_s_thread_only_a_snapshot_by_hand_becomes_the_head(
    saver: Any, engine: CheckpointEngine
) -> None:
    graph = StateGraph(MessagesState).add_node("node", lambda state: {"messages": [("ai", "done")]})
    graph = graph.add_edge(START, "node").compile(checkpointer=saver)
    graph.invoke({"messages": "go"}, thread("t"))
    head = engine.sync.get_latest("t").metadata.checkpoint_id
    find = engine.snapshot_on(TOOL)(lambda: "found")
    with engine.snapshot_scope("t", {"n": 1}):
        find()
        graph.invoke({"messages": "more"}, thread("t"))
    events = engine.sync.events("t")
    assert [(event.kind, event.phase) for event in events] == [
        ("task_boundary", "enter"),
        ("tool_call", "before"),
        ("tool_call", "after"),
        ("task_boundary", "exit"),
    ]
    later = engine.sync.get_latest("t").metadata.checkpoint_id
    assert [event.root_checkpoint_id for event in events] == [head] * 3 + [later]
    assert len(graph.get_state(thread("t")).values["messages"]) == 4
    engine.sync.snapshot("t", ["anew"])
    with engine.snapshot_scope("t", {"n": 1}):
        pass
    assert [item.trigger for item in engine.sync.list_checkpoints("t")][:3] == [
        "task_boundary",
        "task_boundary",
        "manual",
    ]


@pytest.mark.parametrize("store_kind", ["memory"])
def test_an_event_holds_the_state_as_it_was(saver: Any) -> None:
    state = {"items": [1]}

    def summarise(messages: Any, given: Any) -> str:
        state["items"].append(2)
        return "slow"

    engine = CheckpointEngine(saver, config=SnapshotConfig(summarise=summarise, max_snapshot_size_mb=0.01))

    def node(given: Any) -> Any:
        engine.sync.snapshot("t", [], state)
        assert engine.sync.snapshot_safe("t", [], {"x": "y" * 20_000}) == ""
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node(node).add_edge(START, "node").compile(checkpointer=saver)
    graph.invoke({"messages": "go"}, thread("t"))
    [event] = engine.sync.events("t")
    assert (event.input["items"], event.summary) == ([1], "slow")
    assert engine.snapshot_failures == 1


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in [["langgraph", one] for one in ("pregel", "config", "graph", "errors")]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
from langgraph_harness_saver import CheckpointEngine, HarnessCheckpointer

engine = CheckpointEngine(HarnessCheckpointer())
with engine.snapshot_scope("t", {"x": 1}):
    assert engine.snapshot_on("tool_call")(lambda: 1)() == 1
try:
    with engine.snapshot_scope("t"):
        raise KeyError
except KeyError:
    print(len(engine.sync.list_checkpoints("t")), engine.snapshot_failures)
"""


def test_without_langgraph_there_are_no_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.stdout == "6 0\n", done.stderr
