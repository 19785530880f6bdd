"""What deletions take away and leave: pure functions over a family's rows."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from test_codec import encoded_writes, key_of, message

from langgraph_harness_saver.codec import PART_BYTES, Codec
from langgraph_harness_saver.family import anchor_key, kept_slots, needs, removal, unused_parts
from langgraph_harness_saver.reader import Reader
from langgraph_harness_saver.rows import Change, CheckpointKey, CheckpointRow, Family, Kind, Page, WriteRow
from langgraph_harness_saver.serde import HarnessSerializer
from langgraph_harness_saver.slots import Image

DELTA = ("d1", "d2")
COUNTED = {"counters_since_delta_snapshot": {channel: [1, 1] for channel in DELTA}}


@dataclass
class Tree:
    """A thread's rows, writes and parts, changed as a store would change them."""

    codec: Codec = field(default_factory=lambda: Codec(HarnessSerializer()))
    rows: dict[CheckpointKey, CheckpointRow] = field(default_factory=dict)
    writes: dict[CheckpointKey, list[WriteRow]] = field(default_factory=dict)
    parts: dict[bytes, bytes] = field(default_factory=dict)

    def put(
        self,
        number: int,
        parent: int | None,
        values: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
    ) -> CheckpointKey:
        base = None if parent is None else self.image(key_of(f"{parent:03}"))
        checkpoint = {
            "v": 4, "ts": "", "channel_values": values, "channel_versions": dict.fromkeys(values, number),
            "versions_seen": {},
        }  # fmt: skip
        dump = self.codec.dump(checkpoint, {"step": number, **(metadata or {})}, {}, base, "t")
        key = key_of(f"{number:03}")
        encoded = self.codec.encode(key, None if parent is None else f"{parent:03}", dump, base)
        self.rows[key] = encoded.row
        self.add(encoded.parts)
        return key

    def write(self, key: CheckpointKey, *writes: tuple[str, Any], task: str = "task", path: str = "") -> None:
        encoded = encoded_writes(self.codec, writes, task, path)
        self.writes.setdefault(key, []).extend(encoded.rows)
        self.add(encoded.parts)

    def add(self, parts: Any) -> None:
        self.parts.update((part.part_id, part.data) for part in parts)

    @property
    def family(self) -> Family:
        return Family(dict(self.rows), {k: tuple(w) for k, w in self.writes.items()}, dict(self.parts))

    def remove(self, *gone: CheckpointKey) -> Change:
        change = removal(self.codec, self.family, gone)
        self.apply(change)
        return change

    def apply(self, change: Change) -> None:
        for key in change.deletes:
            del self.rows[key]
            self.writes.pop(key, None)
        self.rows.update((row.key, row) for row in change.rows)
        self.writes.update((key, list(rows)) for key, rows in change.writes.items())
        self.writes = {key: rows for key, rows in self.writes.items() if rows}
        self.add(change.parts)
        for part_id in change.drop_parts:
            del self.parts[part_id]

    def reader(self, row: CheckpointRow | None = None) -> Reader:
        """Return a reader of everything, or of what a store would return for one row."""
        bodies = {key: other.body for key, other in self.rows.items()}
        if row is None:
            return Reader(self.codec, Page((), bodies, self.parts))
        reached = {
            key: body
            for key, body in bodies.items()
            for span in row.reach
            if key[:2] == span[:2] and span.first <= key.checkpoint_id <= span.last
        }
        parts = {part_id: self.parts[part_id] for part_id in row.parts}
        return Reader(self.codec, Page((), {**reached, row.key: row.body}, parts))

    def image(self, key: CheckpointKey) -> Image:
        return self.reader(self.rows[key]).image(self.rows[key])

    def values(self, key: CheckpointKey) -> dict[str, Any]:
        return self.codec.channel_values(self.image(key))

    def pending(self, key: CheckpointKey) -> list[tuple[str, str, Any]]:
        row = self.rows[key]
        is_anchor = row.kind == Kind.ANCHOR
        items = (
            self.image(key).history if is_anchor else self.codec.merge_writes(self.writes.get(key, ()), key)
        )
        return self.codec.load_writes(items, self.codec.written_parts(self.parts), key)

    def parent(self, key: CheckpointKey) -> CheckpointKey | None:
        parent_id = self.rows[key].parent_id
        return None if parent_id is None else key._replace(checkpoint_id=parent_id)

    def history(self, key: CheckpointKey, channel: str) -> tuple[list[tuple[str, str, Any]], list[Any]]:
        """Walk as the base class does: writes, oldest first, and the seed, if there is one."""
        steps: list[list[tuple[str, str, Any]]] = []
        at = self.parent(key)
        while at is not None and at in self.rows and self.rows[at].kind != Kind.HIDDEN:
            steps.insert(0, [write for write in self.pending(at) if write[1] == channel])
            values = self.values(at)
            if channel in values:
                return [write for step in steps for write in step], [values[channel]]
            at = self.parent(at)
        return [write for step in steps for write in step], []

    def of_kind(self, kind: Kind) -> list[CheckpointKey]:
        return sorted(key for key, row in self.rows.items() if row.kind == kind)

    @property
    def size(self) -> int:
        return sum(len(row.body) for row in self.rows.values()) + sum(map(len, self.parts.values()))


