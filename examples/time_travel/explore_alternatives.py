"""Three alternatives from one checkpoint, side by side; the best one becomes the thread's own future.

Run it: python examples/time_travel/explore_alternatives.py
"""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine


class Trip(TypedDict, total=False):
    city: str
    by: str
    days: int
    price: int


PRICES = {"train": 80, "plane": 130, "car": 95}


def plan(state: Trip) -> Trip:
    return {"days": 3, "by": state.get("by", "train")}


def book(state: Trip) -> Trip:
    return {"price": PRICES[state["by"]] + 40 * state["days"]}


def main() -> None:
    """Book a trip three ways."""
    with HarnessCheckpointer.from_conn_string("memory://") as saver:
        builder = StateGraph(Trip).add_node(plan).add_node(book)
        builder.add_edge(START, "plan").add_edge("plan", "book").add_edge("book", END)
        graph = builder.compile(checkpointer=saver, interrupt_before=["book"])
        engine = CheckpointEngine(saver, graph).sync

        thread = {"configurable": {"thread_id": "trip"}}
        graph.invoke({"city": "Lyon"}, thread)
        start = engine.get_latest("trip").metadata.checkpoint_id

        prices = {}
        for by in PRICES:
            branch = engine.branch(start, by, "trip")
            config = {"configurable": {"thread_id": branch}}
            graph.update_state(config, {"by": by})
            prices[branch] = graph.invoke(None, config)["price"]
            print(f"{by:>5}: {prices[branch]}")

        best = min(prices, key=prices.__getitem__)
        merged = engine.merge_branch(best, "trip")
        print("fast-forward" if merged.fast_forward else "merged", graph.get_state(thread).values)
        print(engine.get_checkpoint_tree("trip").render(width=100))


if __name__ == "__main__":
    main()
