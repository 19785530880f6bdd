"""Merging channel values, on lines of checkpoints that real graphs left and on plain values."""

from __future__ import annotations

import copy
import operator
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

import pytest
from helpers import examples, thread
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels import (
    AnyValue,
    BinaryOperatorAggregate,
    DeltaChannel,
    EphemeralValue,
    LastValue,
    Topic,
)
from langgraph.channels.base import BaseChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, _messages_delta_reducer, add_messages
from langgraph.pregel._checkpoint import channels_from_checkpoint
from langgraph.types import Command, Overwrite, interrupt
from typing_extensions import TypedDict

from langgraph_harness_saver import HarnessCheckpointer, HarnessError, InvalidConfigError
from langgraph_harness_saver.engine.compare import Unresolved, same
from langgraph_harness_saver.engine.merge import merge
from langgraph_harness_saver.engine.sides import MISSING, NOT_STORED, Conflict, MergeConflict, Merged, Side
from langgraph_harness_saver.engine.written import writes_since
from langgraph_harness_saver.versions import next_version

CONFLICT = "conflict"
SAVERS = {"memory": HarnessCheckpointer, "langgraph": InMemorySaver}


# Lines of checkpoints


def copy_thread(saver: Any, source: str, target: str) -> None:
    """Make a thread that begins as another, under the same checkpoint ids, as a branch does."""
    if isinstance(saver, HarnessCheckpointer):
        saver.copy_thread(source, target)
        return
    saver.storage[target] = copy.deepcopy(saver.storage[source])
    for held in (saver.writes, saver.blobs):
        for key in [key for key in held if key[0] == source]:
            held[(target, *key[1:])] = copy.deepcopy(held[key])


class Lines:
    """Two threads with a common beginning, whose one node, `work`, returns what it is told to."""

    def __init__(self, saver: Any, kind: Any, durability: str = "sync") -> None:
        self.saver = saver
        self.durability = durability
        self.plan: list[Any] = []
        state = TypedDict("state", {"x": kind, "y": int})  # noqa: UP013
        builder = StateGraph(state).add_node("work", lambda state: self.plan.pop(0)).add_edge(START, "work")
        builder.add_conditional_edges("work", lambda state: "work" if self.plan else END, ["work", END])
        self.graph = builder.compile(checkpointer=saver)

    def run(self, thread_id: str, writes: list[Any], value: Any = None) -> None:
        """Run once, with a step for each of the writes to x; `MISSING` stands for none."""
        if writes:
            self.plan[:] = [{"y": 1} if one is MISSING else {"x": one} for one in writes]
            self.graph.invoke({} if value is None else value, thread(thread_id), durability=self.durability)

    def begin(self, writes: list[Any]) -> None:
        self.run("ours", writes or [MISSING])
        copy_thread(self.saver, "ours", "theirs")
        self.base = self.saver.get_tuple(thread("ours")).checkpoint["id"]

    def path(self, thread_id: str) -> list[CheckpointTuple]:
        path = [self.saver.get_tuple(thread(thread_id))]
        while path[0].checkpoint["id"] != self.base:
            path.insert(0, self.saver.get_tuple(path[0].parent_config))
        return path

    def side(self, thread_id: str) -> Side:
        path = self.path(thread_id)
        return Side(self.values(path[-1]), path[-1].checkpoint["channel_versions"], writes_since(path))

    def values(self, found: CheckpointTuple) -> dict[str, Any]:
        channels, _ = channels_from_checkpoint(
            self.graph.channels, found.checkpoint, saver=self.saver, config=found.config
        )
        values = dict(found.checkpoint["channel_values"])
        for name, channel in channels.items():
            if isinstance(channel, DeltaChannel) and channel.is_available():
                values[name] = channel.get()
        return values

    def sides(self) -> list[Side]:
        base = self.path("ours")[0]
        return [
            Side(self.values(base), base.checkpoint["channel_versions"]),
            self.side("ours"),
            self.side("theirs"),
        ]


class Case(NamedTuple):
    """What becomes of x where both lines write to it: with all there is, without writes, without a graph."""

    kind: Any
    base: list[Any]
    ours: list[Any]
    theirs: list[Any]
    replayed: Any
    without_writes: Any
    without_graph: Any


def human(text: str, id: str | None = None) -> HumanMessage:
    return HumanMessage(text, id=id or text)


def union(one: set[int], other: set[int]) -> set[int]:
    return one | other


def largest(one: int, other: int) -> int:
    return max(one, other)


def newest(limit: int) -> Any:
    def keep(one: list[Any], other: list[Any]) -> list[Any]:
        return [*one, *other][-limit:]

    return keep


def distinct(one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *(item for item in other if item not in one)]


def update(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, **other}


