"""Values to rows and back: differences, short ids, headers, damage, encryption."""

from __future__ import annotations

import os
import random
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import ormsgpack
import pytest
from helpers import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver import difference as diff
from langgraph_harness_saver.codec import (
    CHAIN_BYTES,
    PART_BYTES,
    PART_MIDDLE_BYTES,
    RESTART_BYTES,
    Codec,
    EncodedWrites,
)
from langgraph_harness_saver.errors import (
    CorruptCheckpointError,
    HarnessError,
    SchemaError,
    SerializationError,
)
from langgraph_harness_saver.header import (
    Header,
    header_time,
    pack_header,
    pack_plain_header,
    unpack_header,
)
from langgraph_harness_saver.ids import id_key, id_of_key, pack_id, unpack_id
from langgraph_harness_saver.reader import Reader, checkpoint_of
from langgraph_harness_saver.rows import CheckpointKey, Page, PartRow
from langgraph_harness_saver.serde import HarnessSerializer
from langgraph_harness_saver.slots import (
    DIFFERENCE,
    DIFFERENCE_PART,
    HEADER_DIFFERENCE,
    PART,
    RAW,
    Encoded,
    Image,
)
from langgraph_harness_saver.versions import is_unique, next_version, pack_version, unpack_version

if TYPE_CHECKING:
    from collections.abc import Sequence

UUID_TEXT = "1f0a3c5e-7b9d-6e2f-8a4b-6c8d0e2f4a6b"
RANDOM = random.Random(1)


@dataclass
class Line:
    """A thread's rows as a store would hold them."""

    codec: Codec = field(default_factory=lambda: Codec(HarnessSerializer()))
    encoded: dict[str, Encoded] = field(default_factory=dict)
    parts: dict[bytes, bytes] = field(default_factory=dict)

    def put(
        self,
        values: dict[str, Any],
        base: str | None = "latest",
        *,
        versions: dict[str, Any] | None = None,
        checkpoint_id: str = "",
        metadata: dict[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        if base == "latest":
            base = next(reversed(self.encoded), None)
        checkpoint = {
            "v": 4,
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": values,
            "channel_versions": versions if versions is not None else dict.fromkeys(values, 1),
            "versions_seen": {},
            **fields,
        }
        key = key_of(checkpoint_id or f"{len(self.encoded):06}")
        image = self.encoded[base].image if base else None
        dump = self.codec.dump(checkpoint, metadata or {}, {}, image, "t")
        encoded = self.codec.encode(key, base, dump, image)
        self.encoded[key.checkpoint_id] = encoded
        self.parts.update((part.part_id, part.data) for part in encoded.parts)
        return key.checkpoint_id

    def kinds(self, checkpoint_id: str) -> set[int]:
        body = self.codec.open_body(self.encoded[checkpoint_id].row.body, key_of(checkpoint_id))
        return {slot.kind for slot in body.slots.values()}

    def page(self, changed: dict[str, bytes] | None = None) -> Page:
        bodies = {encoded.row.key: encoded.row.body for encoded in self.encoded.values()}
        bodies.update((key_of(checkpoint_id), body) for checkpoint_id, body in (changed or {}).items())
        return Page((), bodies, self.parts)

    def image(self, checkpoint_id: str, changed: dict[str, bytes] | None = None) -> Image:
        row = self.encoded[checkpoint_id].row
        body = (changed or {}).get(checkpoint_id, row.body)
        return Reader(self.codec, self.page(changed)).image(row._replace(body=body))

    def read(self, checkpoint_id: str, changed: dict[str, bytes] | None = None) -> dict[str, Any]:
        image = self.image(checkpoint_id, changed)
        return checkpoint_of(image, self.codec.channel_values(image))

    def values(self, checkpoint_id: str) -> dict[str, Any]:
        return self.read(checkpoint_id)["channel_values"]

    def stored(self, checkpoint_id: str) -> int:
        encoded = self.encoded[checkpoint_id]
        return len(encoded.row.body) + sum(len(part.data) for part in encoded.parts)

    def total(self) -> int:
        return sum(map(self.stored, self.encoded))

    def read_cost(self, checkpoint_id: str) -> int:
        """Count the bytes that a store returns for one checkpoint."""
        row = self.encoded[checkpoint_id].row
        support = {
            key: encoded.row.body
            for encoded in self.encoded.values()
            for span in row.reach
            if (key := encoded.row.key)[:2] == span[:2] and span.first <= key.checkpoint_id <= span.last
        }
        support[row.key] = row.body
        return sum(map(len, support.values())) + sum(len(self.parts[part_id]) for part_id in row.parts)


def encoded_writes(
    codec: Codec,
    writes: Sequence[tuple[str, Any]],
    task_id: str = "task",
    task_path: str = "",
    **options: Any,
) -> EncodedWrites:
    return codec.encode_writes(codec.dump_writes(writes, "t"), task_id, task_path, key_of("1"), **options)


def key_of(checkpoint_id: str, thread_id: str = "t") -> CheckpointKey:
    return CheckpointKey(thread_id, "", checkpoint_id)


def message(number: int, size: int = 1000) -> dict[str, Any]:
    """Make an item that doesn't compress."""
    text = "".join(RANDOM.choices(string.ascii_letters + string.digits + "+/", k=size))
    return {"id": str(uuid4()), "type": "human", "content": text, "number": number}


# Differences

chunks = st.lists(st.binary(max_size=40), max_size=30)
items = st.lists(st.integers(0, 9) | st.text(max_size=20), max_size=40)


@given(chunks, st.data(), st.booleans())
def test_a_difference_rebuilds_the_new_value(old, data, container):
    new = list(old)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(new)))
        new[at : at + data.draw(st.integers(0, 3))] = data.draw(chunks)
    check_difference(b"".join(old), b"".join(new), container)


