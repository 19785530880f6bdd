"""Trees of checkpoints: what is in them, and how they are drawn."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import pairwise
from textwrap import dedent
from typing import Any

import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from langgraph_harness_saver import SerializationError
from langgraph_harness_saver.engine.tree import CheckpointTree, TreeItem, build_tree
from langgraph_harness_saver.rows import Branch, CheckpointKey

TIME = "2026-01-02T03:04:05.678901+00:00"


def item(thread: str, number: int, parent: int | None = None, **fields: Any) -> TreeItem:
    """A checkpoint named after its number, which is what ids are ordered by."""
    metadata = {"step": number - 2, "source": "loop" if parent else "input", **fields.pop("metadata", {})}
    parent_id = None if parent is None else f"c{parent:02}"
    return TreeItem(thread, "", f"c{number:02}", parent_id, metadata, **fields)


def branch(thread: str, source: str, number: int, name: str | None = None) -> Branch:
    return Branch(thread, "main", source, f"c{number:02}", name or thread, 0.0)


def merged(thread: str, number: int) -> dict[str, Any]:
    return {"merged_from": {"thread_id": thread, "checkpoint_id": f"c{number:02}"}}


def line(thread: str, first: int, last: int) -> list[TreeItem]:
    return [item(thread, n, n - 1 if n > first else None) for n in range(first, last + 1)]


TREES: dict[str, tuple[list[TreeItem], list[Branch], str]] = {
    "nothing": ([], [], ""),
    "one line": (
        [item("main", 1), item("main", 2, 1), item("main", 3, 2, next=("tools", "z"), created_at=TIME)],
        [],
        """
        ● c03 (HEAD main) step 1 · loop · next: tools, z · 2026-01-02 03:04:05
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "two forks": (
        [
            *line("main", 1, 3),
            item("main", 4, 2),
            item("main", 5, 2, interrupts=("i1", "i2")),
            item("main", 6, 5),
        ],
        [],
        """
        ● c06 (HEAD main) step 4 · loop
        ● c05 step 3 · loop · 2 interrupts
        │ ● c04 step 2 · loop
        ├─╯
        │ ● c03 step 1 · loop
        ├─╯
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "a branch of a branch": (
        [*line("main", 1, 3), item("b1", 2, 1), item("b1", 4, 2), item("b2", 4, 2), item("b2", 5, 4)],
        [branch("b1", "main", 2, "try"), branch("b2", "b1", 4, "again")],
        """
        ● c03 (HEAD main) step 1 · loop
        │ ● c05 (HEAD again) step 3 · loop
        │ ● c04 (branch: again) step 2 · loop
        │ ● c04 (HEAD try) step 2 · loop
        │ ● c02 (branch: try) step 0 · loop
        ├─╯
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "a merge": (
        [
            *line("main", 1, 3),
            item("b1", 2, 1),
            item("b1", 4, 2, tags=("good", "best")),
            item("main", 5, 3, metadata={**merged("b1", 4), "summary": "took\nthe better one"}),
            item("main", 6, 5),
        ],
        [branch("b1", "main", 2, "try")],
        """
        ● c06 (HEAD main) step 4 · loop
        ● c05 step 3 · loop · merged from try · took\\nthe better one
        ├─╮
        ● │ c03 step 1 · loop
        │ ● c04 (HEAD try, tag: good, tag: best) step 2 · loop
        │ ● c02 (branch: try) step 0 · loop
        ├─╯
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "merged twice": (
        [
            *line("main", 1, 2),
            item("b1", 1),
            item("b1", 3, 1),
            item("main", 4, 2, metadata=merged("b1", 3)),
            item("b1", 5, 3),
            item("main", 6, 4, metadata=merged("b1", 5)),
        ],
        [branch("b1", "main", 1)],
        """
        ● c06 (HEAD main) step 4 · loop · merged from b1
        ├─╮
        ● │ c04 step 2 · loop · merged from b1
        ├─┼─╮
        ● │ │ c02 step 0 · loop
        │ ● │ c05 (HEAD b1) step 3 · loop
        │ ╰─┤
        │   ● c03 step 1 · loop
        │   ● c01 (branch: b1) step -1 · input
        ├───╯
        ● c01 step -1 · input
        """,
    ),
    "a rewind": (
        [*line("main", 1, 4), item("main", 5, 1, metadata={"rewound_from": "c02"}), item("main", 6, 5)],
        [],
        """
        ● c06 (HEAD main) step 4 · loop
        ● c05 step 3 · loop · rewound from c02
        │ ● c04 step 2 · loop
        │ ● c03 step 1 · loop
        │ ● c02 step 0 · loop
        ├─╯
        ● c01 step -1 · input
        """,
    ),
    "a long line": (
        [*line("main", 1, 40), item("main", 41, 25)],
        [],
        """
        ● c41 (HEAD main) step 39 · loop
        │ ● c40 step 38 · loop
        │ ● c39 step 37 · loop
        │ ● c38 step 36 · loop
        │ ● c37 step 35 · loop
        │ ● c36 step 34 · loop
        │ ⋮ … 6 more
        │ ● c29 step 27 · loop
        │ ● c28 step 26 · loop
        │ ● c27 step 25 · loop
        │ ● c26 step 24 · loop
        ├─╯
        ● c25 step 23 · loop
        ● c24 step 22 · loop
        ● c23 step 21 · loop
        ● c22 step 20 · loop
        ● c21 step 19 · loop
        ⋮ … 15 more
        ● c05 step 3 · loop
        ● c04 step 2 · loop
        ● c03 step 1 · loop
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "a branch whose source is gone": (
        [item("main", 1), item("b1", 3, 2), item("b1", 4, 3)],
        [branch("b1", "main", 3)],
        """
        ● c01 (HEAD main) step -1 · input
        ● c04 (HEAD b1) step 2 · loop
        ● c03 step 1 · loop
        """,
    ),
    "a branch whose first checkpoints are pruned": (
        [*line("main", 1, 3), item("b1", 5, 2), item("b1", 6, 5)],
        [branch("b1", "main", 2)],
        """
        ● c03 (HEAD main) step 1 · loop
        │ ● c06 (HEAD b1) step 4 · loop
        │ ● c05 (branch: b1) step 3 · loop
        ├─╯
        ● c02 step 0 · loop
        ● c01 step -1 · input
        """,
    ),
    "a branch of a rewound head": (
        [
            *line("main", 1, 2),
            item("main", 3, 1, metadata={"rewound_from": "c02"}),
            item("b1", 3, 1, metadata={"rewound_from": "c02"}),
        ],
        [branch("b1", "main", 3)],
        """
        ● c03 (HEAD b1, branch: b1) step 1 · loop
        ● c03 (HEAD main) step 1 · loop · rewound from c02
        │ ● c02 step 0 · loop
        ├─╯
        ● c01 step -1 · input
        """,
    ),
}


def tree_of(name: str) -> CheckpointTree:
    items, branches, _ = TREES[name]
    return build_tree("main", items, branches=branches)


@pytest.mark.parametrize("name", TREES)
def test_renderings(name):
    assert tree_of(name).render() == dedent(TREES[name][2]).strip("\n")


def edges(tree: CheckpointTree) -> set[str]:
    return {f"{e.kind}: {e.source_thread} {e.source} > {e.target_thread} {e.target}" for e in tree.edges}


def test_edges_and_nodes():
    tree = tree_of("a merge")
    assert edges(tree) == {
        "parent: main c01 > main c02",
        "parent: main c02 > main c03",
        "branch: main c02 > b1 c02",
        "parent: b1 c02 > b1 c04",
        "parent: main c03 > main c05",
        "merge: b1 c04 > main c05",
        "parent: main c05 > main c06",
    }
    assert tree.total_checkpoints == len(tree.nodes) == 7
    assert [node.id for node in tree.nodes] == ["c06", "c05", "c04", "c03", "c02", "c02", "c01"]
    assert {node.thread: node.id for node in tree.nodes if node.head} == {"main": "c06", "b1": "c04"}
    assert "rewind: main c02 > main c05" in edges(tree_of("a rewind"))
    assert tree.to_dict()["edges"][0] == {
        "from": "c05",
        "to": "c06",
        "kind": "parent",
        "from_thread": "main",
        "to_thread": "main",
        "ns": "",
    }
    assert tree.to_dict()["nodes"][2] == {
        "id": "c04",
        "thread": "b1",
        "ns": "",
        "parent": "c02",
        "branch": "try",
        "step": 2,
        "tags": ["good", "best"],
        "summary": None,
        "created_at": None,
        "source": "loop",
        "next": [],
        "head": True,
        "interrupts": [],
        "events": [],
    }


def test_a_page():
    items = line("main", 1, 30)
    page = build_tree("main", items[:3], heads=[items[-1].key], total=30, next_page="cursor")
    assert not any(node.head for node in page.nodes)
    assert page.next_page == "cursor"
    assert page.total_checkpoints == 30
    assert page.render().splitlines()[-1] == "⋮ … 27 more on other pages"


def test_namespaces_are_lines_of_their_own():
    inner = [TreeItem("main", "sub:1", "c03"), TreeItem("main", "sub:1", "c04", "c03")]
    assert build_tree("main", [*line("main", 1, 2), *inner]).render().splitlines() == [
        "● c02 (HEAD main) step 0 · loop",
        "● c01 step -1 · input",
        "● c04 (HEAD main sub:1)",
        "● c03",
    ]


def test_short_ids_are_long_enough():
    ids = ["1f0a2b3c-0000-6000", "1f0a2b3c-0001-6000", "2f0a2b3c-0000-6000"]
    drawn = build_tree("t", [TreeItem("t", "", id_) for id_ in ids]).render().splitlines()
    assert [text.split()[1] for text in drawn] == ["2f0a2b3c", "1f0a2b3c-0001", "1f0a2b3c-0000"]


def test_ascii_and_width():
    drawn = tree_of("merged twice").render(24, ascii=True)
    assert drawn == dedent(
        """
        * c06 (HEAD main) step ~
        |-.
        * | c04 step 2 - loop -~
        |-+-.
        * | | c02 step 0 - loop
        | * | c05 (HEAD b1) ste~
        | '-|
        |   * c03 step 1 - loop
        |   * c01 (branch: b1) ~
        |---'
        * c01 step -1 - input
        """
    ).strip("\n")


def test_width_counts_columns():
    items = [TreeItem("t", "", "c", None, {"summary": "漢字" * 20 + "e\u0301"})]
    for width in range(60):
        assert columns(build_tree("t", items).render(width)) <= width


def columns(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) == "Mn" for c in text)


