"""Real graphs on every store, sync and async, in every durability mode.

A scenario drives a graph through a `Run`, which notes whatever comes back. What it noted is compared with the
same scenario on LangGraph's own `InMemorySaver`, ids and times aside, and so is all that was stored.
"""

from __future__ import annotations

import asyncio
import operator
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pytest
from helpers import DOORS, Door, Labels, each_store, id_of, name_of, spread, thread, view, view_stored
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.channels import DeltaChannel, UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Overwrite, RetryPolicy, Send, StateUpdate, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from langgraph_harness_saver import UnsafeTypeError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.types import StateSnapshot

DURABILITIES = ("sync", "async", "exit")
DEFAULT = thread("t")


class Run:
    """Drives graphs on one saver through one door in one durability mode, and notes what they give."""

    def __init__(self, saver: Any, door: Door, durability: str) -> None:
        self.saver = saver
        self.door = door
        self.durability = durability
        self.label = Labels()
        self.noted: list[Any] = []
        self.calls: Counter[str] = Counter()

    def note(self, name: str, value: Any) -> None:
        self.noted.append((name, view(value, self.label)))

    def compile(self, builder: StateGraph, **options: Any) -> Any:
        return builder.compile(checkpointer=self.saver, **options)

    def go(self, graph: Any, value: Any, config: RunnableConfig = DEFAULT, **options: Any) -> Any:
        result = self.door.call(graph, "invoke", value, config, durability=self.durability, **options)
        self.noted.append(("result", view(in_order(result))))
        return result

    def go_wrong(self, graph: Any, value: Any, config: RunnableConfig = DEFAULT) -> None:
        with pytest.raises(Broken) as caught:
            self.door.call(graph, "invoke", value, config, durability=self.durability)
        self.note("error", caught.value)

    def stream(self, graph: Any, value: Any, config: RunnableConfig = DEFAULT, **options: Any) -> list[Any]:
        events = self.door.collect(graph, "stream", value, config, durability=self.durability, **options)
        self.note("events", events)
        return events

    def state(self, graph: Any, config: RunnableConfig = DEFAULT, **options: Any) -> StateSnapshot:
        snapshot = self.door.call(graph, "get_state", config, **options)
        self.note("state", snapshot)
        return snapshot

    def history(self, graph: Any, config: RunnableConfig = DEFAULT, **options: Any) -> list[StateSnapshot]:
        snapshots = self.door.collect(graph, "get_state_history", config, **options)
        self.note("history", snapshots)
        return snapshots

    def update(self, graph: Any, config: RunnableConfig, values: Any, **options: Any) -> RunnableConfig:
        return self.door.call(graph, "update_state", config, values, **options)

    def stored(self, thread_id: Any = "t") -> list[Any]:
        return view_stored(self.door.collect(self.saver, "list", thread(thread_id)))


def in_order(result: Any) -> Any:
    """Sort the interrupts of an invocation, which come as the parallel nodes happen to raise them."""
    if not isinstance(result, dict) or "__interrupt__" not in result:
        return result
    return {**result, "__interrupt__": sorted(result["__interrupt__"], key=lambda found: repr(found.value))}


class Broken(Exception):  # noqa: N818
    """What nodes raise on purpose."""


Scenario = Callable[[Run], None]
SCENARIOS: dict[str, Scenario] = {}
STORED_DIFFERS_IN: dict[str, Sequence[str]] = {}


def scenario(stored_differs_in: Sequence[str] = ()) -> Callable[[Scenario], Scenario]:
    """Take in a scenario; what it leaves stored is not compared in the given durability modes."""

    def take(play: Scenario) -> Scenario:
        SCENARIOS[play.__name__] = play
        STORED_DIFFERS_IN[play.__name__] = stored_differs_in
        return play

    return take


def play(name: str, run: Run) -> tuple[list[Any], Any]:
    SCENARIOS[name](run)
    return run.noted, None if run.durability in STORED_DIFFERS_IN[name] else run.stored()


@cache
def reference(name: str, door: str, durability: str) -> tuple[list[Any], Any]:
    with Door(door) as opened:
        return play(name, Run(InMemorySaver(), opened, durability))


# States and nodes


class Log(TypedDict):
    log: Annotated[list, operator.add]


class Count(TypedDict):
    n: int
    seen: Annotated[list, operator.add]


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def say(*words: Any) -> Callable[[Any], dict[str, list[Any]]]:
    return lambda state: {"log": list(words)}


def chain(**nodes: Callable[..., Any]) -> StateGraph:
    return StateGraph(Log).add_sequence(list(nodes.items())).add_edge(START, next(iter(nodes)))


def counted(run: Run, name: str, node: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(state: Any) -> Any:
        run.calls[name] += 1
        return node(state)

    return call


def asking(*questions: str) -> Callable[[Any], dict[str, list[Any]]]:
    return lambda state: {"log": [interrupt(question) for question in questions]}


# Chains and loops


@scenario()
def chain_twice(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=say("b"), c=say("c")))
    run.state(graph)
    assert run.go(graph, {"log": ["in"]}) == {"log": ["in", "a", "b", "c"]}
    run.go(graph, {"log": ["again"]})
    assert run.state(graph).next == ()
    run.history(graph)
    run.history(graph, limit=2)
    run.history(graph, filter={"source": "input"})


@scenario()
def history_before_and_by_id(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=say("b")))
    run.go(graph, {"log": ["in"]})
    run.go(graph, {"log": ["in"]})
    snapshots = run.history(graph)
    run.history(graph, before=snapshots[1].config)
    for snapshot in snapshots:
        assert run.state(graph, snapshot.config).values == snapshot.values


@scenario()
def conditional_loop(run: Run) -> None:
    builder = StateGraph(Count)
    builder.add_node("add", lambda state: {"n": state["n"] + 1, "seen": [state["n"]]})
    builder.add_edge(START, "add")
    builder.add_conditional_edges("add", lambda state: "add" if state["n"] < 7 else END)
    graph = run.compile(builder)
    assert run.go(graph, {"n": 0})["seen"] == list(range(7))
    run.go(graph, {"n": 5})
    run.history(graph)


@scenario()
def command_moves_between_nodes(run: Run) -> None:
    def route(state: Log) -> Command:
        return Command(update={"log": ["route"]}, goto="far" if len(state["log"]) > 2 else "near")

    builder = StateGraph(Log).add_node("route", route, destinations=("near", "far"))
    builder.add_node("near", say("near")).add_node("far", say("far"))
    graph = run.compile(builder.add_edge(START, "route").add_edge("near", "route"))
    run.go(graph, {"log": ["in"]})
    run.history(graph)


