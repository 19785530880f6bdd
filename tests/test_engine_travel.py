"""Rewinding and branching on real graphs: going on gives what a run gives that had never gone further.

A `Script` drives a graph: its turns' inputs, and answers to what it asks, all of them marked with a word.
What comes after a rewind or a branch is marked with another word than what came before, so an old answer
that is used again shows. The reference is the same script in a fresh thread of LangGraph's `InMemorySaver`,
with the other word from that checkpoint on, and no time travel at all.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import random
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pytest
from conftest import PostgresPlace, RedisPlace, SqlitePlace
from helpers import id_of, thread, view
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from servers import schema_of
from test_ttl import Clock
from typing_extensions import TypedDict

from langgraph_harness_saver.engine.engine import CheckpointEngine
from langgraph_harness_saver.errors import AmbiguousCheckpoint, BranchExistsError, CheckpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Place
    from langchain_core.runnables import RunnableConfig
    from langgraph.types import StateSnapshot

STORES = ("memory", "sqlite", "postgres", "redis")
OLD, NEW = "old", "new"


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


# --- graphs ------------------------------------------------------------------------------------------


class Bench:
    """Builds a graph on a saver, and notes which nodes run."""

    def __init__(self, saver: Any) -> None:
        self.saver = saver
        self.ran: list[str] = []

    def node(self, name: str, act: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(state: Any) -> Any:
            self.ran.append(name)
            return act(state)

        return call

    def say(self, *words: Any) -> Callable[[Any], Any]:
        return self.node(f"say {words}", lambda state: {"log": list(words)})

    def ask(self, *questions: str) -> Callable[[Any], Any]:
        return self.node(f"ask {questions}", lambda state: {"log": [interrupt(one) for one in questions]})

    def tell(self, name: str) -> Callable[[Any], Any]:
        """Make a node whose answer tells how much there was before."""
        return self.node(name, lambda state: {"log": [f"{name}{len(state['log'])}"]})


@dataclass(frozen=True)
class Script:
    """A graph and how it is used: inputs by turn, answers, updates at static breakpoints."""

    build: Callable[[Bench], Any]
    turns: int = 2
    durability: str = "sync"
    input: Callable[[str, int], Any] = lambda word, turn: {"log": [f"{word} input {turn}"]}
    one_by_one: bool = False
    nudges: bool = False
    memories: Sequence[str] = ()


SCRIPTS: dict[str, Script] = {}


def script(**options: Any) -> Callable[[Callable[[Bench], Any]], Callable[[Bench], Any]]:
    def take(build: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
        SCRIPTS[build.__name__] = Script(build, **options)
        return build

    return take


class Log(TypedDict):
    log: Annotated[list, operator.add]


class Count(TypedDict):
    log: Annotated[list, operator.add]
    turns: Annotated[int, operator.add]


def chain(state: type = Log, **nodes: Any) -> StateGraph:
    return StateGraph(state).add_sequence(list(nodes.items())).add_edge(START, next(iter(nodes)))


@script()
def questions_in_a_chain(bench: Bench) -> Any:
    return chain(
        a=bench.say("a"), ask=bench.ask("1?", "2?"), b=bench.tell("b"), ask2=bench.ask("3?")
    ).compile(checkpointer=bench.saver)


def parallel(bench: Bench) -> StateGraph:
    builder = StateGraph(Log)
    for name in ("left", "right"):
        builder.add_node(name, bench.ask(f"{name} 1?", f"{name} 2?")).add_edge(START, name)
    builder.add_node("plain", bench.say("plain")).add_edge(START, "plain")
    return builder.add_node("join", bench.tell("join")).add_edge(["left", "right", "plain"], "join")


@script()
def parallel_questions(bench: Bench) -> Any:
    return parallel(bench).compile(checkpointer=bench.saver)


@script(one_by_one=True, turns=1)
def parallel_questions_one_by_one(bench: Bench) -> Any:
    return parallel(bench).compile(checkpointer=bench.saver)


@script(nudges=True)
def static_breakpoints_and_updates(bench: Bench) -> Any:
    builder = chain(a=bench.tell("a"), b=bench.tell("b"), c=bench.ask("c?"), d=bench.tell("d"))
    return builder.compile(checkpointer=bench.saver, interrupt_before=["b"], interrupt_after=["b"])


@script()
def loop_by_command(bench: Bench) -> Any:
    def route(state: Any) -> Command:
        reply = interrupt(f"route {len(state['log'])}?")
        goto = "far" if len(state["log"]) % 5 > 2 else "near"
        return Command(update={"log": [reply]}, goto=goto)

    builder = StateGraph(Log).add_node("route", bench.node("route", route), destinations=("near", "far"))
    builder.add_node("near", bench.tell("near")).add_node("far", bench.tell("far"))
    return builder.add_edge(START, "route").add_edge("near", "route").compile(checkpointer=bench.saver)


@script()
def sends_with_questions(bench: Bench) -> Any:
    def work(item: dict[str, Any]) -> dict[str, Any]:
        return {"log": [interrupt(f"{item['n']}?") if item["n"] % 2 else item["n"]]}

    builder = StateGraph(Log).add_node("plan", bench.tell("plan")).add_edge(START, "plan")
    builder.add_node("work", lambda item: bench.node(f"work {item['n']}", work)(item))
    builder.add_conditional_edges("plan", lambda state: [Send("work", {"n": n}) for n in range(4)], ["work"])
    builder.add_node("end", bench.tell("end")).add_edge("work", "end")
    return builder.compile(checkpointer=bench.saver)


@script()
def defer_and_joins(bench: Bench) -> Any:
    builder = StateGraph(Log)
    for name in ("a", "b", "b3", "join"):
        builder.add_node(name, bench.say(name))
    builder.add_node("b2", bench.ask("b2?"))
    builder.add_node("last", bench.tell("last"), defer=True)
    for edge in ((START, "a"), (START, "b"), ("b", "b2"), ("b2", "b3"), (["a", "b3"], "join"), ("a", "last")):
        builder.add_edge(*edge)
    return builder.compile(checkpointer=bench.saver)


def extend(state: list, writes: Sequence[list]) -> list:
    return [*state, *(item for write in writes for item in write)]


def delta(frequency: int) -> type:
    return TypedDict(
        "Delta", {"log": Annotated[list, DeltaChannel(extend, list, snapshot_frequency=frequency)], "n": int}
    )


def delta_graph(bench: Bench, frequency: int) -> Any:
    builder = StateGraph(delta(frequency)).add_node("a", bench.tell("a"))
    builder.add_node("ask", bench.ask("x?", "y?")).add_node("beside", bench.say("beside"))
    builder.add_node("z", bench.tell("z"))
    for edge in ((START, "a"), ("a", "ask"), ("a", "beside"), (["ask", "beside"], "z")):
        builder.add_edge(*edge)
    return builder.compile(checkpointer=bench.saver)


@script()
def delta_with_snapshots(bench: Bench) -> Any:
    return delta_graph(bench, 3)


@script()
def delta_without_snapshots(bench: Bench) -> Any:
    return delta_graph(bench, 1000)


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def talk(word: str, turn: int) -> Any:
    said: list[Any] = [HumanMessage(f"{word} {turn}", id=f"h{turn}")]
    if turn == 2:
        said = [RemoveMessage("h0"), HumanMessage(f"edited {word}", id="h1"), *said]
    return {"messages": said}


@script(turns=3, input=talk)
def messages_edited_and_removed(bench: Bench) -> Any:
    def reply(state: Chat) -> Any:
        last = state["messages"][-1]
        return {"messages": [AIMessage(f"echo {last.content}", id=f"ai-{last.id}")]}

    def tidy(state: Chat) -> Any:
        return {"messages": [RemoveMessage(state["messages"][0].id)] if len(state["messages"]) > 4 else []}

    builder = StateGraph(Chat).add_node("reply", bench.node("reply", reply)).add_edge(START, "reply")
    return builder.add_node("tidy", tidy).add_edge("reply", "tidy").compile(checkpointer=bench.saver)


@script(input=lambda word, turn: f"{word} {turn}")
def functional(bench: Bench) -> Any:
    @task
    def twice(text: str) -> str:
        bench.ran.append(f"twice {text}")
        return text * 2

    @entrypoint(checkpointer=bench.saver)
    def flow(text: str, *, previous: Any = None) -> entrypoint.final[Any, Any]:
        bench.ran.append("flow")
        doubled = [future.result() for future in [twice(text), twice("x")]]
        reply = interrupt({"is it": doubled})
        again = twice(reply).result()
        return entrypoint.final(value=[previous, doubled, again], save=[previous, again, interrupt("save?")])

    return flow


def inner(bench: Bench, checkpointer: bool | None, name: str = "in", state: Any = Count) -> Any:
    """Make a subgraph that counts how often it has run, as far as it remembers, and asks."""

    def count(state: Any) -> Any:
        return {"turns": 1, "log": [f"{name} turn {state.get('turns', 0)}"]}

    builder = chain(state, count=bench.node(f"{name} count", count), ask=bench.ask(f"{name}?"))
    builder.add_node("close", bench.tell(f"{name} close")).add_edge("ask", "close")
    return builder.compile(checkpointer=checkpointer)


def around(bench: Bench, sub: Any) -> Any:
    return chain(a=bench.say("a"), sub=sub, z=bench.tell("z")).compile(checkpointer=bench.saver)


def calling(bench: Bench, sub: Any, times: int = 2) -> Any:
    """Make a graph with a node that calls a subgraph, in a loop."""

    def call(state: Any) -> Any:
        return {"log": [sub.invoke({"log": [len(state["log"])]})["log"]]}

    builder = StateGraph(Count).add_node("call", bench.node("call", call)).add_edge(START, "call")
    builder.add_node("count", lambda state: {"turns": 1}).add_edge("call", "count")
    builder.add_conditional_edges("count", lambda state: END if state["turns"] % times == 0 else "call")
    return builder.compile(checkpointer=bench.saver)


@script()
def subgraph_that_inherits(bench: Bench) -> Any:
    return around(bench, inner(bench, None))


@script(memories=["sub"])
def subgraph_that_remembers(bench: Bench) -> Any:
    return around(bench, inner(bench, True))


@script()
def subgraph_that_inherits_called_in_a_loop(bench: Bench) -> Any:
    return calling(bench, inner(bench, None))


@script(memories=["call"])
def subgraph_that_remembers_called_in_a_loop(bench: Bench) -> Any:
    return calling(bench, inner(bench, True))


def nested(bench: Bench, middle: bool | None, innermost: bool | None) -> Any:
    sub = inner(bench, innermost)

    def call(state: Any) -> Any:
        return {"log": [sub.invoke({"log": []})["log"]], "turns": 1}

    mid = chain(Count, m1=bench.tell("m1"), m2=bench.node("m2", call), m3=bench.tell("m3"))
    return around(bench, mid.compile(checkpointer=middle))


@script(memories=["sub", "sub|m2"])
def nested_that_remember(bench: Bench) -> Any:
    return nested(bench, True, True)


@script(memories=["sub", "sub|in"])
def nested_nodes_that_remember(bench: Bench) -> Any:
    mid = chain(Count, m1=bench.tell("m1"), **{"in": inner(bench, True)}, m3=bench.tell("m3"))
    return around(bench, mid.compile(checkpointer=True))


@script(memories=["sub", "sub|flow"])
def nested_in_a_first_step(bench: Bench) -> Any:
    """Nest a subgraph that is come to in the first step, so it goes on where it was."""
    sub = inner(bench, True)

    @entrypoint(checkpointer=True)
    def flow(given: Any, *, previous: Any = None) -> Any:
        bench.ran.append("flow")
        told = sub.invoke({"log": [given]})["log"]
        return entrypoint.final(value=[previous, told], save=(previous or 0) + 1)

    def call(state: Any) -> Any:
        return {"log": [flow.invoke(len(state["log"]))]}

    return chain(a=bench.say("a"), sub=bench.node("sub", call), z=bench.tell("z")).compile(
        checkpointer=bench.saver
    )


@script()
def nested_of_which_the_inner_remembers(bench: Bench) -> Any:
    return nested(bench, None, True)


@script(memories=["sub"])
def nested_of_which_the_outer_remembers(bench: Bench) -> Any:
    return nested(bench, True, None)


@script(memories=["one"])
def subgraphs_side_by_side(bench: Bench) -> Any:
    builder = (
        StateGraph(Log).add_node("one", inner(bench, True, "one")).add_node("two", inner(bench, None, "two"))
    )
    builder.add_edge(START, "one").add_edge(START, "two").add_node("plain", bench.say("plain"))
    builder.add_edge(START, "plain").add_node("z", bench.tell("z")).add_edge(["one", "two", "plain"], "z")
    return builder.compile(checkpointer=bench.saver)


@script()
def subgraphs_in_sends(bench: Bench) -> Any:
    sub = chain(one=lambda state: {"log": [state["log"][-1] * 2]}, two=bench.ask("in?")).compile()
    builder = StateGraph(Log).add_node("sub", sub).add_node("z", bench.tell("z")).add_edge("sub", "z")
    builder.add_conditional_edges(START, lambda state: [Send("sub", {"log": [n]}) for n in (1, 2)], ["sub"])
    return builder.compile(checkpointer=bench.saver)


@script()
def delta_in_a_subgraph_that_remembers(bench: Bench) -> Any:
    class Inner(TypedDict):
        log: Annotated[list, DeltaChannel(extend, list, snapshot_frequency=1000)]
        turns: Annotated[int, operator.add]

    return calling(bench, inner(bench, True, state=Inner))


IN_DURABILITY_EXIT = (
    "questions_in_a_chain",
    "parallel_questions",
    "delta_with_snapshots",
    "functional",
    "subgraph_that_remembers",
    "nested_of_which_the_inner_remembers",
    "delta_in_a_subgraph_that_remembers",
)
for name in IN_DURABILITY_EXIT:
    SCRIPTS[f"{name}_exit"] = Script(**{**vars(SCRIPTS[name]), "durability": "exit"})


# --- playing a script --------------------------------------------------------------------------------


class Stop(NamedTuple):
    """Where an invocation came to its end."""

    head: str | None
    asks: bool
    noted: Any


class Player:
    """Follows a script on one thread."""

    def __init__(self, name: str, saver: Any, thread_id: str | None = None, turn: int = 0) -> None:
        self.script = SCRIPTS[name]
        self.bench = Bench(saver)
        self.graph = self.script.build(self.bench)
        self.thread_id = thread_id or str(uuid.uuid4())
        self.config = thread(self.thread_id)
        self.turn = turn
        self.stops: list[Stop] = []

    def state(self) -> StateSnapshot:
        return self.graph.get_state(self.config)

    def next_input(self, word: str) -> Any:
        """Return what the script does next, None for nothing."""
        state = self.state()
        if state.interrupts:
            pending = sorted(state.interrupts, key=lambda one: str(one.value))
            pending = pending[:1] if self.script.one_by_one else pending
            return Command(resume={one.id: f"{word} {one.value}" for one in pending})
        if state.next:
            if self.script.nudges and state.next == ("b",) and state.metadata["source"] != "update":
                self.graph.update_state(self.config, {"log": [f"{word} update"]})
            return Ellipsis
        if self.turn < self.script.turns:
            self.turn += 1
            return self.script.input(word, self.turn - 1)
        return None

    def step(self, word: str, config: RunnableConfig | None = None) -> bool:
        value = self.next_input(word)
        if value is None:
            return False
        value = None if value is Ellipsis else value
        result = self.graph.invoke(value, config or self.config, durability=self.script.durability)
        if isinstance(result, dict) and "__interrupt__" in result:
            result["__interrupt__"] = sorted(result["__interrupt__"], key=lambda one: repr(one.value))
        state = self.graph.get_state(self.config, subgraphs=True)
        noted = {"result": view(result), "state": plain(state)}
        self.stops.append(Stop(id_of(state.config), bool(state.interrupts), noted))
        self.bench.ran.append(STOP)
        return True

    def finish(self, word: str) -> None:
        while self.step(word):
            pass

    def line(self) -> list[Any]:
        """Return what can be read of the head and its ancestors."""
        found = []
        config: RunnableConfig | None = self.config
        while config is not None:
            state = self.graph.get_state(config)
            found.append(plain(state))
            config = state.parent_config
        return found

    def memories(self) -> dict[str, Any]:
        """Return the lines of the subgraphs that have one of their own."""
        return {ns: self._memory(ns) for ns in self.script.memories}

    def _memory(self, ns: str) -> list[Any]:
        found = []
        item = self.bench.saver.get_tuple(thread(self.thread_id, ns=ns))
        while item is not None:
            found.append(view(item.checkpoint["channel_values"]))
            item = item.parent_config and self.bench.saver.get_tuple(item.parent_config)
        # Where a subgraph begins once more, its input is put twice, or stands on an empty checkpoint.
        return [values for values in found if values and "__start__" not in values]


STOP = "-- stop"


def plain(state: StateSnapshot) -> Any:
    """Return a state without what only a copy has."""
    seen = view(state)
    for part in _parts(seen):
        if isinstance(part, dict):
            part.pop("rewound_from", None)
    return seen


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item)


class Outcome(NamedTuple):
    """What came after a checkpoint."""

    stops: list[Any]
    ran: list[list[str]]
    line: list[Any]
    memories: dict[str, Any]


def outcome(player: Player, head: str | None, ran: Sequence[str], stops: Sequence[Stop]) -> Outcome:
    told = [stop.noted for stop in stops if stop.asks or stop.head != head]
    groups: list[list[str]] = [[]]
    # In durability exit a checkpoint is only put when its tasks have run.
    for name in ran if player.script.durability != "exit" else ():
        if name == STOP:
            groups.append([])
        else:
            groups[-1].append(name)
    # Parallel nodes run as they happen to.
    return Outcome(told, [sorted(group) for group in groups if group], player.line(), player.memories())


class Marking(InMemorySaver):
    """Notes among the nodes that ran which root checkpoints were put."""

    ran: list[str]

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        stored = super().put(config, checkpoint, metadata, new_versions)
        if not config["configurable"].get("checkpoint_ns"):
            self.ran.append(checkpoint["id"])
        return stored


@cache
def expected(name: str, number: int) -> Outcome:
    """Play a script that has the new word from its root checkpoint of that number on."""
    saver = Marking()
    player = Player(name, saver)
    saver.ran = player.bench.ran
    while player.step(NEW if len(ids(player)) > number else OLD):
        pass
    point = ids(player)[number]
    ran = player.bench.ran[player.bench.ran.index(point) + 1 :]
    known = set(ids(player))
    later = [stop for stop in player.stops if stop.head is not None and stop.head >= point]
    return outcome(player, point, [one for one in ran if one not in known], later)


@cache
def expected_after_stop(name: str, number: int) -> Outcome:
    """Play a script that has the new word from the end of its invocation of that number on."""
    player = Player(name, InMemorySaver())
    for _ in range(number + 1):
        player.step(OLD)
    return went_on(player)


def went_on(player: Player, head: str | None = None) -> Outcome:
    """Play the rest with the new word, and tell what came of it."""
    player.bench.ran.clear()
    player.stops.clear()
    player.finish(NEW)
    return outcome(player, head, player.bench.ran, player.stops)


def ids(player: Player) -> list[str]:
    """Return the ids of the root checkpoints, oldest first."""
    found = player.bench.saver.list(thread(player.thread_id, ns=""))
    return sorted(id_of(item.config) or "" for item in found)


class Source(Player):
    """A thread that has been played to its end with the old word."""

    def __init__(self, name: str, saver: Any) -> None:
        super().__init__(name, saver)
        self.name = name
        self.turn_of: dict[str, int] = {}
        while self.step(OLD):
            for one in ids(self):
                self.turn_of.setdefault(one, self.turn)
        # In durability exit a thread with a DeltaChannel begins as an empty checkpoint, before any input.
        self.points = [one for one in ids(self) if self.metadata(one)["step"] != -2]
        self.numbers = {one: number for number, one in enumerate(ids(self))}
        self.stored = dump(saver, self.thread_id)
        self.values = {
            id_of(one.config): view(one.values) for one in self.graph.get_state_history(self.config)
        }

    def metadata(self, point: str) -> Any:
        return self.bench.saver.get_tuple(thread(self.thread_id, point)).metadata

    def expected(self, point: str) -> Outcome:
        return expected(self.name, self.numbers[point])

    def player(self, thread_id: str, point: str) -> Player:
        return Player(self.name, self.bench.saver, thread_id, self.turn_of[point])


def dump(saver: Any, thread_id: str | None = None) -> dict[tuple[str, str, str], Any]:
    """Return all that can be read, by thread, namespace and id."""
    found = saver.list(None if thread_id is None else thread(thread_id))
    return {tuple(item.config["configurable"].values()): item[1:] for item in found}


def shuffled(points: Sequence[str]) -> list[str]:
    mixed = list(points)
    random.Random(len(mixed)).shuffle(mixed)
    return mixed


def compare(got: Outcome, wanted: Outcome) -> None:
    assert [stop["result"] for stop in got.stops] == [stop["result"] for stop in wanted.stops]
    assert got.stops == wanted.stops
    assert got.ran == wanted.ran
    assert got.line == wanted.line
    assert got.memories == wanted.memories


# --- going on ----------------------------------------------------------------------------------------

FEW = ("delta_without_snapshots", "nested_that_remember")


def on_each_store(*names: str, elsewhere: Sequence[str] = FEW) -> Any:
    """Run a test with scripts: all on the memory store, fewer in a file, one less on servers."""
    fewer = {"memory": names, "sqlite": elsewhere}
    cases = [(kind, name) for kind in STORES for name in fewer.get(kind, elsewhere[:-1])]
    return pytest.mark.parametrize(("store_kind", "name"), cases, indirect=["store_kind"])


every_script = on_each_store(*SCRIPTS, elsewhere=[*FEW, "parallel_questions"])
few_scripts = on_each_store(*FEW, "subgraph_that_remembers_called_in_a_loop")


@pytest.fixture
def engine(saver: Any) -> Any:
    return CheckpointEngine(saver).sync


def rewound(engine: Any, source: Source, point: str, thread_id: str, target: str | None = None) -> str:
    """Rewind to a point of a source, or to a copy of it, and return the new head's id."""
    made = engine.rewind(target or point, thread_id)
    player = source.player(thread_id, point)
    state = player.state()
    assert id_of(state.config) == made.checkpoint.metadata.checkpoint_id
    assert state.interrupts == ()
    assert made.can_replay == bool(state.next)
    assert state.values == source.graph.get_state(thread(source.thread_id, point)).values
    return id_of(state.config)


