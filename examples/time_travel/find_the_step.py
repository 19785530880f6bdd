"""A long run in which a value went wrong somewhere: find the step, and who wrote it.

Run it: python examples/time_travel/find_the_step.py
"""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine

ROUNDS = 60


class Ledger(TypedDict, total=False):
    round: int
    balance: int
    note: str


def earn(state: Ledger) -> Ledger:
    return {"round": state.get("round", 0) + 1, "balance": state.get("balance", 0) + 10}


def spend(state: Ledger) -> Ledger:
    # The bug: in one round it takes everything.
    cost = state["balance"] + 5 if state["round"] == 37 else 4
    return {"balance": state["balance"] - cost}


def main() -> None:
    """Run for a while, then look for the first checkpoint that is wrong."""
    with HarnessCheckpointer.from_conn_string("memory://") as saver:
        builder = StateGraph(Ledger).add_node(earn).add_node(spend)
        builder.add_edge(START, "earn").add_edge("earn", "spend")
        builder.add_conditional_edges(
            "spend", lambda state: "earn" if state["round"] < ROUNDS else END, ["earn", END]
        )
        graph = builder.compile(checkpointer=saver)
        engine = CheckpointEngine(saver, graph).sync
        config = {"configurable": {"thread_id": "ledger"}, "recursion_limit": 4 * ROUNDS}
        final = graph.invoke({"note": "start"}, config)
        print("final balance:", final["balance"], "of", 6 * ROUNDS)

        points = engine.list_time_travel_points("ledger")[::-1]

        def is_wrong(number: int) -> bool:
            state = engine.get(points[number].checkpoint_id, "ledger").state
            return state.get("balance", 0) < 6 * (state.get("round", 1) - 1)

        low, high, looks = 0, len(points) - 1, 0
        while high - low > 1:
            middle, looks = (low + high) // 2, looks + 1
            low, high = (low, middle) if is_wrong(middle) else (middle, high)

        culprit = points[high]
        step = culprit.metadata["step"]
        print(f"went wrong at step {step} ({looks} of {len(points)} checkpoints looked at)")
        print(engine.diff(points[low].checkpoint_id, culprit.checkpoint_id, "ledger"))
        writer = points[low].next
        print("written by:", ", ".join(writer))


if __name__ == "__main__":
    main()
