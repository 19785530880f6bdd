"""Which checkpoint last set each part of a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from test_engine_diff import NAN, OTHER_NAN, VALUES, Data, Opaque, Point, Raises, exact, messages

from langgraph_harness_saver.engine.blame import Blame, BlameStep, BlameTracer, blame
from langgraph_harness_saver.engine.compare import ABSENT, Step, Unresolved, path_text
from langgraph_harness_saver.engine.diff import diff_values

UNCHANGED = object()
"""Stands for a checkpoint that didn't write the channel."""


def line(*values: Any, extra: Any = ()) -> list[BlameStep]:
    """Make a line of checkpoints, oldest first."""
    steps: list[BlameStep] = []
    for step, value in enumerate(values, -1):
        changed = value is not UNCHANGED
        held = value if changed else steps[-1].value
        steps.append(
            BlameStep(
                checkpoint_id=f"{step + 1:08}-id",
                step=step,
                nodes=(f"node{step}",) if step >= 0 else (),
                source="loop" if step >= 0 else "input",
                run_id="run",
                created_at=f"2024-05-01T12:00:{step + 1:02}+00:00",
                value=held,
                changed=changed and not (step == -1 and value is ABSENT),
            )
        )
    return steps


def told(found: Blame) -> dict[str, int | None]:
    return {path_text(part.path): part.origin.step for part in found.parts}


def human(text: str, id: str | None = None) -> HumanMessage:
    return HumanMessage(text, id=id)


