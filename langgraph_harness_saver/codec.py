"""LangGraph values <-> rows of bytes: the only caller of the serializer.

The stored form of a body, inside out (docs/design.md tells why):

- *slots*: numbered records, each a header or one channel's value, whole or as a difference from another
  slot, here or in another row;
- *body*: the slots and the number of the header's, packed with msgpack;
- *envelope*: one format byte, then zstd with a built-in dictionary, then (with an `EncryptedSerializer`)
  the cipher.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_harness_saver import difference as diff
from langgraph_harness_saver.cache import ImageCache, Place
from langgraph_harness_saver.difference import LINK_BYTES
from langgraph_harness_saver.envelope import Envelope, pack, pack_any, unpack
from langgraph_harness_saver.errors import SerializationError, UnsafeTypeError
from langgraph_harness_saver.header import (
    Header,
    is_small,
    merge_aliases,
    pack_alias,
    pack_header,
    pack_plain_header,
)
from langgraph_harness_saver.messages import MESSAGE, MESSAGES, is_message, pack_messages, unpack_messages
from langgraph_harness_saver.rows import (
    CheckpointKey,
    CheckpointRow,
    EventRow,
    Kind,
    Noted,
    PartRow,
    Span,
    WriteRow,
    merge_spans,
)
from langgraph_harness_saver.serde import HarnessSerializer
from langgraph_harness_saver.slots import (
    ALIAS,
    DIFFERENCE,
    DIFFERENCE_PART,
    HEADER,
    HEADER_DIFFERENCE,
    HISTORY,
    NOTHING,
    PART,
    RAW,
    Blob,
    Body,
    Draft,
    Dump,
    Encoded,
    Image,
    Reading,
    Ref,
    Slot,
    digest,
    extend,
    fingerprint,
    pack_slot,
    parts_of,
    reach_of,
    revision,
    span_of,
    unpack_slot,
)
from langgraph_harness_saver.unpacking import build_message
from langgraph_harness_saver.versions import is_unique
from langgraph_harness_saver.written import Log, Piece, WrittenParts, history_parts, is_logged

logger = logging.getLogger(__name__)

PART_BYTES = 1 << 12
"""A whole value from this size on is stored as a part: reading its neighbours shall not read it."""
PART_MIDDLE_BYTES = 1 << 15
"""The same for what a difference inserts. It is larger as every later row of the chain names the part."""
RESTART_BYTES, RESTART_RATIO = 1 << 17, 8
"""A whole value up to that size stays in its row where a difference would have taken less than an eighth, had
there not been too many: the rows after it lean on it, and need not name a part."""
SMALL_BYTES = 256
"""An unchanged value up to this size is cheaper to repeat in a whole header than to reach for."""
CHAIN_BYTES = 1 << 13
"""Differences may add up to so much however small the value is: reading them is still one page."""
BARE_CHAINS = 4
"""How many times its size the differences of a value may add up to where reading one takes no disk."""
CONTAINERS = ("msgpack", MESSAGES)
"""Types whose values may be arrays or maps, see `difference`."""
MAX_HEADER_LINKS = 16
MAX_SPANS = 4
_DELTA_SNAPSHOT = bytes([EXT_DELTA_SNAPSHOT])
_EXT_CODE_AT = {b"\xc7": 2, b"\xc8": 3, b"\xc9": 5} | {bytes([first]): 1 for first in range(0xD4, 0xD9)}
"""Where the code of a msgpack extension stands, by its first byte."""


class EncodedWrites(NamedTuple):
    """One call's writes ready to be stored, and the parts that they name by their ids."""

    rows: list[WriteRow]
    pieces: Mapping[bytes, Piece]

    @property
    def parts(self) -> list[PartRow]:
        """Return what isn't known to be stored yet."""
        return [piece.row for piece in self.pieces.values() if piece.row is not None]

    def are_stored(self) -> None:
        """Learn that all of it is."""
        for piece in self.pieces.values():
            piece.row = None