@scenario()
def untracked_and_untouched_channels(run: Run) -> None:
    class State(TypedDict, total=False):
        log: Annotated[list, operator.add]
        scratch: Annotated[dict, UntrackedValue]
        never: str

    builder = StateGraph(State).add_node("a", lambda state: {"log": ["a"], "scratch": {"live": object}})
    builder.add_node("b", lambda state: {"log": [sorted(state["scratch"])]})
    graph = run.compile(builder.add_edge(START, "a").add_edge("a", "b"))
    run.go(graph, {"log": []}, output_keys=["log"])
    run.history(graph)


@scenario()
def metadata_from_the_config(run: Run) -> None:
    graph = run.compile(chain(a=say("a")))
    config = {**thread("t"), "metadata": {"user": "u", "score": 1.5, "tags": ["x"]}, "tags": ["y"]}
    config["configurable"]["flag"] = True
    run.go(graph, {"log": []}, config)
    assert run.state(graph).metadata["user"] == "u"
    run.history(graph, filter={"user": "u"})
    run.history(graph, filter={"user": "v"})


# Messages


def answer(state: Chat) -> dict[str, Any]:
    last = state["messages"][-1]
    return {"messages": [AIMessage(f"echo {last.content}", id=f"ai-{last.id}")]}


def chat_graph(run: Run) -> Any:
    return run.compile(StateGraph(Chat).add_node("answer", answer).add_edge(START, "answer"))


@scenario()
def messages_removed_and_edited(run: Run) -> None:
    graph = chat_graph(run)
    for turn in range(3):
        run.go(graph, {"messages": [HumanMessage(f"turn {turn}", id=f"h{turn}")]})
    run.go(graph, {"messages": [RemoveMessage("h0"), RemoveMessage("ai-h0"), HumanMessage("new", id="h3")]})
    edited = run.go(graph, {"messages": [HumanMessage("edited", id="h1"), HumanMessage("last", id="h4")]})
    assert [m.id for m in edited["messages"]] == ["h1", "ai-h1", "h2", "ai-h2", "h3", "ai-h3", "h4", "ai-h4"]
    assert edited["messages"][0].content == "edited"
    run.update(graph, DEFAULT, {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES)]})
    run.state(graph)
    run.go(graph, {"messages": [("human", "ids are made up")]})
    run.history(graph)


@scenario()
def chat_of_thirty_turns(run: Run) -> None:
    graph = chat_graph(run)
    for turn in range(30):
        run.go(graph, {"messages": [HumanMessage(f"turn {turn} " * 25, id=f"h{turn}")]})
    snapshots = run.history(graph)
    step = 2 if run.durability == "exit" else 1
    assert [len(s.values["messages"]) for s in snapshots[:2]] == [60, 60 - step]


@scenario()
def agent_with_tools(run: Run) -> None:
    asked = threading.Semaphore(0)

    def look(city: str) -> str:
        """Look at the weather."""
        # An answer goes to whoever asks first within a node, so they take turns.
        assert city == "Ulm" or asked.acquire(timeout=30)
        try:
            return f"sun in {city}, {interrupt(f'may I look at {city}?')}"
        finally:
            if city == "Ulm":
                asked.release()

    def model(state: Chat) -> dict[str, Any]:
        if isinstance(state["messages"][-1], ToolMessage):
            return {"messages": [AIMessage("done", id="ai2")]}
        calls = [{"name": "look", "args": {"city": city}, "id": f"call-{city}"} for city in ("Ulm", "Bonn")]
        return {"messages": [AIMessage("", id="ai1", tool_calls=calls)]}

    builder = StateGraph(Chat).add_node("model", model).add_node("tools", ToolNode([look]))
    builder.add_edge(START, "model").add_conditional_edges("model", tools_condition)
    graph = run.compile(builder.add_edge("tools", "model"))
    run.go(graph, {"messages": [HumanMessage("weather?", id="h1")]})
    while pending := run.state(graph).interrupts:
        result = run.go(graph, Command(resume={pending[0].id: "yes"}))
    assert [m.content for m in result["messages"][2:]] == ["sun in Ulm, yes", "sun in Bonn, yes", "done"]


# Interrupts


@scenario()
def interrupt_and_resume(run: Run) -> None:
    graph = run.compile(chain(a=counted(run, "a", say("a")), ask=asking("name?"), z=say("z")))
    result = run.go(graph, {"log": ["in"]})
    assert [pending.value for pending in result["__interrupt__"]] == ["name?"]
    assert run.state(graph).next == ("ask",)
    assert run.go(graph, Command(resume={"name": "Ada"}))["log"] == ["in", "a", {"name": "Ada"}, "z"]
    assert run.calls["a"] == 1
    run.history(graph)


@scenario()
def resume_with_none_and_with_update(run: Run) -> None:
    graph = run.compile(chain(ask=asking("one?"), again=asking("two?"), z=say("z")))
    run.go(graph, {"log": []})
    run.go(graph, None)
    run.go(graph, Command(resume=False, update={"log": ["by hand"]}))
    run.state(graph)
    assert run.go(graph, Command(resume=[])) == {"log": ["by hand", False, [], "z"]}
    run.history(graph)


@scenario()
def several_interrupts_in_one_node(run: Run) -> None:
    graph = run.compile(chain(ask=counted(run, "ask", asking("1?", "2?", "3?"))))
    run.go(graph, {"log": []})
    for reply in ("one", "two"):
        run.go(graph, Command(resume=reply))
        run.state(graph)
    assert run.go(graph, Command(resume="three"))["log"] == ["one", "two", "three"]
    assert run.calls["ask"] == 4


def parallel_questions(run: Run) -> Any:
    builder = StateGraph(Log)
    for name in ("left", "right"):
        builder.add_node(name, counted(run, name, asking(f"{name}?"))).add_edge(START, name)
    builder.add_node("plain", counted(run, "plain", say("plain"))).add_edge(START, "plain")
    builder.add_node("join", say("join")).add_edge(["left", "right", "plain"], "join")
    return run.compile(builder)


@scenario()
def parallel_interrupts_by_id_at_once(run: Run) -> None:
    graph = parallel_questions(run)
    run.go(graph, {"log": []})
    pending = run.state(graph).interrupts
    result = run.go(graph, Command(resume={p.id: f"to {p.value}" for p in pending}))
    assert result["log"] == ["to left?", "plain", "to right?", "join"]
    assert run.calls == {"left": 2, "right": 2, "plain": 1}
    run.history(graph)


