"""The agent's graph: think, act (a task for each tool call), note, and round again."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Any

import document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send
from model import PlanningModel, instructions
from tools import build_tools, result_of

if TYPE_CHECKING:
    from pathlib import Path

    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.prebuilt.tool_node import ToolCallWrapper


class ReaderState(MessagesState):
    """What the agent carries from step to step."""

    notes: Annotated[list[str], operator.add]
    terms: list[str]
    parts_read: int


def task_for(file: Path) -> ReaderState:
    """Make the graph's input."""
    return {"messages": [HumanMessage(f"Summarise {file.name}.")], "notes": [], "terms": [], "parts_read": 0}


def build_graph(
    file: Path,
    summary: Path,
    saver: BaseCheckpointSaver[Any],
    wrap_tool_call: ToolCallWrapper | None = None,
) -> CompiledStateGraph[ReaderState]:
    """Compile the agent for one file."""
    tools = build_tools(file, summary)
    model = PlanningModel().bind_tools(tools)

    def think(state: ReaderState) -> dict[str, Any]:
        return {"messages": [model.invoke([instructions(state["notes"]), *state["messages"]])]}

    builder = StateGraph(ReaderState)
    builder.add_node("think", think)
    builder.add_node("act", ToolNode(tools, wrap_tool_call=wrap_tool_call))
    builder.add_node("note", note)
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", send_calls, ["act", END])
    builder.add_edge("act", "note")
    builder.add_edge("note", "think")
    return builder.compile(checkpointer=saver)


def send_calls(state: ReaderState) -> list[Send] | str:
    """Make each tool call a task of its own, so that one can be finished while another is not."""
    last = state["messages"][-1]
    calls = last.tool_calls if isinstance(last, AIMessage) else []
    return [Send("act", [call]) for call in calls] or END


def note(state: ReaderState) -> dict[str, Any]:
    """Write down what the last tool calls showed."""
    update: dict[str, Any] = {}
    for message in latest_results(state):
        found = result_of(message)
        if message.name == "word_statistics":
            update["terms"] = [word for word, _ in found["frequent"]]
        elif message.name == "read_part":
            sentence = document.key_sentence(found["text"], state["terms"])
            where = document.span(found["first"], found["last"]).capitalize()
            update.setdefault("notes", []).append(f"- {where}: {document.escape(sentence)}")
            update["parts_read"] = found["number"]
    return update


def latest_results(state: ReaderState) -> list[ToolMessage]:
    """Pick the tool messages since the model last spoke."""
    latest: list[ToolMessage] = []
    for message in reversed(state["messages"]):
        if not isinstance(message, ToolMessage):
            break
        latest.insert(0, message)
    return latest