CASES = [
    ("a number", (1, 2, 2, 3, 3), {"": 2}),
    ("never set again", (1, UNCHANGED, UNCHANGED), {"": -1}),
    ("written, but the same", (1, 2, 2, 2), {"": 0}),
    ("of another type", (1, True, True), {"": 0}),
    ("NaN", (NAN, OTHER_NAN), {"": -1}),
    ("set to None", (1, None), {"": 0}),
    ("not there at first", (ABSENT, ABSENT, "a", "a"), {"": 1}),
    ("not there in between", ("a", ABSENT, "a"), {"": 1}),
    ("not there any more", ("a", ABSENT), {}),
    ("and back", (1, 2, 1), {"": 1}),
    ("can't be compared", (Raises(), Raises(), 1, Raises()), {"": 2}),
    ("an object", (Opaque(1), Opaque(1), Opaque(2), Opaque(2)), {"": 1}),
    ("unresolved", (Unresolved(0, 1), Unresolved(0, 2), UNCHANGED), {"": 0}),
    ("unresolved, the same", (Unresolved(0, 1, "v"), Unresolved(0, 1, "v")), {"": -1}),
    ("a snapshot", ([1], _DeltaSnapshot([1, 2]), [1, 2]), {"[0]": -1, "[1]": 0}),
    ("items", ([1], [1, 2], [0, 1, 2], [0, 1, 3]), {"[0]": 1, "[1]": -1, "[2]": 2}),
    ("items, the first ones dropped", ([1, 2], [2, 3], [3, 4]), {"[0]": 0, "[1]": 1}),
    ("items that repeat", ([0], [0, 0], [0, 0, 0]), {"[0]": -1, "[1]": 0, "[2]": 1}),
    ("a tuple", ((1, 2), (1, 3)), {"[0]": -1, "[1]": 0}),
    ("a list that was a tuple", ((1, 2), [1, 2]), {"[0]": 0, "[1]": 0}),
    ("an empty list", ([1], [], []), {"": 0}),
    ("keys", ({"a": 1}, {"a": 1, "b": 1}, {"b": 2, "a": 1}), {"['b']": 1, "['a']": -1}),
    (
        "keys of keys",
        ({"a": {"x": 1, "y": 1}}, {"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 2}, "b": {}}),
        {"['a']['x']": -1, "['a']['y']": 0, "['b']": 1},
    ),
    ("keys in items", ([{"a": 1, "b": 1}], [{"a": 1, "b": 2}]), {"[0]['a']": -1, "[0]['b']": 0}),
    (
        "too deep",
        ({"a": {"b": {"c": {"x": 1, "y": 1}}}}, {"a": {"b": {"c": {"x": 1, "y": 2}}}}),
        {"['a']['b']['c']": 0},
    ),
    ("a key that went and came", ({"a": 1}, {}, {"a": 1}), {"['a']": 1}),
    ("a set", ({1}, {1, 2}, {1, 2, True + 2}), {"{1}": -1, "{2}": 0, "{3}": 1}),
    ("fields", (Data(1, 1), Data(1, [1]), Data(1, [1, 2])), {".a": -1, ".b[0]": 0, ".b[1]": 1}),
    ("a named tuple", (Point(1, 1), Point(1, 2)), {".x": -1, ".y": 0}),
    (
        "messages",
        (
            [human("a", "1")],
            [human("a", "1"), human("b", "2")],
            [human("x", "1"), human("b", "2")],
            [human("c", "3"), human("b", "2"), human("x", "1")],
        ),
        {"[0]": 2, "[1]": 0, "[2]": 1},
    ),
    (
        "messages without ids",
        ([human("a")], [human("a"), human("b")], [human("b"), human("c")], [human("b"), human("d")]),
        {"[0]": 0, "[1]": 2},
    ),
    ("a message that was given an id", ([human("a")], [human("a", "1")]), {"[0]": 0}),
    ("a message removed and added", ([human("a", "1")], [], [human("a", "1")]), {"[0]": 1}),
    (
        "messages as dicts",
        ([{"role": "user", "content": "a", "id": 1}], [{"role": "user", "content": "b", "id": 1}]),
        {"[0]": 0},
    ),
    (
        "messages in a dict",
        ({"m": [human("a", "1")]}, {"m": [human("a", "1"), human("b", "2")]}),
        {"['m'][0]": -1, "['m'][1]": 0},
    ),
]


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest first", "newest first"])
@pytest.mark.parametrize(
    ("values", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_part_is_told_where_it_was_set(
    values: tuple[Any, ...], expected: dict[str, int], newest_first: bool
):
    history = line(*values)
    found = blame(reversed(history) if newest_first else history, "c")
    assert told(found) == expected
    assert not any(part.boundary for part in found.parts)


def test_a_part_names_checkpoint_node_and_run():
    (old, new) = blame(line([1], [1, 2]), "c").parts
    assert new.path == (Step("index", None, None, 1),)
    assert new.value == 2
    assert new.origin.to_dict() == {
        "checkpoint_id": "00000001-id",
        "step": 0,
        "nodes": ["node0"],
        "source": "loop",
        "run_id": "run",
        "created_at": "2024-05-01T12:00:01+00:00",
    }
    assert (old.origin.nodes, old.origin.source) == ((), "input")
    assert not hasattr(new.origin, "value")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, {"": 1}),
        (1, {"['a']": 1, "['d']": -1}),
        (2, {"['a']['b']": 1, "['d']": -1}),
        (3, {"['a']['b'][0]": 0, "['a']['b'][1]": 1, "['d']": -1}),
        (None, {"['a']['b'][0]['x']": 0, "['a']['b'][1]": 1, "['d']": -1}),
    ],
)
def test_how_deep_parts_are_told_apart(depth: int | None, expected: dict[str, int]):
    values = ({"d": 1}, {"a": {"b": [{"x": 1}]}, "d": 1}, {"a": {"b": [{"x": 1}, 2]}, "d": 1})
    assert told(blame(line(*values), "c", depth=depth)) == expected


def test_a_line_that_begins_in_the_middle_has_a_boundary():
    history = line([1], [1, 2], UNCHANGED, [1, 2, 3])
    found = blame(history[1:], "c", complete=False)
    assert [(part.origin.step, part.boundary) for part in found.parts] == [(0, True), (0, True), (2, False)]
    assert str(found).startswith("^00000001")
    found = blame(history[2:], "c")
    assert [(part.origin.step, part.boundary) for part in found.parts] == [(1, True), (1, True), (2, False)]


def test_no_checkpoints_no_parts():
    assert blame([], "c").parts == ()
    assert str(blame([], "c")) == "nothing"
    assert blame([], "c").to_dict() == {"channel": "c", "parts": []}


@pytest.mark.parametrize("values", [(1,), ([1, 2],), (ABSENT,)])
def test_one_checkpoint(values: tuple[Any, ...]):
    assert set(told(blame(line(*values), "c")).values()) <= {-1}


def test_newest_first_it_reads_no_farther_than_needed():
    read: list[int | None] = []

    def steps() -> Iterator[BlameStep]:
        for step in reversed(line(*range(1_000))):
            read.append(step.step)
            yield step

    assert told(blame(steps(), "c")) == {"": 998}
    assert read == [998, 997]


def test_values_that_are_not_needed_are_not_looked_at():
    history = line([1], UNCHANGED, [1, 2], UNCHANGED, UNCHANGED, [1, 2, 3])
    tracer = BlameTracer("c")
    needed: list[int | None] = []
    for step in reversed(history):
        if tracer.needs_value:
            needed.append(step.step)
        else:
            step = BlameStep(**{**vars(step), "value": ABSENT})
        tracer.add(step)
    assert needed == [4, 3, 0]
    assert told(tracer.result()) == {"[0]": -1, "[1]": 1, "[2]": 4}


def test_what_is_known_so_far_can_be_asked_for_meanwhile():
    tracer = BlameTracer("c")
    *rest, last = line([1], [1, 2])
    assert tracer.result().parts == ()
    assert not tracer.add(last)
    assert [part.boundary for part in tracer.result(complete=False).parts] == [True, True]
    assert not tracer.add(*rest)
    assert told(tracer.result()) == {"[0]": -1, "[1]": 0}


def test_steps_without_numbers_are_ordered_by_id():
    steps = [BlameStep(checkpoint_id=name, value=value) for name, value in (("1", "a"), ("2", "b"))]
    assert [part.origin.checkpoint_id for part in blame(steps, "c").parts] == ["2"]
    assert [part.origin.checkpoint_id for part in blame(steps[::-1], "c").parts] == ["2"]


def test_values_that_hold_themselves():
    def ring(x: int) -> dict[str, Any]:
        value: dict[str, Any] = {"x": x, "y": 0}
        value["me"] = value
        value["again"] = [value]
        return value

    found = told(blame(line(ring(1), ring(2)), "c", depth=None))
    assert (found["['x']"], found["['y']"]) == (0, -1)


def test_it_reads_like_git_blame():
    call = {"name": "weather", "args": {}, "id": "c"}
    first, second = human("What is the weather?", "1"), AIMessage("", id="2", tool_calls=[call])
    found = blame(
        line([first], UNCHANGED, [first, second], [first, second, human("\x1b[2J", "3")]), "messages"
    )
    assert (
        str(found)
        == """\
00000000 (input step -1 2024-05-01 12:00:00) [0] human: 'What is the weather?'
00000002 (node1 step 1  2024-05-01 12:00:02) [1] ai: '' calls weather
00000003 (node2 step 2  2024-05-01 12:00:03) [2] human: '\\x1b[2J'"""
    )
    assert "\x1b[33m00000000" in found.render(colour=True)
    assert max(map(len, found.render(width=30).splitlines())) == 30


def test_it_can_be_told_as_json():
    found = blame(line({"a": NAN}, {"a": NAN, "b": {b"\xff"}}), "c").to_dict()
    json.dumps(found, allow_nan=False)
    assert found["channel"] == "c"
    assert [(part["path"], part["value"], part["step"], part["boundary"]) for part in found["parts"]] == [
        ("['a']", "NaN", -1, False),
        ("['b']{b'\\xff'}", "/w==", 0, False),
    ]
    assert found["parts"][0]["steps"] == [{"kind": "key", "key": "a"}]


# --- whatever the values -------------------------------------------------------------------------------


@settings(max_examples=examples(200))
@given(st.lists(VALUES, min_size=1, max_size=6))
def test_what_is_told_of_any_line(values: list[Any]):
    found = blame(line(*values), "c", depth=None)
    for part in found.parts:
        at = part.origin.step + 1
        # It was there from then on, and wasn't before, or not in this place.
        assert all(holds(value, part.value) for value in values[at:])
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)
    if not diff_values({"c": values[-1]}, {"c": values[0]}) and len({repr(exact(v)) for v in values}) == 1:
        assert {part.origin.step for part in found.parts} == {-1}


