"""A shop assistant for Studio: two tools, a question to a person, and a subgraph.

The model is a deterministic one of ours, so it needs no key.
"""

from __future__ import annotations

import re
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

PRICES = {"lamp": 30, "chair": 80, "table": 200}


@tool
def price(item: str) -> int:
    """Return what one of an item costs."""
    return PRICES.get(item, 0)


@tool
def stock(item: str) -> int:
    """Return how many of an item there are."""
    return 10 * (item in PRICES)


class Shop(MessagesState, total=False):
    """The conversation, and what is to be ordered."""

    item: str
    count: int
    total: int


def understand(state: Shop) -> dict[str, Any]:
    """Find out what is wanted, and ask the tools about it."""
    found = re.search(r"(\d+) (\w+?)s?\b", state["messages"][-1].text)
    count, item = (int(found[1]), found[2]) if found else (1, "lamp")
    calls = [{"name": name, "args": {"item": item}, "id": f"{name}-{item}"} for name in ("price", "stock")]
    return {"item": item, "count": count, "messages": [AIMessage("", tool_calls=calls)]}


def answer(state: Shop) -> dict[str, Any]:
    """Make an offer of what the tools have said."""
    said = {one.name: int(one.text) for one in state["messages"] if isinstance(one, ToolMessage)}
    count = min(state["count"], said["stock"])
    total = count * said["price"]
    return {"count": count, "total": total, "messages": [AIMessage(f"{count} {state['item']}: {total}")]}


def approve(state: Shop) -> dict[str, Any]:
    """Wait for a person."""
    if interrupt(f"Order {state['count']} {state['item']} for {state['total']}?"):
        return {"messages": [AIMessage("approved")]}
    return {"count": 0, "messages": [AIMessage("refused")]}


def ship(state: Shop) -> dict[str, Any]:
    """Say what comes of it."""
    text = f"{state['count']} {state['item']} on the way" if state["count"] else "nothing ordered"
    return {"messages": [AIMessage(text)]}


checkout = (
    StateGraph(Shop)
    .add_node(approve)
    .add_node(ship)
    .add_edge(START, "approve")
    .add_edge("approve", "ship")
    .compile()
)
graph = (
    StateGraph(Shop)
    .add_node(understand)
    .add_node("tools", ToolNode([price, stock]))
    .add_node(answer)
    .add_node("checkout", checkout)
    .add_edge(START, "understand")
    .add_edge("understand", "tools")
    .add_edge("tools", "answer")
    .add_edge("answer", "checkout")
    .compile()
)