def count(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def append(one: list[Any], other: Any) -> list[Any]:
    return [*one, other]


def latest(one: Any, other: Any) -> Any:
    return other


def together(one: list[Any], writes: list[list[Any]]) -> list[Any]:
    return [*one, *(item for write in writes for item in write)]


TOTAL = Annotated[int, operator.add]
LOG = Annotated[list, operator.add]
CHAT = Annotated[list[AnyMessage], add_messages]
DICT = Annotated[dict, update]
DELTA = Annotated[list, DeltaChannel(together)]
A, B, C, D = human("a"), human("b"), human("c"), human("d")


CASES = {
    "sum": Case(TOTAL, [5], [1], [2], 8, CONFLICT, CONFLICT),
    "sum of several steps": Case(TOTAL, [2, 3], [1, -3, 3], [1, 1], 8, CONFLICT, CONFLICT),
    "sum of the same": Case(TOTAL, [5], [1], [1], 7, 6, 6),
    "list of the same": Case(LOG, [["a"]], [["b"]], [["b"]], ["a", "b", "b"], ["a", "b"], ["a", "b"]),
    "set of the same": Case(Annotated[set, union], [{1}], [{2}], [{2}], *[{1, 2}] * 3),
    "messages of the same id": Case(CHAT, [[A]], [[B]], [[B]], *[[A, B]] * 3),
    "the same message removed": Case(
        CHAT, [[A, B]], [[RemoveMessage("a")]], [[RemoveMessage("a")]], *[[B]] * 3
    ),
    "the same reset": Case(TOTAL, [5], [Overwrite(1)], [Overwrite(1)], *[1] * 3),
    "largest": Case(Annotated[int, largest], [5], [6], [7], 7, CONFLICT, CONFLICT),
    "largest, ours": Case(Annotated[int, largest], [5], [9], [7], 9, CONFLICT, CONFLICT),
    "number that is set": Case(int, [5], [6], [7], CONFLICT, CONFLICT, CONFLICT),
    "number that is set to the same": Case(int, [5], [6], [7, 6], 6, 6, 6),
    "text that is joined": Case(Annotated[str, operator.add], ["a"], ["b"], ["c"], "abc", CONFLICT, CONFLICT),
    "reducer that keeps one": Case(Annotated[str, latest], ["a"], ["b"], ["c"], *[CONFLICT] * 3),
    "list": Case(LOG, [["a"]], [["b"]], [["c"], ["d"]], *[["a", "b", "c", "d"]] * 3),
    "list from nothing": Case(LOG, [], [["b"]], [["c"]], ["b", "c"], ["b", "c"], CONFLICT),
    "list that is set": Case(list, [["a"]], [["a", "b"]], [["a", "c"]], CONFLICT, CONFLICT, ["a", "b", "c"]),
    "list that is set anew": Case(list, [["a"]], [["b"]], [["c"]], *[CONFLICT] * 3),
    "list of single items": Case(Annotated[list, append], ["a"], ["b"], ["c"], *[["a", "b", "c"]] * 3),
    "distinct items": Case(
        Annotated[list, distinct], [["a"]], [["b"]], [["b", "c"]],
        ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "b", "c"],
    ),
    "newest items": Case(
        Annotated[list, newest(3)], [["a", "b"]], [["c"]], [["d"]], ["b", "c", "d"], ["b", "c", "d"],
        ["a", "b", "c", "d"],
    ),
    "newest items, all new": Case(
        Annotated[list, newest(2)], [["a", "b"]], [["c", "d"]], [["e", "f"]], *[CONFLICT] * 3
    ),
    "list that theirs reset": Case(LOG, [["a"]], [["b"]], [Overwrite(["a", "x"]), ["y"]], CONFLICT,
        ["a", "b", "x", "y"], CONFLICT),
    "list that ours reset": Case(LOG, [["a"]], [Overwrite(["x"])], [["b"]], *[["x", "b"]] * 3),
    "set": Case(Annotated[set, union], [{1}], [{2}], [{3}], *[{1, 2, 3}] * 3),
    "set that is set": Case(set, [{1, 2}], [{1, 2, 3}], [{2}], CONFLICT, CONFLICT, {2, 3}),
    "other keys": Case(DICT, [{"a": 1}], [{"b": 2}], [{"c": 3}], *[{"a": 1, "b": 2, "c": 3}] * 3),
    "the same key": Case(DICT, [{"a": 1}], [{"b": 2}], [{"b": 3, "c": 3}], *[CONFLICT] * 3),
    "the same key alike": Case(DICT, [{"a": 1}], [{"a": 2}], [{"a": 2, "c": 3}], *[{"a": 2, "c": 3}] * 3),
    "keys within keys": Case(
        dict, [{"p": {"a": 1, "b": 1}}], [{"p": {"a": 2, "b": 1}}], [{"p": {"a": 1}}],
        CONFLICT, CONFLICT, {"p": {"a": 2}},
    ),
    "counters": Case(
        Annotated[dict, count], [{"a": 1}], [{"a": 1}], [{"a": 2, "b": 1}],
        {"a": 4, "b": 1}, CONFLICT, CONFLICT,
    ),
    "topic": Case(
        Annotated[list, Topic(str, accumulate=True)], ["a"], ["b"], ["c"], *[["a", "b", "c"]] * 3
    ),
    "topic of one step": Case(
        Annotated[list, Topic(str)], ["a"], ["b"], ["c"], CONFLICT, CONFLICT, CONFLICT
    ),
    "any value": Case(Annotated[str, AnyValue(str)], ["a"], ["b"], ["c"], *[CONFLICT] * 3),
    "ephemeral value": Case(Annotated[str, EphemeralValue(str)], ["a"], ["b"], ["c"], *[CONFLICT] * 3),
    "delta": Case(DELTA, [["a"]], [["b"]], [["c"], ["d"]], *[["a", "b", "c", "d"]] * 3),
    "delta with snapshots": Case(
        Annotated[list, DeltaChannel(together, snapshot_frequency=2)],
        [["a"]], [["b"]], [["c"], ["d"]], *[["a", "b", "c", "d"]] * 3,
    ),
    "delta that theirs reset": Case(DELTA, [["a"]], [["b"]], [Overwrite(["x"])], *[CONFLICT] * 3),
    "messages": Case(CHAT, [[A]], [[B]], [[C], [D]], *[[A, B, C, D]] * 3),
    "messages from nothing": Case(CHAT, [], [[B]], [[C]], *[[B, C]] * 3),
    "message edited by theirs": Case(
        CHAT, [[A, B]], [[C]], [[human("A!", "a")], [D]], *[[human("A!", "a"), B, C, D]] * 3
    ),
    "message edited by ours": Case(CHAT, [[A]], [[human("A!", "a")]], [[B]], *[[human("A!", "a"), B]] * 3),
    "messages edited by both": Case(
        CHAT, [[A, B]], [[human("A!", "a")]], [[human("B!", "b")]],
        *[[human("A!", "a"), human("B!", "b")]] * 3,
    ),
    "message edited by both": Case(
        CHAT, [[A]], [[human("A!", "a"), B]], [[human("A?", "a"), C]], *[CONFLICT] * 3
    ),
    "message edited by both alike": Case(
        CHAT, [[A]], [[human("A!", "a"), B]], [[human("A!", "a"), C]], *[[human("A!", "a"), B, C]] * 3
    ),
    "message removed by theirs": Case(
        CHAT, [[A, B]], [[C]], [[RemoveMessage("a")], [D]], *[[B, C, D]] * 3
    ),
    "message removed by ours": Case(CHAT, [[A, B]], [[RemoveMessage("a")]], [[C]], *[[B, C]] * 3),
    "message removed by both": Case(
        CHAT, [[A, B]], [[RemoveMessage("a"), C]], [[RemoveMessage("a"), D]], *[[B, C, D]] * 3
    ),
    "message removed here, edited there": Case(
        CHAT, [[A, B]], [[RemoveMessage("a")]], [[human("A!", "a")]], *[CONFLICT] * 3
    ),
    "message edited here, removed there": Case(
        CHAT, [[A, B]], [[human("A!", "a")]], [[RemoveMessage("a")]], *[CONFLICT] * 3
    ),
    "message of ours written again unchanged": Case(
        CHAT, [[A, B]], [[human("A!", "a")]], [[A, B, C]], *[[human("A!", "a"), B, C]] * 3
    ),
    "all messages removed by theirs": Case(
        CHAT, [[A, B]], [[C]], [[RemoveMessage(REMOVE_ALL_MESSAGES), D]], [D], [C, D], [C, D]
    ),
    "all messages removed by ours": Case(
        CHAT, [[A, B]], [[RemoveMessage(REMOVE_ALL_MESSAGES), D]], [[C]], *[[D, C]] * 3
    ),
    "messages put before others": Case(
        Annotated[list, lambda one, other: other + one], [[B]], [[C]], [[A]], [A, C, B], *[[C, A, B]] * 2
    ),
    "messages that are set": Case(list, [[A]], [[A, B]], [[A, C]], CONFLICT, CONFLICT, [A, B, C]),
    "messages in another order": Case(list, [[A, B]], [[A, B, C]], [[B, A]], *[CONFLICT] * 3),
    "dict that is set": Case(
        dict, [{"a": 1}], [{"a": 2}], [{"a": 2, "b": 1}], CONFLICT, CONFLICT, {"a": 2, "b": 1}
    ),
    "delta of messages": Case(
        Annotated[list, DeltaChannel(lambda one, writes: add_messages(one, together([], writes)))],
        [[A]], [[B]], [[human("A!", "a"), C]], *[[human("A!", "a"), B, C]] * 3,
    ),
    "delta of messages of LangGraph's own": Case(
        Annotated[list, DeltaChannel(_messages_delta_reducer)],
        [[A, B]], [[human("A!", "a")]], [[A, RemoveMessage("b"), C]], *[[human("A!", "a"), C]] * 3,
    ),
}  # fmt: skip