@scenario()
def parallel_interrupts_by_id_one_by_one(run: Run) -> None:
    graph = parallel_questions(run)
    run.go(graph, {"log": []})
    for reply in ("second", "first"):
        pending = run.state(graph).interrupts
        run.go(graph, Command(resume={pending[-1].id: reply}))
    assert run.state(graph).values["log"] == ["first", "plain", "second", "join"]
    assert run.calls["plain"] == 1
    run.history(graph)


@scenario()
def static_breakpoints(run: Run) -> None:
    builder = chain(a=say("a"), b=say("b"), c=say("c"))
    graph = run.compile(builder, interrupt_before=["b"], interrupt_after=["b"])
    run.go(graph, {"log": []})
    assert run.state(graph).next == ("b",)
    run.go(graph, None)
    assert run.state(graph).next == ("c",)
    run.update(graph, DEFAULT, {"log": ["by hand"]})
    assert run.go(graph, None)["log"] == ["a", "b", "by hand", "c"]
    run.go(graph, {"log": ["new input"]}, interrupt_before="*")
    run.go(graph, None)
    run.history(graph)


# Updates and forks


@scenario()
def update_the_head(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=say("b")))
    run.update(graph, DEFAULT, {"log": ["before any run"]}, as_node="a")
    assert run.state(graph).next == ("b",)
    assert run.go(graph, None) == {"log": ["before any run", "b"]}
    run.update(graph, DEFAULT, {"log": ["after"]})
    run.update(graph, DEFAULT, None, as_node=END)
    run.state(graph)
    run.history(graph)


@scenario()
def bulk_update(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=say("b")))
    steps = [[StateUpdate({"log": [name]}, name)] for name in ("__input__", "a", "b")]
    run.door.call(graph, "bulk_update_state", DEFAULT, steps)
    run.state(graph)
    run.history(graph)


@scenario()
def fork_by_update_and_run_on(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=say("b"), c=say("c")), interrupt_before=["b"])
    run.go(graph, {"log": ["in"]})
    point = run.state(graph)
    assert run.go(graph, None)["log"] == ["in", "a", "b", "c"]
    old_head = run.state(graph).config
    forked = run.update(graph, point.config, {"log": ["changed"]})
    run.state(graph, forked)
    assert run.go(graph, None)["log"] == ["in", "a", "changed", "b", "c"]
    assert run.state(graph, old_head).values["log"] == ["in", "a", "b", "c"]
    assert run.state(graph, point.config).values["log"] == ["in", "a"]
    run.history(graph)


@scenario()
def fork_by_replay(run: Run) -> None:
    graph = run.compile(chain(a=counted(run, "a", say("a")), b=counted(run, "b", say("b")), c=say("c")))
    run.go(graph, {"log": ["in"]})
    run.go(graph, {"log": ["more"]})
    snapshots = run.history(graph)
    point = snapshots[len(snapshots) // 2]
    run.go(graph, None, point.config)
    run.go(graph, {"log": ["other input"]}, point.config)
    run.note("calls", run.calls)
    for snapshot in run.history(graph):
        run.state(graph, snapshot.config)


@scenario()
def fork_as_copy_of_an_interrupted_checkpoint(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), ask=asking("sure?"), z=say("z")))
    run.go(graph, {"log": ["in"]})
    point = run.state(graph)
    run.go(graph, Command(resume="no"))
    copied = run.update(graph, point.config, None, as_node="__copy__")
    run.state(graph, copied)
    run.go(graph, None)
    assert run.go(graph, Command(resume="yes"))["log"] == ["in", "a", "yes", "z"]
    run.history(graph)


@scenario()
def resume_an_old_interrupt_again(run: Run) -> None:
    graph = run.compile(chain(ask=asking("one?"), again=asking("two?")))
    run.go(graph, {"log": []})
    first = run.state(graph)
    run.go(graph, Command(resume="1"))
    run.go(graph, Command(resume="2"))
    run.go(graph, None, first.config)
    run.state(graph)
    run.history(graph)


# Parallel branches


@scenario()
def map_reduce_with_send(run: Run) -> None:
    builder = StateGraph(Log).add_node("plan", say("plan")).add_edge(START, "plan")
    builder.add_node("work", lambda item: {"log": [item["number"] ** 2]})
    builder.add_node("sum", lambda state: {"log": [sum(x for x in state["log"] if type(x) is int)]})
    sends = [Send("work", {"number": number}) for number in range(12)]
    builder.add_conditional_edges("plan", lambda state: sends, ["work"])
    graph = run.compile(builder.add_edge("work", "sum"))
    assert run.go(graph, {"log": []})["log"] == ["plan", *(n**2 for n in range(12)), 506]
    run.history(graph)


@scenario()
def send_with_an_interrupt_in_one(run: Run) -> None:
    def work(item: dict[str, Any]) -> dict[str, Any]:
        run.calls[f"work {item['n']}"] += 1
        return {"log": [interrupt(f"{item['n']}?") if item["n"] == 1 else item["n"]]}

    builder = StateGraph(Log).add_node("work", work).add_node("end", say("end")).add_edge("work", "end")
    builder.add_conditional_edges(START, lambda state: [Send("work", {"n": n}) for n in range(3)], ["work"])
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    assert len(run.state(graph).tasks) == 3
    assert run.go(graph, Command(resume="one"))["log"] == [0, "one", 2, "end"]
    assert run.calls == {"work 0": 1, "work 1": 2, "work 2": 1}
    run.history(graph)


@scenario()
def command_sends(run: Run) -> None:
    def plan(state: Log) -> Command:
        return Command(update={"log": ["plan"]}, goto=[Send("work", n) for n in (1, 2)] + ["other"])

    builder = StateGraph(Log).add_node("plan", plan, destinations=("work", "other")).add_edge(START, "plan")
    builder.add_node("work", lambda n: {"log": [n]}).add_node("other", say("other"))
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    run.history(graph)


