"""Snapshots: what they store, and that graphs go on from them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import operator
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from helpers import DOORS, examples, id_of, thread
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from langgraph_harness_saver import (
    CheckpointEngine,
    HarnessCheckpointer,
    Retention,
    SnapshotConfig,
    SnapshotTooLargeError,
    SnapshotTrigger,
    create_checkpoint_engine,
)
from langgraph_harness_saver.errors import CheckpointNotFoundError, InvalidConfigError, SerializationError
from langgraph_harness_saver.rows import Query
from langgraph_harness_saver.slots import PART, RAW
from langgraph_harness_saver.travel import all_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVERS = ("postgres", "redis")


@pytest.fixture(params=["memory", "sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


on_all_stores = pytest.mark.parametrize("store_kind", ["memory", "sqlite", *SERVERS])


class Engine:
    """An engine's methods by one of its two doors, as plain calls."""

    def __init__(self, engine: CheckpointEngine, door: str, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self._door, self._loop = engine, door, loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self._door == "sync":
            return getattr(self.engine.sync, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(
            getattr(self.engine, name)(*args, **kwargs)
        )


@pytest.fixture(params=DOORS)
def make_engine(request: pytest.FixtureRequest, saver: Any) -> Iterator[Callable[..., Engine]]:
    loop = asyncio.new_event_loop()

    def make(graph: Any = None, **config: Any) -> Engine:
        return Engine(CheckpointEngine(saver, graph, SnapshotConfig(**config)), request.param, loop)

    yield make
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


class Work(MessagesState, total=False):
    count: int
    log: Annotated[list, operator.add]
    tools_result: Any


def work_graph(saver: Any) -> Any:
    builder = StateGraph(Work)
    builder.add_node("plan", lambda state: {"count": state.get("count", 0) + 1, "log": ["plan"]})
    builder.add_node("act", lambda state: {"messages": [("ai", f"acted {state['count']}")], "log": ["act"]})
    builder.add_edge(START, "plan").add_edge("plan", "act").add_edge("act", END)
    return builder.compile(checkpointer=saver)


def metadata(saver: Any, thread_id: str) -> dict[str, Any]:
    return dict(saver.get_tuple(thread(thread_id)).metadata)


# --- what is stored ----------------------------------------------------------------------------------


@on_all_stores
def test_what_is_given_is_what_is_read(engine: Engine) -> None:
    state = {"plan": ["a", "b"], "deep": {"x": [1, {2}]}, "nothing": None, "empty": []}
    made = engine.snapshot("t", [HumanMessage("hi", id="m1")], state, [{"name": "find", "content": "x"}])
    read = engine.get(made, "t")
    assert read.messages == [HumanMessage("hi", id="m1")]
    assert read.state == state
    assert read.tools_result == [{"name": "find", "content": "x"}]
    assert read.next == ()
    assert read == engine.get_latest("t")
    assert (read.metadata.step, read.metadata.source, read.metadata.trigger) == (0, "update", "manual")
    assert type(read).from_dict(read.to_dict()).tools_result == read.tools_result


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "b", "plan", "Ünïcode", "with space"])
PAIRS = st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=20))
SNAPSHOTS = st.lists(st.tuples(st.lists(PAIRS, max_size=4), st.dictionaries(NAMES, VALUES)), max_size=6)


@given(snapshots=SNAPSHOTS, delta=st.booleans())
@settings(max_examples=examples(60))
def test_random_lines_of_snapshots_read_back(snapshots: list[Any], delta: bool) -> None:
    engine = CheckpointEngine(HarnessCheckpointer(), config=SnapshotConfig(delta_snapshots=delta)).sync
    made = [
        engine.snapshot("t", [{"role": role, "content": text} for role, text in messages], state)
        for messages, state in snapshots
    ]
    for step, (checkpoint_id, (messages, state)) in enumerate(zip(made, snapshots, strict=True)):
        read = engine.get(checkpoint_id, "t")
        assert read.state == state
        assert [message.content for message in read.messages] == [text for _, text in messages]
        assert len({message.id for message in read.messages}) == len(messages)
        assert read.metadata.step == step
    assert [item.checkpoint_id for item in engine.list_checkpoints("t")] == made[::-1]