class Codec:
    """Encodes and decodes with one serializer.

    An `EncryptedSerializer` is taken apart: its inner serializer writes the values, and its cipher seals
    bodies after differences and compression, which would find nothing in ciphertext.
    """

    def __init__(self, serde: SerializerProtocol, *, bare: bool = False) -> None:
        """Write with `serde`; `bare`: save time rather than bytes, see `Envelope`."""
        encrypted = serde if type(serde) is EncryptedSerializer else None
        self._serde = encrypted.serde if encrypted else serde
        self._envelope = Envelope(encrypted.cipher if encrypted else None, bare=bare)
        self._encrypted = encrypted is not None
        self._bare = bare
        self._chains = BARE_CHAINS if bare else 1
        # What any other would make of messages is not known.
        self._knows_messages = type(self._serde) in (HarnessSerializer, JsonPlusSerializer)

    # --- checkpoints -------------------------------------------------------------------------------

    def dump(
        self,
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        new_versions: Mapping[str, Any],
        base: Image | None,
        thread_id: str,
    ) -> Dump:
        """Take all that is to be stored of a checkpoint, whose values its graph goes on changing.

        A channel that has the version, one with a random part, that it has in `base` isn't serialised.

        Raises:
            SerializationError: The serializer can't write a value.
        """
        header = Header.of(checkpoint)
        values = {}
        for channel, value in checkpoint["channel_values"].items():
            old = base.blobs.get(channel) if base and channel not in new_versions else None
            version = header.versions.get(channel)
            if old and base and is_unique(version) and version == base.header.versions.get(channel):
                values[channel] = (old.type, old.data)
            else:
                values[channel] = self._dump(value, "channel", thread_id, channel)
        run_id = metadata.get("run_id")
        return Dump(
            header, values, self.pack_metadata(metadata, thread_id), None if run_id is None else str(run_id)
        )

    def dumped(self, dump: Dump, thread_id: str) -> dict[str, Any]:
        """Return fresh values of what `dump` took."""
        return {c: self._load(typed, "channel", thread_id, c) for c, typed in dump.values.items()}

    def encode(
        self,
        key: CheckpointKey,
        parent_id: str | None,
        dump: Dump,
        base: Image | None,
        keep: Mapping[int, Slot] = NOTHING,
    ) -> Encoded:
        """Encode a checkpoint, as differences from `base` where these pay.

        `keep` are slots that others need of an older checkpoint of this key.
        """
        draft = Draft(key, max(keep) + 1 if keep else 0)
        before = base.blobs if base else NOTHING
        blobs = {}
        for channel, (type_, data) in dump.values.items():
            old = before.get(channel)
            if old is None or old.type != type_ or (old.data is not data and old.data != data):
                old = self._store(draft, type_, data, old)
            blobs[channel] = old
        return self._finish(
            draft,
            parent_id,
            dump.header,
            blobs,
            base,
            metadata=dump.metadata,
            run_id=dump.run_id,
            keep=keep,
        )

    def _store(self, draft: Draft, type_: str, data: bytes, old: Blob | None) -> Blob:
        size = len(data)
        if old and old.type == type_ and size > 2 * LINK_BYTES:
            change = diff.difference(old.data, data, type_ in CONTAINERS)
            lead, _, _, middle, _ = change
            cost = len(lead) + len(middle) + LINK_BYTES
            weight = old.weight + cost
            fits = weight < CHAIN_BYTES or weight < self._chains * size
            if cost < size and fits and len(old.spans) <= MAX_SPANS:
                return self._store_difference(draft, data, old, list(change), weight)
            if RESTART_RATIO * cost < size < RESTART_BYTES:
                return _store_here(draft, type_, data)
        return self._store_whole(draft, type_, data)

    def _store_difference(self, draft: Draft, data: bytes, old: Blob, change: list[Any], weight: int) -> Blob:
        type_, _, old_digest, old_ref, _, spans, parts = old
        kind = DIFFERENCE
        if len(change[3]) >= PART_MIDDLE_BYTES:
            kind, change[3] = DIFFERENCE_PART, self._add_part(draft, change[3])
            parts = (*parts, change[3])
        value_digest = digest(data)
        ref = draft.add(kind, type_, value_digest, change, old_ref, old_digest)
        return Blob(type_, data, value_digest, ref, weight, extend(spans, draft.span), parts)

    def _store_whole(self, draft: Draft, type_: str, data: bytes, part_id: bytes | None = None) -> Blob:
        if len(data) < PART_BYTES:
            return _store_here(draft, type_, data)
        value_digest = digest(data)
        part_id = part_id or self._add_part(draft, data)
        ref = draft.add(PART, type_, value_digest, part_id)
        return Blob(type_, data, value_digest, ref, 0, (draft.span,), (part_id,))

    def _add_part(self, draft: Draft, data: bytes) -> bytes:
        part = self._part(data)
        draft.parts.append(part)
        return part.part_id

    def _part(self, data: bytes) -> PartRow:
        # Equal contents share a part, but an id made of the contents would tell what a cipher hides.
        return PartRow(os.urandom(16) if self._encrypted else fingerprint(data), self._envelope.seal(data))

    def _finish(
        self,
        draft: Draft,
        parent_id: str | None,
        header: Header,
        blobs: dict[str, Blob],
        base: Image | None,
        *,
        metadata: bytes,
        run_id: str | None,
        kind: Kind = Kind.LIVE,
        history: Sequence[Sequence[Any]] = (),
        history_parts: tuple[bytes, ...] = (),
        keep: Mapping[int, Slot] = NOTHING,
    ) -> Encoded:
        old = base if base and _may_lean(base, blobs.values()) else None
        if old is None:
            for channel, blob in blobs.items():
                if len(blob.data) <= SMALL_BYTES and blob.ref.key != draft.key:
                    blobs[channel] = self._store_whole(draft, blob.type, blob.data)
        if history:
            draft.add(HISTORY, "", 0, list(history))
        plain = self._bare and is_small(header)
        head, head_digest = _add_head(draft, header, blobs, None if plain else old, plain=plain)
        records = draft.records
        if keep:
            records = {**{number: pack_slot(slot, draft.key) for number, slot in keep.items()}, **records}
        packed = pack_any([head[1], records])
        logged = history and any(map(is_logged, history))
        body = self._envelope.seal_logged(packed) if logged else self._envelope.seal(packed)
        head_spans: tuple[Span, ...] = (draft.span,)
        links, head_weight = 0, len(body)
        if old is not None:
            head_spans = head_spans if plain else extend(old.head_spans, draft.span)
            links, head_weight = old.links + 1, old.head_weight + head_weight
        rev = revision(body, metadata, parent_id)
        reach = reach_of(draft.span, head_spans, blobs.values())
        parts = parts_of(blobs.values()) + history_parts
        return Encoded(
            CheckpointRow(draft.key, parent_id, body, metadata, rev, reach, parts, run_id, kind),
            draft.parts,
            Image(
                draft.key,
                rev,
                header,
                head,
                head_digest,
                links,
                head_weight,
                head_spans,
                blobs,
                metadata,
                history,
            ),
        )

    def rebase(self, row: CheckpointRow, image: Image, keep: Mapping[int, Slot]) -> Encoded:
        """Encode a stored checkpoint again so that it needs no other row.

        The slots in `keep`, which others need, stay where they are.
        """
        draft = Draft(row.key, max(keep, default=-1) + 1)
        blobs = {}
        for channel, blob in image.blobs.items():
            whole = blob.parts[0] if len(blob.parts) == 1 and not blob.weight else None
            blobs[channel] = self._store_whole(draft, blob.type, blob.data, whole)
        return self._finish(
            draft,
            row.parent_id,
            image.header,
            blobs,
            None,
            metadata=row.metadata,
            run_id=row.run_id,
            kind=row.kind,
            history=image.history,
            history_parts=history_parts(image.history),
            keep=keep,
        )

    def alias(
        self,
        key: CheckpointKey,
        model: CheckpointRow,
        parent_id: str | None,
        metadata: Mapping[str, Any],
        ts: str | None = None,
        changes: Mapping[str, Any] = NOTHING,
    ) -> CheckpointRow:
        """Encode a copy of a live checkpoint of the same family, which takes the same however large it is.

        `metadata` is its own, `ts` and `changes` what its header has otherwise: its time, and extra fields.
        """
        body = self.open_body(model.body, model.key)
        with Reading(model.key):
            target, slot = Ref(model.key, cast("int", body.head)), body.slots[cast("int", body.head)]
            data = pack_alias(ts, changes)
            if slot.kind == ALIAS and slot.base is not None:
                # A copy of a copy is one of the original, or reading it would take longer and longer.
                target, data = slot.base, merge_aliases(slot.data, data)
        base_digest = slot.base_digest if slot.kind == ALIAS else slot.digest
        alias = Slot(ALIAS, "", digest(b"%x," % base_digest + data), data, target, base_digest)
        packed = self.seal_body(Body(0, {0: alias}), key)
        described = self.pack_metadata(metadata, key.thread_id)
        return CheckpointRow(
            key,
            parent_id,
            packed,
            described,
            revision(packed, described, parent_id),
            merge_spans([*model.reach, span_of(model.key)]),
            model.parts,
        )

    def anchor(
        self,
        key: CheckpointKey,
        parent_id: str | None,
        model: Image,
        metadata: Mapping[str, Any],
        seeds: Mapping[str, Blob],
        history: Sequence[Sequence[Any]],
    ) -> Encoded:
        """Encode the stand-in for deleted ancestors: `seeds` as its values, `history` as its writes."""
        draft = Draft(key)
        blobs = {
            channel: self._store_whole(
                draft,
                seed.type,
                seed.data,
                seed.parts[0] if len(seed.parts) == 1 and not seed.weight else None,
            )
            for channel, seed in seeds.items()
        }
        versions = {c: model.header.versions[c] for c in seeds if c in model.header.versions}
        header = model.header._replace(versions=versions, seen={}, extra=None)
        return self._finish(
            draft,
            parent_id,
            header,
            blobs,
            None,
            metadata=self.pack_metadata(metadata, key.thread_id),
            run_id=None,
            kind=Kind.ANCHOR,
            history=history,
            history_parts=history_parts(history),
        )

    def seal_body(self, body: Body, key: CheckpointKey) -> bytes:
        """Return the stored form of a body."""
        records = {number: pack_slot(slot, key) for number, slot in body.slots.items()}
        return self._envelope.seal(pack_any([body.head, records]))

    def open_body(self, data: bytes, key: CheckpointKey) -> Body:
        """Parse a stored body.

        Raises:
            CorruptCheckpointError: The bytes are not a body.
            SchemaError: They are of a format that this version doesn't know.
        """
        with Reading(key):
            head, records = unpack(self._envelope.open(data))
            return Body(head, {number: unpack_slot(record, key) for number, record in records.items()})

    def value(self, blob: Blob, channel: str, thread_id: str) -> Any:
        """Return a fresh value of a channel."""
        return self._load((blob.type, blob.data), "channel", thread_id, channel)

    def channel_values(self, image: Image) -> dict[str, Any]:
        """Return fresh values of all channels."""
        thread_id = image.key.thread_id
        return {channel: self.value(blob, channel, thread_id) for channel, blob in image.blobs.items()}

    def is_delta_snapshot(self, blob: Blob) -> bool:
        """Tell whether a value is a `DeltaChannel`'s snapshot."""
        if blob.type in (MESSAGES, MESSAGE):
            return False
        if blob.type == "msgpack":
            at = _EXT_CODE_AT.get(blob.data[:1])
            return at is not None and blob.data[at : at + 1] == _DELTA_SNAPSHOT
        try:
            return isinstance(self._serde.loads_typed((blob.type, blob.data)), _DeltaSnapshot)
        except Exception:
            # Taking for one what may be none keeps more than is needed, and loses nothing.
            logger.debug("a value of type %r could not be looked at", blob.type, exc_info=True)
            return True

    # --- metadata ----------------------------------------------------------------------------------

    def pack_metadata(self, metadata: Mapping[str, Any], thread_id: str) -> bytes:
        """Encode metadata exactly; plain data can be read without the serializer."""
        try:
            return b"\x00" + pack(dict(metadata))
        except TypeError:
            type_, data = self._dump(dict(metadata), "metadata", thread_id)
            return b"\x01" + pack([type_, data])

    def unpack_metadata(self, data: bytes, key: CheckpointKey | None = None) -> dict[str, Any]:
        """Decode what `pack_metadata` made; `key` is for messages."""
        with Reading(key):
            value = unpack(data[1:])
            if data[:1] == b"\x00":
                return cast("dict[str, Any]", value)
            typed = (value[0], value[1])
        return cast("dict[str, Any]", self._load(typed, "metadata", key.thread_id if key else None))

    # --- writes ------------------------------------------------------------------------------------

    def dump_writes(self, writes: Sequence[tuple[str, Any]], thread_id: str) -> list[list[Any]]:
        """Take the writes of one call as they are now: index, channel, type and bytes of each.

        Raises:
            SerializationError: The serializer can't write a value.
        """
        dumped = []
        for position, (channel, value) in enumerate(writes):
            type_, data = self._dump(value, "a write to channel", thread_id, channel)
            dumped.append([WRITES_IDX_MAP.get(channel, position), channel, type_, data])
        return dumped

    def encode_writes(
        self,
        dumped: Iterable[list[Any]],
        task_id: str,
        task_path: str,
        key: CheckpointKey,
        cache: ImageCache | None = None,
        *,
        whole: bool = False,
    ) -> EncodedWrites:
        """Encode one `put_writes` call: its regular writes in one row, each special write in its own.

        Large ones are differences from what `cache` knows was written before, unless they are to be `whole`.
        """
        groups: dict[int, list[list[Any]]] = {}
        logs: list[Log] = []
        for item in dumped:
            index = item[0]
            # A special write is replaced again and again, and its part would stay behind each time.
            if index >= 0 and len(item[3]) >= PART_BYTES:
                log = self._log(item, key, cache, whole=whole)
                logs.append(log)
                item = log.item(index, item[1])
            if index >= 0:
                groups.setdefault(0, []).append(item)
            else:
                groups[index] = [item]
        if not logs:
            seal = self._envelope.seal
            rows = [WriteRow(task_id, task_path, call, seal(pack_any(some))) for call, some in groups.items()]
            return EncodedWrites(rows, NOTHING)
        rows = [
            WriteRow(task_id, task_path, call, self._seal_items(items), history_parts(items))
            for call, items in groups.items()
        ]
        return EncodedWrites(rows, {piece.part_id: piece for log in logs for piece in log.named})

    def _log(self, item: list[Any], key: CheckpointKey, cache: ImageCache | None, *, whole: bool) -> Log:
        _, channel, type_, data = item
        place = Place(key.thread_id, key.checkpoint_ns, channel)
        known = cache.log(place) if cache is not None and not whole else None
        container = type_ in CONTAINERS
        log = known and known.then(type_, data, container=container, chains=self._chains, part=self._part)
        log = log or Log(type_, data, Piece(self._part(data)))
        if cache is not None:
            cache.add_log(place, log)
        return log

    def _seal_items(self, items: list[list[Any]]) -> bytes:
        packed = pack_any(items)
        if any(map(is_logged, items)):
            return self._envelope.seal_logged(packed)
        return self._envelope.seal(packed)

    def merge_writes(self, rows: Iterable[WriteRow], key: CheckpointKey) -> list[list[Any]]:
        """Return `[task_id, index, channel, type, data, …]` per write, in `writes_sort_key` order.

        `WrittenParts.data` says what follows where there is no data.
        """
        merged: dict[tuple[str, int], tuple[tuple[str, str, int], list[Any]]] = {}
        for row in rows:
            with Reading(key):
                items = unpack(self._envelope.open(row.body))
            for item in items:
                identity = (row.task_id, item[0])
                if item[0] >= 0 and identity in merged:
                    continue
                order = writes_sort_key(row.task_path, row.task_id, item[0])
                merged[identity] = (order, [row.task_id, *item])
        return [item for _, item in sorted(merged.values(), key=lambda pair: pair[0])]

    def written_parts(self, parts: Mapping[bytes, bytes]) -> WrittenParts:
        """Return what `load_writes` takes: the parts of a page."""
        return WrittenParts(parts, self._envelope.open)

    def load_writes(
        self, items: Iterable[Sequence[Any]], parts: WrittenParts, key: CheckpointKey
    ) -> list[tuple[str, str, Any]]:
        """Return pending writes: (task id, channel, fresh value)."""
        loaded = []
        for item in items:
            task_id, _, channel, type_ = item[:4]
            with Reading(key):
                data = parts.data(item)
            value = self._load((type_, data), "a write to channel", key.thread_id, channel)
            loaded.append((task_id, channel, value))
        return loaded

    # --- events ------------------------------------------------------------------------------------

    def dump_event(self, values: Any, thread_id: str) -> tuple[str, bytes]:
        """Take an event's values as they are now.

        Raises:
            SerializationError: The serializer can't write one.
        """
        return self._dump(values, "an event", thread_id)

    def encode_event(self, event: Noted) -> EventRow:
        """Encode an event: what lists show, and its values, which they don't."""
        head = self._envelope.seal(pack_any(list(event.facts)))
        return EventRow(*event[:3], head, self._envelope.seal(pack_any(list(event.dumped))))

    def decode_event(self, row: EventRow) -> tuple[list[Any], Any]:
        """Return an event's facts, and its values if they were read, else None.

        Raises:
            CorruptCheckpointError: The bytes are not an event.
            SerializationError: The serializer can't read its values.
        """
        with Reading(CheckpointKey(row.thread_id, "", row.checkpoint_id)):
            facts = unpack(self._envelope.open(row.head))
            dumped = tuple(unpack(self._envelope.open(row.body))) if row.body else None
        return facts, None if dumped is None else self._load(dumped, "an event", row.thread_id)

    def read_part(self, parts: Mapping[bytes, bytes], part_id: bytes, key: CheckpointKey) -> bytes:
        with Reading(key):
            return self._envelope.open(parts[part_id])

    # --- the serializer ----------------------------------------------------------------------------

    def _dump(
        self, value: Any, what: str, thread_id: str | None, channel: str | None = None
    ) -> tuple[str, bytes]:
        if self._knows_messages:
            if type(value) is list and value:
                packed = pack_messages(value)
                if packed is not None:
                    return MESSAGES, packed
            elif is_message(value):
                packed = pack_messages((value,))
                if packed is not None:
                    return MESSAGE, packed
        try:
            type_, data = self._serde.dumps_typed(value)
        except Exception as error:
            raise SerializationError(
                f"{_told(what, channel, thread_id)} holds a {type(value).__name__} that cannot be stored: "
                f"{error}. Keep such objects out of the state, or pass a serde that handles them."
            ) from error
        return type_, bytes(data)

    def _load(
        self, typed: tuple[str, bytes], what: str, thread_id: str | None, channel: str | None = None
    ) -> Any:
        try:
            if typed[0] == MESSAGES:
                return unpack_messages(typed[1], build_message)
            if typed[0] == MESSAGE:
                (message,) = unpack_messages(typed[1], build_message)
                return message
            return self._serde.loads_typed(typed)
        except UnsafeTypeError as error:
            raise UnsafeTypeError(
                error.module, error.name, f"{_told(what, channel, thread_id)}: {error}"
            ) from error
        except SerializationError as error:
            raise SerializationError(f"{_told(what, channel, thread_id)}: {error}") from error
        except Exception as error:
            raise SerializationError(
                f"{_told(what, channel, thread_id)} is stored as {typed[0]!r} and cannot be read: {error}. "
                "Read it with the serde that wrote it."
            ) from error