def outcome(merged: Merged, name: str = "x") -> Any:
    assert set(merged.how) | {one.channel for one in merged.conflicts} == {*merged.values, *merged.deleted}
    if any(one.channel == name for one in merged.conflicts):
        return CONFLICT
    return merged.values.get(name, MISSING)


@pytest.fixture
def saver() -> Any:
    # InMemorySaver gives back the values of channels that are gone.
    with HarnessCheckpointer() as saver:
        yield saver


@pytest.fixture(params=SAVERS)
def any_saver(request: pytest.FixtureRequest) -> Any:
    saver = SAVERS[request.param]()
    yield saver
    if hasattr(saver, "close"):
        saver.close()


@pytest.mark.parametrize("name", CASES)
def test_both_lines_write(name, any_saver):
    case = CASES[name]
    lines = Lines(any_saver, case.kind)
    lines.begin(case.base)
    lines.run("ours", case.ours)
    lines.run("theirs", case.theirs)
    sides = base, ours, theirs = lines.sides()
    before = copy.deepcopy(sides)
    channels = lines.graph.channels
    silent = [Side(side.values, side.versions) for side in sides]
    found = [
        outcome(merge(base, ours, theirs, channels=channels)),
        outcome(merge(*silent, channels=channels)),
        outcome(merge(base, ours, theirs)),
    ]
    assert same(found, [case.replayed, case.without_writes, case.without_graph])
    assert same(sides, before)


# Where a side hasn't changed


@pytest.mark.parametrize("strategy", ["three_way", "ours", "theirs"])
@pytest.mark.parametrize("name", CASES)
def test_one_line_writes(name, strategy):
    """What one line has done comes out as it is, whichever strategy; both copies of it merge to the same."""
    case = CASES[name]
    lines = Lines(InMemorySaver(), case.kind)
    lines.begin(case.base)
    lines.run("theirs", case.theirs)
    base, ours, theirs = lines.sides()
    for channels in (None, lines.graph.channels):
        options = {"channels": channels, "strategy": strategy}
        forward = merge(base, ours, theirs, **options)
        assert same(forward.values.get("x"), theirs.values.get("x"))
        assert not forward.resolved
        back = merge(base, theirs, ours, **options)
        assert same(back.values, dict(theirs.values))
        assert not back.changed
        assert not back.deleted
        twice = merge(base, theirs, Side(*copy.deepcopy((theirs.values, theirs.versions))), **options)
        assert same(twice.values, dict(theirs.values))
        assert twice.how["x"] in ("equal", "ours")


def test_routing_is_always_ours():
    names = ("__start__", "branch:to:a", "join:a+b:c", "__pregel_tasks")
    base = Side({"branch:to:a": None, "join:a+b:c": {"a"}}, {})
    ours = Side({"branch:to:a": None, "x": 1}, {})
    theirs = Side({"__start__": {}, "join:a+b:c": {"b"}, "__pregel_tasks": ["send"], "x": 1}, {})
    merged = merge(base, ours, theirs)
    assert merged.values == {"branch:to:a": None, "x": 1}
    assert {merged.how[name] for name in names} == {"ours"}
    assert not merged.changed
    assert not merged.deleted


