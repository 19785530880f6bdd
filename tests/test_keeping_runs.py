"""Runs that still stand on what another one, or a collection, has let go meanwhile."""

from __future__ import annotations

import operator
import threading
from typing import Annotated, Any, TypedDict

import pytest
from helpers import thread
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, interrupt

from langgraph_harness_saver import keeping
from langgraph_harness_saver.engine import CheckpointEngine
from langgraph_harness_saver.keeping import SPARED


@pytest.fixture(params=["memory", "sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


every_store = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "postgres", "redis"])


def joined(held: list[str], writes: Any) -> list[str]:
    return [*held, *(item for write in writes for item in write)]


class State(TypedDict):
    said: Annotated[list[str], DeltaChannel(joined)]
    notes: Annotated[list[str], operator.add]


class Talk:
    """A graph that answers, and holds on at "wait" until it is told to go on."""

    def __init__(self, saver: Any) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        builder = (
            StateGraph(State).add_node("answer", self.answer).add_node("end", lambda _: {"said": ["ends"]})
        )
        builder.add_edge(START, "answer").add_edge("answer", "end")
        self.graph = builder.compile(checkpointer=saver)

    def answer(self, state: State) -> dict[str, Any]:
        last = state["said"][-1]
        if last == "wait":
            self.waits.set()
            assert self.go_on.wait(60)
        return {"said": [f"to {last}"], "notes": [last]}

    def say(self, what: str) -> None:
        self.graph.invoke({"said": [what]}, thread("t"), durability="sync")


@pytest.mark.parametrize("by", ["puts", "puts and collections", "gc"])
def test_a_run_goes_on_from_a_checkpoint_that_another_one_has_let_go(by, make_saver, monkeypatch):
    slow, quick = Talk(make_saver()), Talk(make_saver())
    monkeypatch.setattr(keeping, "COLLECT_EVERY", 1 if "collections" in by else 1 << 40)
    if by != "gc":
        quick.graph.checkpointer.retention = "keep_last_n:1"
    quick.say("one")
    quick.say("two")
    run = threading.Thread(target=slow.say, args=["wait"])
    run.start()
    assert slow.waits.wait(60)
    # A turn is four checkpoints.
    for number in range(SPARED // 4 - 1):
        quick.say(f"{number}")
    if by == "gc":
        report = CheckpointEngine(quick.graph.checkpointer).sync.gc("t", retention="keep_last_n:1")
        assert report.removed > SPARED // 4
    slow.go_on.set()
    run.join()
    found = slow.graph.get_state(thread("t"))
    turns = [[said, f"to {said}", "ends"] for said in ("one", "two", "wait")]
    assert found.values == {
        "said": [line for turn in turns for line in turn],
        "notes": ["one", "two", "wait"],
    }
    for state in slow.graph.get_state_history(thread("t")):
        assert state.parent_config is None or slow.graph.checkpointer.get_tuple(state.parent_config)
    assert CheckpointEngine(quick.graph.checkpointer).sync.gc("t", retention="keep_last_n:1").removed >= 1
    assert slow.graph.get_state(thread("t")).values == found.values


class Asked(TypedDict):
    answers: Annotated[list[str], operator.add]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("durability", ["exit", "sync"])
def test_what_was_asked_stays_until_it_is_answered(sent, durability, make_saver):
    saver = make_saver(retention="keep_last_n:3")
    builder = StateGraph(Asked).add_node("ask", lambda _: {"answers": [interrupt("well?")]})
    if sent:
        builder.add_conditional_edges(START, lambda _: [Send("ask", {})])
    else:
        builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=saver)
    for number in range(6):
        graph.invoke({"answers": []}, thread("t"), durability=durability)
        graph.invoke(Command(resume=f"{number}"), thread("t"), durability=durability)
        assert len(list(saver.list(thread("t")))) <= 3
    graph.invoke({"answers": []}, thread("t"), durability=durability)
    head = graph.get_state(thread("t"))
    assert len(head.values["answers"]) == 6
    engine = CheckpointEngine(saver).sync
    engine.rewind(head.parent_config["configurable"]["checkpoint_id"], "t")
    saver.retention = None
    for number in range(5):
        graph.update_state(thread("t"), {"answers": [f"{number}"]})
    saver.retention = "keep_last_n:1"
    report = engine.gc("t")
    assert report.details["t"].stays[head.config["configurable"]["checkpoint_id"]] == "interrupted"
    assert len(report.details["t"].stays) <= 3
    graph.update_state(thread("t"), {"answers": ["more"]})
    assert graph.get_state(head.config).interrupts == head.interrupts
    assert saver.failures == 0


