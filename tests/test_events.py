"""`engine.callbacks()`: events are what tools and models saw, and nothing is lost or harmed by them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from agents import USAGE, Agent, Scripted, State, Streaming
from helpers import Door, thread, view
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from langgraph_harness_saver import (
    CheckpointEngine,
    CheckpointNotFoundError,
    CheckpointTree,
    Event,
    HarnessCheckpointer,
    StoreError,
    StoreUnavailableError,
    eventlog,
)
from langgraph_harness_saver.engine.told import told, told_prompt

if TYPE_CHECKING:
    from collections.abc import Callable

memory_and_sqlite = pytest.mark.parametrize("store_kind", ["memory", "sqlite"])
on_memory = pytest.mark.parametrize("store_kind", ["memory"])
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"])
one_of_each = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "postgres", "redis"])


@pytest.fixture
def engine(saver: Any) -> CheckpointEngine:
    return CheckpointEngine(saver)


def config_of(engine: CheckpointEngine, thread_id: str = "t", **options: Any) -> dict[str, Any]:
    return {**thread(thread_id), "callbacks": [engine.callbacks(**options)]}


def run_agent(agent: Agent, engine: CheckpointEngine, door: Door, thread_id: str = "t") -> None:
    config = config_of(engine, thread_id)
    door.call(agent.graph, "invoke", {"messages": [HumanMessage("hi")]}, config)
    found = door.call(agent.graph, "invoke", Command(resume="yes"), config)
    assert len(found["notes"]) == 6


def outcome(event: Event) -> tuple[str, str, str]:
    if event.kind == "llm_call":
        return (event.kind, "model", "")
    shown = "paused" if event.paused else event.error if event.error else str(event.output)
    return (event.kind, event.name, shown)


def listed(engine: CheckpointEngine, thread_id: str = "t", *args: Any, **options: Any) -> list[Event]:
    return engine.sync.events(thread_id, *args, **options)


def one_node(saver: Any, work: Callable[[State], Any]) -> Any:
    return StateGraph(State).add_node("work", work).add_edge(START, "work").compile(checkpointer=saver)


@tool
def echo(value: Any) -> Any:
    """Give back what is given."""
    return value


def echoing(saver: Any, *values: Any) -> Any:
    def work(state: State) -> State:
        for value in values:
            echo.invoke({"value": value})
        return {"notes": ["done"]}

    return one_node(saver, work)


class Gate:
    """Holds up, or fails, what stores events."""

    def __init__(self, saver: Any, error: Exception | None = None) -> None:
        self.open = threading.Event()
        self.saver = saver
        self.add = saver.backend.add_events
        self.calls = 0
        self.error = error
        saver.backend.add_events = self._add

    async def _add(self, events: Any) -> None:
        self.calls += 1
        assert self.open.wait(5)
        if self.error is not None:
            raise self.error
        await self.add(events)


# --- what is recorded ------------------------------------------------------------------------------------


def test_events_are_what_tools_and_models_saw(engine: CheckpointEngine, door: Door) -> None:
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, door)
    events = listed(engine)
    assert Counter(map(outcome, events)) == agent.called
    assert [event.id for event in events] == sorted(event.id for event in events)
    by_name = {name: [e for e in events if e.name == name] for name in {e.name for e in events}}
    assert [(e.attempt, e.error) for e in by_name["check"]] == [(1, "ConnectionError: try again"), (2, None)]
    assert [(e.paused, e.error, e.input) for e in by_name["confirm"]] == [
        (True, None, {"question": "go?"}),
        (False, None, {"question": "go?"}),
    ]
    assert [e.tool_call_id for e in by_name["book"]] == ["2"]
    assert [e.usage for e in by_name["Scripted"]] == [USAGE, USAGE]
    assert by_name["Scripted"][0].input == [{"type": "human", "content": "hi", "id": ANY_TEXT}]
    assert {e.node for e in by_name["search"]} == {"tools", "each"}
    assert all(e.duration is not None and e.duration >= 0 for e in events)
    # Each hangs on the checkpoint that its node ran from, and a subgraph's names its own, too.
    runs = {
        e.root_checkpoint_id: {f.node for f in events if f.root_checkpoint_id == e.root_checkpoint_id}
        for e in events
    }
    assert list(runs.values()) == [{"model"}, {"tools"}, {"flaky"}, {"ask", "tell"}, {"each"}]
    history = {
        s.config["configurable"]["checkpoint_id"]: s for s in agent.graph.get_state_history(thread("t"))
    }
    for root, nodes in runs.items():
        assert set(history[root].next) == ({"sub"} if "ask" in nodes else nodes)
    for event in events:
        place = thread("t", event.checkpoint_id, ns=event.checkpoint_ns)
        assert engine.checkpointer.get_tuple(place) is not None
        assert event.checkpoint_ns.startswith("sub:") == (event.node in ("ask", "tell"))
    for root in runs:
        assert listed(engine, "t", root) == [e for e in events if e.root_checkpoint_id == root]
    engine.checkpointer.delete_thread("t")
    assert listed(engine) == []


class _AnyText:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = object.__hash__


ANY_TEXT = _AnyText()


@on_memory
def test_the_graph_s_history_is_what_it_is_without(make_place: Any, door: Door) -> None:
    histories = []
    for records in (True, False):
        engine = CheckpointEngine(make_place().open())
        agent = Agent(engine.checkpointer)
        config = config_of(engine) if records else thread("t")
        door.call(agent.graph, "invoke", {"messages": [HumanMessage("hi", id="0")]}, config)
        door.call(agent.graph, "invoke", Command(resume="yes"), config)
        assert bool(listed(engine)) == records
        found = agent.graph.get_state_history(thread("t"))
        histories.append([view((s.config, s.values, s.next, s.metadata, s.parent_config)) for s in found])
    assert histories[0] == histories[1]


@memory_and_sqlite
@pytest.mark.parametrize("mode", ["values", "messages"])
def test_streaming(engine: CheckpointEngine, door: Door, mode: str) -> None:
    agent = Agent(engine.checkpointer, Streaming)
    config = config_of(engine)
    for given in ({"messages": [HumanMessage("hi")]}, Command(resume="yes")):
        assert door.collect(agent.graph, "stream", given, config, stream_mode=mode)
    events = listed(engine)
    assert Counter(map(outcome, events)) == agent.called
    [told_last] = [event for event in events if event.name == "Streaming"]
    assert (told_last.output["type"], told_last.output["content"]) == ("ai", "done")
    assert told_last.usage == USAGE


@memory_and_sqlite
def test_many_runs_at_once(engine: CheckpointEngine) -> None:
    agents = [Agent(engine.checkpointer) for _ in range(8)]
    config = {"callbacks": [engine.callbacks()]}

    async def run(number: int) -> None:
        place = {**config, **thread(f"t{number}")}
        await agents[number].graph.ainvoke({"messages": [HumanMessage("hi")]}, place)
        if sys.version_info >= (3, 11):
            await agents[number].graph.ainvoke(Command(resume="yes"), place)

    async def all_of_them() -> None:
        await asyncio.gather(*map(run, range(4)))

    workers = [
        threading.Thread(target=_in_threads, args=(agents[n], {**config, **thread(f"t{n}")}))
        for n in range(4, 8)
    ]
    for worker in workers:
        worker.start()
    if sys.version_info >= (3, 11):
        asyncio.run(all_of_them())
    for worker in workers:
        worker.join()
    for number in range(0 if sys.version_info >= (3, 11) else 4, 8):
        assert Counter(map(outcome, listed(engine, f"t{number}"))) == agents[number].called


def _in_threads(agent: Agent, config: Any) -> None:
    agent.graph.invoke({"messages": [HumanMessage("hi")]}, config)
    agent.graph.invoke(Command(resume="yes"), config)


@on_memory
def test_calls_of_tools_within_tools_and_models_that_are_tried_again(engine: CheckpointEngine) -> None:
    model = Scripted(replies=[AIMessage("hi")], seen=[])
    failing = iter([True, False])

    class Failing(Scripted):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            if next(failing):
                raise ValueError("overloaded")
            return super()._generate(*args, **kwargs)

    @tool
    def outer(text: str) -> str:
        """Ask a model."""
        return str(model.invoke(text).content)

    again = Failing(replies=[AIMessage("there")], seen=[]).with_retry(wait_exponential_jitter=False)
    graph = one_node(
        engine.checkpointer, lambda _: {"notes": [outer.invoke({"text": "x"}), again.invoke("y").content]}
    )
    graph.invoke({}, config_of(engine))
    events = listed(engine)
    assert [(e.kind, e.name, e.attempt, e.error) for e in events] == [
        ("tool_call", "outer", 1, None),
        ("llm_call", "Scripted", 1, None),
        ("llm_call", "Failing", 1, "ValueError: overloaded"),
        ("llm_call", "Failing", 2, None),
    ]
    assert events[1].parent_run_id == events[0].run_id


@on_memory
def test_nothing_is_recorded_outside_of_a_node(engine: CheckpointEngine) -> None:
    handler = engine.callbacks()
    echo.invoke({"value": 1}, {"callbacks": [handler]})
    graph = (
        StateGraph(State).add_node("work", lambda _: echo.invoke({"value": 1}) and {}).add_edge(START, "work")
    )
    graph.compile().invoke({}, {"callbacks": [handler]})
    assert handler.counts == (0, 0, 0, 0, 0)


def test_the_engine_works_without_langgraph_s_graphs() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['langgraph.config', 'langgraph.errors'])); " + (
        "from langgraph_harness_saver.engine import places; print(places.current_place())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "None\n"


@on_memory
def test_a_handler_that_is_given_twice_records_once(engine: CheckpointEngine) -> None:
    handler = engine.callbacks()
    graph = echoing(engine.checkpointer, 1).with_config(callbacks=[handler])
    graph.invoke({}, {**thread("t"), "callbacks": [handler]})
    assert len(listed(engine)) == 1


@on_memory
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout")
def test_a_call_that_is_cancelled_is_recorded(engine: CheckpointEngine) -> None:
    @tool
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "awake"

    async def work(state: State) -> State:
        return {"notes": [await wait.ainvoke({"seconds": 60})]}

    graph = one_node(engine.checkpointer, work)

    async def run() -> None:
        running = asyncio.create_task(graph.ainvoke({}, config_of(engine)))
        await asyncio.sleep(0.2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())
    assert [(e.name, e.error) for e in listed(engine)] == [("wait", "CancelledError: ")]


# --- values ----------------------------------------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


@memory_and_sqlite
def test_values_of_all_kinds(engine: CheckpointEngine) -> None:
    loop: list[Any] = []
    loop.append(loop)
    values = [
        object(),
        float("nan"),
        "\ud800\x00",
        {1: {2, 3}},
        b"\xff",
        loop,
        10**40,
        HumanMessage("hi"),
        None,
    ]
    deep: Any = 0
    for _ in range(400):
        deep = [deep]
    echoing(engine.checkpointer, *values, deep).invoke({}, config_of(engine))
    events = listed(engine)
    assert [type(event.error) for event in events] == [type(None)] * 10
    assert [event.output for event in events][1:5] == ["NaN", "\\ud800\x00", {"1": [2, 3]}, "/w=="]
    assert events[7].output == {"type": "human", "content": "hi"}
    assert told(Odd()) == "<Odd, which can't be shown: RuntimeError>"
    for event in events:
        assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


@memory_and_sqlite
def test_long_values_are_cut(engine: CheckpointEngine) -> None:
    graph = echoing(engine.checkpointer, "x" * 3_000_000, "y" * 50_000)
    graph.invoke({}, config_of(engine))
    graph.invoke({}, config_of(engine, "u", max_bytes=100))
    graph.invoke({}, config_of(engine, "v", max_bytes=None))
    assert [len(e.output) < 1_100_000 for e in listed(engine)] == [True, True]
    assert listed(engine)[0].output.endswith("x… (3,000,002 bytes in all)")
    assert [len(e.output) < 200 for e in listed(engine, "u")] == [True, True]
    assert [len(e.output) for e in listed(engine, "v")] == [3_000_000, 50_000]
    assert [e.output for e in listed(engine, values=False)] == [None, None]


def test_of_a_long_conversation_the_newest_messages_are_kept() -> None:
    messages = [HumanMessage(f"{n} " + "x" * 1000) for n in range(100)]
    shown = told_prompt(messages, 10_000)
    assert shown[0] == {"omitted": 101 - len(shown)}
    assert 8 <= len(shown) <= 11
    assert shown[-1] == {"type": "human", "content": messages[-1].content}
    assert len(told_prompt(messages, None)) == 100
    assert told_prompt(messages[:1], 10) == [told(messages[0], 10)]


@on_sqlite
def test_what_is_stored_is_encrypted(make_saver: Any, place: Any) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    engine = CheckpointEngine(make_saver(serde=serde))
    echoing(engine.checkpointer, "opensesame").invoke({}, {**config_of(engine), "metadata": {"run_id": "r"}})
    [event] = listed(engine)
    assert (event.output, event.graph_run_id) == ("opensesame", "r")
    engine.checkpointer.close()
    for file in place.folder.iterdir():
        data = file.read_bytes()
        assert not any(secret in data for secret in (b"opensesame", b"tool_call", b"echo"))


# --- stores that are slow, full or broken ----------------------------------------------------------------


@memory_and_sqlite
def test_a_slow_store_holds_up_nobody(engine: CheckpointEngine, door: Door) -> None:
    gate = Gate(engine.checkpointer)
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, door)
    handler = engine.callbacks()
    assert handler.counts.stored == 0
    assert handler.counts.waiting == sum(agent.called.values())
    assert not handler.flush(timeout=0.01)
    assert not asyncio.run(handler.aflush(timeout=0.01))
    gate.open.set()
    assert handler.flush()
    assert handler.counts.stored == sum(agent.called.values())
    assert asyncio.run(handler.aflush())


@memory_and_sqlite
@pytest.mark.parametrize("error", [StoreUnavailableError("away"), StoreError("no"), RuntimeError("bug")])
def test_a_broken_store_breaks_no_run(
    engine: CheckpointEngine, door: Door, error: Exception, caplog: Any
) -> None:
    Gate(engine.checkpointer, error).open.set()
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, door)
    handler = engine.callbacks()
    handler.flush()
    count = sum(agent.called.values())
    assert handler.counts == (count, 0, count, 0, 0)
    assert str(error) in caplog.text
    echoing(engine.checkpointer, 1).invoke({}, config_of(engine, "u"))
    assert not handler.flush()


@on_sqlite
def test_one_event_that_can_t_be_stored_harms_no_other(engine: CheckpointEngine) -> None:
    gate = Gate(engine.checkpointer)
    add = gate.add

    async def refuse(events: Any) -> None:
        if any(event.thread_id == "bad" for event in events):
            raise StoreError("too large")
        await add(events)

    gate.add = refuse
    for thread_id in ("a", "bad", "b"):
        echoing(engine.checkpointer, 1).invoke({}, config_of(engine, thread_id))
    gate.open.set()
    engine.recorder.flush()
    assert [len(listed(engine, thread_id)) for thread_id in ("a", "bad", "b")] == [1, 0, 1]
    assert engine.recorder.counts[:3] == (3, 2, 1)


@on_memory
def test_what_comes_when_too_much_waits_is_dropped(
    engine: CheckpointEngine, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(eventlog, "MOST_EVENTS", 3)
    gate = Gate(engine.checkpointer)
    echoing(engine.checkpointer, 0).invoke({}, config_of(engine))
    while not gate.calls:
        pass
    echoing(engine.checkpointer, *range(1, 9)).invoke({}, config_of(engine))
    assert engine.recorder.counts[3:] == (4, 5)
    assert "3 events are waiting" in caplog.text
    gate.open.set()
    assert [event.output for event in listed(engine)] == [0, 1, 2, 3]


@memory_and_sqlite
def test_closing_stores_what_waits(make_saver: Any, place: Any, door: Door) -> None:
    saver = make_saver()
    engine = CheckpointEngine(saver)
    gate = Gate(saver)
    echoing(saver, 1, 2).invoke({}, config_of(engine))
    threading.Timer(0.1, gate.open.set).start()
    door.call(saver, "close") if door.loop else saver.close()
    assert engine.recorder.counts[:4] == (2, 2, 0, 0)
    assert not engine.recorder.record(Event("manual", "late", "t", "1"))
    assert engine.recorder.counts.dropped == 1
    if place.outlives_saver:
        assert [event.output for event in listed(CheckpointEngine(make_saver()))] == [1, 2]


PROGRAM = """
import asyncio, sys, time
sys.path.insert(0, {tests!r})
from test_events import CheckpointEngine, HarnessCheckpointer, config_of, echoing
how, url = sys.argv[1:]
saver = HarnessCheckpointer.from_conn_string(url)
engine = CheckpointEngine(saver)
add = saver.backend.add_events
async def slow(events):
    time.sleep(0.3)
    await add(events)