def test_colours_add_nothing_else():
    tree = tree_of("a merge")
    drawn = tree.render(colour=True)
    assert "\x1b[1;36mHEAD main\x1b[0m" in drawn
    assert re.sub(r"\x1b\[[0-9;]*m", "", drawn) == tree.render()


def test_nothing_that_a_terminal_obeys():
    evil = "\x1b[2J\r\n\x07\u202e\ud800"
    items = [
        TreeItem(evil, "", evil, None, {"summary": evil, "source": evil}, evil, (evil,), (evil,), (evil,))
    ]
    tree = build_tree(evil, items)
    assert tree.render().isprintable()
    assert all(part.isprintable() for part in tree.to_mermaid().split("\n"))
    tree.render().encode()


def test_mermaid():
    tree = build_tree(
        "main",
        [
            item("main", 1),
            item("main", 2, 1, metadata={"summary": 'say "hi" [now] #1'}),
            item("b1", 1),
            item("main", 3, 2, metadata=merged("b1", 1)),
            item("main", 4, 1, metadata={"rewound_from": "c02"}),
        ],
        branches=[branch("b1", "main", 1, "日 & `co`")],
    )
    assert tree.to_mermaid() == dedent(
        """\
        flowchart TD
          subgraph t0["main"]
            n0["c01<br/>step #45;1<br/>input"]
            n2["c02<br/>step 0<br/>loop<br/>say #34;hi#34; #91;now#93; #35;1"]
            n3["c03<br/>step 1<br/>loop<br/>merged from 日 #38; #96;co#96;"]
            n4(["c04<br/>HEAD main<br/>step 2<br/>loop<br/>rewound from c02"])
          end
          subgraph t1["日 #38; #96;co#96;"]
            n1(["c01<br/>HEAD 日 #38; #96;co#96;<br/>branch: 日 #38; #96;co#96;<br/>step #45;1<br/>input"])
          end
          n0 -.-> n1
          n0 --> n2
          n1 ==>|merge| n3
          n2 --> n3
          n2 -.->|rewind| n4
          n0 --> n4
        """
    )