@every_script
def test_rewound_runs_on_as_if_it_had_never_gone_further(name, saver, engine):
    source = Source(name, saver)
    for point in shuffled(source.points):
        head = rewound(engine, source, point, source.thread_id)
        compare(went_on(source.player(source.thread_id, point), head), source.expected(point))
    after = dump(saver, source.thread_id)
    assert {key: after[key] for key in source.stored} == source.stored


@every_script
def test_branch_runs_on_as_if_its_source_had_never_gone_further(name, saver, engine):
    source = Source(name, saver)
    history = list(source.graph.get_state_history(source.config))
    for point in source.points:
        branch = engine.branch(point, point, source.thread_id)
        compare(went_on(source.player(branch, point), point), source.expected(point))
    assert dump(saver, source.thread_id) == source.stored
    assert list(source.graph.get_state_history(source.config)) == history


@every_script
def test_branch_at_the_head_takes_along_what_is_finished(name, saver, engine):
    source = Player(name, saver)
    branches: list[Player] = []
    while source.step(OLD):
        branch = engine.branch(source.stops[-1].head, f"stop {len(branches)}", source.thread_id)
        branches.append(Player(name, saver, branch, source.turn))
        ours, theirs = (p.graph.get_state(p.config, subgraphs=True) for p in (source, branches[-1]))
        assert plain(theirs) == plain(ours)
        assert [one.id for one in theirs.interrupts] == [one.id for one in ours.interrupts]
    for number, player in enumerate(branches):
        compare(went_on(player), expected_after_stop(name, number))