def holds(value: Any, part: Any) -> bool:
    """Tell whether a value is a part or has it somewhere inside."""
    if exact(value) == exact(part):
        return True
    if isinstance(value, dict):
        inside: Any = value.values()
    elif isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        inside = vars(value).values() if isinstance(value, Data) else ()
    elif hasattr(value, "model_fields_set"):
        inside = (item for _, item in value)
    else:
        inside = value
    return any(holds(item, part) for item in inside)


@settings(max_examples=examples(100))
@given(st.lists(st.lists(messages(), max_size=4), min_size=2, max_size=5))
def test_two_checkpoints_differ_in_what_the_later_one_has_set(values: list[Any]):
    """What a difference names as added or edited is what blame says that checkpoint has set."""
    *_, before, after = values
    found = {
        path_text(part.path)
        for part in blame(line(*values), "c").parts
        if part.origin.step == len(values) - 2
    }
    diff = diff_values({"c": before}, {"c": after})
    named = {
        f"[{change.path[0].after}]"
        for change in diff.channels["c"].messages
        if change.kind in ("added", "edited")
    }
    assert found - {""} == named


@pytest.mark.parametrize("kind", ["messages", "dicts", "numbers", "window", "counts"])
def test_a_long_history(kind: str):
    """Every value is read anew, as from a store."""
    size = 2_000

    def value(n: int) -> Any:
        if kind == "messages":
            return [human(f"message {i}", f"{i}") for i in range(n // 3)]
        if kind == "dicts":
            return [{"i": i} for i in range(n // 3)]
        if kind == "numbers":
            return list(range(n))
        if kind == "window":
            return [human(f"message {i}", f"{i}") for i in range(max(0, n - 20), n)]
        return {f"key {i}": n // (i + 1) for i in range(50)}

    found = blame((step for n in range(size, -1, -1) for step in line_at(n, value(n))), "c")
    expected = {
        "messages": lambda i: 3 * i + 3,
        "dicts": lambda i: 3 * i + 3,
        "numbers": lambda i: i + 1,
        "window": lambda i: size - 20 + i + 1,
        "counts": lambda i: size - size % (i + 1),
    }[kind]
    assert [part.origin.step for part in found.parts] == [expected(i) for i in range(len(found.parts))]
    assert len(found.parts) == len(value(size))


def line_at(n: int, value: Any) -> Iterator[BlameStep]:
    yield BlameStep(checkpoint_id=f"{n:08}", step=n, value=value)


def test_parts_are_the_value_in_its_own_order():
    values = [{"b": [1, {"x": 2}], "a": (3,)}]
    paths = [path_text(part.path) for part in blame(line(*values), "c").parts]
    assert paths == ["['b'][0]", "['b'][1]['x']", "['a'][0]"]