def chat(count: int, size: int = 300, **kinds: Any) -> tuple[Tree, list[CheckpointKey]]:
    """Make a line whose list grows, beside channels that stay or change."""
    tree = Tree(**kinds)
    value: list[Any] = []
    keys = []
    for number in range(count):
        value = [*value, message(number, size)]
        values = {"messages": value, "stays": "the same " * 60, "n": number}
        keys.append(tree.put(number, number - 1 if number else None, values))
    return tree, keys


def seen(tree: Tree, keys: list[CheckpointKey]) -> dict[CheckpointKey, Any]:
    return {
        key: (tree.values(key), tree.image(key).header, tree.rows[key].metadata, tree.pending(key))
        for key in keys
    }


def check_tidy(tree: Tree) -> None:
    """Nothing is left that nobody needs, and nothing is missing that somebody does."""
    readable = [key for key, row in tree.rows.items() if row.kind != Kind.HIDDEN]
    needed = needs(tree.reader(), readable)
    for key in tree.of_kind(Kind.HIDDEN):
        row = tree.rows[key]
        assert {ref.slot for ref in needed if ref.key == key} == set(tree.reader().body(key).slots)
        assert (row.parent_id, row.metadata, row.run_id, row.parts) == (None, b"", None, ())
        assert key not in tree.writes
    children = {tree.parent(key) for key in readable}
    assert set(tree.of_kind(Kind.ANCHOR)) <= children
    named = {part_id for key in readable for part_id in tree.rows[key].parts}
    named |= {part_id for rows in tree.writes.values() for row in rows for part_id in row.parts}
    assert tree.parts.keys() == named


# Survivors


@pytest.mark.parametrize(
    "gone", [slice(0, 19), slice(0, 1), slice(5, 6), slice(5, 15), slice(19, 20), slice(0, 20, 2)]
)
@pytest.mark.parametrize("size", [30, 300, 40_000])
def test_survivors_read_back_as_before(gone, size):
    tree, keys = chat(20, size)
    survivors = [key for key in keys if key not in keys[gone]]
    before = seen(tree, survivors)
    tree.remove(*keys[gone])
    assert tree.of_kind(Kind.LIVE) == survivors
    assert seen(tree, survivors) == before
    check_tidy(tree)


def test_a_survivors_parent_is_its_nearest_surviving_ancestor():
    tree, keys = chat(8)
    tree.remove(keys[0], keys[2], keys[3], keys[6])
    parents = [tree.parent(key) for key in tree.of_kind(Kind.LIVE)]
    assert parents == [None, keys[1], keys[4], keys[5]]
    tree.remove(keys[1], keys[4])
    assert [tree.parent(key) for key in tree.of_kind(Kind.LIVE)] == [None, keys[5]]


def test_forks_keep_their_own_parents():
    tree, keys = chat(3)
    left = tree.put(3, 1, {"messages": ["left"]})
    right = tree.put(4, 2, {"messages": ["right"]})
    tree.remove(keys[1], keys[2])
    assert [tree.parent(left), tree.parent(right)] == [keys[0], keys[0]]


def test_an_unknown_parent_stays_until_something_goes():
    tree = Tree()
    dump = tree.codec.dump(
        {"channel_values": {}, "channel_versions": {}, "versions_seen": {}}, {}, {}, None, "t"
    )
    for name, parent in (("001", "unknown"), ("002", "001")):
        encoded = tree.codec.encode(key_of(name), parent, dump, None)
        tree.rows[encoded.row.key] = encoded.row
    tree.put(3, None, {})
    tree.remove(key_of("003"))
    assert tree.rows[key_of("001")].parent_id == "unknown"
    tree.remove(key_of("001"))
    assert tree.rows[key_of("002")].parent_id is None


