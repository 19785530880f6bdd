"""What a stored body is made of, and what is made of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from langgraph_harness_saver.errors import CorruptCheckpointError, SchemaError
from langgraph_harness_saver.header import Header
from langgraph_harness_saver.ids import pack_id, unpack_id
from langgraph_harness_saver.rows import CheckpointKey, CheckpointRow, PartRow, Span, merge_spans

NOTHING: Mapping[Any, Any] = MappingProxyType({})

RAW, PART, DIFFERENCE, DIFFERENCE_PART, HEADER, HEADER_DIFFERENCE, HISTORY, ALIAS = range(8)


class Ref(NamedTuple):
    """Names a slot."""

    key: CheckpointKey
    slot: int


class Slot(NamedTuple):
    """One record of a body; `digest` is of the whole value, `base_digest` of the base's."""

    kind: int
    type: str
    digest: int
    data: Any
    base: Ref | None = None
    base_digest: int = 0


@dataclass(slots=True)
class Body:
    """A parsed body: `head` is the slot of the header, None where only others' bytes are left."""

    head: int | None
    slots: dict[int, Slot]


class Blob(NamedTuple):
    """One channel's value as the serializer wrote it, and where it is stored.

    `weight` is what the differences since the last whole value cost, `spans` and `parts` what has to be
    read for it.
    """

    type: str
    data: bytes
    digest: int
    ref: Ref
    weight: int
    spans: tuple[Span, ...]
    parts: tuple[bytes, ...]


class Image(NamedTuple):
    """One checkpoint as bytes: all that is needed to write the next one as a difference.

    `links` and `head_weight` count the rows that its header is made of, and their bytes; `head_digest` is
    of the header and all values.
    """

    key: CheckpointKey
    rev: int
    header: Header
    head: Ref
    head_digest: int
    links: int
    head_weight: int
    head_spans: tuple[Span, ...]
    blobs: Mapping[str, Blob]
    metadata: bytes
    history: Sequence[Sequence[Any]] = ()

    @property
    def size(self) -> int:
        """Return about how many bytes of memory it holds."""
        size = 1024
        for blob in self.blobs.values():
            size += len(blob[1]) + 256
        return size


class Dump(NamedTuple):
    """A checkpoint as the serializer wrote it, before it is known what of it is new."""

    header: Header
    values: Mapping[str, tuple[str, bytes]]
    metadata: bytes
    run_id: str | None


class Encoded(NamedTuple):
    """A checkpoint ready to be stored."""

    row: CheckpointRow
    parts: list[PartRow]
    image: Image


class Draft:
    """The slots of a body in the making."""

    __slots__ = ("key", "next_slot", "parts", "records", "span")

    def __init__(self, key: CheckpointKey, next_slot: int = 0) -> None:
        self.key = key
        self.span = span_of(key)
        self.next_slot = next_slot
        self.records: dict[int, list[Any]] = {}
        self.parts: list[PartRow] = []

    def add(
        self,
        kind: int,
        type_: str,
        value_digest: int,
        data: Any,
        base: Ref | None = None,
        base_digest: int = 0,
    ) -> Ref:
        """Add a slot, with what `Slot` says of it, as it is packed."""
        number = self.next_slot
        record = [kind, type_, value_digest, data]
        if base is not None:
            record += (_pack_ref(base, self.key), base_digest)
        self.records[number] = record
        self.next_slot = number + 1
        return Ref(self.key, number)


def digest(data: bytes) -> int:
    """Return 63 bits of XXH3 (https://xxhash.com): a positive integer in every database.

    It tells damaged bytes from what was stored, and costs next to nothing. What names shared bytes is
    `fingerprint`, which nobody can forge.
    """
    return xxh3_64_intdigest(data) >> 1


def fingerprint(data: bytes) -> bytes:
    """Return 128 bits of BLAKE2b."""
    return blake2b(data, digest_size=16).digest()