def _store_here(draft: Draft, type_: str, data: bytes) -> Blob:
    value_digest = digest(data)
    ref = draft.add(RAW, type_, value_digest, data)
    return Blob(type_, data, value_digest, ref, 0, (draft.span,), ())


def _told(what: str, channel: str | None, thread_id: str | None) -> str:
    where = what if channel is None else f"{what} {channel!r}"
    return f"{where} of thread {thread_id!r}"


def _may_lean(base: Image, blobs: Iterable[Blob]) -> bool:
    """Tell whether a header may be a difference: the rows that it then takes to read are to stay small."""
    if base.links >= MAX_HEADER_LINKS:
        return False
    return base.head_weight < CHAIN_BYTES or base.head_weight < sum(len(blob.data) for blob in blobs)


def _add_head(
    draft: Draft, header: Header, blobs: Mapping[str, Blob], old: Image | None, *, plain: bool
) -> tuple[Ref, int]:
    """Add the header's slot; return its place and digest."""
    places = {channel: blob[3] for channel, blob in blobs.items()}
    if plain:
        packed = pack_plain_header(header, places, draft.key)
    elif old is None:
        packed = pack_header(header, places, None, {}, draft.key)
    else:
        there = {channel: blob[3] for channel, blob in old.blobs.items()}
        packed = pack_header(header, places, old.header, there, draft.key)
    # Covers the values, which the header only names: a row is what it is of.
    head_digest = digest(b"".join([packed, *[b"%x," % blob[2] for blob in blobs.values()]]))
    if old is None:
        return draft.add(HEADER, "", head_digest, packed), head_digest
    return draft.add(HEADER_DIFFERENCE, "", head_digest, packed, old.head, old.head_digest), head_digest
