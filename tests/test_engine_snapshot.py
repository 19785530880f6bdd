"""Snapshots, and what runs next, told without the graph and compared with what the graph says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Door, examples, thread
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.channels import EphemeralValue, LastValue
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import Command, Send, interrupt
from test_graphs import DEFAULT, SCENARIOS, Broken, Log, Run, asking, chain, chat_graph, delta_graph, say

from langgraph_harness_saver import HarnessCheckpointer, SerializationError
from langgraph_harness_saver.engine.routing import PendingInterrupt, interrupts, next_nodes, next_of
from langgraph_harness_saver.engine.snapshot import Snapshot, SnapshotMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple


@pytest.fixture
def run() -> Iterator[Run]:
    with HarnessCheckpointer() as saver, Door("sync") as door:
        yield Run(saver, door, "sync")


# What runs next


class Compared(Run):
    """Asks the graph and the saver, after each call, about every checkpoint of the thread."""

    compared = 0

    def go(self, graph: Any, value: Any, config: RunnableConfig = DEFAULT, **options: Any) -> Any:
        try:
            return super().go(graph, value, config, **options)
        finally:
            self.compare_thread(graph, config)

    def update(self, graph: Any, config: RunnableConfig, values: Any, **options: Any) -> RunnableConfig:
        updated = super().update(graph, config, values, **options)
        self.compare_thread(graph, config)
        return updated

    def compare_thread(self, graph: Any, config: RunnableConfig) -> None:
        head = thread(config["configurable"]["thread_id"])
        self.compare(graph, head, live=True)
        for snapshot in graph.get_state_history(head):
            self.compare(graph, snapshot.config, live=False)

    def compare(self, graph: Any, config: RunnableConfig, *, live: bool) -> None:
        state, found = graph.get_state(config), self.saver.get_tuple(config)
        if found is None:
            return
        self.compared += 1
        # The entrypoint of a functional graph that has never finished is nowhere named.
        unnamed = entrypoint_of(graph) if len(found.checkpoint["versions_seen"]) < 3 else None
        expected = sorted("__start__" if name == unnamed else name for name in state.next)
        assert sorted(next_of(found, live=live)) == expected
        assert sorted(ids(interrupts(found.pending_writes, live=live))) == sorted(ids(state.interrupts))
        for inner in state.tasks:
            if isinstance(inner.state, dict):
                self.compare(graph, inner.state, live=True)


def ids(found: Any) -> list[tuple[str, str]]:
    return [(one.id, repr(one.value)) for one in found]


def entrypoint_of(graph: Any) -> str | None:
    return None if "__start__" in graph.nodes else next(iter(graph.nodes))


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_next_and_interrupts_are_what_the_graph_says(name, durability):
    with HarnessCheckpointer() as saver, Door("sync") as door:
        compared = Compared(saver, door, durability)
        SCENARIOS[name](compared)
        assert compared.compared or name.startswith(("stream", "bulk"))


def test_order_of_sends_and_nodes(run):
    builder = StateGraph(Log).add_node("plan", lambda s: Command(goto=[Send("w", 2), "z", "b", Send("v", 1)]))
    for name in "zbvw":
        builder.add_node(name, say(name))
    graph = run.compile(builder.add_edge(START, "plan"), interrupt_after=["plan"])
    run.go(graph, {"log": []})
    assert next_of(run.saver.get_tuple(DEFAULT), live=True) == ("w", "v", "b", "z")


def test_of_tasks_that_are_alike_only_those_that_are_left(run):
    def work(number: int) -> dict[str, Any]:
        return {"log": [interrupt("?") if number == 1 else number]}

    builder = StateGraph(Log).add_node("work", work).add_node("ask", asking("!")).add_edge(START, "ask")
    builder.add_conditional_edges(START, lambda s: [Send("work", n) for n in range(3)], ["work"])
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    found = run.saver.get_tuple(DEFAULT)
    assert next_of(found, live=True) == ("work", "ask") == run.state(graph).next
    assert next_of(found, live=False) == ("work", "work", "work", "ask")
    assert {one.value for one in interrupts(found.pending_writes)} == {"?", "!"}


def task_paths(saver: Any) -> dict[str, str]:
    """Note from now on what `put_writes` is given."""
    paths: dict[str, str] = {}
    put_writes = saver.put_writes

    def note(config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        paths[task_id] = task_path
        put_writes(config, writes, task_id, task_path)

    saver.put_writes = note
    return paths


def named(found: CheckpointTuple, paths: dict[str, str]) -> tuple[str, ...]:
    step = found.metadata["step"]
    return next_nodes(found.checkpoint, found.pending_writes, step=step, task_paths=paths)


def test_a_node_that_finishes_before_any_node_wrote_to_its_join(run):
    """Its task id hashes a channel that isn't there yet, so only its path tells."""
    paths = task_paths(run.saver)
    builder = StateGraph(Log).add_node("both", say("both")).add_node("ask", asking("?"))
    builder.add_node("a", say("a")).add_node("b", say("b")).add_edge(["a", "b"], "both")
    builder.add_edge(START, "both").add_edge(START, "ask").add_edge("ask", "a").add_edge("ask", "b")
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    found = run.saver.get_tuple(DEFAULT)
    assert run.state(graph).next == ("ask",)
    assert next_of(found, live=True) == ("ask", "both")
    assert named(found, paths) == ("ask",)