def revision(body: bytes, metadata: bytes, parent_id: str | None) -> int:
    """Return what identifies a row's contents."""
    parent = b"" if parent_id is None else b"\x01" + parent_id.encode("utf-8", "surrogatepass")
    lengths = b"%d %d " % (len(body), len(metadata))
    return digest(b"".join((lengths, body, metadata, parent)))


def pack_slot(slot: Slot, key: CheckpointKey) -> list[Any]:
    record: list[Any] = [slot.kind, slot.type, slot.digest, slot.data]
    if slot.base is not None:
        record += [_pack_ref(slot.base, key), slot.base_digest]
    return record


def unpack_slot(record: list[Any], key: CheckpointKey) -> Slot:
    kind, type_, value_digest, data, *base = record
    if not base:
        return Slot(kind, type_, value_digest, data)
    return Slot(kind, type_, value_digest, data, _unpack_ref(base[0], key), base[1])


def _pack_ref(ref: Ref, key: CheckpointKey) -> list[Any]:
    # Relative to the row it stands in, so that a thread's rows can be copied as they are.
    thread_id, checkpoint_ns, checkpoint_id = ref[0]
    if thread_id == key[0] and checkpoint_ns == key[1]:
        return [pack_id(checkpoint_id), ref[1]]
    return [*ref.key, ref.slot]


def _unpack_ref(packed: list[Any], key: CheckpointKey) -> Ref:
    if len(packed) == 2:
        return Ref(CheckpointKey(key[0], key[1], unpack_id(packed[0])), packed[1])
    return Ref(CheckpointKey(*packed[:3]), packed[3])


def span_of(key: CheckpointKey) -> Span:
    thread_id, checkpoint_ns, checkpoint_id = key
    return Span(thread_id, checkpoint_ns, checkpoint_id, checkpoint_id)


def extend(spans: tuple[Span, ...], by: Span) -> tuple[Span, ...]:
    if not spans:
        return (by,)
    thread_id, checkpoint_ns, first, last = spans[-1]
    if thread_id != by[0] or checkpoint_ns != by[1]:
        return (*spans, by)
    if first <= by[2]:
        if by[3] <= last:
            return spans
        widened = Span(thread_id, checkpoint_ns, first, by[3])
    else:
        widened = Span(thread_id, checkpoint_ns, by[2], max(last, by[3]))
    return (widened,) if len(spans) == 1 else (*spans[:-1], widened)


def reach_of(own: Span, head: tuple[Span, ...], blobs: Collection[Blob]) -> tuple[Span, ...]:
    """Return what has to be read for a checkpoint beside its own row, whose span is `own`."""
    widest: Span | None = None
    for spans in (head, *[blob[5] for blob in blobs]):
        for span in spans:
            if span is own or span is widest or span == own:
                continue
            if widest is None or _holds(span, widest):
                widest = span
            elif not _holds(widest, span):
                return _reach_of_several(own, head, blobs)
    # In a thread that nobody forks, one span holds all the others.
    return () if widest is None else (widest,)


def _holds(span: Span, other: Span) -> bool:
    return span[2] <= other[2] and other[3] <= span[3] and span[:2] == other[:2]


def _reach_of_several(own: Span, head: tuple[Span, ...], blobs: Collection[Blob]) -> tuple[Span, ...]:
    spans = set(head).union(*[blob[5] for blob in blobs])
    spans.discard(own)
    return merge_spans(spans)


def unique(items: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(items))


def parts_of(blobs: Iterable[Blob]) -> tuple[bytes, ...]:
    return tuple({part: None for blob in blobs for part in blob[6]})


class Reading:
    """Turn what decoding corrupt bytes raises into `CorruptCheckpointError`."""

    __slots__ = ("_key",)

    def __init__(self, key: CheckpointKey | None) -> None:
        self._key = key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, SchemaError):
            raise SchemaError(f"{self._key}: {error}") from error
        if isinstance(error, (ValueError, TypeError, KeyError, IndexError, AttributeError)):
            raise CorruptCheckpointError(
                f"{self._key} cannot be read, its stored bytes are corrupt ({error!r}). Restore "
                "the database from a backup, or delete the thread; earlier checkpoints may still be readable."
            ) from error
