"""Merges through stores, of graphs that have run and run on: what has been merged before counts once."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from helpers import thread
from langchain_core.messages import AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from langgraph_harness_saver import (
    CheckpointEngine,
    HarnessCheckpointer,
    HeadMovedError,
    InvalidConfigError,
    MergeConflict,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def extend(value: list[str] | None, writes: list[list[str]]) -> list[str]:
    return [*(value or ()), *(item for write in writes for item in write)]


class State(TypedDict, total=False):
    total: Annotated[int, operator.add]
    words: Annotated[list[str], operator.add]
    messages: Annotated[list[AnyMessage], add_messages]
    delta: Annotated[list[str], DeltaChannel(extend)]
    choice: str


class Repo:
    """A graph that keeps what it is told, and branches of its one thread, `main`, to merge."""

    def __init__(self, saver: HarnessCheckpointer) -> None:
        builder = StateGraph(State).add_node("work", lambda _: {}).add_edge(START, "work")
        self.graph = builder.compile(checkpointer=saver)
        self.engine = CheckpointEngine(saver, self.graph).sync
        self.add("main", 1, "base")
        self.add("main", 2)

    def add(self, name: str, number: int, word: str | None = None, **more: Any) -> None:
        word = word or f"w{number}"
        said = [HumanMessage(word, id=word)]
        told = {"total": number, "words": [word], "messages": said, "delta": [word], **more}
        self.graph.invoke(told, thread(name))

    def branch(self, name: str, source: str = "main") -> str:
        made: str = self.engine.branch(self.head(source), name, source)
        return made

    def head(self, name: str) -> str:
        return str(self.engine.get_latest(name).metadata.checkpoint_id)

    def told(self, name: str) -> tuple[int, str, list[str], str]:
        """Return the sum, the words, what was said, and the delta channel's words."""
        values = self.graph.get_state(thread(name)).values
        said = [message.id for message in values["messages"]]
        return values["total"], " ".join(values["words"]), said, " ".join(values["delta"])


@pytest.fixture
def repo(saver: HarnessCheckpointer) -> Repo:
    return Repo(saver)


@pytest.fixture
def memory() -> Repo:
    return Repo(HarnessCheckpointer())


def test_a_merged_head_runs_on_and_merges_again(repo: Repo) -> None:
    branch = repo.branch("b")
    repo.add(branch, 10)
    repo.add("main", 100, messages=[RemoveMessage(id="w2"), HumanMessage("w100", id="w100")])
    result = repo.engine.merge_branch(branch, "main")
    assert set(result.channels.values()) <= {"replayed", "equal", "ours", "theirs"}
    words = "base w2 w100 w10"
    assert repo.told("main") == (113, words, ["base", "w100", "w10"], words)
    repo.add("main", 1000)
    repo.add(branch, 10_000)
    repo.engine.merge_branch(branch, "main")
    words += " w1000 w10000"
    assert repo.told("main") == (11_113, words, ["base", "w100", "w10", "w1000", "w10000"], words)
    assert repo.told(branch)[:2] == (10_013, "base w2 w10 w10000")
    with pytest.raises(InvalidConfigError, match="nothing that thread 'main' hasn't"):
        repo.engine.merge_branch(branch, "main")


def test_a_branch_takes_what_its_source_has_and_is_merged(repo: Repo) -> None:
    branch = repo.branch("b")
    repo.add(branch, 10)
    repo.add("main", 100, choice="main's")
    assert not repo.engine.merge_branch("main", branch).fast_forward
    words = "base w2 w10 w100"
    assert repo.told(branch)[::3] == (113, words)
    back = repo.engine.merge_branch(branch, "main")
    assert back.fast_forward
    assert repo.told("main")[:2] == (113, words)
    # It hasn't moved since it was merged, whoever has.
    repo.add("main", 1000)
    assert repo.engine.merge_branch("main", branch).fast_forward
    assert repo.told(branch)[:2] == (1113, words + " w1000")


def test_a_branch_that_is_taken_whole_brings_what_its_subgraphs_remember(saver: HarnessCheckpointer) -> None:
    class Inner(TypedDict, total=False):
        words: list[str]
        seen: Annotated[list[int], operator.add]

    class Outer(TypedDict, total=False):
        words: list[str]
        seen: list[int]

    def remember(state: Inner) -> Inner:
        return {"seen": [len(state.get("seen", ()))]}

    inner = StateGraph(Inner).add_sequence([("remember", remember)]).add_edge(START, "remember")
    middle = StateGraph(Inner).add_node("inner", inner.compile(checkpointer=True)).add_edge(START, "inner")
    builder = StateGraph(Outer).add_node("middle", middle.compile(checkpointer=True))
    graph = builder.add_edge(START, "middle").compile(checkpointer=saver)
    engine = CheckpointEngine(saver, graph).sync

    def run(name: str) -> list[int]:
        return list(graph.invoke({"words": []}, thread(name))["seen"])

    run("main")
    branch = engine.branch(engine.get_latest("main").metadata.checkpoint_id, "b", "main")
    run(branch)
    merged = engine.merge_branch(branch, "main")
    assert merged.fast_forward
    went_on = run("main")
    assert went_on == run(branch)
    engine.delete_thread(branch)
    # The merged head, whatever has come of it.
    engine.rewind(merged.checkpoint_id, "main")
    assert run("main") == went_on
    engine.rewind(merged.parents[0], "main")
    assert len(run("main")) < len(went_on)
    engine.rewind(merged.checkpoint_id, "main")
    saver.prune(["main"], strategy="keep_latest")
    assert run("main") == went_on