def test_mermaid_leaves_out_long_runs():
    drawn = build_tree("main", line("main", 1, 40)).to_mermaid(run=2)
    assert '["… 36 more"]' in drawn
    assert drawn.count(" --> ") == 4


def test_damaged_data_is_drawn_all_the_same():
    circle = [item("main", 1, 2), item("main", 2, 1), item("main", 3, 3)]
    branches = [branch("main", "b1", 1), branch("b1", "main", 1), branch("b2", "b2", 1)]
    tree = build_tree("main", [*circle, item("b1", 1, 9), item("b2", 1, 9)], branches=branches)
    assert len(tree.render().split("●")) == 6
    assert build_tree("t", [item("t", 1, metadata={"merged_from": "what?", "rewound_from": 1})]).edges == ()


@pytest.mark.parametrize("data", [{}, {"thread_id": "t", "total_checkpoints": 1, "nodes": [{}], "edges": []}])
def test_what_is_no_tree(data):
    with pytest.raises(SerializationError, match="to_dict"):
        CheckpointTree.from_dict(data)


# Random trees

words = st.text(st.characters(codec=None), max_size=6)


@st.composite
def random_trees(draw: Any) -> CheckpointTree:
    """Threads that fork, branch, rewind and merge, as the engine would make them, and some rows missing."""
    names = draw(st.lists(words, min_size=4, max_size=4, unique=True))
    items, branches = [TreeItem(names[0], "", "c0000")], []
    threads = names[:1]
    for number in range(1, draw(st.integers(1, 60))):
        base = draw(st.sampled_from(items))
        id_ = f"c{number:04}"
        what = draw(st.sampled_from(["on", "on", "on", "branch", "rewind", "merge"]))
        if what == "branch" and len(threads) < len(names):
            thread = names[len(threads)]
            threads.append(thread)
            branches.append(Branch(thread, names[0], base.thread_id, base.checkpoint_id, draw(words), 0.0))
            items.append(base._replace(thread_id=thread))
            continue
        new = TreeItem(base.thread_id, "", id_, base.checkpoint_id, {"summary": draw(words)}, tags=draw(tags))
        if what == "rewind":
            new = new._replace(parent_id=base.parent_id, metadata={"rewound_from": base.checkpoint_id})
        if what == "merge":
            other = draw(st.sampled_from(items))
            named = {"thread_id": other.thread_id, "checkpoint_id": other.checkpoint_id}
            new = new._replace(metadata={"merged_from": named})
        items.append(new)
    kept = [one for one in items if draw(st.integers(0, 9))]
    next_page = draw(st.none() | words)
    return build_tree(draw(words), draw(st.permutations(kept)), branches=branches, next_page=next_page)


