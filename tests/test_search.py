"""What stands in packed metadata wherever a filter matches."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langgraph_harness_saver.core import contains
from langgraph_harness_saver.envelope import pack, unpack
from langgraph_harness_saver.search import MAX_FORMS, forms_of

NUMBERS = [0, 0.0, -0.0, 1, 1.0, True, False, -1, 2**53, 2.0**53, 2**53 + 1, 2**63, 2.0**63, 2**64, 2.0**64]
ODD = [float("nan"), -float("nan"), float("inf"), 1.5, None, "", "a", "1", "k", "\x00", "é", "\ud800", b"a"]
SCALARS = st.sampled_from([*NUMBERS, *ODD]) | st.integers() | st.floats() | st.text(max_size=40)
NAMES = st.sampled_from(["k", "a", "", "é", "\x00"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
METADATA = st.dictionaries(NAMES, VALUES, max_size=4)


def may_match(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    data = pack(metadata)
    return all(any(form in data for form in forms) for forms in forms_of(wanted))


def weakened(value: Any, rng: random.Random) -> Any:
    """Return what a value contains, in another form."""
    if isinstance(value, dict):
        return {name: weakened(item, rng) for name, item in value.items() if rng.random() < 0.7}
    if isinstance(value, list):
        return [weakened(item, rng) for item in value if rng.random() < 0.7]
    if type(value) in (int, float):
        return rng.choice([one for one in (value, *NUMBERS) if contains(value, one)] or [value])
    return value


@settings(max_examples=500)
@given(METADATA, METADATA, st.randoms(use_true_random=False))
def test_what_matches_is_found(metadata: dict[str, Any], other: dict[str, Any], rng: Any) -> None:
    try:
        stored = unpack(pack(metadata))
    except TypeError:
        # Such metadata takes a serializer, and is looked at whatever the filter.
        return
    for wanted in (other, weakened(metadata, rng), weakened({**metadata, **other}, rng)):
        assert may_match(metadata, wanted) or not contains(stored, wanted)


@pytest.mark.parametrize(
    "wanted",
    [{"k": 2}, {"k": "1"}, {"k": True}, {"j": 1}, {"k": None}, {"k": {"deep": 1}}, {"n": {"deep": 2}}],
)
def test_what_holds_nothing_of_the_kind_is_not_looked_at(wanted: dict[str, Any]) -> None:
    assert not may_match({"k": 1, "n": {"deep": [3]}}, wanted)


def test_what_has_no_one_form_says_nothing() -> None:
    assert forms_of({}) == []
    assert forms_of({"\ud800": 1, 2: 3}) == []  # type: ignore[dict-item]
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    assert forms_of({"k": deep}) == forms_of({"k": object()})
    for _ in range(10_000):
        deep = {"d": deep}
    assert len(forms_of({"k": deep})) == MAX_FORMS