def test_messages_of_every_form_become_langchain_s(engine: Engine) -> None:
    own = HumanMessage("mine")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    engine.snapshot(
        "t",
        [
            {"role": "system", "content": "be kind"},
            ("user", "hello"),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            own,
            AIMessageChunk("streamed", id="run-1"),
        ],
    )
    read = engine.get_latest("t").messages
    kinds = [SystemMessage, HumanMessage, AIMessage, ToolMessage, HumanMessage, AIMessage]
    assert [type(message) for message in read] == kinds
    assert read[2].tool_calls == [{"name": "f", "args": {"x": 1}, "id": "c1", "type": "tool_call"}]
    assert all(message.id for message in read)
    assert own.id is None


def test_the_same_message_keeps_its_id(engine: Engine) -> None:
    first, second = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}
    engine.snapshot("t", [first])
    before = engine.get_latest("t").messages
    engine.snapshot("t", [first, second, first])
    after = engine.get_latest("t").messages
    assert after[0].id == before[0].id
    assert len({message.id for message in after}) == 3


@pytest.mark.parametrize(
    "alone", ["hi", ("user", "hi"), {"role": "user", "content": "hi"}, HumanMessage("hi")]
)
def test_one_message_stands_for_a_list(engine: Engine, alone: Any) -> None:
    engine.snapshot("t", alone)
    assert [message.content for message in engine.get_latest("t").messages] == ["hi"]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (
            [("user", "x"), {"role": "boss", "content": "x"}],
            r"messages\[1\] is no message: Unexpected message",
        ),
        ([{"content": "x"}], r"messages\[0\] is no message: Message dict must contain"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\] is no message: it lacks 'tool_call_id'"),
        ([7], r"messages\[0\] is no message: Unsupported message type"),
        (7, "messages are a list, not a int"),
    ],
)
def test_what_is_no_message_is_refused(engine: Engine, messages: Any, told: str) -> None:
    with pytest.raises(InvalidConfigError, match=told):
        engine.snapshot("t", messages)
    assert engine.get_latest("t") is None


class Model(BaseModel):
    count: int = 3
    messages: list = [{"role": "user", "content": "inside"}]


@dataclasses.dataclass
class Plain:
    count: int = 3
    messages: list = dataclasses.field(default_factory=lambda: [("user", "inside")])


@pytest.mark.parametrize("state", [Model(), Plain(), {"count": 3, "messages": ["inside"]}])
def test_states_may_be_models_and_hold_the_messages(engine: Engine, state: Any) -> None:
    engine.snapshot("t", None, state)
    read = engine.get_latest("t")
    assert read.state == {"count": 3}
    assert [message.content for message in read.messages] == ["inside"]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"branch:to:x": None}, "'branch:to:x' can't be a key of the state"),
        ({"join:a+b:c": None}, "'join:a.b:c' can't be a key"),
        ({"__start__": 1}, "'__start__' can't be a key"),
        ({"__pregel_tasks": []}, "'__pregel_tasks' can't be a key"),
        ({"__interrupt__": []}, "'__interrupt__' can't be a key"),
        ({1: 2}, "the state's keys are names of channels, so text, not 1"),
        ({"messages": ["other"]}, "'messages' is a key of the state, too"),
        ({"tools_result": ["other"]}, "'tools_result' is a key of the state, too"),
        ([1], "a state is a mapping, a pydantic model or a dataclass, not a list"),
        (Model, "a state is a mapping"),
    ],
)
def test_names_that_cannot_be_channels_are_refused(engine: Engine, state: Any, told: str) -> None:
    with pytest.raises(InvalidConfigError, match=told):
        engine.snapshot("t", ["hi"], state, ["mine"])
    assert engine.get_latest("t") is None


def test_the_same_given_twice_is_no_clash(engine: Engine) -> None:
    state = {"messages": [("user", "hi")], "tools_result": [1], "x": 1}
    engine.snapshot("t", state["messages"], state, [1])
    read = engine.get_latest("t")
    assert (read.state, read.tools_result, len(read.messages)) == ({"x": 1}, [1], 1)


def test_what_cannot_be_stored_is_named(engine: Engine) -> None:
    with pytest.raises(SerializationError, match="channel 'lock' of thread 't'"):
        engine.snapshot("t", [], {"lock": asyncio.Lock})
    assert engine.get_latest("t") is None


def test_what_is_stored_is_the_state_as_it_was(saver: Any) -> None:
    engine = CheckpointEngine(saver)
    state = {"items": [1]}

    async def slow(messages: Any, given: Any) -> str:
        state["items"].append(2)
        await asyncio.sleep(0)
        state["more"] = 3
        return "slow"

    async def take() -> Any:
        return await engine.get(await engine.snapshot("t", [], state, summarise=slow))

    assert asyncio.run(take()).state == {"items": [1]}


