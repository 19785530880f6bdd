"""What differs between two checkpoints' values: strictly, and the same from both sides."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from datetime import datetime, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
from helpers import examples, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send
from pydantic import BaseModel, ConfigDict

from langgraph_harness_saver.engine.compare import ABSENT, Step, Unresolved, align, in_order, path_text, same
from langgraph_harness_saver.engine.diff import Change, CheckpointDiff, diff_values, text_pieces

NAN, OTHER_NAN = float("nan"), -float("nan")
Point = namedtuple("Point", "x y")


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str = "a"
    tags: list[Any] = []


@dataclasses.dataclass
class Data:
    a: Any = 1
    b: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any = 1


@attrs.define
class Attrs:
    a: Any = 1


class Raises:
    """Can't be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None


class Unprintable(Raises):
    def __repr__(self) -> str:
        raise RuntimeError("not printable")


class Plain:
    """Has no equality of its own."""

    def __init__(self, x: Any) -> None:
        self.x = x


class Opaque:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.x == other.x

    def __hash__(self) -> int:
        return hash(self.x)

    def __repr__(self) -> str:
        return f"Opaque({self.x!r})"


def human(text: Any, id: str | None = None, **fields: Any) -> HumanMessage:
    return HumanMessage(text, id=id, **fields)


def ai(text: Any, id: str | None = None, **fields: Any) -> AIMessage:
    return AIMessage(text, id=id, **fields)


def changes(before: Any, after: Any) -> tuple[Change, ...]:
    return diff_values({"c": before}, {"c": after}).channels["c"].changes


def brief(found: tuple[Change, ...]) -> list[Any]:
    """Tell changes as text: kind and path, and the parts of edited messages."""
    return [[line(change), *brief(change.parts)] if change.parts else line(change) for change in found]


def line(change: Change) -> str:
    moved = " moved" if change.kind == "edited" and change.moved else ""
    return f"{change.kind} {path_text(change.path)}".strip() + moved


# --- channels ------------------------------------------------------------------------------------------


def test_channels_are_told_by_what_became_of_them():
    before = {"same": 1, "gone": 2, "other": 3, "none": None, "branch:to:a": None, "__start__": {"x": 1}}
    after = {"same": 1, "new": None, "other": 4, "none": None, "branch:to:b": None, "join:a+b:c": {"a"}}
    diff = diff_values(before, after)
    assert diff
    assert diff.added == ("new",)
    assert diff.removed == ("gone",)
    assert diff.changed == ("other",)
    assert diff.unchanged == ("none", "same")
    assert diff.unresolved == ()
    routing = {name: one.kind for name, one in diff.channels.items() if one.routing}
    assert routing == {
        "__start__": "removed",
        "branch:to:a": "removed",
        "branch:to:b": "added",
        "join:a+b:c": "added",
    }
    assert diff.channels["new"].changes[0].after is None
    assert diff.channels["new"].changes[0].before is ABSENT


def test_nothing_differs():
    values = {"a": [1, {"b": {2, 3}}], "branch:to:x": None}
    diff = diff_values(values, {"branch:to:x": None, "a": [1, {"b": {3, 2}}]})
    assert not diff
    assert not diff_values({}, {})
    assert diff.to_dict()["channels"] == {}
    assert str(diff) == " 1 unchanged"
    assert str(diff_values({}, {})) == " no channels"


def test_only_routing_differs():
    diff = diff_values({"a": 1}, {"a": 1, "branch:to:x": None})
    assert diff
    assert str(diff) == " 1 unchanged, 1 of routing not shown"
    assert "branch:to:x" in diff.render(routing=True)


def test_a_state_that_is_one_value_is_not_routing():
    diff = diff_values({"__root__": [1], "__previous__": 1, "__end__": 1}, {"__root__": [2]})
    assert (diff.changed, diff.removed) == (("__root__",), ("__end__", "__previous__"))


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (Unresolved(3, 2), Unresolved(3, 2), "unresolved"),
        (Unresolved(3, 2, "v1"), Unresolved(3, 2, "v1"), "unchanged"),
        (Unresolved(3, 2, "v1"), Unresolved(3, 2, "v2"), "unresolved"),
        (Unresolved(None, 2), ["a"], "unresolved"),
        (["a"], Unresolved(None, 2), "unresolved"),
    ],
)
def test_what_only_a_reducer_can_tell_is_told_so(before: Any, after: Any, kind: str):
    diff = diff_values({"d": before}, {"d": after})
    assert diff.channels["d"].kind == kind
    assert bool(diff) == (kind != "unchanged")