def test_parents_in_a_circle_end():
    tree = Tree()
    dump = tree.codec.dump(
        {"channel_values": {}, "channel_versions": {}, "versions_seen": {}}, {}, {}, None, "t"
    )
    for name, parent in (("001", "002"), ("002", "001"), ("003", "002")):
        encoded = tree.codec.encode(key_of(name), parent, dump, None)
        tree.rows[encoded.row.key] = encoded.row
    tree.remove(key_of("001"), key_of("002"))
    assert tree.rows[key_of("003")].parent_id is None


def test_rev_changes_with_the_parent():
    tree, keys = chat(3)
    before = tree.rows[keys[2]].rev
    tree.remove(keys[1])
    assert tree.rows[keys[2]].rev != before


def test_removing_everything_leaves_nothing():
    tree, keys = chat(10, 40_000)
    for key in keys:
        tree.write(key, ("messages", "x" * PART_BYTES))
    tree.remove(*keys[:5])
    tree.remove(*keys[5:])
    assert (tree.rows, tree.writes, tree.parts) == ({}, {}, {})


def test_removing_nothing_changes_nothing():
    tree, keys = chat(10)
    tree.remove(*keys[3:5])
    change = removal(tree.codec, tree.family, ())
    assert (change.rows, change.deletes, change.writes, change.parts) == ([], [], {}, [])
    assert not change.drop_parts


# Space


def test_pruning_a_line_leaves_one_whole_row():
    tree, keys = chat(100)
    tree.remove(*keys[:-1])
    assert list(tree.rows) == keys[-1:]
    whole = Tree()
    whole.put(99, None, tree.values(keys[-1]))
    assert tree.size <= whole.size + 100


def test_deleting_in_the_middle_keeps_shared_bytes_once():
    tree, keys = chat(100, 1000)
    before = tree.size
    tree.remove(*keys[40:60])
    assert tree.size < before * 1.01
    check_tidy(tree)


def test_deleting_gives_back_what_nobody_shares():
    tree = Tree()
    keys = [tree.put(n, n - 1 if n else None, {"a": message(n, 20_000)}) for n in range(10)]
    before = tree.size
    tree.remove(*keys[:5])
    assert tree.size < before * 0.55
    check_tidy(tree)


def test_hidden_rows_hold_only_what_is_needed():
    tree, keys = chat(60, 1000)
    tree.put(60, 29, {"secret": message(0, 5000)})
    tree.remove(*keys[:30])
    hidden = tree.of_kind(Kind.HIDDEN)
    assert hidden
    check_tidy(tree)
    tree.remove(*keys[30:], key_of("060"))
    assert tree.rows == {}


def test_parts_that_nobody_names_are_dropped():
    tree = Tree()
    shared, own = message(0, PART_BYTES), message(1, PART_BYTES)
    first = tree.put(0, None, {"a": shared, "b": own})
    second = tree.put(1, 0, {"a": shared})
    assert len(tree.parts) == 2
    tree.remove(first)
    assert len(tree.parts) == 1
    assert tree.values(second) == {"a": shared}


def test_parts_of_writes_go_with_them():
    tree, keys = chat(3)
    for number, key in enumerate(keys):
        tree.write(key, ("a", f"{number}" * PART_BYTES))
    early = key_of("early")
    tree.write(early, ("a", "e" * PART_BYTES))
    tree.remove(*keys[:1], keys[2])
    assert tree.writes.keys() == {keys[1], early}
    assert tree.pending(keys[1]) == [("task", "a", "1" * PART_BYTES)]
    assert unused_parts(tree.family, tree.rows) == frozenset()


# Anchors


def delta_line(count: int, snapshots: tuple[int, ...] = (0,)) -> tuple[Tree, list[CheckpointKey]]:
    tree, keys = Tree(), []
    for number in range(count):
        values = {"d1": _DeltaSnapshot([f"up to {number}"])} if number in snapshots else {}
        keys.append(tree.put(number, number - 1 if number else None, values, metadata=COUNTED))
        tree.write(keys[-1], ("d1", f"write {number}"), ("other", number), task=f"task {number}")
    return tree, keys


def test_an_anchor_carries_seed_and_writes_in_order():
    tree, keys = delta_line(6, (1,))
    expected = tree.history(keys[5], "d1")
    named = anchor_key(tree.rows[keys[5]])
    tree.remove(*keys[:5])
    (anchor,) = tree.of_kind(Kind.ANCHOR)
    assert anchor == named
    assert tree.parent(keys[5]) == anchor
    assert tree.parent(anchor) is None
    assert tree.values(anchor) == {"d1": _DeltaSnapshot(["up to 1"])}
    assert tree.history(keys[5], "d1") == expected
    assert [write[2] for write in expected[0]] == [f"write {number}" for number in range(1, 5)]


