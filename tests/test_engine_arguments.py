"""An engine's calls as people write them: by position and by name, with ids of other types, and wrongly."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from helpers import thread
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph

from langgraph_harness_saver import (
    AmbiguousCheckpoint,
    CheckpointEngine,
    CheckpointNotFoundError,
    HarnessCheckpointer,
    InvalidConfigError,
    Snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class State(MessagesState):
    count: int


def call(state: State) -> Any:
    said = AIMessage("", id="a", tool_calls=[{"name": "add", "args": {"n": 1}, "id": "c"}])
    return {"messages": [said], "count": state["count"] + 1}


def answer(state: State) -> Any:
    return {"messages": [ToolMessage("2", tool_call_id="c", id="t")]}


@pytest.fixture
def graph() -> Any:
    builder = StateGraph(State).add_sequence([call, answer]).add_edge(START, "call")
    return builder.compile(checkpointer=HarnessCheckpointer())


@pytest.fixture
def engine(graph: Any) -> Any:
    graph.invoke({"messages": [HumanMessage("1 + 1?", id="h")], "count": 0}, thread("sum"))
    return CheckpointEngine(graph.checkpointer, graph).sync


def ids(engine: Any) -> list[str]:
    return [one.checkpoint_id for one in engine.list_checkpoints("sum")]


CALLS: dict[str, Callable[[Any, str], Any]] = {
    "get": lambda engine, at: engine.get(at),
    "get by name": lambda engine, at: engine.get(checkpoint_id=at, thread_id="sum"),
    "threads": lambda engine, at: engine.list_threads(1, 0, {"step": 2}),
    "checkpoints": lambda engine, at: engine.list_checkpoints("sum", 2, 1),
    "points": lambda engine, at: engine.list_time_travel_points("sum", 1, at),
    "rewind": lambda engine, at: engine.rewind(at),
    "rewind in a thread": lambda engine, at: engine.rewind(at, thread_id="sum"),
    "rewind and discard": lambda engine, at: engine.rewind(at, discard_later=True),
    "rewind, all by position": lambda engine, at: engine.rewind(at, "sum", True),
    "step": lambda engine, at: engine.time_travel_to_step("sum", 1),
    "branch": lambda engine, at: engine.branch(at, "b"),
    "branch in a thread": lambda engine, at: engine.branch(at, "b", thread_id="sum"),
    "branch by name": lambda engine, at: engine.branch(checkpoint_id=at, name="b", thread_id="sum"),
    "diff": lambda engine, at: engine.diff(at, ids(engine)[0]),
    "blame": lambda engine, at: engine.blame("sum", "count"),
    "tree": lambda engine, at: engine.get_checkpoint_tree("sum", 10, False),
    "delete before": lambda engine, at: engine.delete_before("sum", 1),
    "delete with branches": lambda engine, at: engine.delete_thread("sum", True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_by_position_and_by_name(call: Any, engine: Any) -> None:
    assert call(engine, ids(engine)[1])


def test_threads_that_are_numbers_are_those_of_the_graph(graph: Any, engine: Any) -> None:
    graph.invoke({"messages": "hi", "count": 5}, thread(7))
    head = engine.get_latest(7).metadata
    assert (head.thread_id, head.step) == ("7", 2)
    assert engine.list_checkpoints(7)[0] == head
    assert engine.get(head.checkpoint_id, 7).state == {"count": 6}
    assert engine.list_time_travel_points(7)[0].checkpoint_id == head.checkpoint_id
    assert engine.get_checkpoint_tree(7).nodes[0].id == head.checkpoint_id
    assert engine.blame(7, "count").channel == "count"
    branch = engine.branch(head.checkpoint_id, "b", 7)
    assert [one.thread_id for one in engine.list_branches(7)] == [branch]
    assert engine.time_travel_to_step(7, 1).checkpoint.metadata.step == 1
    engine.tag(engine.get_latest(7).metadata.checkpoint_id, "good", 7)
    assert list(engine.list_tags(7)) == ["good"]
    assert engine.delete_before(7, 1) > 0
    assert engine.delete_thread(7, branches=True) > 0
    assert engine.get_latest(7) is None


def test_tags_are_taken_away_as_they_were_given_or_by_their_name(engine: Any) -> None:
    first, second, *_ = ids(engine)
    for untag in (
        lambda: engine.untag(first, "good"),
        lambda: engine.untag(first, "good", "sum"),
        lambda: engine.untag("good", thread_id="sum"),
        lambda: engine.untag(name="good", thread_id="sum"),
        lambda: engine.untag(checkpoint_id=first, name="good"),
    ):
        engine.tag(first, "good")
        assert engine.get_tagged("good", "sum").metadata.tags == ("good",)
        # It is another's.
        assert engine.untag(second, "good") is False
        assert untag() is True
        assert untag() is False
        assert engine.get(first).metadata.tags == ()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda e, at: e.rewind(at, True), InvalidConfigError, "discard_later=True"),
        (lambda e, at: e.rewind(thread("sum", at)), InvalidConfigError, r'config\["configurable"\]'),
        (lambda e, at: e.get(None), InvalidConfigError, "checkpoint_id is needed"),
        (lambda e, at: e.get_latest(None), InvalidConfigError, "thread_id is needed"),
        (lambda e, at: e.list_checkpoints(thread("sum")), InvalidConfigError, r'\["thread_id"\]'),
        (lambda e, at: e.get("nowhere"), CheckpointNotFoundError, "list_threads"),
        (lambda e, at: e.get(at, "other"), CheckpointNotFoundError, "list_checkpoints"),
        (lambda e, at: e.get(at), AmbiguousCheckpoint, "thread_id="),
        (lambda e, at: e.branch(at, "", "sum"), InvalidConfigError, "needs a name"),
        (lambda e, at: e.tag(at, "", "sum"), InvalidConfigError, "needs a name"),
        (lambda e, at: e.untag("good"), InvalidConfigError, r"untag\(name, thread_id="),
        (lambda e, at: e.untag("good", "sum"), CheckpointNotFoundError, "'good'"),
        (lambda e, at: e.get_tagged("good", "sum"), CheckpointNotFoundError, "'good'"),
        (lambda e, at: e.get_latest(b"sum"), InvalidConfigError, "thread_id is text, not b'sum'"),
        (lambda e, at: e.list_threads(-1), InvalidConfigError, "limit is at least 0, not -1"),
        (lambda e, at: e.list_threads(offset=-1), InvalidConfigError, "offset is at least 0"),
        (lambda e, at: e.list_threads(filter="loop"), InvalidConfigError, "a filter is a dict"),
        (lambda e, at: e.list_checkpoints("sum", "3"), InvalidConfigError, "whole number, not '3'"),
        (lambda e, at: e.list_checkpoints("sum", offset=None), InvalidConfigError, "offset is a whole"),
        (lambda e, at: e.list_time_travel_points("sum", -2), InvalidConfigError, "limit is at least 0"),
        (lambda e, at: e.list_time_travel_points("sum", before="x"), CheckpointNotFoundError, "not on the"),
        (lambda e, at: e.get_checkpoint_tree("sum", 0), InvalidConfigError, "limit is at least 1"),
        (lambda e, at: e.get_checkpoint_tree("sum", 2.5), InvalidConfigError, "limit is a whole number"),
        (lambda e, at: e.time_travel_to_step("sum", "1"), InvalidConfigError, "step is a whole number"),
        (lambda e, at: e.delete_before("sum", True), InvalidConfigError, "before_step is a whole number"),
    ],
)
def test_wrong_calls_say_what_to_do(call: Any, error: type, says: str, engine: Any) -> None:
    at = ids(engine)[0]
    engine.branch(at, "other", "sum")
    with pytest.raises(error, match=says):
        call(engine, at)


def test_a_thread_without_checkpoints_has_none(engine: Any) -> None:
    for method in ("list_checkpoints", "list_time_travel_points", "list_branches"):
        assert getattr(engine, method)("nobody") == []
    assert engine.get_latest("nobody") is None
    assert engine.time_travel_to_step("nobody", 1) is None
    assert engine.list_tags("nobody") == {}
    assert engine.get_checkpoint_tree("nobody").total_checkpoints == 0
    assert engine.delete_before("nobody", 1) == engine.delete_thread("nobody") == 0


def test_results_are_told_in_json(graph: Any, engine: Any) -> None:
    branch = engine.branch(ids(engine)[0], "b")
    for name, count in (("sum", 5), (branch, 7)):
        graph.update_state(thread(name), {"count": count}, as_node="answer")
    told = json.loads(json.dumps(engine.merge_branch(branch, "sum", "theirs").to_dict(), allow_nan=False))
    assert told["channels"]["count"] == "strategy"
    [conflict] = told["resolved"]
    assert [conflict[side] for side in ("channel", "base", "ours", "theirs")] == ["count", 1, 5, 7]
    result = engine.rewind(ids(engine)[-1], "sum")
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Snapshot.from_dict(told["checkpoint"]) == result.checkpoint
    assert told["can_replay"] is True


def test_snapshots_are_the_same_after_json(engine: Any) -> None:
    snapshot = engine.get_latest("sum")
    told = snapshot.to_dict()
    assert {"metadata", "messages", "state", "tools_result", "next_node"} <= told.keys()
    again = Snapshot.from_dict(json.loads(json.dumps(told, allow_nan=False)))
    assert again == snapshot
    assert again.messages[1].tool_calls[0]["args"] == {"n": 1}
    assert again.tools_result[0]["content"] == "2"
    assert again.next_node == ""
    five = {name: told[name] for name in ("metadata", "messages", "state", "tools_result", "next_node")}
    assert Snapshot.from_dict(five) == snapshot