def test_the_same_unresolved_value_is_unchanged():
    values = {"d": Unresolved(3, 2)}
    assert not diff_values(values, values)


def test_unresolved_values_are_shown_as_seed_and_writes():
    diff = diff_values({"d": Unresolved(3, 1), "gone": Unresolved(None, 4)}, {"d": [1]})
    assert diff.unresolved == ("d",)
    assert "seed (step 3) + 1 write -> [1]" in str(diff)
    assert "seed + 4 writes" in str(diff)
    told = diff.to_dict()["channels"]["d"]["changes"][0]
    assert told["before"] == {"unresolved": "seed (step 3) + 1 write", "seed_step": 3, "writes": 1}
    assert told["kind"] == "unresolved"


def test_the_snapshot_of_a_delta_channel_is_its_value():
    assert not diff_values({"d": _DeltaSnapshot([1])}, {"d": [1]})
    assert brief(changes(_DeltaSnapshot([1]), [1, 2])) == ["added [1]"]


# --- values --------------------------------------------------------------------------------------------

EQUAL = [
    (NAN, OTHER_NAN),
    ([NAN, 1], [OTHER_NAN, 1]),
    ({"a": {"b": NAN}}, {"a": {"b": OTHER_NAN}}),
    ({NAN: 1}, {OTHER_NAN: 1}),
    ({NAN}, {OTHER_NAN}),
    (0.0, -0.0),
    (Decimal("NaN"), Decimal("NaN")),
    (complex(NAN, 0), complex(NAN, 0)),
    (np.float64("nan"), np.float64("nan")),
    (np.array([1.0, NAN]), np.array([1.0, NAN])),
    (np.array([1, "a"], dtype=object), np.array([1, "a"], dtype=object)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1, "a", (2,)}, {(2,), "a", 1}),
    (Model(name="x", more=[1]), Model(name="x", more=[1])),
    (Data([1], {2}), Data([1], {2})),
    (Plain([1, NAN]), Plain([1, NAN])),
    (ValueError("a", 1), ValueError("a", 1)),
    (Opaque(1), Opaque(1)),
    ([Opaque(1), {2}], [Opaque(1), {2}]),
    (Send("n", {"a": 1}), Send("n", {"a": 1})),
    ("\ud800", "\ud800"),
    (2**70, 2**70),
    (b"a", bytearray(b"a")),
    (datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1, tzinfo=timezone.utc)),
]


@pytest.mark.parametrize(("a", "b"), EQUAL, ids=name_of)
def test_the_same(a: Any, b: Any):
    assert same(a, b)
    assert same([a], [b])
    assert not diff_values({"c": a}, {"c": b})
    assert not diff_values({"c": {"x": [a]}}, {"c": {"x": [b]}})