def test_state_under_names_of_langgraph_is_merged():
    saver = InMemorySaver()
    plan: list[Any] = []
    builder = StateGraph(Annotated[list, operator.add]).add_node("work", lambda state: plan.pop())
    graph = builder.add_edge(START, "work").compile(checkpointer=saver)
    sides = two_runs(saver, graph, plan, ["a"], ["b"], ["c"], value=[])
    assert merge(*sides, channels=graph.channels).values["__root__"] == ["a", "b", "c"]

    @entrypoint(checkpointer=saver)
    def work(given: str, *, previous: Any = None) -> Any:
        return entrypoint.final(value=given, save=[*(previous or []), given])

    base, ours, theirs = two_runs(saver, work, plan, None, None, None, value="x", prefix="f")
    merged = merge(base, base, theirs, channels=work.channels)
    assert merged.values["__previous__"] == ["x", "x"]
    assert merge(base, ours, theirs).how["__previous__"] == "equal"


def two_runs(
    saver: Any, graph: Any, plan: list[Any], base: Any, ours: Any, theirs: Any, value: Any, prefix: str = ""
) -> list[Side]:
    plan.append(base)
    graph.invoke(value, thread(f"{prefix}ours"))
    copy_thread(saver, f"{prefix}ours", f"{prefix}theirs")
    paths = []
    for name, writes in (("ours", ours), ("theirs", theirs)):
        start = saver.get_tuple(thread(f"{prefix}{name}"))
        plan.append(writes)
        graph.invoke(value, thread(f"{prefix}{name}"))
        paths.append(line(saver, f"{prefix}{name}", start))
    return [side_of(paths[0][:1]), *map(side_of, paths)]


def line(saver: Any, thread_id: str, start: CheckpointTuple) -> list[CheckpointTuple]:
    path = [saver.get_tuple(thread(thread_id))]
    while path[0].checkpoint["id"] != start.checkpoint["id"]:
        path.insert(0, saver.get_tuple(path[0].parent_config))
    return path


def side_of(path: list[CheckpointTuple]) -> Side:
    head = path[-1].checkpoint
    return Side(head["channel_values"], head["channel_versions"], writes_since(path))


# Deleted channels


class Wide(TypedDict):
    x: Annotated[list, operator.add]
    gone: int
    total: Annotated[int, operator.add]


class Narrow(TypedDict):
    x: Annotated[list, operator.add]


@pytest.mark.parametrize("ours_writes", [{"x": ["b"]}, {"gone": 2}, {}])
def test_a_channel_that_the_branch_no_longer_has(ours_writes, saver):
    def graph_of(state: Any, writes: Any) -> Any:
        builder = StateGraph(state).add_node("work", lambda state: writes)
        return builder.add_edge(START, "work").compile(checkpointer=saver)

    graph_of(Wide, {"x": ["a"], "gone": 1, "total": 1}).invoke({}, thread("ours"))
    copy_thread(saver, "ours", "theirs")
    start = saver.get_tuple(thread("ours"))
    graph = graph_of(Wide, ours_writes)
    graph.invoke({}, thread("ours"))
    graph_of(Narrow, {"x": ["c"]}).invoke({}, thread("theirs"))
    base, ours, theirs = (
        side_of(path) for path in ([start], line(saver, "ours", start), line(saver, "theirs", start))
    )
    merged = merge(base, ours, theirs, channels=graph.channels)
    assert merged.values["x"] == ["a", *ours_writes.get("x", []), "c"]
    assert "total" in merged.deleted
    assert "total" not in merged.values
    assert merged.how["total"] == "theirs"
    if "gone" in ours_writes:
        assert [(one.channel, one.base, one.ours, one.theirs) for one in merged.conflicts] == [
            ("gone", 1, 2, MISSING)
        ]
        assert "deleted" in merged.conflicts[0].reason
        assert merged.values["gone"] == 2
    else:
        assert "gone" in merged.deleted
    back = merge(base, theirs, ours, channels=graph.channels)
    assert back.how["total"] == "ours"
    assert "total" not in back.values
    assert not back.deleted


@pytest.mark.parametrize("channels", [None, {"x": BinaryOperatorAggregate(list, operator.add)}])
def test_deletions_on_both_sides(channels):
    gone = Side({}, {})
    for base, other in ((Side({"x": [1]}, {}), gone), (gone, gone)):
        merged = merge(base, gone, other, channels=channels)
        assert (merged.values, merged.changed, merged.deleted) == ({}, set(), set())
    merged = merge(Side({"x": [1]}, {}), gone, Side({"x": [1, 2]}, {}, [[("x", [2])]]), channels=channels)
    assert merged.conflicts[0].ours is MISSING


# Strategies


BASE, OURS, THEIRS = (Side({"n": n, "m": m, "same": 0}, {}) for n, m in ((5, 0), (6, 0), (7, 1)))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("ours", 6), ("theirs", 7), (lambda conflict: conflict.ours + conflict.theirs - conflict.base, 8)],
)
def test_strategies_decide_conflicts_only(strategy, expected):
    merged = merge(BASE, OURS, THEIRS, strategy=strategy)
    assert merged.values == {"n": expected, "m": 1, "same": 0}
    assert merged.how == {"n": "strategy", "m": "theirs", "same": "ours"}
    assert merged.changed == ({"m"} if expected == 6 else {"n", "m"})
    assert [(one.channel, one.base, one.ours, one.theirs) for one in merged.resolved] == [("n", 5, 6, 7)]
    assert merged.conflicts == []


def test_no_strategy_leaves_conflicts_open():
    merged = merge(BASE, OURS, THEIRS)
    assert merged.values == {"n": 6, "m": 1, "same": 0}
    assert merged.changed == {"m"}
    assert "n" not in merged.how
    assert [(one.channel, one.base, one.ours, one.theirs) for one in merged.conflicts] == [("n", 5, 6, 7)]


def test_a_function_may_delete_a_channel():
    merged = merge(BASE, OURS, THEIRS, strategy=lambda conflict: MISSING)
    assert "n" not in merged.values
    assert merged.deleted == {"n"}
    assert merged.how["n"] == "strategy"