# LangGraph 1.2 hands out the live set of a join that still waits. In durability async a put that had to queue
# behind another one stores what has joined by then.
@scenario(stored_differs_in=["async"])
def branches_of_different_length_with_defer_and_joins(run: Run) -> None:
    builder = StateGraph(Log)
    for name in ("a", "b", "b2", "b3", "join"):
        builder.add_node(name, say(name))
    builder.add_node("last", say("last"), defer=True)
    for edge in ((START, "a"), (START, "b"), ("b", "b2"), ("b2", "b3"), (["a", "b3"], "join"), ("a", "last")):
        builder.add_edge(*edge)
    graph = run.compile(builder)
    assert run.go(graph, {"log": []})["log"] == ["a", "b", "b2", "b3", "join", "last"]
    run.go(graph, {"log": ["again"]}, interrupt_before=["b3"])
    run.go(graph, None)
    if run.durability != "async":
        run.history(graph)


# Subgraphs


class Inner(TypedDict):
    log: Annotated[list, operator.add]
    turns: Annotated[int, operator.add]


def inner(checkpointer: bool | None, *, asks: bool) -> Any:
    builder = StateGraph(Inner)
    builder.add_node("count", lambda state: {"turns": 1, "log": [f"turn {state.get('turns', 0)}"]})
    builder.add_node("talk", asking("inner?") if asks else say("inner"))
    return link(builder, "count", "talk").compile(checkpointer=checkpointer)


def link(builder: StateGraph, *names: str) -> StateGraph:
    for before, after in zip((START, *names), names, strict=False):
        builder.add_edge(before, after)
    return builder


def two_turns_around(run: Run, checkpointer: bool | None, *, asks: bool) -> None:
    graph = run.compile(chain(a=say("a"), sub=inner(checkpointer, asks=asks), z=say("z")))
    for turn in range(2):
        result = run.go(graph, {"log": [turn]})
        if "__interrupt__" in result:
            run.state(graph, subgraphs=True)
            run.go(graph, Command(resume=f"reply {turn}"))
    run.state(graph, subgraphs=True)
    run.history(graph)


@scenario()
def subgraph_inherits(run: Run) -> None:
    two_turns_around(run, None, asks=False)


@scenario()
def subgraph_inherits_and_asks(run: Run) -> None:
    two_turns_around(run, None, asks=True)


@scenario()
def subgraph_remembers(run: Run) -> None:
    two_turns_around(run, True, asks=False)
    turns = [value for name, value in run.noted if name == "result"][-1]["log"]
    assert "turn 1" in turns


@scenario()
def subgraph_remembers_and_asks(run: Run) -> None:
    two_turns_around(run, True, asks=True)


@scenario()
def subgraph_keeps_nothing(run: Run) -> None:
    if run.durability == "sync":
        # LangGraph 1.2 can't run such a subgraph so: it waits for a checkpoint that was never put.
        run.durability = "async"
    two_turns_around(run, False, asks=False)


@scenario()
def subgraphs_nested_with_an_interrupt_inside(run: Run) -> None:
    def wrap(**nodes: Any) -> Any:
        return chain(**nodes).compile()

    innermost = wrap(d1=counted(run, "d1", say("d1")), d2=asking("deep?"), d3=say("d3"))
    middle = wrap(m1=counted(run, "m1", say("m1")), m2=innermost, m3=say("m3"))
    graph = run.compile(chain(top=say("top"), mid=middle, end=say("end")))
    run.go(graph, {"log": []})
    deep = run.state(graph, subgraphs=True)
    inner_config = deep.tasks[0].state.tasks[0].state.config
    run.state(graph, inner_config)
    run.history(graph, deep.tasks[0].state.config)
    run.update(graph, inner_config, {"log": ["put inside"]})
    run.go(graph, Command(resume="deep!"))
    assert run.calls == {"d1": 1, "m1": 1}
    run.history(graph)


@scenario()
def subgraphs_called_from_a_node_and_a_loop(run: Run) -> None:
    sub = inner(None, asks=True)

    def call(state: Log) -> dict[str, Any]:
        return {"log": [sub.invoke({"log": []})["log"]]}

    builder = StateGraph(Log).add_node("call", call).add_edge(START, "call")
    builder.add_conditional_edges("call", lambda state: "call" if len(state["log"]) < 3 else END)
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    for reply in range(3):
        run.state(graph, subgraphs=True)
        run.go(graph, Command(resume=reply))
    run.history(graph)


@scenario()
def subgraphs_in_parallel_sends(run: Run) -> None:
    sub = chain(one=lambda state: {"log": [state["log"][-1] * 2]}, two=asking("?")).compile()
    builder = StateGraph(Log).add_node("sub", sub)
    sends = [Send("sub", {"log": [number]}) for number in (1, 2, 3)]
    builder.add_conditional_edges(START, lambda state: sends, ["sub"])
    graph = run.compile(builder)
    run.go(graph, {"log": []})
    pending = run.state(graph).interrupts
    assert len(pending) == 3
    run.go(graph, Command(resume={p.id: index for index, p in enumerate(pending)}))
    run.state(graph)


@scenario()
def subgraph_commands_its_parent(run: Run) -> None:
    def hand_over(state: Log) -> Command:
        return Command(graph=Command.PARENT, goto="z", update={"log": ["from inside"]})

    sub = StateGraph(Log).add_node("hand_over", hand_over).add_edge(START, "hand_over").compile()
    builder = StateGraph(Log).add_node("sub", sub, destinations=("z",)).add_node("z", say("z"))
    graph = run.compile(builder.add_edge(START, "sub"))
    run.go(graph, {"log": []})
    run.history(graph)


# Functional API


def skip_where_async_code_has_no_context(run: Run) -> None:
    if run.door.name == "async" and sys.version_info < (3, 11):
        pytest.skip("before Python 3.11 LangGraph's interrupt and tasks don't work in async functions")


def workflow(run: Run) -> Any:
    if run.door.name == "async":
        return async_workflow(run)

    @task
    def double(n: int) -> int:
        run.calls["double"] += 1
        return 2 * n

    @entrypoint(checkpointer=run.saver)
    def flow(n: int, *, previous: Any = None) -> entrypoint.final[Any, Any]:
        doubled = [future.result() for future in [double(n), double(n + 1)]]
        reply = interrupt({"is it": doubled})
        return entrypoint.final(value=[previous, doubled, reply], save={"last": doubled, "before": previous})

    return flow


def async_workflow(run: Run) -> Any:
    @task
    async def double(n: int) -> int:
        run.calls["double"] += 1
        return 2 * n

    @entrypoint(checkpointer=run.saver)
    async def flow(n: int, *, previous: Any = None) -> entrypoint.final[Any, Any]:
        doubled = [await future for future in [double(n), double(n + 1)]]
        reply = interrupt({"is it": doubled})
        return entrypoint.final(value=[previous, doubled, reply], save={"last": doubled, "before": previous})

    return flow


