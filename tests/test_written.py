"""Large writes that are stored as differences from those before."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from helpers import STORES, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from test_codec import KEY, encoded_writes, key_of

from langgraph_harness_saver import CheckpointEngine
from langgraph_harness_saver import difference as diff
from langgraph_harness_saver.cache import ImageCache, Place
from langgraph_harness_saver.codec import PART_BYTES, Codec, EncodedWrites
from langgraph_harness_saver.envelope import COMPRESSED, LOGGED, SEALED
from langgraph_harness_saver.errors import CorruptCheckpointError
from langgraph_harness_saver.serde import HarnessSerializer
from langgraph_harness_saver.written import INLINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helpers import Door

    from langgraph_harness_saver.rows import WriteRow

PLACE = Place("t", "", "a")


class Written:
    """What one channel is given, as a store would keep it."""

    def __init__(self, codec: Codec | None = None, cache_bytes: int = 64 << 20) -> None:
        self.codec = codec or Codec(HarnessSerializer())
        self.cache = ImageCache(cache_bytes)
        self.rows: list[WriteRow] = []
        self.parts: dict[bytes, bytes] = {}

    def write(self, value: Any, *, whole: bool = False, is_lost: bool = False) -> EncodedWrites:
        """Store a write, unless it is lost on its way."""
        encoded = encoded_writes(
            self.codec, [("a", value)], f"task {len(self.rows)}", cache=self.cache, whole=whole
        )
        assert set(encoded.rows[0].parts) == set(encoded.pieces)
        if not is_lost:
            self.rows += encoded.rows
            self.parts.update((part.part_id, part.data) for part in encoded.parts)
            # Nothing else may be named than what is brought, or was.
            assert self.parts.keys() >= set(encoded.pieces)
            encoded.are_stored()
        return encoded

    def read(self, *numbers: int, parts: dict[bytes, bytes] | None = None) -> list[Any]:
        """Read some rows, as those of one page."""
        page = self.codec.written_parts(self.parts if parts is None else parts)
        found = []
        for number in numbers:
            items = self.codec.merge_writes([self.rows[number]], key_of("1"))
            found += [value for _, _, value in self.codec.load_writes(items, page, key_of("1"))]
        return found

    @property
    def size(self) -> int:
        return sum(len(row.body) for row in self.rows) + sum(map(len, self.parts.values()))


def table(size: int = 500) -> dict[str, str]:
    rng = random.Random(size)
    return {f"key {n}": rng.randbytes(20).hex() for n in range(size)}


def changed(value: dict[str, str], rng: random.Random) -> dict[str, str]:
    return {**value, f"key {rng.randrange(len(value))}": rng.randbytes(rng.randrange(10, 30)).hex()}


def encrypted() -> Codec:
    return Codec(EncryptedSerializer.from_pycryptodome_aes(key=KEY))


CODECS = {
    "plain": lambda: Codec(HarnessSerializer()),
    "bare": lambda: Codec(HarnessSerializer(), bare=True),
    "encrypted": encrypted,
}


def test_one_entry_of_a_dict_takes_what_it_has() -> None:
    written, rng, value = Written(), random.Random(1), table()
    written.write(value)
    first = written.size
    for _ in range(200):
        value = changed(value, rng)
        written.write(value)
    assert written.read(200) == [value]
    # A row of a few hundred bytes, and a difference of 60 that is stored some times again.
    assert written.size - first < 200 * 800
    assert max(len(row.body) for row in written.rows) < INLINE_BYTES + 300
    assert max(len(row.parts) for row in written.rows) < 8


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=examples(40))
@given(data=st.data())
def test_any_history_comes_back(kind: str, data: st.DataObject) -> None:
    written = Written(CODECS[kind]())
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    value: Any = table(data.draw(st.sampled_from((100, 130, 300))))
    values = []
    edits = st.sampled_from(
        ("entry", "entry", "entry", "entry", "same", "many", "other", "back", "grow", "lose")
    )
    for edit in data.draw(st.lists(edits, min_size=1, max_size=60)):
        if edit == "entry":
            value = changed(value, rng) if isinstance(value, dict) else table(120)
        elif edit == "many":
            value = {name: rng.randbytes(25).hex() for name in list(value)}
        elif edit == "other":
            value = rng.choice(["x" * rng.randrange(PART_BYTES, 9000), b"y" * 5000, [1, "z"] * 3000])
            value = value if rng.random() < 0.5 else table(rng.randrange(100, 200))
            value = value if isinstance(value, dict) else dict.fromkeys(map(str, range(2000)), value[:3])
        elif edit == "back":
            value = values[rng.randrange(len(values))] if values else value
        elif edit == "grow":
            value = {**value, f"new {rng.random()}": "n" * rng.randrange(2000)}
        elif edit == "lose":
            written.cache.clear()
        is_lost = rng.random() < 0.3
        written.write(value, is_lost=is_lost)
        values += [] if is_lost else [value]
    order = [rng.randrange(len(values)) for _ in range(2 * len(values))] if values else []
    for numbers in (range(len(values)), range(len(values) - 1, -1, -1), order):
        assert written.read(*numbers) == [values[number] for number in numbers]
    # And each by itself, from what its own row names.
    for number, row in enumerate(written.rows):
        named = {part_id: written.parts[part_id] for part_id in row.parts}
        assert written.read(number, parts=named) == [values[number]]


@pytest.mark.parametrize("container", ["text", "list", "messages", "dict", "bytes"])
def test_any_kind_of_value_is_a_difference(container: str) -> None:
    written, rng, values = Written(), random.Random(3), []
    words = [rng.randbytes(12).hex() for _ in range(400)]
    for number in range(80):
        words[number * 7 % 400] = rng.randbytes(12).hex()
        value: Any = {
            "text": " ".join(words),
            "bytes": " ".join(words).encode(),
            "list": [*words],
            "messages": [(HumanMessage, AIMessage)[n % 2](word, id=str(n)) for n, word in enumerate(words)],
            "dict": dict(enumerate(words)),
        }[container]
        written.write(value)
        values.append(value)
    order = rng.sample(range(80), 80)
    assert written.read(*order) == [values[number] for number in order]
    whole = Written()
    for value in values:
        whole.write(value, whole=True)
    assert written.size < whole.size / 2


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 1.1])
def test_differences_never_take_more_than_whole_values(share: float) -> None:
    """Differences of any size, none of which compresses."""
    written, rng = Written(), random.Random(4)
    value = bytearray(rng.randbytes(20_000))
    count = 60
    for _ in range(count):
        length = min(len(value), int(share * len(value)))
        at = rng.randrange(len(value) - length + 1)
        value[at : at + length] = rng.randbytes(length)
        written.write(bytes(value))
    assert written.read(count - 1) == [bytes(value)]
    assert written.size < count * (len(value) + 300)


def test_what_is_not_known_to_be_stored_is_brought_again() -> None:
    written, rng, value = Written(encrypted()), random.Random(5), table()
    lost = []
    while len(lost) < 120:
        lost.append(written.write(value, is_lost=True))
        value = changed(value, rng)
    assert max(len(encoded.pieces) for encoded in lost) > 2
    for encoded in lost:
        assert [part.part_id for part in encoded.parts] == list(encoded.pieces)
    written.write(value)
    assert written.read(0) == [value]
    assert not written.write(value).parts


def test_a_value_that_comes_again_is_named() -> None:
    written, value = Written(encrypted()), table()
    written.write(value)
    size = written.size
    for _ in range(10):
        written.write(value)
    assert written.size < size + 10 * 200
    assert len(written.parts) == 1


def test_special_writes_and_small_ones_are_as_ever() -> None:
    codec, cache = Codec(HarnessSerializer()), ImageCache(1 << 20)
    for _ in range(2):
        encoded = encoded_writes(codec, [("__error__", "e" * PART_BYTES), ("a", "small")], cache=cache)
        assert not encoded.pieces
        assert all(row.body[0] == COMPRESSED for row in encoded.rows)
    assert cache.log(PLACE) is None


def test_releases_before_see_a_format_that_they_do_not_know() -> None:
    for codec in (Codec(HarnessSerializer()), encrypted()):
        written, value = Written(codec), table()
        written.write(value)
        written.write(changed(value, random.Random(6)))
        sealed = codec is not None and written.rows[0].body[0] == SEALED
        forms = [codec._envelope._decrypt(row.body)[0] if sealed else row.body[0] for row in written.rows]
        assert forms == [COMPRESSED, LOGGED]


def test_channels_threads_and_namespaces_are_told_apart() -> None:
    codec, cache, value = Codec(HarnessSerializer()), ImageCache(64 << 20), table()
    dumped = codec.dump_writes([("a", value)], "t")
    keys = [key_of("1"), key_of("1", "u"), key_of("1")._replace(checkpoint_ns="n")]
    for key in keys:
        assert codec.encode_writes(dumped, "task", "", key, cache).parts
    assert codec.encode_writes(codec.dump_writes([("b", value)], "t"), "task", "", keys[0], cache).parts


def test_what_is_remembered_counts_against_the_cache() -> None:
    written, value = Written(cache_bytes=100_000), table()
    for number in range(200):
        encoded_writes(written.codec, [(f"channel {number}", value)], cache=written.cache)
        assert written.cache._bytes <= 100_000
        assert written.cache._bytes == sum(size for _, size in written.cache._known.values())
    assert written.cache.log(Place("t", "", "channel 199")) is not None
    assert written.cache.log(Place("t", "", "channel 0")) is None
    none = Written(cache_bytes=0)
    for _ in range(2):
        none.write(value)
    assert none.read(0, 1) == [value, value]


def logged() -> tuple[Written, list[dict[str, str]]]:
    written, rng, values = Written(), random.Random(7), [table()]
    written.write(values[0])
    while len(written.rows[-1].parts) < 3 or len(written.rows) % 7:
        values.append(changed(values[-1], rng))
        written.write(values[-1])
    return written, values


def test_damaged_parts_are_found() -> None:
    written, values = logged()
    last = len(values) - 1
    assert written.read(last) == [values[last]]
    other = Written()
    other.write(changed(values[0], random.Random(8)))
    strange = next(iter(other.parts.values()))
    for part_id in written.rows[last].parts:
        data = written.parts[part_id]
        whole = {**written.parts}
        for damaged in (data[:-1], data[:20] + bytes([data[20] ^ 1]) + data[21:], b"", strange):
            with pytest.raises(CorruptCheckpointError):
                written.read(last, parts={**whole, part_id: damaged})
        del whole[part_id]
        with pytest.raises(CorruptCheckpointError):
            written.read(last, parts=whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda item: [*item[:5], item[5] + 1, *item[6:]],
        lambda item: [*item[:6], b"\xdd\x00\x00\x00\x00", item[7]],
        lambda item: [*item[:6], b"\x91\x95\x00\x00\x00\x00\x00", item[7]],
        lambda item: [*item[:6], b"\x91\x95\xc4\x00\xce\x7f\xff\xff\xff\x00\xc4\x00\x00", item[7]],
        lambda item: [*item[:6], b"\x91\x91\x01", item[7]],
        lambda item: [*item[:6], b"\x01", item[7]],
        lambda item: [*item[:7], item[7][:1]],
        lambda item: [*item[:7], []],
        lambda item: [*item[:7], item[7][::-1]],
    ],
)
def test_damaged_items_are_found(damage: Any) -> None:
    written, values = logged()
    (item,) = written.codec.merge_writes([written.rows[-1]], key_of("1"))
    page = written.codec.written_parts(written.parts)
    with pytest.raises(CorruptCheckpointError):
        written.codec.load_writes([damage(list(item))], page, key_of("1"))
    # What was begun with it is no harm to others of the page.
    assert written.codec.load_writes([item], page, key_of("1"))[0][2] == values[-1]


@settings(max_examples=examples(200))
@given(st.binary(max_size=40), st.binary(max_size=40), st.booleans())
def test_a_difference_is_taken_back(old: bytes, new: bytes, container: bool) -> None:
    change = diff.difference(old, new, container)
    value = bytearray(old)
    back = diff.inverse(value, change)
    diff.apply(value, change)
    assert value == new
    assert diff.fits(len(value), back)
    diff.apply(value, back)
    assert value == old


# On stores


def config_of(number: int, thread_id: str = "t") -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": f"{number:04}"}}


class Line:
    """A thread of which each step writes a table whole, and what is to be read of it."""

    def __init__(self, door: Door, thread_id: str = "t") -> None:
        self.door = door
        self.thread_id = thread_id
        self.rng = random.Random(thread_id)
        self.values: dict[int, dict[str, str]] = {}
        self.value = table(150)

    def step(self, saver: Any, number: int, run_id: str = "run") -> None:
        parent = config_of(number - 1, self.thread_id) if number else config_of(0, self.thread_id)
        if not number:
            del parent["configurable"]["checkpoint_id"]
        checkpoint = {
            "v": 4, "id": f"{number:04}", "ts": "", "channel_values": {"step": number},
            "channel_versions": {"step": number + 1}, "versions_seen": {},
        }  # fmt: skip
        metadata = {"source": "loop", "step": number, "parents": {}, "run_id": run_id}
        self.door.call(saver, "put", parent, checkpoint, metadata, {"step": number + 1})
        self.write(saver, number)

    def write(self, saver: Any, number: int) -> None:
        self.value = self.values[number] = changed(self.value, self.rng)
        config = config_of(number, self.thread_id)
        self.door.call(saver, "put_writes", config, [("step", number), ("table", self.value)], "task")

    def check(self, saver: Any, numbers: Iterable[int], thread_id: str | None = None) -> None:
        thread_id, kept = thread_id or self.thread_id, sorted(numbers)
        found = self.door.collect(saver, "list", {"configurable": {"thread_id": thread_id}})
        assert [item.metadata["step"] for item in found] == kept[::-1]
        for item in found:
            assert item.pending_writes == self.written(item.metadata["step"])
        for number in kept[::3]:
            got = self.door.call(saver, "get_tuple", config_of(number, thread_id))
            assert got.pending_writes == self.written(number)

    def written(self, number: int) -> list[Any]:
        return [("task", "step", number), ("task", "table", self.values[number])]

    def history(self, saver: Any, number: int, thread_id: str | None = None) -> list[Any]:
        """Return what was written before a checkpoint, as a channel that is rebuilt from it sees it."""
        found = self.door.call(
            saver,
            "get_delta_channel_history",
            config=config_of(number, thread_id or self.thread_id),
            channels=["table"],
        )
        return [value for _, _, value in found["table"]["writes"]]


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def line(door: Door) -> Line:
    return Line(door)


def test_what_was_written_whole_comes_back(line: Line, saver: Any, place: Any) -> None:
    for number in range(40):
        line.step(saver, number)
    line.check(saver, range(40))
    reader = place.restart(saver)
    line.check(reader, range(40))
    assert line.history(reader, 39) == [line.values[n] for n in range(39)]
    # One that was begun anew goes on from what it doesn't know.
    for number in range(40, 50):
        line.step(reader, number)
    line.check(place.open(), range(50))


def test_another_deletes_what_the_next_write_would_be_a_difference_from(
    line: Line, saver: Any, place: Any
) -> None:
    other = place.open()
    for number in range(20):
        line.step(saver, number)
    line.door.call(other, "delete_thread", "t")
    for number in range(20, 40):
        line.step(saver, number)
        if number == 30:
            line.door.call(other, "prune", ["t"], strategy="delete")
    line.check(place.open(), range(31, 40))


@pytest.mark.parametrize("how", ["prune", "runs", "copy"])
def test_deletions_and_copies_take_along_what_writes_name(
    line: Line, saver: Any, place: Any, how: str
) -> None:
    other, left, name = place.open(), {*range(45)}, "t"
    for number in range(30):
        line.step(saver, number, f"run {number // 10}")
    if how == "prune":
        line.door.call(other, "prune", ["t"])
        left -= {*range(29)}
    elif how == "runs":
        line.door.call(other, "delete_for_runs", ["run 0", "run 1"])
        left -= {*range(20)}
    else:
        line.door.call(other, "copy_thread", "t", "copy")
        line.door.call(other, "delete_thread", "t")
        left, name = {*range(30)}, "copy"
    for number in range(30, 45) if name == "t" else ():
        line.step(saver, number, "run 3")
    line.check(place.open(), left, name)
    # What has gone stands in an anchor: the channel is rebuilt from its writes.
    assert line.history(other, max(left), name) == [line.values[n] for n in range(max(left))]
    line.door.call(other, "prune", [name])
    assert line.history(place.open(), max(left), name) == [line.values[n] for n in range(max(left))]


def test_a_branch_reads_and_writes_what_its_source_wrote(line: Line, saver: Any, place: Any) -> None:
    for number in range(12):
        line.step(saver, number)
    name = CheckpointEngine(saver).sync.branch("0011", "b", "t")
    for number in range(12, 24):
        line.step(saver, number)
    line.check(saver, range(24))
    theirs = Line(line.door, name)
    theirs.value, theirs.values = line.values[11], {11: line.values[11]}
    for number in range(12, 24):
        theirs.step(saver, number)
    line.door.call(place.open(), "delete_thread", "t")
    theirs.step(saver, 24)
    reader = place.open()
    theirs.check(reader, range(11, 25))
    assert theirs.history(reader, 20)[-9:] == [theirs.values[n] for n in range(11, 20)]


def test_retention_lets_go_of_rows_and_of_what_they_name(door: Door, place: Any) -> None:
    line = Line(door)
    saver = place.open(retention="keep_last_n:3")
    for number in range(150):
        line.step(saver, number)
    line.check(place.open(), range(147, 150))
    assert line.history(place.open(), 149) == [line.values[n] for n in range(149)]


def test_a_saver_with_a_cipher_names_no_part_that_tells_what_is_in_it(line: Line, place: Any) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=KEY)
    saver = place.open(serde=serde)
    for number in range(20):
        line.step(saver, number)
    line.check(place.open(serde=serde), range(20))


def test_writers_at_once_and_one_who_deletes(place: Any) -> None:
    """Whoever is refused stores the whole value, and whatever is left is read."""
    written: dict[str, dict[str, str]] = {}

    async def write(saver: Any, name: str) -> None:
        rng, value = random.Random(name), table(120)
        for number in range(40):
            value = written[f"{name} {number}"] = changed(value, rng)
            await saver.aput_writes(config_of(9), [("table", value)], f"{name} {number}")

    async def delete(saver: Any) -> None:
        for _ in range(12):
            await saver.adelete_thread("t")
            await asyncio.sleep(0.003)

    async def everything() -> Any:
        savers = [place.open() for _ in range(3)]
        await asyncio.gather(write(savers[0], "one"), write(savers[1], "two"), delete(savers[2]))
        parent = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint = {
            "v": 4, "id": "0009", "ts": "", "channel_values": {}, "channel_versions": {}, "versions_seen": {},
        }  # fmt: skip
        await savers[2].aput(parent, checkpoint, {}, {})
        found = await savers[2].aget_tuple(config_of(9))
        for saver in savers:
            await saver.aclose()
        return found

    found = asyncio.run(everything())
    assert {task_id: value for task_id, _, value in found.pending_writes}.items() <= written.items()