@few_scripts
def test_copies_of_copies_and_branches_of_branches(name, saver, engine):
    source = Source(name, saver)
    for before, point in zip(source.points[0::4], source.points[1::4], strict=False):
        once = rewound(engine, source, point, source.thread_id)
        twice = rewound(engine, source, point, source.thread_id, once)
        branch = engine.branch(twice, f"of {twice}", source.thread_id)
        compare(went_on(source.player(source.thread_id, point), twice), source.expected(point))
        compare(went_on(source.player(branch, point), twice), source.expected(point))
        # Now all three are no leaves any more.
        second = engine.branch(twice, "second", branch)
        third = engine.branch(twice, "third", second)
        compare(went_on(source.player(third, point), twice), source.expected(point))
        head = rewound(engine, source, point, third, twice)
        compare(went_on(source.player(third, point), head), source.expected(point))
        head = rewound(engine, source, before, second)
        compare(went_on(source.player(second, before), head), source.expected(before))
    after = dump(saver, source.thread_id)
    assert {key: after[key] for key in source.stored} == source.stored


@few_scripts
def test_a_branch_goes_back_to_before_it_began(name, saver, engine):
    source = Source(name, saver)
    branch = engine.branch(source.points[-4], "late", source.thread_id)
    went_on(source.player(branch, source.points[-4]))
    for point in shuffled(source.points[:-3]):
        head = rewound(engine, source, point, branch)
        compare(went_on(source.player(branch, point), head), source.expected(point))
        other = engine.branch(point, point, branch)
        compare(went_on(source.player(other, point), point), source.expected(point))
    assert dump(saver, source.thread_id) == source.stored