tags = st.lists(words, max_size=2).map(tuple)


@settings(max_examples=examples(150))
@given(random_trees())
def test_any_tree_is_consistent_and_comes_back(tree):
    keys = [node.key for node in tree.nodes]
    assert len(keys) == len(set(keys))
    came_of: dict[CheckpointKey, list[str]] = {key: [] for key in keys}
    for edge in tree.edges:
        assert edge.source_key in came_of
        came_of[edge.target_key].append(edge.kind)
        assert (edge.kind == "branch") <= (edge.source_thread != edge.target_thread)
        assert (edge.kind == "parent") <= (edge.source_thread == edge.target_thread)
    for kinds in came_of.values():
        assert len(kinds) == len(set(kinds))
        assert not {"parent", "branch"} <= set(kinds)
    heads = [node.thread for node in tree.nodes if node.head]
    assert sorted(heads) == sorted({node.thread for node in tree.nodes})
    assert CheckpointTree.from_dict(json.loads(tree.to_json())) == tree


@settings(max_examples=examples(150))
@given(random_trees(), st.integers(0, 60), st.integers(0, 4))
def test_any_tree_is_drawn(tree, width, run):
    lines = tree.render(run=None, colour=False).splitlines()
    assert sum(is_node(text) for text in lines) == len(tree.nodes)
    short = tree.render(run=run).splitlines()
    left_out = [int(found[1]) for found in map(LEFT_OUT.fullmatch, short) if found]
    assert sum(map(is_node, short)) + sum(left_out) == len(tree.nodes)
    assert 1 not in left_out
    assert all(columns(text) <= width for text in tree.render(width, run=run).splitlines())
    drawn = tree.to_mermaid()
    assert drawn.encode()
    assert all(MERMAID.fullmatch(text) for text in drawn.splitlines())