@scenario()
def functional_workflow(run: Run) -> None:
    skip_where_async_code_has_no_context(run)
    flow = workflow(run)
    for turn in (1, 10):
        run.go(flow, turn)
        run.state(flow)
        result = run.go(flow, Command(resume=f"yes {turn}"))
    assert result == [{"last": [2, 4], "before": None}, [20, 22], "yes 10"]
    assert run.calls["double"] == 4
    run.history(flow)


@scenario()
def functional_workflow_goes_on_after_an_error(run: Run) -> None:
    skip_where_async_code_has_no_context(run)

    @task
    def once(n: int) -> int:
        run.calls["once"] += 1
        return n + 1

    @task
    def flaky(n: int) -> int:
        run.calls["flaky"] += 1
        if run.calls["flaky"] == 1:
            raise Broken("first time")
        return n * 100

    def body(n: int) -> int:
        return flaky(once(n).result()).result()

    async def async_body(n: int) -> int:
        return await flaky(await once(n))

    flow = entrypoint(checkpointer=run.saver)(body if run.door.name == "sync" else async_body)
    run.go_wrong(flow, 1)
    run.state(flow)
    assert run.go(flow, None) == 200
    assert run.calls == {"once": 1, "flaky": 2}
    run.history(flow)


# Delta channels. Where a step leaves one alone, savers differ in whether its last snapshot is shown again, so
# what is read is compared, not what is stored.


def extend(state: list, writes: Sequence[list]) -> list:
    return [*state, *(item for write in writes for item in write)]


def delta_state(frequency: int) -> type:
    return TypedDict(
        "Delta",
        {"log": Annotated[list, DeltaChannel(extend, list, snapshot_frequency=frequency)], "n": int},
    )


def delta_graph(run: Run, frequency: int) -> Any:
    builder = StateGraph(delta_state(frequency))
    builder.add_node("a", lambda state: {"log": [f"a{len(state['log'])}"], "n": len(state["log"])})
    for name in ("p3", "p1", "p2"):
        builder.add_node(name, say(name, name.upper())).add_edge("a", name)
    builder.add_node("z", lambda state: {"log": [f"z{len(state['log'])}"]})
    return run.compile(builder.add_edge(START, "a").add_edge(["p1", "p2", "p3"], "z"))


def delta_turns(run: Run, frequency: int) -> None:
    graph = delta_graph(run, frequency)
    for turn in range(4):
        result = run.go(graph, {"log": [f"in {turn}"]})
    assert result["log"][:10] == ["in 0", "a1", "p1", "P1", "p2", "P2", "p3", "P3", "z8", "in 1"]
    run.state(graph)
    run.history(graph)


@scenario(stored_differs_in=DURABILITIES)
def delta_channel_with_frequent_snapshots(run: Run) -> None:
    delta_turns(run, 2)


@scenario(stored_differs_in=DURABILITIES)
def delta_channel_with_a_snapshot_each_step(run: Run) -> None:
    delta_turns(run, 1)


@scenario(stored_differs_in=DURABILITIES)
def delta_channel_with_rare_snapshots(run: Run) -> None:
    delta_turns(run, 1000)


@scenario(stored_differs_in=DURABILITIES)
def delta_channel_forked_updated_and_overwritten(run: Run) -> None:
    graph = delta_graph(run, 5)
    for turn in range(2):
        run.go(graph, {"log": [f"in {turn}"]})
    old_head = run.state(graph)
    snapshots = run.history(graph)
    for point in (snapshots[len(snapshots) // 2], snapshots[1]):
        forked = run.update(graph, point.config, {"log": ["forked"]}, as_node="z")
        run.state(graph, forked)
        run.go(graph, {"log": ["on the fork"]})
    run.go(graph, {"log": ["replayed"]}, snapshots[0].config)
    run.update(graph, DEFAULT, {"log": Overwrite(["fresh"])}, as_node="z")
    run.go(graph, {"log": ["after"]})
    assert run.state(graph, old_head.config).values == old_head.values
    run.history(graph)


@scenario(stored_differs_in=DURABILITIES)
def delta_channel_with_interrupts(run: Run) -> None:
    builder = StateGraph(delta_state(3)).add_node("a", say("a")).add_node("ask", asking("x?", "y?"))
    builder.add_node("beside", say("beside")).add_node("z", say("z"))
    for edge in ((START, "a"), ("a", "ask"), ("a", "beside"), (["ask", "beside"], "z")):
        builder.add_edge(*edge)
    graph = run.compile(builder)
    for turn in range(2):
        run.go(graph, {"log": [turn]})
        run.go(graph, Command(resume=f"x{turn}"))
        run.state(graph)
        run.go(graph, Command(resume=f"y{turn}"))
    first, second = ([turn, "a", f"x{turn}", f"y{turn}", "beside", "z"] for turn in range(2))
    assert run.state(graph).values["log"] == first + second
    run.history(graph)


# Errors


def failing(run: Run, name: str, times: int) -> Callable[[Any], Any]:
    def node(state: Any) -> dict[str, Any]:
        run.calls[name] += 1
        if run.calls[name] <= times:
            raise Broken(f"{name} failed, time {run.calls[name]}")
        return {"log": [name]}

    return node


@scenario()
def error_then_resume(run: Run) -> None:
    graph = run.compile(chain(a=counted(run, "a", say("a")), b=failing(run, "b", 2), z=say("z")))
    run.go_wrong(graph, {"log": ["in"]})
    run.state(graph)
    run.go_wrong(graph, None)
    assert run.go(graph, None) == {"log": ["in", "a", "b", "z"]}
    assert run.calls == {"a": 1, "b": 3}
    run.history(graph)


@scenario()
def finished_siblings_are_not_run_again(run: Run) -> None:
    finished = threading.Event()

    def sibling(state: Log) -> dict[str, Any]:
        finished.set()
        return {"log": ["sibling"]}

    fail = failing(run, "flaky", 1)

    def flaky(state: Log) -> dict[str, Any]:
        assert finished.wait(5)
        # The sibling's result is recorded by its runner, just after it has returned.
        time.sleep(0.05)
        return fail(state)

    builder = StateGraph(Log).add_node("sibling", counted(run, "sibling", sibling)).add_node("flaky", flaky)
    graph = run.compile(builder.add_edge(START, "sibling").add_edge(START, "flaky"))
    run.go_wrong(graph, {"log": []})
    run.state(graph)
    assert run.go(graph, None) == {"log": ["flaky", "sibling"]}
    assert run.calls == {"sibling": 1, "flaky": 2}
    run.history(graph)


@scenario()
def retries(run: Run) -> None:
    policy = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=3, retry_on=Broken)
    builder = StateGraph(Log).add_node("b", failing(run, "b", 5), retry_policy=policy).add_edge(START, "b")
    graph = run.compile(builder)
    run.go_wrong(graph, {"log": ["in"]})
    assert run.go(graph, None) == {"log": ["in", "b"]}
    assert run.calls["b"] == 6
    run.history(graph)


@scenario()
def error_in_a_subgraph(run: Run) -> None:
    sub = chain(s1=counted(run, "s1", say("s1")), s2=failing(run, "s2", 1)).compile()
    graph = run.compile(chain(a=say("a"), sub=sub, z=say("z")))
    run.go_wrong(graph, {"log": []})
    run.state(graph, subgraphs=True)
    run.go(graph, None)
    run.note("calls", run.calls)
    run.history(graph)


@scenario()
def new_input_after_an_error(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), b=failing(run, "b", 1)))
    run.go_wrong(graph, {"log": ["one"]})
    run.go(graph, {"log": ["two"]})
    run.history(graph)