@few_scripts
def test_a_waiting_branch_asks_again_when_rewound_to_where_it_began(name, saver, engine):
    source = Player(name, saver)
    while source.turn < source.script.turns:
        source.step(OLD)
    point = source.stops[-1].head
    wanted = expected(name, ids(source).index(point))
    branch = Player(name, saver, engine.branch(point, "b", source.thread_id), source.turn)
    source.finish(OLD)
    # What it needs is its own.
    saver.delete_thread(source.thread_id)
    assert branch.state().interrupts
    head = engine.rewind(point, branch.thread_id).checkpoint.metadata.checkpoint_id
    assert branch.state().interrupts == ()
    same_run(went_on(branch, head), wanted)


@pytest.mark.parametrize("name", ["questions_in_a_chain", "parallel_questions", "delta_with_snapshots"])
def test_an_answer_may_come_right_after_a_rewind(name, saver, engine):
    source = Source(name, saver)
    asking = next(point for point in source.points if source.metadata(point)["step"] == 1)
    wanted = source.expected(asking).stops[-1]["state"]["values"]
    engine.rewind(asking, source.thread_id)
    if name == "parallel_questions":
        # By ids, which come with asking.
        source.graph.invoke(None, source.config)
        pending = source.state().interrupts
        resume: Any = {one.id: f"{NEW} {one.value}" for one in pending}
    else:
        resume = f"{NEW} {'1?' if name == 'questions_in_a_chain' else 'x?'}"
    source.graph.invoke(Command(resume=resume), source.config)
    source.turn = source.turn_of[asking]
    source.finish(NEW)
    assert view(source.state().values) == wanted