def test_what_a_function_raises_is_passed_on():
    def refuse(conflict: Conflict) -> Any:
        raise KeyError(conflict.channel)

    with pytest.raises(KeyError, match="n"):
        merge(BASE, OURS, THEIRS, strategy=refuse)


def test_a_function_that_changes_what_it_is_given_changes_no_side():
    def spoil(conflict: Conflict) -> Any:
        conflict.ours.append("spoilt")
        conflict.base.clear()
        return conflict.ours

    sides = [Side({"x": value}, {}) for value in (["a"], ["b"], ["c"])]
    assert merge(*sides, strategy=spoil).values == {"x": ["b", "spoilt"]}
    assert [side.values["x"] for side in sides] == [["a"], ["b"], ["c"]]


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InvalidConfigError, match="three_way"):
        merge(BASE, OURS, THEIRS, strategy="union")


def test_the_error_says_what_and_what_next():
    sides = [Side({"n": n, "text": text * 1000}, {}) for n, text in ((5, "a"), (6, "b"), (7, "c"))]
    sides[0] = Side({"n": 5}, {})
    error = MergeConflict(merge(*sides).conflicts)
    assert isinstance(error, HarnessError)
    assert [one.channel for one in error.conflicts] == ["n", "text"]
    text = str(error)
    for part in ("2 channels", "base 5, ours 6, theirs 7", "strategy=", "graph=", "nothing was written"):
        assert part in text
    assert len(text) < 1000


# Values that can't be told


def test_unresolved_values():
    seed = Unresolved(3, 2)
    base = Side({"x": seed, "y": seed}, {"x": 1, "y": 1})
    moved = Side({"x": Unresolved(3, 4), "y": ["y"]}, {"x": 2, "y": 2})
    assert merge(base, moved, base).values == moved.values
    assert merge(base, base, base).how == {"x": "ours", "y": "ours"}
    merged = merge(base, base, moved)
    assert merged.values["y"] == ["y"]
    assert [(one.channel, "graph=" in one.reason) for one in merged.conflicts] == [("x", True)]
    both = merge(base, moved, Side({"x": Unresolved(3, 5), "y": ["z"]}, {"x": 3, "y": 3}))
    assert [(one.channel, "graph=" in one.reason) for one in both.conflicts] == [("x", True), ("y", True)]
    for strategy in ("theirs", lambda conflict: conflict.theirs):
        assert [one.channel for one in merge(base, base, moved, strategy=strategy).conflicts] == ["x"]
    kept = merge(base, base, moved, strategy="ours")
    assert kept.values["x"] is not MISSING
    assert (kept.changed, kept.how["x"]) == ({"y"}, "strategy")


def test_snapshots_count_as_the_values_in_them():
    base, ours = Side({"x": _DeltaSnapshot([1])}, {}), Side({"x": [1]}, {})
    merged = merge(base, ours, Side({"x": _DeltaSnapshot([1, 2])}, {}))
    assert merged.values == {"x": [1, 2]}
    assert merge(base, ours, base).changed == set()


# Equality


class Stubborn:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None


@pytest.mark.parametrize(
    "values",
    [(1, True), (1, 1.0), (True, 1.0), (0, False), ((1,), [1]), ("1", 1), (None, 0), ([1], [True]),
     ({"a": 1}, {"a": 1.0}), ({1}, {True}), (HumanMessage("a", id="1"), AIMessage("a", id="1"))],
    ids=repr,
)  # fmt: skip
def test_values_of_different_types_differ(values):
    base, theirs = (Side({"x": value}, {}) for value in values)
    merged = merge(base, base, theirs)
    assert same(merged.values["x"], values[1])
    assert merged.changed == {"x"}
    assert merge(base, theirs, base).how["x"] == "ours"


def test_nan_equals_nan():
    base, ours, theirs = (Side({"x": [float("nan")], "n": Decimal("nan")}, {}) for _ in range(3))
    assert merge(base, ours, theirs).how == {"x": "ours", "n": "ours"}
    assert merge(Side({"x": 0, "n": 0}, {}), ours, theirs).how == {"x": "equal", "n": "equal"}


def test_what_cannot_be_compared_is_changed_unless_its_version_tells():
    first, second, third = next_version(None), next_version(None), next_version(None)
    base = Side({"x": Stubborn()}, {"x": first})
    theirs = Side({"x": Stubborn()}, {"x": second})
    assert merge(base, Side({"x": Stubborn()}, {"x": first}), theirs).how["x"] == "theirs"
    assert merge(base, Side({"x": Stubborn()}, {"x": third}), theirs).conflicts
    plain = [Side({"x": Stubborn()}, {"x": 1}) for _ in range(3)]
    assert merge(*plain).conflicts


def test_arrays():
    numpy = pytest.importorskip("numpy")
    base, ours, theirs = (Side({"x": numpy.arange(n)}, {}) for n in (3, 3, 4))
    assert same(merge(base, ours, theirs).values["x"], numpy.arange(4))
    assert merge(base, theirs, ours).how["x"] == "ours"
    assert merge(base, theirs, Side({"x": numpy.arange(5)}, {})).conflicts


def test_keys_that_are_equal_but_of_other_types_are_a_conflict():
    for base, ours, theirs in (({0}, {0, 1}, {0, True}), ({0: 0}, {0: 0, 1: 0}, {0: 0, True: 0})):
        assert merge(*(Side({"x": value}, {}) for value in (base, ours, theirs))).conflicts


# What goes in stays as it is


