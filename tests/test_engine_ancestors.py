"""What a branch reads of its source: checkpoints from before it began, and a graph goes on from these.

A branch and an independent copy, both made when the source stood at the same checkpoint, have to do the same
where an earlier checkpoint is addressed by its id; and nothing that the branch does is seen in the source.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from helpers import thread, view
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.types import Command
from test_engine_travel import (
    NEW,
    OLD,
    STORES,
    Player,
    Source,
    dump,
    few_scripts,
    ids,
    on_each_store,
    plain,
    rows_left,
)

from langgraph_harness_saver import CheckpointEngine

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(saver: Any) -> Any:
    return CheckpointEngine(saver).sync


def go_on(player: Player, config: Any) -> Any:
    return player.graph.invoke(None, config) if player.graph.get_state(config).next else None


def answer(player: Player, config: Any) -> Any:
    asked = player.graph.get_state(config).interrupts
    resume = {one.id: f"{NEW} {one.value}" for one in asked}
    return player.graph.invoke(Command(resume=resume), config) if asked else None


def say_more(player: Player, config: Any) -> Any:
    return player.graph.invoke(player.script.input(NEW, 7), config)


def update(player: Player, config: Any) -> Any:
    node = min(player.graph.nodes.keys() - {"__start__"})
    return player.graph.update_state(config, {"log": [f"{NEW} update"]}, as_node=node)


def copy_of_studio(player: Player, config: Any) -> Any:
    return player.graph.update_state(config, None, as_node="__copy__")


WAYS: list[Callable[[Player, Any], Any]] = [go_on, answer, say_more, update, copy_of_studio]


def told(player: Player, point: str, way: Callable[[Player, Any], Any]) -> Any:
    """Do something at a checkpoint of a thread, and let it run to its end; return all that is seen."""
    at = thread(player.thread_id, point)
    seen: list[Any] = [plain(player.graph.get_state(at)), sorted_asks(way(player, at))]
    seen.append(plain(player.graph.get_state(player.config, subgraphs=True)))
    for _ in range(4):
        state = player.state()
        if state.next:
            asked = Command(resume={one.id: f"{NEW} {one.value}" for one in state.interrupts})
            player.graph.invoke(asked if state.interrupts else None, player.config)
    return [
        *seen,
        sorted(player.bench.ran),
        player.line(),
        player.memories(),
        plain(player.graph.get_state(at)),
    ]


def sorted_asks(result: Any) -> Any:
    if isinstance(result, dict) and "__interrupt__" in result:
        result["__interrupt__"] = sorted(result["__interrupt__"], key=lambda one: repr(one.value))
    return view(result)


ON_MEMORY = (
    "parallel_questions",
    "delta_without_snapshots",
    "subgraph_that_inherits",
    "nested_that_remember",
    "subgraphs_in_sends",
)


@on_each_store(*ON_MEMORY, elsewhere=["delta_without_snapshots", "subgraph_that_remembers"])
def test_a_branch_goes_on_from_its_ancestors_as_a_copy_does(name, saver, engine, store_kind):
    source = Player(name, saver)
    stops = []
    while source.step(OLD):
        copied = str(uuid.uuid4())
        saver.copy_thread(source.thread_id, copied)
        stops.append((copied, engine.branch(ids(source)[-1], f"{len(stops)}", source.thread_id), ids(source)))
    stored = dump(saver, source.thread_id)
    for copied, branch, points in stops[1:] if store_kind == "memory" else stops[2:3]:
        for number, point in enumerate(points[:-1]):
            for way in WAYS if store_kind == "memory" else [WAYS[number % len(WAYS)]]:
                plain_id = str(uuid.uuid4())
                saver.copy_thread(copied, plain_id)
                branch_id = engine.branch(points[-1], plain_id, branch)
                wanted = told(Player(name, saver, plain_id), point, way)
                assert told(Player(name, saver, branch_id), point, way) == wanted
    assert dump(saver, source.thread_id) == stored


@few_scripts
def test_a_branch_does_not_read_what_came_after_it_began(name, saver, engine):
    source = Source(name, saver)
    for number, point in enumerate(source.points):
        branch = engine.branch(point, point, source.thread_id)
        again = engine.branch(point, "again", branch)
        for thread_id in (branch, again):
            read = {one for one in source.points if saver.get_tuple(thread(thread_id, one))}
            assert read == {*source.points[: number + 1]}
            for _, ns, one in source.stored:
                item = saver.get_tuple(thread(thread_id, one, ns=ns))
                if ns and item is not None:
                    assert item.metadata["parents"][""] in source.points[: number + 1]


@pytest.mark.parametrize("name", ["questions_in_a_chain"])
def test_another_line_of_the_source_is_not_the_branch_s(name, saver, engine):
    source = Source(name, saver)
    engine.rewind(source.points[1], source.thread_id)
    source.turn = source.turn_of[source.points[1]]
    source.finish(NEW)
    newer = [one for one in ids(source) if one not in source.points]
    branch = engine.branch(newer[-1], "new line", source.thread_id)
    read = {one for one in ids(source) if saver.get_tuple(thread(branch, one))}
    assert read == {source.points[0], *newer}
    other = engine.branch(source.points[-1], "old line", source.thread_id)
    assert {one for one in ids(source) if saver.get_tuple(thread(other, one))} == {*source.points}


@pytest.mark.parametrize("name", ["delta_without_snapshots"])
def test_writes_to_an_ancestor_are_the_branch_s_alone(name, place, saver, engine):
    source = Source(name, saver)
    point, first = source.points[1], source.points[4]
    large = "large " * 10_000
    branch = engine.branch(first, "b", source.thread_id)
    beyond = engine.branch(first, "beyond", branch)
    before = {one: saver.get_tuple(thread(one, point)).pending_writes for one in (source.thread_id, beyond)}
    saver.put_writes(thread(branch, point, ns=""), [("n", 1), ("big", large)], "new task", "~path")
    taken = [(task_id, "n", "not the first") for task_id, _, _ in before[beyond][:1]]
    saver.put_writes(thread(branch, point, ns=""), [(c, v) for _, c, v in taken], taken[0][0], "")
    for writing in (branch, beyond):
        found = saver.get_tuple(thread(writing, point)).pending_writes
        assert [one for one in found if one[0] == "new task"] == [
            ("new task", "n", 1),
            ("new task", "big", large),
        ]
        assert [one for one in found if one[0] != "new task"] == before[beyond]
    assert saver.get_tuple(thread(source.thread_id, point)).pending_writes == before[source.thread_id]
    assert dump(saver, source.thread_id) == source.stored
    # An ancestor that goes leaves the branch what it read of it, and the source what that read.
    history = {
        one: saver.get_delta_channel_history(config=thread(one, first), channels=["n", "log"])
        for one in (source.thread_id, branch, beyond)
    }
    assert history[branch]["n"]["writes"] == [("new task", "n", 1)] == history[beyond]["n"]["writes"]
    saver.delete_thread(source.thread_id)
    assert saver.get_tuple(thread(branch, point)) is None
    del history[source.thread_id]
    for one, known in history.items():
        assert saver.get_delta_channel_history(config=thread(one, first), channels=["n", "log"]) == known
    assert engine.delete_thread(branch, branches=True) > 0
    assert rows_left(place, saver) == 0


def put_line(saver: Any, thread_id: str, word: str) -> None:
    """Put three checkpoints, under the same ids each time."""
    config = thread(thread_id, ns="")
    for number in range(3):
        checkpoint = {
            **empty_checkpoint(),
            "id": f"{number}",
            "ts": word,
            "channel_values": {"log": [word]},
            "channel_versions": {"log": f"{number}.{word}"},
        }
        config = saver.put(config, checkpoint, {"source": "loop", "step": number, "parents": {}}, {})


@pytest.mark.parametrize("word", ["again", "before"])
def test_what_begins_anew_under_an_ancestor_s_id_is_none(saver, engine, word):
    put_line(saver, "source", "before")
    branch = engine.branch("2", "branch", "source")
    below = engine.branch("2", "below", branch)
    for reader in (branch, below):
        assert saver.get_tuple(thread(reader, "0", ns="")).checkpoint["ts"] == "before"
    saver.delete_thread("source")
    put_line(saver, "source", word)
    for reader in (branch, below):
        assert saver.get_tuple(thread(reader, "0", ns="")) is None


def test_an_ancestor_of_what_was_deleted_is_none(saver, engine):
    put_line(saver, "source", "before")
    branch = engine.branch("1", "branch", "source")
    assert saver.get_tuple(thread(branch, "0", ns="")) is not None
    fresh = {**empty_checkpoint(), "id": "7"}
    saver.put(thread(branch, ns=""), fresh, {"source": "loop", "step": 7, "parents": {}}, {})
    saver.prune([branch])
    assert saver.get_tuple(thread(branch, "0", ns="")) is None