def test_what_came_by_way_of_the_other_counts_once(memory: Repo) -> None:
    branch = memory.branch("b")
    memory.add(branch, 10)
    memory.add("main", 100)
    memory.engine.merge_branch("main", branch)
    memory.add("main", 1000)
    result = memory.engine.merge_branch(branch, "main", "ours")
    assert memory.told("main")[:3:2] == (1113, ["base", "w2", "w10", "w100", "w1000"])
    # A list that was put together in another order can't be told from one that was changed.
    assert [conflict.channel for conflict in result.resolved] == ["words", "delta"]


def test_what_came_by_way_of_a_third_counts_once(memory: Repo) -> None:
    one, two = memory.branch("one"), memory.branch("two")
    memory.add(one, 10)
    memory.add(two, 100)
    memory.engine.merge_branch(one, two)
    memory.engine.merge_branch(two, "main")
    memory.add(one, 1000)
    memory.engine.merge_branch(one, "main")
    words = "base w2 w100 w10 w1000"
    assert memory.told("main")[::3] == (1113, words)


def test_a_rewound_copy_is_what_it_is_a_copy_of(memory: Repo) -> None:
    branch = memory.branch("b")
    memory.add(branch, 10)
    memory.add("main", 100)
    [record] = memory.engine.list_branches("main")
    copy = memory.engine.rewind(record.checkpoint_id, "main").checkpoint.metadata.checkpoint_id
    memory.engine.rewind(copy, "main")
    assert memory.engine.merge_branch(branch, "main").fast_forward
    assert memory.told("main")[:2] == (13, "base w2 w10")


def test_what_was_merged_and_deleted_does_not_count_twice(memory: Repo) -> None:
    one, two = memory.branch("one"), memory.branch("two")
    memory.add(one, 10)
    memory.engine.merge_branch(one, two)
    memory.engine.merge_branch(one, "main")
    memory.engine.delete_thread(one)
    memory.add(two, 100)
    memory.add("main", 1000)
    with pytest.raises(MergeConflict, match="total: both sides changed it"):
        memory.engine.merge_branch(two, "main")


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_thread_that_moves_while_it_is_merged_into_loses_nothing(
    fast_forward: bool, memory: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = memory.branch("b")
    memory.add(branch, 10)
    if not fast_forward:
        memory.add("main", 100)
    store = memory.graph.checkpointer._core.store
    graft = store.graft

    async def late(*args: Any) -> Any:
        monkeypatch.undo()
        memory.add("main", 1000)
        return await graft(*args)

    monkeypatch.setattr(store, "graft", late)
    with pytest.raises(HeadMovedError, match="another run has written"):
        memory.engine.merge_branch(branch, "main")
    before = memory.told("main")[0]
    assert before == (1003 if fast_forward else 1103)
    memory.engine.merge_branch(branch, "main")
    assert memory.told("main")[0] == before + 10


BAD: dict[str, Callable[[Repo, str], Any]] = {
    "no strategy, nothing to decide": lambda repo, branch: repo.engine.merge_branch(branch, "main", "mine"),
    "None": lambda repo, branch: repo.engine.merge_branch(branch, "main", None),
    "itself": lambda repo, branch: repo.engine.merge_branch("main", "main"),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_what_is_no_merge_is_refused(call: Any, memory: Repo) -> None:
    branch = memory.branch("b")
    memory.add(branch, 10)
    with pytest.raises(InvalidConfigError):
        call(memory, branch)
    assert memory.told("main")[0] == 3


def test_a_conflict_writes_nothing(memory: Repo) -> None:
    branch = memory.branch("b")
    memory.add(branch, 10, choice="theirs")
    memory.add("main", 100, choice="ours")
    before = memory.head("main")
    with pytest.raises(MergeConflict) as caught:
        memory.engine.merge_branch(branch, "main")
    [conflict] = caught.value.conflicts
    assert (conflict.channel, conflict.ours, conflict.theirs) == ("choice", "ours", "theirs")
    assert memory.head("main") == before