@pytest.mark.parametrize("name", ["questions_in_a_chain", "delta_without_snapshots", "sends_with_questions"])
def test_studio_s_copy_of_an_ancestor_is_the_branch_s(name, saver, engine):
    source = Source(name, saver)
    branch = engine.branch(source.points[-2], "b", source.thread_id)
    for point in source.points[:-1]:
        player = source.player(branch, point)
        made = player.graph.update_state(thread(branch, point), None, as_node="__copy__")
        assert made["configurable"]["thread_id"] == branch
        player.finish(NEW)
        assert player.stops[-1].noted["result"] == source.expected(point).stops[-1]["result"]
    assert dump(saver, source.thread_id) == source.stored


@few_scripts
def test_going_on_from_the_new_head_s_own_id(name, saver, engine):
    """LangGraph looks for a subgraph's checkpoint from before the one that the run names."""
    source = Source(name, saver)
    for point in source.points:
        head = rewound(engine, source, point, source.thread_id)
        player = source.player(source.thread_id, point)
        if player.state().next:
            player.step(NEW, thread(source.thread_id, head))
        player.finish(NEW)
        wanted = source.expected(point).stops
        assert [stop.noted["result"] for stop in player.stops][-1:] == [stop["result"] for stop in wanted][
            -1:
        ]


@pytest.mark.parametrize("name", ["subgraph_that_remembers_exit"])
def test_in_durability_exit_the_new_head_s_own_id_gives_a_subgraph_its_input_once_more(name, saver, engine):
    source = Source(name, saver)
    head = rewound(engine, source, source.points[0], source.thread_id)
    player = source.player(source.thread_id, source.points[0])
    player.step(NEW, thread(source.thread_id, head))
    [memory, *_] = player.memories()["sub"]
    assert memory["log"].count("in turn 0") == memory["log"].count("in turn 1") == 1
    # So it is the thread's own config that goes on from there.
    head = rewound(engine, source, source.points[0], source.thread_id)
    compare(
        went_on(source.player(source.thread_id, source.points[0]), head), source.expected(source.points[0])
    )


# --- what is told, and what is discarded -------------------------------------------------------------


