"""Which checkpoints stay, against a definition in a few lines."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_harness_saver import CheckpointGC, InvalidConfigError, Retention
from langgraph_harness_saver.retention import Root, Why, staying


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, Retention()),
        ("keep_all", Retention(CheckpointGC.KEEP_ALL)),
        ("keep_last_n:100", Retention(CheckpointGC.KEEP_LAST_N, 100)),
        (" KEEP_AGE:1.5", Retention(CheckpointGC.KEEP_AGE, 1.5)),
        (("max_bytes", 1000), Retention(CheckpointGC.MAX_BYTES, 1000)),
        ({"policy": "keep_milestones", "param": 7.0}, Retention(CheckpointGC.KEEP_MILESTONES, 7)),
        (Retention("keep_last_n", 2), Retention(CheckpointGC.KEEP_LAST_N, 2)),
        (CheckpointGC.KEEP_ALL, Retention()),
    ],
)
def test_retention_is_written_in_several_ways(written, expected):
    assert Retention.of(written) == expected
    assert Retention.of(str(expected)) == expected


@pytest.mark.parametrize(
    "written",
    [
        "keep_last",
        "keep_last_n",
        "keep_last_n:",
        "keep_last_n:0",
        "keep_last_n:1.5",
        "keep_last_n:many",
        "keep_age:-1",
        "keep_age:nan",
        "keep_milestones:1",
        "max_bytes:inf",
        "keep_all:3",
        ("keep_last_n", True),
        ("keep_last_n", "3"),
        {"policy": "keep_all", "parm": 3},
        7,
    ],
)
def test_retention_that_makes_no_sense_is_refused(written):
    with pytest.raises(InvalidConfigError):
        Retention.of(written)


def line(count, **more):
    return [
        Root(f"{i:04}", f"{i - 1:04}" if i else None, ts=float(i), step=i - 1, size=10, **more)
        for i in range(count)
    ]


def kept(retention, roots, now=0.0):
    return sorted(staying(Retention.of(retention), roots, now))


def test_last_n():
    assert kept("keep_last_n:3", line(10)) == ["0007", "0008", "0009"]
    assert kept("keep_last_n:30", line(10)) == [f"{i:04}" for i in range(10)]


def test_age_keeps_the_head_however_old():
    assert kept("keep_age:2", line(10), now=9.5) == ["0008", "0009"]
    assert kept("keep_age:2", line(10), now=1000) == ["0009"]


def test_bytes_stop_at_the_first_that_does_not_fit():
    assert kept("max_bytes:35", line(10)) == ["0007", "0008", "0009"]
    assert kept("max_bytes:5", line(10)) == ["0009"]


def test_milestones_are_spaced_evenly():
    assert kept("keep_milestones:5", line(101)) == ["0000", "0025", "0050", "0075", "0100"]
    assert kept("keep_milestones:2", line(101)) == ["0000", "0100"]


@pytest.mark.parametrize("count", [3, 5, 10, 33])
def test_milestones_stay_spaced_as_the_thread_grows(count):
    there: list[Root] = []
    for root in line(1000):
        there.append(root)
        keep = staying(Retention("keep_milestones", count), there, 0.0)
        there = [one for one in there if one.checkpoint_id in keep]
        assert len(there) == min(count, int(root.checkpoint_id) + 1)
    steps = [one.step for one in there]
    assert (steps[0], steps[-1]) == (-1, 998)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 2.5 * 1000 / (count - 1)


def test_milestones_stay_beside_what_stays_anyway():
    roots = [replace(one, holds=Why.TAGGED) if one.step in (48, 50) else one for one in line(101)]
    for _ in range(2):
        stays = staying(Retention("keep_milestones", 5), roots, 0.0)
        assert sorted(stays) == ["0000", "0025", "0049", "0050", "0051", "0075", "0100"]
        roots = [one for one in roots if one.checkpoint_id in stays]


def test_lines_that_were_left_keep_their_heads_and_where_they_parted():
    left = [Root("0003a", "0002"), Root("0003b", "0003a")]
    found = staying(Retention("keep_last_n", 2), [*line(10), *left], 0.0)
    assert found == {"0002": Why.FORK, "0003b": Why.LINE_HEAD, "0008": Why.POLICY, "0009": Why.HEAD}


def test_checkpoints_without_parents_are_no_lines():
    assert kept("keep_last_n:2", [Root(f"{i:04}") for i in range(10)]) == ["0008", "0009"]


def test_lines_without_end_do_not_pile_up():
    roots = [Root("0000")]
    roots += [Root(f"{i:04}", "0000") for i in range(1, 500)]
    assert len(kept("keep_last_n:1", roots)) == 102


def test_circles_end():
    assert kept("keep_last_n:1", [Root("a", "b"), Root("b", "a"), Root("c", "c")]) == ["c"]


@st.composite
def trees(draw):
    roots = []
    for i in range(draw(st.integers(1, 25))):
        parent = draw(st.none() | st.sampled_from(roots)) if roots else None
        holds = draw(st.sampled_from([None, None, None, None, Why.TAGGED, Why.INTERRUPTED, Why.BRANCHED]))
        age = draw(st.integers(0, 50))
        roots.append(
            Root(
                f"{i:04}",
                parent and parent.checkpoint_id,
                float(age),
                draw(st.none() | st.integers(-1, 30)),
                draw(st.integers(0, 40)),
                holds,
            )
        )
    return roots


def ancestors(root, by_id):
    found = []
    while root.parent_id is not None:
        root = by_id[root.parent_id]
        found.append(root.checkpoint_id)
    return found


def protected(roots):
    """Say once more, and slowly, what stays whatever the policy."""
    by_id = {root.checkpoint_id: root for root in roots}
    forks = {p for p in by_id if sum(root.parent_id == p for root in roots) > 1}
    parents = {root.parent_id for root in roots}
    leaves = [i for i in by_id if i not in parents and forks & set(ancestors(by_id[i], by_id))]
    return {max(by_id)} | {i for i, root in by_id.items() if root.holds} | set(leaves)


def meeting_points(roots, chosen):
    by_id = {root.checkpoint_id: root for root in roots}
    below = {i: {i, *ancestors(by_id[i], by_id)} for i in chosen}
    children = {p: [r.checkpoint_id for r in roots if r.parent_id == p] for p in by_id}
    return {p for p in by_id if sum(any(child in below[c] for c in chosen) for child in children[p]) > 1}


@given(trees(), st.integers(1, 12), st.integers(0, 60))
def test_what_stays_is_what_the_policy_and_the_place_in_the_thread_say(roots, param, now):
    ids = sorted(root.checkpoint_id for root in roots)
    safe = protected(roots)
    chosen = {
        "keep_all": set(ids),
        "keep_last_n": set(ids[-param:]),
        "keep_age": {root.checkpoint_id for root in roots if root.ts >= now - param},
    }
    for policy, wanted in chosen.items():
        retention = Retention(policy, None if policy == "keep_all" else param)
        found = set(staying(retention, roots, now))
        assert found == wanted | safe | meeting_points(roots, wanted | safe)


@given(trees(), st.sampled_from([p.value for p in CheckpointGC]), st.integers(2, 40), st.integers(0, 60))
def test_what_has_stayed_stays(roots, policy, param, now):
    retention = Retention(policy, None if policy == "keep_all" else param)
    first = staying(retention, roots, now)
    by_id = {root.checkpoint_id: root for root in roots}

    def surviving_parent(root):
        return next((one for one in ancestors(root, by_id) if one in first), None)

    left = [
        Root(r.checkpoint_id, surviving_parent(r), r.ts, r.step, r.size, r.holds)
        for r in roots
        if r.checkpoint_id in first
    ]
    again = staying(retention, left, now)
    assert again.keys() == first.keys()