DIFFERENT = [
    (1, True, ["changed"]),
    (1, 1.0, ["changed"]),
    (0, False, ["changed"]),
    (None, 0, ["changed"]),
    ([1, 2], [True, 2], ["changed [0]"]),
    ([1, 2], [1, 2.0], ["changed [1]"]),
    ({"a": 1}, {"a": True}, ["changed ['a']"]),
    ({1: "a"}, {True: "a"}, ["removed [1]", "added [True]"]),
    ({1}, {True}, ["removed {1}", "added {True}"]),
    ((1,), [1], ["changed"]),
    ([(1, 2)], [[1, 2]], ["changed [0]"]),
    ({"a"}, frozenset({"a"}), ["changed"]),
    ({"a": 1}, OrderedDict(a=1), ["changed"]),
    (deque([1, 2]), deque([1]), ["removed [1]"]),
    (defaultdict(int, a=1), defaultdict(int, a=2), ["changed ['a']"]),
    (UserDict(a=1), UserDict(a=2), ["changed ['a']"]),
    (Model(), Model(name="b", more=1), ["changed .name", "added .more"]),
    (Model(tags=[{"a": 1}]), Model(tags=[{"a": 2}]), ["changed .tags[0]['a']"]),
    (Data(1), Data(True), ["changed .a"]),
    (Slotted(1), Slotted(2), ["changed .a"]),
    (Attrs({"x": 1}), Attrs({"x": 2}), ["changed .a['x']"]),
    (Point(1, 2), Point(1, 3), ["changed .y"]),
    (Point(1, 2), (1, 2), ["changed"]),
    (Data(1), Slotted(1), ["changed"]),
    ({"a": {"b": [1, {"c": 1}]}}, {"a": {"b": [1, {"c": 2}]}}, ["changed ['a']['b'][1]['c']"]),
    ({"a": 1, "b": 2}, {"b": 2, "c": 3}, ["removed ['a']", "added ['c']"]),
    ({("x", 1): 1}, {("x", 1): 2}, ["changed [('x', 1)]"]),
    ([1, 2, 3], [0, 1, 2, 3], ["added [0]"]),
    ([1, 2, 3, 4], [1, 3, 4], ["removed [1]"]),
    ([{"a": 1}, {"a": 2}], [{"x": 0}, {"a": 1}, {"a": 2}], ["added [0]"]),
    ([1, 2, 3], [1, 9, 3, 4], ["changed [1]", "added [3]"]),
    ([{"a": 1, "b": 1}], [{"b": 1, "a": 2}], ["changed [0]['a']"]),
    ([], [1], ["added [0]"]),
    ({1, 2}, {2, 3}, ["removed {1}", "added {3}"]),
    (np.arange(3), np.array([0, 1, 5]), ["changed"]),
    (np.array([1]), np.array([1.0]), ["changed"]),
    (np.array([1]), np.array([1, 1]), ["changed"]),
    (np.float64(1), 1.0, ["changed"]),
    (Opaque(1), Opaque(2), ["changed"]),
    ([Opaque(1)], [Opaque(1), Opaque(2)], ["added [1]"]),
    (Plain(1), Plain(True), ["changed"]),
    (ValueError("a"), ValueError("b"), ["changed"]),
    (Raises(), Raises(), ["changed"]),
    ({"a": Raises(), "b": 1}, {"a": Raises(), "b": 1}, ["changed ['a']"]),
    ([1, Raises()], [1, Raises(), 2], ["changed [1]", "added [2]"]),
    ({NAN: 1, OTHER_NAN: 2}, {NAN: 1}, ["changed"]),
    ({NAN: 1, OTHER_NAN: 1}, {NAN: 1}, ["changed"]),
    ({NAN, OTHER_NAN}, {NAN}, ["changed"]),
    ("a", b"a", ["changed"]),
]


@pytest.mark.parametrize(("before", "after", "expected"), DIFFERENT, ids=name_of)
def test_what_differs(before: Any, after: Any, expected: list[str]):
    assert not same(before, after)
    assert brief(changes(before, after)) == expected
    swap = {"added": "removed", "removed": "added", "changed": "changed"}
    back = [change.kind for change in changes(after, before)]
    assert sorted(back) == sorted(swap[line.split()[0]] for line in expected)


def test_a_change_holds_both_values():
    (change,) = changes({"a": [1, 2]}, {"a": [1, 3]})
    assert (change.before, change.after) == (2, 3)
    assert change.path == (Step("key", "a"), Step("index", None, 1, 1))


def test_what_cannot_be_compared_says_why():
    (change,) = changes(Raises(), Raises())
    assert change.note == "can't be compared: RuntimeError('not comparable')"
    assert "not comparable" in str(diff_values({"c": Raises()}, {"c": Raises()}))


def test_the_same_object_is_the_same_even_if_it_cannot_be_compared():
    value = {"a": Raises(), "b": [NAN, Unprintable()]}
    assert not diff_values({"c": value}, {"c": value})


def test_what_cannot_be_printed_is_told_by_its_type():
    diff = diff_values({"c": {"a": Unprintable()}}, {"c": {"a": Unprintable(), "b": {Plain(Unprintable())}}})
    assert "Unprintable" in str(diff)
    assert "Unprintable" in json.dumps(diff.to_dict())