def test_keys_that_are_not_given_are_gone(make_engine: Callable[..., Engine], saver: Any) -> None:
    # LangGraph rebuilds what has a version and no value from the past.
    graph = work_graph(saver)
    engine = make_engine()
    graph.invoke({"messages": "hi"}, thread("t"))
    assert graph.get_state(thread("t")).values["log"] == ["plan", "act"]
    engine.snapshot("t", [("user", "anew")], {"count": 7}, next_node="act")
    assert engine.get_latest("t").state == {"count": 7}
    assert graph.get_state(thread("t")).values.get("log", []) == []
    done = graph.invoke(None, thread("t"))
    assert (done["count"], done["log"]) == (7, ["act"])


# --- triggers, tags, summaries, sizes ----------------------------------------------------------------


def test_other_triggers_store_nothing(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(triggers=["tool_call", SnapshotTrigger.LLM_CALL])
    assert engine.snapshot("t", [], {"x": 1}) == ""
    assert engine.get_latest("t") is None
    made = engine.snapshot("t", [], {"x": 1}, trigger="tool_call")
    assert engine.get(made).metadata.trigger == "tool_call"
    with pytest.raises(InvalidConfigError, match="no trigger 'tool'; there are 'tool_call', 'llm_call'"):
        engine.snapshot("t", trigger="tool")


@pytest.mark.parametrize("trigger", list(SnapshotTrigger))
def test_all_triggers_are_on_by_default(engine: Engine, saver: Any, trigger: SnapshotTrigger) -> None:
    assert engine.snapshot("t", trigger=trigger)
    assert metadata(saver, "t")["trigger"] == trigger.value


@on_all_stores
def test_tags_name_it_and_can_be_searched_by(engine: Engine, saver: Any) -> None:
    first = engine.snapshot("t", [], {"x": 1}, tags=["good", "first"])
    second = engine.snapshot("t", [], {"x": 2}, tags="good", summary="tried again")
    assert engine.list_tags("t") == {"first": first, "good": second}
    assert engine.get_tagged("first", "t").state == {"x": 1}
    assert engine.get_latest("t").metadata.tags == ("good",)
    found = [id_of(item.config) for item in saver.list(thread("t"), filter={"tags": ["first"]})]
    assert found == [first]
    assert [id_of(i.config) for i in saver.list(None, filter={"summary": "tried again"})] == [second]
    with pytest.raises(InvalidConfigError, match="a tag needs a name, not ''"):
        engine.snapshot("t", tags=["fine", ""])
    assert len(engine.list_checkpoints("t")) == 2


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "State: 2 keys"),
        ([{"role": "user", "content": "x" * 200}], f"[user] {'x' * 100}"),
        ([("assistant", "short")], "[assistant] short"),
        ([AIMessage("short")], "[ai] short"),
        ([HumanMessage([{"type": "text", "text": "a part"}])], "[human] a part"),
        ([AIMessage("", tool_calls=[{"name": "find", "args": {}, "id": "1"}])], "[ai] calls find"),
    ],
)
def test_the_summary_is_the_last_message_or_the_size_of_the_state(
    engine: Engine, messages: Any, told: str
) -> None:
    engine.snapshot("t", messages, {"a": 1, "b": 2})
    assert engine.get_latest("t").metadata.summary == told


async def summarise_later(messages: Any, state: Any) -> Any:
    await asyncio.sleep(0)
    return AIMessage(f"{len(messages)} messages, {sorted(state)}")


def summarise_wrongly(messages: Any, state: Any) -> Any:
    raise RuntimeError("no model")


@pytest.mark.parametrize(
    ("summarise", "told", "logged"),
    [
        (lambda messages, state: f"{messages[-1].content}!", "hi!", 0),
        (summarise_later, "1 messages, ['x']", 0),
        (summarise_wrongly, "[user] hi", 1),
        (lambda messages, state: 7, "[user] hi", 1),
    ],
)
@pytest.mark.parametrize("by_config", [True, False])
def test_summarise(
    make_engine: Callable[..., Engine],
    caplog: pytest.LogCaptureFixture,
    summarise: Any,
    told: str,
    logged: int,
    by_config: bool,
) -> None:
    engine = make_engine(summarise=summarise if by_config else summarise_wrongly)
    one = None if by_config else summarise
    made = engine.snapshot("t", [("user", "hi")], {"x": 1}, summarise=one)
    assert engine.get(made).metadata.summary == told
    assert len([r for r in caplog.records if "summarise failed" in r.getMessage()]) == logged
    engine.snapshot("t", [("user", "hi")], summary="mine")
    assert engine.get_latest("t").metadata.summary == "mine"
    with pytest.raises(InvalidConfigError, match="a summary is text, not 7"):
        engine.snapshot("t", summary=7)