saver.backend.add_events = slow
graph, config = echoing(saver, *range(5)), config_of(engine)
if how == "async":
    asyncio.run(graph.ainvoke({{}}, config))
else:
    graph.invoke({{}}, config)
if how == "dropped":
    del graph, config, engine, saver
elif how == "killed":
    print(engine.recorder.flush(), flush=True)
    time.sleep(60)
elif how == "error":
    raise SystemExit("an error")
"""


def program(how: str, url: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(tests=os.path.dirname(__file__))
    return subprocess.Popen(
        [sys.executable, "-c", code, how, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("store_kind", ["sqlite", "postgres", "redis"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_process_that_ends_has_stored_all(engine: CheckpointEngine, store_url: str, how: str) -> None:
    process = program(how, store_url)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert [event.output for event in listed(engine)] == list(range(5))


@pytest.mark.parametrize(("how", "store_kind"), [("dropped", "postgres"), ("error", "sqlite")])
def test_a_process_that_ends_otherwise_has_stored_all(
    engine: CheckpointEngine, store_url: str, how: str
) -> None:
    program(how, store_url).communicate(timeout=60)
    assert [event.output for event in listed(engine)] == list(range(5))


@pytest.mark.parametrize("store_kind", ["sqlite", "postgres", "redis"])
def test_what_flush_acknowledged_survives_a_kill(engine: CheckpointEngine, store_url: str) -> None:
    process = program("killed", store_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert [event.output for event in listed(engine)] == list(range(5))


@on_sqlite
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_each_stores_its_own(engine: CheckpointEngine) -> None:
    gate = Gate(engine.checkpointer)
    echoing(engine.checkpointer, "parent").invoke({}, config_of(engine))
    child = os.fork()
    if not child:
        gate.open.set()
        echoing(engine.checkpointer, "child").invoke({}, config_of(engine, "u"))
        os._exit(0 if engine.recorder.flush(30) and engine.recorder.counts[:2] == (1, 1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    with HarnessCheckpointer.from_conn_string(f"sqlite:///{engine.checkpointer.backend.path}") as other:
        assert [event.output for event in listed(CheckpointEngine(other), "u")] == ["child"]
    gate.open.set()
    assert [event.output for event in listed(engine)] == ["parent"]


# --- threads, branches and deletions ---------------------------------------------------------------------


@memory_and_sqlite
def test_deleting_a_thread_leaves_nothing_that_was_on_its_way(engine: CheckpointEngine, door: Door) -> None:
    gate = Gate(engine.checkpointer)
    for thread_id in ("t", "u"):
        echoing(engine.checkpointer, 1).invoke({}, config_of(engine, thread_id))
    threading.Timer(0.1, gate.open.set).start()
    door.call(engine.checkpointer, "delete_thread", "t")
    assert engine.recorder.counts.waiting == 0
    assert listed(engine) == []
    assert len(listed(engine, "u")) == 1


@one_of_each
def test_pruning_and_copying(engine: CheckpointEngine, door: Door) -> None:
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, door)
    saver, events = engine.checkpointer, listed(engine)
    for _ in range(2):
        door.call(saver, "copy_thread", "t", "u")
        assert listed(engine, "u") == [replace(event, thread_id="u") for event in events]
    door.call(saver, "prune", ["t"])
    assert listed(engine) == []
    assert len(listed(engine, "u")) == len(events)
    door.call(saver, "delete_thread", "u")
    assert listed(engine, "u") == []


@one_of_each
def test_a_branch_reads_what_led_to_it(engine: CheckpointEngine) -> None:
    graph = echoing(engine.checkpointer, "x")
    for _ in range(3):
        graph.invoke({}, config_of(engine))
    ids = [s.config["configurable"]["checkpoint_id"] for s in graph.get_state_history(thread("t"))][::-1]
    events = listed(engine)
    assert [ids.index(event.root_checkpoint_id) for event in events] == [1, 4, 7]
    middle = engine.sync.branch(ids[4], "middle", "t")
    assert listed(engine, middle) == events[:1]
    end = engine.sync.branch(ids[5], "end", "t")
    assert listed(engine, end) == events[:2]
    # What the source does afterwards is not the branch's.
    engine.recorder.record(Event("manual", "late", "t", ids[1]))
    assert listed(engine, end) == events[:2]
    assert listed(engine, end, ids[1]) == events[:1]
    graph.invoke({}, config_of(engine, end))
    own = listed(engine, end)[2:]
    assert [event.thread_id for event in own] == [end]
    nested = engine.sync.branch(own[0].root_checkpoint_id, "nested", end)
    assert listed(engine, nested) == events[:2]
    with pytest.raises(CheckpointNotFoundError):
        listed(engine, middle, ids[7])
    engine.checkpointer.delete_thread("t")
    assert listed(engine, end) == own


@one_of_each
def test_a_branch_of_a_paused_thread_has_what_paused_it(engine: CheckpointEngine) -> None:
    agent = Agent(engine.checkpointer)
    config = config_of(engine)
    agent.graph.invoke({"messages": [HumanMessage("hi")]}, config)
    paused = listed(engine)
    assert paused[-1].paused
    head = agent.graph.get_state(thread("t")).config["configurable"]["checkpoint_id"]
    branch = engine.sync.branch(head, "b", "t")
    agent.graph.invoke(Command(resume="yes"), config)
    assert listed(engine, branch) == paused
    agent.graph.invoke(Command(resume="no"), config_of(engine, branch))
    answers = [event.output for event in listed(engine, branch) if event.name == "confirm"]
    assert answers == [None, "no"]


@memory_and_sqlite
def test_durability_exit(engine: CheckpointEngine, door: Door) -> None:
    """Events of checkpoints that are never stored are kept, and go with what came next."""
    if sys.version_info < (3, 11) and door.loop:
        pytest.skip("before Python 3.11 an async node doesn't know which checkpoint it runs from")
    graph = StateGraph(State)
    for name in ("a", "b"):
        graph.add_node(name, lambda _: echo.invoke({"value": 1}) and {"notes": ["x"]})
    compiled = graph.add_edge(START, "a").add_edge("a", "b").compile(checkpointer=engine.checkpointer)
    for _ in range(2):
        door.call(compiled, "invoke", {}, config_of(engine), durability="exit")
    events = listed(engine)
    stored = [s.config["configurable"]["checkpoint_id"] for s in compiled.get_state_history(thread("t"))]
    assert not {event.root_checkpoint_id for event in events} & set(stored)
    assert [len(listed(engine, "t", event.root_checkpoint_id)) for event in events] == [1] * 4
    engine.checkpointer.prune(["t"])
    assert listed(engine) == events[2:]
    engine.checkpointer.delete_thread("t")
    assert listed(engine) == []


@one_of_each
def test_retention_takes_events_along(engine: CheckpointEngine) -> None:
    engine.checkpointer.retention = "keep_last_n:3"
    graph = echoing(engine.checkpointer, 1)
    for _ in range(4):
        graph.invoke({}, config_of(engine))
    engine.recorder.flush()
    graph.invoke({}, config_of(engine))
    kept = {s.config["configurable"]["checkpoint_id"] for s in graph.get_state_history(thread("t"))}
    assert len(kept) < 10
    assert {event.root_checkpoint_id for event in listed(engine)} <= kept
    assert len(listed(engine)) == 1


@memory_and_sqlite
def test_the_tree_shows_events_under_their_step(engine: CheckpointEngine) -> None:
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, Door("sync"))
    tree = engine.sync.get_checkpoint_tree("t")
    shown = [event for node in reversed(tree.nodes) for event in node.events]
    assert shown == listed(engine, values=False)
    assert CheckpointTree.from_dict(json.loads(tree.to_json())) == tree
    lines = tree.render().splitlines()
    at = next(n for n, line in enumerate(lines) if "tool_call confirm · paused" in line)
    assert "next: sub" in lines[at - 1]
    assert "tool_call check · attempt 2" in tree.render()
    assert "error: ConnectionError: try again" in tree.to_mermaid()
    assert "… 2 more events" in tree.render(run=1)


@on_sqlite
def test_nothing_is_left_in_the_file(engine: CheckpointEngine) -> None:
    agent = Agent(engine.checkpointer)
    run_agent(agent, engine, Door("sync"))
    engine.recorder.flush()
    with closing(sqlite3.connect(engine.checkpointer.backend.path)) as file:
        count = "SELECT count(*) FROM harness_event"
        assert file.execute(count).fetchone() == (sum(agent.called.values()),)
        engine.checkpointer.delete_thread("t")
        assert file.execute(count).fetchone() == (0,)