# Streams


@scenario()
def streams(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), ask=asking("?"), sub=inner(None, asks=False)))
    for mode in ("values", "updates", "checkpoints", "tasks", ["values", "updates", "debug"]):
        run.stream(graph, {"log": [str(mode)]}, stream_mode=mode, subgraphs=True)
        run.stream(graph, Command(resume=mode), stream_mode=mode, subgraphs=True)


@scenario()
def stream_left_early(run: Run) -> None:
    graph = run.compile(chain(a=say("a"), ask=asking("?")))
    run.stream(graph, {"log": []}, stream_mode="updates", interrupt_after=["a"])
    run.stream(graph, None, stream_mode="updates")
    run.state(graph)


@spread(name=SCENARIOS, durability=DURABILITIES, door=DOORS)
def test_scenario(name, durability, door, saver):
    noted, stored = play(name, Run(saver, door, durability))
    expected_noted, expected_stored = reference(name, door.name, durability)
    for got, expected in zip(noted, expected_noted, strict=True):
        assert got == expected
    assert stored == expected_stored


# Types of state


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Point(NamedTuple):
    x: int
    y: float


class Person(BaseModel):
    name: str
    born: datetime | None = None
    likes: list[Colour] = []


@dataclass
class Basket:
    owner: Person
    items: dict[str, Decimal] = field(default_factory=dict)
    at: Point | None = None


class PydanticState(BaseModel):
    log: Annotated[list, operator.add] = []
    person: Person | None = None
    basket: Basket | None = None


@dataclass
class DataclassState:
    log: Annotated[list, operator.add] = field(default_factory=list)
    person: Person | None = None
    basket: Basket | None = None


class DictState(TypedDict, total=False):
    log: list
    person: Person
    basket: Basket
    anything: Any


ADA = Person(name="Ada", born=datetime(1815, 12, 10, tzinfo=timezone.utc), likes=[Colour.RED, Colour.BLUE])
BASKET = Basket(ADA, {"tea": Decimal("1.50")}, Point(1, 0.5))


@spread(state=[PydanticState, DataclassState, DictState], durability=DURABILITIES, door=DOORS)
def test_states_of_any_class(state, durability, door, saver):
    run = Run(saver, door, durability)
    builder = StateGraph(state).add_node("a", lambda s: {"person": ADA, "basket": BASKET})
    builder.add_node("b", lambda s: {"log": [interrupt(BASKET)]})
    graph = run.compile(link(builder, "a", "b"))
    asked = run.go(graph, {"log": []})
    assert asked["__interrupt__"][0].value == BASKET
    values = run.state(graph).values
    assert (values["person"], values["basket"]) == (ADA, BASKET)
    assert type(values["basket"].owner) is Person
    run.go(graph, Command(resume=ADA))
    assert run.state(graph).values["log"] == [ADA]


ANYTHING = [
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
    timedelta(days=1, microseconds=1),
    Colour.BLUE,
    Point(1, 2.5),
    {1, "two", 3.0},
    frozenset({1}),
    Decimal("1.10"),
    uuid.UUID(int=7),
    b"\0\xff",
    "nul \0 and a lone surrogate \ud800 in text",
    "",
    None,
    {},
    [],
    0,
    False,
    float("inf"),
    2**64 - 1,
    1e300,
    {"nested": {"list": [1, [2, {"three": None}]]}},
    {1: "int key"},
    [HumanMessage("hi", id="1"), AIMessage("ho", id="2", tool_calls=[{"name": "f", "args": {}, "id": "c"}])],
    Send("node", {"arg": ADA}),
]


@each_store
@pytest.mark.parametrize("value", ANYTHING, ids=name_of)
def test_any_value_in_state_and_in_an_interrupt(value, door, place):
    saver = place.open()
    run = Run(saver, door, "sync")
    builder = StateGraph(DictState).add_node("a", lambda s: {"anything": interrupt(s["anything"])})
    graph = run.compile(link(builder, "a"))
    run.go(graph, {"anything": value})
    graph = builder.compile(checkpointer=place.restart(saver))
    snapshot = run.state(graph)
    for found in (snapshot.values["anything"], snapshot.interrupts[0].value):
        assert type(found) is type(value)
        assert found == value


def test_numpy_arrays(door, saver):
    numpy = pytest.importorskip("numpy")
    value = numpy.arange(12.0).reshape(3, 4)[:, ::2]
    builder = StateGraph(DictState).add_node("a", lambda s: {"anything": s["anything"] + 1})
    run = Run(saver, door, "sync")
    graph = run.compile(link(builder, "a"))
    run.go(graph, {"anything": value})
    numpy.testing.assert_array_equal(run.state(graph).values["anything"], value + 1)


@pytest.fixture
def strict(monkeypatch):
    """Do what the environment variable LANGGRAPH_STRICT_MSGPACK does where it is set before the import."""
    monkeypatch.setattr("langgraph._internal._serde.STRICT_MSGPACK_ENABLED", True)