def test_what_a_rewind_tells(saver, engine):
    source = Source("questions_in_a_chain", saver)
    points = source.points
    made = engine.rewind(points[3], source.thread_id)
    assert (made.thread_id, made.rewind_depth) == (source.thread_id, len(points) - 4)
    assert (made.snapshot_count_before, made.can_replay) == (3, True)
    assert made.checkpoint.metadata.checkpoint_id > points[-1]
    assert made.checkpoint.metadata.parent_checkpoint_id == points[2]
    assert made.checkpoint.metadata.step == source.metadata(points[3])["step"]
    assert engine.rewind(points[-1], source.thread_id).can_replay is False
    assert [one.checkpoint_id for one in engine.list_time_travel_points(source.thread_id)][1:] == points[
        -2::-1
    ]


def test_steps_are_looked_for_on_the_current_line(saver, engine):
    source = Source("questions_in_a_chain", saver)
    found = engine.time_travel_to_step(source.thread_id, 2)
    assert found.checkpoint.metadata.step == 2
    went_on(source.player(source.thread_id, source.points[3]))
    line = [one.checkpoint_id for one in engine.list_time_travel_points(source.thread_id)]
    again = engine.time_travel_to_step(source.thread_id, 4)
    assert (
        saver.get_tuple(thread(source.thread_id, again.checkpoint.metadata.checkpoint_id)).metadata[
            "rewound_from"
        ]
        in line
    )
    assert engine.time_travel_to_step(source.thread_id, 99).rewind_depth == 0
    assert engine.time_travel_to_step(source.thread_id, -2) is None


def test_a_thread_holds_what_is_its_own_and_what_was_before_it(saver, engine):
    source = Source("questions_in_a_chain", saver)
    branch = engine.branch(source.points[2], "b", source.thread_id)
    for point in source.points[:3]:
        assert engine.get(point, branch).metadata.checkpoint_id == point
    for call in (engine.get, engine.rewind, lambda one, at: engine.branch(one, "c", at)):
        for point, thread_id in ((source.points[3], branch), ("nothing", source.thread_id)):
            with pytest.raises(CheckpointNotFoundError):
                call(point, thread_id)
    with pytest.raises(AmbiguousCheckpoint):
        engine.rewind(source.points[2])
    assert engine.rewind(source.points[3]).thread_id == source.thread_id


def roots_of(stored: dict[tuple[str, str, str], Any], thread_id: str) -> set[str]:
    return {key[2] for key in stored if key[:2] == (thread_id, "")}


@few_scripts
def test_discarding_takes_the_targets_descendants_on_its_line_and_nothing_else(name, saver, engine):
    source = Source(name, saver)
    target, forked, late = source.points[2], source.points[4], source.points[-3]
    branches = {}
    for point in (late, source.points[3]):
        branches[point] = engine.branch(point, point, source.thread_id)
        went_on(source.player(branches[point], point))
    waiting = engine.branch(source.points[3], "of what goes", source.thread_id)
    Source(name, saver)
    # From here on there are two lines, which part below `forked`.
    engine.rewind(forked, source.thread_id)
    went_on(source.player(source.thread_id, forked))
    line = {one.checkpoint_id for one in engine.list_time_travel_points(source.thread_id)}
    descendants = line - set(source.points[:3])
    assert source.points[3] in descendants
    engine.tag(target, "target", source.thread_id)
    engine.tag(source.points[3], "goes", source.thread_id)
    before = dump(saver)
    made = engine.rewind(target, source.thread_id, discard_later=True)
    assert made.rewind_depth == len(descendants)
    after = dump(saver)
    gone = before.keys() - after.keys()
    assert {key[2] for key in gone if not key[1]} == descendants
    assert {key[0] for key in gone} == {source.thread_id}
    assert {before[key][1]["parents"][""] for key in gone if key[1]} <= descendants
    unchanged(before, after)
    assert engine.list_tags(source.thread_id) == {"target": target}
    # All that is left can be gone on from.
    for point in (target, forked, late):
        head = rewound(engine, source, point, source.thread_id)
        same_run(went_on(source.player(source.thread_id, point), head), source.expected(point))
        branch = engine.branch(point, f"then {point}", source.thread_id)
        same_run(went_on(source.player(branch, point), point), source.expected(point))
    for point, branch in branches.items():
        head = rewound_branch(engine, point, branch)
        same_run(went_on(source.player(branch, point), head), source.expected(point))
    same_run(went_on(source.player(waiting, source.points[3])), source.expected(source.points[3]))


def rewound_branch(engine: Any, point: str, branch: str) -> str:
    return engine.rewind(point, branch).checkpoint.metadata.checkpoint_id


def same_run(got: Outcome, wanted: Outcome) -> None:
    """Compare what happened from now on; of the line before, some may be gone."""
    assert [stop["result"] for stop in got.stops] == [stop["result"] for stop in wanted.stops]
    assert got.ran == wanted.ran


def unchanged(before: dict[Any, Any], after: dict[Any, Any]) -> None:
    """Check that what is left reads as before, and has the same parent if that is left."""
    for key in before.keys() & after.keys():
        assert after[key][:2] == before[key][:2]
        assert after[key][3] == before[key][3]
        parent = before[key][2]
        if parent != after[key][2]:
            assert tuple(parent["configurable"].values()) not in after


@few_scripts
def test_nothing_is_discarded_where_the_target_is_on_another_line(name, saver, engine):
    source = Source(name, saver)
    engine.rewind(source.points[2], source.thread_id)
    went_on(source.player(source.thread_id, source.points[2]))
    before = dump(saver)
    engine.rewind(source.points[-2], source.thread_id, discard_later=True)
    after = dump(saver)
    assert {key: after[key] for key in before} == before


@few_scripts
def test_a_branch_where_all_that_came_later_was_discarded_begins_anew(name, saver, engine):
    source = Source(name, saver)
    for point in (source.points[-3], source.points[2]):
        engine.rewind(point, source.thread_id, discard_later=True)
        branch = engine.branch(point, point, source.thread_id)
        compare(went_on(source.player(branch, point), point), source.expected(point))


@few_scripts
def test_discarding_in_a_branch_leaves_its_source_alone(name, saver, engine):
    source = Source(name, saver)
    point = source.points[-4]
    branch = engine.branch(point, "b", source.thread_id)
    went_on(source.player(branch, point))
    engine.rewind(source.points[1], branch, discard_later=True)
    assert roots_of(dump(saver, branch), branch) == {engine.get_latest(branch).metadata.checkpoint_id}
    same_run(went_on(source.player(branch, source.points[1])), source.expected(source.points[1]))
    assert dump(saver, source.thread_id) == source.stored