def test_nothing_is_shared_with_the_sides():
    base = Side({"a": [[0]], "b": [[0]], "c": [[0]], "d": [[0]], "e": [[0]]}, {})
    ours = Side({"a": [[0], [1]], "b": [[0]], "c": [[0], [1]], "d": [[3]], "e": [[0], [1]]}, {})
    theirs = Side(
        {"a": [[0]], "b": [[0], [1]], "c": [[0], [2]], "d": [[4]], "e": [[0], [2]]}, {}, [[("c", [[2]])]]
    )
    before = copy.deepcopy((base, ours, theirs))
    channels = {"c": BinaryOperatorAggregate(list, operator.add)}
    merged = merge(base, ours, theirs, channels=channels, strategy="theirs")
    assert (merged.how["c"], merged.how["d"], merged.how["e"]) == ("replayed", "strategy", "extended")
    for value in merged.values.values():
        for item in value:
            item.append("changed")
    for conflict in merged.resolved:
        conflict.theirs[0].append("changed")
    assert same((base, ours, theirs), before)


def test_reducers_that_work_in_place_change_no_side():
    def extend(one: list[Any], other: list[Any]) -> list[Any]:
        one.extend(other)
        other.clear()
        return one

    base = Side({"x": ["a"]}, {})
    ours = Side({"x": ["a", "b"]}, {}, [[("x", ["b"])]])
    theirs = Side({"x": ["a", "c"]}, {}, [[("x", ["c"])]])
    before = copy.deepcopy((base, ours, theirs))
    merged = merge(base, ours, theirs, channels={"x": BinaryOperatorAggregate(list, extend)})
    assert merged.values == {"x": ["a", "b", "c"]}
    assert same((base, ours, theirs), before)


# Reducers that fail, or that writes don't fit


def replayable(ours: Any, theirs: Any, steps: Any, channel: BaseChannel[Any, Any, Any], base: Any) -> Merged:
    sides = Side({"x": base}, {}), Side({"x": ours}, {}), Side({"x": theirs}, {}, steps)
    return merge(*sides, channels={"x": channel})


def test_a_reducer_that_raises_over_ours_is_a_conflict_that_says_so():
    def within(one: int, other: int) -> int:
        if one + other > 10:
            raise ValueError("too much")
        return one + other

    merged = replayable(9, 7, [[("x", 2)]], BinaryOperatorAggregate(int, within), 5)
    assert "too much" in merged.conflicts[0].reason


def test_writes_that_did_not_lead_there_are_not_replayed():
    channel = BinaryOperatorAggregate(int, operator.add)
    for steps in ([[("x", 3)]], [[("x", "a")]], [[("x", 2)], [("x", NOT_STORED)]], [], [[]], None):
        assert replayable(6, 7, steps, channel, 5).conflicts
    assert replayable(6, 7, [[("x", 1), ("y", 9)], [], [("x", 1)]], channel, 5).values["x"] == 8


@pytest.mark.parametrize(
    "reset", [Overwrite(0), {"__overwrite__": 0}, {"type": "__overwrite__", "value": 0}], ids=repr
)
def test_a_reset_is_a_conflict_whatever_its_form(reset):
    channel = BinaryOperatorAggregate(int, operator.add)
    merged = replayable(6, 2, [[("x", reset)], [("x", 2)]], channel, 5)
    assert "Overwrite" in merged.conflicts[0].reason
    assert replayable(5, 2, [[("x", reset)], [("x", 2)]], channel, 5).values["x"] == 2


def test_writes_that_are_missing_in_between_are_noticed():
    def tolerant(one: int, other: Any) -> int:
        return one + other if isinstance(other, int) else one

    channel = BinaryOperatorAggregate(int, tolerant)
    assert replayable(6, 7, [[("x", 2)], [("x", NOT_STORED)]], channel, 5).conflicts


def test_one_change_that_both_sides_have_counts_once():
    channels = {"x": BinaryOperatorAggregate(int, operator.add)}
    first, second = next_version(None), next_version(None)
    ours, theirs = (Side({"x": 6}, {"x": second}, [[("x", 1)]]) for _ in range(2))
    assert merge(Side({"x": 5}, {"x": first}), ours, theirs, channels=channels).values["x"] == 6
    other = Side({"x": 6}, {"x": next_version(None)}, [[("x", 1)]])
    assert merge(Side({"x": 5}, {"x": first}), ours, other, channels=channels).values["x"] == 7


@pytest.mark.parametrize(
    ("kind", "base", "ours", "theirs", "first", "second"),
    [(TOTAL, 5, 1, [2, 1], 8, 9), (LOG, ["a"], ["b"], [["c"], ["d"]], ["a", "b", "c"], ["a", "b", "c", "d"])],
)
def test_a_second_merge_starts_from_the_first(kind, base, ours, theirs, first, second):
    """Its base is what was merged last, which ours has changed already: here to the same number as theirs."""
    lines = Lines(InMemorySaver(), kind)
    lines.begin([base])
    lines.run("ours", [ours])
    lines.run("theirs", theirs[:1])
    sides = lines.sides()
    merged = merge(*sides, channels=lines.graph.channels)
    assert merged.values["x"] == first
    middle = sides[2]
    lines.base = lines.path("theirs")[-1].checkpoint["id"]
    lines.run("theirs", theirs[1:])
    versions = {**sides[1].versions, "x": next_version(sides[1].versions["x"])}
    again = merge(middle, Side(merged.values, versions), lines.side("theirs"), channels=lines.graph.channels)
    assert again.values["x"] == second


def test_values_from_nowhere_are_no_sequel():
    for ours, theirs in ((["a"], ["b"]), ({"a": 1}, {"b": 1}), ({1}, {2})):
        merged = merge(Side({}, {}), Side({"x": ours}, {}), Side({"x": theirs}, {}))
        assert "nothing was there before" in merged.conflicts[0].reason


def test_managed_values_and_unknown_channels_are_no_channels():
    sides = [Side({"x": value, "z": value}, {}) for value in (["a"], ["a", "b"], ["a", "c"])]
    merged = merge(*sides, channels={"x": object()})
    assert merged.values == {"x": ["a", "b", "c"], "z": ["a", "b", "c"]}
    assert merged.how == {"x": "extended", "z": "extended"}


def test_a_list_that_keeps_one_value_is_no_sequel():
    sides = [Side({"x": value}, {}) for value in (["a"], ["a", "b"], ["a", "c"])]
    assert merge(*sides, channels={"x": LastValue(list)}).conflicts
    assert merge(*sides, channels={"x": BinaryOperatorAggregate(list, latest)}).conflicts