@pytest.mark.usefixtures("strict")
def test_strict_loading_allows_what_the_graph_declares_and_nothing_else(door, make_saver):
    run = Run(make_saver(strict_msgpack=True), door, "sync")
    declares = run.compile(link(StateGraph(PydanticState).add_node("a", lambda s: {"person": ADA}), "a"))
    hides = run.compile(chain(a=say(ADA)))
    run.go(declares, {"log": []}, thread("declares"))
    assert run.state(declares, thread("declares")).values["person"] == ADA
    run.go(hides, {"log": []}, thread("hides"))
    with pytest.raises(UnsafeTypeError, match="test_graphs"):
        run.state(hides, thread("hides"))
    assert run.state(declares, thread("declares")).values["person"] == ADA


def test_what_a_caller_changes_in_a_result_is_not_stored(door, saver):
    run = Run(saver, door, "sync")
    graph = run.compile(chain(a=say({"deep": []})))
    run.go(graph, {"log": []})["log"][0]["deep"].append("changed")
    snapshot = run.state(graph)
    snapshot.values["log"][0]["deep"].append("changed")
    snapshot.metadata["source"] = "changed"
    again = run.state(graph)
    assert again.values == {"log": [{"deep": []}]}
    assert again.metadata["source"] == "loop"


# Threads, savers, processes


@each_store
@pytest.mark.parametrize("thread_id", [7, 0, -1, " ", "ü/'\";--\0", "a" * 2000, "x:y|z{h}*"], ids=repr)
def test_any_thread_id(thread_id, door, saver):

    run = Run(saver, door, "sync")
    graph = run.compile(chain(a=say("a"), ask=asking("?")))
    config = thread(thread_id)
    run.go(graph, {"log": []}, config)
    snapshot = run.state(graph, config)
    assert snapshot.next == ("ask",)
    assert run.state(graph, snapshot.config).values == snapshot.values
    run.go(graph, Command(resume="yes"), config)
    assert len(run.history(graph, config)) == 4
    assert run.state(graph, thread(f"not {thread_id}")).values == {}
    run.door.call(saver, "delete_thread", thread_id)
    assert run.state(graph, config).values == {}


@spread(durability=DURABILITIES, door=DOORS)
def test_another_process_goes_on(durability, door, place):
    """Stop at an interrupt, in a nested graph and beside a finished sibling; go on with only the data."""
    first = place.open()
    run = Run(first, door, durability)
    sub = chain(s1=counted(run, "s1", say("s1")), s2=asking("inner?")).compile()
    sibling = counted(run, "sibling", say("sibling"))
    builder = StateGraph(Log).add_node("sub", sub).add_node("sibling", sibling).add_node("z", say("z"))
    builder.add_edge(START, "sub").add_edge(START, "sibling")
    builder.add_edge(["sub", "sibling"], "z")
    run.go(run.compile(builder), {"log": []})
    before = run.state(run.compile(builder), subgraphs=True)

    run.saver = place.restart(first)
    graph = run.compile(builder)
    assert view(run.state(graph, subgraphs=True)) == view(before)
    assert run.go(graph, Command(resume="on"))["log"] == ["sibling", "s1", "on", "z"]
    assert run.calls == {"s1": 1, "sibling": 1}
    run.saver = place.restart(run.saver)
    assert run.state(run.compile(builder)).values["log"] == ["sibling", "s1", "on", "z"]


def test_another_process_goes_on_after_an_error(door, place):
    first = place.open()
    run = Run(first, door, "sync")
    builder = chain(a=counted(run, "a", say("a")), b=failing(run, "b", 1))
    run.go_wrong(run.compile(builder), {"log": []})
    run.saver = place.restart(first)
    assert run.go(run.compile(builder), None) == {"log": ["a", "b"]}
    assert run.calls == {"a": 1, "b": 2}


def test_two_savers_on_the_same_data_take_turns(door, make_saver):
    graphs = [chat_graph(Run(make_saver(), door, "async")) for _ in range(2)]
    for turn in range(8):
        messages = {"messages": [HumanMessage(f"turn {turn}", id=f"h{turn}")]}
        result = door.call(graphs[turn % 2], "invoke", messages, DEFAULT)
        assert len(result["messages"]) == 2 * (turn + 1)
    histories = [view(door.collect(graph, "get_state_history", DEFAULT)) for graph in graphs]
    assert histories[0] == histories[1]


def test_two_savers_on_different_data_at_once(door, make_place):
    graphs = [chat_graph(Run(make_place().open(), door, "async")) for _ in range(2)]
    for turn in range(3):
        for number, graph in enumerate(graphs):
            message = HumanMessage(f"{number}", id=f"{number}.{turn}")
            door.call(graph, "invoke", {"messages": [message]}, DEFAULT)
    for number, graph in enumerate(graphs):
        contents = {message.content for message in door.call(graph, "get_state", DEFAULT).values["messages"]}
        assert contents == {f"{number}", f"echo {number}"}


def test_batches_of_threads(door, saver):
    graph = Run(saver, door, "async").compile(chain(a=say("a"), b=say("b")))
    configs = [thread(f"t{number}") for number in range(12)]
    for _ in range(2):
        results = door.call(graph, "batch", [{"log": [number]} for number in range(12)], configs)
    assert results == [{"log": [number, "a", "b", number, "a", "b"]} for number in range(12)]
    for result, config in zip(results, configs, strict=True):
        assert door.call(graph, "get_state", config).values == result
        assert len(door.collect(graph, "get_state_history", config)) == 8


async def test_many_threads_at_once_on_one_loop(saver):
    graph = chat_graph(Run(saver, Door("sync"), "async"))

    async def talk(name: str) -> Any:
        for turn in range(4):
            message = HumanMessage(f"{name} {turn}", id=f"{name}-{turn}")
            result = await graph.ainvoke({"messages": [message]}, thread(name))
        return result

    results = await asyncio.gather(*(talk(f"t{number}") for number in range(20)))
    for number, result in enumerate(results):
        expected = [text for turn in range(4) for text in (f"t{number} {turn}", f"echo t{number} {turn}")]
        assert [message.content for message in result["messages"]] == expected
        assert (await graph.aget_state(thread(f"t{number}"))).values == result


def test_sync_graphs_from_several_threads(saver):
    graph = chat_graph(Run(saver, Door("sync"), "async"))

    def talk(name: str) -> Any:
        for turn in range(4):
            message = HumanMessage(f"{name} {turn}", id=f"{name}-{turn}")
            result = graph.invoke({"messages": [message]}, thread(name))
        return result

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(talk, [f"t{number}" for number in range(16)]))
    for number, result in enumerate(results):
        assert len(result["messages"]) == 8
        assert {message.content.split()[-2] for message in result["messages"]} == {f"t{number}"}
        assert graph.get_state(thread(f"t{number}")).values == result