@given(st.binary(max_size=300), st.binary(max_size=300), st.booleans())
@example(b"", b"", True)
@example(b"\xdc", b"\xdd\x00", True)
@example(b"\xdd\x00\x01\x00\x00", b"\xdd\x00\x01", True)
@example(b"aaaa", b"aaaaaaaa", False)
@example(b"abababab", b"abab", False)
def test_a_difference_of_anything_rebuilds_the_new_value(old, new, container):
    check_difference(old, new, container)


@given(items, items, st.integers(0, 40))
def test_a_difference_of_lists_rebuilds_the_new_list(first, second, at):
    check_difference(ormsgpack.packb(first), ormsgpack.packb(first[:at] + second + first[at:]), True)
    check_difference(ormsgpack.packb(first + second), ormsgpack.packb(first[:at] + second), True)


def check_difference(old: bytes, new: bytes, container: bool) -> diff.Difference:
    change = diff.difference(old, new, container)
    assert diff.fits(len(old), change)
    base = bytearray(old)
    diff.apply(base, change)
    assert bytes(base) == new
    return change


@pytest.mark.parametrize("count", [0, 1, 14, 15, 16, 17, 400, 65534, 65535, 65536])
def test_appending_costs_what_is_appended(count):
    old = [f"item {number}" for number in range(count)]
    change = check_difference(ormsgpack.packb(old), ormsgpack.packb([*old, "one more"]), True)
    assert len(change.middle) == len(ormsgpack.packb("one more"))
    assert len(change.lead) <= 5


@pytest.mark.parametrize("size", [1, 254, 255, 256, 257, 511, 65535, 65536, 65537, 3 << 16])
def test_common_bytes_are_counted_to_the_last(size):
    same = random.Random(size).randbytes(size)
    change = check_difference(b"<" + same + b"x" + same + b">", b"<" + same + b"yy" + same + b">", False)
    assert change.middle == b"yy"


def test_an_edit_in_the_middle_costs_the_item():
    old = [message(number) for number in range(100)]
    new = [*old[:50], "edited", *old[51:]]
    change = check_difference(ormsgpack.packb(old), ormsgpack.packb(new), True)
    assert len(change.middle) < 20


def test_trimming_in_front_costs_next_to_nothing():
    old = [message(number) for number in range(100)]
    for new in (old[10:], [*old[10:], "appended"]):
        change = check_difference(ormsgpack.packb(old), ormsgpack.packb(new), True)
        assert len(change.lead) + len(change.middle) < 20


@given(st.integers(-3, 20), st.integers(-3, 20), st.integers(-3, 20), st.integers(0, 20))
def test_fits_tells_what_can_be_applied(start, length, tail, size):
    change = diff.Difference(b"", start, length, b"", tail)
    in_range = min(start, length, tail) >= 0 and start + length + tail <= size
    assert diff.fits(size, change) == in_range


# Ids

UUIDISH = st.builds(
    lambda text, at, put, drop: text[:at] + put + text[at + drop :],
    st.uuids().map(str) | st.sampled_from((UUID_TEXT, str(UUID(int=0)), str(UUID(int=(1 << 128) - 1)))),
    st.integers(0, 37),
    st.text(st.sampled_from("0f-aFgz/:`\x00\ud800\U0001f600"), max_size=2),
    st.integers(0, 3),
)
ANY_ID = st.text(st.characters(), max_size=8) | UUIDISH | st.uuids().map(str)


@given(st.lists(ANY_ID, max_size=12))
@example(["", "0", "00000000-0000-0000-0000-000000000000", "g", "-", "/", "\ud800"])
@example([UUID_TEXT, UUID_TEXT.upper(), UUID_TEXT + "\x00", UUID_TEXT[:-1], UUID_TEXT[:8]])
def test_id_keys_sort_as_the_ids_bytes_do(ids):
    by_bytes = sorted(ids, key=lambda text: text.encode("utf-8", "surrogatepass"))
    assert sorted(ids, key=id_key) == by_bytes
    assert len({id_key(text) for text in ids}) == len(set(ids))


@given(ANY_ID)
def test_ids_come_back(text):
    assert id_of_key(id_key(text)) == text
    assert unpack_id(pack_id(text)) == text


def test_a_uuid_is_short():
    assert len(id_key(UUID_TEXT)) == 17
    assert len(pack_id(UUID_TEXT)) == 16


@pytest.mark.parametrize("text", [UUID_TEXT.upper(), "{" + UUID_TEXT[1:], UUID_TEXT.replace("a", "\u0661")])
def test_what_only_looks_like_a_uuid_is_kept_as_it_is(text):
    assert pack_id(text) == text
    assert id_of_key(id_key(text)) == text