# The writes on a line


def lone_line(saver: Any, graph: Any, thread_id: str = "t") -> list[CheckpointTuple]:
    """Return a thread's current line from its first checkpoint on."""
    path = [saver.get_tuple(thread(thread_id))]
    while path[0].parent_config is not None:
        path.insert(0, saver.get_tuple(path[0].parent_config))
    return path


def flat(steps: Any) -> list[list[tuple[str, Any]]]:
    return [list(step) for step in steps]


class Log(TypedDict):
    log: Annotated[list, operator.add]
    note: str


def wide_graph(saver: Any, asks: bool = False) -> Any:
    def ask(state: Log) -> dict[str, Any]:
        return {"log": [interrupt("?")] if asks else ["m"]}

    builder = StateGraph(Log)
    for name in ("z", "b", "a"):
        builder.add_node(name, lambda state, name=name: {"log": [name]}).add_edge(START, name)
    builder.add_node("m", ask).add_edge(START, "m")
    builder.add_node("last", lambda state: {"log": ["last"], "note": "done"})
    return builder.add_edge(["a", "b", "m", "z"], "last").compile(checkpointer=saver)


def test_writes_come_in_the_order_in_which_they_were_applied(any_saver):
    graph = wide_graph(any_saver)
    result = graph.invoke({"log": ["in"]}, thread("t"))
    steps = flat(writes_since(lone_line(any_saver, graph)))
    assert [value for step in steps for name, value in step if name == "log"] == [
        [one] for one in result["log"]
    ]
    assert [len(step) for step in steps] == [1, 4, 2]


def test_a_command_is_applied_before_the_tasks(any_saver):
    graph = wide_graph(any_saver, asks=True)
    graph.invoke({"log": ["in"]}, thread("t"))
    result = graph.invoke(Command(resume="yes", update={"log": ["command"]}), thread("t"))
    steps = flat(writes_since(lone_line(any_saver, graph)))
    assert [value for step in steps for name, value in step if name == "log"] == [
        [one] for one in result["log"]
    ]
    assert steps[1] == [("log", ["command"])]


def test_tasks_that_were_discarded_are_left_out(any_saver):
    graph = wide_graph(any_saver, asks=True)
    graph.invoke({"log": ["in"]}, thread("t"))
    graph.update_state(thread("t"), {"note": "by hand"}, as_node="last")
    assert flat(writes_since(lone_line(any_saver, graph)))[1:] == [[("note", "by hand")]]
    graph.invoke({"log": ["new"]}, thread("u"))
    graph.invoke({"log": ["newer"]}, thread("u"))
    path = lone_line(any_saver, graph, "u")
    assert flat(writes_since(path)) == [[("log", ["new"])], [], [("log", ["newer"])]]
    assert path[-1].checkpoint["channel_values"]["log"] == ["new", "newer"]


def test_replaying_from_an_earlier_checkpoint(any_saver):
    graph = wide_graph(any_saver)
    graph.invoke({"log": ["in"]}, thread("t"))
    history = list(graph.get_state_history(thread("t")))
    result = graph.invoke(None, history[1].config)
    path = lone_line(any_saver, graph)
    steps = writes_since(path)
    assert [value for step in steps for name, value in step if name == "log"] == [
        [one] for one in result["log"]
    ]
    copied = graph.update_state(history[1].config, None, as_node="__copy__")
    assert any_saver.get_tuple(copied).checkpoint["channel_values"]["log"] == result["log"][:-1]
    steps = writes_since(lone_line(any_saver, graph))
    assert [value for step in steps for name, value in step if name == "log"] == [
        [one] for one in result["log"][:-1]
    ]


def test_a_snapshot_is_no_write(any_saver):
    lines = Lines(any_saver, DELTA)
    lines.begin([["a"], ["b"]])
    history = list(lines.graph.get_state_history(thread("ours")))
    lines.plan[:] = [{"x": ["again"]}]
    lines.graph.invoke(None, history[1].config)
    path = lone_line(any_saver, lines.graph, "ours")
    assert any(isinstance(one.checkpoint["channel_values"].get("x"), _DeltaSnapshot) for one in path)
    writes = [write for step in flat(writes_since(path)) for write in step]
    assert writes == [("x", ["a"]), ("x", ["again"])]


def test_nothing_is_stored_on_exit(any_saver):
    lines = Lines(any_saver, LOG, durability="exit")
    lines.begin([["a"]])
    lines.run("ours", [["b"]])
    lines.run("theirs", [["c"], ["d"]])
    assert writes_since(lines.path("theirs")) is None
    lines.durability = "sync"
    lines.run("theirs", [["e"], MISSING])
    steps = flat(writes_since(lines.path("theirs")))
    assert [write for step in steps for write in step] == [("x", NOT_STORED), ("x", ["e"]), ("y", 1)]
    merged = merge(*lines.sides(), channels=lines.graph.channels)
    assert merged.values["x"] == ["a", "b", "c", "d", "e"]
    assert (merged.how["x"], merged.how["y"]) == ("extended", "theirs")


def test_what_is_written_to_a_delta_channel_is_stored_on_exit_too(any_saver):
    def add_up(one: int, writes: list[int]) -> int:
        return one + sum(writes)

    lines = Lines(any_saver, Annotated[int, DeltaChannel(add_up, int)])
    lines.begin([5])
    lines.durability = "exit"
    lines.run("ours", [1, 2])
    lines.run("theirs", [1, MISSING, 3])
    assert flat(writes_since(lines.path("theirs"))) == [[("x", 1), ("x", 3), ("y", NOT_STORED)]]
    merged = merge(*lines.sides(), channels=lines.graph.channels)
    assert (merged.values["x"], merged.how["x"]) == (12, "replayed")


def test_no_writes_are_no_unknown_writes(any_saver):
    lines = Lines(any_saver, LOG)
    lines.begin([["a"]])
    assert writes_since(lines.path("theirs")) == []
    assert writes_since([]) == []


