"""A run that is deleted takes along what it wrote to the checkpoint of another that it began at."""

from __future__ import annotations

from operator import add
from typing import Annotated, Any

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from langgraph_harness_saver.engine import CheckpointEngine
from langgraph_harness_saver.rows import CheckpointKey, WriteRow
from langgraph_harness_saver.runs import MAX_RUNS, Runs
from langgraph_harness_saver.stores.memory import MemoryStore


def extended(value: list[Any], writes: list[list[Any]]) -> list[Any]:
    return [*value, *(item for write in writes for item in write)]


class Log(TypedDict, total=False):
    log: Annotated[list[str], add]
    found: Annotated[list[str], DeltaChannel(extended)]


def ask(state: Log) -> dict[str, Any]:
    answers = [interrupt("one?"), interrupt("two?")]
    return {"log": answers, "found": answers}


def say(name: str) -> Any:
    return lambda state: {"log": [name], "found": [name]}


@pytest.fixture
def graph(saver: Any) -> Any:
    inner = StateGraph(Log).add_node("before", say("before")).add_node("ask", ask)
    inner = inner.add_edge(START, "before").add_edge("before", "ask")
    builder = StateGraph(Log).add_node("inner", inner.compile()).add_node("beside", say("beside"))
    builder.add_node("end", say("end")).add_edge(START, "inner").add_edge(START, "beside")
    return builder.add_edge(["inner", "beside"], "end").compile(checkpointer=saver)


def place(run_id: str | None = None) -> Any:
    return {"configurable": {"thread_id": "t"}, "metadata": {"run_id": run_id} if run_id else {}}


def go(graph: Any, value: Any, run_id: str) -> Any:
    return graph.invoke(value, place(run_id), durability="sync")


def all_of(saver: Any) -> list[Any]:
    found = saver.list({"configurable": {"thread_id": "t"}})
    return [(at.config, at.parent_config, at.metadata, at.checkpoint, at.pending_writes) for at in found]


def asked(graph: Any) -> list[str]:
    return [one.value for one in graph.get_state(place()).interrupts]


def test_an_answer_goes_with_the_run_that_gave_it(saver, graph):
    go(graph, {"log": ["in"]}, "asks")
    before = all_of(saver)
    go(graph, Command(resume="old"), "answers")
    assert asked(graph) == ["two?"]
    saver.delete_for_runs(["answers"])
    assert all_of(saver) == before
    go(graph, Command(resume="new"), "answers anew")
    halfway = all_of(saver)
    go(graph, Command(resume="old"), "ends")
    assert graph.get_state(place()).next == ()
    saver.delete_for_runs(["ends"])
    assert all_of(saver) == halfway
    done = go(graph, Command(resume="too"), "ends anew")
    assert [one for one in done["log"] if one in ("old", "new", "too")] == ["new", "too"]
    saver.delete_for_runs(["answers anew"])
    assert graph.get_state(place()).values == done


def test_what_other_runs_have_built_on_stays(saver, graph):
    go(graph, {"log": ["in"]}, "asks")
    go(graph, Command(resume="one"), "answers")
    go(graph, Command(resume="two"), "ends")
    go(graph, {"log": ["more"]}, "goes on")
    before = graph.get_state(place())
    saver.delete_for_runs(["answers", "ends"])
    after = graph.get_state(place())
    assert (after.values, after.next, after.tasks) == (before.values, before.next, before.tasks)
    assert [one for one in after.values["found"] if one in ("one", "two")] == ["one", "two"]


def test_a_branch_of_a_deleted_run_keeps_what_it_was(saver, graph):
    go(graph, {"log": ["in"]}, "asks")
    go(graph, Command(resume="one"), "answers")
    done = go(graph, Command(resume="two"), "ends")
    head = graph.get_state(place()).config["configurable"]["checkpoint_id"]
    branch = CheckpointEngine(saver, graph).sync.branch(head, "kept", "t")
    saver.delete_for_runs(["ends"])
    assert graph.get_state({"configurable": {"thread_id": branch}}).values == done


async def test_so_many_runs_are_remembered():
    runs, key = Runs(), CheckpointKey("t", "", "1")
    for run_id in ("old", "new"):
        await runs.writes(run_id, key, [WriteRow("task", "", 0, b"body")], MemoryStore())
    for number in range(MAX_RUNS - 1):
        runs.made(str(number), key)
    assert (runs.threads(["old"]), runs.threads(["new"])) == (set(), {"t"})
    runs.forget(["new"])
    assert runs.threads(["new"]) == set()