@few_scripts
def test_deleting_before_a_step_keeps_what_is_tagged_and_the_head(name, saver, engine):
    source = Source(name, saver)
    engine.tag(source.points[1], "kept", source.thread_id)
    branch = engine.branch(source.points[2], "b", source.thread_id)
    before = dump(saver)
    late = source.points[-4]
    step = source.metadata(late)["step"]
    earlier = [one for one in source.points if source.metadata(one)["step"] < step]
    assert engine.delete_before(source.thread_id, step) == len(earlier) - 1
    after = dump(saver)
    assert roots_of(before, source.thread_id) - roots_of(after, source.thread_id) == {*earlier} - {
        source.points[1]
    }
    unchanged(before, after)
    for point in (late, source.points[1]):
        head = rewound(engine, source, point, source.thread_id)
        same_run(went_on(source.player(source.thread_id, point), head), source.expected(point))
    same_run(went_on(source.player(branch, source.points[2])), source.expected(source.points[2]))
    assert engine.delete_before(source.thread_id, 10**6) > 0
    assert len(roots_of(dump(saver), source.thread_id)) == 2


# --- living and dying together -----------------------------------------------------------------------


@script()
def large_values(bench: Bench) -> Any:
    builder = chain(a=bench.say("a" * 90_000), ask=bench.ask("?"), sub=inner(bench, True), z=bench.tell("z"))
    return builder.compile(checkpointer=bench.saver)


def rows_left(place: Place, saver: Any) -> int:
    """Count what is stored, round the saver."""
    if isinstance(place, SqlitePlace):
        with closing(sqlite3.connect(place.folder / "agents.db")) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            counts = [
                connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for (name,) in tables
                if name.startswith("harness_") and name != "harness_schema"
            ]
        assert len(counts) >= 6
        return sum(counts)
    if isinstance(place, PostgresPlace):
        schema = schema_of(place.url)
        return sum(
            place.server.execute(f"SELECT count(*) FROM {schema}.harness_{table}")[0][0]
            for table in ("thread", "checkpoint", "write", "part", "branch", "tag")
        )
    if isinstance(place, RedisPlace):
        # The version of the format stays, and for some seconds a fence where a thread was.
        left = [key for key in place.server.keys(place.prefix) if key.split(b":")[-1] not in STAYS]
        return len(left)
    backend = saver.backend
    return len(backend._threads) + len(backend._branches) + len(backend._parts)


STAYS = (b"version", b"m")


ORDERS = list(itertools.permutations(range(4)))


@pytest.mark.parametrize(
    ("store_kind", "order"),
    [(kind, order) for kind in STORES for order in ORDERS[:: 3 if kind in ("memory", "sqlite") else 8]],
    indirect=["store_kind"],
    ids=str,
)
@pytest.mark.parametrize("name", ["large_values", "delta_without_snapshots"])
def test_whatever_goes_first_the_others_stay_whole(name, order, place, saver, engine):
    source = Source(name, saver)
    point, later = source.points[3], source.points[-2]
    first = engine.branch(point, "first", source.thread_id)
    went_on(source.player(first, point))
    second = engine.branch(point, "second", first)
    third = engine.branch(later, "third", source.thread_id)
    engine.rewind(later, third)
    threads = [source.thread_id, first, second, third]
    for one in threads:
        engine.tag(engine.get_latest(one).metadata.checkpoint_id, "head", one)
    lines = {one: states(source, one) for one in threads}
    for number in order:
        before = dump(saver)
        saver.delete_thread(threads[number])
        after = dump(saver)
        assert after.keys() == {key for key in before if key[0] != threads[number]}
        unchanged(before, after)
        del lines[threads[number]]
        for one, known in lines.items():
            assert states(source, one) == known
    assert rows_left(place, saver) == 0


def states(source: Source, thread_id: str) -> list[Any]:
    """Return what the graph's states of a thread are, `DeltaChannel`s put together."""
    found = source.graph.get_state_history(thread(thread_id))
    return [(one.config, one.values, one.next, one.tasks) for one in found]


@few_scripts
def test_a_branch_outlives_its_source(name, saver, engine):
    source = Source(name, saver)
    branches = {point: engine.branch(point, point, source.thread_id) for point in source.points[::2]}
    saver.delete_thread(source.thread_id)
    for point, branch in branches.items():
        again = engine.branch(point, "again", branch)
        same_run(went_on(source.player(branch, point)), source.expected(point))
        head = rewound_branch(engine, point, branch)
        same_run(went_on(source.player(branch, point), head), source.expected(point))
        same_run(went_on(source.player(again, point)), source.expected(point))


@few_scripts
@pytest.mark.parametrize("pruned", ["source", "branch"])
def test_pruning_leaves_heads_whole(name, pruned, saver, engine):
    source = Source(name, saver)
    point = source.points[-3]
    branch = engine.branch(point, "b", source.thread_id)
    kept = dump(saver, branch if pruned == "source" else source.thread_id)
    saver.prune([source.thread_id if pruned == "source" else branch])
    unchanged(kept, dump(saver))
    heads = {source.thread_id: source.points[-1], branch: point}
    for thread_id, head in heads.items():
        made = rewound_branch(engine, head, thread_id)
        assert view(source.graph.get_state(thread(thread_id)).values) == source.values[head]
        same_run(went_on(source.player(thread_id, head), made), source.expected(head))