def test_a_functional_entrypoint_is_named_by_its_path_then_by_its_past(run):
    paths = task_paths(run.saver)

    @task
    def double(n: int) -> int:
        return 2 * n

    @entrypoint(checkpointer=run.saver)
    def flow(n: int) -> Any:
        return [double(n).result(), interrupt("?")]

    run.go(flow, 1)
    found = run.saver.get_tuple(DEFAULT)
    assert next_of(found, live=True) == ("__start__",)
    assert named(found, paths) == ("flow",)
    run.go(flow, Command(resume=1))
    assert next_of(run.saver.get_tuple(DEFAULT), live=True) == ()
    run.go(flow, 2)
    assert next_of(run.saver.get_tuple(DEFAULT), live=True) == ("flow",)


def test_a_raw_graph_is_known_from_its_past(run):
    nodes = {
        "one": NodeBuilder().subscribe_only("in").do(lambda x: x + 1).write_to("mid"),
        "two": NodeBuilder().subscribe_only("mid").do(lambda x: x + 1).write_to("out"),
    }
    channels = {"in": EphemeralValue(int), "mid": LastValue(int), "out": LastValue(int)}
    graph = Pregel(
        nodes=nodes, channels=channels, input_channels="in", output_channels="out", checkpointer=run.saver
    )
    for _ in range(2):
        assert graph.invoke(1, DEFAULT) == 3
    history = list(graph.get_state_history(DEFAULT))
    assert [s.next for s in history] == [(), ("two",), ("one",)] * 2
    told = [next_of(run.saver.get_tuple(s.config), live=False) for s in history]
    assert told[:4] == [s.next for s in history[:4]]


def checkpoint(**fields: Any) -> Any:
    return {"v": 4, "id": "?", "channel_values": {}, "channel_versions": {}, "versions_seen": {}, **fields}


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"a"}, ()), ({"a", "b+c"}, ("d",)), (({"a", "b+c"}, False), ()), (({"a", "b+c"}, True), ("d",))],
)
def test_joins(value, expected):
    found = checkpoint(channel_values={"join:a+b+c:d": value}, channel_versions={"join:a+b+c:d": 1})
    assert next_nodes(found) == expected


def test_versions_of_another_type():
    values, versions = {"branch:to:a": None}, {"branch:to:a": "2"}
    for seen, expected in (({"branch:to:a": 1}, ("a",)), ({"branch:to:a": "2"}, ()), ({}, ("a",))):
        found = checkpoint(channel_values=values, channel_versions=versions, versions_seen={"a": seen})
        assert next_nodes(found, step=1) == expected


# Snapshots


def test_of_a_chat(run):
    call = {"name": "look", "args": {"city": "Ulm"}, "id": "call"}
    turns = [
        HumanMessage("weather?", id="h1"),
        AIMessage("", id="a1", tool_calls=[call]),
        ToolMessage("sun", tool_call_id="call", id="t1"),
        HumanMessage("thanks", id="h2"),
    ]
    graph = chat_graph(run)
    run.go(graph, {"messages": turns}, {**DEFAULT, "metadata": {"summary": "a chat", "run_id": "r"}})
    found = run.saver.get_tuple(DEFAULT)
    snapshot = Snapshot.of(found, ["good"])
    assert snapshot.metadata == SnapshotMetadata(
        thread_id="t",
        checkpoint_id=found.config["configurable"]["checkpoint_id"],
        step=1,
        parent_checkpoint_id=found.parent_config["configurable"]["checkpoint_id"],
        created_at=found.checkpoint["ts"],
        tags=("good",),
        summary="a chat",
        source="loop",
        run_id="r",
    )
    assert [m.id for m in snapshot.messages] == ["h1", "a1", "t1", "h2", "ai-h2"]
    assert snapshot.state == {}
    assert snapshot.tools_result == [
        {
            "tool_call_id": "call",
            "name": "look",
            "args": {"city": "Ulm"},
            "content": "sun",
            "status": "success",
        }
    ]
    assert (snapshot.next, snapshot.next_node, snapshot.interrupts) == ((), "", ())
    comes_back(snapshot)