def test_values_that_hold_themselves():
    def ring(x: Any) -> dict[str, Any]:
        value: dict[str, Any] = {"x": x}
        value |= {"me": value, "again": [value]}
        return value

    assert not diff_values({"c": ring(1)}, {"c": ring(1)})
    diff = diff_values({"c": ring(1)}, {"c": ring(2)})
    assert "changed ['x']" in brief(diff.channels["c"].changes)
    assert str(diff)
    json.dumps(diff.to_dict())


@pytest.mark.parametrize("levels", [50, 400, 5_000])
def test_values_that_are_deep(levels: int):
    def deep(x: Any) -> Any:
        for _ in range(levels):
            x = [x]
        return x

    diff = diff_values({"c": deep(1)}, {"c": deep(2)})
    assert diff.changed == ("c",)
    assert str(diff)
    json.dumps(diff.to_dict())


# --- messages ------------------------------------------------------------------------------------------

A, B, C, D = (human(name, name) for name in "abcd")
MESSAGES = [
    ("appended", [A], [A, B], ["added [1]"]),
    ("first ones", [], [A, B], ["added [0]", "added [1]"]),
    ("removed", [A, B, C], [A, C], ["removed [1]"]),
    ("trimmed", [A, B, C], [B, C, D], ["removed [0]", "added [2]"]),
    ("edited", [A, B], [human("x", "a"), B], [["edited [0]", "changed .content"]]),
    ("moved", [A, B, C], [C, A, B], ["moved [0]"]),
    ("edited and moved", [A, B, C], [human("x", "c"), A, B], [["edited [0] moved", "changed .content"]]),
    ("replaced", [A], [B], ["removed [0]", "added [0]"]),
    ("another kind", [A], [ai("a", "a")], [["edited [0]", "changed"]]),
    ("a field", [A], [human("a", "a", name="me")], [["edited [0]", "changed .name"]]),
    ("no ids, appended", [human("a")], [human("a"), ai("b")], ["added [1]"]),
    ("no ids, inserted", [human("a"), ai("b")], [human("x"), human("a"), ai("b")], ["added [0]"]),
    ("no ids, edited", [human("a"), ai("b")], [human("a"), ai("x")], [["edited [1]", "changed .content"]]),
    ("no ids, another role", [human("a")], [ai("a")], ["removed [0]", "added [0]"]),
    ("given an id", [human("a"), B], [A, B], [["edited [0]", "changed .id"]]),
    ("given ids, text too", [human("a")], [human("x", "1")], ["removed [0]", "added [0]"]),
    ("one id twice", [A, A], [A, A, A], ["added [2]"]),
    ("one id twice, one edited", [A, A], [A, human("x", "a")], [["edited [1]", "changed .content"]]),
    ("one id twice, one removed", [A, B, A], [A, B], ["removed [2]"]),
    (
        "dicts",
        [{"role": "user", "content": "a", "id": "1"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "x", "id": "1"}, {"role": "assistant", "content": "b"}],
        [["edited [0]", "changed ['content']"]],
    ),
    (
        "dicts, moved",
        [{"role": "user", "content": "a", "id": 1}, {"role": "user", "content": "b", "id": 2}],
        [{"role": "user", "content": "b", "id": 2}, {"role": "user", "content": "a", "id": 1}],
        ["moved [1]"],
    ),
    (
        "dicts that became messages",
        [{"role": "human", "content": "a"}],
        [human("a", "1")],
        ["removed [0]", "added [0]"],
    ),
    (
        "tool calls",
        [ai("", "1", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c"}])],
        [ai("", "1", tool_calls=[{"name": "f", "args": {"x": 2}, "id": "c"}])],
        [["edited [0]", "changed .tool_calls[0]['args']['x']"]],
    ),
    (
        "content in blocks",
        [human([{"type": "text", "text": "a"}], "1")],
        [human([{"type": "text", "text": "b"}, "c"], "1")],
        [["edited [0]", "changed .content[0]['text']", "added .content[1]"]],
    ),
    (
        "an artifact that can't be packed",
        [ToolMessage("a", tool_call_id="c", id="1", artifact={1, 2})],
        [ToolMessage("a", tool_call_id="c", id="1", artifact={1, 3})],
        [["edited [0]", "removed .artifact{2}", "added .artifact{3}"]],
    ),
    ("mixed with others", [A, 1], [A, 2], ["changed [1]"]),
]


@pytest.mark.parametrize(
    ("before", "after", "expected"), [case[1:] for case in MESSAGES], ids=[c[0] for c in MESSAGES]
)
def test_messages(before: list[Any], after: list[Any], expected: list[Any]):
    assert brief(changes(before, after)) == expected
    inner = brief(changes({"in": before}, {"in": after}))
    assert json.dumps(inner).replace("['in']", "") == json.dumps(expected)


def test_messages_are_told_by_id_and_place():
    diff = diff_values({"m": [A, B, C]}, {"m": [C, human("x", "a"), D]})
    told = [(one.kind, one.moved, one.path[-1]) for one in diff.channels["m"].messages]
    assert told == [
        ("removed", False, Step("message", "b", 1, None)),
        ("edited", True, Step("message", "a", 0, 1)),
        ("added", False, Step("message", "d", None, 2)),
    ]
    assert "~ [0 -> 1] a human" in str(diff)


def test_a_channel_without_messages_has_none():
    assert diff_values({"m": [1]}, {"m": [2]}).channels["m"].messages == ()


def test_edited_text_comes_with_its_own_difference():
    (change,) = changes([human("the quick brown fox", "1")], [human("the slow red fox", "1")])
    (part,) = change.parts
    assert [tuple(piece) for piece in part.text] == [
        (" ", "the "),
        ("-", "quick brown"),
        ("+", "slow red"),
        (" ", " fox"),
    ]


# --- text ----------------------------------------------------------------------------------------------

TEXTS = [
    ("", "a"),
    ("a\nb\nc\n", "a\nx\nc\n"),
    ("a\nb", "a\nb\n"),
    ("one two three", "one three"),
    ("word " * 5_000, "word " * 4_999 + "end"),
    ("\n".join(map(str, range(5_000))), "\n".join(map(str, range(0, 5_000, 3)))),
    ("a b " * 3_000, "b a c " * 2_000),
    ("x\r\ny\u2028z\x0c", "x\ny\u2028w\x0c"),
]


@pytest.mark.parametrize(("before", "after"), TEXTS, ids=range(len(TEXTS)))
def test_pieces_are_the_two_texts(before: str, after: str):
    for old, new in ((before, after), (after, before)):
        check_pieces(old, new)


def check_pieces(before: str, after: str) -> None:
    pieces = text_pieces(before, after)
    assert "".join(piece.text for piece in pieces if piece.kind != "+") == before
    assert "".join(piece.text for piece in pieces if piece.kind != "-") == after
    assert all(piece.text for piece in pieces)
    assert all(one.kind != other.kind for one, other in pairwise(pieces))


@given(st.text(alphabet="ab \n."), st.text(alphabet="ab \n."))
def test_pieces_of_any_texts(before: str, after: str):
    check_pieces(before, after)


# --- whatever the values -------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.0, 1.0, NAN, math.inf, 2**80]),
    st.text(alphabet="ab \n", max_size=6),
    st.binary(max_size=2),
    st.sampled_from([np.array([1, 2]), np.array([1.0, NAN]), Opaque(1), Opaque(2), Plain(1), Decimal("NaN")]),
)
KEYS = st.one_of(st.text(alphabet="abc", max_size=1), st.integers(0, 2), st.booleans(), st.just(NAN))
IDS = st.one_of(st.none(), st.sampled_from("pqrs"))
FIELDS = st.fixed_dictionaries({}, optional={"name": st.sampled_from("xy")})


@st.composite
def messages(draw: st.DrawFn) -> Any:
    role, text, id_ = draw(st.sampled_from("hsad")), draw(st.text(alphabet="ab ", max_size=3)), draw(IDS)
    if role == "d":
        return {"role": "user", "content": text, **({"id": id_} if id_ else {})}
    kind: type[BaseMessage] = {"h": HumanMessage, "s": SystemMessage, "a": AIMessage}[role]
    return kind(text, id=id_, **draw(FIELDS))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=3),
        st.builds(Data, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(lambda tags: Model(tags=tags), st.lists(inner, max_size=3)),
    )