# Versions and headers

VERSIONS = (
    st.integers(0, (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.integers(0, 10**32 - 1).map(lambda n: f"{n:032}.{random.Random(n).random()}")
    | st.integers(0, 10**20).map(next_version)
    | st.from_regex(r"\A[0-9]{30,34}\.[0-9a-f]{14,18}\Z")
    | st.from_regex(r"\A0{13,30}[0-9]{2,19}\.[ -~]{0,6}\Z")
)


@given(VERSIONS)
@example("0" * 31 + "1." + "0123456789abcdef")
@example("0" * 31 + "\u0661." + "0123456789abcdef")
@example("0" * 31 + "1." + "\ud800")
@example("9" * 32 + "." + "0123456789abcdef")
@example("0" * 13 + "9" * 19 + "." + "0123456789abcdef")
@example("0" * 32 + ".")
def test_versions_come_back(version):
    packed = pack_version(version)
    if not isinstance(version, str) or not any("\ud800" <= char <= "\udfff" for char in version):
        packed = ormsgpack.unpackb(ormsgpack.packb(packed))
    again = unpack_version(packed)
    assert again == version
    assert type(again) is type(version)


@given(st.none() | st.integers(0, 10**30) | st.floats(0, 1e15) | st.integers(0, 10**30).map(next_version))
def test_the_next_version_follows(current):
    following = next_version(current)
    assert is_unique(following)
    assert following != next_version(current)
    if isinstance(current, str):
        assert following > current
    assert next_version(following) > following
    assert f"{int(float(following.split('.')[0])) + 10**25:032}.0" > following


def test_no_other_process_and_nobody_s_seed_makes_versions_repeat():
    made = []
    for _ in range(2):
        random.seed(1)
        made.append(next_version(None))
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, next_version(None).encode())
        os._exit(0)
    os.wait()
    made += [os.read(read, 100).decode(), next_version(None)]
    os.close(read)
    os.close(write)
    assert len(set(made)) == 4
    assert all(is_unique(version) for version in made)


def test_the_next_version_follows_other_savers():
    stock = "00000000000000000000000000000007.0.7298493893"
    assert stock < next_version(stock) < "00000000000000000000000000000009.0.1"
    assert next_version(7) > stock


@pytest.mark.parametrize("version", [1, 1.5, "1", "", "00000000000000000000000000000007", True, None])
def test_a_version_without_a_random_part_is_not_unique(version):
    assert not is_unique(version)


names = st.sampled_from(("a", "b", "", "\ud800", "branch:to:x", "\x00"))
versioned = st.dictionaries(names, VERSIONS, max_size=4)
headers = st.builds(
    Header,
    v=st.sampled_from((1, 4, None)),
    ts=st.sampled_from(
        (
            "2026-01-01T00:00:00.123456+00:00",
            "2026-01-01T00:00:00+00:00",
            "1969-12-31T23:59:59.999999+00:00",
            "9999-12-31T23:59:59.999999+00:00",
            "2026-02-31T00:00:00.000000+00:00",
            "2026-01-01T00:00:00.123456+02:00",
            "",
            None,
            5,
            "2026-01-01T00:00:00.12345\u0661+00:00",
            1.5,
        )
    ),
    versions=versioned,
    seen=st.dictionaries(names, versioned, max_size=3),
    extra=st.sampled_from(({}, {"updated_channels": None}, {"updated_channels": ["\ud800"], "new": [1]})),
)
keys = st.builds(
    CheckpointKey, st.sampled_from("tu"), st.sampled_from(("", "n")), st.sampled_from((UUID_TEXT, "x"))
)
places = st.dictionaries(names, st.tuples(keys, st.integers(0, 300)), max_size=4)


@given(headers, places, headers | st.none(), places)
def test_headers_come_back(header, at, old, old_at):
    old_at = old_at if old else {}
    key = key_of(UUID_TEXT)
    packed = pack_header(header, at, old, old_at, key)
    again, places_again = unpack_header(packed, old, old_at, key)
    assert typed(again) == typed(header)
    assert places_again == at
    plain = pack_plain_header(header, at, key)
    again, places_again = unpack_header(plain, old, old_at, key)
    assert typed(again) == typed(header)
    assert places_again == at
    for data in (packed, plain):
        assert repr(header_time(data, is_alias=False)) == repr([header.ts])


def typed(header: Header) -> Any:
    """Return what tells 1 from 1.0."""
    seen = {node: sorted(map(repr, versions.items())) for node, versions in header.seen.items()}
    return (header.v, repr(header.ts), sorted(map(repr, header.versions.items())), seen, header.extra)


@pytest.mark.parametrize("versions", [[1, 1.0, True, 1], ["1", 1], [0, False, 0.0]])
def test_equal_versions_of_other_types_are_other_versions(versions):
    line = Line()
    for version in versions:
        at = line.put({"a": 1}, versions={"a": version}, versions_seen={"node": {"a": version}})
        found = line.read(at)
        assert repr(found["channel_versions"]["a"]) == repr(version)
        assert repr(found["versions_seen"]["node"]["a"]) == repr(version)


@pytest.mark.parametrize("count", [3, 50])
def test_in_memory_only_small_headers_are_whole(count):
    line = Line(Codec(HarnessSerializer(), bare=True))
    versions = {f"channel {number}": next_version(number) for number in range(count)}
    for number in range(40):
        versions = {**versions, "channel 0": next_version(number)}
        at = line.put({"channel 0": number}, versions=versions, versions_seen={"node": dict(versions)})
    assert line.read(at)["channel_versions"] == versions
    assert line.read(at)["versions_seen"] == {"node": versions}
    whole = len(ormsgpack.packb([versions, versions]))
    sizes = [len(encoded.row.body) for encoded in line.encoded.values()]
    assert sum(sizes) / len(sizes) < (whole + 200 if count == 3 else whole / 1.5)
    kinds = [
        {slot.kind for slot in line.codec.open_body(encoded.row.body, encoded.row.key).slots.values()}
        for encoded in line.encoded.values()
    ]
    assert any(HEADER_DIFFERENCE in some for some in kinds) == (count == 50)


def test_an_unchanged_header_costs_little():
    versions = {f"channel {number}": next_version(number) for number in range(50)}
    header = Header(4, "2026-01-01T00:00:00.123456+00:00", versions, {"node": versions}, {})
    assert len(pack_header(header, {}, header, {}, key_of("a"))) < 30


# Checkpoints

VALUES = [
    None, True, 0, -1, 1.0, float("inf"), 1e300, "", "\x00", "\ud800", "e\u0301\U0001f600", b"", b"\x00\xff",
    [], {}, [None], {"\udfff": "\ud800"}, {1: {2: [3]}}, _DeltaSnapshot([1, "\ud800"]), "long " * 20_000,
    b"\x00" * 100_000, UUID(int=7), {"nested": [[[{}]]]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_values_come_back(value):
    line = Line()
    for values in ({"a": value}, {"a": value, "\ud800": [value]}, {"b": value}, {}, {"a": [value] * 3}):
        at = line.put(values)
        again = line.values(at)
        assert again == values
        assert {name: type(item) for name, item in again.items()} == {n: type(v) for n, v in values.items()}


def test_nan_comes_back():
    line = Line()
    first = line.put({"a": float("nan")})
    assert str(line.values(line.put({"a": float("nan"), "b": 1}))) == "{'a': nan, 'b': 1}"
    assert str(line.values(first)) == "{'a': nan}"


def test_every_field_of_a_checkpoint_comes_back():
    line = Line()
    versions = {"a": 1, "b": 1.0, "c": "1", "d": next_version(None)}
    seen = {"node": {"a": 1}, "\ud800": {}, "": {"d": versions["d"]}}
    at = line.put({"a": 5}, versions=versions, versions_seen=seen, updated_channels=["a"], later={"x": [1]})
    assert line.read(at) == {
        "v": 4, "ts": "2026-01-01T00:00:00+00:00", "id": at, "channel_values": {"a": 5},
        "channel_versions": versions, "versions_seen": seen, "updated_channels": ["a"], "later": {"x": [1]},
    }  # fmt: skip
    again = line.put({}, versions={}, versions_seen={})
    assert line.read(again)["channel_versions"] == {}
    assert line.read(again)["versions_seen"] == {}
    assert "updated_channels" not in line.read(again)


def test_what_is_read_is_fresh():
    line = Line()
    at = line.put({"a": [1]}, updated_channels=["a"])
    image = line.image(at)
    for _ in range(2):
        found = checkpoint_of(image, line.codec.channel_values(image))
        assert (found["channel_values"], found["updated_channels"]) == ({"a": [1]}, ["a"])
        found["channel_values"]["a"].append(2)
        found["updated_channels"].append("b")
        found["channel_versions"]["a"] = 2


def test_equal_versions_that_can_come_again_do_not_hide_a_new_value():
    line = Line()
    for value in (["one"], ["two"], "two"):
        assert line.values(line.put({"a": value}, versions={"a": 1})) == {"a": value}


def test_a_value_with_the_version_of_its_parent_is_not_serialised():
    calls: list[Any] = []

    class Counting(HarnessSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            calls.append(obj)
            return super().dumps_typed(obj)

    line = Line(Codec(Counting()))
    version = next_version(None)
    line.put({"a": ["value"]}, versions={"a": version})
    calls.clear()
    at = line.put({"a": ["value"]}, versions={"a": version})
    assert calls == []
    assert line.values(at) == {"a": ["value"]}


def test_forks_do_not_see_each_other():
    line = Line()
    root = line.put({"a": ["root " * 50]})
    left = line.put({"a": ["root " * 50, "left"]}, root)
    right = line.put({"a": ["root " * 50, "right"]}, root)
    assert line.values(left)["a"][1] == "left"
    assert line.values(right)["a"][1] == "right"


@pytest.mark.parametrize("serde", [JsonPlusSerializer(), HarnessSerializer()], ids=["stock", "ours"])
def test_any_serializer_will_do(serde):
    line = Line(Codec(serde))
    for number in range(20):
        line.put({"a": [f"{n} " * 30 for n in range(number)], "b": {"n": number}})
    for number, at in enumerate(line.encoded):
        assert line.values(at) == {"a": [f"{n} " * 30 for n in range(number)], "b": {"n": number}}


class Reversed:
    """A serializer of another kind: its bytes have no msgpack header."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "reversed", ormsgpack.packb(obj)[::-1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "reversed"
        return ormsgpack.unpackb(data[1][::-1])


def test_any_bytes_will_do():
    line = Line(Codec(Reversed()))
    for number in range(40):
        line.put({"a": [f"{n} " * 30 for n in range(number)]})
    for number, at in enumerate(line.encoded):
        assert line.values(at) == {"a": [f"{n} " * 30 for n in range(number)]}


def test_a_value_that_changes_its_type_is_stored_whole():
    line = Line()
    for value in (b"bytes " * 100, "bytes " * 100, None, b"bytes " * 100):
        assert line.values(line.put({"a": value})) == {"a": value}


def test_what_cannot_be_written_is_named():
    with pytest.raises(SerializationError, match=r"channel 'a' of thread 't' holds a Reversed"):
        Line(Codec(Reversed())).put({"a": Reversed()})


# What a chain costs


@pytest.mark.parametrize("size", [50, 1000, 20_000])
def test_an_append_only_list_is_stored_about_twice(size):
    """What is stored grows with the number of items, and reading costs about twice the value."""
    line, value = Line(), []
    count = 2_000_000 // size if size > 1000 else 400
    for number in range(count):
        value = [*value, message(number, size)]
        at = line.put({"messages": value})
        if (number + 1) % (count // 5) == 0:
            plain = len(ormsgpack.packb(value))
            assert line.total() < 2 * plain + 250 * (number + 1)
            assert line.read_cost(at) < 2.2 * plain + 2 * CHAIN_BYTES
    assert line.values(at) == {"messages": value}


def test_reading_small_values_stays_cheap():
    line = Line()
    for number in range(500):
        at = line.put({"counter": {"n": number, "text": "some text that stays as it is " * 6}})
        assert line.read_cost(at) < 3 * CHAIN_BYTES


def test_in_memory_a_value_is_stored_whole_less_often_and_no_chain_has_no_end():
    """Differences may take four times the value where reading one takes no disk."""
    value = [message(number, 300) for number in range(40)]
    size = len(ormsgpack.packb(value))
    wholes = []
    for bare in (False, True):
        line = Line(Codec(HarnessSerializer(), bare=bare))
        for number in range(200):
            value = [*value[: number % 40], message(1000 + number, 300), *value[number % 40 + 1 :]]
            at = line.put({"messages": value})
            assert line.read_cost(at) < (6 if bare else 3) * size
        assert line.values(at) == {"messages": value}
        wholes.append(sum(bool({RAW, PART} & line.kinds(at)) for at in line.encoded))
    assert 3 <= 2 * wholes[1] < wholes[0]


EDITS = {
    "trimmed in front": lambda value, n: value[1:],
    "trimmed and appended": lambda value, n: [*value[1:], message(n)],
    "edited in the middle": lambda value, n: [
        *value[: len(value) // 2],
        message(n),
        *value[len(value) // 2 + 1 :],
    ],
    "edited at both ends": lambda value, n: [message(n), *value[1:-1], message(n)],
    "removed in the middle": lambda value, n: [*value[: len(value) // 2], *value[len(value) // 2 + 1 :]],
    "all new": lambda value, n: [message(n + i) for i in range(len(value))],
    "shuffled": lambda value, n: random.Random(n).sample(value, len(value)),
    "every second edited": lambda value, n: [message(n) if i % 2 else m for i, m in enumerate(value)],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
@pytest.mark.parametrize("count", [20, 100])
def test_no_edit_costs_more_than_a_copy(edit, count):
    line, value = Line(), [message(number) for number in range(count)]
    line.put({"messages": value})
    for number in range(15):
        value = edit(value, 100 * number)
        at = line.put({"messages": value})
        whole = Line()
        copy = whole.stored(whole.put({"messages": value}))
        assert line.stored(at) <= 1.01 * copy + 100
        assert line.read_cost(at) <= 2.2 * copy + 2 * CHAIN_BYTES
        assert line.values(at) == {"messages": value}


@pytest.mark.parametrize(
    "name", ["trimmed in front", "trimmed and appended", "edited in the middle", "removed in the middle"]
)
def test_a_small_edit_costs_little(name):
    line, value = Line(), [message(number) for number in range(100)]
    line.put({"messages": value})
    copy = line.total()
    for number in range(10):
        value = EDITS[name](value, number)
        line.put({"messages": value})
    assert line.total() < copy + 10 * 1500


def test_unchanged_channels_cost_nothing():
    line = Line()
    values = {f"channel {number}": message(number) for number in range(30)}
    versions = {channel: next_version(None) for channel in values}
    line.put({**values, "n": 0}, versions={**versions, "n": 1})
    for number in range(1, 100):
        at = line.put({**values, "n": number}, versions={**versions, "n": number})
        assert line.stored(at) < 500 or number % 17 == 0
    assert line.values(at) == {**values, "n": 99}


def test_a_large_value_stands_apart():
    line = Line()
    at = line.put({"large": message(1, PART_BYTES), "small": 1})
    assert len(line.encoded[at].row.parts) == 1
    assert len(line.encoded[at].row.body) < 500
    changed = line.put({"large": message(1, PART_BYTES), "small": 2})
    assert line.values(at)["large"] != line.values(changed)["large"]


@pytest.mark.parametrize("large", [False, True])
def test_a_list_that_changes_a_little_is_stored_anew_in_its_row_unless_it_is_large(large):
    line, size = Line(), RESTART_BYTES // 16 if large else 1000
    value = [message(number, size) for number in range(20)]
    line.put({"messages": value})
    for number in range(40):
        value = [*value[: number % 20], message(number + 50, size), *value[number % 20 + 1 :]]
        at = line.put({"messages": value})
        if {RAW, PART} & line.kinds(at):
            break
    assert {RAW, PART} & line.kinds(at) == {PART if large else RAW}
    value = [*value, "more"]
    later = line.put({"messages": value})
    assert len(line.encoded[later].row.parts) == large
    assert line.values(later) == {"messages": value}


def test_equal_large_values_share_a_part():
    line, large = Line(), message(1, PART_BYTES)
    line.put({"a": large, "b": large})
    line.put({"c": large}, None)
    assert len(line.parts) == 1


def test_a_large_insertion_stands_apart_and_every_reader_names_it():
    line = Line()
    value = [message(0, 2 * PART_MIDDLE_BYTES)]
    line.put({"a": value})
    value = [*value, message(1, PART_MIDDLE_BYTES)]
    second = line.put({"a": value})
    assert DIFFERENCE_PART in line.kinds(second)
    third = line.put({"a": [*value, "small"]})
    assert len(line.encoded[third].row.parts) == 2
    assert line.values(third)["a"] == [*value, "small"]


def test_a_row_reaches_every_row_that_it_needs():
    line = Line()
    values: dict[str, Any] = {}
    for number in range(120):
        channel = f"channel {number % 7}"
        values = {**values, channel: [*values.get(channel, []), message(number, 200)]}
        line.put(values, line_base(line, number))
    for at, encoded in line.encoded.items():
        bodies = {
            other.row.key: other.row.body
            for other in line.encoded.values()
            for span in encoded.row.reach
            if span.first <= other.row.key.checkpoint_id <= span.last
        }
        page = Page((), {**bodies, encoded.row.key: encoded.row.body}, line.parts)
        image = Reader(line.codec, page).image(encoded.row)
        assert line.codec.channel_values(image) == line.values(at)


def line_base(line: Line, number: int) -> str | None:
    """Fork from time to time."""
    ids = list(line.encoded)
    if not ids:
        return None
    return ids[-1 - number % 5] if number % 11 == 10 else ids[-1]


def test_what_a_reader_finds_is_what_the_writer_knew():
    """An image read back leads to the same next checkpoint as the one that was written."""
    line, value = Line(), []
    for number in range(60):
        value = [*value, message(number, 300)]
        at = line.put({"a": value, "b": number % 3})
        read, known = line.image(at), line.encoded[at].image
        assert (read.header, read.head, read.head_digest) == (known.header, known.head, known.head_digest)
        assert read.links == known.links
        assert read.blobs == known.blobs


# Damage


def damaged_line() -> tuple[Line, str]:
    line = Line()
    line.put({"a": [message(0, 300)], "b": "unchanged " * 30, "c": 1}, versions={"a": 1, "b": 1, "c": 1})
    at = line.put(
        {"a": [message(0, 300), "appended"], "b": "unchanged " * 30, "c": 2},
        versions={"a": 2, "b": 1, "c": 2},
    )
    value = line.values(at)["a"]
    at = line.put({"a": [*value, "more"], "b": "unchanged " * 30}, versions={"a": 3, "b": 1})
    return line, at


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_damaged_byte_gives_a_wrong_value(flip):
    line, at = damaged_line()
    expected = line.read(at)
    for checkpoint_id, encoded in list(line.encoded.items()):
        for position in range(len(encoded.row.body)):
            body = bytearray(encoded.row.body)
            body[position] ^= flip
            check_damage(line, at, {checkpoint_id: bytes(body)}, expected)


def test_no_cut_gives_a_wrong_value():
    line, at = damaged_line()
    expected = line.read(at)
    for checkpoint_id, encoded in list(line.encoded.items()):
        for length in range(len(encoded.row.body)):
            check_damage(line, at, {checkpoint_id: encoded.row.body[:length]}, expected)


@settings(max_examples=examples(200))
@given(st.binary(max_size=60))
def test_no_other_bytes_give_a_value(data):
    line, at = damaged_line()
    for checkpoint_id in line.encoded:
        check_damage(line, at, {checkpoint_id: data}, line.read(at))


def check_damage(line: Line, at: str, changed: dict[str, bytes], expected: Any) -> None:
    try:
        found = line.read(at, changed)
    except (CorruptCheckpointError, SchemaError):
        return
    # Damage in what isn't needed may go unseen.
    assert found == expected


def test_no_damaged_part_gives_a_wrong_value():
    line = Line()
    at = line.put({"a": "text " * PART_BYTES})
    expected = line.read(at)
    ((part_id, data),) = line.parts.items()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        line.parts[part_id] = bytes(damaged)
        check_damage(line, at, {}, expected)
    del line.parts[part_id]
    with pytest.raises(CorruptCheckpointError):
        line.read(at)


def test_damaged_writes_and_metadata_are_errors():
    codec = Codec(HarnessSerializer())
    (row,) = encoded_writes(codec, [("a", ["value"])]).rows
    expected = codec.merge_writes([row], key_of("1"))
    for position in range(len(row.body)):
        body = bytearray(row.body)
        body[position] ^= 0xFF
        with pytest.raises((CorruptCheckpointError, SchemaError)):
            codec.merge_writes([row._replace(body=bytes(body))], key_of("1"))
    assert codec.merge_writes([row], key_of("1")) == expected
    with pytest.raises(CorruptCheckpointError):
        codec.unpack_metadata(b"\x00\xc1")


def test_where_time_counts_more_small_bodies_stay_as_they_are():
    compressed, bare = Line(), Line(Codec(HarnessSerializer(), bare=True))
    for line, form in ((compressed, 1), (bare, 2)):
        at = line.put({"a": "x" * 1000, "b": "y" * 20_000})
        assert line.encoded[at].row.body[0] == form
        assert {data[0] for data in line.parts.values()} == {1}
        # Either reads the other's.
        line.codec = Codec(HarnessSerializer(), bare=form == 1)
        assert line.read(at)["channel_values"] == {"a": "x" * 1000, "b": "y" * 20_000}


@pytest.mark.parametrize("form", [0, 4, 5, 0x7F, 0x80, 0x82, 0xFF])
def test_an_unknown_format_is_named(form):
    line, at = damaged_line()
    body = bytes([form]) + line.encoded[at].row.body[1:]
    with pytest.raises(SchemaError, match=rf"format {form}\b.*Upgrade"):
        line.read(at, {at: body})


def test_a_base_with_another_value_is_an_error():
    line = Line()
    first = line.put({"a": [message(0), message(1)]})
    second = line.put({"a": [*line.values(first)["a"], "appended"]})
    kinds = {
        s.kind for s in line.codec.open_body(line.encoded[second].row.body, key_of(second)).slots.values()
    }
    assert DIFFERENCE in kinds
    other = Line()
    other.put({"a": [message(0), message(1)]})
    with pytest.raises(CorruptCheckpointError, match="another value"):
        line.read(second, {first: other.encoded[first].row.body})


def test_a_sound_body_with_another_value_is_an_error():
    line = Line()
    first = line.put({"a": "the value " * 10})
    line.put({"a": "the value " * 10 + "and more"})
    for at, encoded in line.encoded.items():
        body = line.codec.open_body(encoded.row.body, key_of(at))
        for number, slot in body.slots.items():
            if slot.kind in (RAW, DIFFERENCE):
                data = slot.data[:-1] if slot.kind == RAW else [*slot.data[:3], b"other", 0]
                body.slots[number] = slot._replace(data=data)
        with pytest.raises(CorruptCheckpointError, match="does not decode"):
            line.read(at, {at: line.codec.seal_body(body, key_of(at))})
    assert line.values(first) == {"a": "the value " * 10}


def test_a_base_that_is_gone_is_an_error():
    line = Line()
    first = line.put({"a": [message(0)]})
    second = line.put({"a": [*line.values(first)["a"], "appended"]})
    page = Page((), {key_of(second): line.encoded[second].row.body}, {})
    with pytest.raises(CorruptCheckpointError, match="gone"):
        Reader(line.codec, page).image(line.encoded[second].row)


def test_rows_that_differ_in_an_inherited_value_differ_in_rev():
    """Else a cache would take a checkpoint of a thread that was deleted and put again for its own."""
    revs = []
    for value in ("one " * 100, "two " * 100):
        line = Line()
        line.put({"a": value, "b": 1}, versions={"a": 1, "b": 1})
        revs.append(line.encoded[line.put({"a": value, "b": 2}, versions={"a": 1, "b": 2})].row.rev)
    assert revs[0] != revs[1]


# Writes and metadata


def test_writes_come_back_in_sort_key_order():
    codec = Codec(HarnessSerializer())
    rows = []
    for path, task in (("b", "3"), ("a", "2"), ("", "9"), ("a", "1"), ("a\ud800", "0")):
        rows += encoded_writes(codec, [(f"{path}{task}", n) for n in range(12)], task, path).rows
    found = codec.load_writes(codec.merge_writes(rows, key_of("1")), codec.written_parts({}), key_of("1"))
    assert found == [
        (task, f"{path}{task}", n)
        for path, task in (("", "9"), ("a", "1"), ("a", "2"), ("a\ud800", "0"), ("b", "3"))
        for n in range(12)
    ]


def test_of_regular_writes_the_first_stays_and_of_special_ones_the_last():
    codec = Codec(HarnessSerializer())
    special = list(WRITES_IDX_MAP)
    rows = []
    for number in (1, 2):
        writes = [("a", number), *((channel, number) for channel in special), ("b", number)]
        rows += encoded_writes(codec, writes, "task", f"path {number}").rows
    found = codec.load_writes(codec.merge_writes(rows, key_of("1")), codec.written_parts({}), key_of("1"))
    assert sorted(found) == sorted(
        [("task", "a", 1), ("task", "b", 1), *(("task", channel, 2) for channel in special)]
    )


def test_regular_writes_of_a_call_share_a_row():
    codec = Codec(HarnessSerializer())
    rows = encoded_writes(codec, [("a", 1), ("__error__", 2), ("b", 3), ("__error__", 4)]).rows
    assert sorted(row.call for row in rows) == sorted([0, WRITES_IDX_MAP["__error__"]])


def test_a_large_write_stands_apart():
    codec = Codec(HarnessSerializer())
    writes = [("a", "x" * PART_BYTES), ("b", None), ("__error__", b"y" * PART_BYTES)]
    encoded = encoded_writes(codec, writes)
    rows, parts = encoded.rows, encoded.parts
    assert {part.part_id for part in parts} == {part_id for row in rows for part_id in row.parts}
    assert all(len(row.body) < 200 for row in rows)
    stored = {part.part_id: part.data for part in parts}
    items = codec.merge_writes(rows, key_of("1"))
    assert sorted(codec.load_writes(items, codec.written_parts(stored), key_of("1")), key=str) == sorted(
        [("task", *write) for write in writes], key=str
    )
    with pytest.raises(CorruptCheckpointError):
        codec.load_writes(items, codec.written_parts({}), key_of("1"))


@pytest.mark.parametrize(
    "metadata",
    [
        {}, {"step": -1, "parents": {"": "x"}}, {"a": "\x00\ud800"}, {"\udfff": [1.5, None, True]},
        {"inf": float("inf"), "deep": {"a": [{"b": [[]]}]}}, {"id": uuid4()},
        {"big": 1e300, "n": (1 << 64) - 1},
    ],
)  # fmt: skip
def test_metadata_comes_back(metadata):
    line = Line()
    at = line.put({}, metadata=metadata)
    assert line.codec.unpack_metadata(line.encoded[at].row.metadata) == metadata


# Encryption

KEY = b"0123456789abcdef"


@pytest.fixture
def encrypted() -> Line:
    return Line(Codec(EncryptedSerializer.from_pycryptodome_aes(key=KEY)))


def test_no_plaintext_is_in_encrypted_rows(encrypted):
    secret = "attack at dawn"
    for number in range(5):
        values = {"channel of spies": [secret] * (number + 1), "large": secret * PART_BYTES}
        at = encrypted.put(values, versions={"channel of spies": number, "large": number})
        assert encrypted.values(at) == values
    written = encoded_writes(encrypted.codec, [("channel of spies", secret), ("b", secret * PART_BYTES)])
    everything = [encoded.row.body for encoded in encrypted.encoded.values()]
    everything += [*encrypted.parts.values(), *(row.body for row in written.rows)]
    everything += [part.data for part in written.parts]
    for data in everything:
        assert secret.encode() not in data
        assert b"spies" not in data
    # Equal contents must not show as equal bytes, nor as one part.
    assert len(set(everything)) == len(everything)
    encrypted.put({"large": secret * PART_BYTES}, None)
    assert len(encrypted.parts) == 2


def test_differences_pay_under_encryption(encrypted):
    value: list[Any] = []
    for number in range(100):
        value = [*value, message(number)]
        at = encrypted.put({"messages": value})
    assert encrypted.total() < 2.5 * len(ormsgpack.packb(value))
    assert encrypted.values(at) == {"messages": value}


def test_another_key_reads_nothing(encrypted):
    at = encrypted.put({"a": "secret"})
    encrypted.codec = Codec(EncryptedSerializer.from_pycryptodome_aes(key=KEY[::-1]))
    with pytest.raises(HarnessError):
        encrypted.read(at)


def test_without_a_key_it_says_so(encrypted):
    at = encrypted.put({"a": "secret"})
    encrypted.codec = Codec(HarnessSerializer())
    with pytest.raises(SchemaError, match="EncryptedSerializer"):
        encrypted.read(at)


def test_a_key_can_be_added_later():
    line = Line()
    first = line.put({"a": ["before " * 20]})
    line.codec = Codec(EncryptedSerializer.from_pycryptodome_aes(key=KEY))
    second = line.put({"a": ["before " * 20, "after"]})
    assert line.values(first) == {"a": ["before " * 20]}
    assert line.values(second) == {"a": ["before " * 20, "after"]}


def test_no_damaged_encrypted_byte_gives_a_wrong_value(encrypted):
    at = encrypted.put({"a": "secret"})
    body = encrypted.encoded[at].row.body
    for position in range(len(body)):
        damaged = bytearray(body)
        damaged[position] ^= 0x01
        with pytest.raises(HarnessError):
            encrypted.read(at, {at: bytes(damaged)})


def test_a_part_is_named_by_sixteen_bytes():
    for codec in (Codec(HarnessSerializer()), Codec(EncryptedSerializer.from_pycryptodome_aes(key=KEY))):
        line = Line(codec)
        line.put({"a": "x" * PART_BYTES})
        assert [len(part_id) for part_id in line.parts] == [16]
        assert all(isinstance(PartRow(*item), PartRow) for item in line.parts.items())


def test_ids_of_langgraph_are_short():
    line = Line()
    parent = line.put({"n": 1}, checkpoint_id=str(uuid6()))
    at = line.put({"n": 1}, parent, checkpoint_id=str(uuid6()))
    assert line.stored(at) < 150