def comes_back(snapshot: Snapshot) -> None:
    told = json.loads(json.dumps(snapshot.to_dict()))
    assert list(told)[:5] == ["metadata", "messages", "state", "tools_result", "next_node"]
    assert Snapshot.from_dict(told) == snapshot


def test_at_an_interrupt(run):
    graph = run.compile(chain(a=say("a"), ask=asking("sure?"), z=say("z")))
    run.go(graph, {"log": [{"deep": [1, 2.5, None, "ü"]}]})
    snapshot = Snapshot.of(run.saver.get_tuple(DEFAULT))
    assert snapshot.next == ("ask",)
    assert snapshot.next_node == "ask"
    assert snapshot.state == {"log": [{"deep": [1, 2.5, None, "ü"]}, "a"]}
    assert snapshot.messages == []
    assert [pending.value for pending in snapshot.interrupts] == ["sure?"]
    assert ids(snapshot.interrupts) == ids(run.state(graph).interrupts)
    comes_back(snapshot)
    run.go(graph, Command(resume="yes"))
    answered = run.saver.get_tuple(thread("t", snapshot.metadata.checkpoint_id))
    assert Snapshot.of(answered).interrupts == Snapshot.of(answered).next == ()
    record = Snapshot.of(answered, live=False)
    assert (record.next, record.interrupts) == (snapshot.next, snapshot.interrupts)
    assert Snapshot.of(answered, next=["told"]).next == ("told",)


def test_after_an_error(run):
    def fail(state: Log) -> None:
        raise Broken("no")

    graph = run.compile(chain(a=say("a"), b=fail))
    run.go_wrong(graph, {"log": []})
    assert Snapshot.of(run.saver.get_tuple(DEFAULT)).next == ("b",)


def test_delta_channels_show_their_values(run):
    graph = delta_graph(run, 1)
    run.go(graph, {"log": ["in"]})
    assert Snapshot.of(run.saver.get_tuple(DEFAULT)).state == run.state(graph).values


def test_a_messages_channel_without_messages_stays_in_the_state(run):
    put = checkpoint(ts="2026-01-02T03:04:05+00:00", channel_values={"messages": ["text"]})
    put["channel_versions"] = {"messages": "1"}
    run.saver.put(thread("t", ns=""), {**put, "id": "c"}, {"step": 1, "source": "loop"}, {"messages": "1"})
    snapshot = Snapshot.of(run.saver.get_tuple(DEFAULT))
    assert (snapshot.messages, snapshot.state) == ([], {"messages": ["text"]})


def test_values_that_json_cannot_hold_are_readable():
    snapshot = Snapshot(
        SnapshotMetadata("t", "c"),
        state={"nan": float("nan"), "bytes": b"\0", "set": {2, 1}, "tuple": (1,), 3: object},
        interrupts=(PendingInterrupt("i", {1}),),
    )
    told = json.loads(json.dumps(snapshot.to_dict(), allow_nan=False))
    assert told["state"] == {"nan": "NaN", "bytes": "AA==", "set": [1, 2], "tuple": [1], "3": repr(object)}
    assert told["interrupts"] == [{"id": "i", "value": [1], "response_schema": None}]
    assert Snapshot.from_dict(told).to_dict() == told


def test_the_five_keys_are_enough():
    data = {"metadata": {"thread_id": "t", "checkpoint_id": "c"}, "messages": [], "state": {"a": 1}}
    snapshot = Snapshot.from_dict({**data, "tools_result": [], "next_node": "x"})
    assert (snapshot.next, snapshot.interrupts, snapshot.state) == (("x",), (), {"a": 1})


@pytest.mark.parametrize(
    "change",
    [{"metadata": None}, {"metadata": {"thread_id": "t"}}, {"messages": [{"type": "?", "data": {}}]}],
)
def test_what_is_no_snapshot(change):
    told = Snapshot(SnapshotMetadata("t", "c")).to_dict()
    with pytest.raises(SerializationError, match=r"Snapshot\.to_dict"):
        Snapshot.from_dict({**told, **change})


text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(
    st.builds(HumanMessage, text, id=st.none() | text)
    | st.builds(AIMessage, text, response_metadata=st.dictionaries(text, plain, max_size=2))
    | st.builds(ToolMessage, text, tool_call_id=text),
    max_size=3,
)


@settings(max_examples=examples(100))
@given(messages, st.dictionaries(text, plain, max_size=3), st.lists(text, max_size=2), plain)
def test_plain_snapshots_come_back(messages, state, nodes, asked):
    metadata = SnapshotMetadata("t", "c", step=1, tags=tuple(nodes), summary="s")
    pending = (PendingInterrupt("i", asked),)
    comes_back(Snapshot(metadata, messages, state, [], tuple(nodes), pending))