VALUES = st.one_of(st.recursive(LEAVES, containers, max_leaves=12), st.lists(messages(), max_size=6))
CHANNELS = st.dictionaries(st.sampled_from(["a", "b", "branch:to:x"]), VALUES, max_size=3)


def exact(value: Any) -> Any:
    """Tell a value so that `==` of two such is what `same` should say: written apart from it."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return (kind, sorted(((exact(k), exact(v)) for k, v in value.items()), key=repr))
    if isinstance(value, (set, frozenset)):
        return (kind, sorted(map(exact, value), key=repr))
    if isinstance(value, (list, tuple, deque)):
        return (kind, [exact(item) for item in value])
    if isinstance(value, np.ndarray):
        return (kind, str(value.dtype), exact(value.tolist()))
    if isinstance(value, BaseModel):
        return (kind, exact({**dict(value), **(value.__pydantic_extra__ or {})}))
    if isinstance(value, (Data, Plain)):
        return (kind, exact(vars(value)))
    return (kind, repr(value))


def patched(value: Any, found: tuple[Change, ...]) -> Any:
    """Apply the changes to the earlier value."""
    if not found:
        return value
    for change in found:
        if not change.path:
            return change.after
    inner: dict[Any, list[Change]] = {}
    here: dict[Any, Change] = {}
    for change in found:
        step = change.path[0]
        if len(change.path) == 1 and change.kind != "changed":
            here[key_of(step)] = change
        else:
            rest = dataclasses.replace(change, path=change.path[1:])
            inner.setdefault(key_of(step), []).append(rest)
    if isinstance(value, (set, frozenset)):
        removed = [change.before for change in here.values() if change.kind == "removed"]
        kept = [item for item in value if not any(same(item, gone) for gone in removed)]
        return type(value)([*kept, *(change.after for change in here.values() if change.kind == "added")])
    if isinstance(value, (Data, Point, Model, BaseMessage)):
        names = (
            dict(value) if isinstance(value, BaseModel) else {n: getattr(value, n) for n in fields_of(value)}
        )
        new = {n: patched(item, tuple(inner.get(("field", exact(n)), ()))) for n, item in names.items()}
        return type(value)(**new)
    if isinstance(value, dict):
        return patched_dict(value, here, inner)
    return patched_list(value, here, inner)


def fields_of(value: Any) -> list[str]:
    return list(value._fields) if isinstance(value, tuple) else [f.name for f in dataclasses.fields(value)]


def key_of(step: Step) -> Any:
    if step.kind in ("index", "message"):
        return (step.before, step.after)
    return (step.kind, exact(step.key))


def patched_dict(value: Any, here: dict[Any, Change], inner: dict[Any, list[Change]]) -> Any:
    result = {}
    for key, item in value.items():
        name = ("key", exact(key))
        if name in here and here[name].kind == "removed":
            continue
        result[key] = patched(item, tuple(inner.get(name, ())))
    return result | {change.path[0].key: change.after for change in here.values() if change.kind == "added"}


def patched_list(value: Any, here: dict[Any, Change], inner: dict[Any, list[Change]]) -> Any:
    parts = {before: tuple(some) for (before, _), some in inner.items()}
    gone, came = set(), {}
    for (before, after), change in here.items():
        if change.kind in ("edited", "moved"):
            new = patched(change.before, change.parts) if change.parts else change.before
            if change.moved:
                gone.add(before)
                came[after] = new
            else:
                parts[before] = (dataclasses.replace(change, path=(), after=new),)
        elif change.kind == "removed":
            gone.add(before)
        else:
            came[after] = change.after
    result = [patched(item, parts.get(n, ())) for n, item in enumerate(value) if n not in gone]
    for index in sorted(came):
        result.insert(index, came[index])
    return type(value)(result)


@settings(max_examples=examples(400))
@given(VALUES, VALUES)
def test_applying_a_difference_gives_the_later_value(before: Any, after: Any):
    found = changes(before, after)
    assert bool(found) == (exact(before) != exact(after))
    assert exact(patched(before, found)) == exact(after)


@settings(max_examples=examples(100))
@given(st.lists(messages(), max_size=8), st.data())
def test_applying_a_difference_gives_the_later_messages(before: list[Any], data: st.DataObject):
    """As `VALUES` do, but the two have something in common."""
    kept = data.draw(st.permutations(before)) if before else []
    after = kept[: data.draw(st.integers(0, len(kept)))] + data.draw(st.lists(messages(), max_size=2))
    found = changes(before, after)
    assert bool(found) == (exact(before) != exact(after))
    assert exact(patched(before, found)) == exact(after)


def mirrored(told: dict[str, Any]) -> Any:
    """Turn a difference as JSON round, in an order of its own."""
    names = {"added": "removed", "removed": "added", "before": "after", "after": "before"}

    def turn(item: Any, within: str = "") -> Any:
        if isinstance(item, list) and within == "text":
            signs = {"-": "+", "+": "-", " ": " "}
            return [[signs[sign], text] for sign, text in item]
        if isinstance(item, list):
            return [turn(one) for one in item]
        if isinstance(item, dict):
            return {names.get(key, key): turn(one, key) for key, one in item.items() if key != "path"}
        return names.get(item, item) if within == "kind" else item

    return turn(told)


def sorted_told(told: Any, within: str = "") -> Any:
    if isinstance(told, dict):
        return {key: sorted_told(item, key) for key, item in told.items() if key != "path"}
    if isinstance(told, list):
        items = [sorted_told(item) for item in told]
        return sorted(items, key=repr) if within in ("changes", "parts", "text") else items
    return told


def check_mirror(before: Any, after: Any) -> None:
    there, back = diff_values({"c": before}, {"c": after}), diff_values({"c": after}, {"c": before})
    assert sorted_told(mirrored(there.to_dict())) == sorted_told(back.to_dict())
    assert bool(there) == bool(back)


@settings(max_examples=examples(300))
@given(VALUES, VALUES)
def test_the_other_way_round_is_the_mirror_image(before: Any, after: Any):
    check_mirror(before, after)


@settings(max_examples=examples(100))
@given(st.lists(messages(), max_size=8), st.data())
def test_the_other_way_round_is_the_mirror_image_of_messages(before: list[Any], data: st.DataObject):
    check_mirror(before, data.draw(st.permutations(before)) + data.draw(st.lists(messages(), max_size=2)))


@settings(max_examples=examples(100))
@given(CHANNELS, CHANNELS)
def test_every_difference_can_be_told(before: dict[str, Any], after: dict[str, Any]):
    diff = diff_values(before, after)
    json.dumps(diff.to_dict(), allow_nan=False)
    for routing in (False, True):
        text = diff.render(colour=True, width=40, routing=routing)
        assert all(len(line) <= 40 for line in re.sub(r"\x1b\[\d+m", "", text).splitlines())
    assert set(diff.channels) == {*before, *after}
    assert not diff_values(before, before)
    assert not diff_values(after, after)


@given(
    st.lists(st.integers(0, 4), max_size=30),
    st.lists(st.integers(0, 4), max_size=30),
    st.sampled_from([0, 250_000]),
)
def test_alignments_are_in_order_and_mirrored(before: list[int], after: list[int], most: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langgraph_harness_saver.engine.compare._MOST_COMPARED", most)
        pairs = align(before, after)
        assert align(after, before) == [(j, i) for i, j in pairs]
    assert all(before[i] == after[j] for i, j in pairs)
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(pairs))


@given(st.lists(st.integers(0, 20), max_size=12, unique=True))
def test_as_many_as_possible_stay_in_order(places: list[int]):
    kept = [j for _, j in in_order(list(enumerate(places)))]
    assert kept == sorted(kept)
    best = [1] * len(places)
    for k, place in enumerate(places):
        best[k] = 1 + max((best[i] for i in range(k) if places[i] < place), default=0)
    assert len(kept) == max(best, default=0)


# --- how it is told ------------------------------------------------------------------------------------


def example() -> CheckpointDiff:
    before = {
        "messages": [
            SystemMessage("Be brief.", id="s"),
            human("What is the weather in Paris today?", "1"),
            human("old", "2"),
        ],
        "count": 1,
        "plan": {"steps": ["look", "answer"], "owner": Data("me")},
        "text": "one\ntwo\nthree\nfour\n",
        "gone": [1],
        "same": 0,
        "branch:to:agent": None,
    }
    after = {
        "messages": [
            SystemMessage("Be brief.", id="s"),
            human("What is the weather in Rome today?", "1"),
            ai("", "3", tool_calls=[{"name": "weather", "args": {}, "id": "c"}]),
        ],
        "count": True,
        "plan": {"steps": ["look", "think", "answer"], "owner": Data("you")},
        "text": "one\ntwo\n3\nfour\n",
        "note": [human("hello", "n")],
        "same": 0,
    }
    return diff_values(before, after)


def test_it_reads_like_a_diff():
    assert (
        str(example())
        == """\
 count    | ~1
 gone     | removed
 messages | +1 -1 ~1
 note     | added
 plan     | +1 ~1
 text     | ~1
 4 changed, 1 added, 1 removed, 1 unchanged, 1 of routing not shown