def test_a_question_that_was_left_for_an_update_is_over_when_it_is_asked_again(make_saver):
    builder = StateGraph(Asked).add_node("ask", lambda _: {"answers": [interrupt("well?")]})
    graph = builder.add_edge(START, "ask").compile(checkpointer=make_saver())
    engine = CheckpointEngine(graph.checkpointer).sync
    graph.invoke({"answers": []}, thread("t"))
    left = engine.list_checkpoints("t")[0].checkpoint_id
    graph.update_state(thread("t"), {"answers": ["none"]}, as_node=START)
    assert engine.gc("t", retention="keep_last_n:1", dry_run=True).details["t"].stays[left] == "interrupted"
    graph.invoke(None, thread("t"))
    graph.invoke(Command(resume="yes"), thread("t"))
    stays = [engine.gc("t", retention="keep_last_n:1").details["t"].stays for _ in range(2)]
    assert stays[0] == stays[1]
    assert list(stays[0].values()) == ["head"]


@every_store
def test_lines_part_where_they_did_whatever_went_in_between(make_saver):
    talk = Talk(make_saver())
    engine = CheckpointEngine(talk.graph.checkpointer).sync
    for said in ("one", "two"):
        talk.say(said)
    left = engine.list_checkpoints("t")[0].checkpoint_id
    engine.rewind(engine.list_checkpoints("t")[2].checkpoint_id, "t")
    for said in ("three", "four"):
        talk.say(said)
    stays = [engine.gc("t", retention="keep_last_n:1").details["t"].stays for _ in range(3)]
    assert stays[0] == stays[1] == stays[2]
    assert stays[0][left] == "line_head"
    assert talk.graph.get_state({"configurable": {"thread_id": "t", "checkpoint_id": left}}).values["said"][
        3:
    ] == [
        "two",
        "to two",
        "ends",
    ]


@pytest.mark.parametrize("policy", ["keep_last_n:1", "keep_milestones:2", "max_bytes:1", "keep_age:0.001"])
def test_what_has_a_tag_or_a_branch_stays(policy, make_saver):
    talk = Talk(make_saver())
    engine = CheckpointEngine(talk.graph.checkpointer).sync
    for said in ("one", "two"):
        talk.say(said)
    ids = [item.checkpoint_id for item in engine.list_checkpoints("t")]
    engine.tag(ids[3], "good", "t")
    engine.branch(ids[5], "other", "t")
    stays = engine.gc("t", retention=policy).details["t"].stays
    assert {ids[0]: "head", ids[3]: "tagged", ids[5]: "branched"}.items() <= stays.items()
    talk.graph.checkpointer.retention = policy
    talk.say("three")
    left = {item.checkpoint_id for item in engine.list_checkpoints("t")}
    assert {ids[3], ids[5]} <= left
    assert not {ids[1], ids[2]} & left


class Remembering:
    """A graph whose first node is a subgraph with a memory of its own: it notes how many notes there are."""

    def __init__(self, saver: Any) -> None:
        inner = StateGraph(Asked).add_node("note", lambda state: {"answers": [f"{len(state['answers'])}"]})
        builder = StateGraph(State).add_node("sub", inner.add_edge(START, "note").compile(checkpointer=True))
        builder.add_node("first", lambda _: {"said": ["one"]}).add_node("last", lambda _: {"said": ["two"]})
        builder.add_edge(START, "sub").add_edge("sub", "first").add_edge("first", "last")
        self.graph = builder.compile(checkpointer=saver)
        self.engine = CheckpointEngine(saver).sync

    def notes(self, thread_id: str) -> list[str]:
        """Take a turn, and tell what the subgraph has noted."""
        self.graph.invoke({"said": ["in"]}, thread(thread_id))
        found = self.graph.checkpointer.get_tuple(thread(thread_id, ns="sub"))
        return found.checkpoint["channel_values"]["answers"]


@every_store
def test_what_a_subgraph_remembers_stays_with_who_goes_on_from_it(make_saver):
    talk = Remembering(make_saver())
    engine = talk.engine
    assert talk.notes("t") == ["0"]
    head, _, _, above, _ = (point.checkpoint_id for point in engine.list_checkpoints("t"))
    engine.tag(above, "above", "t")
    # An anchor comes between.
    assert engine.gc("t", retention="keep_last_n:1").removed == 3
    assert talk.notes(engine.branch(head, "first", "t")) == ["0", "1"]
    assert engine.untag(above, "above", "t")
    assert engine.delete_before("t", 10) == 1
    assert talk.notes(engine.branch(head, "second", "t")) == ["0", "1"]
    assert talk.notes("t") == ["0", "1"]


@every_store
def test_what_a_subgraph_remembers_on_one_line_is_not_told_on_another(make_saver):
    talk = Remembering(make_saver())
    engine = talk.engine
    talk.notes("t")
    (head, *_) = engine.list_checkpoints("t")
    assert talk.notes("t") == ["0", "1"]
    config = {"configurable": {"thread_id": "t", "checkpoint_id": head.checkpoint_id}}
    other = talk.graph.update_state(config, {"said": ["else"]}, as_node="last")
    point = other["configurable"]["checkpoint_id"]
    assert talk.notes(engine.branch(point, "before", "t")) == ["0", "1"]
    assert engine.gc("t", retention="keep_last_n:1").removed > 4
    assert talk.notes(engine.branch(point, "after", "t")) == ["0", "1"]
