"""A tool call that should not have been: take the thread back to before it, and go on otherwise.

Run it: python examples/time_travel/undo_a_tool_call.py
"""

from __future__ import annotations

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine


def model(state: MessagesState) -> MessagesState:
    last = state["messages"][-1]
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage(f"Done: {last.content}")]}
    tool = "archive" if "keep" in str(last.content) else "delete"
    call = {"name": tool, "args": {"file": "report.txt"}, "id": f"call_{len(state['messages'])}"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def tools(state: MessagesState) -> MessagesState:
    [call] = state["messages"][-1].tool_calls
    return {"messages": [ToolMessage(f"{call['name']}d {call['args']['file']}", tool_call_id=call["id"])]}


def main() -> None:
    """Delete a file, think better of it, and archive it."""
    with HarnessCheckpointer.from_conn_string("memory://") as saver:
        builder = StateGraph(MessagesState).add_node(model).add_node(tools)
        builder.add_edge(START, "model").add_edge("tools", "model")
        builder.add_conditional_edges(
            "model", lambda state: "tools" if state["messages"][-1].tool_calls else END, ["tools", END]
        )
        graph = builder.compile(checkpointer=saver)
        engine = CheckpointEngine(saver, graph).sync
        thread = {"configurable": {"thread_id": "files"}}

        graph.invoke({"messages": "tidy up"}, thread)
        points = engine.list_time_travel_points("files")
        print("before:", graph.get_state(thread).values["messages"][-1].content)

        # The newest checkpoint from which `tools` ran; one step earlier the model hadn't decided yet.
        bad = next(point for point in points if point.next == ("tools",))
        engine.tag(bad.checkpoint_id, "bad call", "files")
        result = engine.rewind(bad.parent_id, "files")
        print(f"rewound by {result.rewind_depth}, next is {result.checkpoint.next_node!r}")

        config = graph.update_state(thread, {"messages": "tidy up, but keep everything"}, as_node="__start__")
        graph.invoke(None, config)
        print("after:", graph.get_state(thread).values["messages"][-1].content)
        print(engine.diff(bad.checkpoint_id, engine.get_latest("files").metadata.checkpoint_id, "files"))


if __name__ == "__main__":
    main()
