"""Decodes stored checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langgraph_harness_saver import difference as diff
from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.difference import LINK_BYTES
from langgraph_harness_saver.errors import CorruptCheckpointError
from langgraph_harness_saver.header import Header, header_time, unpack_alias, unpack_header
from langgraph_harness_saver.rows import CheckpointKey, CheckpointRow, Page, Span
from langgraph_harness_saver.slots import (
    ALIAS,
    DIFFERENCE,
    DIFFERENCE_PART,
    HISTORY,
    PART,
    RAW,
    Blob,
    Body,
    Image,
    Reading,
    Ref,
    Slot,
    digest,
    extend,
    span_of,
)

RECENT = 128
"""How many rebuilt values are kept to rebuild the next from."""


class Reader:
    """Decodes the checkpoints of one page, each slot and header once."""

    def __init__(self, codec: Codec, page: Page, images: Mapping[CheckpointKey, Image] | None = None) -> None:
        self._codec = codec
        self._page = page
        self._stored = {**page.support, **{entry.row.key: entry.row.body for entry in page.entries}}
        self._bodies: dict[CheckpointKey, Body] = {}
        self._headers: dict[Ref, tuple[Header, dict[str, Ref]]] = {}
        self._blobs: dict[Ref, Blob] = {}
        self._images = images or {}

    def add(self, bodies: Mapping[CheckpointKey, bytes]) -> None:
        """Know the bodies of more rows."""
        self._stored.update(bodies)

    def has(self, key: CheckpointKey) -> bool:
        """Tell whether the body of a row is known."""
        return key in self._stored

    def forget(self, *, bodies: bool = True) -> None:
        """Decode anew what is asked for from now on, bodies only if told so."""
        self._headers.clear()
        self._blobs.clear()
        if bodies:
            self._bodies.clear()

    def body(self, key: CheckpointKey) -> Body:
        """Return a parsed body.

        Raises:
            CorruptCheckpointError: It is not there.
        """
        body = self._bodies.get(key)
        if body is None:
            if key not in self._stored:
                raise CorruptCheckpointError(f"{key} is needed to read another, and is gone")
            body = self._bodies[key] = self._codec.open_body(self._stored[key], key)
        return body

    def slot(self, ref: Ref) -> Slot:
        """Return one slot, which has to be there."""
        slot = self.body(ref.key).slots.get(ref.slot)
        if slot is None:
            raise CorruptCheckpointError(f"{ref.key}: slot {ref.slot} is gone")
        return slot

    def chain(self, ref: Ref, known: Collection[Ref] = ()) -> list[tuple[Ref, Slot]]:
        """Return a slot and the bases below it, the lowest first: a whole one, or one that is in `known`."""
        links = [(ref, self.slot(ref))]
        seen = {ref}
        while (base := links[-1][1].base) is not None and links[-1][0] not in known:
            slot = self.slot(base)
            if slot.digest != links[-1][1].base_digest or base in seen:
                raise CorruptCheckpointError(
                    f"{ref.key} is a difference from another value than {base.key} holds"
                )
            seen.add(base)
            links.append((base, slot))
        links.reverse()
        return links

    def head(self, key: CheckpointKey) -> Ref:
        """Return the place of a checkpoint's header."""
        head = self.body(key).head
        if head is None:
            raise CorruptCheckpointError(f"{key} has been deleted, only shared bytes are left")
        return Ref(key, head)

    def header(self, ref: Ref) -> tuple[Header, dict[str, Ref]]:
        """Return a header and where each channel's value is stored."""
        known = self._headers.get(ref)
        if known is not None:
            return known
        header: Header | None = None
        refs: dict[str, Ref] = {}
        for link, slot in self.chain(ref, self._headers):
            if link in self._headers:
                header, refs = self._headers[link]
                continue
            with Reading(link.key):
                if slot.kind == ALIAS and header is not None:
                    header = unpack_alias(slot.data, header)
                else:
                    header, pairs = unpack_header(slot.data, header, refs, link.key)
                    refs = {c: Ref(CheckpointKey(*key), number) for c, (key, number) in pairs.items()}
            self._headers[link] = (header, refs)
        return self._headers[ref]

    def time(self, key: CheckpointKey) -> Any:
        """Return a checkpoint's `ts`, which stands in its own header; a copy's may be the original's."""
        ref: Ref | None = self.head(key)
        found = None
        while ref is not None and found is None:
            slot = self.slot(ref)
            with Reading(ref.key):
                found = header_time(slot.data, is_alias=slot.kind == ALIAS)
            ref = slot.base if slot.kind == ALIAS else None
        return found[0] if found else None

    def history(self, key: CheckpointKey) -> Sequence[Sequence[Any]]:
        """Return the writes that an anchor carries."""
        slots = self.body(key).slots.values()
        return next((slot.data for slot in slots if slot.kind == HISTORY), ())

    def image(self, row: CheckpointRow) -> Image:
        """Return a checkpoint as bytes."""
        known = self._images.get(row.key)
        if known is not None and known.rev == row.rev:
            return known
        head = self.head(row.key)
        header, refs = self.header(head)
        chain = self.chain(head)
        spans: tuple[Span, ...] = ()
        for link, _ in chain:
            spans = extend(spans, span_of(link.key))
        blobs = {channel: self.blob(ref) for channel, ref in refs.items()}
        return Image(
            row.key,
            row.rev,
            header,
            head,
            chain[-1][1].digest,
            len(chain) - 1,
            sum(len(self._stored[link.key]) for link, _ in chain),
            spans,
            blobs,
            row.metadata,
            self.history(row.key),
        )

    def blob(self, ref: Ref) -> Blob:
        """Rebuild one channel's value, from the nearest one below that was rebuilt lately.

        Raises:
            CorruptCheckpointError: What comes out is not what was stored.
        """
        (first, slot), *links = self.chain(ref, self._blobs)
        blob = self._blobs.get(first) or self._whole(slot, first)
        if links:
            blob = self._changed(blob, links)
        if digest(blob.data) != blob.digest:
            raise CorruptCheckpointError(f"{ref.key} does not decode to what was stored")
        if len(self._blobs) >= RECENT:
            del self._blobs[next(iter(self._blobs))]
        self._blobs[ref] = blob
        return blob

    def size(self, ref: Ref) -> int:
        """Return how long a value is, without what stands in parts."""
        slot = self.slot(ref)
        if slot.kind == RAW:
            return len(slot.data)
        if slot.kind == DIFFERENCE:
            lead, _, length, middle, tail = slot.data
            return len(lead) + int(length) + len(middle) + int(tail)
        return 0

    def _changed(self, blob: Blob, links: Sequence[tuple[Ref, Slot]]) -> Blob:
        value = bytearray(blob.data)
        weight, spans, parts = blob.weight, blob.spans, blob.parts
        for link, slot in links:
            change = self._change(slot, link, len(value))
            diff.apply(value, change)
            weight += len(change.lead) + len(change.middle) + LINK_BYTES
            spans = extend(spans, span_of(link.key))
            if slot.kind == DIFFERENCE_PART:
                parts = (*parts, slot.data[3])
        ref, slot = links[-1]
        return Blob(slot.type, bytes(value), slot.digest, ref, weight, spans, parts)

    def _whole(self, slot: Slot, link: Ref) -> Blob:
        parts = (slot.data,) if slot.kind == PART else ()
        data = self._codec.read_part(self._page.parts, slot.data, link.key) if parts else slot.data
        return Blob(slot.type, data, slot.digest, link, 0, (span_of(link.key),), parts)

    def _change(self, slot: Slot, link: Ref, size: int) -> diff.Difference:
        lead, start, length, middle, tail = slot.data
        if slot.kind == DIFFERENCE_PART:
            middle = self._codec.read_part(self._page.parts, middle, link.key)
        change = diff.Difference(lead, start, length, middle, tail)
        if not diff.fits(size, change):
            raise CorruptCheckpointError(f"{link.key} is not a difference from its base")
        return change


def checkpoint_of(image: Image, values: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint that an image is of, with nothing in it shared."""
    header = image.header
    return {
        "v": header.v,
        "ts": header.ts,
        "id": image.key.checkpoint_id,
        "channel_values": values,
        "channel_versions": dict(header.versions),
        "versions_seen": {node: dict(seen) for node, seen in header.seen.items()},
        **copy.deepcopy(header.extra or {}),
    }