@few_scripts
def test_a_copy_of_a_branch_is_a_thread_of_its_own(name, place, saver, engine):
    source = Source(name, saver)
    point = source.points[-3]
    branch = engine.branch(point, "b", source.thread_id)
    copied = str(uuid.uuid4())
    saver.copy_thread(branch, copied)
    assert engine.list_branches(source.thread_id)[0].thread_id == branch
    assert len(engine.list_branches(source.thread_id)) == 1
    ours, theirs = (dump(saver, one) for one in (branch, copied))
    assert [key[1:] for key in theirs] == [key[1:] for key in ours]
    for mine, yours in zip(ours.values(), theirs.values(), strict=True):
        assert (yours[0], view(yours[1]), yours[3]) == (mine[0], view(mine[1]), mine[3])
    for one in (source.thread_id, branch):
        saver.delete_thread(one)
    assert view(source.graph.get_state(thread(copied)).values) == source.values[point]
    head = rewound_branch(engine, point, copied)
    same_run(went_on(source.player(copied, point), head), source.expected(point))
    saver.delete_thread(copied)
    assert rows_left(place, saver) == 0


@pytest.mark.parametrize(
    "stored",
    ["ffffffff-0000-6000-8000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "zz", "é\U0010ffff"],
)
def test_new_heads_come_last_whatever_is_stored(stored, saver, engine):
    source = Source("questions_in_a_chain", saver)
    at = saver.get_tuple(source.config)
    checkpoint = {**at.checkpoint, "id": stored}
    saver.put(at.config, checkpoint, {**at.metadata, "step": 99}, {})
    inside = {**thread(source.thread_id, ns="memory")}
    saver.put(inside, {**checkpoint, "id": stored + "x"}, {"step": 0, "parents": {"": stored}}, {})
    for point in (source.points[2], stored, source.points[2]):
        last = engine.get_latest(source.thread_id).metadata.checkpoint_id
        made = engine.rewind(point, source.thread_id).checkpoint.metadata.checkpoint_id
        assert made.encode() > last.encode()
        assert id_of(saver.get_tuple(source.config).config) == made
        assert saver.get_tuple(inside).config["configurable"]["checkpoint_id"] > stored + "x"


def test_a_branch_does_not_expire_with_its_source(place, make_saver):
    saver = make_saver(ttl_seconds=100)
    clock = Clock()
    saver.backend.clock = clock
    engine = CheckpointEngine(saver).sync
    source = Source("delta_without_snapshots", saver)
    point = source.points[-3]
    clock.now += 60
    branch = engine.branch(point, "b", source.thread_id)
    kept = dump(saver, branch)
    clock.now += 60
    assert saver.get_tuple(source.config) is None
    for _ in range(2):
        left = dump(saver)
        assert left.keys() == kept.keys()
        unchanged(kept, left)
        assert view(source.graph.get_state(thread(branch)).values) == source.values[point]
        saver.run_sync(saver._core.sweep())
    made = rewound_branch(engine, point, branch)
    same_run(went_on(source.player(branch, point), made), source.expected(point))
    clock.now += 101
    for _ in range(2):
        # What the first leaves in Redis' indexes, the next finds stale.
        saver.run_sync(saver._core.sweep())
    assert rows_left(place, saver) == 0


# --- doors and processes -----------------------------------------------------------------------------


def test_within_a_running_event_loop(saver, engine):
    source = Source("questions_in_a_chain", saver)
    point = source.points[3]

    async def both() -> list[str]:
        made = [engine.rewind(point, source.thread_id).checkpoint.metadata.checkpoint_id]
        made.append(engine.branch(point, "sync", source.thread_id))
        other = CheckpointEngine(saver)
        made.append((await other.rewind(point, source.thread_id)).checkpoint.metadata.checkpoint_id)
        made.append(await other.branch(point, "async", source.thread_id))
        return made

    first, branch, second, other = asyncio.run(both())
    assert source.points[-1] < first < second
    for thread_id, head in ((source.thread_id, second), (branch, point), (other, point)):
        compare(went_on(source.player(thread_id, point), head), source.expected(point))


def test_engines_at_once_make_one_line_each(saver):
    source = Source("questions_in_a_chain", saver)

    async def many() -> list[Any]:
        engine = CheckpointEngine(saver)
        calls = [engine.rewind(point, source.thread_id) for point in source.points[:6]]
        return await asyncio.gather(
            *calls, *(engine.branch(point, point, source.thread_id) for point in source.points)
        )

    made = asyncio.run(many())
    heads = [one.checkpoint.metadata.checkpoint_id for one in made[:6]]
    assert len({*heads, *source.points}) == 6 + len(source.points)
    assert id_of(source.state().config) == max(heads)
    after = dump(saver, source.thread_id)
    assert {key: after[key] for key in source.stored} == source.stored


OTHER = """
import sys
from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine.engine import CheckpointEngine

url, thread_id, point = sys.argv[1:]
with HarnessCheckpointer.from_conn_string(url) as saver:
    engine = CheckpointEngine(saver).sync
    for line in sys.stdin:
        if line.strip() == "rewind":
            print(engine.rewind(point, thread_id).checkpoint.metadata.checkpoint_id, flush=True)
        elif line.strip() == "branch":
            print(engine.branch(point, "theirs", thread_id), flush=True)
        else:
            print(engine.delete_thread(thread_id, branches=True), flush=True)
"""


@pytest.mark.parametrize("store_kind", [kind for kind in STORES if kind != "memory"], indirect=True)
def test_two_processes_agree(place, saver, engine):
    source = Source("delta_without_snapshots", saver)
    point = source.points[3]
    command = [sys.executable, "-c", OTHER, place.url, source.thread_id, point]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def tell(word: str) -> str:
            process.stdin.write(word + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        ours = engine.rewind(point, source.thread_id).checkpoint.metadata.checkpoint_id
        theirs = tell("rewind")
        assert theirs > ours
        assert engine.get_latest(source.thread_id).metadata.checkpoint_id == theirs
        compare(went_on(source.player(source.thread_id, point), theirs), source.expected(point))
        branch = tell("branch")
        assert [one.thread_id for one in engine.list_branches(source.thread_id)] == [branch]
        with pytest.raises(BranchExistsError):
            engine.branch(point, "theirs", source.thread_id)
        compare(went_on(source.player(branch, point), point), source.expected(point))
        count = len(dump(saver))
        assert int(tell("delete")) == count
        assert dump(saver) == {}
        assert rows_left(place, saver) == 0
        process.stdin.close()
