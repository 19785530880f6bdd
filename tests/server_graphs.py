"""What the dev server of test_server.py serves; it loads this file by its path."""

from __future__ import annotations

import asyncio
from operator import add
from typing import Annotated, Any

from langchain_core.messages import AIMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict


def extended(value: list[Any], writes: list[list[Any]]) -> list[Any]:
    return [*value, *(item for write in writes for item in write)]


class Log(TypedDict, total=False):
    log: Annotated[list[str], add]
    text: Any


def said(name: str) -> Any:
    async def node(state: Log) -> dict[str, Any]:
        return {"log": [name]}

    return node


steps = (
    StateGraph(Log)
    .add_node("a", said("a"))
    .add_node("b", said("b"))
    .add_node("c", said("c"))
    .add_edge(START, "a")
    .add_edge("a", "b")
    .add_edge("b", "c")
    .compile()
)


def ask(state: Log) -> dict[str, Any]:
    return {"log": [f"answer: {interrupt('which colour?')}"]}


inner = (
    StateGraph(Log)
    .add_node("prepare", said("prepare"))
    .add_node("ask", ask)
    .add_node("finish", said("finish"))
    .add_edge(START, "prepare")
    .add_edge("prepare", "ask")
    .add_edge("ask", "finish")
)


def around(child: Any) -> Any:
    return (
        StateGraph(Log)
        .add_node("before", said("before"))
        .add_node("child", child)
        .add_node("after", said("after"))
        .add_edge(START, "before")
        .add_edge("before", "child")
        .add_edge("child", "after")
        .compile()
    )


class Inner(TypedDict, total=False):
    inner_log: Annotated[list[str], add]
    count: Annotated[int, add]
    log: Annotated[list[str], add]


def count(state: Inner) -> dict[str, Any]:
    return {"count": 1, "inner_log": [f"visit {state.get('count', 0) + 1}"]}


nested = around(inner.compile())
remembers = around(
    StateGraph(Inner).add_node("count", count).add_edge(START, "count").compile(checkpointer=True)
)


def reply(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{len(state['messages'])}: {state['messages'][-1].text}")]}


chat = StateGraph(MessagesState).add_node("reply", reply).add_edge(START, "reply").compile()


async def wait(state: Log) -> dict[str, Any]:
    await asyncio.sleep(float(state.get("text") or 0))
    return {"log": ["waited"]}


slow = (
    StateGraph(Log)
    .add_node("begin", said("begin"))
    .add_node("wait", wait)
    .add_edge(START, "begin")
    .add_edge("begin", "wait")
    .compile()
)


approved = (
    StateGraph(Log)
    .add_node("ask", ask)
    .add_node("wait", wait)
    .add_edge(START, "ask")
    .add_edge("ask", "wait")
    .compile()
)


class Fan(TypedDict, total=False):
    found: Annotated[list[str], DeltaChannel(extended)]
    seen: Annotated[list[str], add]
    rounds: Annotated[int, add]


async def work(state: dict[str, Any]) -> dict[str, Any]:
    return {"found": [f"{state['name']}1", f"{state['name']}2"], "seen": [state["name"]]}


def spread(state: Fan) -> list[Send]:
    return [Send("work", {"name": f"{name}{state.get('rounds', 0)}"}) for name in "xyz"]


fan = (
    StateGraph(Fan)
    .add_node("begin", lambda state: {"rounds": 1, "found": ["begin"]})
    .add_node("work", work)
    .add_node("gather", lambda state: {"found": ["gather"]})
    .add_edge(START, "begin")
    .add_conditional_edges("begin", spread, ["work"])
    .add_edge("work", "gather")
    .compile()
)


def again(state: Fan) -> str:
    return END if state.get("rounds", 0) >= 100 else "turn"


loop = (
    StateGraph(Fan)
    .add_node("turn", lambda state: {"rounds": 1, "found": [str(state.get("rounds", 0))]})
    .add_edge(START, "turn")
    .add_conditional_edges("turn", again, ["turn", END])
    .compile()
)