def test_an_anchor_leads_to_the_nearest_survivor():
    tree, keys = delta_line(6)
    expected = {key: tree.history(key, "d1") for key in keys}
    tree.remove(*keys[2:4])
    anchor = tree.parent(keys[4])
    assert anchor not in keys
    assert tree.parent(anchor) == keys[1]
    for key in (keys[0], keys[1], keys[4], keys[5]):
        assert tree.history(key, "d1") == expected[key]


def test_an_anchor_takes_up_an_older_one():
    tree, keys = delta_line(10)
    expected = tree.history(keys[9], "d1")
    for key in (keys[4], keys[2], keys[3], keys[7], keys[8], keys[0], keys[1], keys[5], keys[6]):
        tree.remove(key)
        assert tree.history(keys[9], "d1") == expected
        check_tidy(tree)
    assert len(tree.of_kind(Kind.ANCHOR)) == 1


def test_an_anchor_goes_with_its_child():
    tree, keys = delta_line(4)
    tree.remove(*keys[:3])
    assert tree.of_kind(Kind.ANCHOR)
    tree.remove(keys[3])
    assert tree.rows == {}


def test_an_anchor_with_large_values_keeps_its_parts():
    tree = Tree()
    large = _DeltaSnapshot(["x" * PART_BYTES])
    keys = [tree.put(0, None, {"d1": large}, metadata=COUNTED)]
    tree.write(keys[0], ("d1", "y" * PART_BYTES))
    keys += [tree.put(number, number - 1, {}, metadata=COUNTED) for number in (1, 2)]
    expected = tree.history(keys[2], "d1")
    tree.remove(keys[0])
    tree.remove(keys[1])
    assert tree.history(keys[2], "d1") == expected
    assert len(tree.parts) == 2
    check_tidy(tree)


def test_a_snapshot_seed_that_was_a_difference_becomes_whole():
    tree, keys = Tree(), []
    items: list[Any] = [message(0, PART_BYTES)]
    for number in range(3):
        items = [*items, message(number)]
        parent = number - 1 if number else None
        keys.append(tree.put(number, parent, {"d1": _DeltaSnapshot(items)}, metadata=COUNTED))
    keys.append(tree.put(3, 2, {}, metadata=COUNTED))
    tree.remove(*keys[:3])
    assert tree.history(keys[3], "d1") == ([], [_DeltaSnapshot(items)])
    check_tidy(tree)


def test_a_plain_seed_of_a_counted_channel_is_kept():
    tree = Tree()
    keys = [tree.put(0, None, {"d1": ["plain"], "gone": ["not replayed"]})]
    keys.append(tree.put(1, 0, {}, metadata=COUNTED))
    tree.remove(keys[0])
    assert tree.history(keys[1], "d1") == ([], [["plain"]])
    assert tree.history(keys[1], "gone") == ([], [])


def test_no_anchor_where_nothing_is_replayed():
    tree, keys = chat(5)
    for key in keys:
        tree.write(key, ("messages", "value is stored"), ("branch:to:x", None), ("__error__", "no channel"))
    tree.remove(*keys[:4])
    assert tree.of_kind(Kind.ANCHOR) == []
    assert tree.parent(keys[4]) is None


@pytest.mark.parametrize("channel", ["__notes", "__root__", "join", "branch:x"])
def test_a_channel_of_the_state_may_have_any_name(channel):
    tree = Tree()
    keys = [tree.put(0, None, {}, metadata=COUNTED), tree.put(1, 0, {}, metadata=COUNTED)]
    for key in keys:
        tree.write(key, (channel, "written"))
    last = tree.put(2, 1, {}, metadata=COUNTED)
    expected = tree.history(last, channel)
    assert len(expected[0]) == 2
    tree.remove(*keys)
    assert tree.history(last, channel) == expected


def test_a_plain_value_of_its_own_ends_the_walk():
    tree, keys = delta_line(3)
    tree.put(3, 2, {"d1": ["plain now"]}, metadata=COUNTED)
    last = tree.put(4, 3, {}, metadata=COUNTED)
    tree.remove(*keys[1:], key_of("003"))
    assert tree.history(last, "d1") == ([], [["plain now"]])