count
  ~ 1 -> True

gone
  - [1]

messages
  ~ [1] 1 human
      ~ .content What is the weather in [-Paris-]{+Rome+} today?
  - [2] 2 human: 'old'
  + [2] 3 ai: '' calls weather

note
  + [0] human: 'hello'

plan
  + ['steps'][1] 'think'
  ~ ['owner'].a 'me' -> 'you'

text
  ~
      @@ -1,4 +1,4 @@
       one
       two
      -three
      +3
       four"""
    )


def test_colours_are_only_there_when_asked_for():
    diff = example()
    assert "\x1b" not in str(diff)
    coloured = diff.render(colour=True)
    assert "\x1b[31mParis\x1b[0m\x1b[32mRome\x1b[0m" in coloured


def test_long_values_are_shortened_in_print_only():
    diff = diff_values({"a": "x" * 5_000}, {"a": "y" * 5_000, "b": list(range(5_000))})
    assert max(map(len, str(diff).splitlines())) <= 100
    told = diff.to_dict()["channels"]
    assert told["a"]["changes"][0]["before"] == "x" * 5_000
    assert told["b"]["changes"][0]["after"] == list(range(5_000))


def test_many_lines_are_counted():
    text = str(diff_values({"a": dict.fromkeys(range(1_000))}, {"a": dict.fromkeys(range(1_000), 1)}))
    assert text.endswith("… 800 more lines")
    text = str(diff_values({"a": "\n".join("a" * 500)}, {"a": "\n".join("b" * 500)}))
    assert "… 961 more lines" in text


def test_a_terminal_obeys_nothing_that_values_hold():
    escape = "\x1b[2J\x07\r\u202e"
    before = {"a": escape, "k": {escape: 1}, escape: 1, "m": [human(escape, escape)]}
    after = {"a": f"{escape}\n{escape}", "k": {escape: 2}, "m": [human(f"{escape} \ud800", escape)]}
    text = diff_values(before, after).render()
    assert all(line.isprintable() for line in text.splitlines())
    text.encode()


def test_wide_characters_take_two_columns():
    text = diff_values({}, {"a": "字" * 200}).render(width=40)
    assert max(len(line) + line.count("字") for line in text.splitlines()) <= 40


def test_json_has_what_there_is_to_know():
    told = diff_values(
        {"m": [A], "n": {1: NAN}}, {"m": [human("a b", "a")], "n": {1: b"\xff", 2: {3}}}
    ).to_dict()
    (edited,) = told["channels"]["m"]["changes"]
    assert edited["kind"] == "edited"
    assert edited["path"] == "[0]"
    assert edited["steps"] == [{"kind": "message", "key": "a", "before": 0, "after": 0}]
    assert edited["before"]["content"] == "a"
    assert edited["parts"][0]["path"] == ".content"
    assert edited["parts"][0]["text"] == [[" ", "a"], ["+", " b"]]
    assert told["changed"] == ["m", "n"]
    changed, added = told["channels"]["n"]["changes"]
    assert (changed["before"], changed["after"]) == ("NaN", "/w==")
    assert (added["kind"], added["after"]) == ("added", [3])
    assert "before" not in added