def test_one_saver_in_loops_one_after_another(saver):
    graph = chat_graph(Run(saver, Door("sync"), "async"))

    async def turn(number: int) -> int:
        message = HumanMessage(f"{number}", id=f"{number}")
        return len((await graph.ainvoke({"messages": [message]}, DEFAULT))["messages"])

    assert [asyncio.run(turn(number)) for number in range(3)] == [2, 4, 6]
    assert len(graph.invoke({"messages": [HumanMessage("sync", id="s")]}, DEFAULT)["messages"]) == 8


def test_one_saver_in_loops_at_the_same_time(saver):
    graph = chat_graph(Run(saver, Door("sync"), "async"))

    async def talk(name: str) -> int:
        for turn in range(5):
            result = await graph.ainvoke({"messages": [HumanMessage("hi", id=f"{turn}")]}, thread(name))
        return len(result["messages"])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda name: asyncio.run(talk(name)), "abcd")) == [10] * 4


async def test_sync_calls_inside_a_running_loop(saver):
    graph = chat_graph(Run(saver, Door("sync"), "sync"))
    graph.invoke({"messages": [HumanMessage("one", id="1")]}, DEFAULT)
    await graph.ainvoke({"messages": [HumanMessage("two", id="2")]}, DEFAULT)
    assert len(graph.get_state(DEFAULT).values["messages"]) == 4
    assert len(list(graph.get_state_history(DEFAULT))) == 6


async def test_a_node_that_calls_the_graph_of_another_thread(saver):
    other = chat_graph(Run(saver, Door("sync"), "sync"))

    async def nested(state: Log) -> dict[str, Any]:
        result = await other.ainvoke({"messages": [HumanMessage("in", id="1")]}, thread("other"))
        return {"log": [len(result["messages"])]}

    graph = StateGraph(Log).add_node("nested", nested).add_edge(START, "nested").compile(checkpointer=saver)
    assert await graph.ainvoke({"log": []}, DEFAULT) == {"log": [2]}
    assert len((await other.aget_state(thread("other"))).values["messages"]) == 2


def test_a_stream_that_nobody_reads_to_its_end(door, saver):
    run = Run(saver, door, "sync")
    graph = run.compile(chain(a=say("a"), b=say("b"), c=say("c")))
    if door.name == "sync":
        stream = graph.stream({"log": []}, DEFAULT, stream_mode="updates", durability="sync")
        next(stream)
        stream.close()
    else:
        door.loop.run_until_complete(leave_early(graph))
    assert run.state(graph).values["log"] in (["a"], ["a", "b"], [])
    assert run.go(graph, None)["log"] == ["a", "b", "c"]


async def leave_early(graph: Any) -> None:
    stream = graph.astream({"log": []}, DEFAULT, stream_mode="updates", durability="sync")
    await anext(stream)
    await stream.aclose()


# Deletions under a running graph


@spread(frequency=[1, 2, 3, 1000], durability=DURABILITIES, door=DOORS)
def test_pruning_a_delta_thread_between_turns_changes_nothing(frequency, durability, door, saver):
    """The same turns on an InMemorySaver that is never pruned say what must come out."""
    pruned = Run(saver, door, durability)
    whole = Run(InMemorySaver(), door, durability)
    for turn in range(6):
        results = [run.go(delta_graph(run, frequency), {"log": [f"in {turn}"]}) for run in (pruned, whole)]
        assert results[0] == results[1]
        if turn % 3 != 1:
            door.call(saver, "prune", ["t"])
        states = [run.state(delta_graph(run, frequency)) for run in (pruned, whole)]
        assert states[0].values == states[1].values
        assert states[0].metadata == states[1].metadata
    assert len(pruned.history(delta_graph(pruned, frequency))) == 1


@spread(gone=[(0,), (1, 2), (2, 4), (0, 1, 2, 3, 4)], durability=DURABILITIES, door=DOORS)
def test_deleting_runs_of_a_delta_thread_changes_no_survivor(gone, durability, door, saver):
    run = Run(saver, door, durability)
    graph = delta_graph(run, 4)
    runs = [str(uuid.uuid4()) for _ in range(6)]
    for turn, run_id in enumerate(runs):
        run.go(graph, {"log": [f"in {turn}"]}, {"configurable": {"thread_id": "t", "run_id": run_id}})
    before = {id_of(s.config): s for s in run.history(graph)}
    deleted = {runs[turn] for turn in gone}
    door.call(saver, "delete_for_runs", sorted(deleted))
    after = {id_of(s.config): s for s in run.history(graph)}
    assert list(after) == [key for key, s in before.items() if s.metadata.get("run_id") not in deleted]
    for key, snapshot in after.items():
        assert (snapshot.values, snapshot.next) == (before[key].values, before[key].next)
        assert run.state(graph, snapshot.config).values == snapshot.values
    expected = [*before[max(before)].values["log"], "on"]
    assert run.go(graph, {"log": ["on"]})["log"][: len(expected)] == expected


@spread(durability=DURABILITIES, door=DOORS)
def test_pruning_at_an_interrupt_keeps_it_answerable(durability, door, saver):
    run = Run(saver, door, durability)
    sub = chain(s1=say("s1"), s2=asking("inner?")).compile()
    graph = run.compile(chain(a=counted(run, "a", say("a")), sub=sub, z=say("z")))
    run.go(graph, {"log": ["in"]})
    before = view(run.state(graph, subgraphs=True).interrupts)
    door.call(saver, "prune", ["t"])
    assert view(run.state(graph, subgraphs=True).interrupts) == before
    assert run.go(graph, Command(resume="yes"))["log"] == ["in", "a", "in", "a", "s1", "yes", "z"]
    assert run.calls["a"] == 1


def test_a_copied_thread_goes_on_by_itself(door, saver):
    run = Run(saver, door, "sync")
    graph = run.compile(chain(a=counted(run, "a", say("a")), ask=asking("?"), z=say("z")))
    run.go(graph, {"log": []})
    door.call(saver, "copy_thread", "t", "copy")
    assert view(run.state(graph, thread("copy")).interrupts) == view(run.state(graph).interrupts)
    assert run.go(graph, Command(resume="copy"), thread("copy"))["log"] == ["a", "copy", "z"]
    assert run.go(graph, Command(resume="original"))["log"] == ["a", "original", "z"]
    assert run.calls["a"] == 1