def is_node(text: str) -> bool:
    return re.match(r"[│ ]*●", text) is not None


LEFT_OUT = re.compile(r"[│ ]*⋮[│ ]* … (\d+) more")

MERMAID = re.compile(
    r"""flowchart[ ]TD | [ ][ ]end | [ ][ ]subgraph[ ]t\d+\["[^"]+"\]
    | [ ]{4}n\d+(\["[^"]+"\]|\(\["[^"]+"\]\))
    | [ ][ ]n\d+[ ](-->|-\.->|==>\|merge\||-\.->\|rewind\|)[ ]n\d+""",
    re.VERBOSE,
)


@settings(max_examples=examples(50))
@given(random_trees())
def test_lines_in_the_drawing_meet(tree):
    """Follow each lane down: it never ends in the air, nor begins in it."""
    graphs = [re.match(r"[●│⋮├┤┼─╮╭╯╰ ]*", text).group() for text in tree.render(run=None).splitlines()]
    if tree.next_page is not None:
        graphs.pop()
    downwards, upwards = "●│├┤┼╮╭", "│├┤┼╯╰"
    for above, below in pairwise(graphs):
        for place in range(0, max(len(above), len(below)), 2):
            over, under = above[place : place + 1], below[place : place + 1]
            assert under not in tuple(upwards) or over in tuple(downwards), (above, below)
            assert over not in ("│", "├", "┤", "┼", "╮", "╭") or under in tuple(upwards + "●"), (above, below)


def test_ten_thousand_checkpoints_and_five_hundred_branches():
    items = [TreeItem("main", "", f"{n:06}", f"{n - 1:06}" if n else None) for n in range(10_000)]
    branches = []
    for n in range(500):
        source = items[n * 20]
        branches.append(Branch(f"b{n}", "main", "main", source.checkpoint_id, f"try {n}", 0.0))
        items.append(source._replace(thread_id=f"b{n}"))
        items.append(TreeItem(f"b{n}", "", f"{20_000 + n:06}", source.checkpoint_id))
    tree = build_tree("main", items, branches=branches)
    assert len(tree.edges) == len(tree.nodes) - 1 == 10_999
    drawn = tree.render().splitlines()
    assert max(text.index("●") for text in drawn if "●" in text) == 2
    assert "⋮ … 11 more" in drawn
    assert len(tree.to_mermaid().splitlines()) > 5_000