@pytest.mark.parametrize("store_kind", ["sqlite", *SERVERS])
def test_an_async_summary_for_a_sync_caller_within_a_loop(saver: Any) -> None:
    engine = CheckpointEngine(saver, config=SnapshotConfig(summarise=summarise_later))

    async def main() -> None:
        engine.sync.snapshot("t", ["hi"], {"x": 1})
        assert (await engine.get_latest("t")).metadata.summary == "1 messages, ['x']"

    asyncio.run(main())


def test_retention_is_the_configuration_s(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(gc_policy="keep_last_n", gc_param=4)
    made = [engine.snapshot("t", [], {"n": n}, tags=["first"] if n == 0 else ()) for n in range(12)]
    kept = [item.checkpoint_id for item in engine.list_checkpoints("t")]
    assert kept[0] == made[-1]
    assert kept[-1] == made[0]
    assert len(kept) <= 5
    assert [engine.get(one, "t").state["n"] for one in kept] == [made.index(one) for one in kept]
    assert [item.step for item in engine.list_checkpoints("t")][:2] == [11, 10]


def test_a_large_one_is_refused_with_its_sizes(make_engine: Callable[..., Engine], saver: Any) -> None:
    engine = make_engine(max_snapshot_size_mb=0.1)
    engine.snapshot("t", [], {"x": 1})
    with pytest.raises(SnapshotTooLargeError, match=r"'big' 200,00\d, 'messages' \d+") as caught:
        engine.snapshot("t", [("user", "y" * 100)], {"big": b"x" * 200_000, "small": 1}, tags=["large"])
    assert list(caught.value.sizes)[:2] == ["big", "messages"]
    assert caught.value.sizes.keys() == {"big", "small", "messages", "tools_result"}
    assert caught.value.limit == 104857
    assert len(engine.list_checkpoints("t")) == 1
    assert engine.list_tags("t") == {}
    stored = asyncio.run(saver._core.store.load("t"))
    assert len(stored.rows) == 1
    assert not stored.parts


def test_keyframes_only(make_engine: Callable[..., Engine], saver: Any) -> None:
    def rows(thread_id: str, delta: bool) -> list[Any]:
        engine = make_engine(delta_snapshots=delta)
        for number in range(6):
            engine.snapshot(thread_id, [f"word {i} " * 9 for i in range(number)], {"x": list(range(900))})
        page = asyncio.run(saver._core.store.scan(Query(thread_id), 10, all_known))
        return [entry.row for entry in page.entries]

    whole, delta = rows("whole", False), rows("delta", True)
    for row in whole:
        slots = saver._core.codec.open_body(row.body, row.key).slots.values()
        assert row.reach == ()
        assert {slot.kind for slot in slots if slot.type} <= {RAW, PART}
        assert len(slots) == 4
    assert any(row.reach for row in delta)
    # Each can do without all others.
    engine = make_engine()
    engine.delete_before("whole", 5)
    assert engine.get_latest("whole").state == {"x": list(range(900))}


def test_errors_are_logged_and_counted_by_the_safe_one(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(max_snapshot_size_mb=0.1)
    assert engine.snapshot_safe("t", [], {"x": 1})
    with caplog.at_level(logging.ERROR):
        assert engine.snapshot_safe("t", [], {"x": b"x" * 200_000}) == ""
        assert engine.snapshot_safe("t", [7]) == ""
    assert engine.engine.snapshot_failures == engine.engine.sync.snapshot_failures == 2
    assert [record.exc_info[0] for record in caplog.records] == [SnapshotTooLargeError, InvalidConfigError]
    with pytest.raises(TypeError):
        engine.snapshot_safe("t", unknown=1)


# --- graphs go on ------------------------------------------------------------------------------------


def test_a_graph_goes_on_at_the_node(make_engine: Callable[..., Engine], saver: Any) -> None:
    graph = work_graph(saver)
    engine = make_engine(graph)
    engine.snapshot("t", [{"role": "user", "content": "hi"}], {"count": 41, "log": ["mine"]}, next_node="act")
    state = graph.get_state(thread("t"))
    assert state.next == ("act",) == engine.get_latest("t").next
    assert state.values["count"] == 41
    done = graph.invoke(None, thread("t"))
    assert [message.content for message in done["messages"]] == ["hi", "acted 41"]
    assert done["log"] == ["mine", "act"]
    steps = [s.metadata["step"] for s in graph.get_state_history(thread("t"))]
    assert steps == [1, 0]
    # The next turn begins as ever.
    done = graph.invoke({"messages": "more"}, thread("t"))
    assert done["log"] == ["mine", "act", "plan", "act"]
    assert len(done["messages"]) == 4


def test_a_snapshot_follows_what_a_graph_has_stored(make_engine: Callable[..., Engine], saver: Any) -> None:
    graph = work_graph(saver)
    engine = make_engine(graph)
    graph.invoke({"messages": "hi"}, thread("t"))
    head = saver.get_tuple(thread("t"))
    engine.snapshot("t", [], {"count": 5}, next_node="plan")
    made = saver.get_tuple(thread("t"))
    assert made.parent_config == head.config
    assert made.metadata["step"] == head.metadata["step"] + 1
    assert made.checkpoint["versions_seen"] == head.checkpoint["versions_seen"]
    assert made.checkpoint["updated_channels"] is None
    old, new = head.checkpoint["channel_versions"], made.checkpoint["channel_versions"]
    assert min(new[c] for c in ("count", "messages", "branch:to:plan")) > max(old.values())
    assert new["branch:to:act"] == old["branch:to:act"]
    assert graph.get_state(thread("t")).next == ("plan",)
    assert graph.invoke(None, thread("t"))["count"] == 6


def test_a_channel_that_has_not_changed_keeps_its_version(engine: Engine, saver: Any) -> None:
    engine.snapshot("t", [("user", "hi")], {"same": [1, 2], "other": 1})
    before = saver.get_tuple(thread("t")).checkpoint["channel_versions"]
    engine.snapshot("t", [("user", "hi")], {"same": [1, 2], "other": 2})
    after = saver.get_tuple(thread("t")).checkpoint["channel_versions"]
    assert {c for c in after if after[c] != before[c]} == {"other"}
    assert engine.blame("t", "same").render()


def test_what_ran_last_does_not_run_again(make_engine: Callable[..., Engine], saver: Any) -> None:
    graph = work_graph(saver)
    engine = make_engine(graph)
    graph.invoke({"messages": "hi"}, thread("t"))
    for node in ("", "act", "plan"):
        engine.snapshot("t", [], {"count": 1}, next_node=node)
        assert graph.get_state(thread("t")).next == ((node,) if node else ())
    assert graph.invoke(None, thread("t"))["log"] == ["plan", "act"]


def test_a_snapshot_of_one_node_may_follow_that_of_another(engine: Engine) -> None:
    for node in ("plan", "act", "act", ""):
        engine.snapshot("t", [], {"count": 1}, next_node=node)
        assert engine.get_latest("t").next == ((node,) if node else ())


def test_unknown_nodes_are_refused(make_engine: Callable[..., Engine], saver: Any) -> None:
    engine = make_engine(work_graph(saver))
    for name in ("actt", END, START):
        with pytest.raises(
            InvalidConfigError, match=r"no node '.*' to go on at; next_node is one of 'plan', 'act'"
        ):
            engine.snapshot("t", next_node=name)
    functional = entrypoint(checkpointer=saver)(lambda given: given)
    with pytest.raises(InvalidConfigError, match="next_node is for what StateGraph makes"):
        make_engine(functional).snapshot("t", next_node="x")
    assert engine.get_latest("t") is None
    # Without the graph nobody knows.
    assert make_engine().snapshot("t", next_node="actt")


@pytest.mark.parametrize("given", [True, False])
def test_deferred_nodes_run(given: bool, make_engine: Callable[..., Engine], saver: Any) -> None:
    builder = StateGraph(Work).add_node("a", lambda state: {"log": ["a"]})
    builder.add_node("end", lambda state: {"log": ["end"]}, defer=True)
    graph = builder.add_edge(START, "a").add_edge("a", "end").compile(checkpointer=saver)
    engine = make_engine(graph if given else None)
    engine.snapshot("t", [], {"log": []}, next_node="end")
    assert graph.get_state(thread("t")).next == ("end",) == engine.get_latest("t").next
    assert graph.invoke(None, thread("t"))["log"] == ["end"]
    engine.snapshot("t", [], {"log": []}, next_node="a")
    assert graph.get_state(thread("t")).next == ("a",)
    assert graph.invoke(None, thread("t"))["log"] == ["a", "end"]


def test_update_state_and_time_travel_work_on_snapshots(
    make_engine: Callable[..., Engine], saver: Any
) -> None:
    graph = work_graph(saver)
    engine = make_engine(graph)
    first = engine.snapshot("t", [("user", "hi")], {"count": 1, "log": []}, next_node="act")
    second = engine.snapshot(
        "t", [("user", "hi"), ("user", "more")], {"count": 2, "log": []}, next_node="act"
    )
    graph.update_state(thread("t"), {"count": 10})
    assert graph.get_state(thread("t")).values["count"] == 10
    assert engine.rewind(first, "t").checkpoint.state["count"] == 1
    assert graph.invoke(None, thread("t"))["messages"][-1].content == "acted 1"
    branch = engine.branch(second, "other", "t")
    assert graph.invoke(None, thread(branch))["messages"][-1].content == "acted 2"
    engine.snapshot(branch, [("user", "last")], {"count": 3})
    assert engine.get_latest(branch).metadata.step == 3
    assert engine.diff(first, second, "t").to_dict()
    engine.snapshot("t", [("user", "hi")], {"count": 8}, summary="ours", tags="ours")
    merged = engine.merge_branch(branch, "t", "theirs").checkpoint_id
    assert not metadata(saver, "t").keys() & {"trigger", "summary", "tags", "phase"}
    assert engine.get(merged, "t").metadata.trigger is None
    assert engine.get_checkpoint_tree("t").render()


def test_a_fork_from_an_earlier_one(engine: Engine, saver: Any) -> None:
    ids = [engine.snapshot("t", [], {"n": n}) for n in range(4)]
    fork = engine.snapshot("t", [], {"n": "fork"}, parent_checkpoint_id=ids[1])
    read = engine.get_latest("t")
    assert (read.metadata.checkpoint_id, read.state) == (fork, {"n": "fork"})
    assert (read.metadata.parent_checkpoint_id, read.metadata.step) == (ids[1], 2)
    assert fork > max(ids)
    assert [engine.get(one).state["n"] for one in ids] == [0, 1, 2, 3]
    assert engine.snapshot("t", [], {"n": 5})
    assert engine.get_latest("t").metadata.parent_checkpoint_id == fork
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 'nowhere' in thread 't' to fork from"):
        engine.snapshot("t", parent_checkpoint_id="nowhere")
    branch = engine.branch(ids[2], "b", "t")
    engine.snapshot(branch, [], {"n": "deep"}, parent_checkpoint_id=ids[0])
    assert engine.get_latest(branch).metadata.parent_checkpoint_id == ids[0]


@pytest.mark.parametrize("how", ["asks", "fails", "stops"])
def test_a_graph_s_unfinished_run_is_not_buried(
    make_engine: Callable[..., Engine], saver: Any, how: str
) -> None:
    def node(state: Any) -> Any:
        if how == "fails":
            raise RuntimeError("broken")
        return {"messages": [("ai", interrupt("really?"))]}

    builder = StateGraph(Work).add_node(node).add_edge(START, "node")
    graph = builder.compile(checkpointer=saver, interrupt_before=["node"] if how == "stops" else None)
    try:
        graph.invoke({"messages": "hi"}, thread("t"))
    except RuntimeError:
        assert how == "fails"
    engine = make_engine()
    with pytest.raises(InvalidConfigError, match="a graph has still to run 'node' on thread 't'"):
        engine.snapshot("t", [], {"count": 1})
    if how == "asks":
        assert graph.invoke(Command(resume="yes"), thread("t"))["messages"][-1].content == "yes"
        assert engine.snapshot("t", [], {"count": 1})
    else:
        assert engine.snapshot("t", [], {"count": 1}, next_node="node")
        assert graph.get_state(thread("t")).next == ("node",)


class Deltas(TypedDict, total=False):
    log: Annotated[list, DeltaChannel(lambda state, writes: [*state, *(one for w in writes for one in w)])]
    count: int


@pytest.mark.parametrize("knows_graph", [True, False])
def test_delta_channels_come_out_right(
    make_engine: Callable[..., Engine], saver: Any, knows_graph: bool
) -> None:
    builder = StateGraph(Deltas).add_node("a", lambda state: {"log": ["a"]})
    builder.add_node("b", lambda state: {"count": len(state["log"])})
    graph = builder.add_edge(START, "a").add_edge("a", "b").compile(checkpointer=saver)
    engine = make_engine(graph if knows_graph else None)
    graph.invoke({"log": ["in"]}, thread("t"))

    def log() -> Any:
        return graph.get_state(thread("t")).values["log"]

    engine.snapshot("t", [], {"log": ["mine"], "count": 0}, next_node="a")
    assert log() == ["mine"]
    stored = saver.get_tuple(thread("t")).checkpoint["channel_values"]["log"]
    assert isinstance(stored, _DeltaSnapshot) == knows_graph
    assert graph.invoke(None, thread("t")) == {"log": ["mine", "a"], "count": 2}
    for held in ({"log": ["other"]}, {"count": 1}, {"count": 1}):
        # Each has to hide what came before it, also from what is written later.
        engine.snapshot("t", [], held, next_node="a")
        assert log() == held.get("log", [])
        engine.rewind(engine.get_latest("t").metadata.checkpoint_id, "t")
        graph.invoke(None, thread("t"))
        assert log() == [*held.get("log", []), "a"]
    engine.snapshot("t", [], {"log": ["hidden"]})
    engine.snapshot("t", [], {"count": 1}, next_node="a")
    graph.invoke(None, thread("t"))
    assert log() == ["a"]
    engine.snapshot("t", [], {"log": ["last"]}, next_node="b")
    assert graph.invoke(None, thread("t"))["count"] == 1
    saver.prune(["t"])
    assert log() == ["last"]
    assert graph.invoke({"log": ["more"]}, thread("t"))["log"] == ["last", "more", "a"]


# --- others at the same time -------------------------------------------------------------------------


@on_all_stores
def test_many_at_once_lose_none(saver: Any) -> None:
    engine = CheckpointEngine(saver)

    async def main() -> None:
        made = await asyncio.gather(*(engine.snapshot("t", [], {"n": n}) for n in range(25)))
        listed = await engine.list_checkpoints("t")
        assert [item.step for item in listed] == list(range(24, -1, -1))
        assert {item.checkpoint_id for item in listed} == set(made)
        assert [item.parent_checkpoint_id for item in listed[:-1]] == [i.checkpoint_id for i in listed[1:]]
        read = [(await engine.get(one, "t")).state["n"] for one in made]
        assert read == list(range(25))

    asyncio.run(main())


PROGRAM = """
import sys
from langgraph_harness_saver import CheckpointEngine, HarnessCheckpointer

url, name, count = sys.argv[1:]
with HarnessCheckpointer.from_conn_string(url) as saver:
    engine = CheckpointEngine(saver).sync
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        print(engine.snapshot("t", [("user", name)], {"by": name, "number": number}), flush=True)
"""


@pytest.mark.parametrize("store_kind", ["sqlite", *SERVERS])
def test_two_processes_on_one_thread_lose_none(saver: Any, store_url: str) -> None:
    command = [sys.executable, "-c", PROGRAM, store_url]
    running = [
        subprocess.Popen([*command, name, "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    made = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    engine = CheckpointEngine(saver).sync
    listed = engine.list_checkpoints("t")
    assert [item.step for item in listed] == list(range(39, -1, -1))
    assert [item.parent_checkpoint_id for item in listed[:-1]] == [item.checkpoint_id for item in listed[1:]]
    assert {item.checkpoint_id for item in listed} == {*made[0], *made[1]}
    for name, ids in zip(("one", "two"), made, strict=True):
        read = [engine.get(one, "t").state for one in ids]
        assert read == [{"by": name, "number": number} for number in range(20)]


GOES_ON = """
import json, sys
sys.path.insert(0, sys.argv[2])
from langgraph_harness_saver import HarnessCheckpointer
from test_snapshots import work_graph

with HarnessCheckpointer.from_conn_string(sys.argv[1]) as saver:
    done = work_graph(saver).invoke(None, {"configurable": {"thread_id": "t"}})
    messages = [message.content for message in done["messages"]]
    print(json.dumps([done["count"], done["log"], messages, done["tools_result"]]))
"""


@pytest.mark.parametrize("store_kind", ["sqlite", *SERVERS])
def test_a_graph_goes_on_in_another_process(saver: Any, store_url: str) -> None:
    engine = CheckpointEngine(saver).sync
    engine.snapshot("t", [("user", "hi")], {"count": 41, "log": []}, [{"content": 1}], next_node="plan")
    run = subprocess.run(
        [sys.executable, "-c", GOES_ON, store_url, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == '[42, ["plan", "act"], ["hi", "acted 42"], [{"content": 1}]]'


def test_ids_follow_those_of_a_clock_that_is_ahead(engine: Engine, saver: Any) -> None:
    config, checkpoint = thread("t", ns=""), {"v": 4, "ts": "2026-01-01T00:00:00+00:00", "id": "zzz"}
    checkpoint |= {"channel_values": {}, "channel_versions": {}, "versions_seen": {}}
    saver.put(config, checkpoint, {"step": 7, "source": "loop"}, {})
    made = engine.snapshot("t", [], {"x": 1})
    assert made > "zzz"
    assert engine.get_latest("t").metadata.step == 8


# --- configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trigers": []}, "there is no option 'trigers'; did you mean 'triggers'?"),
        ({"triggers": ["tool"]}, "triggers.0: Input should be 'tool_call', 'llm_call'"),
        ({"max_snapshot_size_mb": 0}, "max_snapshot_size_mb: Input should be greater than 0"),
        ({"interval_seconds": -1}, "interval_seconds: Input should be greater than 0"),
        ({"interval_seconds": float("inf")}, "interval_seconds: Input should be a finite number"),
        ({"gc_policy": "keep_some"}, "gc_policy: Input should be 'keep_all', 'keep_last_n'"),
        ({"gc_policy": "keep_last_n"}, "keep_last_n takes a whole number of checkpoints"),
        ({"gc_policy": "keep_last_n", "gc_param": 0}, "keep_last_n takes a whole number"),
        ({"gc_policy": "keep_last_n", "gc_param": 2.5}, "keep_last_n takes a whole number"),
        ({"gc_policy": "keep_milestones", "gc_param": 1}, "2 or more"),
        ({"gc_policy": "keep_age", "gc_param": -5}, "keep_age takes a number of seconds"),
        ({"gc_policy": "max_bytes", "gc_param": "many"}, "gc_param: Input should be a valid number"),
        ({"gc_param": 7}, "keep_all keeps all, and takes no parameter"),
        ({"summarise": "short"}, "summarise: Input should be callable"),
        ({"delta_snapshots": "perhaps"}, "delta_snapshots: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_configured_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidConfigError, match=told):
        SnapshotConfig(**options)


def test_defaults_lose_nothing() -> None:
    config = SnapshotConfig()
    assert config.triggers == frozenset(SnapshotTrigger)
    assert config.delta_snapshots
    assert config.max_snapshot_size_mb is config.interval_seconds is config.retention is None
    assert config.gc_policy == "keep_all"
    assert SnapshotConfig(triggers="interval").interval_seconds == 60
    assert SnapshotConfig(triggers=list(SnapshotTrigger), interval_seconds=5).interval_seconds == 5
    assert SnapshotConfig(triggers=["manual"]).interval_seconds is None


def test_engines_take_their_config_in_either_place() -> None:
    config = SnapshotConfig(triggers=["manual"])
    with HarnessCheckpointer() as saver:
        graph = work_graph(saver)
        for engine in (
            CheckpointEngine(saver, graph, config),
            CheckpointEngine(saver, config, graph),
            CheckpointEngine(saver, config=config, graph=graph),
        ):
            assert (engine.config, engine.graph, engine.sync.config) == (config, graph, config)
        assert CheckpointEngine(saver, config).graph is None
        assert CheckpointEngine(saver, graph).config == SnapshotConfig()
        with pytest.raises(InvalidConfigError, match="an engine's config is a SnapshotConfig, not a dict"):
            CheckpointEngine(saver, config={"triggers": []})
        assert saver.retention.keeps_all
        kept = SnapshotConfig(gc_policy="keep_last_n", gc_param=3)
        assert CheckpointEngine(saver, config=kept).config.retention == Retention("keep_last_n", 3)
        assert saver.retention == kept.retention
        # What an engine isn't told, it leaves as it is.
        CheckpointEngine(saver)
        assert saver.retention == kept.retention
        CheckpointEngine(saver, config=SnapshotConfig(gc_policy="keep_all"))
        assert saver.retention.keeps_all
        made = asyncio.run(create_checkpoint_engine(config=config))
        assert made.config is config
        made.checkpointer.close()