SAID = [
    ("user", "hi"),
    "plain",
    {"role": "assistant", "content": "ho"},
    HumanMessage("object"),
    [HumanMessage("one"), AIMessage("known", id="k"), ("user", "two")],
    AIMessageChunk("chunk"),
    [RemoveMessage(REMOVE_ALL_MESSAGES), ("user", "anew")],
]


@pytest.mark.parametrize("said", SAID, ids=repr)
def test_messages_keep_the_ids_that_their_line_gave_them(said, any_saver):
    lines = Lines(any_saver, CHAT)
    lines.begin([[A]])
    lines.run("ours", [[B]])
    lines.run("theirs", [copy.deepcopy(said), [D]])
    base, ours, theirs = lines.sides()
    merged = merge(base, ours, theirs, channels=lines.graph.channels)
    removed = "remove_all" in repr(said)
    assert same(
        merged.values["x"], [*([] if removed else [A, B]), *theirs.values["x"][0 if removed else 1 :]]
    )
    # A lone pair comes back from the serializer as a list of two.
    assert merged.how["x"] == ("extended" if isinstance(said, tuple) else "replayed")


# Replaying against running


RUNS = {
    "sum": (TOTAL, st.integers(-9, 9)),
    "largest": (Annotated[int, largest], st.integers(-9, 9)),
    "set": (Annotated[set, union], st.sets(st.integers(0, 9), max_size=3)),
    "counters": (Annotated[dict, count], st.dictionaries(st.sampled_from("abc"), st.integers(1, 9))),
    "list": (LOG, st.lists(st.integers(0, 9), max_size=3)),
    "delta": (DELTA, st.lists(st.integers(0, 9), max_size=3)),
    "topic": (
        Annotated[list, Topic(int, accumulate=True)],
        st.lists(st.integers(0, 9), min_size=1, max_size=3),
    ),
    "distinct": (Annotated[list, distinct], st.lists(st.integers(0, 9), max_size=3)),
}


@pytest.mark.parametrize("name", RUNS)
@settings(max_examples=examples(25))
@given(data=st.data())
def test_a_merge_gives_what_the_branchs_nodes_would_give_on_ours(name, data):
    kind, values = RUNS[name]
    lines = Lines(InMemorySaver(), kind)
    base, ours, theirs = (data.draw(st.lists(values, max_size=3)) for _ in range(3))
    lines.begin(base)
    lines.run("ours", ours)
    copy_thread(lines.saver, "ours", "both")
    lines.run("theirs", theirs)
    lines.run("both", theirs)
    merged = merge(*lines.sides(), channels=lines.graph.channels)
    expected = lines.values(lines.saver.get_tuple(thread("both"))).get("x", MISSING)
    assert same(outcome(merged), expected)


# Properties


SCALARS = st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=2)
ANY = st.recursive(
    SCALARS | st.frozensets(st.integers(0, 3) | st.booleans(), max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=1), inner, max_size=3)
        | st.builds(HumanMessage, st.text(max_size=2), id=st.sampled_from("abc") | st.none())
    ),
    max_leaves=6,
)
STATES = st.dictionaries(st.sampled_from("pqrst"), ANY)
STRATEGIES = st.sampled_from(["three_way", "ours", "theirs"])


@given(base=STATES, other=STATES, strategy=STRATEGIES)
def test_merging_with_an_unchanged_side_gives_the_other(base, other, strategy):
    still, copied, moved = Side(base, {}), Side(copy.deepcopy(base), {}), Side(other, {})
    forward = merge(still, copied, moved, strategy=strategy)
    assert same(forward.values, other)
    assert not forward.resolved
    assert forward.deleted == base.keys() - other.keys()
    assert forward.changed == {name for name in other if not same(other[name], base.get(name, MISSING))}
    back = merge(still, moved, copied, strategy=strategy)
    assert same(back.values, other)
    assert (back.changed, back.deleted) == (set(), set())
    both = merge(still, moved, Side(copy.deepcopy(other), {}), strategy=strategy)
    assert same(both.values, other)
    assert not both.resolved


@given(base=STATES, ours=STATES, theirs=STATES, cut=st.sets(st.sampled_from("pqrst")))
def test_changes_to_different_channels_merge_alike_both_ways(base, ours, theirs, cut):
    here = {**{n: v for n, v in base.items() if n not in cut}, **{n: v for n, v in ours.items() if n in cut}}
    there = {
        **{n: v for n, v in base.items() if n in cut},
        **{n: v for n, v in theirs.items() if n not in cut},
    }
    sides = Side(base, {}), Side(here, {}), Side(there, {})
    forward, back = merge(*sides), merge(sides[0], sides[2], sides[1])
    assert not forward.conflicts
    assert same(forward.values, back.values)
    assert forward.changed | forward.deleted <= set("pqrst") - cut


@given(base=STATES, ours=STATES, theirs=STATES)
def test_what_is_put_together_holds_every_change(base, ours, theirs):
    """Where the values alone decide, no change is lost, and where they clash both sides changed it."""
    merged = merge(Side(base, {}), Side(ours, {}), Side(theirs, {}))
    for name in {*base, *ours, *theirs}:
        old, here, there = (part.get(name, MISSING) for part in (base, ours, theirs))
        if any(one.channel == name for one in merged.conflicts):
            assert not same(here, old)
            assert not same(there, old)
            assert not same(here, there)
        elif merged.how[name] == "extended" and isinstance(here, dict):
            check_entries(old, here, there, merged.values[name])


def check_entries(old: Any, here: Any, there: Any, found: Any) -> None:
    for key in {*old, *here, *there}:
        parts = [part.get(key, MISSING) for part in (old, here, there, found)]
        if same(parts[0], parts[1]):
            assert same(parts[3], parts[2])
        elif same(parts[0], parts[2]) or same(parts[1], parts[2]):
            assert same(parts[3], parts[1])
        else:
            check_entries(*parts)