def test_writes_of_one_step_keep_their_order_in_an_anchor():
    tree = Tree()
    root = tree.put(0, None, {}, metadata=COUNTED)
    for path, task in (("b", "1"), ("a", "3"), ("", "9"), ("a", "2")):
        tree.write(
            root, ("d1", f"{path}{task} 0"), ("d2", 0), ("d1", f"{path}{task} 1"), task=task, path=path
        )
    child = tree.put(1, 0, {}, metadata=COUNTED)
    expected = tree.history(child, "d1")
    assert [write[2][:-2] for write in expected[0]][::2] == ["9", "a2", "a3", "b1"]
    tree.remove(root)
    assert tree.history(child, "d1") == expected


# Putting again


def test_slots_that_others_need_are_kept():
    tree, keys = chat(5)
    kept = kept_slots(tree.codec, tree.family, keys[2])
    assert kept
    assert kept_slots(tree.codec, tree.family, keys[4]) == {}
    assert kept_slots(tree.codec, tree.family, key_of("none")) == {}
    before = seen(tree, keys[3:])
    dump = tree.codec.dump(
        {"channel_values": {"messages": ["new"]}, "channel_versions": {}, "versions_seen": {}},
        {},
        {},
        None,
        "t",
    )
    encoded = tree.codec.encode(keys[2], None, dump, None, kept)
    tree.rows[keys[2]] = encoded.row
    assert tree.values(keys[2]) == {"messages": ["new"]}
    assert seen(tree, keys[3:]) == before


# Any tree

operations = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(
            ("append", "append", "trim", "edit", "large", "remove", "snapshot", "plain", "write")
        ),
    ),
    max_size=25,
)


@settings(max_examples=examples(150))
@given(operations, st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=4), st.booleans())
def test_any_deletion_of_any_tree(steps, removals, encrypted):
    serde: Any = HarnessSerializer()
    if encrypted:
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    tree = grow(steps, Codec(serde))
    live = sorted(tree.rows)
    for numbers in removals:
        before = seen(tree, live)
        histories = {(key, channel): tree.history(key, channel) for key in live for channel in DELTA}
        gone = [key for key in live if int(key.checkpoint_id) in numbers]
        ancestors = {key: nearest(tree, key, gone) for key in live}
        live = [key for key in live if key not in gone]
        tree.remove(*gone)
        assert tree.of_kind(Kind.LIVE) == live
        assert seen(tree, live) == {key: before[key] for key in live}
        for key in live:
            parent = tree.parent(key)
            if parent is not None and tree.rows[parent].kind == Kind.ANCHOR:
                parent = tree.parent(parent)
            assert parent == ancestors[key]
            for channel in DELTA:
                own = tree.values(key).get(channel)
                if own is None or isinstance(own, _DeltaSnapshot):
                    assert tree.history(key, channel) == histories[key, channel]
        check_tidy(tree)


def nearest(tree: Tree, key: CheckpointKey, gone: list[CheckpointKey]) -> CheckpointKey | None:
    at = tree.parent(key)
    while at is not None and (at in gone or tree.rows[at].kind != Kind.LIVE):
        at = tree.parent(at)
    return at


def grow(steps: list[tuple[int, str]], codec: Codec) -> Tree:
    tree = Tree(codec)
    for number, (parent, op) in enumerate(steps):
        at = None if parent >= number else parent
        values = copy.deepcopy(tree.values(key_of(f"{at:03}"))) if at is not None else {}
        values["stays"] = "the same " * 60
        values.update(step(op, number, values))
        if op == "remove":
            values.pop("messages", None)
        if op != "plain":
            values.pop("d2", None)
        if op != "snapshot":
            values.pop("d1", None)
        key = tree.put(number, at, values, metadata=COUNTED)
        if op in ("write", "append"):
            large = "large " * PART_BYTES if number % 5 == 0 else ""
            tree.write(
                key, ("d1", f"{number} {large}"), ("d2", number), task=f"{number}", path=f"{number % 3}"
            )
    return tree


def step(op: str, number: int, values: dict[str, Any]) -> dict[str, Any]:
    items = values.get("messages", [])
    return {
        "append": {"messages": [*items, message(number, 200)]},
        "trim": {"messages": items[1:]},
        "edit": {"messages": [*items[:1], message(number, 100), *items[2:]]},
        "large": {"large": message(number, PART_BYTES)},
        "snapshot": {"d1": _DeltaSnapshot([number, *items[:3]])},
        "plain": {"d2": [number]},
    }.get(op, {})
